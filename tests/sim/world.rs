//! A whole daemon without its bus, in one thread: shards, directory, event core over one simulated
//! machine, and a driver in the place of the bus core.
//!
//! Everything that happens follows from the seed. A crash is: the machine freezes, the universe is
//! dropped, the machine loses what was not flushed, a new universe boots over it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::rc::Rc;

use cores::changes::Signal;
use cores::deterministic::{Ended, Universe};
use cores::rt;
use ring::{Endpoint, Lane, Sizes, mesh};
use stratisd::descriptors::Descriptors;
use stratisd::directory::Directory;
use stratisd::engine::grow::Pace;
use stratisd::error::Failure;
use stratisd::event;
use stratisd::limits::OUTBOX_MAX;
use stratisd::message::{Answer, CallId, Claim, Message, Reply, Request, View, Wish};
use stratisd::model::device::{DeviceNumber, DevicePath, Tier};
use stratisd::model::filesystem::FilesystemSpec;
use stratisd::model::ids::{FsUuid, PoolUuid};
use stratisd::model::name::Name;
use stratisd::model::pool::{Availability, IntegritySpec};
use stratisd::shard::home::home;

use stratisd::bus;
use stratisd::shard::{self, Places, Shard, turn};
use stratisd::sys::sim::{Machine, SimSys};
use stratisd::units::Sectors;

use crate::crash::REST;
use crate::office::Office;

const SHARDS: usize = 2;
const BUS: usize = 0;
const EVENT: usize = 1;
const FIRST_SHARD: usize = 2;

/// What clients see.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Seen {
    /// Running pools: name, and the filesystems by UUID with their names.
    pub(crate) running: BTreeMap<PoolUuid, (String, BTreeMap<FsUuid, String>)>,
    /// Stopped pools: name and number of devices.
    pub(crate) stopped: BTreeMap<PoolUuid, (Option<String>, usize)>,
    /// Values of properties that can be set.
    pub(crate) settings: BTreeSet<String>,
}

/// Stands where the bus core stands.
pub(crate) struct Driver {
    endpoint: Rc<Endpoint<Message>>,
    directory: RefCell<Directory>,
    seen: RefCell<Seen>,
    shards: RefCell<Vec<Rc<Shard<SimSys>>>>,
    /// Where clients come in, if there are any.
    office: Option<Rc<Office>>,
    replies: RefCell<BTreeMap<CallId, Result<Answer, Failure>>>,
    settled: Cell<usize>,
    refreshed: RefCell<BTreeMap<CallId, usize>>,
    next_call: Cell<u64>,
    changed: Signal,
}

impl Driver {
    /// Asks for something and waits for the answer.
    pub(crate) async fn call(&self, wish: Wish) -> Result<Answer, Failure> {
        let call = CallId(self.next_call.get());
        self.next_call.set(call.0 + 1);
        self.send(Box::new(Request { call, wish, descriptors: Descriptors::default() }));
        self.changed.until(|| self.replies.borrow_mut().remove(&call)).await
    }

    /// Has every device looked at, and waits until that is taken in.
    pub(crate) async fn refresh(&self) -> Result<Answer, Failure> {
        let call = CallId(self.next_call.get());
        self.next_call.set(call.0 + 1);
        self.send_refresh(call);
        let all = || (self.refreshed.borrow().get(&call) == Some(&SHARDS)).then_some(Ok(Answer::Set));
        self.changed.until(|| all().or_else(|| self.replies.borrow_mut().remove(&call))).await
    }

    /// How much is under way in each shard.
    pub(crate) fn loads(&self) -> Vec<shard::Load> {
        self.shards.borrow().iter().map(|shard| shard.load()).collect()
    }

    /// Operations, and what goes on by itself.
    pub(crate) fn busy(&self) -> usize {
        self.loads().iter().map(|load| load.busy).sum()
    }

    /// How much of what it bounds the bus core uses.
    pub(crate) fn office_load(&self) -> bus::core::Load {
        self.office.as_ref().map(|office| office.load()).unwrap_or_default()
    }

