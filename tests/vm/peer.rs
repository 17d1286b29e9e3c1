//! Pools that go to and fro between ours and stratisd 3.9.2: stopped by one and started by the other, or left running
//! by one and taken over by the other. Both do the same work on them, asked by the same client.
//!
//! Invariant: the peer is a program that is run, and is never a reason to fail where it is not at hand: then that is
//! said. What each daemon leaves is read by a reader of its own (`reader`), and its filesystems by `xfs_repair`.
//!
//! Deliberately absent: encryption, which ours has in the simulation only, and properties that are measured.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::golden::unpack;
use crate::guest::files::{self, Contents};
use crate::guest::peer::{self, Peer};
use crate::guest::{Guest, dm, state, udev};
use crate::halves;
use crate::host::{self, SPEC, Spec};
use crate::load::{self, Load};
use crate::reader;
use crate::support::client::{Client, Properties};
use crate::support::daemon::PATIENCE;
use crate::support::value::Value;
use crate::support::{MIB, interface};

/// Three disks of a pool, one more for each of three rounds, and two for a cache.
const DISKS: &[&str] = &["3G", "3G", "3G", "2G", "2G", "2G", "2G", "2G"];
const MACHINE: Spec = Spec { disks: DISKS, limit_s: 900, ..SPEC };

/// What the two say of the same pool in their own ways: ours keeps room for more filesystems, which the peer gives to
/// data at once; and to the peer a pool that has had everything from the start is out of space.
const OWN: [&str; 2] = ["AllocatedSize", "NoAllocSpace"];

/// Steps in which a pool on such disks grows.
const SMALL_STEPS: &[&str] = &["--grow-step", "256", "--low-water", "128"];

/// Object properties by UUID and interface.
type View = BTreeMap<String, BTreeMap<String, Properties>>;

halves!(
    /// Ours makes it, the peer goes on, and so on; each time it is stopped and started.
    a_pool_of_ours_goes_to_and_fro,
    |module| boot(module, &MACHINE),
    |guest: &mut Guest| to_and_fro(guest, Side::Ours, None)
);

halves!(
    /// The peer makes it.
    a_pool_of_the_peer_goes_to_and_fro,
    |module| boot(module, &MACHINE),
    |guest: &mut Guest| to_and_fro(guest, Side::Peer, None)
);

halves!(
    /// It is of the older kind, which neither makes.
    a_pool_of_version_1_goes_to_and_fro,
    |module| boot(module, &Spec { disks: &DISKS[3..], images: |folder| unpack("v1plain", folder), ..MACHINE }),
    |guest: &mut Guest| to_and_fro(guest, Side::Peer, Some("v1plain"))
);

/// Boots the machine if the peer is at hand, or says that it is not.
fn boot(module: &str, spec: &Spec) {
    match host::peer() {
        Ok(()) => host::run(module, spec),
        Err(missing) => println!("SKIPPED beside stratisd 3.9.2: {missing}"),
    }
}

/// Which daemon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    Ours,
    Peer,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Ours => Self::Peer,
            Self::Peer => Self::Ours,
        }
    }
}

/// How a daemon ends while pools run.
#[derive(Clone, Copy, Debug)]
enum End {
    Asked,
    Killed,
}

/// The daemon that serves, one at a time.
struct Shift<'a> {
    guest: &'a mut Guest,
    /// What ours is started with.
    arguments: &'static [&'static str],
    side: Side,
    peer: Option<Peer>,
}

