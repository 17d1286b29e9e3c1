//! Long random histories of the whole daemon in one thread: clients on all revisions, faults of every kind, several
//! lives one after the other, all from one seed.
//!
//! A history is a row of beats. Each beat is drawn from the seed and its own number, so a history from which beats
//! were taken out does the same in the others, as far as there still is what they act on: that is how one that fails
//! is made short.
//!
//! Checked after each beat at which nothing is in flight: a client that only listens knows what a listing says; the
//! machine is sound; what is in memory is on record; nothing is claimed for nobody. Checked before each action of the
//! machine: no table is ahead of its record, no volume is noted for two. Checked at all times: every request is
//! answered, in order, within a bounded virtual time, and whatever goes on by itself ends; after each turn what is
//! bounded is within its bounds; a pool that takes no requests takes none; events of thin pools wait for nothing but
//! their pools' own disks; nothing panics; no error is logged and no request meets a fault of the
//! machine while nothing has happened to it. Checked after each restart: what clients saw is there, but for what
//! requests in flight may have changed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use cores::clock::Instant;
use cores::deterministic::{Ended, Universe};
use cores::rt;
use dbus::Message;
use stratisd::engine::grow::Pace;
use stratisd::message::Wish;
use stratisd::model::ids::{FsUuid, PoolUuid};
use stratisd::sys::sim::Machine;
use stratisd::units::Sectors;

use crate::always::{Odd, watch};
use crate::bounds::{self, Watched};
use crate::errors;
use crate::faults::{Death, Kind, Struck, Wounds};
use crate::memory::{are_recorded, is_recorded, unclaimed};
use crate::office::Office;
use crate::requests::{Draw, Menu};
use crate::sound::{Disk, made_good, recorded, sound};
use crate::support::client::{Properties, method};
use crate::support::interface;
use crate::support::picture::Picture;
use crate::support::value::Value;
use crate::world::{Driver, Seen, open};

const DISKS: [&str; 5] = ["/dev/a", "/dev/b", "/dev/c", "/dev/d", "/dev/e"];
const CLIENTS: [&str; 3] = [":1.7", ":1.8", ":1.9"];
/// Beats of one history.
const BEATS: u64 = 60;
/// Of so many beats one strikes the machine.
const STRIKES: u8 = 4;
/// How long a request may take, of virtual time.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long an event of a thin pool may wait, and while disks are slow or say nothing: its pool may be writing its own
/// record, for which a device has 20 s. After a minute the daemon would ask of its own accord.
const EVENT_PATIENCE: Duration = Duration::from_secs(2);
const EVENT_PATIENCE_WITH_DISKS: Duration = Duration::from_secs(50);
/// In these steps pools of every second history grow, in blocks of a MiB; those of the others have all at once.
const SMALL_STEPS: Pace = Pace { step: 256, low_water: 64 };
/// So often thin pools raise events while requests wait for long.
const STIR: Duration = Duration::from_secs(5);
/// Who asks what is recorded.
const READER: &str = ":1.5";
/// How long what an operation starts in the background is let run.
const REST: Duration = Duration::from_secs(3);

/// What became of a history.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Told {
    pub(crate) trace: u64,
    pub(crate) calls: u64,
    pub(crate) signals: u64,
    pub(crate) lives: u64,
    pub(crate) strikes: u64,
    pub(crate) seconds: u64,
}

impl Told {
    pub(crate) fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.signals += other.signals;
        self.lives += other.lives;
        self.strikes += other.strikes;
        self.seconds += other.seconds;
    }
}

impl fmt::Display for Told {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, signals, lives, strikes, seconds, .. } = self;
        write!(out, "{calls} calls, {signals} signals, {lives} lives, {strikes} strikes, {seconds} s of virtual time")
    }
}

/// A promise that was not kept, and what went before.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Broken {
    pub(crate) what: String,
    pub(crate) story: Vec<String>,
}

