//! What the deterministic runtime promises beyond the facade: one seed, one run.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use cores::clock::{Instant, WallTime};
use cores::deterministic::{Ended, Universe, WALL_AT_START};
use cores::rt;
use proptest::prelude::*;

/// Tasks that race each other; the result is the order in which they got through.
async fn race(tasks: usize) -> Vec<usize> {
    let order = Rc::new(RefCell::new(Vec::new()));
    let joins: Vec<_> = (0..tasks)
        .map(|index| {
            let order = order.clone();
            rt::spawn("racer", async move {
                for _ in 0..3 {
                    rt::yield_now().await;
                }
                let bytes = rt::random();
                rt::sleep(Duration::from_micros(u64::from(bytes[0] % 4))).await;
                rt::stage("through");
                order.borrow_mut().push(index);
            })
        })
        .collect();
    for join in joins {
        join.await.expect("a racer does not panic");
    }
    order.take()
}

fn run_race(seed: u64, tasks: usize) -> (Vec<usize>, u64, Instant) {
    let universe = Universe::new(seed);
    let order = universe.run(race(tasks)).finished();
    (order, universe.trace(), universe.now())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_same_seed_gives_the_same_run(seed: u64, tasks in 0usize..12) {
        prop_assert_eq!(run_race(seed, tasks), run_race(seed, tasks));
    }
}

#[test]
fn different_seeds_explore_different_orders() {
    let orders: BTreeSet<Vec<usize>> = (0..200).map(|seed| run_race(seed, 3).0).collect();
    assert_eq!(orders.len(), 6, "200 seeds find all orders of three tasks: {orders:?}");
    let traces: BTreeSet<u64> = (0..200).map(|seed| run_race(seed, 5).1).collect();
    assert!(traces.len() > 150, "{} traces", traces.len());
}

#[test]
fn the_trace_hears_of_stages() {
    let trace = |stage| {
        let universe = Universe::new(1);
        universe.run(async move { rt::stage(stage) }).finished();
        universe.trace()
    };
    assert_ne!(trace("plan"), trace("save"));
    assert_eq!(trace("plan"), trace("plan"));
}

#[test]
fn a_wait_for_nothing_is_a_stall() {
    let universe = Universe::new(3);
    let ended = universe.run(async {
        rt::sleep(Duration::from_secs(5)).await;
        std::future::pending::<()>().await;
    });
    assert_eq!(ended, Ended::Stalled);
    assert_eq!(universe.now(), Instant::START + Duration::from_secs(5));
}

#[test]
fn a_loop_that_never_sleeps_meets_the_turn_limit() {
    let universe = Universe::new(3).with_turns_max(1_000);
    let ended: Ended<()> = universe.run(async {
        loop {
            rt::yield_now().await;
        }
    });
    assert_eq!(ended, Ended::TurnLimit);
}

#[test]
fn virtual_time_moves_only_when_nothing_can_run() {
    let universe = Universe::new(9);
    universe
        .run(async {
            let began = rt::now();
            for _ in 0..1_000 {
                rt::yield_now().await;
            }
            assert_eq!(rt::now(), began);
            rt::sleep(Duration::from_secs(86_400)).await;
            assert_eq!(rt::now().since(began), Duration::from_secs(86_400));
            assert_eq!(rt::wall(), WallTime { seconds: WALL_AT_START + 86_400, nanoseconds: 0 });
        })
        .finished();
    assert_eq!(universe.counters().wake_ups, 1);
}

#[test]
fn a_panic_of_main_or_of_a_singleton_ends_the_run() {
    let ended: Ended<()> = Universe::new(1).run(async { panic!("main, on purpose") });
    assert!(matches!(&ended, Ended::Panicked(panicked) if panicked.task == "main"), "{ended:?}");
    let ended = Universe::new(1).run(async {
        rt::spawn_singleton("loop", async { panic!("the loop, on purpose") });
        rt::sleep(Duration::from_secs(1)).await;
    });
    assert!(matches!(&ended, Ended::Panicked(panicked) if panicked.task == "loop"), "{ended:?}");
}

/// Counts its drops, and starts a task while it is dropped.
struct Dropped(Rc<Cell<u32>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
        rt::spawn("too late", std::future::pending::<()>()).detach();
    }
}

#[test]
fn dropping_the_universe_drops_every_task() {
    let dropped = Rc::new(Cell::new(0));
    let universe = Universe::new(5);
    let (sleeping, waiting, fresh) = (Dropped(dropped.clone()), Dropped(dropped.clone()), Dropped(dropped.clone()));
    universe
        .run(async move {
            rt::spawn("sleeping", async move {
                let _kept = sleeping;
                rt::sleep(Duration::from_secs(9)).await;
            })
            .detach();
            rt::spawn("waiting", async move {
                let _kept = waiting;
                std::future::pending::<()>().await;
            })
            .detach();
            rt::sleep(Duration::from_secs(1)).await;
            rt::spawn("fresh", async move { drop(fresh) }).detach();
        })
        .finished();
    assert_eq!(dropped.get(), 0);
    drop(universe);
    assert_eq!(dropped.get(), 3);
}

#[test]
fn a_second_run_and_a_second_universe_go_on_in_time() {
    let first = Universe::new(5);
    first.run(rt::sleep(Duration::from_secs(2))).finished();
    first.run(rt::sleep(Duration::from_secs(2))).finished();
    let second = Universe::new(6).starting_at(first.now());
    second.run(rt::sleep(Duration::from_secs(1))).finished();
    assert_eq!(second.now(), Instant::START + Duration::from_secs(5));
}

#[test]
fn work_is_booked_in_virtual_time() {
    let second = Duration::from_secs(1);
    let spent = Universe::new(1).run(async move {
        rt::account();
        let child = rt::spawn("child", rt::timed("dm", rt::sleep(3 * second)));
        rt::timed("dm", rt::sleep(2 * second)).await;
        assert_eq!(rt::spent().of("dm"), 2 * second, "what is under way counts");
        assert_eq!(child.await, Ok(()));
        rt::sleep(5 * second).await;
        rt::timed("udev", rt::sleep(second)).await;
        // Work that is given up ends there.
        drop(Box::pin(rt::timed("format", rt::sleep(second))));
        rt::spent()
    });
    assert_eq!(spent.finished().to_string(), " dm=3000.0 udev=1000.0");
}
