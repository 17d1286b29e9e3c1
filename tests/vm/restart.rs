//! What comes back after a reboot and after a restart of the daemon, and what is cleaned up then.
//!
//! Deliberately absent: restarts in the middle of operations (see `kill` and `power`).

use std::fs;
use std::path::Path;

use crate::guest::files::{self, Contents, text};
use crate::guest::{Guest, dm, run, state, try_run, udev};
use crate::host::{SPEC, Spec};
use crate::limit;
use crate::scenario;
use crate::support::MIB;
use crate::support::client::Client;

/// What the first boot tells the second.
const NOTE: &str = "/out/objects";

scenario!(
    /// A pool that ran runs again after a reboot, one that was stopped stays stopped, and all files are there.
    pools_come_back_after_a_reboot,
    Spec { disks: &["2G", "2G", "2G"], boots: 2, ..SPEC },
    |guest: &mut Guest| if guest.boot() == 1 { before_the_reboot(guest) } else { after_the_reboot(guest) }
);

fn before_the_reboot(guest: &mut Guest) {
    let disks = guest.disks();
    guest.start();
    let client = guest.client();
    let (_, (resting, _)) = client.create_pool("resting", &disks[2..]).done();
    client.make_filesystem(&resting, "quiet");
    assert!(client.stop_pool("resting", "name").done().0);
    let (_, (running, _)) = client.create_pool("running", &disks[..2]).done();
    let filesystem = client.make_filesystem(&running, "busy");
    let folder = files::mount(&files::node(&client, &filesystem), "busy");
    contents(&folder, true);
    let spare = client.make_filesystem(&running, "spare");
    client.destroy_filesystems(&running, &[spare]).done();
    fs::write(NOTE, format!("{:#?}", state::objects(&client))).expect("/out is writable");
    // Nobody unmounts and nobody stops: the machine goes down as it is.
}

fn after_the_reboot(guest: &mut Guest) {
    assert_eq!(dm::names(), Vec::<String>::new(), "a new kernel knows no pool");
    guest.start();
    let client = guest.client();
    guest.until("the pool that ran runs", |_| client.family("filesystem").len() == 1);
    let before = fs::read_to_string(NOTE).expect("the first boot wrote it");
    assert_eq!(format!("{:#?}", state::objects(&client)), before);
    dm::expect_settled();
    assert_eq!(dm::names().len(), 7);
    let (path, _) = client.family("filesystem").pop_first().expect("that was waited for");
    let folder = files::mount(&files::node(&client, &path), "busy");
    contents(&folder, false);
    files::unmount(&folder);
    files::check_xfs(&files::node(&client, &path));
    assert_eq!(client.stopped_pools(9).len(), 1);
    assert!(client.start_pool("resting", "name").done().0);
    for name in ["running", "resting"] {
        assert!(client.stop_pool(name, "name").done().0);
    }
    state::expect_nothing_left();
    guest.stop();
    guest.expect_quiet();
}

/// The file of the first boot: written, or looked at.
fn contents(folder: &Path, write: bool) {
    let path = folder.join("file");
    if write {
        Contents::write(path, 50 * MIB, 50);
    } else {
        Contents::known(path, 50 * MIB, 50).check(folder);
    }
}

scenario!(
    /// An orderly end and a new start change nothing: not a table, not a device, not an object.
    an_orderly_restart_is_not_noticed,
    Spec { disks: &["2G"], ..SPEC },
    |guest: &mut Guest| {
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        let filesystem = client.make_filesystem(&pool, "f");
        let folder = files::mount(&files::node(&client, &filesystem), "f");
        let before = (state::objects(&client), dm::tables());
        let file = Contents::write(folder.join("file"), 20 * MIB, 20);
        for _ in 0..3 {
            guest.stop();
            assert_eq!(dm::tables(), before.1);
            guest.start();
            assert_eq!((state::objects(&guest.client()), dm::tables()), before);
            dm::expect_settled();
        }
        file.check(&folder);
        state::expect_no_io_error();
        guest.expect_quiet();
    }
);

