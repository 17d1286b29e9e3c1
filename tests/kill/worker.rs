//! One client: sends random operations, one after the other, until the daemon is gone.
//!
//! Invariant: after `work`, the model holds every operation that was answered, and the report holds
//! the one that was sent and not answered, if there is one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::Sender;

use dbus::Message;
use dbus::arg::Variant;
use serde::Deserialize;

use crate::journal::Journal;
use crate::model::{Model, Operation, Seen, SeenFilesystem};
use crate::support::client::{Client, create_pool_arguments, method, objects_of, specs_argument, start_pool_arguments};
use crate::support::value::Value;
use crate::support::{MIB, OBJECT_MANAGER, PROPERTIES, TOP, interface};

/// Own filesystems that a worker keeps at most, so that disks do not fill.
const FILESYSTEMS_MAX: usize = 5;
/// Size of every filesystem: the smallest.
pub(crate) const FILESYSTEM_BYTES: u64 = 512 * MIB;

/// What is left to know after a kill.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Sent and not answered.
    pub(crate) in_flight: Option<Operation>,
    /// Operations that had an effect, and those that were refused, by kind.
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

/// What a whole run has tried.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    answered: BTreeMap<&'static str, u64>,
    cut_short: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// Adds what one kill has cut off.
    pub(crate) fn add(&mut self, reports: &[Report]) {
        for report in reports {
            for (what, count) in &report.counts {
                *self.answered.entry(what).or_default() += count;
            }
            if let Some(operation) = &report.in_flight {
                *self.cut_short.entry(operation.kind()).or_default() += 1;
            }
        }
    }

    /// Every kind of operation was tried. Some take longer than most daemons live: what was cut short counts, too.
    pub(crate) fn expect_all_kinds(&self) {
        for what in Model::KINDS {
            let tried = self.answered.contains_key(what) || self.cut_short.contains_key(what);
            assert!(tried, "{what} never happened: {self:?}");
        }
    }
}

/// How a request ended.
enum Outcome {
    /// Answered; the arguments of the reply.
    Answered(Vec<Value>),
    /// The daemon had it, or not: nobody knows.
    Lost,
    /// The daemon was gone before.
    NotSent,
}

/// A client with things of its own.
pub(crate) struct Worker {
    index: usize,
    serial: u64,
    random: fastrand::Rng,
    /// What it knows.
    pub(crate) model: Model,
    journal: Option<Journal>,
    /// Told of every answer, if anybody counts them.
    pub(crate) answers: Option<Sender<()>>,
}

/// What a journal keeps of a worker.
#[derive(Deserialize)]
#[allow(dead_code, reason = "only where the machine is switched off")]
struct Kept {
    serial: u64,
    model: Model,
    in_flight: Option<Operation>,
}

impl Worker {
    /// A worker with these disks.
    pub(crate) fn new(index: usize, disks: Vec<String>, random: fastrand::Rng) -> Self {
        Self {
            index,
            serial: 0,
            random,
            model: Model { free: disks, ..Model::default() },
            journal: None,
            answers: None,
        }
    }

    /// Makes a first pool of all disks but one, so that there is something to work on.
    #[allow(dead_code, reason = "only where that takes long")]
    pub(crate) fn found(&mut self, client: &Client) {
        let disks = self.model.free[1..].to_vec();
        let name = self.fresh_name("p");
        assert!(client.create_pool(&name, &disks).done().0, "{name} is new");
        self.model.pool_created(&name, &disks);
        self.note(None);
    }

    /// Goes on as the journal says, and keeps it from now on; what was sent and not answered.
    #[allow(dead_code, reason = "only where the machine is switched off")]
    pub(crate) fn keep(&mut self, path: &Path) -> Report {
        let kept: Option<Kept> = Journal::last(path);
        self.journal = Some(Journal::open(path));
        let Some(Kept { serial, model, in_flight }) = kept else { return Report::default() };
        (self.serial, self.model) = (serial, model);
        Report { in_flight, counts: BTreeMap::new() }
    }

    /// Puts into the journal what is known, and what is about to be sent.
    pub(crate) fn note(&mut self, in_flight: Option<&Operation>) {
        if let Some(journal) = &mut self.journal {
            journal.note(&serde_json::json!({
                "serial": self.serial,
                "model": self.model,
                "in_flight": in_flight,
            }));
        }
    }

