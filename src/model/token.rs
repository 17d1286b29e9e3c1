//! What unlocks an encrypted pool: keys and Clevis configurations, each in a numbered token slot.
//!
//! Invariants: a slot holds one of them, at most `TOKENS_MAX` slots are taken and at least one is; a
//! Clevis configuration is JSON in one spelling, so equal ones are equal texts.
//!
//! Deliberately absent: what may be bound and taken away (`engine::token`), and whether a key or a
//! Clevis server is there. No secret is in here: a key is known by its description.

use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

use crate::limits::{CLEVIS_BYTES_MAX, KEY_DESCRIPTION_BYTES_MAX, TOKENS_MAX};

/// Which kind of mechanism.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A key of the key ring.
    Key,
    /// A Clevis configuration.
    Clevis,
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Key => "key",
            Self::Clevis => "Clevis configuration",
        })
    }
}

/// Why something about tokens cannot be.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
#[allow(missing_docs, reason = "the text of each variant is its documentation")]
pub enum TokenFault {
    #[error("key description {tried:?} contains a semicolon, which separates keys in the kernel's list of them")]
    Semicolon { tried: String },
    #[error("a key description of {bytes} bytes is too long: at most {KEY_DESCRIPTION_BYTES_MAX} are allowed")]
    LongDescription { bytes: usize },
    #[error("the Clevis configuration for pin {pin:?} is not JSON, at line {line}, column {column}")]
    Json { pin: String, line: usize, column: usize },
    #[error("a Clevis configuration of {bytes} bytes is too long: at most {CLEVIS_BYTES_MAX} are allowed")]
    LongClevis { bytes: usize },
    #[error("token slot {0} is asked for twice")]
    SlotTwice(u32),
    #[error("{asked} ways to unlock a pool are too many: at most {TOKENS_MAX} are possible")]
    TooMany { asked: usize },
    #[error("neither a key nor a Clevis configuration was given to encrypt with")]
    NoneGiven,
    #[error("all {TOKENS_MAX} token slots of the pool are taken")]
    Full,
    #[error("token slot {slot} holds another {held}")]
    SlotTaken { slot: u32, held: Kind },
    #[error("token slot {slot} holds no {wanted}")]
    SlotHoldsNo { slot: u32, wanted: Kind },
    #[error("the pool has another {0} already, in token slot {1}")]
    OtherBound(Kind, u32),
    #[error("the pool has no {0}")]
    NoneBound(Kind),
    #[error("token slot {slot} is the only one that is taken: without it the pool could never be unlocked")]
    Last { slot: u32 },
}

/// The name of a key in the key ring. May be empty.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct KeyDescription(String);

impl KeyDescription {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for KeyDescription {
    type Error = TokenFault;

    fn try_from(text: &str) -> Result<Self, TokenFault> {
        if text.len() > KEY_DESCRIPTION_BYTES_MAX {
            return Err(TokenFault::LongDescription { bytes: text.len() });
        }
        if text.contains(';') {
            return Err(TokenFault::Semicolon { tried: text.to_owned() });
        }
        Ok(Self(text.to_owned()))
    }
}

/// What a key in the key ring became.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyChange {
    /// It was there with this value.
    Same,
    /// It is new.
    New,
    /// It had another value.
    Replaced,
}

/// A Clevis configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Clevis {
    pin: String,
    config: String,
}

impl Clevis {
    /// Of a pin and its configuration in any spelling of JSON.
    ///
    /// # Errors
    /// It is not JSON, or too long.
    pub fn new(pin: &str, config: &str) -> Result<Self, TokenFault> {
        let bytes = pin.len() + config.len();
        if bytes > CLEVIS_BYTES_MAX {
            return Err(TokenFault::LongClevis { bytes });
        }
        let value: serde_json::Value = serde_json::from_str(config).map_err(|error| TokenFault::Json {
            pin: pin.to_owned(),
            line: error.line(),
            column: error.column(),
        })?;
        // Written anew: keys in order, no white space.
        Ok(Self { pin: pin.to_owned(), config: value.to_string() })
    }

