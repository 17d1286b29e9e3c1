//! Disks that can be made to fail, to be slow, to hang or to vanish: each is a dm device of ours over a real one, whose
//! table a scenario swaps.
//!
//! Deliberately absent: putting a disk back after a scenario. The machine is thrown away.

use std::io::Write;
use std::process::{Command, Stdio};

use super::{run, udev};

/// Sectors at the end of a disk that are left of one that vanishes: a block.
const END: u64 = 8;

/// A disk below a pool.
pub(crate) struct Lab {
    name: String,
    disk: String,
    sectors: u64,
}

impl Lab {
    /// A disk that works as the one below it.
    #[track_caller]
    pub(crate) fn over(disk: &str, name: &str) -> Self {
        let sectors = run("blockdev", &["--getsz", disk]).trim().parse().expect("a number of sectors");
        let lab = Self { name: name.to_owned(), disk: disk.to_owned(), sectors };
        dmsetup(&["create", name], &lab.linear(0, sectors));
        udev::settle();
        lab
    }

    /// A disk that keeps what is written to its first sectors, which the one below has, and forgets the rest. It takes
    /// no room, and is as fast as can be.
    #[track_caller]
    pub(crate) fn forgetful(disk: &str, name: &str, kept: u64, sectors: u64) -> Self {
        run("modprobe", &["dm-zero"]);
        let lab = Self { name: name.to_owned(), disk: disk.to_owned(), sectors: kept };
        dmsetup(&["create", name], &format!("{}{kept} {} zero\n", lab.linear(0, kept), sectors - kept));
        udev::settle();
        lab
    }

    /// Its path.
    pub(crate) fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    /// All of it works again.
    pub(crate) fn mend(&self) {
        self.swap(&self.linear(0, self.sectors));
    }

    /// Everything fails with EIO, as on a disk that has vanished; but for the end, so that the disk below is in use as
    /// before, and nobody takes that one.
    pub(crate) fn vanish(&self) {
        let failing = self.sectors - END;
        self.swap(&format!("0 {failing} error\n{}", self.linear(failing, END)));
    }

    /// These sectors fail with EIO, reads and writes.
    pub(crate) fn fail(&self, start: u64, count: u64) {
        self.swap(&self.around(start, count, &format!("{start} {count} error\n")));
    }

    /// Writes to these sectors fail with EIO, reads do not.
    pub(crate) fn fail_writes(&self, start: u64, count: u64) {
        let flakey = format!("{start} {count} flakey {} {start} 0 3600 1 error_writes\n", self.disk);
        self.swap(&self.around(start, count, &flakey));
    }

    /// Each read, write and flush takes so much longer.
    pub(crate) fn delay(&self, milliseconds: u32) {
        let way = format!("{} 0 {milliseconds}", self.disk);
        self.swap(&format!("0 {} delay {way} {way} {way}\n", self.sectors));
    }

    /// Each read, write and flush of these sectors takes so much longer.
    pub(crate) fn delay_part(&self, start: u64, count: u64, milliseconds: u32) {
        let way = format!("{} {start} {milliseconds}", self.disk);
        self.swap(&self.around(start, count, &format!("{start} {count} delay {way} {way} {way}\n")));
    }

    /// Nothing is answered until `go_on`.
    pub(crate) fn hang(&self) {
        run("dmsetup", &["suspend", "--noflush", "--nolockfs", &self.name]);
    }

    /// Everything is answered again, with what has waited.
    pub(crate) fn go_on(&self) {
        // A udevd that hangs is not waited for: what is there has its name.
        run("dmsetup", &["resume", "--noudevsync", &self.name]);
    }

    fn linear(&self, start: u64, count: u64) -> String {
        if count == 0 { String::new() } else { format!("{start} {count} linear {} {start}\n", self.disk) }
    }

    fn around(&self, start: u64, count: u64, middle: &str) -> String {
        let end = start + count;
        format!("{}{middle}{}", self.linear(0, start), self.linear(end, self.sectors - end))
    }

    fn swap(&self, table: &str) {
        dmsetup(&["load", &self.name], table);
        self.hang();
        self.go_on();
    }
}

/// Runs `dmsetup` with a table of several lines.
#[track_caller]
fn dmsetup(arguments: &[&str], table: &str) {
    let mut child = Command::new("dmsetup").args(arguments).stdin(Stdio::piped()).spawn().expect("dmsetup starts");
    child.stdin.take().expect("it is a pipe").write_all(table.as_bytes()).expect("dmsetup reads its table");
    let status = child.wait().expect("a child can be waited for");
    assert!(status.success(), "dmsetup {arguments:?}: {status}: {table}");
}
