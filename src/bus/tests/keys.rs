//! Calls about keys, and the shapes in which calls name what unlocks a pool.

use super::*;
use crate::message::KeyWish;
use crate::model::token::{Clevis, Encryption, KeyChange, KeyDescription, Kind, Mechanism, Slot, TokenChange, Tokens};

fn description(text: &str) -> KeyDescription {
    KeyDescription::try_from(text).expect("a description")
}

fn key(text: &str) -> Mechanism {
    Mechanism::Key(description(text))
}

fn clevis(pin: &str, config: &str) -> Mechanism {
    Mechanism::Clevis(Clevis::new(pin, config).expect("JSON"))
}

fn no_slot() -> Value {
    pair(false, Value::U32(3))
}

fn set_key(bus: &mut Bus, index: u32, descriptors: u32) {
    let (args, interface) = ([text("k"), Value::U32(index)], manager(0));
    let call = Call { signature: Some("sh"), descriptors, ..Call::new(TOP, &interface, "SetKey", &args) };
    send(bus, &call);
}

#[test]
fn a_key_goes_with_the_descriptor_that_was_named() {
    let mut bus = bus();
    set_key(&mut bus, 1, 2);
    let request = bus.poll_request().expect("a request");
    assert_eq!(request.wish, Wish::Keys(KeyWish::Set(description("k"), 1)));
    assert_eq!(request.descriptors.count(), 2);
    let neither = pair(false, Value::Flag(false));
    for (change, expected) in [
        (KeyChange::New, pair(true, Value::Flag(false))),
        (KeyChange::Replaced, pair(true, Value::Flag(true))),
        (KeyChange::Same, neither.clone()),
    ] {
        set_key(&mut bus, 0, 1);
        let request = bus.poll_request().expect("a request");
        let messages = concluded(&mut bus, &request, vec![], Answer::KeySet(change));
        assert_eq!(triple(&messages), (expected, 0, "Ok".into()));
    }
    for (index, descriptors) in [(0, 0), (1, 1), (u32::MAX, 2)] {
        set_key(&mut bus, index, descriptors);
        assert!(bus.poll_request().is_none());
        assert_eq!(error_name(&drain(&mut bus)[0]), INVALID_ARGS);
    }
}

#[test]
fn all_shapes_of_create_pool_say_what_unlocks_it() {
    let devices = || Value::Array("s", vec![text("/dev/a")]);
    let old = || [some("k"), pair(true, structure([text("tang"), text("{ }")]))];
    for rev in 0..=LATEST {
        let mut bus = bus();
        let [old_key, old_clevis] = old();
        let slot = |slot| pair(true, Value::U32(slot));
        let args: Vec<Value> = match rev {
            0..=4 => vec![text("p"), pair(false, Value::U16(0)), devices(), old_key, old_clevis],
            5..=7 => vec![text("p"), devices(), old_key, old_clevis],
            _ => vec![
                text("p"),
                devices(),
                Value::Array("((bu)s)", vec![structure([slot(1), text("k")])]),
                Value::Array("((bu)ss)", vec![structure([slot(2), text("tang"), text("{ }")])]),
                pair(false, Value::U64(0)),
                none(),
                pair(false, Value::Flag(false)),
            ],
        };
        let (_, why) = code_1(&mut bus, TOP, &manager(rev), "CreatePool", &args);
        assert_eq!(why, Refusal::NoKey(description("k")).to_string());
        bus.handle_views(vec![View::Keys(vec![description("k")])]);
        assert!(drain(&mut bus).is_empty(), "keys are not announced");
        let request = asked(&mut bus, TOP, &manager(rev), "CreatePool", &args);
        let Wish::CreatePool { encryption, .. } = &request.wish else { panic!("{:?}", request.wish) };
        let expected = vec![(Some(1), key("k")), (Some(2), clevis("tang", "{}"))];
        assert_eq!(*encryption, Some(Tokens::assign(expected).expect("they fit")), "r{rev}");
    }
}

#[test]
fn all_shapes_of_changes_mean_what_they_meant() {
    let clevis = || clevis("tang", "{}");
    let cases: [(u8, &str, Vec<Value>, TokenChange); 10] = [
        (0, "BindKeyring", vec![text("k")], TokenChange::Bind(key("k"), Slot::Sole)),
        (8, "BindKeyring", vec![text("k"), no_slot()], TokenChange::Bind(key("k"), Slot::Free)),
        (9, "BindKeyring", vec![text("k"), pair(true, Value::U32(3))], TokenChange::Bind(key("k"), Slot::At(3))),
        (7, "BindClevis", vec![text("tang"), text(" {}")], TokenChange::Bind(clevis(), Slot::Sole)),
        (8, "BindClevis", vec![text("tang"), text("{}"), no_slot()], TokenChange::Bind(clevis(), Slot::Free)),
        (1, "RebindKeyring", vec![text("k")], TokenChange::RebindKey(description("k"), None)),
        (9, "RebindClevis", vec![pair(true, Value::U32(3))], TokenChange::RebindClevis(Some(3))),
        (2, "RebindClevis", vec![], TokenChange::RebindClevis(None)),
        (3, "UnbindKeyring", vec![], TokenChange::Unbind(Kind::Key, None)),
        (9, "UnbindClevis", vec![pair(true, Value::U32(0))], TokenChange::Unbind(Kind::Clevis, Some(0))),
    ];
    for (rev, member, args, change) in cases {
        let mut bus = bus();
        let pool = format!("{TOP}/0");
        let request = asked(&mut bus, &pool, &pool_interface(rev), member, &args);
        assert_eq!(request.wish, Wish::ChangeTokens(pool_id(1), change), "r{rev} {member}");
        let messages = concluded(&mut bus, &request, vec![], Answer::Set);
        assert_eq!(triple(&messages), (Value::Flag(true), 0, "Ok".into()));
    }
}

#[test]
fn a_running_encrypted_pool_is_started_already_whatever_is_supplied() {
    let mut bus = bus();
    let tokens = Tokens::assign(vec![(None, key("k"))]).expect("one fits");
    let encryption = Some(Encryption { tokens, reencrypted: None });
    bus.handle_views(vec![View::Pool(PoolView { encryption, ..pool(1) })]);
    drain(&mut bus);
    for method in [none(), some("any"), some("clevis")] {
        let args = [text(&pool_id(1).simple()), method];
        let values = returned(&mut bus, TOP, &manager(2), "StartPool", &args);
        assert_eq!(values[1], Value::U16(0), "{values:?}");
    }
}
