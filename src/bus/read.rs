//! The reading half of the connection: bytes and descriptors in, whole messages out.
//!
//! It never waits for the writing half. It stops reading only while far too much waits to be sent,
//! so that a client that floods us meets its own bus daemon's bounds, not our memory.
//!
//! Invariant: a message gets as many descriptors as it announces, in the order in which they came;
//! the kernel delivers them no later than the first byte of their message. Those that no message
//! announced are closed.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use cores::rt;
use cores::side::{Buffer, Fd, Side};

use crate::bus::incoming::{self, Unreadable};
use crate::bus::run::{BusFault, Shared};
use crate::limits::{BUS_READ_BYTES, BUS_READ_CALLS};

/// Bytes that are not yet a message.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
    start: usize,
    descriptors: VecDeque<OwnedFd>,
}

/// One whole message.
#[derive(Debug)]
pub struct Received<'a> {
    /// All of its bytes.
    pub bytes: &'a mut [u8],
    /// What came with it; closed when this is dropped.
    pub descriptors: Vec<OwnedFd>,
}

impl Reader {
    /// These came from the socket.
    pub fn handle_received(&mut self, bytes: &[u8], descriptors: Vec<OwnedFd>) {
        self.bytes.drain(..self.start);
        self.start = 0;
        if self.bytes.is_empty() {
            // After a large message its memory goes.
            self.bytes.shrink_to(2 * BUS_READ_BYTES);
        }
        self.bytes.extend_from_slice(bytes);
        self.descriptors.extend(descriptors);
    }

    /// The next whole message.
    pub fn poll_message(&mut self) -> Result<Option<Received<'_>>, Unreadable> {
        let rest = &mut self.bytes[self.start..];
        if rest.is_empty() {
            // They came with messages that were read and did not announce them.
            self.descriptors.clear();
        }
        let Some(length) = incoming::length(rest)?.filter(|length| *length <= rest.len()) else {
            return Ok(None);
        };
        self.start += length;
        let bytes = &mut rest[..length];
        let count = incoming::descriptors(bytes)?.min(self.descriptors.len());
        Ok(Some(Received { bytes, descriptors: self.descriptors.drain(..count).collect() }))
    }

    /// Bytes of memory that are kept for what comes.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.bytes.capacity()
    }
}

/// Reads until the connection ends; that is an error unless we are leaving.
pub(super) async fn read(side: Rc<Side>, socket: Fd, shared: Rc<Shared>) -> Result<(), BusFault> {
    let mut reader = Reader::default();
    let mut buffer = Buffer::aligned(BUS_READ_BYTES, 8);
    loop {
        shared.room().await;
        rt::stage("receive");
        let (result, back) = side.receive(&socket, buffer).await;
        buffer = back;
        let (count, descriptors) = match result {
            Ok((0, _)) if shared.is_leaving() => return Ok(()),
            Ok((0, _)) => return Err(BusFault::Closed),
            Ok(received) => received,
            Err(_) if shared.is_leaving() => return Ok(()),
            Err(error) => return Err(BusFault::Socket { doing: "read", error }),
        };
        reader.handle_received(&buffer[..count], descriptors);
        rt::stage("decode");
        handle_all(&mut reader, &shared).await?;
    }
}

/// A batch is handed on before the next is looked at, so that a burst of calls shares the core.
async fn handle_all(reader: &mut Reader, shared: &Shared) -> Result<(), BusFault> {
    loop {
        for _ in 0..BUS_READ_CALLS {
            let Some(received) = reader.poll_message()? else {
                shared.hand_on();
                return Ok(());
            };
            shared.handle_message(received.bytes, received.descriptors.into());
        }
        shared.hand_on();
        rt::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bus::encode::tests::Call;
    use crate::bus::value::Value;

    proptest! {
        #[test]
        fn messages_come_out_whole_however_the_bytes_arrive(cuts in prop::collection::vec(1usize..80, 1..60)) {
            let args = [Value::text("some words"), Value::U64(3)];
            let one = Call::new("/a", "x.y", "One", &args).bytes();
            let two = Call::new("/a", "x.y", "Two", &[]).bytes();
            let all = [&one[..], &two, &one, &two].concat();
            let mut reader = Reader::default();
            let mut out = Vec::new();
            let mut rest = &all[..];
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                rest = later;
                reader.handle_received(now, Vec::new());
                while let Some(received) = reader.poll_message().expect("well-formed") {
                    out.push(received.bytes.to_vec());
                }
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(out, vec![one.clone(), two.clone(), one, two]);
        }
    }

    #[test]
    fn each_message_gets_its_own_descriptors() {
        let file = || OwnedFd::from(tempfile::tempfile().expect("a file"));
        let call = |descriptors| Call { descriptors, ..Call::new("/a", "x.y", "M", &[]) }.bytes();
        let mut reader = Reader::default();
        reader.handle_received(&[call(0), call(2), call(1)].concat(), vec![file(), file(), file()]);
        let mut counts = Vec::new();
        while let Some(received) = reader.poll_message().expect("well-formed") {
            counts.push(received.descriptors.len());
        }
        assert_eq!(counts, [0, 2, 1]);
    }
}
