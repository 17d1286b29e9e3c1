//! A shard: the pools of one core, and the operations that carry what the engine decides to `sys`.
//!
//! Invariants: a pool is touched by its home only; its state changes only in synchronous calls of
//! the engine, never across an await; views leave before the reply that they explain, and both only
//! after what they show is durable.
//!
//! Deliberately absent: locks (a pool has one owner), D-Bus, and any knowledge of other shards
//! except through the directory.

pub mod conflict;
pub mod home;
mod news;
pub mod ops;
pub mod turn;
pub mod wait;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use cores::changes::Signal;
use ring::{Endpoint, Lane};

use crate::engine::filesystem::Filesystem;
use crate::engine::gather::Gathered;
use crate::engine::grow::Pace;
use crate::engine::pool::Pool;
use crate::error::{Failure, Fault, Refusal, Why};
use crate::message::{Claim, Claimed, Message, Taken, View};
use crate::model::device::DeviceNumber;
use crate::model::ids::{DevUuid, FsUuid, PoolUuid};
use crate::model::pool::Availability;
use crate::shard::conflict::{Gate, Operation, Ticket};
use crate::shard::ops::extend::Extension;
use crate::shard::ops::save::{Outstanding, Saver};
use crate::shard::ops::watch::Watches;
use crate::sys::Sys;
use crate::sys::passphrase::Readers;
use crate::units::Bytes;
use crate::zoo::{Bug, planted};

/// Where the other roles are in the mesh.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// The bus core, which also answers for the directory.
    pub bus: usize,
    /// The event core.
    pub event: usize,
}

/// A running pool.
#[derive(Debug)]
pub struct Running {
    /// Its id.
    pub uuid: PoolUuid,
    /// What the engine knows of it.
    pub pool: RefCell<Pool>,
    /// Its one writer of pool records.
    pub saver: Saver,
    /// What of its growth is under way.
    pub extension: Extension,
}

/// How much is under way in a shard.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Load {
    /// Operations, and what goes on by itself: what a stop of the daemon waits for.
    pub busy: usize,
    /// Pools whose operations are kept apart.
    pub gates: usize,
    /// Operations that run or wait in the pool that has most.
    pub queued: usize,
    /// Messages that found their ring full.
    pub waiting: usize,
}

/// The state that one core owns.
#[derive(Debug)]
pub struct Shard<S> {
    /// The machine.
    pub sys: S,
    /// In which steps its thin pools grow.
    pub pace: Cell<Pace>,
    endpoint: Rc<Endpoint<Message>>,
    places: Places,
    running: RefCell<BTreeMap<PoolUuid, Rc<Running>>>,
    gathered: RefCell<BTreeMap<PoolUuid, Gathered>>,
    gates: RefCell<BTreeMap<PoolUuid, Rc<Gate>>>,
    claims: RefCell<VecDeque<Claimed>>,
    claimed: Signal,
    stopping: Cell<bool>,
    enumerated: Cell<bool>,
    busy: Cell<usize>,
    /// Running pools with reports about their devices, and the devices with their signature that are not theirs.
    beside: RefCell<BTreeMap<PoolUuid, Gathered>>,
    /// Pools whose devices have changed and which wait for their turn to be set up or listed.
    unsettled: RefCell<BTreeSet<PoolUuid>>,
    /// Pools whose thin pool is being looked at; true: once more after that.
    looks: RefCell<BTreeMap<PoolUuid, bool>>,
    /// Who reads passphrases of keys that are being set.
    passphrases: Readers,
    /// Devices with a save that has not ended, also of pools that do not run any more.
    outstanding: Outstanding,
    /// How full filesystems are, and when to look again.
    watches: Watches,
}

impl<S: Sys> Shard<S> {
    /// An empty shard at its place in the mesh.
    pub fn new(sys: S, endpoint: Rc<Endpoint<Message>>, places: Places) -> Rc<Self> {
        Rc::new(Self {
            sys,
            pace: Cell::default(),
            endpoint,
            places,
            running: RefCell::default(),
            gathered: RefCell::default(),
            gates: RefCell::default(),
            claims: RefCell::default(),
            claimed: Signal::default(),
            stopping: Cell::new(false),
            enumerated: Cell::new(false),
            busy: Cell::new(0),
            beside: RefCell::default(),
            unsettled: RefCell::default(),
            looks: RefCell::default(),
            passphrases: Readers::default(),
            outstanding: Outstanding::default(),
            watches: Watches::default(),
        })
    }

    /// How much is under way here.
    pub fn load(&self) -> Load {
        let gates = self.gates.borrow();
        let queued = gates.values().map(|gate| gate.places()).max().unwrap_or(0);
        Load { busy: self.busy.get(), gates: gates.len(), queued, waiting: self.endpoint.depths().queued_out }
    }

    /// The running pool of this id.
    fn running(&self, pool: PoolUuid) -> Option<Rc<Running>> {
        self.running.borrow().get(&pool).cloned()
    }

