//! Bytes from a hostile bus: messages that were truncated, spliced, damaged, in the other byte
//! order, with descriptors missing or too many, and conversations that are none.
//!
//! Real messages are the corpus, a seeded mutator damages them, and they arrive in pieces of random
//! lengths. Whatever comes is read, refused or left out: no panic, no bug in an answer, no memory
//! beyond what came, and every descriptor is closed.
//!
//! `FUZZ_INPUTS` says how many inputs are tried; `make test-long` tries a million.

use std::io::{self, PipeWriter, Write};

use super::*;
use crate::bus::auth::Auth;
use crate::bus::encode::Outgoing;
use crate::bus::incoming;
use crate::bus::read::Reader;

const INPUTS: u64 = 20_000;
/// Inputs after which a new world begins, so that what they change does not add up.
const INPUTS_IN_WORLD: u64 = 500;

fn inputs() -> u64 {
    std::env::var("FUZZ_INPUTS").map_or(INPUTS, |count| count.parse().expect("FUZZ_INPUTS is a number"))
}

// ---- messages ----------------------------------------------------------------------------------------

/// What clients and the bus send, each whole.
fn corpus() -> Vec<Vec<u8>> {
    let sizes = [Value::U64(4096), text("0b"), Value::Flag(true)].map(|value| pair(true, value));
    let [journal, tag, superblock] = sizes;
    let (keys, clevis) = (Value::Array("((bu)s)", vec![]), Value::Array("((bu)ss)", vec![]));
    let devices = Value::Array("s", vec![text("/dev/a"), text("/dev/b")]);
    let create = [text("p"), devices, keys, clevis, journal, tag, superblock];
    let set = |depth| set_call(&pool_interface(9), "FsLimit", nested(depth));
    let specs = Value::Array("(s(bs)(bs))", vec![structure([text("f"), none(), some("1024")])]);
    let managed = "org.freedesktop.DBus.ObjectManager";
    let mut corpus: Vec<Vec<u8>> = [
        Call::new(TOP, PROPERTIES, "Get", &[text(&manager(0)), text("Version")]),
        Call::new(TOP, PROPERTIES, "GetAll", &[text(&manager(9))]),
        Call::new(TOP, managed, "GetManagedObjects", &[]),
        Call::new(TOP, "", "Introspect", &[]),
        Call::new(TOP, &manager(9), "CreatePool", &create),
        Call { descriptors: 1, ..Call::new(TOP, &manager(8), "StartPool", &start_args(8, "p", "name")) },
        Call { descriptors: 3, ..Call::new(TOP, &manager(9), "StartPool", &start_args(9, "p", "uuid")) },
        Call::new("/org/storage/stratis3/0", &pool_interface(9), "CreateFilesystems", &[specs]),
        Call::new("/org/storage/stratis3/0", PROPERTIES, "Set", &set(1)),
        Call::new("/org/storage/stratis3/0", PROPERTIES, "Set", &set(60)),
        Call::new("/org/storage/stratis3/0", PROPERTIES, "Set", &set(200)),
        Call { no_reply: true, ..Call::new(TOP, &manager(9), "StopPool", &[text("p"), text("name")]) },
    ]
    .iter()
    .map(Call::bytes)
    .collect();
    corpus.push(incoming::tests::descriptor_call(true, 1));
    corpus.push(incoming::tests::descriptor_call(false, 2));
    let signal = Outgoing::signal(1, "/org/freedesktop/DBus", "org.freedesktop.DBus", "NameOwnerChanged", "sss");
    corpus.push(signal.finish());
    corpus.push(Outgoing::returns(5, ":1.1", 1, &[Value::U32(1)]).finish());
    corpus.push(Outgoing::error(6, ":1.1", 2, UNKNOWN_METHOD, "no").finish());
    corpus
}

/// A number in so many variants.
fn nested(depth: usize) -> Value {
    (0..depth).fold(Value::U64(1), |inner, _| Value::Variant(Box::new(inner)))
}

/// Numbers that lengths and counts are replaced by.
const NUMBERS: [u32; 10] = [0, 1, 7, 0xff, 0xffff, (128 << 20) - 16, (128 << 20) + 1, 1 << 31, u32::MAX - 7, u32::MAX];

fn noise(dice: &mut fastrand::Rng, max: usize) -> Vec<u8> {
    let count = dice.usize(..max);
    std::iter::repeat_with(|| dice.u8(..)).take(count).collect()
}

/// One input: one message or several, damaged in a few ways or not at all.
fn input(corpus: &[Vec<u8>], dice: &mut fastrand::Rng) -> Vec<u8> {
    let pick = |dice: &mut fastrand::Rng| corpus[dice.usize(..corpus.len())].clone();
    let mut bytes = pick(dice);
    for _ in 0..dice.usize(..6) {
        let at = dice.usize(..=bytes.len());
        match dice.u8(..9) {
            0 => bytes.truncate(at),
            1 => bytes.extend(pick(dice)),
            2 => drop(bytes.splice(at.., pick(dice))),
            3 => drop(bytes.splice(..at, pick(dice))),
            4 => bytes.insert(at, dice.u8(..)),
            5 => bytes.extend(noise(dice, 40)),
            // Half of all messages are then in the order that they do not say.
            6 => bytes.iter_mut().take(1).for_each(|order| *order ^= b'l' ^ b'B'),
            7 => {
                let number = dice.choice(NUMBERS).expect("there are some").to_le_bytes();
                bytes.iter_mut().skip(at & !3).zip(number).for_each(|(byte, new)| *byte = new);
            }
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = dice.u8(..)),
        }
    }
    bytes
}

