//! The contract of the runtime facade: each body runs under glommio and in a universe.
//!
//! Deliberately absent: what only one of the two has (seeds: see `universe.rs`; descriptors: see
//! `side.rs`).

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use cores::deterministic::Universe;
use cores::executor::{self, CoreSpec};
use cores::rt::{self, Spent};

/// Seeds tried in a universe for each body.
const SEEDS: u64 = 20;

fn on_a_core<T: Send + 'static, F: Future<Output = T> + 'static>(body: impl FnOnce() -> F + Send + 'static) -> T {
    let core = CoreSpec { name: "test".to_owned(), cpu: None };
    executor::start(core, body).expect("an executor starts").join().expect("the main future does not panic")
}

fn under_both<F: Future<Output = ()> + 'static>(body: fn() -> F) {
    for seed in 0..SEEDS {
        Universe::new(seed).run(body()).finished();
    }
    on_a_core(body);
}

#[test]
fn a_join_gives_the_result_of_its_task() {
    under_both(|| async {
        let early = rt::spawn("early", async { 7 });
        let late = rt::spawn("late", async {
            rt::sleep(Duration::from_millis(2)).await;
            "done"
        });
        assert_eq!(late.await, Ok("done"));
        assert!(early.is_finished());
        assert_eq!(early.await, Ok(7));
    });
}

#[test]
fn a_panic_is_the_result_of_its_task_and_of_no_other() {
    under_both(|| async {
        let other = rt::spawn("other", async {
            rt::sleep(Duration::from_millis(1)).await;
            1
        });
        let fault = rt::spawn("faulty", async {
            rt::yield_now().await;
            let count = 3;
            assert_eq!(count, 4, "on purpose");
        })
        .await
        .expect_err("the task panics");
        assert_eq!(fault.task, "faulty");
        assert!(fault.message.contains("on purpose"), "{}", fault.message);
        assert_eq!(other.await, Ok(1));
    });
}

/// Panics when it is dropped.
struct Explosive;

impl Drop for Explosive {
    fn drop(&mut self) {
        panic!("a destructor, on purpose");
    }
}

#[test]
fn a_panic_in_a_destructor_stays_in_its_task() {
    under_both(|| async {
        let fault = rt::spawn("explosive", async {
            let _explosive = Explosive;
            rt::yield_now().await;
        })
        .await
        .expect_err("the destructor of a local panics inside the poll");
        assert!(fault.message.contains("on purpose"), "{}", fault.message);
    });
}

