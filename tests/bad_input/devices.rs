//! CreatePool with devices that must not be taken.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::stat::Mode;

use crate::support::disk::is_blank;
use crate::support::rig::{Rig, text};
use crate::support::{GIB, disk};
use crate::{assert_untouched, no_pool, state};

/// Runs a tool on a disk file.
fn run(program: &str, arguments: &[&str], disk: &str) {
    let output = Command::new(program).args(arguments).arg(disk).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is installed: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Writes one partition over all of the disk.
fn partition(disk: &str, label: &str) {
    let script = Path::new(disk).with_extension("sfdisk");
    fs::write(&script, format!("label: {label}\n,\n")).expect("the script can be written");
    let input = fs::File::open(&script).expect("it was just written");
    let status =
        Command::new("sfdisk").args(["--quiet", "--no-reread", "--no-tell-kernel"]).arg(disk).stdin(input).status();
    assert!(status.expect("sfdisk is installed").success());
    fs::remove_file(&script).expect("it was just written");
}

#[test]
fn an_occupied_device_is_refused_and_not_wiped() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let good = rig.disk("good", 2 * GIB);
    let occupied = [("ext4", "mkfs.ext4"), ("xfs", "mkfs.xfs"), ("swap", "mkswap"), ("dos", ""), ("gpt", "")].map(
        |(kind, program)| {
            let disk = rig.disk(kind, 2 * GIB);
            match kind {
                "dos" | "gpt" => partition(&disk, kind),
                _ => run(program, &["-q"][..usize::from(kind != "swap")], &disk),
            }
            disk
        },
    );
    let before = state(&rig, &client);
    for disk in &occupied {
        let error = client.create_pool("p", &[disk]).refused(&no_pool());
        assert!(error.contains(disk), "{error:?} names {disk}");
        client.create_pool("p", &[&good, disk]).refused(&no_pool());
        client.create_pool("p", &[disk, &good]).refused(&no_pool());
        assert_untouched(&rig, &client, &mut daemon, &before, disk);
    }
    assert!(is_blank(Path::new(&good)));
    assert!(client.create_pool("p", &[&good]).done().0, "the good one can still be used");
}

#[test]
fn what_is_no_device_is_refused_by_name() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let good = rig.disk("good", 2 * GIB);
    let folder = rig.disks_folder();
    let at = |name: &str| text(&folder.join(name));
    fs::create_dir(at("folder")).expect("the folder is writable");
    symlink("nowhere", at("dangling")).expect("the folder is writable");
    symlink("loop", at("loop")).expect("the folder is writable");
    symlink("folder", at("to-folder")).expect("the folder is writable");
    nix::unistd::mkfifo(Path::new(&at("fifo")), Mode::S_IRWXU).expect("the folder is writable");
    let before = state(&rig, &client);
    let through_file = format!("{good}/below");
    let bad = ["missing", "folder", "dangling", "loop", "to-folder", "fifo"].map(at);
    let long = format!("/{}", "x".repeat(5_000));
    let others = ["/dev/null", "/", through_file.as_str(), "/proc/version", long.as_str()].map(str::to_owned);
    for path in bad.iter().chain(&others) {
        let error = client.create_pool("p", &[path]).refused(&no_pool());
        assert!(error.contains(path.as_str()), "{error:?} names {path}");
        client.create_pool("p", &[&good, path]).refused(&no_pool());
        assert_untouched(&rig, &client, &mut daemon, &before, path);
    }
    for relative in ["good", "./good", "", "disks/good"] {
        client.create_pool("p", &[relative]).refused(&no_pool());
    }
    assert_untouched(&rig, &client, &mut daemon, &before, "relative paths");
}

