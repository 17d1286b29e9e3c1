//! Filesystems made natively, mounted and used; then another UUID.
//!
//! Loop mounts need root and XFS in the kernel: without them, `SKIPPED xfs mounts:`.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use stratisd::units::Sectors;
use stratisd::xfs::{
    FIRST_READ, Format, Groups, Identity, Log, LogFault, LogLength, NewUuid, ReadsZeroes, Refused, Sector, Shape, Step,
    Stripe, format,
};
use tempfile::TempDir;
use uuid::Uuid;

use crate::image::{IDENTITY, blank, carry_out, memory, open, read, write};
use crate::tools::{arg, must, repair_is_content, run};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 600 * MIB;

/// An image in a folder of its own.
struct Image {
    folder: TempDir,
    path: PathBuf,
    /// Its first UUID. The kernel mounts no two filesystems of one UUID, and tests run side by side.
    first: Uuid,
}

/// A mounted image; unmounted when the value goes.
struct Mount<'a> {
    image: &'a Image,
    point: PathBuf,
}

impl Image {
    /// `None`: nothing can be mounted here, and that was said.
    fn new() -> Option<Self> {
        let folder = memory().and_then(|folder| {
            fs::create_dir(folder.path().join("mnt"))?;
            Ok(folder)
        });
        let known = fs::read_to_string("/proc/filesystems").is_ok_and(|all| all.contains("\txfs\n"));
        let loops = Path::new("/dev/loop-control").exists() && nix::unistd::geteuid().is_root();
        match folder {
            Ok(folder) if known && loops => {
                let first = Uuid::from_u128(fastrand::u128(1 << 100..u128::MAX - 9_999));
                Some(Self { path: blank(folder.path(), "image", SIZE), folder, first })
            }
            Ok(_) | Err(_) => {
                println!("SKIPPED xfs mounts: they need root, loop devices, XFS in the kernel and /dev/shm");
                None
            }
        }
    }

    #[track_caller]
    fn mount(&self, options: &str) -> Mount<'_> {
        let point = self.folder.path().join("mnt");
        must("mount", &["-t", "xfs", "-o", &format!("loop,{options}"), arg(&self.path), arg(&point)]);
        Mount { image: self, point }
    }

    /// One of its UUIDs.
    fn uuid(&self, number: u128) -> Uuid {
        Uuid::from_u128(self.first.as_u128() + number)
    }

    /// Makes a filesystem in it.
    #[track_caller]
    fn format(&self, shape: &Shape, log: Log) -> Format {
        let made = format(shape, log, Identity { uuid: self.first, ..IDENTITY }).expect("a filesystem");
        carry_out(&self.path, &made);
        made
    }

    /// What the tools show as its UUID.
    fn shown(&self) -> Uuid {
        let said = must("xfs_db", &["-r", "-f", "-c", "uuid", arg(&self.path)]);
        said.trim().strip_prefix("UUID = ").and_then(|uuid| uuid.parse().ok()).expect("xfs_db prints the UUID")
    }

    /// Gives it another UUID; how many rounds of reads that took.
    fn change(&self, new: Uuid) -> Result<usize, Refused> {
        let first = read(&self.path, &[FIRST_READ]).concat();
        let mut step = NewUuid::begin(&first, Sectors(SIZE / 512), new)?;
        let mut rounds = 0;
        loop {
            match step {
                Step::Read(change) => {
                    let read = read(&self.path, change.wanted());
                    step = change.go_on(&read)?;
                }
                Step::Write(writes) => {
                    write(&self.path, &writes);
                    return Ok(rounds);
                }
            }
            rounds += 1;
        }
    }

    #[track_caller]
    fn check_change(&self, new: Uuid, what: &str) {
        let rounds = self.change(new).unwrap_or_else(|refused| panic!("{what}: {refused}"));
        assert!(rounds <= 8, "{what}: {rounds} rounds of reads");
        assert_eq!(self.shown(), new, "{what}");
        repair_is_content(&self.path, what);
    }
}

impl Mount<'_> {
    /// Makes files, each durable before the next: every one is a record in the log.
    fn use_it(&self, name: &str, count: usize) {
        for number in 0..count {
            let mut file = File::create(self.point.join(format!("{name}{number}"))).expect("a file can be made");
            file.write_all(name.as_bytes()).expect("a file can be written");
            file.sync_all().expect("a file can be flushed");
        }
    }

    #[track_caller]
    fn check_use(&self, name: &str, count: usize) {
        for number in 0..count {
            let content = fs::read(self.point.join(format!("{name}{number}"))).expect("the file is there");
            assert_eq!(content, name.as_bytes(), "{name}{number}");
        }
    }

    /// As if the machine had lost power.
    fn shut_down(&self) {
        must("xfs_io", &["-x", "-c", "shutdown -f", arg(&self.point)]);
    }

    #[track_caller]
    fn unmount(self) {
        // Dropping it is unmounting; whether that worked shows when the image is used next.
        drop(self);
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let output = run("umount", &[arg(&self.point)]);
        let clean = output.status.success();
        assert!(clean || std::thread::panicking(), "{}: {output:?}", self.image.path.display());
    }
}

