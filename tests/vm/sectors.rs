//! Sectors of real block devices: what is written is read, whatever size the blocks have, and nothing else changes.
//!
//! The machine under `Sys` is used without a daemon, beside a model in memory; what is on the device in the end is
//! read by other means. Deliberately absent: power cuts.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use cores::executor::{CoreSpec, start};
use fastrand::Rng;

use stratisd::error::{Failure, Refusal, Why};
use stratisd::model::device::{BlockSizes, Candidate, DevicePath, Occupant};
use stratisd::sys::kernel::KernelSys;
use stratisd::sys::{Opening, Sys, Target, Write, WriteData};
use stratisd::units::Sectors;

use crate::guest::files::drop_caches;
use crate::guest::{Guest, run};
use crate::host::{SPEC, Spec};
use crate::scenario;

/// Batches for each size of blocks.
const BATCHES: u64 = 120;
/// The part of a device that is written: 2 MiB.
const SECTORS: u64 = 4_096;

/// Runs on a core with the machine.
fn on_core<F: Future<Output = ()>>(work: impl FnOnce(KernelSys) -> F + Send + 'static) {
    let spec = CoreSpec { name: "test".to_owned(), cpu: None };
    let core = start(spec, move || async move { work(KernelSys::new(None).expect("device-mapper is there")).await });
    core.expect("an executor starts").join().expect("no task panics");
}

/// A disk in memory with 64 MiB, and what else these options of `scsi_debug` say.
pub(crate) fn emulated(options: &[&str]) -> String {
    run("modprobe", &[&["scsi_debug", "dev_size_mb=64", "sector_size=512"], options].concat());
    crate::guest::udev::settle();
    let folder = fs::read_dir("/sys/bus/pseudo/drivers/scsi_debug/adapter0/host0/target0:0:0/0:0:0:0/block");
    let name = folder.expect("it has a disk").next().expect("one").expect("readable").file_name();
    format!("/dev/{}", name.to_string_lossy())
}

/// A loop device over a sparse file, with blocks of this size.
fn looped(name: &str, block: u32, bytes: u64) -> String {
    let file = format!("/var/tmp/{name}");
    fs::File::create(&file).expect("/var/tmp is writable").set_len(bytes).expect("files can be sparse");
    let block = block.to_string();
    run("losetup", &["--find", "--show", "--sector-size", &block, &file]).trim().to_owned()
}

async fn examined(sys: &KernelSys, path: &str) -> Candidate {
    sys.examine(&DevicePath::try_from(path).expect("absolute")).await.expect("a block device")
}

/// A write of one to forty sectors anywhere, and what it leaves in the model.
fn write(random: &mut Rng, target: Target, model: &mut [u8]) -> Write {
    let count = random.u64(1..40);
    let start = random.u64(0..SECTORS - count);
    let at = usize::try_from(start * 512).expect("small");
    let mut bytes = vec![0; usize::try_from(count * 512).expect("small")];
    let data = if random.u8(0..4) == 0 {
        WriteData::Zeroes(Sectors(count))
    } else {
        random.fill(&mut bytes);
        WriteData::Bytes(bytes.clone())
    };
    model[at..at + bytes.len()].copy_from_slice(&bytes);
    Write { target, start: Sectors(start), data }
}

/// Whether two writes change a sector both.
fn overlap(a: &Write, b: &Write) -> bool {
    let range = |write: &Write| {
        let count = match &write.data {
            WriteData::Bytes(bytes) => bytes.len() as u64 / 512,
            WriteData::Zeroes(count) => count.0,
        };
        write.start.0..write.start.0 + count
    };
    let (a, b) = (range(a), range(b));
    a.start < b.end && b.start < a.end
}

/// A few writes that do not overlap: the order inside of a batch is nobody's business.
fn batch(random: &mut Rng, target: Target, model: &mut [u8]) -> Vec<Write> {
    let mut batch: Vec<Write> = Vec::new();
    for _ in 0..random.usize(1..9) {
        let before = model.to_vec();
        let next = write(random, target, model);
        if batch.iter().any(|other| overlap(other, &next)) {
            model.copy_from_slice(&before);
        } else {
            batch.push(next);
        }
    }
    batch
}

