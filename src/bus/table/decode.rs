//! From the arguments of a call to a `Wish`: what all decoding functions share.
//!
//! Every shape of a call decodes into one wish, in its newest meaning. The functions are pure: they
//! look at the arguments and the tree and change nothing, so a panic in one (our bug) loses that
//! call and nothing else.
//!
//! Invariant: the message's signature was compared with the row before a function sees it.

pub(super) mod blockdev;
pub(super) mod encryption;
pub(super) mod filesystem;
pub(super) mod key;
pub(super) mod manager;
pub(super) mod pool;

use dbus::arg::{Arg, Get, ReadAll, Variant};

use crate::bus::tree::Tree;
use crate::error::Refusal;
use crate::limits::FILESYSTEM_SECTORS_MIN;
use crate::message::{Answer, Wish};
use crate::model::ids::PoolUuid;
use crate::model::name::Name;
use crate::units::{Bytes, SECTOR_BYTES, Sectors};

/// What a decoding function may look at.
pub struct Ask<'a, V> {
    /// The object that was called.
    pub on: &'a V,
    /// All objects.
    pub tree: &'a Tree,
    /// The arguments.
    pub args: &'a Args,
    /// Sixteen random bytes each time.
    pub random: &'a dyn Fn() -> [u8; 16],
    /// Whether calls about a pool are on their way, so that what the tree shows may be about to change.
    pub busy: &'a dyn Fn(PoolUuid) -> bool,
}

/// What a call comes down to.
#[derive(Debug)]
pub enum Decoded {
    /// The home of the pool must be asked.
    Wish(Wish),
    /// The answer is known.
    Known(Answer),
}

/// Why a call cannot be carried out.
#[derive(Debug)]
pub enum CallFault {
    /// A reply with return code 1.
    Refused(Refusal),
    /// A D-Bus error: the arguments cannot mean anything.
    Malformed(&'static str),
}

impl From<Refusal> for CallFault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The arguments of a call, and how many descriptors came with it.
#[derive(Debug)]
pub struct Args {
    message: dbus::Message,
    descriptors: usize,
}

impl Args {
    /// Those of a message whose `h` were replaced by `u` (`incoming.rs`).
    pub const fn new(message: dbus::Message, descriptors: usize) -> Self {
        Self { message, descriptors }
    }

    /// All of them.
    fn all<T: ReadAll>(&self) -> Result<T, CallFault> {
        self.message.read_all().map_err(|_| CallFault::Malformed("the arguments have other types"))
    }

    /// The new value in a call of `Properties.Set`.
    fn value<'a, T: Arg + Get<'a>>(&'a self) -> Result<T, CallFault> {
        let (_, _, value) = self
            .message
            .read3::<&str, &str, Variant<T>>()
            .map_err(|_| CallFault::Malformed("the value has another type"))?;
        Ok(value.0)
    }

    /// Which descriptor of the message an `h` names.
    fn descriptor(&self, index: u32) -> Result<usize, CallFault> {
        let index = usize::try_from(index).ok().filter(|index| *index < self.descriptors);
        index.ok_or(CallFault::Malformed("the descriptor that is named did not come with the message"))
    }

    /// Whether the `(bh)` names a descriptor. An absent one may have any index.
    fn has_descriptor(&self, (present, index): (bool, u32)) -> Result<bool, CallFault> {
        if present {
            self.descriptor(index)?;
        }
        Ok(present)
    }
}

/// The D-Bus optional `(bT)`.
fn optional<T>((present, value): (bool, T)) -> Option<T> {
    present.then_some(value)
}

/// A name that somebody is to have.
fn name(text: &str) -> Result<Name, Refusal> {
    Ok(Name::try_from(text)?)
}

/// A filesystem size or size limit: decimal bytes, at least 512 MiB, at most what sectors can count.
fn size(text: &str) -> Result<Sectors, Refusal> {
    let bytes = Bytes(text.parse().map_err(|_| Refusal::Size { tried: text.to_owned() })?);
    if !bytes.0.is_multiple_of(u128::from(SECTOR_BYTES)) {
        return Err(Refusal::SizeUnaligned(bytes));
    }
    let sectors = bytes.sectors().ok_or(Refusal::SizeLarge(bytes))?;
    if sectors < FILESYSTEM_SECTORS_MIN {
        return Err(Refusal::SizeSmall(bytes));
    }
    Ok(sectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal_bytes_in_whole_sectors() {
        assert_eq!(size("536870912"), Ok(FILESYSTEM_SECTORS_MIN));
        assert_eq!(size("+536870912"), Ok(FILESYSTEM_SECTORS_MIN));
        assert_eq!(size("9444732965739290426880"), Ok(Sectors(u64::MAX)));
        assert_eq!(size("9444732965739290427392"), Err(Refusal::SizeLarge(Bytes(9_444_732_965_739_290_427_392))));
        assert_eq!(size("536870400"), Err(Refusal::SizeSmall(Bytes(536_870_400))));
        assert_eq!(size("536870913"), Err(Refusal::SizeUnaligned(Bytes(536_870_913))));
        for text in ["", "-1", "1 GiB", "0x10", "340282366920938463463374607431768211456"] {
            assert_eq!(size(text), Err(Refusal::Size { tried: text.to_owned() }));
        }
    }
}
