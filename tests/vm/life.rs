//! The life of a pool: made, used, adopted from a killed daemon, stopped, started, destroyed.
//!
//! Deliberately absent: what a request must not do (see `bad_input`), and kills at random points.

use std::path::PathBuf;

use crate::guest::files::{self, Contents};
use crate::guest::{Guest, dm, state};
use crate::host::{Kind, SPEC, Spec};
use crate::scenario;
use crate::support::MIB;
use crate::support::client::Client;

scenario!(
    /// The whole life on one disk.
    on_one_disk,
    Spec { disks: &["5G"], ..SPEC },
    live
);

scenario!(
    /// The whole life on two disks of different sizes.
    on_two_disks,
    Spec { disks: &["4G", "6G"], ..SPEC },
    live
);

scenario!(
    /// The whole life on five disks.
    on_five_disks,
    Spec { disks: &["2G", "2G", "2G", "2G", "2G"], ..SPEC },
    live
);

scenario!(
    /// The whole life with shards on two CPUs.
    on_two_cpus,
    Spec { kind: Kind::Qemu, disks: &["3G", "3G"], limit_s: 240, ..SPEC },
    live
);

/// Sizes of the files on the filesystems `a`, `b` and `c`: 200 MB in all.
const FILES: [(&str, u64); 3] = [("a", 160 * MIB), ("b", 39 * MIB + 1), ("c", MIB)];

/// One mounted filesystem with one file.
struct Mounted {
    folder: PathBuf,
    contents: Contents,
}

fn live(guest: &mut Guest) {
    let disks = guest.disks();
    guest.start();
    let client = guest.client();
    let (changed, (pool, devices)) = client.create_pool("p", &disks).done();
    assert!(changed);
    assert_eq!(devices.len(), disks.len());
    let made = FILES.map(|(name, _)| client.make_filesystem(&pool, name));
    dm::expect_settled();
    assert_eq!(dm::names().len(), 6 + made.len(), "{:?}", dm::names());
    let features: Vec<String> = dm::tables().values().filter_map(|table| dm::thin_features(table)).collect();
    assert_eq!(features, ["no_discard_passdown"], "new blocks are zeroed");
    let mounted: Vec<Mounted> = made.iter().zip(FILES).map(|(path, file)| fill(&client, path, file)).collect();

    let more = adopt(guest, &mounted[0]);

    let client = guest.client();
    let busy = client.stop_pool("p", "name");
    assert_eq!(busy.code, 1, "a pool with mounted filesystems is not stopped: {busy:?}");
    for one in &mounted {
        one.contents.check(&one.folder);
        files::unmount(&one.folder);
    }
    stop_and_start(&client, &disks);
    look(&client, &mounted, &more);
    destroy(&client, &disks);
    state::expect_no_io_error();
    guest.stop();
    guest.expect_quiet();
}

fn fill(client: &Client, filesystem: &str, (name, bytes): (&str, u64)) -> Mounted {
    let folder = files::mount(&files::node(client, filesystem), name);
    let contents = Contents::write(folder.join("file"), bytes, bytes);
    Mounted { folder, contents }
}

/// Kills the daemon and starts another one; whoever has a filesystem mounted notices nothing.
fn adopt(guest: &mut Guest, mounted: &Mounted) -> Contents {
    let before = (state::objects(&guest.client()), dm::tables(), identities());
    guest.kill9();
    let more = Contents::write(mounted.folder.join("more"), 5 * MIB, 5);
    assert_eq!(dm::tables(), before.1, "nobody is there who could change a table");
    guest.start();
    let after = (state::objects(&guest.client()), dm::tables(), identities());
    assert_eq!(after.0, before.0, "the same objects, but for their paths");
    assert_eq!(after.1, before.1, "the same tables, byte by byte");
    assert_eq!(after.2, before.2, "the same dm devices");
    dm::expect_settled();
    state::expect_no_cookies("after adoption");
    more.check(&mounted.folder);
    more
}

/// Names, dm UUIDs and numbers: what is the same as long as a device is not made anew.
fn identities() -> Vec<(String, String, u32)> {
    dm::devices().into_iter().map(|device| (device.name, device.uuid, device.minor)).collect()
}

fn stop_and_start(client: &Client, disks: &[String]) {
    let before = state::objects(client);
    assert!(client.stop_pool("p", "name").done().0);
    state::expect_nothing_left();
    assert!(client.objects().is_empty(), "a stopped pool has no objects");
    assert_eq!(client.stopped_pools(9).len(), 1);
    let (changed, (_, devices, filesystems)) = client.start_pool("p", "name").done();
    assert!(changed);
    assert_eq!((devices.len(), filesystems.len()), (disks.len(), FILES.len()));
    assert_eq!(state::objects(client), before, "the same objects, but for their paths");
    dm::expect_settled();
}

/// Mounts what was started again and looks at every byte.
fn look(client: &Client, mounted: &[Mounted], more: &Contents) {
    files::drop_caches();
    for (path, properties) in client.family("filesystem") {
        let device = files::node(client, &path);
        files::check_xfs(&device);
        let name = properties["Name"].text();
        let folder = files::mount(&device, name);
        let index = FILES.iter().position(|file| file.0 == name).expect("we gave the names");
        mounted[index].contents.check(&folder);
        if index == 0 {
            more.check(&folder);
        }
        files::unmount(&folder);
    }
}

fn destroy(client: &Client, disks: &[String]) {
    let pool = client.family("pool").into_keys().next().expect("the pool runs");
    let filesystems: Vec<String> = client.family("filesystem").into_keys().collect();
    let (changed, gone) = client.destroy_filesystems(&pool, &filesystems).done();
    assert!(changed);
    assert_eq!(gone.len(), filesystems.len());
    assert_eq!(dm::names().len(), 6);
    assert!(client.destroy_pool(&pool).done().0);
    state::expect_nothing_left();
    for disk in disks {
        state::expect_wiped(disk);
    }
    assert!(client.objects().is_empty() && client.stopped_pools(9).is_empty(), "nothing is known of the pool");
}