/// Writes at random, two batches at a time, and reads at random.
async fn exercise(sys: KernelSys, path: String, seed: u64) {
    let mut random = Rng::with_seed(seed);
    let candidate = examined(&sys, &path).await;
    assert_eq!(candidate.hardware.is_some(), path.starts_with("/dev/sd"), "a SCSI disk has a name of its own");
    sys.open(&candidate, Opening::Member).await.expect("nobody is in the way");
    let target = Target::Device(candidate.number);
    let mut model = vec![0; usize::try_from(SECTORS * 512).expect("small")];
    for _ in 0..BATCHES {
        let one = batch(&mut random, target, &mut model);
        let before = model.clone();
        let mut other = batch(&mut random, target, &mut model);
        if one.iter().any(|write| other.iter().any(|next| overlap(write, next))) {
            model = before;
            other.clear();
        }
        // Both change the same blocks at the same time; neither may undo the other.
        let both = (sys.clone(), sys.clone());
        let first = cores::rt::spawn("one", async move { both.0.write(one).await });
        let second = cores::rt::spawn("other", async move { both.1.write(other).await });
        for results in [first.await, second.await] {
            results.expect("no panic").into_iter().collect::<Result<(), _>>().expect("it is written");
        }
        let start = random.u64(0..SECTORS);
        let count = random.u64(0..SECTORS - start);
        let read = sys.read(target, Sectors(start), Sectors(count)).await.expect("it is there");
        let at = usize::try_from(start * 512).expect("small");
        assert!(read[..] == model[at..at + read.len()], "{count} sectors from {start} on (seed {seed})");
    }
    sys.flush(vec![target, target]).await.into_iter().collect::<Result<(), _>>().expect("flushed");
    let past = sys.read(target, candidate.size, Sectors(1)).await.expect_err("behind the end");
    assert_eq!(past.why, Why::Errno(libc::EIO));
    sys.close(candidate.number, false).await;
    drop_caches();
    let mut found = vec![0; model.len()];
    fs::File::open(&path).expect("a device").read_exact(&mut found).expect("it is as long");
    assert!(found == model, "what is on {path} is what was written (seed {seed})");
}

scenario!(
    /// Pieces that begin and end inside of blocks of 512 and 4,096 bytes, side by side.
    nothing_but_what_is_written_changes,
    Spec { disks: &["1G"], ..SPEC },
    |guest: &mut Guest| {
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
        println!("SEED={seed}");
        // It tells of physical blocks of 4,096 bytes and takes blocks of 512.
        let devices = [guest.disks().remove(0), emulated(&["physblk_exp=3"]), looped("b4096", 4096, 64 << 20)];
        crate::guest::udev::settle();
        let blocks = devices.clone().map(|path| run("blockdev", &["--getss", "--getpbsz", &path]));
        assert_eq!(blocks, ["512\n512\n", "512\n4096\n", "4096\n4096\n"]);
        for path in devices {
            on_core(move |sys| exercise(sys, path, seed));
        }
    }
);

/// What opening for one thing keeps others from.
async fn hold(sys: KernelSys, path: String) {
    let again = |flags| OpenOptions::new().read(true).custom_flags(flags).open(&path);
    let candidate = examined(&sys, &path).await;
    assert_eq!(
        (candidate.occupant.clone(), candidate.blocks),
        (Occupant::Nobody, BlockSizes { logical: 512, physical: 512 })
    );
    let number = candidate.number;
    let events = || fs::read_to_string("/sys/kernel/uevent_seqnum").expect("the kernel counts them");
    let before = events();
    sys.open(&candidate, Opening::Look).await.expect("anybody may look");
    sys.close(number, false).await;
    crate::guest::udev::settle();
    assert_eq!(events(), before, "a look makes nobody look");
    sys.open(&candidate, Opening::Look).await.expect("anybody may look again");
    again(libc::O_EXCL).expect("a look is in nobody's way");
    let one = Write { target: Target::Device(number), start: Sectors(0), data: WriteData::Zeroes(Sectors(1)) };
    assert!(sys.write(vec![one.clone()]).await.remove(0).is_err(), "a look does not write");

    sys.open(&candidate, Opening::New).await.expect("nobody uses it");
    assert_eq!(again(libc::O_EXCL).expect_err("it is held").raw_os_error(), Some(libc::EBUSY));
    assert_eq!(examined(&sys, &path).await, candidate, "it can be examined under the hold");
    sys.write(vec![one]).await.remove(0).expect("a new member is written");
    let other = KernelSys::new(None).expect("a second core's machine");
    let refused = other.open(&candidate, Opening::New).await.expect_err("it is held");
    assert!(matches!(refused, Failure::Refused(Refusal::DeviceInUse { .. })), "{refused:?}");
    let grown = Candidate { size: candidate.size + Sectors(8), ..candidate.clone() };
    let refused = other.open(&grown, Opening::Look).await.expect_err("not what was examined");
    assert!(matches!(refused, Failure::Refused(Refusal::DeviceChanged { .. })), "{refused:?}");
    sys.close(number, true).await;
    again(libc::O_EXCL).expect("it is free again");

    run("blockdev", &["--setro", &path]);
    let refused = sys.open(&candidate, Opening::Member).await.expect_err("it cannot be written");
    assert!(matches!(refused, Failure::Refused(Refusal::DeviceReadOnly { .. })), "{refused:?}");
    sys.open(&candidate, Opening::Look).await.expect("it can be looked at");
    sys.close(number, false).await;
    run("blockdev", &["--setrw", &path]);
}

scenario!(
    /// A look leaves no trace, a new member is nobody else's, and what changed meanwhile is noticed.
    a_new_member_is_held,
    Spec { disks: &["1G"], ..SPEC },
    |guest: &mut Guest| {
        let path = guest.disks().remove(0);
        assert!(Path::new(&path).exists());
        on_core(move |sys| hold(sys, path));
    }
);
