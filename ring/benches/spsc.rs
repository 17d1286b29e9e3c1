//! Streaming: what one 64-byte message costs from a thread on one CPU to a thread on another.
//!
//! `cargo bench -p ring --bench spsc` prints, for each queue and capacity, the best of several repetitions. The
//! queues take turns, so that whatever else the machine does hits all of them; compare the columns of one run.
//!
//! The line `mesh` is the whole path, with the board and the doorbell; the others are bare queues.

use std::collections::VecDeque;
use std::hint;
use std::thread;
use std::time::Instant;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use ring::{Lane, Sizes, mesh, spsc};

/// 64 bytes.
type Message = [u64; 8];

const MESSAGES: u64 = 1_000_000;
const REPETITIONS: usize = 15;
/// The daemon's own capacity, and one at which a queue is seldom full.
const CAPACITIES: [usize; 2] = [64, 1024];
/// What the batched variants move at once at most.
const BATCH: usize = 32;

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("the CPU came from the affinity mask");
    sched_setaffinity(Pid::from_raw(0), &set).expect("a thread may move within its affinity mask");
}

fn cpus() -> (usize, usize) {
    let set = sched_getaffinity(Pid::from_raw(0)).expect("a thread may read its own affinity");
    let mut allowed = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).is_ok_and(|allowed| allowed));
    let first = allowed.next().expect("we run on some CPU");
    (first, allowed.next().unwrap_or(first))
}

/// Runs `produce` and `consume` on a CPU each. `consume` gives the sum of what it took. Gives ns per message.
fn stream(produce: impl FnOnce() + Send, consume: impl FnOnce() -> u64 + Send) -> f64 {
    let (left, right) = cpus();
    let nanoseconds = thread::scope(|scope| {
        scope.spawn(move || {
            pin(left);
            produce();
        });
        let consumer = scope.spawn(move || {
            pin(right);
            let start = Instant::now();
            assert_eq!(consume(), MESSAGES * (MESSAGES - 1) / 2, "a message was lost or came twice");
            start.elapsed().as_secs_f64() * 1e9
        });
        consumer.join().expect("the consumer does not panic")
    });
    nanoseconds / MESSAGES as f64
}

/// Sends all messages one at a time.
fn produce_each(mut push: impl FnMut(Message) -> Result<(), Message>) {
    for number in 0..MESSAGES {
        let mut message = [number; 8];
        while let Err(back) = push(message) {
            message = back;
            hint::spin_loop();
        }
    }
}

/// Takes all messages one at a time.
fn consume_each(mut pop: impl FnMut() -> Option<Message>) -> u64 {
    let (mut sum, mut taken) = (0, 0);
    while taken < MESSAGES {
        match pop() {
            Some(message) => {
                sum += hint::black_box(message)[7];
                taken += 1;
            }
            None => hint::spin_loop(),
        }
    }
    sum
}

fn ours(capacity: usize) -> f64 {
    let (mut producer, mut consumer) = spsc::pair(capacity);
    stream(move || produce_each(|message| producer.push(message)), move || consume_each(|| consumer.pop()))
}

fn ours_batched(capacity: usize) -> f64 {
    let (mut producer, mut consumer) = spsc::pair(capacity);
    let produce = move || {
        let (mut queue, mut next) = (VecDeque::with_capacity(BATCH), 0);
        while next < MESSAGES || !queue.is_empty() {
            while queue.len() < BATCH && next < MESSAGES {
                queue.push_back([next; 8]);
                next += 1;
            }
            if producer.push_batch(&mut queue) == 0 {
                hint::spin_loop();
            }
        }
    };
    let consume = move || {
        let mut batch: Vec<Message> = Vec::with_capacity(BATCH);
        let (mut sum, mut taken) = (0, 0);
        while taken < MESSAGES {
            if consumer.pop_batch(&mut batch, BATCH) == 0 {
                hint::spin_loop();
            }
            taken += batch.len() as u64;
            sum += batch.drain(..).map(|message| hint::black_box(message)[7]).sum::<u64>();
        }
        sum
    };
    stream(produce, consume)
}

