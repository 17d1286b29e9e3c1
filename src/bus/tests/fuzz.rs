//! Every method of every revision with random arguments of the right types, and some of the wrong.
//!
//! A panic in decoding is caught by the core and answered with a text that names a bug; here that
//! text is a failure.

use super::*;
use crate::bus::table::{BLOCKDEV, FILESYSTEM, Family, MANAGER, POOL, REPORT, arguments};
use crate::descriptors::Descriptors;

/// A value of the type that begins here, and what is left of the signature.
fn random<'s>(signature: &'s str, seed: &mut fastrand::Rng) -> (Value, &'s str) {
    let (kind, rest) = signature.split_at(1);
    let texts = ["", "a", "pool1", "name", "uuid", "/dev/a", "any", "-1", "536870912", "\u{200b}", "512b", "a\u{85}"];
    match kind {
        "b" => (Value::Flag(seed.bool()), rest),
        "q" => (Value::U16(seed.u16(..)), rest),
        "u" | "h" => (Value::U32(if seed.bool() { seed.u32(..3) } else { seed.u32(..) }), rest),
        "t" => (Value::U64(if seed.bool() { 4096 } else { seed.u64(..) }), rest),
        "s" => (text(seed.choice(texts).expect("not empty")), rest),
        "o" => (path(seed.u64(..5)), rest),
        "(" => {
            let mut members = Vec::new();
            let mut rest = rest;
            while !rest.starts_with(')') {
                let (member, left) = random(rest, seed);
                members.push(member);
                rest = left;
            }
            (Value::Struct(members), &rest[1..])
        }
        "a" => {
            let (first, left) = random(rest, seed);
            let mut items = vec![first];
            while seed.bool() {
                items.push(random(rest, seed).0);
            }
            let count = seed.usize(..=items.len());
            items.truncate(count);
            // Descriptors are numbers on the wire.
            let item = rest[..rest.len() - left.len()].replace('h', "u");
            (Value::Array(item.leak(), items), left)
        }
        other => panic!("no argument has type {other}"),
    }
}

fn every_method<V>(bus: &mut Bus, family: &Family<V>, at: &str, seed: &mut fastrand::Rng) {
    for rev in 0..=LATEST {
        for row in family.methods_at(rev) {
            let signature: String = arguments(row.args).map(|(_, kind)| kind).collect();
            let mut values = Vec::new();
            let mut rest = &*signature;
            while !rest.is_empty() {
                let (value, left) = random(rest, seed);
                values.push(value);
                rest = left;
            }
            let interface = family.interface_at(rev);
            let call = Call::new(at, &interface, row.name, &values);
            let call = Call { signature: Some(&signature), descriptors: seed.u32(..2), ..call };
            one_outcome(bus, &call);
            let fewer = &values[..values.len().saturating_sub(1)];
            one_outcome(bus, &Call::new(at, &interface, row.name, fewer));
        }
    }
}

/// Each call has exactly one outcome: a request, or an answer that names no bug.
fn one_outcome(bus: &mut Bus, call: &Call<'_>) {
    send(bus, call);
    if let Some(request) = bus.poll_request() {
        bus.handle_reply(Reply { call: request.call, outcome: Ok(Answer::Identity) });
    }
    if let Some(call) = bus.poll_refresh() {
        bus.handle_reply(Reply { call, outcome: Ok(Answer::Set) });
    }
    assert!(bus.poll_request().is_none());
    let messages = drain(bus);
    assert_eq!(messages.len(), 1, "{} {}", call.interface, call.member);
    let said = format!("{:?}", values(&messages[0]));
    assert!(!said.contains("bug in stratisd"), "{} {} {said}", call.interface, call.member);
}

#[test]
fn no_arguments_of_the_right_types_are_a_bug() {
    for seed in 0..100 {
        let mut seed = fastrand::Rng::with_seed(seed);
        let mut bus = bus();
        bus.handle_views(vec![View::Stopped(stopped(2, Some("a"))), View::Stopped(stopped(3, None))]);
        drain(&mut bus);
        every_method(&mut bus, &MANAGER, TOP, &mut seed);
        every_method(&mut bus, &REPORT, TOP, &mut seed);
        every_method(&mut bus, &POOL, "/org/storage/stratis3/0", &mut seed);
        every_method(&mut bus, &FILESYSTEM, "/org/storage/stratis3/1", &mut seed);
        every_method(&mut bus, &BLOCKDEV, "/org/storage/stratis3/2", &mut seed);
    }
}

#[test]
fn no_damaged_message_is_a_bug() {
    let args = create_args();
    let interface = manager(9);
    let whole = Call::new(TOP, &interface, "CreatePool", &args).bytes();
    for seed in 0..2_000 {
        let mut seed = fastrand::Rng::with_seed(seed);
        let mut bus = bus();
        let mut bytes = whole.clone();
        for _ in 0..seed.usize(1..4) {
            let at = seed.usize(..bytes.len());
            bytes[at] = seed.u8(..);
        }
        let known = bus.handle_message(&mut bytes, Descriptors::default()).is_ok();
        let said: Vec<_> = drain(&mut bus).iter().map(|message| format!("{:?}", values(message))).collect();
        assert!(known || said.is_empty(), "what cannot be read is not answered");
        assert!(said.iter().all(|text| !text.contains("bug in stratisd")), "{said:?}");
    }
}

fn create_args() -> [Value; 7] {
    let (keys, clevis) = (Value::Array("((bu)s)", vec![]), Value::Array("((bu)ss)", vec![]));
    let sizes = [Value::U64(4096), text("0b"), Value::Flag(true)].map(|value| structure([Value::Flag(true), value]));
    let [journal, tag, superblock] = sizes;
    let devices = Value::Array("s", vec![text("/dev/a"), text("/dev/b")]);
    [text("p"), devices, keys, clevis, journal, tag, superblock]
}
