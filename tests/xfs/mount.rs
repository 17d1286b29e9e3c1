//! Images that can be mounted, and what is done with mounted ones.
//!
//! Loop mounts need root and XFS in the kernel: without them, `SKIPPED xfs mounts:`. Every image has
//! its own UUIDs, because the kernel mounts no two filesystems of one UUID and tests run side by side.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use stratisd::model::blank::ReadsZeroes;
use stratisd::model::ids::{PoolUuid, ThinId};
use stratisd::units::Sectors;
use stratisd::xfs::{
    FIRST_READ, Format, Groups, Identity, Log, LogLength, NewUuid, Refused, Sector, Shape, Step, Stripe, Write, format,
};
use tempfile::TempDir;
use uuid::Uuid;

use crate::image::{IDENTITY, blank, carry_out, memory, open, read, write};
use crate::tools::{arg, must, repair_is_content, run};

/// How long an unmount may meet a file that is still open. No test passes because this is short.
const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SIZE: u64 = 600 * MIB;

/// An image in a folder of its own.
pub(crate) struct Image {
    folder: TempDir,
    pub(crate) path: PathBuf,
    /// Its first UUID.
    pub(crate) first: Uuid,
}

/// A mounted image; unmounted when the value goes.
pub(crate) struct Mount<'a> {
    image: &'a Image,
    pub(crate) point: PathBuf,
}

impl Image {
    /// `None`: nothing can be mounted here, and that was said.
    pub(crate) fn new() -> Option<Self> {
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
    pub(crate) fn mount(&self, options: &str) -> Mount<'_> {
        let point = self.folder.path().join("mnt");
        must("mount", &["-t", "xfs", "-o", &format!("loop,{options}"), arg(&self.path), arg(&point)]);
        Mount { image: self, point }
    }

    /// One of its UUIDs.
    pub(crate) fn uuid(&self, number: u128) -> Uuid {
        Uuid::from_u128(self.first.as_u128() + number)
    }

    /// Makes a filesystem in it.
    #[track_caller]
    pub(crate) fn format(&self, shape: &Shape, log: Log) -> Format {
        let made = format(shape, log, Identity { uuid: self.first, ..IDENTITY }).expect("a filesystem");
        carry_out(&self.path, &made);
        made
    }

    /// What the tools show as its UUID.
    pub(crate) fn shown(&self) -> Uuid {
        let said = must("xfs_db", &["-r", "-f", "-c", "uuid", arg(&self.path)]);
        said.trim().strip_prefix("UUID = ").and_then(|uuid| uuid.parse().ok()).expect("xfs_db prints the UUID")
    }

    /// Gives it another UUID; how many rounds of reads that took.
    pub(crate) fn change(&self, new: Uuid) -> Result<usize, Refused> {
        let (writes, rounds) = self.plan(new)?;
        write(&self.path, &writes);
        Ok(rounds)
    }

    /// What is to be written for another UUID, and how many rounds of reads that took.
    pub(crate) fn plan(&self, new: Uuid) -> Result<(Vec<Write>, usize), Refused> {
        let size = open(&self.path).metadata().expect("the image is there").len();
        let first = read(&self.path, &[FIRST_READ]).concat();
        let mut step = NewUuid::begin(&first, Sectors(size / 512), new)?;
        let mut rounds = 0;
        loop {
            match step {
                Step::Read(change) => {
                    let read = read(&self.path, change.wanted());
                    step = change.go_on(&read)?;
                }
                Step::Write(writes) => return Ok((writes, rounds)),
            }
            rounds += 1;
        }
    }

    #[track_caller]
    pub(crate) fn check_change(&self, new: Uuid, what: &str) {
        let rounds = self.change(new).unwrap_or_else(|refused| panic!("{what}: {refused}"));
        assert!(rounds <= 8, "{what}: {rounds} rounds of reads");
        assert_eq!(self.shown(), new, "{what}");
        repair_is_content(&self.path, what);
    }
}

impl Mount<'_> {
    /// Makes files, each durable before the next: every one is a record in the log.
    pub(crate) fn use_it(&self, name: &str, count: usize) {
        for number in 0..count {
            let mut file = File::create(self.point.join(format!("{name}{number}"))).expect("a file can be made");
            file.write_all(name.as_bytes()).expect("a file can be written");
            file.sync_all().expect("a file can be flushed");
        }
    }

    #[track_caller]
    pub(crate) fn check_use(&self, name: &str, count: usize) {
        for number in 0..count {
            let content = fs::read(self.point.join(format!("{name}{number}"))).expect("the file is there");
            assert_eq!(content, name.as_bytes(), "{name}{number}");
        }
    }

    /// As if the machine had lost power.
    pub(crate) fn shut_down(&self) {
        must("xfs_io", &["-x", "-c", "shutdown -f", arg(&self.point)]);
    }

    #[track_caller]
    pub(crate) fn unmount(self) {
        // Dropping it is unmounting; whether that worked shows when the image is used next.
        drop(self);
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let end = Instant::now() + PATIENCE;
        let output = loop {
            let output = run("umount", &[arg(&self.point)]);
            let text = String::from_utf8_lossy(&output.stderr);
            // A child that another test has forked holds our open files until it executes its program.
            if output.status.success() || !text.contains("busy") || Instant::now() > end {
                break output;
            }
            thread::yield_now();
        };
        let clean = output.status.success();
        assert!(clean || thread::panicking(), "{}: {output:?}", self.image.path.display());
    }
}

/// A shape of four groups; `unit` in bytes, 0: no stripe.
pub(crate) fn shape(sector: Sector, unit: u64) -> Shape {
    let unit = Sectors(unit / 512);
    let stripe = (unit.0 > 0).then_some(Stripe { unit, width: unit });
    Shape { size: Sectors(SIZE / 512), sector, stripe, groups: Groups::Exactly(4) }
}

/// The log of what reads as zeroes.
pub(crate) fn record_only() -> Log {
    Log::RecordOnly(ReadsZeroes::of_new_file(PoolUuid(Uuid::nil()), ThinId(0)), LogLength::Smallest)
}