/// What survives the daemon.
struct World {
    machine: Machine,
    menu: Menu,
    seed: u64,
    wounds: RefCell<Wounds>,
    story: RefCell<Vec<String>>,
    told: Cell<Told>,
    beats: RefCell<Vec<u64>>,
    /// What was found wrong while something was under way.
    odd: Odd,
}

/// What clients saw when a life ended, and what was in flight.
struct Left {
    seen: Seen,
    flying: Vec<Wish>,
    death: Death,
    /// Pools of which memory and disks may disagree, which they have said.
    excused: BTreeSet<PoolUuid>,
    /// Disks are pulled that come back, and with them their pools.
    pulled: bool,
}

/// A daemon that lives.
struct Life {
    world: Rc<World>,
    driver: Rc<Driver>,
    office: Rc<Office>,
    picture: RefCell<Picture>,
    /// Something has happened to the machine after which requests may fail.
    hurt: Cell<bool>,
    /// Calls that are not answered: who, serial, what, since when.
    waiting: RefCell<Vec<(&'static str, u32, String, Instant)>>,
    excused: RefCell<BTreeSet<PoolUuid>>,
}

/// Lives through the beats of a history.
pub(crate) fn live(seed: u64, beats: &[u64]) -> Result<Told, Broken> {
    let machine = Machine::new(seed);
    for (index, disk) in DISKS.iter().enumerate() {
        // The first has room for the least that a pool needs, so it fills up.
        machine.add_disk(disk, Sectors(2_097_152 + 1_572_864 * index as u64));
    }
    let odd = watch(&machine);
    let world = Rc::new(World {
        machine,
        menu: Menu::new(),
        seed,
        wounds: RefCell::default(),
        story: RefCell::default(),
        told: Cell::default(),
        beats: RefCell::new(beats.iter().rev().copied().collect()),
        odd,
    });
    errors::forget();
    let lived = catch_unwind(AssertUnwindSafe(|| world.lives()));
    let story = world.story.borrow().clone();
    let broken = |what: String| Broken { what, story: story.clone() };
    match lived {
        Ok(Ok(())) => Ok(world.told.get()),
        Ok(Err(what)) => Err(broken(what)),
        Err(panic) => Err(broken(errors::text(&*panic))),
    }
}

impl World {
    fn say(&self, what: String) {
        self.story.borrow_mut().push(what);
    }

    fn tell(&self, add: impl FnOnce(&mut Told)) {
        let mut told = self.told.get();
        add(&mut told);
        self.told.set(told);
    }

    /// One life after the other, until no beat is left; then one more, to look.
    fn lives(self: &Rc<Self>) -> Result<(), String> {
        let mut left = None;
        let mut hasher = DefaultHasher::new();
        loop {
            let last = self.beats.borrow().is_empty();
            let number = self.told.get().lives;
            let universe = Universe::new(self.seed.wrapping_add(number));
            let watched = bounds::watch(&universe, &self.odd);
            let world = Rc::clone(self);
            let ended = universe.run(async move { world.life(watched, left.take()).await });
            let now = match ended {
                Ended::Finished(left) => left?,
                Ended::Stalled => return Err("stuck: nothing can run and no timer is pending".to_owned()),
                Ended::TurnLimit => return Err("stuck: something never sleeps".to_owned()),
                Ended::Panicked(panicked) => return Err(panicked.to_string()),
            };
            (universe.trace(), self.machine.trace(), &*self.story.borrow()).hash(&mut hasher);
            self.tell(|told| {
                told.lives += 1;
                told.seconds += universe.now().since(Instant::START).as_secs();
                told.trace = hasher.finish();
            });
            drop(universe);
            match now.death {
                Death::Process => self.machine.kill(),
                Death::Power if number.is_multiple_of(2) => self.machine.crash(self.seed ^ number),
                Death::Power => self.machine.crash_writes(self.seed ^ number),
            }
            self.wounds.borrow_mut().end(&self.machine, now.death);
            self.say(format!("-- {:?} ends", now.death));
            if last {
                return Ok(());
            }
            left = Some(now);
        }
    }

