//! The rules of token slots: what a change of a pool's unlock mechanisms comes to.
//!
//! A change that asks for what is there already is none, and `None` here. Two cases are none though they
//! look like it: a Clevis configuration without a named slot is bound again each time, and rebinding
//! one fetches what its server says now.
//!
//! Invariant: what comes out has a taken slot and no more than `TOKENS_MAX`.

use crate::limits::TOKENS_MAX;
use crate::model::token::{KeyDescription, Kind, Mechanism, Slot, TokenChange, TokenFault, Tokens};

/// What the slots hold after a change; `None` where nothing changes.
///
/// # Errors
/// When the change cannot be.
pub fn apply(tokens: &Tokens, change: &TokenChange) -> Result<Option<Tokens>, TokenFault> {
    match change {
        TokenChange::Bind(mechanism, slot) => bind(tokens, mechanism, *slot),
        TokenChange::RebindKey(key, slot) => rebind_key(tokens, key, *slot),
        TokenChange::RebindClevis(slot) => {
            held(tokens, Kind::Clevis, *slot)?;
            Ok(Some(tokens.clone()))
        }
        TokenChange::Unbind(kind, slot) => unbind(tokens, *kind, *slot),
    }
}

fn bind(tokens: &Tokens, mechanism: &Mechanism, slot: Slot) -> Result<Option<Tokens>, TokenFault> {
    // Also where it is bound already: clients know it so.
    if tokens.count() >= TOKENS_MAX {
        return Err(TokenFault::Full);
    }
    let kind = mechanism.kind();
    let wanted = match slot {
        Slot::At(slot) => match tokens.get(slot) {
            None => slot,
            Some(held) if held == mechanism => return Ok(None),
            Some(held) => return Err(TokenFault::SlotTaken { slot, held: held.kind() }),
        },
        Slot::Free if kind == Kind::Key && tokens.iter().any(|(_, held)| held == mechanism) => return Ok(None),
        Slot::Free => tokens.lowest_free(),
        Slot::Sole => match tokens.lowest(kind) {
            None => tokens.lowest_free(),
            Some((_, held)) if held == mechanism => return Ok(None),
            Some((slot, _)) => return Err(TokenFault::OtherBound(kind, slot)),
        },
    };
    Ok(Some(tokens.with(wanted, mechanism.clone())))
}

fn rebind_key(tokens: &Tokens, key: &KeyDescription, slot: Option<u32>) -> Result<Option<Tokens>, TokenFault> {
    let (slot, held) = held(tokens, Kind::Key, slot)?;
    let key = Mechanism::Key(key.clone());
    Ok((*held != key).then(|| tokens.with(slot, key)))
}

fn unbind(tokens: &Tokens, kind: Kind, slot: Option<u32>) -> Result<Option<Tokens>, TokenFault> {
    if tokens.count() < 2 {
        let (slot, _) = tokens.iter().next().expect("a slot is taken");
        return Err(TokenFault::Last { slot });
    }
    let there = match slot {
        None => tokens.lowest(kind).is_some(),
        Some(slot) => tokens.get(slot).is_some(),
    };
    if !there {
        return Ok(None);
    }
    let (slot, _) = held(tokens, kind, slot)?;
    Ok(Some(tokens.without(slot)))
}

