//! The same bytes as `mkfs.xfs`, and the same geometry.

use std::env;

use fastrand::Rng;
use stratisd::model::blank::ReadsZeroes;
use stratisd::model::ids::{PoolUuid, ThinId};
use stratisd::units::Sectors;
use stratisd::xfs::{Geometry, Groups, Log, LogLength, Sector, Shape, Stripe, Unfit, format};
use uuid::Uuid;

use crate::image::{IDENTITY, UUID, blank, carry_out, content, folder};
use crate::tools::{mkfs, options, printed, repair_is_content};

const MIB: u64 = 1 << 20;
const GIB: u64 = MIB << 10;
const TIB: u64 = GIB << 10;
const SECTORS: [Sector; 2] = [Sector::Bytes512, Sector::Bytes4096];

/// A shape; `unit` in bytes, `width` in units, 0: no stripe.
fn shape(size: u64, sector: Sector, unit: u64, width: u64) -> Shape {
    let unit = Sectors(unit / 512);
    let stripe = (unit.0 > 0).then_some(Stripe { unit, width: Sectors(unit.0 * width) });
    Shape { size: Sectors(size / 512), sector, stripe, groups: Groups::Default }
}

/// Makes a filesystem both ways and compares every byte; then xfs_repair looks at ours.
#[track_caller]
fn check_equal(shape: &Shape, length: LogLength) {
    let size = shape.size.offset();
    let folder = folder(size);
    let (theirs, ours) = (blank(folder.path(), "theirs", size), blank(folder.path(), "ours", size));
    let options = options(shape, length);
    let what = format!("{} bytes, {}", size, options.join(" "));
    let (made, said) = mkfs(&theirs, &options, &["-q", "-m", &format!("uuid={UUID}")]);
    assert!(made, "{what}: {said}");
    let log = Log::RecordOnly(ReadsZeroes::of_new_file(PoolUuid(Uuid::nil()), ThinId(0)), length);
    let format = format(shape, log, IDENTITY).unwrap_or_else(|unfit| panic!("{what}: {unfit}"));
    carry_out(&ours, &format);
    let root = format.geometry.root_inodes();
    let (theirs, ours_now) = (content(&theirs, root), content(&ours, root));
    // Not both empty: each group has four headers and five roots.
    assert!(theirs.len() >= 6 * usize::try_from(format.geometry.groups()).expect("a count"), "{what}");
    let places: Vec<_> = theirs.keys().chain(ours_now.keys()).collect();
    for at in places {
        let (theirs, ours) = (theirs.get(at), ours_now.get(at));
        let first = theirs.zip(ours).and_then(|(theirs, ours)| theirs.iter().zip(ours).position(|(a, b)| a != b));
        let (have, has) = (ours.is_some(), theirs.is_some());
        assert!(theirs == ours, "{what}: at {at:#x} ours {have}, theirs {has}: differ from byte {first:?}");
    }
    repair_is_content(&ours, &what);
}

/// Prints what a test covered, for whoever reads the log.
fn covered(what: &str, count: usize) {
    println!("{what}: {count} geometries, byte by byte and xfs_repair -n");
}

#[test]
fn plain_filesystems_have_the_bytes_of_mkfs() {
    let odd = [300 * MIB, 512 * MIB, 536_875_008, GIB, 10 * GIB + 4096, 511 * GIB, 777_777_778_688, TIB, TIB + 4096];
    let large = [3 * TIB + 512, 4 * TIB - 4096, 4 * TIB, 8 * TIB, 12 * TIB + 7 * MIB];
    let sizes: Vec<u64> = odd.into_iter().chain(large).collect();
    for sector in SECTORS {
        for size in &sizes {
            check_equal(&shape(*size, sector, 0, 0), LogLength::Default);
        }
    }
    covered("plain", 2 * sizes.len());
}

#[test]
fn striped_filesystems_have_the_bytes_of_mkfs() {
    let stripes = [(MIB, 1), (512 << 10, 2), (64 << 10, 1), (192 << 10, 1), (64 << 10, 4), (4096, 8), (256 << 10, 4)];
    let mut count = 0;
    for (number, (unit, width)) in stripes.into_iter().enumerate() {
        let sizes = [GIB, 10 * GIB, 512 * GIB, 777_777_778_688, TIB, TIB + 4096, 8 * TIB];
        for sector in SECTORS {
            // Each stripe with four of the sizes, each size with some stripes.
            for size in sizes.into_iter().cycle().skip(number).step_by(2).take(3) {
                check_equal(&shape(size, sector, unit, width), LogLength::Default);
                count += 1;
            }
        }
    }
    covered("striped", count);
}

#[test]
fn the_largest_filesystems_have_the_bytes_of_mkfs() {
    // Their images lie in memory, where zeroes of a log take place: a small log.
    let sizes = [16 * TIB, 32 * TIB, 50 * TIB + 12_288];
    for size in sizes {
        for (unit, width) in [(0, 0), (MIB, 1)] {
            check_equal(&shape(size, Sector::Bytes512, unit, width), LogLength::Smallest);
        }
    }
    check_equal(&shape(16 * TIB, Sector::Bytes4096, MIB, 1), LogLength::Smallest);
    covered("largest", 2 * sizes.len() + 1);
}