    /// Waits until nobody else enters sectors into the record of a pool, and keeps others from it.
    async fn alone(&self, pool: PoolUuid) -> Ticket {
        let ticket = self.gate(pool).queue(Operation::Allocate);
        ticket.admitted().await;
        ticket
    }

    /// The running pool that has this device.
    fn holder(&self, device: DeviceNumber) -> Option<PoolUuid> {
        let running = self.running.borrow();
        let mut holders = running.values().filter(|running| running.pool.borrow().numbers().contains(&device));
        holders.next().map(|running| running.uuid)
    }

    /// The running pool of this id, if its state allows changes on request.
    fn changeable(&self, pool: PoolUuid) -> Result<Rc<Running>, Refusal> {
        let running = self.running(pool).ok_or(Refusal::NoPool(pool))?;
        let availability = running.pool.borrow().availability();
        match availability {
            Availability::Full => Ok(running),
            Availability::NoRequests if planted(Bug::DegradedChanges) => Ok(running),
            Availability::NoRequests | Availability::NoPoolChanges => {
                Err(Refusal::PoolUnavailable { pool, availability })
            }
        }
    }

    /// The gate of a pool, running or not.
    fn gate(&self, pool: PoolUuid) -> Rc<Gate> {
        let mut gates = self.gates.borrow_mut();
        // Gates of pools without operations are dropped here, so there are never more gates than
        // operations and one.
        gates.retain(|_, gate| !gate.is_idle());
        Rc::clone(gates.entry(pool).or_default())
    }

    fn send(&self, to: usize, message: Message) {
        // An outbox is larger than all calls in flight can fill it; see limits::OUTBOX_MAX.
        let overtakes = planted(Bug::ReplyOvertakes) && matches!(message, Message::Reply(_));
        let lane = if overtakes { Lane::Urgent } else { Lane::Normal };
        self.endpoint.send(to, lane, message).map_err(|_| ()).expect("an outbox holds every answer owed");
    }

    /// Shows changes to clients.
    fn show(&self, views: Vec<View>) {
        if !views.is_empty() {
            self.watches.notice(self.sys.kind(), &views);
            self.send(self.places.bus, Message::Views(views));
        }
    }

    /// Shows a pool whose own values have changed.
    fn show_pool(&self, running: &Running) {
        let view = running.pool.borrow().view();
        self.show(vec![View::Pool(view)]);
    }

    /// Shows a pool whose sizes have changed, and then those of its devices that it has changed with.
    fn show_devices(&self, running: &Running, devices: &[DevUuid]) {
        let pool = running.pool.borrow();
        let mut views = vec![View::Pool(pool.view())];
        views.extend(pool.device_views().into_iter().filter(|view| devices.contains(&view.uuid)).map(View::Device));
        self.show(views);
    }

    /// A filesystem of a pool as clients see it.
    fn filesystem_view(&self, pool: &Pool, found: &Filesystem) -> View {
        View::Filesystem(pool.filesystem_view(found, self.sys.devnode(pool.name(), &found.record.name)))
    }

    /// Space that a filesystem takes. Without the figure the filesystem is as good; clients see that it is
    /// not known.
    async fn used(&self, pool: PoolUuid, filesystem: FsUuid) -> Option<Bytes> {
        self.sys.thin_used(pool, filesystem).await.ok()
    }

    /// Whether this is the pool that runs: not one that comes up, nor one that was stopped while somebody waited,
    /// even if it was started again.
    fn is_running(&self, running: &Running) -> bool {
        self.running.borrow().get(&running.uuid).is_some_and(|known| std::ptr::eq(&**known, running))
    }

    /// Lowers a pool's availability and shows that, if the pool is shown already.
    fn degrade(&self, running: &Running, to: Availability) {
        let view = running.pool.borrow_mut().degrade(to);
        log::error!("pool is degraded (pool={} availability={})", running.uuid, to.as_str());
        if self.is_running(running) {
            self.show(vec![View::Pool(view)]);
        }
    }

    /// Takes a claim in the directory and waits for the answer.
    async fn take(&self, claim: Claim) -> Result<(), Taken> {
        let (Claim::Take { pool, .. } | Claim::TakeMore { pool, .. }) = claim else {
            panic!("only a take is answered: {claim:?}");
        };
        self.send(self.places.bus, Message::Claim(Box::new(claim)));
        let answer = self.claimed.until(|| {
            let mut claims = self.claims.borrow_mut();
            let place = claims.iter().position(|claimed| claimed.pool == pool || planted(Bug::AnswersSwapped))?;
            claims.remove(place)
        });
        answer.await.outcome
    }

    /// Tells the directory something that has no answer.
    fn claim(&self, claim: Claim) {
        self.send(self.places.bus, Message::Claim(Box::new(claim)));
    }
}

/// What a panic inside an operation is for its caller.
fn bug(doing: &'static str, subject: PoolUuid, message: String) -> Failure {
    Failure::Faulted(Fault::new(doing, format!("pool {subject}"), Why::Bug(message)))
}
