//! The long random life of one pool: everything that a client can do to it, in any order, with stops, starts and kills
//! of the daemon in between. After each step its disks are read by a reader of its own (see `reader`).
//!
//! `POINTS` is the number of steps, `SEED` repeats a run. Deliberately absent: several clients at once, and kills in
//! the middle of operations (see `kill`).

use std::collections::BTreeMap;
use std::time::Instant;

use dbus::arg::Variant;

use crate::guest::files::{self, Contents};
use crate::guest::{Guest, dm, state, udev};
use crate::host::{SPEC, Spec};
use crate::kill::{limit_s, number, seed};
use crate::model::Seen;
use crate::support::client::{Client, create_pool_arguments, method};
use crate::support::{MIB, PROPERTIES, TOP, interface};
use crate::{aftermath, reader, scenario};

/// Steps, unless `POINTS` says otherwise; `make test-long` has more.
const STEPS: u64 = 12;
/// Filesystems at once.
const FILESYSTEMS_MAX: usize = 8;
const FILE_BYTES_MAX: u64 = 4 * MIB;

scenario!(
    /// Whatever was done in whatever order: the disks keep every rule, and every file is what was written.
    a_pool_that_has_seen_everything_is_sound,
    Spec { disks: &["4G", "4G", "2G", "2G", "2G", "2G"], limit_s: limit_s(STEPS), ..SPEC },
    play
);

/// What is known of a filesystem.
#[derive(Clone, Debug, Default)]
struct Known {
    files: Vec<Contents>,
    origin: Option<String>,
}

/// What is known of the pool.
struct Life {
    random: fastrand::Rng,
    name: String,
    data: Vec<String>,
    cache: Vec<String>,
    free: Vec<String>,
    filesystems: BTreeMap<String, Known>,
    /// A snapshot that is to take its origin's place, and that.
    merge: Option<(String, String)>,
    fs_limit: u64,
    names: u32,
    counts: BTreeMap<&'static str, u32>,
}