fn ours_mesh(capacity: usize) -> f64 {
    let mut endpoints = mesh::<Message>(2, Sizes { ring_slots: capacity, outbox_max: 1 });
    let (right, left) = (endpoints.pop().expect("two endpoints"), endpoints.pop().expect("two endpoints"));
    let produce = move || {
        let push = |message| left.send(1, Lane::Normal, message).map_err(|full| full.message);
        produce_each(push);
        // The last one may wait in the outbox.
        while left.depths().queued_out != 0 {
            left.receive(&mut Vec::new(), 0);
        }
    };
    let consume = move || {
        let mut batch: Vec<(usize, Message)> = Vec::with_capacity(BATCH);
        let (mut sum, mut taken) = (0, 0);
        while taken < MESSAGES {
            if right.receive(&mut batch, BATCH) == 0 {
                hint::spin_loop();
            }
            taken += batch.len() as u64;
            sum += batch.drain(..).map(|(_, message)| hint::black_box(message)[7]).sum::<u64>();
        }
        sum
    };
    stream(produce, consume)
}

/// Both ends on one thread: what the instructions cost, without the way between two CPUs.
fn ours_mesh_at_home(capacity: usize) -> f64 {
    let mut endpoints = mesh::<Message>(2, Sizes { ring_slots: capacity, outbox_max: 1 });
    let (right, left) = (endpoints.pop().expect("two endpoints"), endpoints.pop().expect("two endpoints"));
    let mut batch: Vec<(usize, Message)> = Vec::with_capacity(BATCH);
    let start = Instant::now();
    for first in (0..MESSAGES).step_by(BATCH) {
        for number in first..first + BATCH as u64 {
            left.send(1, Lane::Normal, [number; 8]).expect("a batch fits the ring");
        }
        assert_eq!(right.receive(&mut batch, BATCH), BATCH);
        hint::black_box(&batch);
        batch.clear();
    }
    start.elapsed().as_secs_f64() * 1e9 / MESSAGES as f64
}

fn theirs_rtrb(capacity: usize) -> f64 {
    let (mut producer, mut consumer) = rtrb::RingBuffer::new(capacity);
    let push = move |message| producer.push(message).map_err(|rtrb::PushError::Full(message)| message);
    stream(move || produce_each(push), move || consume_each(|| consumer.pop().ok(/* the only error: empty */)))
}

fn theirs_crossbeam(capacity: usize) -> f64 {
    let (sender, receiver) = crossbeam_channel::bounded(capacity);
    stream(
        move || produce_each(|message| sender.try_send(message).map_err(|error| error.into_inner())),
        move || consume_each(|| receiver.try_recv().ok(/* empty, or done: the sum shows it */)),
    )
}

fn main() {
    type Variant = (&'static str, fn(usize) -> f64);
    let variants: [Variant; 6] = [
        ("ring::spsc", ours),
        ("ring::spsc, batched", ours_batched),
        ("ring::mesh, with doorbell", ours_mesh),
        ("ring::mesh, on one thread", ours_mesh_at_home),
        ("rtrb", theirs_rtrb),
        ("crossbeam-channel, bounded", theirs_crossbeam),
    ];
    let mut best = [[f64::INFINITY; CAPACITIES.len()]; 6];
    for _ in 0..REPETITIONS {
        for (row, (_, run)) in best.iter_mut().zip(variants) {
            for (cell, capacity) in row.iter_mut().zip(CAPACITIES) {
                *cell = cell.min(run(capacity));
            }
        }
    }
    println!("{:<28}{:>12}{:>12}", "ns per 64-byte message", "64 slots", "1024 slots");
    for (row, (name, _)) in best.iter().zip(variants) {
        println!("{name:<28}{:>12.1}{:>12.1}", row[0], row[1]);
    }
}