scenario!(
    /// A daemon that was killed is followed by one that swaps no table, resumes nothing and announces nothing, because
    /// all is as it should be; and one that is missing its path gets it.
    a_takeover_leaves_devices_alone,
    Spec { disks: &["2G"], ..SPEC },
    |guest: &mut Guest| {
        const COUNT: u64 = 12;
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        limit::create(&pool, 0..COUNT, Some("536870912"));
        let folder = files::mount(&files::node(&client, &client.family("filesystem").pop_first().expect("one").0), "f");
        udev::settle();
        let before = (state::objects(&client), dm::devices(), dm::tables());
        for _ in 0..2 {
            let takeover = guest.take_over();
            println!("restart: {takeover:?}");
            assert_eq!(takeover.events, Vec::<String>::new(), "no device was touched");
            let client = guest.client();
            guest.until("all is as it was", |_| (state::objects(&client), dm::devices(), dm::tables()) == before);
        }
        let link = Path::new("/dev/stratis/p/f7");
        let lead = fs::canonicalize(link).expect("it was announced");
        fs::remove_file(link).expect("root may");
        assert_eq!(guest.take_over().events.len(), 1, "it is announced");
        udev::settle();
        assert_eq!(fs::canonicalize(link).ok(), Some(lead), "it is announced again");
        files::unmount(&folder);
        guest.stop();
        guest.expect_quiet();
    }
);

scenario!(
    /// A thin volume with an intent and no record is deleted; one that merely has no record is left alone, and
    /// nobody is in its way.
    orphans_go_by_their_intents,
    Spec { disks: &["2G"], ..SPEC },
    |guest: &mut Guest| {
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        client.make_filesystem(&pool, "f");
        guest.kill9();
        let names = dm::names();
        let role = |end: &str| names.iter().find(|name| name.ends_with(end)).expect("the pool is up").clone();
        let (thinpool, volume) = (role("thinpool-pool"), role("flex-mdv"));
        run("dmsetup", &["message", &thinpool, "0", "create_thin 1"]);
        run("dmsetup", &["message", &thinpool, "0", "create_thin 2"]);
        let intents = files::mount(&Path::new("/dev/mapper").join(&volume), "mdv").join("intents");
        fs::write(intents.join("1"), "{}").expect("the metadata volume is writable");
        files::unmount(Path::new("/mnt/mdv"));

        guest.start();
        assert_eq!(guest.client().family("filesystem").len(), 1);
        let deleted = |id: u32| try_run("dmsetup", &["message", &thinpool, "0", &format!("delete {id}")]);
        assert!(!deleted(1).0.success(), "the volume of the intent is gone");
        let (pool, _) = guest.client().family("pool").pop_first().expect("it was adopted");
        for name in ["g", "h", "i"] {
            make_past_strangers(&guest.client(), &pool, name);
        }
        assert!(deleted(2).0.success(), "what has no intent is left alone: {}", deleted(2).1);
        guest.kill9();
        files::mount(&Path::new("/dev/mapper").join(&volume), "mdv");
        let left = fs::read_dir(&intents).expect("the folder stays").count();
        assert_eq!(left, 0, "no intent is left: {}", run("ls", &[text(&intents)]));
        files::unmount(Path::new("/mnt/mdv"));
    }
);

scenario!(
    /// What a daemon was making when it died goes before anything else comes. A udev that is late does not take the one
    /// for the other: a link that is there once the filesystem is shown stays.
    a_link_that_is_there_after_a_stray_volume_has_gone_stays,
    Spec { disks: &["2G"], ..SPEC },
    |guest: &mut Guest| {
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        let link = files::node(&client, &client.make_filesystem(&pool, "f"));
        guest.kill9();
        let names = dm::names();
        let volume = names.iter().find(|name| name.contains("-thin-fs-")).expect("it is active");
        let table = run("dmsetup", &["table", volume]);
        run("dmsetup", &["remove", "--retry", volume]);
        udev::settle();
        assert!(!link.exists(), "it goes with the volume");

        let (of_pool, _) = volume.split_once("-thin-fs-").expect("it has one of these");
        let stray = format!("{of_pool}-thin-fs-{}", "0".repeat(32));
        udev::late(|| {
            run("dmsetup", &["create", "--noudevsync", &stray, "--uuid", &stray, "--table", &table]);
            guest.start();
            guest.until("it is shown", |guest| !guest.client().family("filesystem").is_empty());
            guest.until("there is a link", |_| link.exists());
        });
        assert!(!dm::names().contains(&stray), "it has gone");
        udev::expect_stays(&link);
        guest.stop();
    }
);

/// A filesystem is made although its thin id may be taken by a stranger.
fn make_past_strangers(client: &Client, pool: &str, name: &str) {
    let (changed, made) = client.create_filesystems(pool, &[(name, Some("536870912"), None)]).done();
    assert!(changed && made.len() == 1, "{made:?}");
}
