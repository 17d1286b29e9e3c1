//! Disks that come and go under a running daemon, and events of thin pools, with a real udevd and a real
//! device-mapper.
//!
//! The disks are loop devices: a test can plug and pull them. Deliberately absent: which order of events
//! leads to what; the simulation tries those by the hundred.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket};

use crate::guest::{Guest, dm, files, run, try_run, udev};
use crate::host::{SPEC, Spec};
use crate::scenario;
use crate::support::client::Client;
use crate::support::{MIB, interface};

/// Nothing but the machine itself.
const BARE: Spec = Spec { disks: &[], ..SPEC };

/// Plugs in an image of 4 GiB, which is made sparse if it is not there; its node.
pub(crate) fn plug(image: &str) -> String {
    plug_of(image, 4096 * MIB)
}

pub(crate) fn plug_of(image: &str, size: u64) -> String {
    let path = format!("/root/{image}.img");
    if !Path::new(&path).exists() {
        let file = File::create(&path).expect("the guest's root is writable");
        file.set_len(size).expect("a sparse file takes no room");
    }
    let node = run("losetup", &["--find", "--show", &path]).trim().to_owned();
    udev::settle();
    node
}

/// Pulls it again.
pub(crate) fn pull(node: &str) {
    run("losetup", &["-d", node]);
}

/// How many devices the only stopped pool has, if there is one.
fn stopped_with(client: &Client) -> Option<usize> {
    let all = client.stopped_pools(9);
    assert!(all.len() <= 1, "one pool is all there is: {all:?}");
    all.values().next().map(|pool| pool["devs"].members().len())
}

fn running(client: &Client) -> Vec<String> {
    client.family("pool").into_keys().collect()
}

/// Lines of the daemon's log with these words.
fn said(guest: &Guest, words: &str) -> usize {
    guest.log().lines().filter(|line| line.contains(words)).count()
}

/// Takes the dm devices away that a killed daemon has left, as a restart of the machine would.
fn forget_dm() {
    // What lies on top goes first; each round takes at least one layer.
    for _ in 0..6 {
        for device in dm::devices().into_iter().filter(|device| device.open == 0) {
            run("dmsetup", &["remove", "--retry", &device.name]);
        }
    }
    assert!(dm::devices().is_empty(), "{:?}", dm::devices());
    udev::settle();
}

scenario!(
    /// A pool whose second disk arrives late starts by itself, with what was on it.
    a_pool_starts_when_its_last_disk_arrives,
    BARE,
    |guest: &mut Guest| {
        let (a, b) = (plug("a"), plug("b"));
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &[&a, &b]).done();
        client.make_filesystem(&pool, "one");
        guest.kill9();
        forget_dm();
        pull(&b);
        udev::settle();

        guest.start();
        let client = guest.client();
        assert_eq!(stopped_with(&client), Some(1), "it is listed while it is not whole");
        assert!(running(&client).is_empty());
        plug("b");
        guest.until("the pool runs", |_| running(&client).len() == 1);
        assert_eq!(stopped_with(&client), None);
        let filesystem = client.family("filesystem").into_keys().next().expect("it came with the pool");
        let folder = files::mount(&files::node(&client, &filesystem), "one");
        files::unmount(&folder);
        dm::expect_settled();
        guest.stop();
    }
);

scenario!(
    /// Disks of a stopped pool are pulled, plugged in again and wiped; at the end nobody knows the pool, and
    /// its disks are free.
    disks_of_a_stopped_pool_come_and_go,
    BARE,
    |guest: &mut Guest| {
        let (a, b) = (plug("a"), plug("b"));
        guest.start();
        let client = guest.client();
        client.create_pool("p", &[&a, &b]).done();
        client.stop_pool("p", "name").done();
        assert_eq!(stopped_with(&client), Some(2));

        pull(&b);
        guest.until("the pool has one disk", |_| stopped_with(&client) == Some(1));
        let b = plug("b");
        guest.until("the pool has both disks", |_| stopped_with(&client) == Some(2));
        client.start_pool("p", "name").done();
        client.stop_pool("p", "name").done();

        run("wipefs", &["--all", &b]);
        guest.until("one disk is left", |_| stopped_with(&client) == Some(1));
        assert_eq!(client.start_pool("p", "name").code, 1, "half a pool is not started");
        run("wipefs", &["--all", &a]);
        guest.until("none is left", |_| stopped_with(&client).is_none());
        client.create_pool("q", &[&a, &b]).done();
        assert_eq!(running(&client).len(), 1);
        guest.stop();
    }
);

