//! What the mesh promises, one sentence for each test, on one thread: lanes, turns, bounds, bells, drops.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use ring::{Endpoint, Full, Lane, Sizes, mesh, spsc};

const SIZES: Sizes = Sizes { ring_slots: 4, outbox_max: 3 };
/// What one ring and its outbox hold together.
const ROOM: u32 = 7;

/// Counts how often it was woken.
#[derive(Default)]
struct Sleeper {
    woken: AtomicUsize,
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::Relaxed);
    }
}

impl Sleeper {
    /// Polls the endpoint's `wait` once, as this sleeper.
    fn wait(self: &Arc<Self>, endpoint: &Endpoint<impl Send>) -> Poll<()> {
        pin!(endpoint.wait()).poll(&mut Context::from_waker(&Waker::from(Arc::clone(self))))
    }

    fn woken(&self) -> usize {
        self.woken.load(Ordering::Relaxed)
    }
}

fn receive<T: Send>(endpoint: &Endpoint<T>, max: usize) -> Vec<(usize, T)> {
    let mut batch = Vec::new();
    endpoint.receive(&mut batch, max);
    batch
}

/// Two endpoints with so many messages sent from the first to the second: 0, 1, 2 …
fn flooded(count: u32) -> (Endpoint<u32>, Endpoint<u32>) {
    let [first, second] = mesh(2, SIZES).try_into().expect("two endpoints");
    for number in 0..count {
        first.send(1, Lane::Normal, number).expect("there is room");
    }
    (first, second)
}

#[test]
fn an_endpoint_can_move_to_another_thread() {
    fn moves<T: Send>(_: &T) {}
    moves(&mesh::<Cell<u8>>(1, SIZES));
    moves(&spsc::pair::<Cell<u8>>(1));
}

#[test]
fn a_message_to_oneself_arrives() {
    let endpoints = mesh(1, SIZES);
    endpoints[0].send(0, Lane::Normal, 7).expect("there is room");
    assert_eq!(receive(&endpoints[0], 9), [(0, 7)]);
}

#[test]
fn the_urgent_lane_overtakes_the_normal_lane() {
    let (first, second) = flooded(2);
    first.send(1, Lane::Urgent, 100).expect("there is room");
    assert_eq!(receive(&second, 2), [(0, 100), (0, 0)]);
    assert_eq!(receive(&second, 2), [(0, 1)]);
}

