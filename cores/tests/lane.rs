//! Lanes of blocking threads, awaited from a core.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::task::{Context, Waker};

use cores::executor::{self, CoreSpec};
use cores::lane::{Lane, LaneFault, Use};

fn on_a_core<T: Send + 'static, F: Future<Output = T> + 'static>(body: impl FnOnce() -> F + Send + 'static) -> T {
    let core = CoreSpec { name: "lane".to_owned(), cpu: None };
    executor::start(core, body).expect("an executor starts").join().expect("the main future does not panic")
}

fn lane(threads: usize, queue_max: usize) -> Lane {
    Lane::new("helper", threads, queue_max, None)
}

/// A job that says when it has begun and then blocks until its gate is opened or dropped.
fn gated<'a>(lane: impl Into<Use<'a>>) -> (std::sync::mpsc::Sender<()>, Receiver<()>, cores::lane::Outcome<()>) {
    let (open, gate) = channel::<()>();
    let (begun, has_begun) = channel();
    let outcome = lane.into().run(move || {
        begun.send(()).expect("the test waits for this");
        gate.recv().unwrap_or_default();
    });
    (open, has_begun, outcome)
}

#[test]
fn a_job_runs_on_a_thread_of_its_lane() {
    let name = on_a_core(|| async {
        let lane = lane(1, 4);
        let result = lane.run(|| std::fs::read_to_string("/proc/thread-self/comm")).await;
        result.expect("the job runs").expect("every thread has a name")
    });
    assert_eq!(name, "helper\n");
}

#[test]
fn a_thread_is_started_when_all_others_have_jobs() {
    // Not by the names the kernel has for threads: one that is just started still has the name of who started it.
    let threads = |lane: &Lane| format!("{lane:?}").rsplit_once("threads: ").expect("it says so").1[..1].to_owned();
    let own = || std::thread::current().id();
    let (counts, ids) = on_a_core(move || async move {
        let lane = Lane::new("one by one", 2, 4, None);
        let (mut counts, mut ids) = (vec![threads(&lane)], vec![]);
        for _ in 0..5 {
            ids.push(lane.run(own).await.expect("the job runs"));
        }
        counts.push(threads(&lane));
        let (open, begun, first) = gated(&lane);
        begun.recv().expect("the job begins");
        ids.push(lane.run(own).await.expect("the job runs"));
        counts.push(threads(&lane));
        let waits = lane.run(own);
        ids.push(lane.run(own).await.expect("the job runs"));
        drop(open);
        first.await.expect("the job ends");
        ids.push(waits.await.expect("the job ends"));
        counts.push(threads(&lane));
        (counts, ids)
    });
    assert_eq!(counts, ["0", "1", "2", "2"]);
    let (first, second) = (ids[0], ids[5]);
    assert!(ids[..5].iter().all(|id| *id == first) && second != first, "{ids:?}");
    // The first thread has a job until its gate opens.
    assert_eq!(ids[6..], [second; 2], "{ids:?}");
}