    /// Messages of the bus core that found their ring full.
    pub(crate) fn waiting(&self) -> usize {
        self.endpoint.depths().queued_out
    }

    /// Waits until clients see what is wanted.
    pub(crate) async fn until(&self, mut wanted: impl FnMut(&Seen) -> bool) -> Seen {
        self.changed.until(|| Some(self.seen()).filter(|seen| wanted(seen))).await
    }

    /// Whether nobody holds a claim on any of these devices.
    pub(crate) fn unclaimed(&self, devices: &[DeviceNumber]) -> bool {
        let probe = PoolUuid::from_random([0xee; 16]);
        let path = DevicePath::try_from("/dev/probe").expect("absolute");
        let devices = devices.iter().map(|number| (*number, path.clone(), Tier::Data)).collect();
        let mut directory = self.directory.borrow_mut();
        let claimed = directory.handle(Claim::Take { pool: probe, name: None, devices });
        directory.handle(Claim::Release(probe));
        claimed.expect("a take is answered").outcome.is_ok()
    }

    /// Whether nobody holds a claim on this name.
    pub(crate) fn unclaimed_name(&self, name: &Name) -> bool {
        let probe = PoolUuid::from_random([0xee; 16]);
        let mut directory = self.directory.borrow_mut();
        let claimed = directory.handle(Claim::Take { pool: probe, name: Some(name.clone()), devices: Vec::new() });
        directory.handle(Claim::Release(probe));
        claimed.expect("a take is answered").outcome.is_ok()
    }

    /// What clients see now.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Whether clients see that this pool runs.
    pub(crate) fn runs(&self, pool: PoolUuid) -> bool {
        self.seen.borrow().running.contains_key(&pool)
    }

    /// Whether this line is among the settings that clients see.
    pub(crate) fn says(&self, line: &str) -> bool {
        self.seen.borrow().settings.contains(line)
    }

    /// A request of a client goes to the home of its pool.
    pub(crate) fn send(&self, request: Box<Request>) {
        let to = FIRST_SHARD + home(request.wish.pool(), SHARDS);
        self.endpoint.send(to, Lane::Normal, Message::Request(request)).map_err(|_| ()).expect("the outbox has room");
    }

    /// A client wants every device looked at.
    pub(crate) fn send_refresh(&self, call: CallId) {
        self.endpoint.send(EVENT, Lane::Normal, Message::Refresh(call)).map_err(|_| ()).expect("the outbox has room");
    }

    /// A client reads: sizes in use are looked at.
    pub(crate) fn send_look(&self) {
        for shard in FIRST_SHARD..FIRST_SHARD + SHARDS {
            self.endpoint.send(shard, Lane::Normal, Message::Look).map_err(|_| ()).expect("the outbox has room");
        }
    }

    async fn serve(self: Rc<Self>) {
        let mut batch = Vec::new();
        loop {
            self.endpoint.wait().await;
            while self.endpoint.receive(&mut batch, 16) > 0 {
                batch.drain(..).for_each(|(from, message)| self.handle(from, message));
            }
            self.changed.raise();
        }
    }

    fn handle(&self, from: usize, message: Message) {
        match message {
            Message::Reply(reply) => {
                if let Some(office) = &self.office {
                    return office.handle_reply(self, *reply);
                }
                let Reply { call, outcome } = *reply;
                self.replies.borrow_mut().insert(call, outcome);
            }
            Message::Views(views) => {
                views.iter().for_each(|view| apply(&mut self.seen.borrow_mut(), view));
                if let Some(office) = &self.office {
                    office.handle_views(self, views);
                }
            }
            Message::Claim(claim) => {
                if let Some(claimed) = self.directory.borrow_mut().handle(*claim) {
                    let answer = Message::Claimed(Box::new(claimed));
                    self.endpoint.send(from, Lane::Urgent, answer).map_err(|_| ()).expect("the outbox has room");
                }
            }
            Message::Settled => self.settled.set(self.settled.get() + 1),
            Message::Stop | Message::Stopped => {}
            Message::Refreshed(call) => {
                *self.refreshed.borrow_mut().entry(call).or_default() += 1;
                let all = self.refreshed.borrow()[&call] == SHARDS;
                if let Some(office) = self.office.as_ref().filter(|_| all) {
                    office.handle_reply(self, Reply { call, outcome: Ok(Answer::Set) });
                }
            }
            Message::Request(_) | Message::Event(_) | Message::Claimed(_) | Message::Look | Message::Refresh(_) => {
                panic!("nobody sends this to the bus")
            }
        }
    }
}