impl<'a> Shift<'a> {
    fn begin(guest: &'a mut Guest, side: Side, arguments: &'static [&'static str]) -> Self {
        let mut shift = Self { guest, arguments, side, peer: None };
        shift.start();
        shift
    }

    fn start(&mut self) {
        println!("peer: {:?} serves", self.side);
        match self.side {
            Side::Ours => self.guest.start_with(self.arguments),
            Side::Peer => self.peer = Some(Peer::start()),
        }
    }

    fn end(&mut self, end: End) {
        match (self.peer.take(), end) {
            (Some(peer), End::Asked) => peer.stop(),
            (Some(peer), End::Killed) => peer.kill9(),
            (None, End::Killed) => self.guest.kill9(),
            (None, End::Asked) => {
                self.guest.signal(Signal::SIGTERM);
                assert!(self.guest.reap().success(), "{}", self.guest.log());
            }
        }
    }

    /// The other one's turn.
    fn pass(&mut self, end: End) {
        self.end(end);
        self.side = self.side.other();
        self.start();
    }

    fn client(&self) -> Client {
        self.guest.client()
    }
}

/// What is known of the pool.
#[derive(Debug, Default)]
struct Pool {
    name: String,
    members: Vec<String>,
    files: BTreeMap<String, Vec<Contents>>,
    /// The snapshot that takes its origin's place at the next start: its name, and the origin's.
    merge: Option<(String, String)>,
    round: usize,
}

fn to_and_fro(guest: &mut Guest, first: Side, version_1: Option<&str>) {
    let disks = guest.disks();
    let (members, spare) = disks.split_at(disks.len() - 5);
    let (data, cache) = spare.split_at(3);
    let mut shift = Shift::begin(guest, first, SMALL_STEPS);
    let mut pool = Pool { name: version_1.unwrap_or("p").to_owned(), members: members.to_vec(), ..Pool::default() };
    let client = shift.client();
    match version_1 {
        Some(name) => assert!(client.start_pool(name, "name").done().0),
        None => assert!(client.create_pool("p", members).done().0),
    }
    for (round, disk) in data.iter().enumerate() {
        pool.work(&shift);
        pool.give(&shift, "AddDataDevs", disk);
        match cache.get(round.wrapping_sub(1)) {
            Some(disk) if round == 1 => pool.give(&shift, "InitCache", disk),
            Some(disk) => pool.give(&shift, "AddCacheDevs", disk),
            None => {}
        }
        pool.change(&shift);
        pool.hand_over(&mut shift);
        pool.check(&shift);
    }
    assert!(shift.client().stop_pool(&pool.name, "name").done().0);
    state::expect_nothing_left();
    reader::record(&pool.members, "in the end");
    shift.end(End::Asked);
    state::expect_no_io_error();
    shift.guest.expect_quiet();
    report();
}

impl Pool {
    fn path(&self, client: &Client) -> String {
        let pools = client.family("pool").into_iter();
        let named = |(path, properties): (String, Properties)| (properties["Name"].text() == self.name).then_some(path);
        pools.filter_map(named).next().unwrap_or_else(|| panic!("{} runs", self.name))
    }

    /// Filesystems come, are written, grow, and are copied while they are mounted; those of the round before go.
    fn work(&mut self, shift: &Shift<'_>) {
        let client = shift.client();
        let (pool, round) = (self.path(&client), self.round);
        let name = |what: &str| format!("{what}{round}");
        let grows = client.make_filesystem(&pool, &name("grows"));
        let folder = files::mount(&files::node(&client, &grows), &name("grows"));
        let first = Contents::write(folder.join("first"), 300 * MIB, 1);
        until_more(&client, (&grows, "filesystem", "Size"), 512 * MIB);
        let [_, back] = ["copy", "back"].map(|what| {
            self.files.insert(name(what), vec![first.clone()]);
            client.snapshot(&pool, &grows, &name(what)).done().1
        });
        let later = Contents::write(folder.join("later"), 5 * MIB, 2);
        files::unmount(&folder);
        self.files.insert(name("grows"), vec![first, later]);
        client.set(&back, &interface("filesystem", 9), "MergeScheduled", true).expect("it is a snapshot");
        self.merge = Some((name("back"), name("grows")));

        let (_, made) = client.create_filesystems(&pool, &[("limited", Some("629145600"), Some("838860800"))]).done();
        let renamed: (bool, String) =
            client.ask(&made[0].0, &interface("filesystem", 9), "SetName", (name("limited"),)).done();
        assert!(renamed.0);
        let (_, made) = client.create_filesystems(&pool, &[(&name("large"), None, None)]).done();
        let folder = files::mount(&files::node(&client, &made[0].0), &name("large"));
        self.files.insert(name("large"), vec![Contents::write(folder.join("file"), 20 * MIB, 3)]);
        self.files.insert(name("limited"), Vec::new());
        files::unmount(&folder);
        self.destroy(&client, &pool);
    }