    /// Works until the daemon is gone.
    pub(crate) fn work(&mut self, client: &Client) -> Report {
        let mut report = Report::default();
        loop {
            let Some(seen) = list(client) else { return report };
            self.model.learn(&seen);
            let Some((operation, message)) = self.choose(&seen) else { continue };
            self.note(Some(&operation));
            match send(client, message) {
                Outcome::Answered(body) => {
                    let kind = operation.kind();
                    let changed = self.apply(operation, &body);
                    self.note(None);
                    if let Some(answers) = &self.answers {
                        // Who counts may have seen enough.
                        let _ = answers.send(());
                    }
                    *report.counts.entry(if changed { kind } else { "refused" }).or_default() += 1;
                }
                Outcome::Lost => {
                    report.in_flight = Some(operation);
                    return report;
                }
                Outcome::NotSent => return report,
            }
        }
    }

    fn fresh_name(&mut self, kind: &str) -> String {
        self.serial += 1;
        format!("{kind}{}.{}", self.index, self.serial)
    }

    /// Something that makes sense now, and the call that asks for it.
    fn choose(&mut self, seen: &Seen) -> Option<(Operation, Message)> {
        match self.random.u32(0..100) {
            0..14 => self.create_pool(),
            14..22 => self.destroy_pool(seen),
            22..36 => self.stop_or_start(),
            36..70 => self.create_filesystem(seen),
            70..84 => self.destroy_filesystems(seen),
            84..94 => self.set_limit(seen),
            _ => self.set_tag(seen),
        }
    }

    fn create_pool(&mut self) -> Option<(Operation, Message)> {
        let count = self.random.usize(1..=2).min(self.model.free.len());
        if count == 0 {
            return None;
        }
        self.random.shuffle(&mut self.model.free);
        let disks = self.model.free[..count].to_vec();
        let name = self.fresh_name("p");
        let mut message = method(TOP, &interface("Manager", 9), "CreatePool");
        message.append_all(create_pool_arguments(&name, &disks));
        Some((Operation::CreatePool { name, disks }, message))
    }

    fn destroy_pool(&mut self, seen: &Seen) -> Option<(Operation, Message)> {
        let (pool, path) = self.own_pool(seen)?;
        let message = method(TOP, &interface("Manager", 9), "DestroyPool").append1(dbus::Path::from(path));
        Some((Operation::DestroyPool { pool }, message))
    }

    fn stop_or_start(&mut self) -> Option<(Operation, Message)> {
        let pool = self.random.choice(self.model.pools.keys())?.clone();
        let manager = interface("Manager", 9);
        if self.model.pool(&pool).running {
            let message = method(TOP, &manager, "StopPool").append2(&pool, "name");
            return Some((Operation::StopPool { pool }, message));
        }
        let mut message = method(TOP, &manager, "StartPool");
        message.append_all(start_pool_arguments(&pool, "name"));
        Some((Operation::StartPool { pool }, message))
    }

    fn create_filesystem(&mut self, seen: &Seen) -> Option<(Operation, Message)> {
        if self.model.filesystems.len() >= FILESYSTEMS_MAX {
            return None;
        }
        let (pool, found) = self.random.choice(&seen.pools)?;
        let name = self.fresh_name("f");
        let limit = self.random.bool().then(|| (2 * FILESYSTEM_BYTES).to_string());
        let specs = specs_argument(&[(&name, Some(&FILESYSTEM_BYTES.to_string()), limit.as_deref())]);
        let message = method(&found.path, &interface("pool", 9), "CreateFilesystems").append1(specs);
        Some((Operation::CreateFilesystem { pool: pool.clone(), name, limit }, message))
    }

    fn destroy_filesystems(&mut self, seen: &Seen) -> Option<(Operation, Message)> {
        let pool = self.own_filesystem(seen)?.1.pool;
        let most = self.random.usize(1..=3);
        let own = seen.filesystems.iter().filter(|(name, _)| self.model.filesystems.contains_key(*name));
        let chosen: Vec<_> = own.filter(|(_, found)| found.pool == pool).take(most).collect();
        let paths: Vec<_> = chosen.iter().map(|(_, found)| dbus::Path::from(found.path.clone())).collect();
        let message = method(&seen.pools[&pool].path, &interface("pool", 9), "DestroyFilesystems").append1(paths);
        let filesystems = chosen.into_iter().map(|(name, _)| name.clone()).collect();
        Some((Operation::DestroyFilesystems { filesystems }, message))
    }

    fn set_limit(&mut self, seen: &Seen) -> Option<(Operation, Message)> {
        let (filesystem, found) = self.own_filesystem(seen)?;
        let limit = self.random.bool().then(|| (FILESYSTEM_BYTES + 512 * self.random.u64(0..1000)).to_string());
        let message = set(&found.path, "filesystem", "SizeLimit", limit.as_deref());
        Some((Operation::SetLimit { filesystem, limit }, message))
    }