    /// Which program decrypts.
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// Its configuration, as JSON.
    pub fn config(&self) -> &str {
        &self.config
    }
}

/// One way to unlock a pool.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Mechanism {
    /// With a key of the key ring.
    Key(KeyDescription),
    /// With Clevis.
    Clevis(Clevis),
}

impl Mechanism {
    /// Which kind it is.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Key(_) => Kind::Key,
            Self::Clevis(_) => Kind::Clevis,
        }
    }
}

/// Where something is to be bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Slot {
    /// In the lowest free slot.
    Free,
    /// In this one.
    At(u32),
    /// In the lowest free slot, and only if nothing of its kind is bound: clients that know no slots take
    /// a pool to have one of each kind.
    Sole,
}

/// A change of what unlocks a pool. Where no slot is named, the lowest of the kind is meant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TokenChange {
    /// One more way.
    Bind(Mechanism, Slot),
    /// Another key in the place of one.
    RebindKey(KeyDescription, Option<u32>),
    /// The same Clevis configuration, with what its server says now.
    RebindClevis(Option<u32>),
    /// One way less.
    Unbind(Kind, Option<u32>),
}

/// What is in the token slots of a pool.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tokens(BTreeMap<u32, Mechanism>);

impl Tokens {
    /// Gives everything that names no slot the lowest one that is left, in the order of the list.
    ///
    /// # Errors
    /// One slot is named twice, or there are too many, or none.
    pub fn assign(asked: Vec<(Option<u32>, Mechanism)>) -> Result<Self, TokenFault> {
        let count = asked.len();
        let mut tokens = Self(BTreeMap::new());
        let (named, free): (Vec<_>, Vec<_>) = asked.into_iter().partition(|(slot, _)| slot.is_some());
        for (slot, mechanism) in named.into_iter().filter_map(|(slot, mechanism)| Some((slot?, mechanism))) {
            if tokens.0.insert(slot, mechanism).is_some() {
                return Err(TokenFault::SlotTwice(slot));
            }
        }
        if count == 0 {
            return Err(TokenFault::NoneGiven);
        }
        if count > TOKENS_MAX {
            return Err(TokenFault::TooMany { asked: count });
        }
        for (_, mechanism) in free {
            tokens.0.insert(tokens.lowest_free(), mechanism);
        }
        Ok(tokens)
    }

    /// Each taken slot with what it holds, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Mechanism)> {
        self.0.iter().map(|(slot, mechanism)| (*slot, mechanism))
    }

    /// What a slot holds.
    pub fn get(&self, slot: u32) -> Option<&Mechanism> {
        self.0.get(&slot)
    }

    /// How many slots are taken.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The lowest slot that holds one of a kind.
    pub fn lowest(&self, kind: Kind) -> Option<(u32, &Mechanism)> {
        self.iter().find(|(_, mechanism)| mechanism.kind() == kind)
    }

    /// The lowest slot that holds nothing.
    pub fn lowest_free(&self) -> u32 {
        (0..).find(|slot| !self.0.contains_key(slot)).expect("few slots are taken")
    }

    /// The key in the lowest slot that holds one.
    pub fn key(&self) -> Option<&KeyDescription> {
        self.keys().next().map(|(_, key)| key)
    }

    /// The Clevis configuration in the lowest slot that holds one.
    pub fn clevis(&self) -> Option<&Clevis> {
        self.clevis_all().next().map(|(_, clevis)| clevis)
    }

    /// Slots that hold keys.
    pub fn keys(&self) -> impl Iterator<Item = (u32, &KeyDescription)> {
        self.iter().filter_map(|(slot, mechanism)| match mechanism {
            Mechanism::Key(key) => Some((slot, key)),
            Mechanism::Clevis(_) => None,
        })
    }

    /// Slots that hold Clevis configurations.
    pub fn clevis_all(&self) -> impl Iterator<Item = (u32, &Clevis)> {
        self.iter().filter_map(|(slot, mechanism)| match mechanism {
            Mechanism::Key(_) => None,
            Mechanism::Clevis(clevis) => Some((slot, clevis)),
        })
    }

    /// The same with another content of a slot.
    #[must_use]
    pub fn with(&self, slot: u32, mechanism: Mechanism) -> Self {
        let mut tokens = self.clone();
        tokens.0.insert(slot, mechanism);
        tokens
    }

    /// The same with an empty slot.
    #[must_use]
    pub fn without(&self, slot: u32) -> Self {
        let mut tokens = self.clone();
        tokens.0.remove(&slot);
        tokens
    }
}