    /// What the other one has made goes: a filesystem whose snapshot stays, and one of its own.
    fn destroy(&mut self, client: &Client, pool: &str) {
        let Some(before) = self.round.checked_sub(1) else { return };
        for name in [format!("grows{before}"), format!("large{before}")] {
            udev::settle();
            let (path, _) = by_name(client).remove(&name).expect("it was made");
            assert!(client.destroy_filesystems(pool, &[path]).done().0);
            self.files.remove(&name);
        }
    }

    /// One more disk, which its data grows by, or its cache.
    fn give(&mut self, shift: &Shift<'_>, method: &str, disk: &String) {
        let client = shift.client();
        let pool = self.path(&client);
        let before = bytes(&client, &pool, "pool", "AllocatedSize");
        assert!(client.give_devices(&pool, (method, 9), &[disk]).done().0, "{method}");
        self.members.push(disk.clone());
        if method == "AddDataDevs" && shift.side == Side::Peer {
            until_more(&client, (&pool, "pool", "AllocatedSize"), before);
        }
    }

    /// What is only on record.
    fn change(&mut self, shift: &Shift<'_>) {
        let client = shift.client();
        let pool = self.path(&client);
        let limit = client.get(&pool, &interface("pool", 9), "FsLimit").expect("a property").number();
        client.set(&pool, &interface("pool", 9), "FsLimit", limit + 40).expect("there is room");
        let (device, _) = client.family("blockdev").pop_first().expect("it has some");
        let told = (true, format!("round{}", self.round));
        client.set(&device, &interface("blockdev", 9), "UserInfo", told).expect("it is a text");
        let renamed = format!("pool{}", self.round);
        let answer: (bool, String) = client.ask(&pool, &interface("pool", 9), "SetName", (renamed.as_str(),)).done();
        assert!(answer.0);
        self.name = renamed;
        self.round += 1;
    }

    /// Stopped by one, started by the other: it is what it was.
    fn hand_over(&mut self, shift: &mut Shift<'_>) {
        let client = shift.client();
        udev::settle();
        let mut before = state::objects(&client);
        assert!(client.stop_pool(&self.name, "name").done().0);
        state::expect_nothing_left();
        reader::record(&self.members, &format!("{:?} has stopped it in round {}", shift.side, self.round));
        udev::settle();
        for disk in &self.members {
            if !udev::properties(disk).contains("ID_FS_TYPE=stratis") {
                println!("peer: udev has missed that {:?} has made {disk} a member", shift.side);
            }
        }
        let stopped = stopped(&client);
        shift.pass(End::Asked);
        let client = shift.client();
        assert_eq!(self::stopped(&client), stopped, "what is shown of a stopped pool");
        assert!(client.start_pool(&self.name, "name").done().0);
        let gone = self.merge.take();
        if let Some((snapshot, origin)) = gone {
            let files = self.files.remove(&snapshot).expect("it was made");
            self.files.insert(origin, files);
            before.retain(|_, interfaces| !is_named(interfaces, &snapshot));
        }
        expect_same(&before, &client, shift.side);
    }