fn apply(seen: &mut Seen, view: &View) {
    match view {
        View::Pool(pool) => {
            seen.running.entry(pool.uuid).or_default().0 = pool.name.to_string();
            seen.settings.retain(|setting| !setting.starts_with(&pool.uuid.to_string()));
            seen.settings.insert(format!("{} fs limit {}", pool.uuid, pool.fs_limit));
            seen.settings.insert(format!("{} has {} bytes, cache {}", pool.uuid, pool.physical_size.0, pool.has_cache));
            if pool.no_alloc_space {
                seen.settings.insert(format!("{} no space", pool.uuid));
            }
            if pool.overprovisioning {
                seen.settings.insert(format!("{} overprovisioning", pool.uuid));
            }
            if let Some(encryption) = &pool.encryption {
                let tokens = encryption.tokens.iter();
                seen.settings.extend(tokens.map(|(slot, held)| format!("{} slot {slot} {held:?}", pool.uuid)));
                seen.settings.extend(encryption.reencrypted.map(|_| format!("{} reencrypted", pool.uuid)));
            }
            if pool.availability != Availability::Full {
                seen.settings.insert(format!("{} {}", pool.uuid, pool.availability.as_str()));
            }
        }
        View::Filesystem(found) => {
            let pool = seen.running.get_mut(&found.pool).expect("a filesystem is shown after its pool");
            pool.1.insert(found.record.uuid, found.record.name.to_string());
            let about = format!("{} limit", found.record.uuid);
            seen.settings.retain(|setting| !setting.starts_with(&found.record.uuid.to_string()));
            seen.settings.extend(found.record.origin.map(|origin| format!("{} of {origin}", found.record.uuid)));
            seen.settings.extend(found.record.size_limit.map(|limit| format!("{about} {limit}")));
            seen.settings.insert(format!("{} has {}", found.record.uuid, found.record.size));
            seen.settings.extend(found.record.merge.then(|| format!("{} is to be merged", found.record.uuid)));
        }
        View::Device(device) => {
            seen.settings.retain(|setting| !setting.starts_with(&device.uuid.to_string()));
            let (path, tier, size) = (&device.devnode, device.tier.as_str(), device.size);
            seen.settings.insert(format!("{} at {path} in {tier} with {size}", device.uuid));
            let about = format!("{} info", device.uuid);
            seen.settings.extend(device.new_size.map(|size| format!("{} grown {size}", device.uuid)));
            seen.settings.extend(device.user_info.as_ref().map(|info| format!("{about} {info}")));
        }
        View::Stopped(pool) => {
            let name = pool.name.as_ref().map(ToString::to_string);
            seen.stopped.insert(pool.uuid, (name, pool.devices.len()));
        }
        View::PoolGone(pool) => {
            seen.running.remove(pool);
            seen.settings.retain(|setting| !setting.starts_with(&pool.to_string()));
        }
        View::FilesystemGone(pool, filesystem) => {
            seen.running.get_mut(pool).expect("its pool goes later").1.remove(filesystem);
            seen.settings.retain(|setting| !setting.starts_with(&filesystem.to_string()));
        }
        View::DeviceGone(_, device) => seen.settings.retain(|setting| !setting.starts_with(&device.to_string())),
        View::StoppedGone(pool) => {
            seen.stopped.remove(pool);
        }
        View::Keys(_) => {}
    }
}

/// Boots a daemon over a machine and waits until everything found is settled.
pub(crate) async fn boot(machine: &Machine, pace: Pace) -> Rc<Driver> {
    open(machine, pace, None).await
}