scenario!(
    /// What udev says of the daemon's own doings, and of nothing at all, starts nothing.
    reports_without_news_start_nothing,
    BARE,
    |guest: &mut Guest| {
        let (a, b) = (plug("a"), plug("b"));
        guest.start();
        let client = guest.client();
        client.create_pool("p", &[&a, &b]).done();
        udev::settle();
        let settled = said(guest, "pool settled");
        for stopped in [false, true] {
            udev::settle();
            for _ in 0..3 {
                run("udevadm", &["trigger", "--settle", "--action=change", &a, &b]);
            }
            // Reports are taken in one after the other: when the last one was, so were those of the pool.
            let last = plug("last");
            let words = format!("no Stratis device any more (device={last})");
            let before = said(guest, &words);
            pull(&last);
            guest.until("the reports are heard", |guest| said(guest, &words) > before);
            assert_eq!(stopped_with(&client), stopped.then_some(2));
            // Waits its turn behind whatever goes on in the pool.
            if stopped {
                client.start_pool("p", "name").done();
            } else {
                client.stop_pool("p", "name").done();
            }
            assert_eq!(said(guest, "pool settled"), settled, "{}", guest.log());
        }
        guest.stop();
    }
);

scenario!(
    /// A disk that comes back under another name while its pool runs is found when the pool has stopped.
    a_disk_with_a_new_name_is_found_after_the_stop,
    BARE,
    |guest: &mut Guest| {
        let (a, b) = (plug("a"), plug("b"));
        guest.start();
        let client = guest.client();
        client.create_pool("p", &[&a, &b]).done();
        udev::settle();
        // The pool has the first device open, so the image gets a second one beside it.
        let twin = plug("b");
        assert_ne!(twin, b);
        guest.until("the twin is seen", |guest| said(guest, "runs without it") > 0);
        client.stop_pool("p", "name").done();
        guest.until("it is listed beside the other", |_| stopped_with(&client) == Some(3));
        assert_eq!(client.start_pool("p", "name").code, 1, "one disk twice is not started");
        pull(&b);
        guest.until("the pool is whole and nothing else", |_| stopped_with(&client) == Some(2));
        client.start_pool("p", "name").done();
        dm::expect_settled();
        guest.stop();
    }
);

scenario!(
    /// A disk that has grown under a running pool is told; the pool goes on with what it had.
    a_disk_that_grows_is_told,
    BARE,
    |guest: &mut Guest| {
        let a = plug("a");
        guest.start();
        let client = guest.client();
        client.create_pool("p", &[&a]).done();
        let new_size = || {
            let devices = client.family("blockdev");
            devices.values().next().expect("the pool has a disk")["NewPhysicalSize"].members().to_vec()
        };
        assert!(!new_size()[0].is_true());
        run("truncate", &["--size=5G", "/root/a.img"]);
        run("losetup", &["--set-capacity", &a]);
        guest.until("the new size is shown", |_| new_size()[0].is_true());
        assert_eq!(new_size()[1].text(), "5368709120");
        dm::expect_settled();
        guest.stop();
    }
);

/// Fills the sockets of everybody who listens to udevd with what is no event.
fn drown_listeners() {
    let flags = SockFlag::empty();
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkKObjectUEvent);
    let socket = socket.expect("root may talk to those who listen to udevd");
    let udevd_speaks = NetlinkAddr::new(0, 2);
    for _ in 0..20_000 {
        // That it did not fit is what is wanted.
        let _full = sendto(socket.as_raw_fd(), &[0; 1024], &udevd_speaks, MsgFlags::empty());
    }
}