fn shape(sector: Sector, unit: u64) -> Shape {
    let unit = Sectors(unit / 512);
    let stripe = (unit.0 > 0).then_some(Stripe { unit, width: unit });
    Shape { size: Sectors(SIZE / 512), sector, stripe, groups: Groups::Exactly(4) }
}

fn record_only() -> Log {
    Log::RecordOnly(ReadsZeroes::of_new_file(), LogLength::Smallest)
}

/// The lives of a filesystem: used, renamed, used, renamed again and back.
fn check_life(sector: Sector, unit: u64, options: &str) {
    let Some(image) = Image::new() else { return };
    let what = format!("{sector:?}, stripe {unit}, {options}");
    image.format(&shape(sector, unit), record_only());
    // Never mounted.
    image.check_change(image.uuid(1), &what);
    let mount = image.mount(options);
    mount.use_it("a", 60);
    mount.unmount();
    image.check_change(image.uuid(2), &what);
    let mount = image.mount(options);
    mount.check_use("a", 60);
    mount.use_it("b", 60);
    mount.shut_down();
    mount.unmount();
    let dirty = image.change(image.uuid(3));
    assert!(matches!(dirty, Err(Refused::Log(_))), "{what}: {dirty:?}");
    image.mount(options).unmount();
    // Back to the first one: META_UUID goes.
    image.check_change(image.first, &what);
    let mount = image.mount(options);
    mount.check_use("a", 60);
    mount.check_use("b", 60);
    mount.use_it("c", 20);
    mount.unmount();
    // xfs_db writes the whole log anew, with a gap behind the first record unless that is a long one. A
    // log with a gap is left to the kernel.
    must("xfs_db", &["-x", "-f", "-c", &format!("uuid {}", image.uuid(4)), arg(&image.path)]);
    match image.change(image.uuid(6)) {
        Ok(_) => repair_is_content(&image.path, &what),
        Err(refused) => assert!(matches!(refused, Refused::Log(LogFault::Cycles { .. })), "{what}: {refused}"),
    }
    image.mount(options).unmount();
    image.check_change(image.uuid(5), &what);
    image.mount(options).check_use("c", 20);
}

#[test]
fn a_used_filesystem_gets_another_uuid_and_keeps_its_files() {
    check_life(Sector::Bytes512, 0, "logbsize=32k");
    check_life(Sector::Bytes512, MIB, "logbsize=64k");
    check_life(Sector::Bytes4096, 0, "logbsize=256k");
    check_life(Sector::Bytes512, 256 << 10, "logbsize=256k");
}

#[test]
fn a_log_that_went_round_is_followed() {
    let Some(image) = Image::new() else { return };
    image.format(&shape(Sector::Bytes512, MIB), record_only());
    // Every file is a record of 32 KiB: 2,048 of them fill the log.
    for (round, count) in [(1, 1500), (2, 800), (3, 2100)] {
        let mount = image.mount("noatime");
        mount.use_it(&format!("round{round}-"), count);
        mount.unmount();
        image.check_change(image.uuid(round), &format!("round {round}"));
        image.mount("noatime").check_use(&format!("round{round}-"), count);
    }
}

#[test]
fn a_filesystem_on_old_data_survives_because_its_log_is_zeroed() {
    let Some(image) = Image::new() else { return };
    let file = open(&image.path);
    let mut old = vec![0; 1 << 20];
    fastrand::Rng::with_seed(4).fill(&mut old);
    for at in (0..SIZE).step_by(old.len()) {
        file.write_all_at(&old, at).expect("an image can be written");
    }
    image.format(&shape(Sector::Bytes512, MIB), Log::Zeroed);
    repair_is_content(&image.path, "old data");
    let mount = image.mount("noatime");
    mount.use_it("a", 300);
    mount.unmount();
    let mount = image.mount("noatime");
    mount.check_use("a", 300);
    mount.use_it("b", 100);
    mount.shut_down();
    mount.unmount();
    image.mount("noatime").check_use("b", 100);
    repair_is_content(&image.path, "old data, used");
}

#[test]
fn what_is_mounted_or_damaged_keeps_its_uuid() {
    let Some(image) = Image::new() else { return };
    let format = image.format(&shape(Sector::Bytes512, 0), record_only());
    assert_eq!(image.change(Uuid::nil()), Err(Refused::Nil));
    let mount = image.mount("noatime");
    mount.use_it("a", 10);
    assert!(matches!(image.change(image.uuid(1)), Err(Refused::Log(_))), "mounted");
    mount.unmount();
    let file = open(&image.path);
    let flip = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("an image can be read");
        file.write_all_at(&[byte[0] ^ 1], at).expect("an image can be written");
    };
    let group = format.geometry.group_blocks() * 4096;
    for at in [0, 100, 300, group + 130, 2 * group + 500, format.log.at + 2] {
        flip(at);
        assert!(image.change(image.uuid(1)).is_err(), "byte {at}");
        flip(at);
    }
    let log = format.log;
    file.write_all_at(&vec![0; usize::try_from(log.length).expect("64 MiB")], log.at).expect("an image");
    assert_eq!(image.change(image.uuid(1)), Err(Refused::Log(LogFault::Empty)));
}
