//! How long a message takes from core to core, and a job to a lane and back. Prints a table.
//!
//! The bare ping-pong of two threads over eventfds is the floor: what the kernel needs to wake a
//! sleeping CPU. Compare within one run only; other load and the hypervisor change all rows.

use std::cell::Cell;
use std::future::poll_fn;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use cores::executor::{self, CoreHandle, CoreSpec};
use cores::lane::Lane;
use cores::rt;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;
use ring::{Endpoint, Sizes, mesh};

/// Round trips, or one-way messages, of each row.
const ROUNDS: usize = 5_000;

/// Rounds before the measured ones.
const WARM_UP: usize = 200;

/// A message: when it was sent, and a request's worth of other words.
type Message = [u64; 8];

/// Nanoseconds on a clock that all cores share.
fn now(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_nanos()).expect("a bench ends within 584 years")
}

fn row(name: &str, mut samples: Vec<u64>) {
    samples.drain(..WARM_UP);
    samples.sort_unstable();
    let count = samples.len();
    let mean = samples.iter().sum::<u64>() / count as u64;
    let [p50, p90, p99] = [count / 2, count * 9 / 10, count * 99 / 100].map(|at| samples[at]);
    println!("{name:<58} {p50:>9} {p90:>9} {p99:>9} {mean:>9}");
}

/// The two CPUs to use; the same one twice if there is no other.
fn cpus() -> [usize; 2] {
    let mine = sched_getaffinity(Pid::from_raw(0)).expect("a thread has an affinity");
    let allowed: Vec<usize> = (0..CpuSet::count()).filter(|cpu| mine.is_set(*cpu) == Ok(true)).collect();
    [allowed[0], allowed[allowed.len() - 1]]
}

fn pin(cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu).expect("the CPU is below the size of the set");
    sched_setaffinity(Pid::from_raw(0), &only).expect("the CPU is one of ours");
}

fn bare_ping_pong([first, second]: [usize; 2]) -> Vec<u64> {
    let bell = || Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("an eventfd"));
    let (ping, pong) = (bell(), bell());
    let (heard, answer) = (ping.clone(), pong.clone());
    let rounds = ROUNDS + WARM_UP;
    let echo = thread::spawn(move || {
        pin(second);
        for _ in 0..rounds {
            heard.read().expect("an eventfd can be read");
            answer.write(1).expect("an eventfd can be written");
        }
    });
    let caller = thread::spawn(move || {
        pin(first);
        let epoch = Instant::now();
        let round = |_| {
            let began = now(epoch);
            ping.write(1).expect("an eventfd can be written");
            pong.read().expect("an eventfd can be read");
            now(epoch) - began
        };
        assert!(ping.as_raw_fd() != pong.as_raw_fd());
        (0..rounds).map(round).collect()
    });
    echo.join().expect("the echo does not panic");
    caller.join().expect("the caller does not panic")
}

fn core<T: Send + 'static, F: Future<Output = T> + 'static>(
    cpu: usize,
    main: impl FnOnce() -> F + Send + 'static,
) -> CoreHandle<T> {
    executor::start(CoreSpec { name: format!("bench {cpu}"), cpu: Some(cpu) }, main).expect("an executor starts")
}

fn pair() -> (Endpoint<Message>, Endpoint<Message>) {
    // Room for every message of a row: the thread that sends to the busy core never flushes an outbox.
    let mut ends = mesh(2, Sizes { ring_slots: (ROUNDS + WARM_UP).next_power_of_two(), outbox_max: 1 });
    let second = ends.pop().expect("two endpoints");
    (ends.pop().expect("two endpoints"), second)
}

/// Takes the next messages; sleeps until there is one.
async fn receive(end: &Endpoint<Message>, into: &mut Vec<(usize, Message)>) {
    while end.receive(into, 64) == 0 {
        end.wait().await;
    }
}

fn parked_round_trip([first, second]: [usize; 2]) -> Vec<u64> {
    let (caller, echo) = pair();
    let rounds = ROUNDS + WARM_UP;
    let echo = core(second, move || async move {
        let task = rt::spawn_urgent("echo", async move {
            let (mut done, mut messages) = (0, Vec::new());
            while done < rounds {
                receive(&echo, &mut messages).await;
                done += messages.len();
                for (from, message) in messages.drain(..) {
                    echo.send(from, ring::Lane::Normal, message).expect("one message is in flight");
                }
            }
        });
        task.await.expect("no panic");
    });
    let caller = core(first, move || async move {
        let task = rt::spawn_urgent("caller", async move {
            let (epoch, mut messages, mut samples) = (Instant::now(), Vec::new(), Vec::new());
            for _ in 0..rounds {
                let began = now(epoch);
                caller.send(1, ring::Lane::Normal, [began; 8]).expect("one message is in flight");
                receive(&caller, &mut messages).await;
                messages.clear();
                samples.push(now(epoch) - began);
            }
            samples
        });
        task.await.expect("no panic")
    });
    let samples = caller.join().expect("no panic");
    echo.join().expect("no panic");
    samples
}

