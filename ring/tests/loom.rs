//! Loom: every interleaving that the memory model allows, of the ring, the outbox, the board and the doorbell together.
//!
//! Run with (its own target directory, because the flag rebuilds everything):
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p ring --release --test loom`
//!
//! Rings have 2 slots, so that three messages already wrap and overflow. What loom checks besides our assertions: no
//! two threads touch a slot at once, no message leaks, and no thread sleeps for ever (a lost wake-up is a deadlock).
#![cfg(loom)]

use std::collections::VecDeque;

use loom::future::block_on;
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;
use ring::{Endpoint, Lane, Sizes, mesh, spsc};

const SLOTS: usize = 2;

/// Explores everything (`None`), or everything with at most so many forced switches between threads.
fn explore(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 10_000;
    builder.check(model);
}

fn pair_of_endpoints(outbox_max: usize) -> (Endpoint<Arc<usize>>, Endpoint<Arc<usize>>) {
    let mut endpoints = mesh(2, Sizes { ring_slots: SLOTS, outbox_max });
    let second = endpoints.pop().expect("two endpoints");
    (endpoints.pop().expect("two endpoints"), second)
}

/// Receives until `count` messages have come, sleeping in between; checks that they are 0, 1, 2 …
fn receive_all(endpoint: &Endpoint<Arc<usize>>, from: usize, count: usize) {
    let mut batch = Vec::new();
    while batch.len() < count {
        block_on(endpoint.wait());
        endpoint.receive(&mut batch, usize::MAX);
    }
    assert!(batch.iter().map(|(from, number)| (*from, **number)).eq((0..count).map(|number| (from, number))));
}

/// Sends 0, 1, 2 …
fn send_all(endpoint: &Endpoint<Arc<usize>>, to: usize, count: usize) {
    for number in 0..count {
        endpoint.send(to, Lane::Normal, Arc::new(number)).expect("the outbox holds them all");
    }
}

#[test]
fn a_ring_keeps_order_and_every_message() {
    explore(None, || {
        let (mut producer, mut consumer) = spsc::pair(SLOTS);
        let sender = thread::spawn(move || {
            for number in 0..3 {
                while producer.push(Arc::new(number)).is_err() {
                    thread::yield_now();
                }
            }
        });
        for number in 0..3 {
            let message = loop {
                match consumer.pop() {
                    Some(message) => break message,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(*message, number);
        }
        sender.join().expect("the sender does not panic");
    });
}

#[test]
fn batches_keep_order_and_every_message() {
    explore(None, || {
        let (mut producer, mut consumer) = spsc::pair(SLOTS);
        let sender = thread::spawn(move || {
            let mut queue: VecDeque<_> = (0..3).map(Arc::new).collect();
            while !queue.is_empty() {
                if producer.push_batch(&mut queue) == 0 {
                    thread::yield_now();
                }
            }
        });
        let mut batch = Vec::new();
        while batch.len() < 3 {
            if consumer.pop_batch(&mut batch, 2) == 0 {
                thread::yield_now();
            }
        }
        assert!(batch.iter().map(|number| **number).eq(0..3));
        sender.join().expect("the sender does not panic");
    });
}

#[test]
fn what_is_left_in_a_ring_is_dropped_by_whoever_goes_last() {
    explore(None, || {
        let (mut producer, mut consumer) = spsc::pair(SLOTS);
        let sender = thread::spawn(move || {
            for number in 0..3 {
                // The third may come back; then it is dropped here.
                drop(producer.push(Arc::new(number)));
            }
        });
        drop(consumer.pop());
        drop(consumer);
        sender.join().expect("the sender does not panic");
        // Loom reports an `Arc` that is never dropped.
    });
}

#[test]
fn a_sleeper_is_woken_for_a_message() {
    explore(None, || {
        let (left, right) = pair_of_endpoints(1);
        let sender = thread::spawn(move || send_all(&left, 1, 1));
        receive_all(&right, 0, 1);
        sender.join().expect("the sender does not panic");
    });
}

#[test]
fn a_sleeper_is_woken_again_for_the_next_message() {
    explore(Some(5), || {
        let (left, right) = pair_of_endpoints(1);
        let sender = thread::spawn(move || send_all(&left, 1, 2));
        receive_all(&right, 0, 2);
        sender.join().expect("the sender does not panic");
    });
}

#[test]
fn an_outbox_is_flushed_when_the_ring_has_room() {
    explore(Some(3), || {
        let (left, right) = pair_of_endpoints(2);
        let sender = thread::spawn(move || {
            send_all(&left, 1, SLOTS + 2);
            while left.depths().queued_out != 0 {
                block_on(left.wait());
                left.receive(&mut Vec::new(), 0);
            }
        });
        receive_all(&right, 0, SLOTS + 2);
        sender.join().expect("the sender does not panic");
    });
}

#[test]
fn two_that_flood_each_other_both_finish() {
    fn flood(endpoint: &Endpoint<Arc<usize>>, other: usize) {
        let count = SLOTS + 1;
        send_all(endpoint, other, count);
        receive_all(endpoint, other, count);
        while endpoint.depths().queued_out != 0 {
            block_on(endpoint.wait());
            endpoint.receive(&mut Vec::new(), 0);
        }
    }
    explore(Some(3), || {
        let (left, right) = pair_of_endpoints(1);
        let other = thread::spawn(move || flood(&right, 0));
        flood(&left, 1);
        other.join().expect("the other endpoint does not panic");
    });
}

#[test]
fn two_senders_share_one_bell() {
    explore(Some(3), || {
        let mut endpoints = mesh(3, Sizes { ring_slots: SLOTS, outbox_max: 1 });
        let receiver = endpoints.pop().expect("three endpoints");
        let senders = endpoints.into_iter().zip(Lane::ALL).map(|(endpoint, lane)| {
            thread::spawn(move || endpoint.send(2, lane, Arc::new(endpoint.id())).expect("the ring has room"))
        });
        let senders: Vec<_> = senders.collect();
        let mut batch = Vec::new();
        while batch.len() < 2 {
            block_on(receiver.wait());
            receiver.receive(&mut batch, 1);
        }
        assert_eq!(batch.iter().map(|(from, _)| from).sum::<usize>(), 1);
        assert!(batch.iter().all(|(from, number)| **number == *from));
        for sender in senders {
            sender.join().expect("a sender does not panic");
        }
    });
}