#[test]
fn a_device_that_is_too_small_is_refused() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let sizes = [0, 1, 511, 512, 4096, 1 << 20, GIB - 512, GIB - 1];
    let small = sizes.map(|size| rig.disk(&format!("small{size}"), size));
    let good = rig.disk("good", 2 * GIB);
    let before = state(&rig, &client);
    for disk in &small {
        let error = client.create_pool("p", &[disk]).refused(&no_pool());
        assert!(error.contains(disk), "{error:?} names {disk}");
        client.create_pool("p", &[&good, disk]).refused(&no_pool());
        assert_untouched(&rig, &client, &mut daemon, &before, disk);
    }
    assert!(client.create_pool("least", &[rig.disk("least", GIB)]).done().0, "1 GiB is enough");
    assert!(client.create_pool("odd", &[rig.disk("odd", GIB + 511)]).done().0, "the broken sector is left over");
}

#[test]
fn a_device_of_another_pool_is_refused() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let [running, stopped, good] = ["running", "stopped", "good"].map(|name| rig.disk(name, 2 * GIB));
    client.create_pool("running", &[&running]).done();
    client.create_pool("stopped", &[&stopped]).done();
    client.stop_pool("stopped", "name").done();
    let before = state(&rig, &client);
    for disk in [&running, &stopped] {
        let error = client.create_pool("p", &[disk]).refused(&no_pool());
        assert!(error.contains(disk.as_str()), "{error:?} names {disk}");
        client.create_pool("p", &[&good, disk]).refused(&no_pool());
        assert_untouched(&rig, &client, &mut daemon, &before, disk);
    }
}

#[test]
fn a_device_of_an_unknown_pool_is_refused() {
    let other = Rig::files();
    let mut first = other.start();
    let disk = other.disk("one", 2 * GIB);
    other.client().create_pool("p", &[&disk]).done();
    assert!(first.interrupt().success());
    // Another machine that has never heard of that pool is given the disk, under another path.
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let moved = text(&rig.disks_folder().join("moved"));
    symlink(&disk, &moved).expect("the folder is writable");
    let before = state(&rig, &client);
    let error = client.create_pool("q", &[&moved]).refused(&no_pool());
    assert!(error.contains(&moved) || error.contains(&disk), "{error:?} names it");
    assert_untouched(&rig, &client, &mut daemon, &before, "a foreign pool's device");
}

#[test]
fn a_damaged_signature_is_not_wiped() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let disk = rig.disk("one", 2 * GIB);
    let (_, (_, _)) = client.create_pool("p", &[&disk]).done();
    assert!(daemon.interrupt().success());
    // Both signature blocks keep their magic and lose their checksum.
    let damaged = rig.disk("damaged", 2 * GIB);
    let mut head = disk::head(Path::new(&disk), 1 << 20);
    for block in [512, 4096 + 512] {
        head[block] ^= 0xff;
    }
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).open(&damaged).expect("it was just made");
    file.write_all_at(&head, 0).expect("a disk file can be written");
    let mut daemon = rig.start();
    let client = rig.client();
    let before = state(&rig, &client);
    let error = client.create_pool("q", &[&damaged]).refused(&no_pool());
    assert!(error.contains(&damaged), "{error:?} names it");
    assert_untouched(&rig, &client, &mut daemon, &before, "a damaged signature");
}

#[test]
fn one_device_under_two_names_is_one_device_or_an_error() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let disk = rig.disk("one", 2 * GIB);
    let link = text(&rig.disks_folder().join("link"));
    let hard = text(&rig.disks_folder().join("hard"));
    symlink("one", &link).expect("the folder is writable");
    fs::hard_link(&disk, &hard).expect("hard links work here");
    let before = state(&rig, &client);
    let error = client.create_pool("p", &[&disk, &hard]).refused(&no_pool());
    assert!(error.contains(&disk) && error.contains(&hard), "{error:?} names both");
    assert_untouched(&rig, &client, &mut daemon, &before, "a hard link");

    let (changed, (_, devices)) = client.create_pool("p", &[&link, &disk, &link]).done();
    assert_eq!((changed, devices.len()), (true, 1), "links lead to one device");
    assert_eq!(client.create_pool("p", &[&link]).done(), no_pool(), "and to the same pool");
    // The same file under its other name is in use.
    client.create_pool("q", &[&hard]).refused(&no_pool());
    client.create_pool("q", &[&link]).refused(&no_pool());
}
