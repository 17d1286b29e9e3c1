//! Long random histories: a client that only listens knows at every step what a fresh listing says.
//!
//! Every operation of the API is one row of `STEPS`; what it acts on is drawn from what was heard. Up to three of
//! them run at once, of which some are refused: a refusal must change nothing that is not announced either.
//! `SEED=` replays the draws of a run; how calls that run at once fall out may differ.

use std::fs::File;
use std::io::{Seek, Write};

use dbus::Message;
use dbus::arg::{Append, AppendAll, Arg, Variant};

use crate::support::client::{Client, create_pool_arguments, method, specs_argument, start_pool_arguments};
use crate::support::picture::Picture;
use crate::support::rig::{Kind, Rig};
use crate::support::{GIB, PROPERTIES, TOP, interface};

type Path = dbus::Path<'static>;

/// A call on something that there is; `None` where there is nothing of the kind. With it stands how often it is drawn:
/// what makes things more often than what takes them away.
type Step = fn(&mut History) -> Option<Message>;

#[rustfmt::skip]
const STEPS: &[(usize, &str, Step)] = &[
    (6, "create a pool", |h| Some(manager("CreatePool", create_pool_arguments(&h.name(), &h.disks())))),
    (2, "create an encrypted pool", |h| Some(h.encrypted_pool())),
    (1, "destroy a pool", |h| Some(manager("DestroyPool", (h.pool()?,)))),
    (6, "start a pool", |h| Some(manager("StartPool", start_pool_arguments(&h.stopped()?, "uuid")))),
    (3, "start an encrypted pool", |h| Some(manager("StartPool", (h.stopped()?, "uuid", (true, (false, 0_u32)), (false, h.key()), h.flip())))),
    (1, "stop a pool", |h| Some(manager("StopPool", (h.pool_name()?, "name")))),
    (1, "unlock a pool", |h| Some(call(TOP, "Manager", 0, "UnlockPool", (h.stopped()?, "any")))),
    (1, "refresh", |_| Some(manager("RefreshState", ()))),
    (3, "set a key", |h| Some(manager("SetKey", (h.name(), h.key())))),
    (1, "unset a key", |h| Some(manager("UnsetKey", (h.name(),)))),
    (12, "create a filesystem", |h| h.create_filesystem()),
    (1, "destroy filesystems", |h| h.on_pool("DestroyFilesystems", |h| Some((vec![h.filesystem()?, h.filesystem()?],)))),
    (6, "take a snapshot", |h| h.on_pool("SnapshotFilesystem", |h| Some((h.filesystem()?, h.name())))),
    (1, "rename a pool", |h| h.on_pool("SetName", |h| Some((h.name(),)))),
    (1, "rename a filesystem", |h| Some(call(&h.filesystem()?, "filesystem", 9, "SetName", (h.name(),)))),
    (2, "add data devices", |h| h.on_pool("AddDataDevs", |h| Some((h.disks(),)))),
    (2, "make a cache", |h| h.on_pool("InitCache", |h| Some((h.disks(),)))),
    (1, "add cache devices", |h| h.on_pool("AddCacheDevs", |h| Some((h.disks(),)))),
    (1, "grow a device", |h| h.on_pool("GrowPhysicalDevice", |h| Some((h.device_uuid()?,)))),
    (1, "encrypt", |h| h.on_pool("EncryptPool", |h| Some((vec![((h.flip(), h.slot().1), h.name())], vec![(h.slot(), "tpm2", "{}")])))),
    (1, "encrypt anew", |h| h.on_pool("ReencryptPool", |_| Some(()))),
    (1, "decrypt", |h| h.on_pool("DecryptPool", |_| Some(()))),
    (1, "bind a key", |h| h.on_pool("BindKeyring", |h| Some((h.name(), h.slot())))),
    (1, "bind clevis", |h| h.on_pool("BindClevis", |h| Some(("tpm2", "{}", h.slot())))),
    (1, "rebind a key", |h| h.on_pool("RebindKeyring", |h| Some((h.name(), h.slot())))),
    (1, "rebind clevis", |h| h.on_pool("RebindClevis", |h| Some((h.slot(),)))),
    (1, "unbind a key", |h| h.on_pool("UnbindKeyring", |h| Some((h.slot(),)))),
    (1, "unbind clevis", |h| h.on_pool("UnbindClevis", |h| Some((h.slot(),)))),
    (1, "unbind as of old", |h| Some(call(&h.pool()?, "pool", 7, "UnbindKeyring", ()))),
    (1, "tag a device", |h| Some(set(&h.device()?, "blockdev", "UserInfo", (h.flip(), h.name())))),
    (1, "tag a device as of old", |h| Some(call(&h.device()?, "blockdev", 2, "SetUserInfo", ((true, h.name()),)))),
    (1, "limit filesystems", |h| Some(set(&h.pool()?, "pool", "FsLimit", h.dice.u64(95..110)))),
    (1, "overprovisioning", |h| Some(set(&h.pool()?, "pool", "Overprovisioning", h.flip()))),
    (1, "limit a size", |h| Some(set(&h.filesystem()?, "filesystem", "SizeLimit", (h.flip(), h.size())))),
    (1, "schedule a merge", |h| Some(set(&h.filesystem()?, "filesystem", "MergeScheduled", h.flip()))),
];