/// The same with an office for clients.
pub(crate) async fn open(machine: &Machine, pace: Pace, office: Option<Rc<Office>>) -> Rc<Driver> {
    let sizes = Sizes { ring_slots: 4, outbox_max: OUTBOX_MAX };
    let mut endpoints = mesh(FIRST_SHARD + SHARDS, sizes).into_iter().map(Rc::new);
    let mut next = || endpoints.next().expect("the mesh has an endpoint for each role");
    let driver = Rc::new(Driver {
        endpoint: next(),
        directory: RefCell::default(),
        seen: RefCell::default(),
        shards: RefCell::default(),
        office,
        replies: RefCell::default(),
        settled: Cell::new(0),
        refreshed: RefCell::default(),
        next_call: Cell::new(0),
        changed: Signal::default(),
    });
    rt::spawn_singleton("driver", Rc::clone(&driver).serve());
    let (events, sys) = (next(), machine.sys());
    rt::spawn_singleton("event", async move {
        let places = event::Places { bus: BUS, shards: FIRST_SHARD..FIRST_SHARD + SHARDS };
        event::run(&sys, events, places, |pool| FIRST_SHARD + home(pool, SHARDS), pending()).await;
    });
    for _ in 0..SHARDS {
        let shard = Shard::new(machine.sys(), next(), Places { bus: BUS, event: EVENT });
        shard.pace.set(pace);
        driver.shards.borrow_mut().push(Rc::clone(&shard));
        rt::spawn_singleton("shard", turn::run(shard));
    }
    driver.changed.until(|| (driver.settled.get() == SHARDS).then_some(())).await;
    driver
}

/// Runs a story in a universe of its own over a machine.
pub(crate) fn live<T: 'static, F: Future<Output = T> + 'static>(
    seed: u64,
    machine: &Machine,
    story: impl FnOnce(Rc<Driver>) -> F + 'static,
) -> Ended<T> {
    live_at(Pace::default(), seed, machine, story)
}

/// The same with thin pools that grow in other steps.
pub(crate) fn live_at<T: 'static, F: Future<Output = T> + 'static>(
    pace: Pace,
    seed: u64,
    machine: &Machine,
    story: impl FnOnce(Rc<Driver>) -> F + 'static,
) -> Ended<T> {
    let machine = machine.clone();
    Universe::new(seed).run(async move { story(boot(&machine, pace).await).await })
}

/// What a daemon shows that boots over the machine now and comes to rest.
pub(crate) fn look(seed: u64, machine: &Machine) -> Seen {
    live(seed, machine, |driver| async move {
        rt::sleep(REST).await;
        driver.seen()
    })
    .finished()
}

/// The pool of most stories.
pub(crate) fn pool() -> PoolUuid {
    PoolUuid::from_random([7; 16])
}

/// A name.
pub(crate) fn name(text: &str) -> Name {
    Name::try_from(text).expect("a name")
}

/// The wish for the pool of most stories on two disks.
pub(crate) fn create_pool(devices: &[&str]) -> Wish {
    let devices = devices.iter().map(|path| DevicePath::try_from(*path).expect("absolute")).collect();
    Wish::CreatePool { pool: pool(), name: name("p"), devices, integrity: IntegritySpec::default(), encryption: None }
}

/// The wish for a filesystem of 1 GiB.
pub(crate) fn create_filesystem(text: &str) -> Wish {
    let spec = FilesystemSpec { name: name(text), size: Some(Sectors(2_097_152)), size_limit: None };
    Wish::CreateFilesystems(pool(), vec![spec])
}

/// The wish for a snapshot of a filesystem that clients see.
pub(crate) fn snapshot(seen: &Seen, origin: &str, text: &str) -> Wish {
    Wish::SnapshotFilesystem(pool(), filesystem(seen, origin), name(text))
}

/// The UUID of a filesystem that clients see.
pub(crate) fn filesystem(seen: &Seen, text: &str) -> FsUuid {
    let all = seen.running.values().flat_map(|(_, filesystems)| filesystems);
    let mut named = all.filter(|(_, name)| *name == text).map(|(uuid, _)| *uuid);
    named.next().expect("the filesystem is there")
}