    fn set_tag(&mut self, seen: &Seen) -> Option<(Operation, Message)> {
        let (pool, _) = self.own_pool(seen)?;
        let disk = &self.model.pools[&pool].disks[0];
        let path = seen.pools[&pool].devices.get(disk)?.path.clone();
        let tag = self.random.bool().then(|| self.fresh_name("tag"));
        let message = set(&path, "blockdev", "UserInfo", tag.as_deref());
        Some((Operation::SetTag { pool, tag }, message))
    }

    /// An own pool that runs: name and path.
    fn own_pool(&mut self, seen: &Seen) -> Option<(String, String)> {
        let own = seen.pools.iter().filter(|(name, _)| self.model.pools.contains_key(*name));
        let own: Vec<_> = own.map(|(name, found)| (name.clone(), found.path.clone())).collect();
        self.random.choice(own)
    }

    /// An own filesystem of a pool that runs.
    fn own_filesystem(&mut self, seen: &Seen) -> Option<(String, SeenFilesystem)> {
        let own = seen.filesystems.iter().filter(|(name, _)| self.model.filesystems.contains_key(*name));
        let own: Vec<_> = own.map(|(name, found)| (name.clone(), found.clone())).collect();
        self.random.choice(own)
    }

    /// Takes an answer into the model; says whether anything has changed.
    fn apply(&mut self, operation: Operation, body: &[Value]) -> bool {
        // A Set has no results: that it was answered is the success.
        if let [result, code, text] = body {
            if code.number() != 0 {
                // The owner of free disks and of a stopped pool is alone: nothing stands in its way.
                let alone = matches!(operation, Operation::CreatePool { .. } | Operation::StartPool { .. });
                assert!(!alone, "{operation:?} was refused: {text}");
                return false;
            }
            if !result.members()[0].is_true() {
                return false;
            }
        }
        match operation {
            Operation::CreatePool { name, disks } => self.model.pool_created(&name, &disks),
            Operation::DestroyPool { pool } => self.model.pool_destroyed(&pool),
            Operation::StopPool { pool } => self.model.pool(&pool).running = false,
            Operation::StartPool { pool } => self.model.pool(&pool).running = true,
            Operation::CreateFilesystem { pool, name, limit } => {
                self.model.filesystem_created(&name, &pool, limit.as_deref());
            }
            Operation::DestroyFilesystems { filesystems } => self.destroyed(&filesystems, &body[0].members()[1]),
            Operation::SetLimit { filesystem, limit } => self.model.filesystem(&filesystem).limit = limit,
            Operation::SetTag { pool, tag } => self.model.pool(&pool).tag = tag,
        }
        true
    }

    /// Takes those out of the model that the reply names; the pool may have got new paths meanwhile.
    fn destroyed(&mut self, asked: &[String], uuids: &Value) {
        let gone: Vec<_> = uuids.members().iter().map(Value::text).collect();
        let mut found = 0;
        for name in asked {
            let uuid = self.model.filesystem(name).uuid.clone().expect("it was seen before it was destroyed");
            if gone.contains(&uuid.as_str()) {
                self.model.filesystems.remove(name);
                found += 1;
            }
        }
        assert_eq!(found, gone.len(), "only what was asked for is destroyed: {gone:?}");
    }
}

/// The objects, or `None` when the daemon is gone.
fn list(client: &Client) -> Option<Seen> {
    match send(client, method(TOP, OBJECT_MANAGER, "GetManagedObjects")) {
        Outcome::Answered(body) => Some(Seen::new(&objects_of(&body))),
        Outcome::Lost | Outcome::NotSent => None,
    }
}

fn set(path: &str, family: &str, property: &str, value: Option<&str>) -> Message {
    let value = Variant((value.is_some(), value.unwrap_or_default().to_owned()));
    method(path, PROPERTIES, "Set").append3(interface(family, 9), property, value)
}

fn send(client: &Client, message: Message) -> Outcome {
    let what = format!("{:?} {:?}", message.member(), message.path());
    let serial = client.send(message);
    match client.reply_to(serial).expect("the bus outlives the daemon, and speaks for it") {
        Ok(reply) => Outcome::Answered(Value::body(&reply)),
        Err(error) => match error.name.rsplit('.').next().unwrap_or_default() {
            "NoReply" | "Disconnected" => Outcome::Lost,
            "ServiceUnknown" | "NameHasNoOwner" => Outcome::NotSent,
            // The pool was stopped or destroyed by its owner between the list and the call, or while
            // a Set waited for that.
            "UnknownObject" | "Failed" => Outcome::Answered(refusal()),
            _ => panic!("{what}: {error}"),
        },
    }
}

/// The results of a call on an object that is gone.
fn refusal() -> Vec<Value> {
    let nothing = Value::Struct(vec![Value::Bool(false)]);
    vec![nothing, Value::Unsigned('q', 1), Value::Text("the object is gone".to_owned())]
}
