//! Data devices on a real kernel: added to a pool and taken into use in a larger size, while a filesystem is written
//! and the daemon is killed.
//!
//! `POINTS` is the number of kills of each kind, `SEED` repeats a run as far as timing allows. Deliberately absent:
//! which devices are refused (see `bad_input` and the bus tests), and what becomes of their sectors.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dbus::arg::Variant;

use crate::events::{plug_of, pull};
use crate::guest::files::{self, Contents};
use crate::guest::{Guest, dm, run, state};
use crate::host::{SPEC, Spec};
use crate::kill::{cut_short, number, seed};
use crate::load::{self, Load};
use crate::scenario;
use crate::sectors::emulated;
use crate::support::client::{Client, Properties, absent, method, present};
use crate::support::{GIB, MIB, PROPERTIES, interface};

/// Kills while a device is added, and while one grows, unless `POINTS` says otherwise.
const POINTS: u64 = 4;
/// The longest time after which one comes.
const DELAY_MICROS_MAX: u64 = 120_000;

scenario!(
    /// A device is the pool's whole, or not at all and free; what was replied stays.
    devices_are_added_while_the_daemon_is_killed,
    Spec { disks: &["2G"; 5], limit_s: 180, ..SPEC },
    add
);

scenario!(
    /// A device has its old size or its new one, and tells of a new one that is not in use yet.
    a_device_grows_while_the_daemon_is_killed,
    Spec { disks: &["2G"], limit_s: 180, ..SPEC },
    grow
);

scenario!(
    /// What a user says of a device and what the device says of itself is kept.
    a_device_keeps_what_is_said_of_it,
    Spec { disks: &["2G"], ..SPEC },
    say
);

scenario!(
    /// A device that nothing lies on comes back with larger blocks: its pool takes no changes, and works otherwise.
    a_device_with_larger_blocks_keeps_its_pool_from_changes,
    Spec { disks: &["2G"], ..SPEC },
    coarsen
);

/// The pool's path, and that of its device at a path of the machine with its properties.
fn device(client: &Client, disk: &str) -> Option<(String, Properties)> {
    client.family("blockdev").into_iter().find(|(_, properties)| properties["Devnode"].text() == disk)
}

fn pool(client: &Client) -> (String, Properties) {
    client.family("pool").pop_first().expect("the pool runs")
}

fn bytes(properties: &Properties) -> u64 {
    properties["TotalPhysicalSize"].text().parse().expect("a number")
}

/// A filesystem that is mounted and written.
struct Written {
    folder: PathBuf,
    device: PathBuf,
    load: Load,
}

const JOURNAL: &str = "/out/load.journal";

impl Written {
    fn start(client: &Client, pool: &str) -> Self {
        let device = files::node(client, &client.make_filesystem(pool, load::NAME));
        let folder = files::mount(&device, load::NAME);
        let load = Load::start(folder.clone(), PathBuf::from(JOURNAL));
        Self { folder, device, load }
    }

    /// Panics unless all is there that was ever durable.
    fn end(self) {
        self.load.stop();
        files::drop_caches();
        println!("devices: {} files whole", load::check(&self.folder, Path::new(JOURNAL)));
        files::unmount(&self.folder);
        files::check_xfs(&self.device);
    }
}