/// Burns `turn` of CPU time's worth of wall time.
fn burn(turn: Duration) {
    let began = Instant::now();
    while began.elapsed() < turn {
        std::hint::spin_loop();
    }
}

/// One way to a core that always has `tasks` runnable tasks whose turns take `turn`.
fn to_a_busy_core([first, second]: [usize; 2], tasks: usize, turn: Duration) -> Vec<u64> {
    let (sender, receiver) = pair();
    let (rounds, epoch) = (ROUNDS / 2 + WARM_UP, Instant::now());
    let up = Arc::new(AtomicBool::new(false));
    let is_up = up.clone();
    let busy = core(second, move || async move {
        let over = Rc::new(Cell::new(false));
        for _ in 0..tasks {
            let over = over.clone();
            // Wakes itself, as tasks do that are woken by others all the time; it asks for no switch.
            let work = poll_fn(move |context| {
                burn(turn);
                context.waker().wake_by_ref();
                if over.get() { Poll::Ready(()) } else { Poll::Pending }
            });
            rt::spawn("busy", work).detach();
        }
        let task = rt::spawn_urgent("receiver", async move {
            let (mut messages, mut samples) = (Vec::new(), Vec::new());
            up.store(true, Ordering::Release);
            while samples.len() < rounds {
                receive(&receiver, &mut messages).await;
                samples.extend(messages.drain(..).map(|(_, message)| now(epoch) - message[0]));
            }
            samples
        });
        let samples = task.await.expect("no panic");
        over.set(true);
        samples
    });
    pin(first);
    while !is_up.load(Ordering::Acquire) {
        thread::yield_now();
    }
    for _ in 0..rounds {
        burn(Duration::from_micros(150));
        sender.send(1, ring::Lane::Normal, [now(epoch); 8]).expect("the receiver keeps up");
    }
    busy.join().expect("no panic")
}

fn lane_round_trip(cpu: usize) -> Vec<u64> {
    let core = core(cpu, move || async move {
        let lane = Lane::new("bench lane", 1, 64, Some(cpu));
        let (epoch, mut samples) = (Instant::now(), Vec::new());
        for _ in 0..ROUNDS + WARM_UP {
            let began = now(epoch);
            lane.run(|| ()).await.expect("the job runs");
            samples.push(now(epoch) - began);
        }
        samples
    });
    core.join().expect("no panic")
}

fn side_round_trip(cpu: usize) -> Vec<u64> {
    let core = core(cpu, move || async move {
        let file = Rc::new(tempfile::tempfile().expect("a file").into());
        let (side, epoch, mut samples) = (rt::side(), Instant::now(), Vec::new());
        for _ in 0..ROUNDS + WARM_UP {
            let began = now(epoch);
            let (result, _) = side.read(&file, 0, cores::side::Buffer::aligned(512, 1)).await;
            result.expect("an empty file can be read");
            samples.push(now(epoch) - began);
        }
        samples
    });
    core.join().expect("no panic")
}

fn main() {
    let cpus = cpus();
    println!("CPUs {cpus:?}, times in ns");
    println!("{:<58} {:>9} {:>9} {:>9} {:>9}", "", "p50", "p90", "p99", "mean");
    row("bare eventfd ping-pong of two threads", bare_ping_pong(cpus));
    row("round trip between two cores, both parked", parked_round_trip(cpus));
    row("again: bare eventfd ping-pong", bare_ping_pong(cpus));
    row("again: round trip between two cores", parked_round_trip(cpus));
    let micros = Duration::from_micros;
    row("one way to a busy core: 1 task, turns of 1 us", to_a_busy_core(cpus, 1, micros(1)));
    row("one way to a busy core: 100 tasks, turns of 1 us", to_a_busy_core(cpus, 100, micros(1)));
    row("one way to a busy core: 100 tasks, turns of 20 us", to_a_busy_core(cpus, 100, micros(20)));
    row("job to a lane on the same CPU and back", lane_round_trip(cpus[0]));
    row("side ring: read answered at once", side_round_trip(cpus[0]));
}