    /// Every file of every filesystem is whole, its links lead to it, and so is what is below.
    fn check(&self, shift: &Shift<'_>) {
        udev::settle();
        dm::expect_settled();
        files::drop_caches();
        let client = shift.client();
        let found = by_name(&client);
        let names: BTreeSet<&String> = self.files.keys().collect();
        let missing: Vec<_> = names.iter().filter(|name| !found.contains_key(**name)).collect();
        assert!(missing.is_empty(), "{missing:?} of {:?}", found.keys());
        for (name, (path, properties)) in &found {
            let device = files::node(&client, path);
            let link = fs::canonicalize(properties["Devnode"].text()).ok();
            assert_eq!(link, fs::canonicalize(&device).ok(), "{name} is found under its name");
            let folder = files::mount(&device, name);
            self.files.get(name).into_iter().flatten().for_each(|file| file.check(&folder));
            files::unmount(&folder);
            files::check_xfs(&device);
        }
    }
}

/// Panics unless two daemons come to show the same of the same pool, but for what each says in its own way.
#[track_caller]
fn expect_same(before: &View, client: &Client, side: Side) {
    let end = Instant::now() + PATIENCE;
    loop {
        let other = differences(before, &state::objects(client));
        if other.is_empty() {
            return;
        }
        // The peer answers before it has entered all objects.
        assert!(Instant::now() < end, "{side:?} says otherwise: {other:#?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// In which properties they differ, and on which revisions.
fn differences(before: &View, after: &View) -> BTreeMap<String, Vec<String>> {
    let flat = |view: &View| -> BTreeMap<(String, String, String), Value> {
        let all = view.iter().flat_map(|(uuid, interfaces)| {
            interfaces.iter().flat_map(move |(interface, properties)| {
                let key = move |name: &String| (uuid.clone(), interface.clone(), name.clone());
                properties.iter().map(move |(name, value)| (key(name), value.clone()))
            })
        });
        all.filter(|((_, _, name), _)| !OWN.contains(&name.as_str())).collect()
    };
    let (before, after) = (flat(before), flat(after));
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for key in keys.into_iter().filter(|key| before.get(key) != after.get(key)) {
        let (uuid, interface, name) = key;
        let (family, revision) = interface.rsplit_once('.').expect("an interface has a revision");
        let what = format!("{uuid} {family} {name}: {:?}, now {:?}", before.get(key), after.get(key));
        found.entry(what).or_default().push(revision.to_owned());
    }
    found
}

fn is_named(interfaces: &BTreeMap<String, Properties>, name: &str) -> bool {
    let family = |interface: &str| interface.contains(".filesystem.");
    interfaces.iter().any(|(interface, properties)| family(interface) && properties["Name"].text() == name)
}

/// What every revision shows of stopped pools; devices are in no order.
fn stopped(client: &Client) -> BTreeMap<u8, BTreeMap<String, Properties>> {
    let sorted = |value: Value| match value.bare() {
        Value::Array(element, mut members) => {
            members.sort();
            Value::Array(element, members)
        }
        other @ (Value::Bool(_)
        | Value::Unsigned(..)
        | Value::Signed(..)
        | Value::Text(_)
        | Value::Path(_)
        | Value::Signature(_)
        | Value::Dict(..)
        | Value::Struct(_)
        | Value::Variant(_)) => other,
    };
    let entry = |entry: Properties| entry.into_iter().map(|(name, value)| (name, sorted(value))).collect();
    let of = |revision| client.stopped_pools(revision).into_iter().map(|(uuid, all)| (uuid, entry(all))).collect();
    (2..10).map(|revision| (revision, of(revision))).collect()
}

/// Filesystems by name: path and r9 properties.
fn by_name(client: &Client) -> BTreeMap<String, (String, Properties)> {
    let all = client.family("filesystem").into_iter();
    all.map(|(path, properties)| (properties["Name"].text().to_owned(), (path, properties))).collect()
}

/// A property that is a number of bytes.
fn bytes(client: &Client, path: &str, family: &str, property: &str) -> u64 {
    let value = client.get(path, &interface(family, 9), property).expect("it can be read");
    value.text().parse().expect("it is a number")
}

/// Waits until a property that is a number of bytes is more than so many.
#[track_caller]
fn until_more(client: &Client, (path, family, property): (&str, &str, &str), than: u64) {
    let end = Instant::now() + PATIENCE;
    while bytes(client, path, family, property) <= than {
        assert!(Instant::now() < end, "{property} of {path} stays at {than}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// What the peer has complained of, for who reads the output.
fn report() {
    let said = peer::said();
    for line in said.lines().filter(|line| [" WARN ", " ERROR "].iter().any(|level| line.contains(level))) {
        println!("peer: it says {line}");
    }
}

halves!(
    /// A pool of which ours has put the next step below its thin pool ahead of need is another than the peer would
    /// make: it leaves that alone, and ours finds it as it was. Stopped and started it is the peer's.
    a_running_pool_that_is_to_grow_stays,
    |module| boot(module, &Spec { disks: &["9G"], ..MACHINE }),
    |guest: &mut Guest| stay(guest)
);

fn stay(guest: &mut Guest) {
    let mut shift = Shift::begin(guest, Side::Ours, SMALL_STEPS);
    let client = shift.client();
    let disks = shift.guest.disks();
    let (_, (pool, _)) = client.create_pool("p", &disks).done();
    let filesystem = client.make_filesystem(&pool, "f");
    let folder = files::mount(&files::node(&client, &filesystem), "f");
    let file = Contents::write(folder.join("file"), 20 * MIB, 1);
    udev::settle();
    let (before, tables) = (state::objects(&client), dm::tables());
    shift.pass(End::Asked);
    let client = shift.client();
    assert_eq!((client.family("pool").len(), client.stopped_pools(9).len()), (0, 1), "{}", peer::said());
    assert_eq!(dm::tables(), tables, "it is left alone");
    file.check(&folder);
    shift.pass(End::Asked);
    let client = shift.client();
    expect_same(&before, &client, shift.side);
    assert_eq!(dm::tables(), tables);
    file.check(&folder);
    files::unmount(&folder);
    udev::settle();
    assert!(client.stop_pool("p", "name").done().0);
    shift.pass(End::Asked);
    let client = shift.client();
    assert!(client.start_pool("p", "name").done().0);
    expect_same(&before, &client, shift.side);
    let (path, _) = by_name(&client).remove("f").expect("it is there");
    file.check(&files::mount(&files::node(&client, &path), "f"));
    files::unmount(&folder);
    udev::settle();
    assert!(client.stop_pool("p", "name").done().0);
    state::expect_nothing_left();
    shift.end(End::Asked);
    state::expect_no_io_error();
    shift.guest.expect_quiet();
    report();
}

halves!(
    /// A pool that runs while one daemon after the other serves it; who writes to it notices nothing.
    a_running_pool_is_taken_over,
    |module| boot(module, &MACHINE),
    |guest: &mut Guest| take_over(guest)
);

fn take_over(guest: &mut Guest) {
    let disks = guest.disks();
    let mut shift = Shift::begin(guest, Side::Ours, &[]);
    let client = shift.client();
    let (_, (pool, _)) = client.create_pool("p", &disks[..3]).done();
    let filesystem = client.make_filesystem(&pool, load::NAME);
    let folder = files::mount(&files::node(&client, &filesystem), load::NAME);
    let journal = Path::new("/out/load.journal");
    let load = Load::start(folder.clone(), journal.to_owned());
    for (turn, end) in [End::Asked, End::Asked, End::Killed, End::Killed].into_iter().enumerate() {
        udev::settle();
        let client = shift.client();
        let (before, tables) = (state::objects(&client), dm::tables());
        shift.pass(end);
        println!("peer: {:?} after {end:?}", shift.side);
        let client = shift.client();
        shift.guest.until("it is taken over", |_| !client.family("pool").is_empty());
        expect_same(&before, &client, shift.side);
        assert_eq!(dm::tables().keys().collect::<Vec<_>>(), tables.keys().collect::<Vec<_>>());
        let (pool, _) = client.family("pool").pop_first().expect("it runs");
        let made = client.make_filesystem(&pool, &format!("f{turn}"));
        Contents::write(files::mount(&files::node(&client, &made), "f").join("file"), MIB, 1);
        files::unmount(Path::new("/mnt/f"));
        assert!(!load.has_failed());
    }
    load.stop();
    files::drop_caches();
    println!("peer: {} files whole", load::check(&folder, journal));
    files::unmount(&folder);
    let client = shift.client();
    for (_, (path, _)) in by_name(&client) {
        files::check_xfs(&files::node(&client, &path));
    }
    udev::settle();
    assert!(client.stop_pool("p", "name").done().0);
    state::expect_nothing_left();
    reader::record(&disks[..3], "in the end");
    shift.end(End::Asked);
    state::expect_no_io_error();
    shift.guest.expect_quiet();
    report();
}