#[test]
fn chosen_groups_and_logs_have_the_bytes_of_mkfs() {
    let mut count = 0;
    for (size, groups, unit) in
        [(TIB, 4, MIB), (512 * MIB, 4, MIB), (100 * GIB + 5 * MIB, 7, 64 << 10), (TIB, 2, 0), (10 * GIB, 100, MIB)]
    {
        for sector in SECTORS {
            let shape = Shape { groups: Groups::Exactly(groups), ..shape(size, sector, unit, 1) };
            for log in [LogLength::Smallest, LogLength::Exactly(Sectors(80 * MIB / 512))] {
                check_equal(&shape, log);
                count += 1;
            }
        }
    }
    covered("groups and logs", count);
}

/// A number that the environment gives, or this one.
fn number(name: &str, otherwise: u64) -> u64 {
    env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(otherwise)
}

/// The same shapes each time; `SEED` has others.
fn random() -> Rng {
    Rng::with_seed(number("SEED", 1))
}

/// A shape that somebody could want, or at the edge of what nobody could.
fn random_shape(rng: &mut Rng) -> Shape {
    let size = 2_u64.pow(rng.u32(28..44)) + rng.u64(0..TIB) % 2_u64.pow(rng.u32(10..40));
    let unit = [0, 4096, 64 << 10, 192 << 10, 256 << 10, 320 << 10, 512 << 10, MIB, 2 * MIB][rng.usize(..9)];
    let count = [2, 3, 4, 5, 8, 16, 17, 32, 63, 200][rng.usize(..10)];
    let groups = if rng.bool() { Groups::Default } else { Groups::Exactly(count) };
    Shape { groups, ..shape(size.min(14 * TIB), SECTORS[rng.usize(..2)], unit, rng.u64(1..5)) }
}

#[test]
fn random_shapes_have_the_bytes_of_mkfs() {
    let mut rng = random();
    let mut count = 0;
    while count < 24 {
        let shape = random_shape(&mut rng);
        // What is refused is the next test's.
        if Geometry::of(&shape, LogLength::Default).is_ok() {
            check_equal(&shape, LogLength::Default);
            count += 1;
        }
    }
    covered("random", count);
}

/// Whether we may refuse what mkfs.xfs says. With a count of groups that cannot be, the last ones would lie beyond the
/// end (without `-N` it finds that the superblock that it writes is wrong), or it takes fewer groups and leaves the
/// rest unused. And of a log that was asked for it may leave its group nothing else, which is no use to us.
fn is_no_use(shape: &Shape, said: &str) -> bool {
    let Groups::Exactly(count) = shape.groups else { return false };
    let one = |name, index: usize| *printed(said, name).get(index).expect("mkfs.xfs prints it");
    let (groups, each, blocks, log) = (one("agcount", 0), one("agsize", 0), one("blocks", 0), one("blocks", 1));
    let (before_last, device) = ((groups - 1) * each, shape.size.offset() / 4096);
    let beyond = before_last >= blocks || blocks > device;
    let unused = groups < u64::from(count) && blocks + each <= device;
    // In front of a log are at most nine blocks and what aligns it, behind it less than one unit.
    let unit = shape.stripe.map_or(0, |stripe| stripe.unit.offset() / 4096);
    let filled = || (blocks - before_last).min(each) <= log + 9 + 2 * unit.min(64);
    beyond || unused || filled()
}

#[test]
fn what_mkfs_only_says_that_it_makes_is_refused() {
    let (gib, unit) = (34_516_696_576, 2 * MIB);
    let beyond = Shape { groups: Groups::Exactly(200), ..shape(gib, Sector::Bytes4096, unit, 4) };
    let unused = Shape { groups: Groups::Exactly(4), ..shape(4_398_046_513_152, Sector::Bytes512, 192 << 10, 3) };
    for shape in [beyond, unused] {
        let folder = folder(shape.size.offset());
        let path = blank(folder.path(), "image", shape.size.offset());
        let (made, said) = mkfs(&path, &options(&shape, LogLength::Default), &["-N"]);
        assert!(made && is_no_use(&shape, &said), "{shape:?}: {said}");
        let refused = Geometry::of(&shape, LogLength::Default);
        assert!(matches!(refused, Err(Unfit::GroupLength { .. })), "{shape:?}: {refused:?}");
    }
}

#[test]
fn random_shapes_have_the_geometry_of_mkfs_or_are_refused_by_both() {
    let mut rng = random();
    let folder = folder(TIB);
    let mut refused = 0;
    let count = number("SHAPES", 250);
    for number in 0..count {
        let shape = random_shape(&mut rng);
        let log = if rng.bool() { LogLength::Default } else { LogLength::Exactly(Sectors(rng.u64(60..260) * 2048)) };
        let path = blank(folder.path(), "image", shape.size.offset());
        let options = options(&shape, log);
        let what = format!("{number}: {} bytes, {}", shape.size.offset(), options.join(" "));
        let (made, said) = mkfs(&path, &options, &["-N"]);
        let geometry = match Geometry::of(&shape, log) {
            Ok(geometry) => geometry,
            Err(unfit) => {
                assert!(!made || is_no_use(&shape, &said), "{what}: we say: {unfit}; mkfs.xfs: {said}");
                refused += 1;
                continue;
            }
        };
        assert!(made, "{what}: {geometry:?} {said}");
        let log_blocks = geometry.log().length / 4096;
        assert_eq!(printed(&said, "agcount"), [geometry.groups()], "{what}");
        assert_eq!(printed(&said, "agsize"), [geometry.group_blocks()], "{what}");
        assert_eq!(printed(&said, "blocks")[..2], [geometry.blocks(), log_blocks], "{what}");
    }
    println!("geometry: {count} shapes, {refused} of them refused by both");
    assert!(refused * 5 < count * 3, "the shapes are to be of some use");
}