/// The slot that is meant, with what of this kind it holds.
fn held(tokens: &Tokens, kind: Kind, slot: Option<u32>) -> Result<(u32, &Mechanism), TokenFault> {
    let Some(slot) = slot else {
        return tokens.lowest(kind).ok_or(TokenFault::NoneBound(kind));
    };
    let found = tokens.get(slot).filter(|held| held.kind() == kind);
    Ok((slot, found.ok_or(TokenFault::SlotHoldsNo { slot, wanted: kind })?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::token::Clevis;

    fn key(n: u8) -> KeyDescription {
        KeyDescription::try_from(&*format!("k{n}")).expect("a description")
    }

    fn clevis(n: u8) -> Mechanism {
        Mechanism::Clevis(Clevis::new("tang", &format!("{{\"n\":{n}}}")).expect("JSON"))
    }

    fn start() -> Tokens {
        Tokens::assign(vec![(None, Mechanism::Key(key(0)))]).expect("one fits")
    }

    /// The same rules once more, over a plain array and with letters for what is bound: `k0` is 'a', `k1`
    /// is 'b', …, the Clevis configurations are capitals. An error is just that.
    type Model = [Option<char>; 40];

    fn letter(mechanism: &Mechanism) -> char {
        match mechanism {
            Mechanism::Key(key) => char::from(b'a' + key.as_str().as_bytes()[1] - b'0'),
            Mechanism::Clevis(clevis) => char::from(b'A' + clevis.config().as_bytes()[5] - b'0'),
        }
    }

    /// Changed, or nothing to do, or refused.
    fn expected(model: &mut Model, change: &TokenChange) -> Result<bool, ()> {
        let taken = model.iter().flatten().count();
        let first = |model: &Model, capital: bool| {
            model.iter().position(|held| held.is_some_and(|held| held.is_uppercase() == capital))
        };
        let free = model.iter().position(Option::is_none).ok_or(())?;
        match change {
            TokenChange::Bind(..) if taken >= 15 => Err(()),
            TokenChange::Bind(what, slot) => {
                let what = letter(what);
                let place = match slot {
                    Slot::Free if what.is_lowercase() && model.contains(&Some(what)) => return Ok(false),
                    Slot::Free => free,
                    Slot::At(slot) => *slot as usize,
                    Slot::Sole => first(model, what.is_uppercase()).unwrap_or(free),
                };
                match model[place] {
                    Some(held) if held == what => Ok(false),
                    Some(_) => Err(()),
                    None => {
                        model[place] = Some(what);
                        Ok(true)
                    }
                }
            }
            TokenChange::RebindKey(key, slot) => {
                let place = slot.map(|slot| slot as usize).or_else(|| first(model, false)).ok_or(())?;
                let held = model[place].filter(char::is_ascii_lowercase).ok_or(())?;
                model[place] = Some(letter(&Mechanism::Key(key.clone())));
                Ok(model[place] != Some(held))
            }
            TokenChange::RebindClevis(slot) => {
                let place = slot.map(|slot| slot as usize).or_else(|| first(model, true)).ok_or(())?;
                model[place].filter(char::is_ascii_uppercase).map(|_| true).ok_or(())
            }
            TokenChange::Unbind(..) if taken < 2 => Err(()),
            TokenChange::Unbind(kind, slot) => {
                let capital = *kind == Kind::Clevis;
                let Some(place) = slot.map(|slot| slot as usize).or_else(|| first(model, capital)) else {
                    return Ok(false);
                };
                match model[place] {
                    None => Ok(false),
                    Some(held) if held.is_uppercase() == capital => {
                        model[place] = None;
                        Ok(true)
                    }
                    Some(_) => Err(()),
                }
            }
        }
    }

    fn changes() -> impl Strategy<Value = TokenChange> {
        let slot = || prop::option::of(0u32..18);
        let mechanism = prop_oneof![(0u8..4).prop_map(|n| Mechanism::Key(key(n))), (0u8..4).prop_map(clevis)];
        let place = prop_oneof![Just(Slot::Free), Just(Slot::Sole), (0u32..18).prop_map(Slot::At)];
        let kind = || prop_oneof![Just(Kind::Key), Just(Kind::Clevis)];
        prop_oneof![
            4 => (mechanism, place).prop_map(|(mechanism, slot)| TokenChange::Bind(mechanism, slot)),
            1 => (0u8..4, slot()).prop_map(|(n, slot)| TokenChange::RebindKey(key(n), slot)),
            1 => slot().prop_map(TokenChange::RebindClevis),
            2 => (kind(), slot()).prop_map(|(kind, slot)| TokenChange::Unbind(kind, slot)),
        ]
    }

    proptest! {
        #[test]
        fn slots_follow_the_rules(all in prop::collection::vec(changes(), 1..80)) {
            let mut tokens = start();
            let mut model: Model = [None; 40];
            model[0] = Some('a');
            for change in &all {
                let outcome = apply(&tokens, change);
                let told = outcome.as_ref().map(Option::is_some).map_err(|_| ());
                prop_assert_eq!(told, expected(&mut model, change), "{:?}", change);
                if let Ok(Some(after)) = outcome {
                    tokens = after;
                }
                let held: Vec<_> = tokens.iter().map(|(slot, held)| (slot as usize, letter(held))).collect();
                let wanted: Vec<_> = (0..).zip(&model).filter_map(|(slot, held)| Some((slot, (*held)?))).collect();
                prop_assert_eq!(held, wanted);
                prop_assert!((1..=TOKENS_MAX).contains(&tokens.count()));
            }
        }
    }

    #[test]
    fn a_full_pool_refuses_also_what_is_bound_already() {
        let bind = |n: u32| TokenChange::Bind(clevis(0), Slot::At(n));
        let full = (1..15).fold(start(), |tokens, n| apply(&tokens, &bind(n)).expect("free").expect("new"));
        assert_eq!(apply(&full, &bind(1)), Err(TokenFault::Full));
        assert_eq!(apply(&full, &TokenChange::Bind(Mechanism::Key(key(0)), Slot::Free)), Err(TokenFault::Full));
    }

    #[test]
    fn the_last_way_in_stays() {
        let only = TokenChange::Unbind(Kind::Key, Some(0));
        assert_eq!(apply(&start(), &only), Err(TokenFault::Last { slot: 0 }));
        assert!(matches!(apply(&start(), &TokenChange::Unbind(Kind::Clevis, Some(32))), Err(TokenFault::Last { .. })));
        let two = apply(&start(), &TokenChange::Bind(clevis(1), Slot::Free)).expect("free").expect("new");
        assert_eq!(apply(&two, &TokenChange::Unbind(Kind::Clevis, Some(32))), Ok(None));
        assert!(apply(&two, &only).expect("another is left").is_some());
    }
}
