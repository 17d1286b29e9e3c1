//! Metadata volumes and volumes in use: what of them the rest of the machine sees, and what it stops.
//!
//! Deliberately absent: what is written into a metadata volume; the crash tests look at that.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::guest::{Guest, dm, files, run, send, try_run, udev};
use crate::host::{SPEC, Spec};
use crate::scenario;
use crate::support::client::Answer;
use crate::support::daemon::BINARY;
use crate::support::{NAME, TOP, interface};

/// Where the daemon mounts metadata volumes.
const MOUNTS: &str = "/run/stratisd/ns_mounts";

/// What a process sees mounted, by its own view.
fn mounts(process: u32) -> String {
    fs::read_to_string(format!("/proc/{process}/mountinfo")).expect("a process that runs has mounts")
}

fn own_mounts() -> String {
    mounts(std::process::id())
}

scenario!(
    /// The daemon's mounts are its own, those of the host are seen by it, and both go with it.
    the_daemon_has_a_namespace_of_its_own,
    Spec { disks: &[], ..SPEC },
    |guest: &mut Guest| {
        refuse_others_than_root();
        // As a daemon without a namespace of its own leaves it.
        fs::create_dir_all(MOUNTS).expect("the guest's root is writable");
        run("mount", &["-t", "tmpfs", "stale", MOUNTS]);
        fs::create_dir(Path::new(MOUNTS).join("old")).expect("it is writable");
        run("mount", &["-t", "tmpfs", "older", &format!("{MOUNTS}/old")]);
        let before = own_mounts();
        for round in 0..2 {
            guest.start();
            let daemon = guest.daemon_id().expect("it runs");
            let there = mounts(daemon).lines().filter(|mount| mount.contains(MOUNTS)).count();
            assert_eq!(there, 1, "its own, and nothing older: {}", mounts(daemon));
            assert_eq!(own_mounts(), before, "the host sees nothing of it");
            fs::create_dir_all("/mnt/late").expect("the guest's root is writable");
            run("mount", &["-t", "tmpfs", "late", "/mnt/late"]);
            assert!(mounts(daemon).contains(" /mnt/late "), "what is mounted later is seen: a filesystem in use is");
            run("umount", &["/mnt/late"]);
            assert!(!mounts(daemon).contains(" /mnt/late "));
            let keys = fs::read_to_string("/proc/keys").expect("the kernel has keys");
            assert!(keys.contains(" _pid"), "a process keyring was made, and this process has none: {keys}");
            if round == 0 { guest.kill9() } else { guest.stop() }
            assert_eq!(own_mounts(), before);
        }
        assert!(!guest.log().contains("keyring"), "no warning: {}", guest.log());
    }
);

scenario!(
    /// A metadata volume is mounted while its pool runs, and the host does not see it.
    a_metadata_volume_is_the_daemons_alone,
    SPEC,
    |guest: &mut Guest| {
        let before = own_mounts();
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()[..1]).done();
        let daemon = guest.daemon_id().expect("it runs");
        let uuid = client.get(&pool, &interface("pool", 9), "Uuid").expect("it has one").text().replace('-', "");
        let there = format!("{MOUNTS}/.mdv-{uuid}");
        assert!(mounts(daemon).contains(&format!(" {there} ")), "{}", mounts(daemon));
        assert_eq!(own_mounts(), before);
        assert!(!Path::new(&there).exists(), "on the host there is not even the mount point");
        let inside = format!("/proc/{daemon}/root{there}");
        assert!(Path::new(&inside).join("filesystems").is_dir() && Path::new(&inside).join("intents").is_dir());

        guest.kill9();
        guest.start();
        let daemon = guest.daemon_id().expect("it runs");
        assert!(mounts(daemon).contains(&format!(" {there} ")), "the next daemon has it mounted again");
        dm::expect_settled();

        let client = guest.client();
        client.stop_pool(&uuid, "uuid").done();
        assert!(!mounts(daemon).contains(&there), "{}", mounts(daemon));
        assert!(!Path::new(&format!("/proc/{daemon}/root{there}")).exists(), "the mount point is gone");
        assert_eq!(dm::names(), [""; 0]);
        assert!(client.get(TOP, &interface("Manager", 9), "Version").is_ok());
    }
);

/// Who may not work with block devices is told so, and nothing happens.
fn refuse_others_than_root() {
    fs::create_dir_all("/tmp/run").expect("the guest's root is writable");
    run("chown", &["65534:65534", "/tmp/run"]);
    let arguments = ["--reuid=65534", "--regid=65534", "--clear-groups", BINARY, "--run-dir", "/tmp/run"];
    let (status, said) = try_run("setpriv", &arguments);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("as user 65534") && said.contains("only root may"), "{said}");
    assert!(!Path::new("/run/stratisd").exists());
}

/// Text of the refusal of a request that changes nothing.
fn refused<T: PartialEq + std::fmt::Debug>(answer: Answer<T>, neutral: &T) -> String {
    let why = answer.refused(neutral);
    dm::expect_settled();
    why
}