/// What the next calls are drawn from.
struct History {
    dice: fastrand::Rng,
    picture: Picture,
    disks: Vec<String>,
}

/// Drawing.
impl History {
    fn step(&mut self) -> (&'static str, Step) {
        let all: usize = STEPS.iter().map(|(often, ..)| often).sum();
        let mut left = self.dice.usize(..all);
        let drawn = STEPS.iter().find(|(often, ..)| left.checked_sub(*often).map(|less| left = less).is_none());
        let (_, name, step) = drawn.expect("less than the sum was drawn");
        (name, *step)
    }

    fn flip(&mut self) -> bool {
        self.dice.bool()
    }

    /// Few names, so that many are taken. Some are none.
    fn name(&mut self) -> String {
        let names = ["a", "b", "c", "d", "e", "f", "ü", "not a name"];
        names[self.dice.usize(..names.len())].to_owned()
    }

    fn disks(&mut self) -> Vec<String> {
        let count = self.dice.usize(1..3);
        (0..count).map(|_| self.disks[self.dice.usize(..self.disks.len())].clone()).collect()
    }

    fn size(&mut self) -> String {
        (self.dice.u64(1..5) << 29).to_string()
    }

    fn slot(&mut self) -> (bool, u32) {
        (self.flip(), self.dice.u32(..4))
    }

    /// One of three passphrases.
    fn key(&mut self) -> File {
        let mut file = tempfile::tempfile().expect("a file can be made");
        let written = write!(file, "passphrase {}", self.dice.u32(..3)).and_then(|()| file.rewind());
        written.expect("a fresh file is writable");
        file
    }

    /// The path of an object of a family.
    fn one(&mut self, family: &str) -> Option<String> {
        let interface = interface(family, 9);
        let objects = self.picture.objects.iter().filter(|(_, interfaces)| interfaces.contains_key(&interface));
        let paths: Vec<_> = objects.map(|(path, _)| path).collect();
        Some((*self.dice.choice(&paths)?).clone())
    }

    fn pool(&mut self) -> Option<Path> {
        self.one("pool").map(Path::from)
    }

    fn filesystem(&mut self) -> Option<Path> {
        self.one("filesystem").map(Path::from)
    }

    fn device(&mut self) -> Option<Path> {
        self.one("blockdev").map(Path::from)
    }

    fn pool_name(&mut self) -> Option<String> {
        let path = self.one("pool")?;
        Some(self.picture.objects[&path][&interface("pool", 9)]["Name"].text().to_owned())
    }

    fn device_uuid(&mut self) -> Option<String> {
        let path = self.one("blockdev")?;
        Some(self.picture.objects[&path][&interface("blockdev", 9)]["Uuid"].text().to_owned())
    }