type Step = (&'static str, fn(&mut Life, &mut Guest) -> bool);

/// What may happen; a step that has nothing to do says so.
const KINDS: [Step; 15] = [
    ("create", Life::create),
    ("snapshot", Life::snapshot),
    ("write", Life::write),
    ("write more", Life::write),
    ("rename", Life::rename),
    ("destroy", Life::destroy),
    ("limit", Life::limit),
    ("schedule", Life::schedule),
    ("filesystem limit", Life::fs_limit),
    ("add data", Life::add_data),
    ("add cache", Life::add_cache),
    ("rename pool", Life::rename_pool),
    ("stop and start", Life::restart),
    ("kill", Life::kill),
    ("orderly end", Life::end),
];

fn play(guest: &mut Guest) {
    let (steps, seed) = (number("POINTS").unwrap_or(STEPS), seed());
    println!("wander: SEED={seed} POINTS={steps}");
    let started = Instant::now();
    guest.start();
    let mut disks = guest.disks();
    let data: Vec<String> = disks.drain(..2).collect();
    create(guest, "wanderer", &data);
    let mut life = Life {
        random: fastrand::Rng::with_seed(seed),
        name: "wanderer".to_owned(),
        data,
        cache: Vec::new(),
        free: disks,
        filesystems: BTreeMap::new(),
        merge: None,
        fs_limit: 100,
        names: 0,
        counts: BTreeMap::new(),
    };
    for step in 0..steps {
        let what = life.step(guest);
        life.examine(guest, true, &format!("step {step} ({what}), SEED={seed}"));
    }
    println!("wander: {steps} steps in {:.0?}: {:?}", started.elapsed(), life.counts);
    life.stop(guest);
    life.examine(guest, false, "stopped in the end");
    life.start(guest);
    life.examine(guest, true, "started in the end");
    life.check_files(guest);
    let seen = Seen::new(&guest.client().objects());
    aftermath::volumes(guest, &seen, &seen.pools[&life.name], "in the end");
    dm::expect_settled();
    life.stop(guest);
    state::expect_nothing_left();
    aftermath::complaints("in the end");
    guest.stop();
    guest.expect_quiet();
}

/// Makes a pool that keeps room for an integrity layer, as users do who ask for nothing special.
fn create(guest: &Guest, name: &str, disks: &[String]) {
    let (_, _, tokens, clevis, ..) = create_pool_arguments(name, disks);
    let arguments = (name, disks.to_vec(), tokens, clevis, (false, 0_u64), (false, String::new()), (false, false));
    let made: (bool, (dbus::Path<'_>, Vec<dbus::Path<'_>>)) =
        guest.client().ask(TOP, &interface("Manager", 9), "CreatePool", arguments).done();
    assert!(made.0);
}

impl Life {
    /// Does something, and says what.
    fn step(&mut self, guest: &mut Guest) -> &'static str {
        loop {
            let (what, take) = KINDS[self.random.usize(..KINDS.len())];
            println!("wander: {what}");
            if take(self, guest) {
                *self.counts.entry(what).or_default() += 1;
                return what;
            }
        }
    }

    /// Compares the disks, the daemon and what is known here.
    fn examine(&self, guest: &Guest, runs: bool, context: &str) {
        let disks = [&self.data[..], &self.cache].concat();
        let record = reader::record(&disks, context);
        let devices = |tier: &str| record["backstore"][tier]["blockdev"]["devs"].as_array().map_or(0, Vec::len);
        assert_eq!((devices("data_tier"), devices("cache_tier")), (self.data.len(), self.cache.len()), "{context}");
        assert_eq!(record["name"], self.name.as_str(), "{context}");
        assert_eq!((&record["started"], &record["thinpool_dev"]["fs_limit"]), (&runs.into(), &self.fs_limit.into()));
        let client = guest.client();
        let origins = client.family("filesystem").into_values().map(|one| {
            let name = one["Name"].text().to_owned();
            (name, one["Origin"].members()[0].is_true())
        });
        let known = self.filesystems.iter().map(|(name, known)| (name.clone(), known.origin.is_some()));
        if runs {
            assert_eq!(
                origins.collect::<BTreeMap<_, _>>(),
                known.collect(),
                "filesystems and who is a snapshot; {context}"
            );
        }
    }

    /// Every file of every filesystem is whole, and so is each filesystem.
    fn check_files(&self, guest: &Guest) {
        files::drop_caches();
        let client = guest.client();
        for (name, known) in &self.filesystems {
            let device = files::node(&client, &filesystem(&client, name));
            let folder = files::mount(&device, name);
            known.files.iter().for_each(|file| file.check(&folder));
            files::unmount(&folder);
            files::check_xfs(&device);
        }
    }

    fn fresh(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}{}", self.names)
    }

    /// Any filesystem, but none that a merge is about.
    fn any(&mut self) -> Option<String> {
        let merging = |name: &String| self.merge.as_ref().is_some_and(|(one, two)| [one, two].contains(&name));
        let names: Vec<String> = self.filesystems.keys().filter(|name| !merging(name)).cloned().collect();
        self.random.choice(names)
    }

    fn has_room(&self) -> bool {
        self.filesystems.len() < FILESYSTEMS_MAX
    }

    fn create(&mut self, guest: &mut Guest) -> bool {
        if !self.has_room() {
            return false;
        }
        let client = guest.client();
        let name = self.fresh("f");
        client.make_filesystem(&pool(&client), &name);
        self.filesystems.insert(name, Known::default());
        true
    }

    fn snapshot(&mut self, guest: &mut Guest) -> bool {
        let Some(origin) = self.any().filter(|_| self.has_room()) else { return false };
        let client = guest.client();
        let name = self.fresh("s");
        assert!(client.snapshot(&pool(&client), &filesystem(&client, &origin), &name).done().0);
        let files = self.filesystems[&origin].files.clone();
        self.filesystems.insert(name, Known { files, origin: Some(origin) });
        true
    }

    fn write(&mut self, guest: &mut Guest) -> bool {
        let Some(name) = self.any() else { return false };
        let client = guest.client();
        let folder = files::mount(&files::node(&client, &filesystem(&client, &name)), &name);
        let (file, bytes) = (folder.join(self.fresh("file")), self.random.u64(1..FILE_BYTES_MAX));
        let written = Contents::write(file, bytes, self.random.u64(..));
        let known = self.filesystems.get_mut(&name).expect("it is one of them");
        known.files.iter().for_each(|file| file.check(&folder));
        known.files.push(written);
        files::unmount(&folder);
        true
    }

    fn rename(&mut self, guest: &mut Guest) -> bool {
        let Some(before) = self.any() else { return false };
        let client = guest.client();
        let (path, name) = (filesystem(&client, &before), self.fresh("renamed"));
        let renamed = client.ask::<(bool, String)>(&path, &interface("filesystem", 9), "SetName", (name.as_str(),));
        assert!(renamed.done().0);
        let known = self.filesystems.remove(&before).expect("it is one of them");
        self.filesystems.insert(name.clone(), known);
        self.adopt(&before, Some(&name));
        true
    }

    /// Snapshots of this one are those of another now.
    fn adopt(&mut self, before: &str, now: Option<&str>) {
        for known in self.filesystems.values_mut().filter(|known| known.origin.as_deref() == Some(before)) {
            known.origin = now.map(str::to_owned);
        }
    }

    fn destroy(&mut self, guest: &mut Guest) -> bool {
        let Some(name) = self.any().filter(|_| self.filesystems.len() > FILESYSTEMS_MAX / 2) else { return false };
        let client = guest.client();
        udev::settle();
        assert!(client.destroy_filesystems(&pool(&client), &[filesystem(&client, &name)]).done().0);
        let known = self.filesystems.remove(&name).expect("it is one of them");
        self.adopt(&name, known.origin.as_deref());
        true
    }

    fn limit(&mut self, guest: &mut Guest) -> bool {
        let Some(name) = self.any() else { return false };
        let client = guest.client();
        let bytes = (1_024 * MIB + 512 * self.random.u64(..1_000)).to_string();
        let limit = Variant((self.random.bool(), bytes));
        let call = method(&filesystem(&client, &name), PROPERTIES, "Set");
        let call = call.append3(interface("filesystem", 9), "SizeLimit", limit);
        client.exchange(call).expect("it is larger than the filesystem");
        true
    }

    fn schedule(&mut self, guest: &mut Guest) -> bool {
        let of = |(name, known): (&String, &Known)| Some((name.clone(), known.origin.clone()?));
        let pairs: Vec<_> = self.filesystems.iter().filter_map(of).collect();
        let Some((snapshot, origin)) = self.random.choice(pairs).filter(|_| self.merge.is_none()) else { return false };
        let client = guest.client();
        let path = filesystem(&client, &snapshot);
        client.set(&path, &interface("filesystem", 9), "MergeScheduled", true).expect("it has an origin");
        self.merge = Some((snapshot, origin));
        true
    }

    fn fs_limit(&mut self, guest: &mut Guest) -> bool {
        let client = guest.client();
        let wanted = self.fs_limit + 10;
        if client.set(&pool(&client), &interface("pool", 9), "FsLimit", wanted).is_err() {
            return false;
        }
        self.fs_limit = wanted;
        true
    }

    fn add_data(&mut self, guest: &mut Guest) -> bool {
        let Some(disk) = self.free.pop() else { return false };
        let client = guest.client();
        assert!(client.give_devices(&pool(&client), ("AddDataDevs", 9), &[&disk]).done().0);
        self.data.push(disk);
        true
    }

    fn add_cache(&mut self, guest: &mut Guest) -> bool {
        let Some(disk) = self.free.pop() else { return false };
        let client = guest.client();
        let method = if self.cache.is_empty() { "InitCache" } else { "AddCacheDevs" };
        assert!(client.give_devices(&pool(&client), (method, 9), &[&disk]).done().0);
        self.cache.push(disk);
        true
    }

    fn rename_pool(&mut self, guest: &mut Guest) -> bool {
        let client = guest.client();
        let name = self.fresh("pool");
        let renamed = client.ask::<(bool, String)>(&pool(&client), &interface("pool", 9), "SetName", (name.as_str(),));
        assert!(renamed.done().0);
        self.name = name;
        true
    }

    fn stop(&mut self, guest: &Guest) {
        assert!(guest.client().stop_pool(&self.name, "name").done().0);
    }

    fn start(&mut self, guest: &Guest) {
        assert!(guest.client().start_pool(&self.name, "name").done().0);
        let Some((snapshot, origin)) = self.merge.take() else { return };
        let known = self.filesystems.remove(&snapshot).expect("it is one of them");
        self.filesystems.get_mut(&origin).expect("it is one of them").files = known.files;
        self.adopt(&snapshot, Some(&origin));
    }

    fn restart(&mut self, guest: &mut Guest) -> bool {
        self.stop(guest);
        self.examine(guest, false, "stopped");
        self.start(guest);
        true
    }

    fn kill(&mut self, guest: &mut Guest) -> bool {
        guest.kill9();
        guest.start();
        true
    }

    fn end(&mut self, guest: &mut Guest) -> bool {
        guest.stop();
        guest.start();
        true
    }
}

/// The path of the pool.
fn pool(client: &Client) -> String {
    client.family("pool").pop_first().expect("it runs").0
}

/// The path of a filesystem.
fn filesystem(client: &Client, name: &str) -> String {
    let all = client.family("filesystem").into_iter();
    let named = |(path, properties): (String, _)| {
        let properties: crate::support::client::Properties = properties;
        (properties["Name"].text() == name).then_some(path)
    };
    all.filter_map(named).next().unwrap_or_else(|| panic!("{name} is there"))
}
