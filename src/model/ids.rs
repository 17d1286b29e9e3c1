//! What names a thing for ever: pool, device and filesystem UUIDs.
//!
//! Three types, so that one cannot be given where another is meant. Random ids are made from bytes
//! that the caller brings: randomness is an argument.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::{Builder, Uuid};

macro_rules! id {
    ($name:ident, $what:literal) => {
        #[doc = concat!("The UUID of a ", $what, ". `Display` is the hyphenated form.")]
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A version 4 UUID from sixteen random bytes.
            pub fn from_random(bytes: [u8; 16]) -> Self {
                Self(Builder::from_random_bytes(bytes).into_uuid())
            }

            /// 32 lower-case hex digits, no hyphens.
            pub fn simple(self) -> String {
                self.0.simple().to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(out)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            /// Accepts the simple, hyphenated, braced and urn forms in any letter case.
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id!(PoolUuid, "pool");
id!(DevUuid, "block device of a pool");
id!(FsUuid, "filesystem");

/// The number of a thin volume inside its thin pool; below 2^24.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ThinId(pub u32);

impl fmt::Display for ThinId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_four_spellings_are_one_id() {
        let id: PoolUuid = "0e5f2ad7-6f0b-4d44-9d5c-4c1c5bd44f3e".parse().expect("hyphenated");
        for text in [
            "0e5f2ad76f0b4d449d5c4c1c5bd44f3e",
            "{0E5F2AD7-6F0B-4D44-9D5C-4C1C5BD44F3E}",
            "urn:uuid:0e5f2ad7-6f0b-4d44-9d5c-4c1c5bd44f3e",
        ] {
            assert_eq!(text.parse::<PoolUuid>().expect("accepted"), id);
        }
        assert_eq!(id.simple(), "0e5f2ad76f0b4d449d5c4c1c5bd44f3e");
        assert!("0e5f2ad7".parse::<PoolUuid>().is_err());
    }
}