#[test]
fn each_thread_is_prepared_before_its_first_job() {
    thread_local!(static PREPARED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    let prepare = || {
        PREPARED.set(true);
        Err(std::io::Error::other("a thread works all the same"))
    };
    let prepared = on_a_core(move || async move {
        let lane = Lane::prepared("helper", 2, 4, None, prepare).expect("threads start");
        let (open, begun, first) = gated(&lane);
        begun.recv().expect("the job begins");
        // The first thread is busy: this one runs on the other.
        let second = lane.run(|| PREPARED.get()).await.expect("the job runs");
        drop(open);
        first.await.expect("the job ends");
        second
    });
    assert!(prepared);
}

#[test]
fn threads_that_are_prepared_late_come_together_with_the_first_job() {
    static PREPARED: AtomicUsize = AtomicUsize::new(0);
    let prepare = || {
        PREPARED.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    let late = move || Lane::prepared_late("late", 3, 4, None, prepare);
    late().join();
    assert_eq!(PREPARED.load(Ordering::SeqCst), 0, "nobody has used it");
    let lane = late();
    let before = on_a_core(move || async move {
        let before = lane.run(|| PREPARED.load(Ordering::SeqCst)).await.expect("the job runs");
        lane.run(|| ()).await.expect("another job runs");
        lane.join();
        before
    });
    assert!(before >= 1, "whoever takes a job is prepared");
    assert_eq!(PREPARED.load(Ordering::SeqCst), 3, "one job suffices for all of them");
}

#[test]
fn a_steady_thread_holds_its_stack() {
    let outcome = on_a_core(|| async {
        let lane = lane(1, 4);
        let locked = || {
            let status = std::fs::read_to_string("/proc/self/status").expect("a process may read its own status");
            let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("it says so").to_owned();
            line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number of KiB")
        };
        lane.run(move || {
            let before = locked();
            let made = cores::steady::make();
            (made, locked().saturating_sub(before))
        })
        .await
        .expect("the job runs")
    });
    // Where the process may not, it is told so; where it may, the stack is there.
    if let (Ok(()), locked) = outcome {
        assert!(locked >= cores::limits::STEADY_STACK_BYTES / 1024, "{locked} KiB are locked");
    }
}

#[test]
fn one_thread_runs_jobs_in_the_order_of_the_calls() {
    let order = on_a_core(|| async {
        let lane = lane(1, 100);
        let (sender, order) = channel();
        let jobs: Vec<_> = (0..100)
            .map(|index| {
                let sender = sender.clone();
                lane.run(move || sender.send(index).expect("the test waits for this"))
            })
            .collect();
        for job in jobs {
            job.await.expect("the job runs");
        }
        drop(sender);
        order.into_iter().collect::<Vec<i32>>()
    });
    assert_eq!(order, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_full_lane_says_so_and_runs_what_it_has() {
    on_a_core(|| async {
        let lane = lane(1, 2);
        let (open, has_begun, first) = gated(&lane);
        has_begun.recv().expect("the job begins");
        let waiting = [lane.run(|| 1), lane.run(|| 2)];
        assert_eq!(lane.waiting(), 2);
        let refused = lane.run(|| 3).await;
        assert_eq!(refused, Err(LaneFault::Full { lane: "helper".into(), queue_max: 2 }));
        drop(open);
        first.await.expect("the job runs");
        for (job, expected) in waiting.into_iter().zip([1, 2]) {
            assert_eq!(job.await, Ok(expected));
        }
    });
}

#[test]
fn two_threads_of_a_lane_run_two_jobs_at_a_time() {
    on_a_core(|| async {
        let lane = lane(2, 4);
        let (open, has_begun, slow) = gated(&lane);
        has_begun.recv().expect("the job begins");
        assert_eq!(lane.run(|| "quick").await, Ok("quick"));
        drop(open);
        slow.await.expect("the job runs");
    });
}

#[test]
fn who_hangs_never_has_all_threads_and_goes_on_in_order() {
    on_a_core(|| async {
        let lane = lane(3, 10);
        let hangs = [(); 2].map(|()| gated(lane.of(1)));
        for (_, has_begun, _) in &hangs {
            has_begun.recv().expect("two of three threads are its");
        }
        let (sender, order) = channel();
        let more = [1, 2].map(|number| {
            let sender = sender.clone();
            lane.of(1).run(move || sender.send(number).expect("the test waits for this"))
        });
        for _ in 0..10 {
            assert_eq!(lane.of(2).run(|| "another's").await, Ok("another's"));
            assert_eq!(lane.run(|| "nobody's").await, Ok("nobody's"));
        }
        assert_eq!((lane.waiting(), order.try_recv().ok()), (2, None), "its others wait for its own");
        for (open, _, job) in hangs {
            drop(open);
            job.await.expect("the job runs");
        }
        for job in more {
            job.await.expect("the job runs");
        }
        assert_eq!(order.try_iter().collect::<Vec<_>>(), [1, 2]);
    });
}

#[test]
fn several_who_hang_together_keep_no_other_waiting() {
    on_a_core(|| async {
        let lane = lane(3, 100);
        // The later ones of these begin on threads that came because the earlier ones hang.
        let hangs: Vec<_> = (1..=8).flat_map(|owner| [gated(lane.of(owner)), gated(lane.of(owner))]).collect();
        for (_, has_begun, _) in &hangs {
            has_begun.recv().expect("each has a thread");
        }
        for _ in 0..10 {
            assert_eq!(lane.of(9).run(|| "another's").await, Ok("another's"));
            assert_eq!(lane.run(|| "nobody's").await, Ok("nobody's"));
        }
        let third = lane.of(1).run(|| ());
        assert_eq!(lane.of(9).run(|| "another's").await, Ok("another's"));
        assert_eq!(lane.waiting(), 1, "one owner still has its share and no more");
        for (open, _, job) in hangs {
            drop(open);
            job.await.expect("the job runs");
        }
        third.await.expect("the job runs");
        lane.join();
    });
}

#[test]
fn what_waits_for_its_owner_still_runs_when_the_lane_is_gone() {
    let (sender, results) = channel();
    on_a_core(move || async move {
        let lane = lane(2, 4);
        let (open, has_begun, first) = gated(lane.of(1));
        has_begun.recv().expect("the job begins");
        let second = lane.of(1).run(move || sender.send("ran").expect("the test waits for this"));
        drop(lane);
        drop(open);
        first.await.expect("the job runs");
        second.await.expect("the job runs");
    });
    assert_eq!(results.recv(), Ok("ran"));
}

#[test]
fn a_panic_is_the_result_of_its_job_and_the_thread_lives_on() {
    on_a_core(|| async {
        let lane = lane(1, 4);
        let fault = lane.run(|| panic!("a job, on purpose")).await;
        assert_eq!(fault, Err::<(), _>(LaneFault::Panicked("a job, on purpose".to_owned())));
        assert_eq!(lane.run(|| 5).await, Ok(5));
    });
}

/// Panics when it is dropped.
#[derive(Debug)]
struct Explosive;

impl Drop for Explosive {
    fn drop(&mut self) {
        panic!("a destructor, on purpose");
    }
}

#[test]
fn a_result_that_panics_when_nobody_wants_it_does_not_end_the_thread() {
    let lane = lane(1, 4);
    let (sender, nobody_wants_it) = channel();
    drop(lane.run(move || {
        nobody_wants_it.recv().expect("the test says so");
        Explosive
    }));
    sender.send(()).expect("the job waits for this");
    on_a_core(move || async move {
        assert_eq!(lane.run(|| 5).await, Ok(5));
        lane.join();
    });
}

#[test]
fn a_dropped_lane_runs_its_queue_and_ends_its_threads() {
    let lane = lane(2, 10);
    let (open, has_begun, slow) = gated(&lane);
    has_begun.recv().expect("the job begins");
    let (sender, results) = channel();
    for index in 0..5 {
        let sender = sender.clone();
        drop(lane.run(move || sender.send(index).expect("the test waits for this")));
    }
    drop(sender);
    drop(lane);
    drop(open);
    // The channel ends when the last job is gone.
    let mut results: Vec<_> = results.into_iter().collect();
    results.sort_unstable();
    assert_eq!(results, [0, 1, 2, 3, 4]);
    on_a_core(|| async move { slow.await.expect("the job runs") });
}

#[test]
fn join_waits_for_every_job() {
    let lane = lane(3, 10);
    let jobs: Vec<_> = (0..10).map(|index| lane.run(move || index)).collect();
    lane.join();
    for (index, job) in jobs.into_iter().enumerate() {
        let mut job = std::pin::pin!(job);
        let polled = job.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(polled, std::task::Poll::Ready(Ok(index)));
    }
}

#[test]
fn a_pinned_lane_stays_on_its_cpu() {
    let mine = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("a thread has an affinity");
    let cpu = (0..nix::sched::CpuSet::count())
        .find(|cpu| mine.is_set(*cpu).expect("the CPU is below the size of the set"))
        .expect("a thread may run somewhere");
    let status = on_a_core(move || async move {
        let lane = Lane::new("pinned", 1, 4, Some(cpu));
        let status = lane.run(|| std::fs::read_to_string("/proc/thread-self/status")).await;
        status.expect("the job runs").expect("every thread has a status")
    });
    assert!(status.contains(&format!("Cpus_allowed_list:\t{cpu}\n")), "{status}");
}
