//! Real threads, many messages: nothing lost, doubled, changed, reordered or left asleep.
//!
//! A deadlock or a lost wake-up shows as a test that does not end.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use ring::{Endpoint, Lane, Sizes, mesh, spsc};

/// Wakes a parked thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs `future` on this thread, parked while it is pending.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// A message whose body follows from its number, so that a torn or foreign one shows.
type Message = [u64; 8];

fn message(number: u64) -> Message {
    let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    [0, 8, 16, 24, 32, 40, 48, 56].map(|bits| mixed.rotate_left(bits) ^ number)
}

#[test]
fn a_stream_of_single_messages_arrives_whole() {
    const COUNT: u64 = 50_000;
    for capacity in [1, 2, 64] {
        let (mut producer, mut consumer) = spsc::pair(capacity);
        thread::scope(|scope| {
            scope.spawn(move || {
                for number in 0..COUNT {
                    while producer.push(message(number)).is_err() {
                        thread::yield_now();
                    }
                }
            });
            scope.spawn(move || {
                for number in 0..COUNT {
                    let received = loop {
                        match consumer.pop() {
                            Some(received) => break received,
                            None => thread::yield_now(),
                        }
                    };
                    assert_eq!(received, message(number));
                }
                assert_eq!(consumer.pop(), None);
            });
        });
    }
}

#[test]
fn a_stream_of_batches_arrives_whole() {
    const COUNT: u64 = 100_000;
    let (mut producer, mut consumer) = spsc::pair(32);
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut queue, mut next) = (VecDeque::new(), 0);
            while next < COUNT || !queue.is_empty() {
                let wanted = (next % 50).min(COUNT - next).max(u64::from(next < COUNT));
                queue.extend((next..next + wanted).map(message));
                next += wanted;
                while producer.push_batch(&mut queue) == 0 && !queue.is_empty() {
                    thread::yield_now();
                }
            }
        });
        scope.spawn(move || {
            let mut batch = Vec::new();
            let mut expected = 0;
            while expected < COUNT {
                if consumer.pop_batch(&mut batch, 20) == 0 {
                    thread::yield_now();
                }
                for received in batch.drain(..) {
                    assert_eq!(received, message(expected));
                    expected += 1;
                }
            }
        });
    });
}

/// Sends `count` messages to every endpoint in both lanes, as fast as `send` takes them, and receives as many from
/// each; sleeps in `wait` when there is nothing to do. Gives how often a message was refused.
fn flood(endpoint: &Endpoint<(Lane, Message)>, count: u64) -> u64 {
    let peers = endpoint.endpoints();
    let mut sent = vec![0; peers * 2];
    let mut received = vec![0; peers * 2];
    let mut batch = Vec::new();
    let mut refused = 0;
    let place = |peer: usize, lane| peer * 2 + usize::from(lane == Lane::Normal);
    let done = |counts: &[u64]| counts.iter().all(|&number| number == count);
    while !(done(&sent) && done(&received)) || endpoint.depths().queued_out != 0 {
        let mut stuck = true;
        for (to, lane) in (0..peers).flat_map(|to| Lane::ALL.map(|lane| (to, lane))) {
            let next = &mut sent[place(to, lane)];
            while *next < count {
                if endpoint.send(to, lane, (lane, message(*next))).is_err() {
                    refused += 1;
                    break;
                }
                *next += 1;
                stuck = false;
            }
        }
        if stuck {
            block_on(endpoint.wait());
        }
        endpoint.receive(&mut batch, 17);
        for (from, (lane, body)) in batch.drain(..) {
            let next = &mut received[place(from, lane)];
            assert_eq!(body, message(*next), "from {from} in {lane:?}");
            *next += 1;
        }
    }
    refused
}

#[test]
fn endpoints_that_flood_each_other_all_finish() {
    const COUNT: u64 = 2_000;
    for endpoints in [2, 4] {
        let threads: Vec<_> = mesh(endpoints, Sizes { ring_slots: 8, outbox_max: 20 })
            .into_iter()
            .map(|endpoint| thread::spawn(move || (flood(&endpoint, COUNT), endpoint)))
            .collect();
        let mut refused = 0;
        // Kept until all are done: an endpoint must not be dropped with messages on their way to it.
        let mut endpoints = Vec::new();
        for thread in threads {
            let (count, endpoint) = thread.join().expect("no endpoint panics");
            refused += count;
            endpoints.push(endpoint);
        }
        assert!(refused > 0, "the flood was larger than ring and outbox");
        for endpoint in endpoints {
            let depths = endpoint.depths();
            assert_eq!((depths.queued_in, depths.queued_out), (0, 0));
        }
    }
}

#[test]
fn a_burst_far_beyond_the_ring_needs_no_help_from_its_sender() {
    // The sender sends once, then only sleeps and receives: credits alone must empty its outbox.
    const COUNT: u64 = 20_000;
    let [left, right] = mesh(2, Sizes { ring_slots: 4, outbox_max: 20_000 }).try_into().expect("two endpoints");
    let burst = |endpoint: Endpoint<Message>, other: usize| {
        move || {
            for number in 0..COUNT {
                endpoint.send(other, Lane::Normal, message(number)).expect("the outbox holds the burst");
            }
            let (mut batch, mut expected) = (Vec::new(), 0);
            while expected < COUNT || endpoint.depths().queued_out != 0 {
                block_on(endpoint.wait());
                endpoint.receive(&mut batch, 64);
                for (from, body) in batch.drain(..) {
                    assert_eq!((from, body), (other, message(expected)));
                    expected += 1;
                }
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(burst(left, 1));
        scope.spawn(burst(right, 0));
    });
}

#[test]
fn a_ping_pong_of_sleepers_never_sleeps_for_ever() {
    const ROUNDS: u64 = 20_000;
    let [left, right] = mesh(2, Sizes { ring_slots: 2, outbox_max: 1 }).try_into().expect("two endpoints");
    let next = |endpoint: &Endpoint<u64>| {
        let mut batch = Vec::new();
        while endpoint.receive(&mut batch, 1) == 0 {
            block_on(endpoint.wait());
        }
        batch[0].1
    };
    thread::scope(|scope| {
        scope.spawn(move || {
            for round in 0..ROUNDS {
                left.send(1, Lane::Normal, round).expect("one message at a time");
                assert_eq!(next(&left), round);
            }
        });
        scope.spawn(move || {
            for round in 0..ROUNDS {
                assert_eq!(next(&right), round);
                right.send(0, Lane::Normal, round).expect("one message at a time");
            }
        });
    });
}