fn add(guest: &mut Guest) {
    let disks = guest.disks();
    let (points, seed) = (number("POINTS").unwrap_or(POINTS), seed());
    println!("devices: SEED={seed} POINTS={points}");
    let mut random = fastrand::Rng::with_seed(seed);
    guest.start();
    let client = guest.client();
    let (_, (path, _)) = client.create_pool("p", &disks[..1]).done();
    let written = Written::start(&client, &path);
    let tables = dm::tables();
    let more = disks[1..].iter().take(usize::try_from(points).expect("a few"));
    for (disk, count) in more.zip(2..) {
        let delay = Duration::from_micros(random.u64(0..=DELAY_MICROS_MAX));
        let (path, _) = pool(&guest.client());
        let call = method(&path, &interface("pool", 9), "AddDataDevs").append1(vec![disk.as_str()]);
        let replied = cut_short(guest, call, delay);
        let client = guest.client();
        let joined = device(&client, disk).is_some();
        println!("devices: {disk}, killed after {delay:?}: replied {replied}, joined {joined}");
        assert!(joined || !replied, "{disk} after {delay:?}");
        let (path, _) = pool(&client);
        if !joined {
            state::expect_wiped(disk);
            assert!(client.give_devices(&path, ("AddDataDevs", 9), &[disk]).done().0);
        }
        assert!(!client.give_devices(&path, ("AddDataDevs", 9), &[disk]).done().0, "it is there");
        assert_eq!(bytes(&pool(&client).1), count * 2 * GIB);
        assert!(!written.load.has_failed(), "the mounted filesystem; {disk} after {delay:?}");
        dm::expect_settled();
    }
    let now = dm::tables();
    for (device, table) in tables.iter().filter(|(device, _)| device.contains("-flex-")) {
        assert!(now[device].starts_with(table), "what lies somewhere stays there: {device}: {table} {}", now[device]);
    }
    let data = tables.keys().find(|device| device.ends_with("-flex-thindata")).expect("a pool has thin data");
    assert_ne!(now[data], tables[data], "the pool has grown into what was added");
    // Whoever needs them gets them: more metadata than the first device keeps room for.
    let client = guest.client();
    client.set(&pool(&client).0, &interface("pool", 9), "FsLimit", 1_000_u64).expect("the new devices have room");
    dm::expect_settled();
    written.end();
    let objects = state::objects(&client);
    assert!(client.stop_pool("p", "name").done().0);
    state::expect_nothing_left();
    client.start_pool("p", "name").done();
    assert_eq!(state::objects(&client), objects);
    state::expect_no_io_error();
    guest.stop();
}

fn grow(guest: &mut Guest) {
    let (points, seed) = (number("POINTS").unwrap_or(POINTS), seed());
    println!("devices: SEED={seed} POINTS={points}");
    let mut random = fastrand::Rng::with_seed(seed);
    let first = guest.disks().remove(0);
    let growing = plug_of("growing", 2 * GIB);
    guest.start();
    let client = guest.client();
    let (_, (path, _)) = client.create_pool("p", &[&first, &growing]).done();
    let written = Written::start(&client, &path);
    let uuid = device(&client, &growing).expect("the pool has it").1["Uuid"].text().to_owned();
    for size in (3..3 + points).map(|size| size * GIB) {
        run("truncate", &["--size", &size.to_string(), "/root/growing.img"]);
        run("losetup", &["--set-capacity", &growing]);
        let shown = |guest: &Guest| device(&guest.client(), &growing).expect("the pool has it").1;
        guest.until("the new size is shown", |guest| shown(guest)["NewPhysicalSize"] == present(&size.to_string()));
        assert_eq!(bytes(&shown(guest)), size - GIB, "and not used");

        let delay = Duration::from_micros(random.u64(0..=DELAY_MICROS_MAX));
        let (path, _) = pool(&guest.client());
        let call = method(&path, &interface("pool", 9), "GrowPhysicalDevice").append1(uuid.as_str());
        let replied = cut_short(guest, call, delay);
        let now = shown(guest);
        println!("devices: {size}, killed after {delay:?}: replied {replied}, now {}", bytes(&now));
        if bytes(&now) != size {
            assert!(!replied, "{size} after {delay:?}");
            assert_eq!((bytes(&now), now["NewPhysicalSize"].clone()), (size - GIB, present(&size.to_string())));
            let client = guest.client();
            let grown = client.ask::<bool>(&pool(&client).0, &interface("pool", 9), "GrowPhysicalDevice", (&uuid,));
            assert!(grown.done());
        }
        let now = shown(guest);
        assert_eq!((bytes(&now), now["NewPhysicalSize"].clone()), (size, absent()));
        assert_eq!(bytes(&pool(&guest.client()).1), size + 2 * GIB);
        assert!(!written.load.has_failed(), "the mounted filesystem; {size} after {delay:?}");
        dm::expect_settled();
    }
    written.end();
    let client = guest.client();
    let objects = state::objects(&client);
    assert!(client.stop_pool("p", "name").done().0);
    client.start_pool("p", "name").done();
    assert_eq!(state::objects(&client), objects);
    state::expect_no_io_error();
    guest.stop();
}