    /// One life of the daemon.
    async fn life(self: Rc<Self>, watched: Watched, left: Option<Left>) -> Result<Left, String> {
        let office = Office::new();
        let pace = if self.seed.is_multiple_of(2) { Pace::default() } else { SMALL_STEPS };
        let opened = rt::within(PATIENCE, open(&self.machine, pace, Some(Rc::clone(&office)))).await;
        let driver = opened.ok_or("stuck: the daemon does not come up")?;
        watched.is(&driver);
        rt::spawn("watchdog", watch_events(Rc::clone(&self), Rc::clone(&driver))).detach();
        let picture = RefCell::new(Picture::first(&*office));
        // What the kernel has found wrong stays wrong as long as it runs.
        let hurt = Cell::new(!self.wounds.borrow().ailing.is_empty());
        let (waiting, excused) = (RefCell::default(), RefCell::default());
        let life = Life { world: self, driver, office, picture, hurt, waiting, excused };
        rt::sleep(REST).await;
        if let Some(left) = left {
            let now = life.driver.seen();
            left.is_there(&now)?;
            if !life.hurt.get() {
                sound(&life.world.machine, &now, "after a restart");
                made_good(&life.world.machine, &now, "after a restart");
            }
        }
        errors::forget();
        loop {
            let beat = life.world.beats.borrow_mut().pop();
            let Some(beat) = beat else { break };
            life.beat(beat).await?;
            if life.world.machine.stopped() {
                break;
            }
        }
        let death = life.world.wounds.borrow().death.unwrap_or(Death::Power);
        let office = &life.office;
        let flying = office.flying.borrow().values().cloned().collect();
        let signals = life.picture.borrow().heard as u64;
        life.world.tell(|told| {
            told.calls += office.calls.get();
            told.signals += signals;
        });
        let mut excused = life.excused.take();
        // One that runs by its record, and could not come up, comes up when it can.
        let (seen, disks) = (life.driver.seen(), Disk::all(&life.world.machine));
        let waits = |pool: &&PoolUuid| recorded(&disks, **pool).is_some_and(|record| record.started());
        excused.extend(seen.stopped.keys().filter(waits));
        // A thin pool whose metadata go bad while it is active is not taken over when it is to be changed for that.
        excused.extend(&life.world.wounds.borrow().ailing);
        let pulled = life.world.wounds.borrow().came_back;
        Ok(Left { seen, flying, death, excused, pulled })
    }
}

impl Life {
    async fn beat(&self, beat: u64) -> Result<(), String> {
        let mut dice = fastrand::Rng::with_seed(self.world.seed ^ beat.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        if dice.u8(..STRIKES) == 0 {
            self.strike(&mut dice).await?;
        }
        if dice.u8(..4) == 0 {
            self.stir(&mut dice);
        }
        // Clients that want the same at once get in each other's way.
        let together = (dice.u8(..6) == 0).then(|| self.world.menu.draw(&mut dice));
        for _ in 0..together.map_or_else(|| dice.usize(1..=CLIENTS.len()), |_| CLIENTS.len()) {
            let member = together.unwrap_or_else(|| self.world.menu.draw(&mut dice));
            self.request(member, &mut dice);
        }
        if dice.u8(..8) == 0 {
            // A client that has asked does not wait for the answer.
            let client = CLIENTS[dice.usize(..CLIENTS.len())];
            self.office.leave(client);
            self.world.say(format!("{client} leaves"));
            self.waiting.borrow_mut().retain(|(waits, ..)| *waits != client);
        }
        if dice.u8(..5) == 0 {
            rt::sleep(Duration::from_micros(dice.u64(..5_000))).await;
        } else {
            self.rest(beat).await?;
        }
        if dice.u8(..3) == 0 {
            self.world.wounds.borrow_mut().heal(&self.world.machine);
        }
        self.calm()
    }

    async fn strike(&self, dice: &mut fastrand::Rng) -> Result<(), String> {
        let kind = Kind::draw(dice);
        let seen = self.driver.seen();
        let struck = {
            let wounds = &mut *self.world.wounds.borrow_mut();
            let idle = self.office.is_idle();
            kind.strike(Struck { dice, machine: &self.world.machine, seen: &seen, wounds, idle })
        };
        if let Some(what) = struck {
            self.world.say(format!("** {what} (must survive: {})", kind.survives));
            self.world.tell(|told| told.strikes += 1);
            self.hurt.set(self.hurt.get() || kind.hurts);
        }
        if self.world.wounds.borrow().came_back {
            // Who works with a disk that is pulled meets a fault; others hear of it first.
            self.hurt.set(self.hurt.get() || !self.office.is_idle());
            rt::sleep(REST).await;
        }
        if !self.world.wounds.borrow().twins.is_empty() {
            rt::sleep(REST).await;
        }
        Ok(())
    }

    /// Thin pools raise events while whatever comes next is under way.
    fn stir(&self, dice: &mut fastrand::Rng) {
        let (machine, driver) = (self.world.machine.clone(), Rc::clone(&self.driver));
        let mut dice = fastrand::Rng::with_seed(dice.u64(..));
        rt::spawn("stir", async move {
            for _ in 0..30 {
                rt::sleep(Duration::from_micros(dice.u64(..4_000))).await;
                raise(&machine, &driver);
            }
        })
        .detach();
    }

    fn request(&self, member: usize, dice: &mut fastrand::Rng) {
        let client = CLIENTS[dice.usize(..CLIENTS.len())];
        let order = {
            let picture = self.picture.borrow();
            let (pool, words) = (String::new(), String::new());
            let mut draw = Draw { dice, picture: &picture, disks: &DISKS, pool, words };
            self.world.menu.order(member, &mut draw)
        };
        let Some((words, message, descriptor)) = order else { return };
        self.send(client, words, message, descriptor);
    }

    fn send(&self, client: &'static str, words: String, message: Message, descriptor: bool) {
        let serial = self.office.send(Some(&*self.driver), client, message, descriptor);
        self.world.say(format!("{client} {serial}: {words}"));
        self.waiting.borrow_mut().push((client, serial, words, rt::now()));
    }

    /// Waits until everything is answered, and what follows has come to rest; then looks at all of it.
    async fn rest(&self, beat: u64) -> Result<(), String> {
        let (began, mut stirred) = (rt::now(), rt::now());
        loop {
            if self.world.machine.stopped() {
                return Ok(());
            }
            let waits = rt::now().since(began);
            if rt::now().since(stirred) > STIR {
                raise(&self.world.machine, &self.driver);
                stirred = rt::now();
            }
            if waits > PATIENCE / 2 {
                // A disk that hangs holds up who wants to make something of it, until it goes on.
                self.world.wounds.borrow_mut().heal(&self.world.machine);
            }
            if waits > PATIENCE {
                let (flying, busy) = (self.office.flying.borrow(), self.driver.busy());
                return Err(format!("a request is not answered, or something does not end: {flying:?} {busy}"));
            }
            self.take_answers()?;
            if self.office.is_idle() && self.waiting.borrow().is_empty() && self.driver.busy() == 0 {
                break;
            }
            rt::sleep(Duration::from_millis(20)).await;
        }
        rt::sleep(REST).await;
        if self.world.machine.stopped() {
            return Ok(());
        }
        if beat.is_multiple_of(4) {
            self.picture.borrow_mut().assert_current(&*self.office, "at rest");
        }
        let seen = self.driver.seen();
        if let Some((_, pool)) =
            self.world.wounds.borrow().twins.iter().find(|(_, pool)| seen.running.contains_key(pool))
        {
            return Err(format!("of a device and its copy one was taken: pool {pool}"));
        }
        if !self.hurt.get() {
            sound(&self.world.machine, &seen, "at rest");
            unclaimed(&self.driver, &self.world.machine, "at rest");
            if beat.is_multiple_of(2) {
                self.compare_memory().await;
            }
        }
        Ok(())
    }

    /// What pools hold in memory is on record.
    async fn compare_memory(&self) {
        let newest = interface("pool", 9);
        let of = |(path, all): (&String, &BTreeMap<String, Properties>)| {
            let uuid = all.get(&newest)?["Uuid"].text().parse().expect("pools have UUIDs");
            Some((path.clone(), uuid))
        };
        let pools: Vec<(String, PoolUuid)> = self.picture.borrow().objects.iter().filter_map(of).collect();
        for (path, pool) in pools {
            let record = self.text(method(&path, &newest, "Metadata").append1(true)).await;
            let all = method(&path, &newest, "FilesystemMetadata").append2((false, ""), true);
            let filesystems = self.text(all).await;
            if let (Some(record), Some(filesystems)) = (record, filesystems) {
                is_recorded(&self.world.machine, pool, &record, "at rest");
                are_recorded(&self.world.machine, pool, &filesystems, "at rest");
            }
        }
    }

    /// What is answered to a question, unless the machine stops meanwhile.
    async fn text(&self, question: Message) -> Option<String> {
        let serial = self.office.send(Some(&*self.driver), READER, question, false);
        loop {
            if self.world.machine.stopped() {
                return None;
            }
            if let Some(reply) = self.office.reply(READER, serial) {
                return Some(Value::body(&reply)[0].text().to_owned());
            }
            rt::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Takes what was announced and answered.
    fn take_answers(&self) -> Result<(), String> {
        let seen = self.driver.seen();
        // Memory and disks may disagree of a pool that takes no changes, and its stop is not recorded.
        let worn = seen.running.keys().filter(|pool| seen.settings.contains(&format!("{pool} no_pool_changes")));
        self.excused.borrow_mut().extend(worn);
        self.picture.borrow_mut().hear(&*self.office);
        let mut waiting = self.waiting.borrow_mut();
        let mut answers = Vec::new();
        waiting.retain(|(client, serial, words, _)| match self.office.reply(client, *serial) {
            Some(reply) => {
                answers.push((*serial, words.clone(), reply));
                false
            }
            None => true,
        });
        if let Some((client, serial, words, _)) = waiting.iter().find(|(.., since)| rt::now().since(*since) > PATIENCE)
        {
            return Err(format!("a request is not answered: {client} {serial} {words}"));
        }
        drop(waiting);
        answers.iter().try_for_each(|(serial, words, reply)| self.answered(*serial, words, reply))
    }

    /// What a client is told to be there is there for it.
    fn answered(&self, serial: u32, words: &str, reply: &Message) -> Result<(), String> {
        let body = Value::body(reply);
        let shown: Vec<String> = body.iter().skip(1).take(2).map(ToString::to_string).collect();
        self.world.say(format!("{serial} is answered: {}", shown.join(" ")));
        let made = words.starts_with("Create") || words.starts_with("Snapshot") || words.starts_with("Start");
        let (Some(first), Some(Value::Unsigned('q', 0))) = (body.first().filter(|_| made), body.get(1)) else {
            return Ok(());
        };
        let picture = self.picture.borrow();
        let mut paths = Vec::new();
        collect(first, &mut paths);
        match paths.iter().find(|path| **path == "/" || !picture.objects.contains_key(*path)) {
            Some(path) if first.members()[0].is_true() => {
                Err(format!("what is replied is not shown: {words} gives {path}"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Nothing is wrong that nothing has made so.
    fn calm(&self) -> Result<(), String> {
        let bugs = self.world.machine.bugs();
        if let Some(bug) = bugs.first() {
            return Err(format!("data would be lost: {bug}"));
        }
        if let Some(odd) = &*self.world.odd.borrow() {
            return Err(odd.clone());
        }
        if let Some(wish) = self.office.done.borrow().first() {
            return Err(format!("a pool that takes no requests takes one: {wish:?}"));
        }
        let logged = errors::take();
        if let Some(line) = logged.iter().find(|line| line.contains("panicked")) {
            return Err(format!("a panic: {line}"));
        }
        if self.hurt.get() {
            self.office.faults.borrow_mut().clear();
            return Ok(());
        }
        if let Some(fault) = self.office.faults.borrow().first() {
            return Err(format!("a fault without a reason: {fault}"));
        }
        // A pool whose disk is pulled says so, and one whose thin metadata were damaged.
        let reasons = ["a pool stays stopped", "the metadata of a thin pool is damaged"];
        let mut odd = logged.iter().filter(|line| !reasons.iter().any(|reason| line.starts_with(reason)));
        odd.next().map_or(Ok(()), |line| Err(format!("an error without a reason: {line}")))
    }
}

/// Thin pools of running pools raise events for nothing.
fn raise(machine: &Machine, driver: &Driver) {
    driver.seen().running.keys().for_each(|pool| machine.raise(*pool));
}

/// Sees that events of thin pools are answered, whatever else goes on. Those of a pool that was not running when they
/// were raised nobody has to answer.
async fn watch_events(world: Rc<World>, driver: Rc<Driver>) {
    // By the number of the event: since when, if that counts, and for how long it may wait.
    let mut waiting: BTreeMap<u64, (Option<Instant>, Duration)> = BTreeMap::new();
    while !world.machine.stopped() {
        rt::sleep(Duration::from_millis(200)).await;
        let events = world.machine.unanswered();
        waiting.retain(|number, _| events.values().any(|other| other == number));
        for (pool, number) in events {
            let runs = driver.runs(pool);
            let (since, patience) = waiting.entry(number).or_insert((runs.then(rt::now), EVENT_PATIENCE));
            if world.wounds.borrow().slow_down() {
                *patience = EVENT_PATIENCE_WITH_DISKS;
            }
            *since = since.filter(|_| runs);
            if since.is_some_and(|since| rt::now().since(since) > *patience) {
                let late = || format!("an event is not answered: of pool {pool}, for {patience:?}");
                world.odd.borrow_mut().get_or_insert_with(late);
            }
        }
    }
}

/// All object paths in a value.
fn collect(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Path(path) => into.push(path.clone()),
        Value::Struct(members) | Value::Array(_, members) => members.iter().for_each(|member| collect(member, into)),
        _ => {}
    }
}

// ---- what is there after a restart ---------------------------------------------------------------

/// What a request in flight may have changed.
#[derive(Clone, Default)]
struct Touched {
    pools: BTreeSet<PoolUuid>,
    filesystems: BTreeSet<FsUuid>,
    names: BTreeSet<(PoolUuid, String)>,
    /// Pools in which the origins of snapshots may have changed.
    origins: BTreeSet<PoolUuid>,
}

impl Touched {
    fn of(wishes: &[Wish]) -> Self {
        let mut touched = Self::default();
        for wish in wishes {
            match wish {
                Wish::CreateFilesystems(pool, specs) => {
                    touched.names.extend(specs.iter().map(|spec| (*pool, spec.name.to_string())));
                }
                Wish::SnapshotFilesystem(pool, _, name) => drop(touched.names.insert((*pool, name.to_string()))),
                Wish::DestroyFilesystems(pool, all) => {
                    touched.filesystems.extend(all);
                    touched.origins.insert(*pool);
                }
                Wish::SetFilesystemName(_, filesystem, _)
                | Wish::SetSizeLimit(_, filesystem, _)
                | Wish::SetMerge(_, filesystem, _) => drop(touched.filesystems.insert(*filesystem)),
                Wish::Metadata(..) | Wish::FilesystemMetadata(..) | Wish::Keys(_) => {}
                other => drop(touched.pools.insert(other.pool())),
            }
        }
        touched
    }
}

impl Left {
    /// Everything that clients saw is there, but for what was in flight.
    fn is_there(&self, now: &Seen) -> Result<(), String> {
        let touched = Touched::of(&self.flying);
        let shown = |seen: &Seen, pool| format!("{:?} {:?}", seen.running.get(pool), seen.stopped.get(pool));
        let about = |what: &str, pool| {
            let flying = &self.flying;
            format!(
                "{what}: pool {pool}\nbefore {}\nnow {}\nin flight {flying:?}",
                shown(&self.seen, pool),
                shown(now, pool)
            )
        };
        for pool in now.running.keys().chain(now.stopped.keys()).filter(|pool| !touched.pools.contains(pool)) {
            // A pool that was listed nowhere may come back with its disks.
            if !self.pulled && !self.seen.running.contains_key(pool) && !self.seen.stopped.contains_key(pool) {
                return Err(about("a pool that nobody asked for", pool));
            }
        }
        let excused = |pool: &PoolUuid| touched.pools.contains(pool) || self.excused.contains(pool);
        for (pool, listed) in self.seen.stopped.iter().filter(|(pool, _)| !excused(pool)) {
            // The name is on disks that may have been pulled.
            if now.stopped.get(pool).is_none_or(|then| then.0 != listed.0 && !self.pulled) {
                return Err(about("a stopped pool is lost", pool));
            }
        }
        for pool in self.seen.running.keys().filter(|pool| !excused(pool)) {
            self.pool_is_there(*pool, now, &touched).map_err(|what| about(&what, pool))?;
        }
        Ok(())
    }

    fn pool_is_there(&self, pool: PoolUuid, now: &Seen, touched: &Touched) -> Result<(), String> {
        let slot = format!("{pool} slot ");
        let is_encrypted = self.seen.settings.iter().any(|line| line.starts_with(&slot));
        let (name, filesystems) = &self.seen.running[&pool];
        // What a locked pool has is not shown.
        if is_encrypted && self.death == Death::Power {
            let locked = now.stopped.contains_key(&pool);
            return locked.then_some(()).ok_or_else(|| "an encrypted pool is not locked".to_owned());
        }
        let Some((name_now, filesystems_now)) = now.running.get(&pool) else {
            // One that was stopped without a record may come back and have its name first.
            let mut back = now.running.iter().filter(|(other, _)| self.excused.contains(other));
            let taken = back.any(|(_, (other, _))| other == name);
            return taken.then_some(()).ok_or_else(|| "a running pool is lost".to_owned());
        };
        // A save that failed, as what came before was to be saved again, may have reached a disk all the same.
        let torn = self.seen.settings.contains(&format!("{pool} no_ipc_requests"));
        if name != name_now && !torn {
            return Err("a pool has another name".to_owned());
        }
        let touched = &self.reverted(pool, touched.clone());
        for (uuid, name) in filesystems.iter().filter(|(uuid, _)| !touched.filesystems.contains(uuid)) {
            if filesystems_now.get(uuid) != Some(name) {
                return Err(format!("filesystem {uuid} {name} is lost or renamed"));
            }
        }
        for (uuid, name) in filesystems_now.iter().filter(|(uuid, _)| !filesystems.contains_key(uuid)) {
            if !touched.names.contains(&(pool, name.clone())) {
                return Err(format!("nobody asked for filesystem {uuid} {name}"));
            }
        }
        let settings = |seen: &Seen| self.settings(seen, pool, touched);
        let (before, now) = (settings(&self.seen), settings(now));
        if torn || before == now { Ok(()) } else { Err(format!("settings: {:?}", before.symmetric_difference(&now))) }
    }

    /// A start after a power failure makes the reverts that were asked for: what is to be merged and its origin are one
    /// then, and other snapshots may have another origin.
    fn reverted(&self, pool: PoolUuid, mut touched: Touched) -> Touched {
        let says = |line: &String| self.seen.settings.contains(line);
        for uuid in self.seen.running[&pool].1.keys().filter(|_| self.death == Death::Power) {
            if says(&format!("{uuid} is to be merged")) {
                let of = format!("{uuid} of ");
                let origin = self.seen.settings.iter().find_map(|line| line.strip_prefix(&of)?.parse().ok());
                touched.filesystems.extend(origin.into_iter().chain([*uuid]));
                touched.origins.insert(pool);
            }
        }
        touched
    }

    /// What is set of a pool and of what it has, as far as that outlives a daemon.
    fn settings(&self, seen: &Seen, pool: PoolUuid, touched: &Touched) -> BTreeSet<String> {
        let (_, filesystems) = &self.seen.running[&pool];
        let of_pool = |line: &str| line.starts_with(&pool.to_string());
        let of_filesystem = |line: &str| {
            let mut own = filesystems.keys().filter(|uuid| !touched.filesystems.contains(uuid));
            own.any(|uuid| line.starts_with(&uuid.to_string()))
        };
        let fleeting = |line: &str| {
            let size = line.contains(" has ");
            let space = line.ends_with("no space") || line.contains(" no_");
            let origin = touched.origins.contains(&pool) && line.contains(" of ");
            size || space || origin
        };
        let own = seen.settings.iter().filter(|line| of_pool(line) || of_filesystem(line));
        own.filter(|line| !fleeting(line)).cloned().collect()
    }
}

// ---- tests ---------------------------------------------------------------------------------------

/// Takes out beats as long as the history still breaks the same promise.
fn shortest(seed: u64, broken: Broken, beats: Vec<u64>) -> (Broken, Vec<u64>) {
    let kind = |broken: &Broken| broken.what.split(':').next().unwrap_or_default().to_owned();
    let wanted = kind(&broken);
    let (mut best, mut beats) = (broken, beats);
    let mut size = beats.len() / 2;
    while size > 0 {
        let mut start = 0;
        while start < beats.len() {
            let rest: Vec<u64> = beats
                .iter()
                .enumerate()
                .filter(|(at, _)| *at < start || *at >= start + size)
                .map(|(_, beat)| *beat)
                .collect();
            match live(seed, &rest) {
                Err(again) if kind(&again) == wanted => (best, beats) = (again, rest),
                Ok(_) | Err(_) => start += size,
            }
        }
        size /= 2;
    }
    (best, beats)
}

/// Lives through a history; one that breaks a promise is made short and told.
pub(crate) fn holds(seed: u64) -> Told {
    let beats: Vec<u64> = (0..BEATS).collect();
    match live(seed, &beats) {
        Ok(told) => told,
        // Whose mistake it is is known.
        Err(broken) if std::env::var("ZOO").is_ok() => panic!("=> {}", broken.what),
        Err(broken) => {
            let (broken, beats) = shortest(seed, broken, beats);
            panic!("SEED={seed}: {} beats:\n{}\n=> {}", beats.len(), broken.story.join("\n"), broken.what);
        }
    }
}

#[test]
fn random_histories_keep_every_promise() {
    let seed = crate::seed();
    let replay = crate::given("SEED").is_some();
    let count = crate::given("HISTORIES").unwrap_or(if replay { 1 } else { 40 });
    println!("SEED={seed}: and those that follow, {count} histories");
    let began = std::time::Instant::now();
    let mut all = Told::default();
    for number in 0..count {
        if cfg!(feature = "zoo") {
            println!("history {number}");
        }
        let seed = seed.wrapping_add(number);
        let told = holds(seed);
        if replay {
            println!("SEED={seed}: trace {:016x}", told.trace);
        }
        all.add(told);
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{count} histories: {all}; {:.0} calls/s, {:.0} s/s",
        all.calls as f64 / seconds,
        all.seconds as f64 / seconds
    );
}

#[test]
fn a_hundred_replays_of_a_history_are_identical() {
    let beats: Vec<u64> = (0..BEATS / 3).collect();
    let first = live(7, &beats);
    assert!(first.is_ok(), "{first:#?}");
    for replay in 1..100 {
        assert_eq!(live(7, &beats), first, "replay {replay}");
    }
}