#[test]
fn dropping_a_join_detaches_the_task() {
    under_both(|| async {
        let ran = Rc::new(Cell::new(false));
        let mark = ran.clone();
        drop(rt::spawn("detached", async move {
            rt::sleep(Duration::from_millis(1)).await;
            mark.set(true);
        }));
        while !ran.get() {
            rt::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn sleepers_wake_in_the_order_of_their_deadlines() {
    under_both(|| async {
        let woken = Rc::new(RefCell::new(Vec::new()));
        let sleepers = [30u64, 10, 20].map(|milliseconds| {
            let woken = woken.clone();
            rt::spawn("sleeper", async move {
                let began = rt::now();
                rt::sleep(Duration::from_millis(milliseconds)).await;
                assert!(rt::now().since(began) >= Duration::from_millis(milliseconds));
                woken.borrow_mut().push(milliseconds);
            })
        });
        for sleeper in sleepers {
            sleeper.await.expect("a sleeper does not panic");
        }
        assert_eq!(*woken.borrow(), [10, 20, 30]);
    });
}

#[test]
fn a_task_that_yields_lets_the_others_run() {
    under_both(|| async {
        let done = Rc::new(Cell::new(0));
        for _ in 0..3 {
            let done = done.clone();
            rt::spawn("short", async move { done.set(done.get() + 1) }).detach();
        }
        let urgent = done.clone();
        rt::spawn_urgent("urgent", async move { urgent.set(urgent.get() + 1) }).detach();
        // This loop ends only if yielding lets all four have their turn.
        while done.get() < 4 {
            rt::yield_now().await;
        }
    });
}

#[test]
fn the_stage_sticks_to_its_task() {
    under_both(|| async {
        rt::stage("outer");
        let inner = rt::spawn("inner", async {
            assert_eq!(rt::running(), ("inner", ""));
            rt::stage("first");
            rt::yield_now().await;
            rt::running()
        });
        rt::yield_now().await;
        assert_eq!(rt::running(), ("main", "outer"));
        assert_eq!(inner.await, Ok(("inner", "first")));
        assert_eq!(rt::running(), ("main", "outer"));
    });
}

#[test]
fn turns_and_messages_are_counted() {
    under_both(|| async {
        let before = rt::counters();
        rt::count_messages(3);
        rt::set_ring_depth(2);
        for _ in 0..5 {
            rt::yield_now().await;
        }
        let after = rt::counters();
        assert_eq!((after.messages - before.messages, after.ring_depth), (3, 2));
        // A core has tasks of its own.
        assert!(after.turns - before.turns >= 5, "{} turns", after.turns - before.turns);
    });
}

#[test]
fn random_values_and_clocks_are_there() {
    under_both(|| async {
        assert_ne!(rt::random(), rt::random());
        assert!(rt::wall().seconds > 1_700_000_000, "some time after 2023");
        assert!(rt::wall().nanoseconds < 1_000_000_000);
    });
}

#[test]
fn a_core_bears_its_name_and_ends_with_its_main_future() {
    let name = on_a_core(|| async {
        rt::spawn("endless", async {
            loop {
                rt::sleep(Duration::from_secs(1_000)).await;
            }
        })
        .detach();
        std::fs::read_to_string("/proc/thread-self/comm").expect("every thread has a name")
    });
    assert_eq!(name, "test\n");
}

#[test]
fn a_core_whose_main_future_panics_says_so_at_join() {
    let core = CoreSpec { name: "fatal".to_owned(), cpu: None };
    let handle = executor::start(core, || async {
        assert!(rt::now() > rt::now(), "time goes on, on purpose");
    });
    let fault = handle.expect("an executor starts").join().expect_err("the main future panics");
    assert_eq!(fault.task, "main");
    assert!(fault.message.contains("on purpose"), "{}", fault.message);
}

#[test]
fn a_core_is_pinned_where_that_is_possible_and_runs_unpinned_where_it_is_not() {
    let allowed = || async {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("every thread has a status");
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.expect("the status lists the allowed CPUs").trim().to_owned()
    };
    let mine = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("a thread has an affinity");
    let first = (0..nix::sched::CpuSet::count())
        .find(|cpu| mine.is_set(*cpu).expect("the CPU is below the size of the set"))
        .expect("a thread may run somewhere");
    let core = |cpu| CoreSpec { name: "pin".to_owned(), cpu: Some(cpu) };
    let pinned = executor::start(core(first), allowed).expect("a pinned executor starts").join();
    assert_eq!(pinned, Ok(first.to_string()));
    let absent = nix::sched::CpuSet::count() - 1;
    executor::start(core(absent), allowed).expect("a core starts without its CPU").join().expect("it runs");
}

#[test]
fn without_an_account_nothing_is_booked() {
    under_both(|| async {
        rt::timed("dm", rt::sleep(Duration::from_millis(1))).await;
        assert_eq!(rt::spent(), Spent::default());
    });
}

#[test]
fn a_task_shares_the_account_of_its_spawner_and_no_other() {
    under_both(|| async {
        rt::account();
        let stranger = rt::spawn("stranger", async {
            rt::account();
            rt::timed("stranger", rt::sleep(Duration::from_millis(1))).await;
            rt::spent()
        });
        let child = rt::spawn("child", rt::timed("dm", rt::sleep(Duration::from_millis(3))));
        rt::timed("dm", rt::sleep(Duration::from_millis(2))).await;
        assert_eq!(child.await, Ok(()));
        let theirs = stranger.await.expect("it does not panic");
        let ours = rt::spent();
        assert!(ours.of("dm") >= Duration::from_millis(3), "{ours}");
        assert_eq!((ours.of("stranger"), theirs.of("dm")), (Duration::ZERO, Duration::ZERO), "{ours} {theirs}");
        assert!(theirs.of("stranger") >= Duration::from_millis(1), "{theirs}");
    });
}
