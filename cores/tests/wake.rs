//! Wake-ups of a glommio core: none is lost, urgent tasks do not wait for the busy ones, timers fire
//! on a core that never pauses.
//!
//! Nothing here measures time; a lost wake-up is a test that never ends.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use cores::executor::{self, CoreHandle, CoreSpec};
use cores::limits::{SINGLETON_PANIC_EXIT, SLOW_TURN};
use cores::rt;
use ring::{Endpoint, Sizes, mesh};

fn core<T: Send + 'static, F: Future<Output = T> + 'static>(
    name: &str,
    body: impl FnOnce() -> F + Send + 'static,
) -> CoreHandle<T> {
    executor::start(CoreSpec { name: name.to_owned(), cpu: None }, body).expect("an executor starts")
}

async fn next(end: &Endpoint<u64>, messages: &mut Vec<(usize, u64)>) {
    while end.receive(messages, 64) == 0 {
        end.wait().await;
    }
}

/// Passes one message to and fro; both cores sleep most of the time.
fn ping_pong(rounds: u64) -> u64 {
    let mut ends = mesh(2, Sizes { ring_slots: 4, outbox_max: 4 });
    let (second, first) = (ends.pop().expect("two endpoints"), ends.pop().expect("two endpoints"));
    let play = move |end: Endpoint<u64>, serves: bool| async move {
        let peer = 1 - end.id();
        let (mut messages, mut seen) = (Vec::new(), 0);
        if serves {
            end.send(peer, ring::Lane::Normal, 0).expect("one message is in flight");
        }
        while seen < rounds {
            next(&end, &mut messages).await;
            for (_, message) in messages.drain(..) {
                seen = message + 1;
                end.send(peer, ring::Lane::Normal, seen).expect("one message is in flight");
            }
        }
        seen
    };
    let first = core("ping", move || async move { rt::spawn_urgent("play", play(first, true)).await });
    let second = core("pong", move || async move { rt::spawn("play", play(second, false)).await });
    [first, second].map(|core| core.join().expect("no panic").expect("no panic")).into_iter().sum()
}

#[test]
fn no_wake_up_between_sleeping_cores_is_lost() {
    // Threads that burn the CPUs make the scheduler stop a core at the worst moments.
    let over = Arc::new(AtomicU64::new(0));
    let burners = [(); 4].map(|()| {
        let over = over.clone();
        thread::spawn(move || {
            while over.load(Ordering::Relaxed) == 0 {
                std::hint::spin_loop();
            }
        })
    });
    let seen = ping_pong(4_000);
    over.store(1, Ordering::Relaxed);
    for burner in burners {
        burner.join().expect("a burner does not panic");
    }
    assert!(seen >= 8_000, "{seen}");
}

/// The answering core sleeps for the time that a message names, in a task of its own, while the asking thread aims its
/// next message at the end of that sleep.
fn alarms_meet_messages(rounds: u64) -> u64 {
    let mut ends = mesh(2, Sizes { ring_slots: 4, outbox_max: 4 });
    let (core_end, asker) = (ends.pop().expect("two endpoints"), ends.pop().expect("two endpoints"));
    let answered = Arc::new(AtomicU64::new(0));
    let answers = answered.clone();
    let core = core("alarm", move || async move {
        let mut messages = Vec::new();
        let mut seen = 0;
        while seen < rounds {
            next(&core_end, &mut messages).await;
            for (_, pause) in messages.drain(..) {
                rt::spawn("sleeper", rt::sleep(Duration::from_micros(pause))).detach();
                seen += 1;
                answers.store(seen, Ordering::Release);
            }
        }
        seen
    });
    for round in 0..rounds {
        let pause = 20 + round % 60;
        asker.send(1, ring::Lane::Normal, pause).expect("one message is in flight");
        while answered.load(Ordering::Acquire) <= round {
            thread::yield_now();
        }
        // Around the end of the sleep, a little earlier or later each time.
        let aim = Duration::from_micros(pause + round % 37);
        let sent = Instant::now();
        while sent.elapsed() < aim {
            std::hint::spin_loop();
        }
    }
    core.join().expect("no panic")
}

#[test]
fn no_message_is_lost_when_a_sleep_ends_as_it_arrives() {
    assert_eq!(alarms_meet_messages(20_000), 20_000);
}

