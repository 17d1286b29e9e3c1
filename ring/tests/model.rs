//! Random operations on one thread, compared with plain queues.
//!
//! Everything that does not depend on timing: order, nothing lost or doubled, what is refused, which lane comes
//! first, and that `wait` is ready whenever `receive` has something to do.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use ring::{Endpoint, Lane, Sizes, mesh, spsc};

#[derive(Clone, Copy, Debug)]
enum RingStep {
    Push,
    PushBatch(usize),
    Pop,
    PopBatch(usize),
}

fn ring_step() -> impl Strategy<Value = RingStep> {
    prop_oneof![
        3 => Just(RingStep::Push),
        1 => (0..20usize).prop_map(RingStep::PushBatch),
        3 => Just(RingStep::Pop),
        1 => (0..20usize).prop_map(RingStep::PopBatch),
    ]
}

proptest! {
    #[test]
    fn a_ring_is_a_bounded_queue(bits in 0..5u32, steps in prop::collection::vec(ring_step(), 0..200)) {
        let capacity = 1usize << bits;
        let (mut producer, mut consumer) = spsc::pair(capacity);
        let mut oracle = VecDeque::new();
        let mut numbers = 0u64..;
        for step in steps {
            match step {
                RingStep::Push => {
                    let number = numbers.next().expect("endless");
                    // Boxes, so that a message read twice or never is a double free or a leak.
                    let outcome = producer.push(Box::new(number));
                    if oracle.len() == capacity {
                        prop_assert_eq!(outcome, Err(Box::new(number)));
                    } else {
                        prop_assert_eq!(outcome, Ok(()));
                        oracle.push_back(number);
                    }
                }
                RingStep::PushBatch(count) => {
                    let mut queue: VecDeque<_> = numbers.by_ref().take(count).map(Box::new).collect();
                    let fits = count.min(capacity - oracle.len());
                    oracle.extend(queue.iter().take(fits).map(|number| **number));
                    prop_assert_eq!(producer.push_batch(&mut queue), fits);
                    prop_assert_eq!(queue.len(), count - fits);
                }
                RingStep::Pop => prop_assert_eq!(consumer.pop().map(|number| *number), oracle.pop_front()),
                RingStep::PopBatch(max) => {
                    let mut batch = Vec::new();
                    let count = max.min(oracle.len());
                    prop_assert_eq!(consumer.pop_batch(&mut batch, max), count);
                    let batch: Vec<u64> = batch.into_iter().map(|number| *number).collect();
                    prop_assert_eq!(batch, oracle.drain(..count).collect::<Vec<_>>());
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum MeshStep {
    Send { from: usize, to: usize, lane: Lane },
    Burst { from: usize, to: usize, lane: Lane, count: usize },
    SendEach { from: usize, lane: Lane, to: u8 },
    Receive { at: usize, max: usize },
}

const ENDPOINTS: usize = 3;
const SIZES: Sizes = Sizes { ring_slots: 4, outbox_max: 6 };
/// What one ring and its outbox hold together.
const ROOM: usize = SIZES.ring_slots + SIZES.outbox_max;

fn mesh_step() -> impl Strategy<Value = MeshStep> {
    let lane = || prop_oneof![Just(Lane::Urgent), Just(Lane::Normal)];
    let end = || 0..ENDPOINTS;
    prop_oneof![
        3 => (end(), end(), lane()).prop_map(|(from, to, lane)| MeshStep::Send { from, to, lane }),
        2 => (end(), end(), lane(), 0..15usize)
            .prop_map(|(from, to, lane, count)| MeshStep::Burst { from, to, lane, count }),
        1 => (end(), lane(), 0..8u8).prop_map(|(from, lane, to)| MeshStep::SendEach { from, lane, to }),
        4 => (end(), 0..12usize).prop_map(|(at, max)| MeshStep::Receive { at, max }),
    ]
}

/// The mesh, and for each (from, to, lane) the numbers that were sent and not yet received.
struct Model {
    endpoints: Vec<Endpoint<(Lane, Box<u64>)>>,
    oracle: Vec<VecDeque<u64>>,
    next: u64,
}

const fn place(from: usize, to: usize, lane: Lane) -> usize {
    (from * ENDPOINTS + to) * 2 + matches!(lane, Lane::Normal) as usize
}

impl Model {
    fn new() -> Self {
        let oracle = vec![VecDeque::new(); ENDPOINTS * ENDPOINTS * 2];
        Self { endpoints: mesh(ENDPOINTS, SIZES), oracle, next: 0 }
    }

    fn message(&mut self, lane: Lane) -> (Lane, Box<u64>) {
        self.next += 1;
        (lane, Box::new(self.next))
    }

    fn send(&mut self, from: usize, to: usize, lane: Lane) -> Result<(), TestCaseError> {
        let message = self.message(lane);
        let number = *message.1;
        let queue = &mut self.oracle[place(from, to, lane)];
        match self.endpoints[from].send(to, lane, message) {
            Ok(()) => {
                queue.push_back(number);
                prop_assert!(queue.len() <= ROOM);
            }
            Err(full) => {
                prop_assert_eq!((full.to, *full.message.1), (to, number));
                // On one thread a refusal is exact: nothing may have been left unused.
                prop_assert_eq!(queue.len(), ROOM);
            }
        }
        Ok(())
    }

    fn send_each(&mut self, from: usize, lane: Lane, to: u8) -> Result<(), TestCaseError> {
        let wanted = |id: usize| to & (1 << id) != 0;
        let first = self.next + 1;
        let mut asked = 0;
        let outcome = self.endpoints[from].send_each(lane, |id| {
            assert_eq!(id, asked, "endpoints are asked in order");
            asked += 1;
            wanted(id).then(|| (lane, Box::new(first + id as u64)))
        });
        self.next += ENDPOINTS as u64;
        let stopped = outcome.map_or_else(|full| full.to, |()| ENDPOINTS);
        for id in (0..stopped).filter(|&id| wanted(id)) {
            self.oracle[place(from, id, lane)].push_back(first + id as u64);
        }
        if stopped < ENDPOINTS {
            prop_assert_eq!(self.oracle[place(from, stopped, lane)].len(), ROOM);
        }
        Ok(())
    }

    fn is_ready(&self, at: usize) -> bool {
        let waiting = pin!(self.endpoints[at].wait());
        waiting.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    /// Receives, checks against the oracle, gives how many.
    fn receive(&mut self, at: usize, max: usize) -> Result<usize, TestCaseError> {
        let ready = self.is_ready(at);
        let before = self.endpoints[at].depths();
        let mut batch = Vec::new();
        let count = self.endpoints[at].receive(&mut batch, max);
        prop_assert_eq!(count, batch.len());
        prop_assert!(count <= max);
        prop_assert!(ready || count == 0, "wait slept although there was a message");
        prop_assert!(ready || self.endpoints[at].depths().queued_out == before.queued_out, "wait slept on a credit");
        prop_assert_eq!(self.endpoints[at].depths().received, before.received + count as u64);
        let first_normal = batch.iter().position(|(_, (lane, _))| *lane == Lane::Normal).unwrap_or(count);
        prop_assert!(batch[first_normal..].iter().all(|(_, (lane, _))| *lane == Lane::Normal), "urgent comes first");
        for (from, (lane, number)) in batch {
            prop_assert_eq!(self.oracle[place(from, at, lane)].pop_front(), Some(*number));
        }
        Ok(count)
    }
}

proptest! {
    #[test]
    fn a_mesh_is_a_queue_for_each_sender_receiver_and_lane(steps in prop::collection::vec(mesh_step(), 0..120)) {
        let mut model = Model::new();
        for step in steps {
            match step {
                MeshStep::Send { from, to, lane } => model.send(from, to, lane)?,
                MeshStep::Burst { from, to, lane, count } => {
                    for _ in 0..count {
                        model.send(from, to, lane)?;
                    }
                }
                MeshStep::SendEach { from, lane, to } => model.send_each(from, lane, to)?,
                MeshStep::Receive { at, max } => {
                    model.receive(at, max)?;
                }
            }
        }
        // Whoever is told to look, looks; when nobody is told any more, nothing may be left.
        while (0..ENDPOINTS).any(|at| model.is_ready(at)) {
            for at in 0..ENDPOINTS {
                model.receive(at, 5)?;
            }
        }
        prop_assert!(model.oracle.iter().all(VecDeque::is_empty), "forgotten: {:?}", model.oracle);
        for endpoint in &model.endpoints {
            let depths = endpoint.depths();
            prop_assert_eq!((depths.queued_in, depths.queued_out), (0, 0));
        }
    }
}