/// The encryption of a running pool as clients see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Encryption {
    /// What unlocks it.
    pub tokens: Tokens,
    /// When it last got a new volume key on request, in Unix seconds.
    pub reencrypted: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Mechanism {
        Mechanism::Key(KeyDescription::try_from(text).expect("a description"))
    }

    #[test]
    fn a_description_is_anything_that_the_kernels_list_can_show() {
        for text in ["", " ", "a b", "k\u{e9}y", &"x".repeat(KEY_DESCRIPTION_BYTES_MAX)] {
            assert_eq!(KeyDescription::try_from(text).expect("fine").as_str(), text);
        }
        assert!(matches!(KeyDescription::try_from("a;b"), Err(TokenFault::Semicolon { .. })));
        let long = "x".repeat(KEY_DESCRIPTION_BYTES_MAX + 1);
        assert!(matches!(KeyDescription::try_from(&*long), Err(TokenFault::LongDescription { .. })));
    }

    #[test]
    fn a_configuration_has_one_spelling() {
        let spelled = |text: &str| Clevis::new("tang", text).map(|clevis| clevis.config().to_owned());
        let canonical = Ok(r#"{"thp":"y","url":"x"}"#.to_owned());
        assert_eq!(spelled(r#"{"url": "x", "thp":"y"}"#), canonical);
        assert_eq!(spelled("{\n\"thp\":\"y\",\t\"url\":\"x\"}"), canonical);
        assert_eq!(spelled(r#"{"b":{"d":1,"c":[2, 1]},"a":null}"#), Ok(r#"{"a":null,"b":{"c":[2,1],"d":1}}"#.into()));
        assert_eq!(spelled(" 7 "), Ok("7".into()), "any JSON will do");
        for text in ["", "{", "{'a':1}", "{} x", &"[".repeat(10_000)] {
            assert!(matches!(spelled(text), Err(TokenFault::Json { .. })), "{text:.9}");
        }
        let long = format!("\"{}\"", "x".repeat(CLEVIS_BYTES_MAX));
        assert!(matches!(spelled(&long), Err(TokenFault::LongClevis { .. })));
    }

    #[test]
    fn who_names_no_slot_gets_the_lowest_that_is_left() {
        let asked = vec![(None, key("a")), (Some(0), key("b")), (Some(2), key("c")), (None, key("d"))];
        let tokens = Tokens::assign(asked).expect("four fit");
        let held: Vec<_> = tokens.keys().map(|(slot, key)| (slot, key.as_str())).collect();
        assert_eq!(held, [(0, "b"), (1, "a"), (2, "c"), (3, "d")]);
        assert_eq!(tokens.lowest_free(), 4);
    }

    #[test]
    fn slots_are_bounded_and_distinct() {
        let many = |count: u32| (0..count).map(|slot| (Some(slot * 1000), key("k"))).collect::<Vec<_>>();
        assert!(Tokens::assign(many(15)).is_ok());
        assert_eq!(Tokens::assign(many(16)), Err(TokenFault::TooMany { asked: 16 }));
        assert_eq!(Tokens::assign(Vec::new()), Err(TokenFault::NoneGiven));
        let twice = vec![(Some(3), key("a")), (None, key("b")), (Some(3), key("c"))];
        assert_eq!(Tokens::assign(twice), Err(TokenFault::SlotTwice(3)));
    }
}