#[test]
fn a_waker_may_be_cloned_and_woken_from_any_thread_any_number_of_times() {
    let woken = core("storm", || async {
        let (sender, wakers) = mpsc::channel();
        let woken = Arc::new(AtomicU64::new(0));
        let storm = woken.clone();
        let thread = thread::spawn(move || {
            let waker: std::task::Waker = wakers.recv().expect("the task gives its waker");
            // More than glommio's own counter of 16 bits would hold.
            let clones: Vec<_> = (0..100_000).map(|_| waker.clone()).collect();
            clones.iter().for_each(std::task::Waker::wake_by_ref);
            storm.store(1, Ordering::Release);
            clones.into_iter().for_each(std::task::Waker::wake);
            waker
        });
        poll_fn(|context| {
            // The thread may be gone already; then the waker is not needed.
            drop(sender.send(context.waker().clone()));
            if woken.load(Ordering::Acquire) == 0 { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        thread.join().expect("the storm does not panic")
    });
    let late = woken.join().expect("no panic");
    // The core is gone; this must do nothing.
    late.wake();
}

/// A future that is always runnable and asks for nothing: each turn burns 20 µs and wakes itself.
fn restless(over: Rc<Cell<bool>>, turns: Rc<Cell<u64>>) -> impl Future<Output = ()> {
    poll_fn(move |context| {
        let began = Instant::now();
        while began.elapsed() < Duration::from_micros(20) {
            std::hint::spin_loop();
        }
        turns.set(turns.get() + 1);
        context.waker().wake_by_ref();
        if over.get() { Poll::Ready(()) } else { Poll::Pending }
    })
}

#[test]
fn timers_fire_and_messages_arrive_on_a_core_that_never_pauses() {
    let mut ends = mesh(2, Sizes { ring_slots: 64, outbox_max: 64 });
    let (busy, sender) = (ends.pop().expect("two endpoints"), ends.pop().expect("two endpoints"));
    let (up, is_up) = mpsc::channel();
    let core = core("busy", move || async move {
        let (over, turns) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        for _ in 0..50 {
            rt::spawn("restless", restless(over.clone(), turns.clone())).detach();
        }
        for _ in 0..5 {
            rt::sleep(Duration::from_millis(1)).await;
        }
        let (receiver, counted) = (busy, turns.clone());
        rt::spawn_urgent("receiver", async move {
            up.send(()).expect("the test waits for this");
            let mut messages = Vec::new();
            while messages.len() < 20 {
                next(&receiver, &mut messages).await;
                // A normal task in between shows that the urgent ones do not take the core over.
                let before = counted.get();
                let other = counted.clone();
                rt::spawn("other", async move { assert!(other.get() >= before) }).await.expect("no panic");
            }
        })
        .await
        .expect("no panic");
        over.set(true);
        turns.get()
    });
    is_up.recv().expect("the core comes so far");
    for message in 0..20 {
        sender.send(1, ring::Lane::Normal, message).expect("the receiver keeps up");
        thread::yield_now();
    }
    assert!(core.join().expect("no panic") > 0);
}

#[test]
fn an_urgent_task_waits_for_one_turn_of_the_others_at_most() {
    let turns = core("order", || async {
        let (over, turns) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        for _ in 0..50 {
            rt::spawn("restless", restless(over.clone(), turns.clone())).detach();
        }
        rt::sleep(Duration::from_millis(1)).await;
        let mut waited = Vec::new();
        for _ in 0..20 {
            rt::yield_now().await;
            let (before, counted) = (turns.get(), turns.clone());
            waited.push(rt::spawn_urgent("urgent", async move { counted.get() - before }).await.expect("no panic"));
        }
        over.set(true);
        waited
    });
    let waited = turns.join().expect("no panic");
    assert!(waited.iter().all(|turns| *turns <= 1), "{waited:?}");
}

#[test]
fn a_core_ends_with_its_main_future_whatever_else_is_runnable() {
    for _ in 0..20 {
        let core = core("ends", || async {
            let (over, turns) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
            for _ in 0..10 {
                rt::spawn("restless", restless(over.clone(), turns.clone())).detach();
                rt::spawn_urgent("restless", restless(over.clone(), turns.clone())).detach();
            }
            rt::yield_now().await;
        });
        core.join().expect("tasks that are left over do not disturb the end");
    }
}

#[test]
fn a_slow_turn_is_kept_with_its_task_and_stage() {
    let slow = core("slow", || async {
        let task = rt::spawn("dawdler", async {
            rt::stage("burning");
            let began = Instant::now();
            while began.elapsed() <= SLOW_TURN {
                std::hint::spin_loop();
            }
        });
        task.await.expect("no panic");
        (rt::slow_turns(), rt::counters())
    });
    let (turns, counters) = slow.join().expect("no panic");
    let turn = turns.iter().find(|turn| turn.task == "dawdler").expect("the slow turn is kept");
    assert!(turn.stage == "burning" && turn.took > SLOW_TURN, "{turn:?}");
    assert!(counters.busy >= turn.took && counters.slow >= 1, "{counters:?}");
}

/// Set in the process that is to end with the panic of a singleton.
const CHILD: &str = "CORES_TEST_CHILD";

#[test]
fn a_panic_of_a_singleton_ends_the_process() {
    if std::env::var_os(CHILD).is_some() {
        let core = core("single", || async {
            rt::spawn_singleton("loop", async { panic!("the loop, on purpose") });
            std::future::pending::<()>().await;
        });
        core.join().expect("the process ends before this");
    }
    let mut child = Command::new(std::env::current_exe().expect("this test is a program"));
    child.args(["--exact", "a_panic_of_a_singleton_ends_the_process"]).env(CHILD, "1");
    let output = child.output().expect("this test can be started again");
    assert_eq!(output.status.code(), Some(SINGLETON_PANIC_EXIT), "{output:?}");
}

/// Panics when it is dropped.
struct Explosive;

impl Drop for Explosive {
    fn drop(&mut self) {
        panic!("a destructor, on purpose");
    }
}

#[test]
fn a_result_that_panics_when_nobody_wants_it_does_not_end_the_core() {
    let core = core("result", || async {
        rt::spawn("explosive", async { Explosive }).detach();
        rt::sleep(Duration::from_millis(1)).await;
        7
    });
    assert_eq!(core.join(), Ok(7));
}
