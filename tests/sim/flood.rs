//! Clients that ask for more than they may, and do not read what they are answered: they are refused, nothing passes
//! its bound in any turn, every call is answered once, and who asks for little is served.

use std::rc::Rc;
use std::time::Duration;

use cores::deterministic::Universe;
use cores::rt;
use dbus::Message;
use stratisd::engine::grow::Pace;
use stratisd::limits::{CALLS_MAX, CALLS_PER_SENDER_MAX, SENDER_BYTES_MAX};
use stratisd::sys::sim::Machine;

use crate::always::Odd;
use crate::bounds;
use crate::crash::REST;
use crate::office::Office;
use crate::sound::sound;
use crate::support::client::method;
use crate::support::picture::{Picture, Source};
use crate::support::{OBJECT_MANAGER, PROPERTIES, TOP, interface};
use crate::world::{Driver, create_filesystem, create_pool, live, open};

const LIMITS_EXCEEDED: &str = "org.freedesktop.DBus.Error.LimitsExceeded";
/// So many clients have all calls there may be in flight.
const CROWD: usize = CALLS_MAX / CALLS_PER_SENDER_MAX;
/// Who asks for little.
const INNOCENT: &str = ":1.99";

/// How the calls of a client ended.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    done: usize,
    over: usize,
}

/// A daemon with one pool, and clients.
struct Scene {
    driver: Rc<Driver>,
    office: Rc<Office>,
    pool: String,
    /// What who only listens knows.
    picture: Picture,
    /// Calls that are owed an answer.
    owed: Vec<(String, u32)>,
}

impl Scene {
    fn send(&mut self, client: &str, call: Message) {
        let serial = self.office.send(Some(&*self.driver), client, call, false);
        self.owed.push((client.to_owned(), serial));
    }

    /// Asks for what a pool works on; what it says is read, and so nothing changes.
    fn metadata(&self) -> Message {
        method(&self.pool, &interface("pool", 9), "Metadata").append1(true)
    }

    /// Waits until all is answered, each call once, and counts.
    async fn answers(&mut self, of: impl Fn(&str) -> bool) -> Answers {
        self.office.reads(true);
        let mut answers = Answers::default();
        for _ in 0..10_000 {
            self.owed.retain(|(client, serial)| {
                let Some(mut reply) = self.office.reply(client, *serial) else { return true };
                if of(client) {
                    match reply.as_result() {
                        Ok(_) => answers.done += 1,
                        Err(error) => {
                            assert_eq!(error.name(), Some(LIMITS_EXCEEDED), "{error:?}");
                            answers.over += 1;
                        }
                    }
                }
                false
            });
            if self.owed.is_empty() {
                return answers;
            }
            rt::sleep(Duration::from_millis(5)).await;
        }
        panic!("{} calls are not answered", self.owed.len());
    }
}

/// A story with clients over a machine with a pool, watched at every turn.
fn story<F: Future<Output = ()> + 'static>(seed: u64, tell: impl FnOnce(Scene) -> F + 'static) {
    let machine = Machine::new(1);
    for disk in ["/dev/a", "/dev/b"] {
        machine.add_disk(disk, crate::DISK);
    }
    live(1, &machine, |driver| async move {
        driver.call(create_pool(&["/dev/a", "/dev/b"])).await.expect("nothing is in the way");
        driver.call(create_filesystem("one")).await.expect("nothing is in the way");
    })
    .finished();
    machine.kill();
    let (universe, odd) = (Universe::new(seed), Odd::default());
    let (watched, own) = (bounds::watch(&universe, &odd), machine.clone());
    let ended = universe.run(async move {
        let office = Office::new();
        let driver = open(&own, Pace::default(), Some(Rc::clone(&office))).await;
        watched.is(&driver);
        rt::sleep(REST).await;
        let picture = Picture::first(&*office);
        let newest = interface("pool", 9);
        let pool = office.objects().into_iter().find(|(_, all)| all.contains_key(&newest)).expect("there is one").0;
        tell(Scene { driver: Rc::clone(&driver), office, pool, picture, owed: Vec::new() }).await;
        rt::sleep(REST).await;
        assert_eq!(driver.busy(), 0, "something is still under way");
        sound(&own, &driver.seen(), "after the flood");
    });
    ended.finished();
    assert_eq!(*odd.borrow(), None, "seed {seed}");
}