/// Feeds one input; `false` when the connection would have ended.
fn feed(bus: &mut Bus, bytes: &[u8], mut descriptors: Vec<OwnedFd>, dice: &mut fastrand::Rng) -> bool {
    let mut reader = Reader::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(dice.usize(1..=rest.len()));
        rest = later;
        reader.handle_received(now, std::mem::take(&mut descriptors));
        loop {
            match reader.poll_message() {
                Ok(None) => break,
                Ok(Some(received)) => {
                    // What cannot be read is left out.
                    let _known = deliver(bus, received.bytes, received.descriptors);
                }
                Err(_) => return false,
            }
        }
        assert!(reader.held() <= (2 * bytes.len()).max(4_096), "memory for what came, and no more");
    }
    true
}

/// Lets everything that waits leave, and says whether an answer names a bug.
fn names_a_bug(bus: &mut Bus) -> bool {
    while let Some(request) = bus.poll_request() {
        bus.handle_reply(Reply { call: request.call, outcome: Ok(Answer::Identity) });
    }
    let mut found = false;
    while let Some(out) = bus.poll_out() {
        let Out::Bytes(bytes) = out else { continue };
        found |= bytes.windows(15).any(|text| text == b"bug in stratisd");
    }
    found
}

/// True once every reader of the pipe is closed.
fn readers_are_gone(writer: &mut PipeWriter) -> bool {
    writer.write(b"x").is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[test]
fn no_bytes_are_too_much_for_the_reader() {
    let corpus = corpus();
    let mut bus = bus();
    let mut ended = 0;
    for seed in 0..inputs() {
        let mut dice = fastrand::Rng::with_seed(seed);
        let bytes = input(&corpus, &mut dice);
        let (pipe, mut writer) = io::pipe().expect("a pipe");
        // Some less, some more than the messages announce; in the kernel's way, with the first bytes.
        let count = dice.usize(..5);
        let descriptors = (0..count).map(|_| pipe.try_clone().expect("a descriptor").into()).collect();
        drop(pipe);
        ended += u64::from(!feed(&mut bus, &bytes, descriptors, &mut dice));
        assert!(!names_a_bug(&mut bus), "seed {seed}");
        assert!(readers_are_gone(&mut writer), "seed {seed}: a descriptor is left open");
        if seed % INPUTS_IN_WORLD == INPUTS_IN_WORLD - 1 {
            bus = super::bus();
        }
    }
    assert!(ended > 0 && ended < inputs(), "{ended}: the mutator reaches both sides");
}

#[test]
fn descriptors_that_nobody_announced_are_closed_with_the_message() {
    let mut reader = Reader::default();
    let (pipe, mut writer) = io::pipe().expect("a pipe");
    let call = Call { descriptors: 1, ..Call::new("/a", "x.y", "M", &[]) }.bytes();
    let sent = (0..3).map(|_| pipe.try_clone().expect("a descriptor").into()).collect();
    drop(pipe);
    reader.handle_received(&call, sent);
    let received = reader.poll_message().expect("well-formed").expect("whole");
    assert_eq!(received.descriptors.len(), 1);
    drop(received);
    assert!(reader.poll_message().expect("well-formed").is_none());
    assert!(readers_are_gone(&mut writer));
    // The next message gets its own.
    let (own, mut writer) = io::pipe().expect("a pipe");
    reader.handle_received(&call, vec![own.into()]);
    assert_eq!(reader.poll_message().expect("well-formed").expect("whole").descriptors.len(), 1);
    assert!(readers_are_gone(&mut writer));
}

#[test]
fn a_large_message_leaves_no_large_buffer() {
    let mut reader = Reader::default();
    let long = text(&"x".repeat(8 << 20));
    reader.handle_received(&Call::new("/a", "x.y", "M", &[long]).bytes(), Vec::new());
    assert!(reader.poll_message().expect("well-formed").is_some());
    reader.handle_received(&Call::new("/a", "x.y", "M", &[]).bytes(), Vec::new());
    assert!(reader.poll_message().expect("well-formed").is_some());
    assert!(reader.held() < 1 << 20, "{}", reader.held());
}

#[test]
fn variants_in_variants_are_read_or_refused_at_any_depth() {
    for depth in [1, 2, 31, 32, 33, 63, 64, 65, 66, 200, 5_000] {
        let mut bus = bus();
        let args = set_call(&pool_interface(9), "FsLimit", nested(depth));
        let call = Call::new("/org/storage/stratis3/0", PROPERTIES, "Set", &args);
        let known = deliver(&mut bus, &mut call.bytes(), Vec::new());
        assert!(!names_a_bug(&mut bus), "{depth}");
        assert_eq!(known, depth < 64, "{depth}: D-Bus allows 64 levels, the variant of Set is one");
    }
}

// ---- the conversation before -------------------------------------------------------------------------

#[test]
fn no_conversation_is_too_much_for_the_authentication() {
    let words: [&[u8]; 12] = [
        b"OK",
        b"REJECTED",
        b"ERROR",
        b"AGREE_UNIX_FD",
        b" ",
        b"\r\n",
        b"\r",
        b"\n",
        b"\0",
        b"1234deadbeef",
        b"DATA",
        b"\xff\xfe",
    ];
    for seed in 0..inputs() {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut auth = Auth::new(dice.u32(..));
        let (mut came, mut said) = (0, 0);
        for _ in 0..dice.usize(..30) {
            let mut bytes = dice.choice(words).expect("there are some").to_vec();
            if dice.u8(..8) == 0 {
                bytes = noise(&mut dice, 6_000);
            }
            came += bytes.len();
            let heard = auth.handle_bytes(&bytes);
            said += auth.poll_bytes().map_or(0, |bytes| bytes.len());
            if heard.is_err() {
                break;
            }
        }
        assert!(said < 200, "seed {seed}: {said} bytes in answer to {came}");
    }
}