scenario!(
    /// What is mounted or held open is neither destroyed nor stopped; what is let go is.
    volumes_in_use_are_left_alone,
    SPEC,
    |guest: &mut Guest| {
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        let filesystem = client.make_filesystem(&pool, "data");
        let node = files::node(&client, &filesystem);
        let before = dm::tables();

        let folder = files::mount(&node, "data");
        let contents = files::Contents::write(folder.join("file"), 4 << 20, 1);
        let none = (false, Vec::new());
        let why = refused(client.destroy_filesystems(&pool, &[&filesystem]), &none);
        assert!(why.contains("data") && why.contains("in use"), "{why}");
        let why = refused(client.stop_pool("p", "name"), &(false, String::new()));
        assert!(why.contains("data") && why.contains("in use"), "{why}");
        assert_eq!(dm::tables(), before, "nothing was taken away");
        files::drop_caches();
        contents.check(&folder);
        files::unmount(&folder);

        let held = fs::File::open(&node).expect("the volume can be opened");
        let why = refused(client.destroy_filesystems(&pool, &[&filesystem]), &none);
        assert!(why.contains("in use"), "{why}");
        drop(held);
        assert_eq!(dm::tables(), before);

        // A mount in another namespace, which the daemon does not see.
        let script = format!("mount -t xfs {} /mnt/data && echo mounted && exec sleep 1000", files::text(&node));
        let mut other = Command::new("unshare");
        other.args(["--mount", "--propagation", "private", "sh", "-c", &script]).stdout(Stdio::piped());
        let mut other = other.spawn().expect("unshare is installed");
        let mut line = String::new();
        let said = BufReader::new(other.stdout.take().expect("it is a pipe")).read_line(&mut line);
        assert_eq!((said.expect("a pipe can be read"), line.as_str()), (8, "mounted\n"));
        let why = refused(client.stop_pool("p", "name"), &(false, String::new()));
        assert!(why.contains("in use"), "{why}");
        other.kill().expect("ours");
        other.wait().expect("ours");

        let folder = files::mount(&node, "data");
        contents.check(&folder);
        files::unmount(&folder);
        client.destroy_filesystems(&pool, &[&filesystem]).done();

        let filesystem = client.make_filesystem(&pool, "by-hand");
        udev::settle();
        run("dmsetup", &["remove", "--retry", files::text(&files::node(&client, &filesystem))]);
        client.stop_pool("p", "name").done();
        assert_eq!(dm::names(), [""; 0], "a volume that somebody took away does not keep the rest");
    }
);

scenario!(
    /// A stop that fails half-way is taken back: volumes, links and the metadata volume are as they were.
    a_stop_that_fails_is_taken_back,
    SPEC,
    |guest: &mut Guest| {
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        let filesystem = client.make_filesystem(&pool, "data");
        let node = files::node(&client, &filesystem);
        let before = dm::tables();
        let daemon = guest.daemon_id().expect("it runs");

        let uuid = client.get(&pool, &interface("pool", 9), "Uuid").expect("it has one").text().to_owned();
        let inside = format!("/proc/{daemon}/root{MOUNTS}/.mdv-{uuid}/filesystems");
        let held = fs::File::open(inside).expect("the metadata volume can be reached by root");
        let why = client.stop_pool("p", "name").refused(&(false, String::new()));
        assert!(why.contains("unmount the metadata volume"), "{why}");
        dm::expect_settled();
        assert_eq!(dm::tables(), before);
        udev::settle();
        assert_eq!(fs::canonicalize("/dev/stratis/p/data").ok(), fs::canonicalize(&node).ok());
        let other = client.make_filesystem(&pool, "other");
        drop(held);

        client.destroy_filesystems(&pool, &[&other]).done();
        client.stop_pool("p", "name").done();
        assert_eq!(dm::names(), [""; 0]);
        client.start_pool("p", "name").done();
        assert_eq!(dm::names().len(), before.len());
    }
);

scenario!(
    /// As in an initial RAM disk: a daemon that is process 1 takes no namespace. The next one takes away its
    /// mounts, and the pool goes on.
    the_first_process_keeps_its_namespace,
    SPEC,
    |guest: &mut Guest| {
        let one = format!("unshare --pid --fork --kill-child {BINARY} --log-level debug");
        let script = format!("{one}; exec {one}");
        let log = fs::File::create("/out/first.log").expect("/out is writable");
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        shell.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor can be doubled")).stderr(log);
        let mut shell = shell.spawn().expect("unshare is installed");

        let client = guest.client();
        let mut daemon = None;
        guest.until("the first daemon serves", |_| {
            daemon = client.process_of(NAME);
            daemon.is_some()
        });
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        client.make_filesystem(&pool, "data");
        let before = dm::tables();
        send(daemon.expect("it serves"), Signal::SIGKILL);
        let first = daemon;
        guest.until("the second daemon serves", |_| {
            daemon = client.process_of(NAME);
            daemon.is_some() && daemon != first
        });
        let daemon = daemon.expect("it serves");
        let here = mounts(daemon).lines().filter(|mount| mount.contains(MOUNTS)).count();
        assert_eq!(here, 2, "one folder, one metadata volume: {}", mounts(daemon));
        assert_eq!(dm::tables(), before);
        client.stop_pool("p", "name").done();
        assert_eq!(dm::names(), [""; 0]);
        send(daemon, Signal::SIGINT);
        assert!(shell.wait().expect("ours").success());
    }
);