    fn stopped(&mut self) -> Option<String> {
        let stopped = self.picture.manager[&interface("Manager", 9)]["StoppedPools"].entries();
        self.dice.choice(stopped.into_keys().collect::<Vec<_>>())
    }
}

/// Making calls.
impl History {
    /// A call of a pool, with arguments drawn after it.
    fn on_pool<A: AppendAll>(&mut self, member: &str, draw: fn(&mut Self) -> Option<A>) -> Option<Message> {
        let (pool, arguments) = (self.pool()?, draw(self)?);
        Some(call(&pool, "pool", 9, member, arguments))
    }

    fn create_filesystem(&mut self) -> Option<Message> {
        let (name, size) = (self.name(), self.size());
        let pool = self.pool()?;
        Some(call(&pool, "pool", 9, "CreateFilesystems", (specs_argument(&[(&name, Some(&size), None)]),)))
    }

    fn encrypted_pool(&mut self) -> Message {
        let (mut arguments, slot, key) = (create_pool_arguments(&self.name(), &self.disks()), self.slot(), self.name());
        arguments.2.push((slot, key));
        manager("CreatePool", arguments)
    }
}

fn call(path: &str, family: &str, revision: u8, member: &str, arguments: impl AppendAll) -> Message {
    let mut message = method(path, &interface(family, revision), member);
    message.append_all(arguments);
    message
}

fn manager(member: &str, arguments: impl AppendAll) -> Message {
    call(TOP, "Manager", 9, member, arguments)
}

fn set(path: &str, family: &str, name: &str, value: impl Arg + Append) -> Message {
    method(path, PROPERTIES, "Set").append3(interface(family, 9), name, Variant(value))
}

/// What a step may end with besides a reply.
const REFUSED: &str = "org.freedesktop.DBus.Error.Failed";

/// A rig, a daemon, one who listens, and three who act.
fn live(kind: Kind, seed: u64, steps: usize) {
    let rig = Rig::new(kind);
    let _daemon = rig.start();
    let listener = rig.client();
    let actors: Vec<Client> = (0..3).map(|_| rig.client()).collect();
    let disks = (0..8).map(|index| rig.disk(&format!("disk{index}"), 4 * GIB)).collect();
    let picture = Picture::first(&listener);
    let mut history = History { dice: fastrand::Rng::with_seed(seed), picture, disks };
    for step in 0..steps {
        let mut sent = Vec::new();
        for actor in &actors[..history.dice.usize(1..=actors.len())] {
            let (name, draw) = history.step();
            if let Some(message) = draw(&mut history) {
                sent.push((actor, name, actor.send(message)));
            }
        }
        let names: Vec<_> = sent.iter().map(|(_, name, _)| *name).collect();
        for (actor, name, serial) in sent {
            if let Err(error) = actor.reply_to(serial).expect("a call is answered") {
                let gone = error.name.ends_with("UnknownObject");
                assert!(gone || error.name == REFUSED, "{name}: {error}");
            }
        }
        history.picture.assert_current(&listener, &format!("SEED={seed}, step {step}, {names:?}"));
    }
    let heard = history.picture.heard;
    println!("SEED={seed}: {heard} signals in {steps} steps");
    assert!(heard > steps, "SEED={seed}: something happens in a history: {heard} signals in {steps} steps");
}

/// Seeds of the histories of one test, the same each time unless `SEED` gives one.
fn seeds(what: &str, count: u64) -> Vec<u64> {
    let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = given.map_or_else(|| (1..=count).collect(), |seed| vec![seed]);
    println!("{what}: SEED= one of {seeds:?}");
    seeds
}

#[test]
fn who_only_listens_knows_what_a_listing_says() {
    for seed in seeds("histories with --sim", 3) {
        live(Kind::Sim, seed, 300);
    }
}

#[test]
fn who_only_listens_knows_it_with_files_too() {
    for seed in seeds("histories with --files", 1) {
        live(Kind::Files, seed, 100);
    }
}