#[test]
fn a_client_that_floods_is_refused_and_another_is_served() {
    story(1, |mut scene| async move {
        scene.office.reads(false);
        for _ in 0..CALLS_PER_SENDER_MAX + 100 {
            let call = scene.metadata();
            scene.send(":1.7", call);
        }
        let call = scene.metadata();
        scene.send(INNOCENT, call);
        assert_eq!(scene.office.load().calls, CALLS_PER_SENDER_MAX + 1);
        let answers = scene.answers(|client| client == ":1.7").await;
        assert_eq!((answers.done, answers.over), (CALLS_PER_SENDER_MAX, 100));
        let call = scene.metadata();
        scene.send(":1.7", call);
        let answers = scene.answers(|client| client == ":1.7").await;
        assert_eq!((answers.done, answers.over), (1, 0), "what was answered makes room");
    });
}

#[test]
fn clients_together_have_a_bound() {
    story(2, |mut scene| async move {
        for client in 0..=CROWD {
            for _ in 0..CALLS_PER_SENDER_MAX {
                let call = scene.metadata();
                scene.send(&format!(":2.{client}"), call);
            }
        }
        assert_eq!(scene.office.load().calls, CALLS_MAX);
        let late = format!(":2.{CROWD}");
        let answers = scene.answers(|client| client == late).await;
        assert_eq!((answers.done, answers.over), (0, CALLS_PER_SENDER_MAX), "the last one came late");
    });
}

#[test]
fn answers_that_nobody_reads_are_bounded_for_each_client() {
    story(3, |mut scene| async move {
        scene.office.reads(false);
        let (mut sent, list) = (0, || method(TOP, OBJECT_MANAGER, "GetManagedObjects"));
        while scene.office.load().bytes_of_one < SENDER_BYTES_MAX - (1 << 20) {
            scene.send(":1.7", method(&scene.pool.clone(), "org.freedesktop.DBus.Introspectable", "Introspect"));
            scene.send(":1.7", list());
            sent += 2;
        }
        for _ in 0..sent {
            scene.send(":1.7", list());
            scene.send(":1.7", method(&scene.pool.clone(), "org.freedesktop.DBus.Introspectable", "Introspect"));
        }
        scene.send(INNOCENT, list());
        let answers = scene.answers(|client| client == ":1.7").await;
        assert!(answers.done >= sent && answers.over > sent, "{answers:?} of {}", 3 * sent);
        scene.send(INNOCENT, list());
        assert_eq!(scene.answers(|client| client == INNOCENT).await.over, 0);
    });
}

#[test]
fn random_floods_keep_their_bounds_and_are_answered() {
    for seed in 0..crate::given("FLOODS").unwrap_or(3) {
        story(seed, move |mut scene| async move {
            let mut dice = fastrand::Rng::with_seed(seed);
            for _ in 0..24 {
                scene.office.reads(dice.bool());
                let client = format!(":1.{}", 7 + dice.u8(..4));
                let kind = dice.u8(..5);
                for _ in 0..dice.usize(..CALLS_PER_SENDER_MAX) {
                    let newest = interface("pool", 9);
                    let call = match kind {
                        0 => scene.metadata(),
                        1 => method(TOP, OBJECT_MANAGER, "GetManagedObjects"),
                        2 => method(&scene.pool, PROPERTIES, "Get").append2(&newest, "Name"),
                        3 => method(&scene.pool, &newest, "SetName").append1(["p", "q"][dice.usize(..2)]),
                        _ => method(&scene.pool, PROPERTIES, "GetAll").append1(&newest),
                    };
                    scene.send(&client, call);
                }
                rt::sleep(Duration::from_micros(dice.u64(..3_000))).await;
            }
            let answers = scene.answers(|_| true).await;
            assert!(answers.done > 0, "{answers:?}");
            let mut picture = scene.picture;
            picture.hear(&*scene.office);
            picture.assert_current(&*scene.office, "after the flood");
        });
    }
}