fn say(guest: &mut Guest) {
    let plain = guest.disks().remove(0);
    // Larger than what is behind it; nothing but its metadata is written here.
    let named = emulated(&["virtual_gb=2"]);
    let told = crate::guest::udev::properties(&named);
    let wwn = told.lines().find_map(|line| line.strip_prefix("ID_WWN=")).expect("a SCSI disk has a name").to_owned();
    guest.start();
    let client = guest.client();
    let (_, (path, _)) = client.create_pool("p", &[&plain]).done();
    client.give_devices(&path, ("AddDataDevs", 9), &[&named]).done();
    let info = |client: &Client, disk: &str, property: &str| {
        device(client, disk).expect("the pool has it").1[property].clone()
    };
    assert_eq!(info(&client, &named, "HardwareInfo"), present(&wwn));
    assert_eq!(info(&client, &plain, "HardwareInfo"), absent());
    let (object, _) = device(&client, &named).expect("the pool has it");
    let set = method(&object, PROPERTIES, "Set");
    let said = Variant((true, "rack-7".to_owned()));
    client.exchange(set.append3(interface("blockdev", 9), "UserInfo", said)).expect("a text");
    assert_eq!(info(&client, &named, "UserInfo"), present("rack-7"));
    let filesystem = client.make_filesystem(&path, "f");
    let folder = files::mount(&files::node(&client, &filesystem), "f");
    let contents = Contents::write(folder.join("file"), 5 * MIB, 1);
    guest.kill9();
    guest.start();
    contents.check(&folder);
    files::unmount(&folder);
    let client = guest.client();
    client.stop_pool("p", "name").done();
    client.start_pool("p", "name").done();
    for (property, expected) in [("HardwareInfo", present(&wwn)), ("UserInfo", present("rack-7"))] {
        assert_eq!(info(&client, &named, property), expected);
    }
    guest.stop();
}

fn coarsen(guest: &mut Guest) {
    let first = guest.disks().remove(0);
    let image = "/root/coarse.img";
    let second = plug_of("coarse", 2 * GIB);
    let coarse = || run("losetup", &["--find", "--show", "--sector-size", "4096", image]).trim().to_owned();
    // In such small steps it does not come to need the second disk.
    guest.start_with(&["--grow-step", "16", "--low-water", "16"]);
    let client = guest.client();
    let (_, (path, _)) = client.create_pool("p", &[&first]).done();
    let filesystem = client.make_filesystem(&path, "f");
    pull(&second);
    let larger = coarse();
    crate::guest::udev::settle();
    for method in ["AddDataDevs", "InitCache"] {
        let refused = client.give_devices(&path, (method, 9), &[&larger]);
        assert_eq!(refused.code, 1, "blocks of 4096 bytes do not go with those of 512: {method}: {refused:?}");
    }
    pull(&larger);
    let second = plug_of("coarse", 2 * GIB);
    assert!(client.give_devices(&path, ("AddDataDevs", 9), &[&second]).done().0);
    let folder = files::mount(&files::node(&client, &filesystem), "f");
    let contents = Contents::write(folder.join("file"), 5 * MIB, 1);
    files::unmount(&folder);
    assert!(client.stop_pool("p", "name").done().0);
    let listed = |count: usize| {
        client.stopped_pools(9).values().next().is_some_and(|pool| pool["devs"].members().len() == count)
    };
    pull(&second);
    guest.until("the device is gone", |_| listed(1));
    let larger = coarse();
    guest.until("the device is back", |_| listed(2));
    client.start_pool("p", "name").done();
    crate::guest::udev::settle();
    let (path, properties) = pool(&client);
    assert_eq!(properties["AvailableActions"].text(), "no_pool_changes");
    assert_eq!(client.create_filesystems(&path, &[("g", None, None)]).code, 1);
    let (filesystem, _) = client.family("filesystem").pop_first().expect("it came with the pool");
    let folder = files::mount(&files::node(&client, &filesystem), "f");
    contents.check(&folder);
    files::unmount(&folder);

    assert!(client.stop_pool("p", "name").done().0);
    pull(&larger);
    plug_of("coarse", 2 * GIB);
    guest.until("the pool has its blocks again", |_| {
        client.family("pool").values().next().is_some_and(|pool| pool["AvailableActions"].text() == "fully_operational")
            || client.start_pool("p", "name").code == 0
    });
    client.make_filesystem(&pool(&client).0, "g");
    guest.stop();
}