scenario!(
    /// More messages than the monitor's socket holds: what changed meanwhile is found all the same.
    events_that_were_lost_are_made_good,
    BARE,
    |guest: &mut Guest| {
        let (a, b) = (plug("a"), plug("b"));
        guest.start();
        let client = guest.client();
        client.create_pool("p", &[&a, &b]).done();
        client.stop_pool("p", "name").done();
        guest.signal(Signal::SIGSTOP);
        drown_listeners();
        pull(&b);
        udev::settle();
        guest.signal(Signal::SIGCONT);
        guest.until("the pool has one disk", |_| stopped_with(&client) == Some(1));
        assert_eq!(said(guest, "device events were lost"), 1, "{}", guest.log());
        plug("b");
        guest.until("the pool has both disks", |_| stopped_with(&client) == Some(2));
        guest.stop();
    }
);

/// The name of the pool's thin pool.
fn thin_pool() -> String {
    dm::names().into_iter().find(|name| name.ends_with("-thinpool-pool")).expect("the pool runs")
}

fn availability(client: &Client, pool: &str) -> String {
    client.get(pool, &interface("pool", 9), "AvailableActions").expect("it can be read").text().to_owned()
}

/// A pool whose thin pool is small, and a mounted filesystem on it.
fn small_pool(guest: &mut Guest) -> (Client, String, PathBuf) {
    let a = plug("small");
    // What is written to the disk is in memory, so it is to be little.
    guest.start_with(&["--grow-step", "128", "--low-water", "64"]);
    let client = guest.client();
    let (_, (pool, _)) = client.create_pool("p", &[&a]).done();
    let filesystem = client.make_filesystem(&pool, "one");
    let folder = files::mount(&files::node(&client, &filesystem), "one");
    (client, pool, folder)
}

scenario!(
    /// The event of a thin pool that passes its low-water mark reaches the pool's shard.
    a_low_water_event_reaches_the_shard,
    BARE,
    |guest: &mut Guest| {
        let (client, pool, folder) = small_pool(guest);
        let table = &dm::tables()[&thin_pool()];
        let low_water: u64 = table.split_whitespace().nth(6).expect("a mark").parse().expect("in blocks");
        let total: u64 = dm::status(&thin_pool()).split(['/', ' ']).nth(7).expect("a total").parse().expect("in blocks");
        assert_eq!((total, low_water), (128, 64));
        let changed = said(guest, "thin pool changed");
        // More than what is above the mark, so that it is passed.
        files::Contents::write(folder.join("filler"), (total - low_water + 16) * MIB, 1);
        guest.until("the event is answered", |guest| said(guest, "thin pool changed") > changed);
        assert_eq!(availability(&client, &pool), "fully_operational", "that is no illness");
        files::unmount(&folder);
        guest.stop();
    }
);

scenario!(
    /// A thin pool whose metadata cannot be written makes its pool one that takes no changes, also while
    /// udevd does not answer.
    a_broken_thin_pool_degrades_its_pool,
    BARE,
    |guest: &mut Guest| {
        let (client, pool, folder) = small_pool(guest);
        udev::settle();
        let meta = dm::names().into_iter().find(|name| name.ends_with("-flex-thinmeta")).expect("the pool runs");
        let length = dm::tables()[&meta].split_whitespace().nth(1).expect("a length").to_owned();
        let frozen = udev::Frozen::now();
        run("dmsetup", &["suspend", "--noudevsync", &meta]);
        run("dmsetup", &["load", &meta, "--table", &format!("0 {length} error")]);
        run("dmsetup", &["resume", "--noudevsync", &meta]);
        // New blocks are to be mapped, and that cannot be noted. How the write ends is not what is tried.
        let lost = format!("of={}", files::text(&folder.join("lost")));
        let (_, words) = try_run("timeout", &["20", "dd", "if=/dev/zero", &lost, "bs=1M", "count=8", "oflag=direct"]);
        println!("{words}");
        guest.until("the pool takes no changes", |_| availability(&client, &pool) == "no_pool_changes");
        drop(frozen);
        let refused = client.create_filesystems(&pool, &[("two", None, None)]);
        assert_eq!(refused.code, 1, "{refused:?}");
        println!("{}", dm::status(&thin_pool()));
    }
);