#[test]
fn senders_take_turns_when_a_receive_is_short() {
    let endpoints = mesh(3, SIZES);
    for (sender, endpoint) in endpoints.iter().enumerate() {
        for _ in 0..2 {
            endpoint.send(2, Lane::Normal, sender).expect("there is room");
        }
    }
    let senders: Vec<_> = (0..6).flat_map(|_| receive(&endpoints[2], 1)).map(|(sender, _)| sender).collect();
    assert_eq!(senders, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn what_does_not_fit_comes_back_and_nothing_changes() {
    let (first, second) = flooded(ROOM);
    let before = first.depths();
    assert_eq!(first.send(1, Lane::Normal, 99), Err(Full { to: 1, message: 99 }));
    assert_eq!(first.depths(), before);
    assert_eq!((before.queued_out, second.depths().queued_in), (SIZES.outbox_max, SIZES.ring_slots));
    first.send(1, Lane::Urgent, 100).expect("the other lane has its own room");
    first.send(0, Lane::Normal, 100).expect("another destination has its own room");
}

#[test]
fn a_full_outbox_takes_more_once_the_receiver_has_received() {
    let (first, second) = flooded(ROOM);
    assert_eq!(receive(&second, 1), [(0, 0)]);
    first.send(1, Lane::Normal, ROOM).expect("one slot is free, so one message moves up");
    first.send(1, Lane::Normal, 99).expect_err("full again");
    let mut numbers = Vec::new();
    while first.depths().queued_out + second.depths().queued_in != 0 {
        numbers.extend(receive(&second, 9).into_iter().map(|(_, number)| number));
        receive(&first, 0);
    }
    assert_eq!(numbers, (1..=ROOM).collect::<Vec<_>>());
}

#[test]
fn only_a_sleeper_is_rung_and_only_once() {
    let (first, second) = flooded(1);
    let sleeper = Arc::new(Sleeper::default());
    assert_eq!(sleeper.wait(&second), Poll::Ready(()));
    receive(&second, 9);
    assert_eq!(sleeper.wait(&second), Poll::Pending);
    assert_eq!((sleeper.woken(), first.depths().bells_rung), (0, 0));
    for number in 0..3 {
        first.send(1, Lane::Normal, number).expect("there is room");
    }
    assert_eq!((sleeper.woken(), first.depths().bells_rung), (1, 1));
    assert_eq!(sleeper.wait(&second), Poll::Ready(()));
}

#[test]
fn a_sleeping_sender_is_rung_when_its_outbox_can_move() {
    let (first, second) = flooded(ROOM);
    let sleeper = Arc::new(Sleeper::default());
    assert_eq!(sleeper.wait(&first), Poll::Pending);
    receive(&second, 1);
    assert_eq!((sleeper.woken(), second.depths().bells_rung), (1, 1));
    assert_eq!(sleeper.wait(&first), Poll::Ready(()));
    assert!(receive(&first, 9).is_empty());
    assert_eq!(first.depths().queued_out, SIZES.outbox_max - 1);
    assert_eq!(sleeper.wait(&first), Poll::Pending, "the credit is used up");
}

#[test]
fn a_receiver_whose_sender_is_not_blocked_rings_nobody() {
    let (first, second) = flooded(2);
    let sleeper = Arc::new(Sleeper::default());
    assert_eq!(sleeper.wait(&first), Poll::Pending);
    receive(&second, 9);
    assert_eq!((sleeper.woken(), second.depths().bells_rung), (0, 0));
}

#[test]
fn send_each_stops_at_the_first_that_is_full() {
    let endpoints = mesh(3, SIZES);
    for number in 0..ROOM {
        endpoints[0].send(1, Lane::Normal, number).expect("there is room");
    }
    let outcome = endpoints[0].send_each(Lane::Normal, |id| Some(100 + u32::try_from(id).expect("small")));
    assert_eq!(outcome, Err(Full { to: 1, message: 101 }));
    assert_eq!(receive(&endpoints[0], 9), [(0, 100)]);
    assert!(receive(&endpoints[2], 9).is_empty());
}

#[test]
fn more_endpoints_than_one_word_has_bits_all_reach_each_other() {
    let endpoints = mesh(130, SIZES);
    for endpoint in &endpoints {
        endpoint.send_each(Lane::Normal, |to| Some((endpoint.id(), to))).expect("there is room");
    }
    for endpoint in &endpoints {
        let batch = receive(endpoint, usize::MAX);
        assert!(batch.into_iter().eq((0..130).map(|from| (from, (from, endpoint.id())))));
    }
}

#[test]
fn an_endpoint_that_goes_takes_its_waker_along() {
    let (first, second) = flooded(0);
    let sleeper = Arc::new(Sleeper::default());
    assert_eq!(sleeper.wait(&second), Poll::Pending);
    assert_eq!(Arc::strong_count(&sleeper), 2);
    drop(second);
    assert_eq!(Arc::strong_count(&sleeper), 1);
    first.send(1, Lane::Normal, 1).expect("the ring is still there");
    assert_eq!((sleeper.woken(), first.depths().bells_rung), (0, 0));
}

/// Each clone is a message; the count of the original tells how many live.
type Token = Arc<()>;

#[test]
fn every_message_is_dropped_once_wherever_it_is() {
    // Each order of going, with messages in rings, in outboxes, received, and refused.
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let token: Token = Arc::new(());
        let mut endpoints: Vec<Option<Endpoint<Token>>> = mesh(3, SIZES).into_iter().map(Some).collect();
        for lane in Lane::ALL {
            for endpoint in endpoints.iter().flatten() {
                for _ in 0..ROOM + 2 {
                    drop(endpoint.send_each(lane, |to| (to != 2).then(|| Arc::clone(&token))));
                }
            }
        }
        let inside = 3 * 2 * 2 * ROOM as usize;
        assert_eq!(Arc::strong_count(&token), 1 + inside);
        let taken = endpoints[0].as_ref().map_or(0, |endpoint| receive(endpoint, 10).len());
        assert_eq!(Arc::strong_count(&token), 1 + inside - taken);
        for id in order {
            endpoints[id] = None;
        }
        assert_eq!(Arc::strong_count(&token), 1);
    }
}

#[test]
fn a_ring_drops_what_is_left_also_after_it_has_wrapped() {
    let token: Token = Arc::new(());
    let (mut producer, mut consumer) = spsc::pair(4);
    for _ in 0..7 {
        producer.push(Arc::clone(&token)).expect("there is room");
        drop(consumer.pop().expect("there is a message"));
    }
    for _ in 0..4 {
        producer.push(Arc::clone(&token)).expect("there is room");
    }
    drop(producer.push(Arc::clone(&token)).expect_err("full"));
    assert_eq!(Arc::strong_count(&token), 5);
    drop(producer);
    drop(consumer.pop());
    assert_eq!(Arc::strong_count(&token), 4);
    drop(consumer);
    assert_eq!(Arc::strong_count(&token), 1);
}

#[test]
fn the_tasks_of_a_core_share_an_endpoint_in_an_rc() {
    let [first, second] = mesh(2, SIZES).try_into().expect("two endpoints");
    let shared = Rc::new(first);
    let again = Rc::clone(&shared);
    // Sending from inside the choice of a message: the endpoint holds no borrow while it asks.
    shared
        .send_each(Lane::Normal, |to| {
            again.send(1, Lane::Urgent, 10 + to).expect("there is room");
            (to == 1).then_some(1)
        })
        .expect("there is room");
    assert_eq!(receive(&second, 9), [(0, 10), (0, 11), (0, 1)]);
}

#[test]
#[should_panic(expected = "power of two")]
fn a_ring_of_three_slots_is_refused() {
    drop(mesh::<u8>(2, Sizes { ring_slots: 3, outbox_max: 1 }));
}
