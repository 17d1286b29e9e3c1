//! Sizes, as types: sectors on disk, bytes at the D-Bus edge.
//!
//! A sector is 512 bytes, always; a device with larger blocks still counts in these.
//! Arithmetic is checked: a sum that cannot be represented is our bug and panics, a number that
//! came from outside goes through the `checked_*` functions and can be refused.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};

use serde::{Deserialize, Serialize};

/// Bytes in one sector.
pub const SECTOR_BYTES: u64 = 512;

/// A count of 512-byte sectors, or a position counted in them.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sectors(pub u64);

/// A count of bytes. Wide, because the sum over a pool may pass 64 bits.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Bytes(pub u128);

impl Sectors {
    /// No sectors at all.
    pub const ZERO: Self = Self(0);

    /// The same length in bytes.
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0 as u128 * SECTOR_BYTES as u128)
    }

    /// The same length in bytes, for file offsets, which are 64 bits wide.
    ///
    /// # Panics
    /// When the length passes 64 bits; device sizes are checked when they are read.
    pub const fn offset(self) -> u64 {
        self.0.checked_mul(SECTOR_BYTES).expect("an offset on a device fits 64 bits")
    }

    /// The largest multiple of `unit` that is not larger.
    pub const fn floor_to(self, unit: Self) -> Self {
        Self(self.0 / unit.0 * unit.0)
    }

    /// The smallest multiple of `unit` that is not smaller.
    pub const fn ceil_to(self, unit: Self) -> Self {
        Self(self.0.div_ceil(unit.0) * unit.0)
    }

    /// The difference, or zero where `other` is larger.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The sum, unless it passes 64 bits.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

impl Bytes {
    /// The same length in sectors, if it is a whole number of them that fits 64 bits.
    pub fn sectors(self) -> Option<Sectors> {
        let whole = self.0.is_multiple_of(u128::from(SECTOR_BYTES));
        whole.then(|| u64::try_from(self.0 / u128::from(SECTOR_BYTES)).ok().map(Sectors)).flatten()
    }
}

impl Add for Sectors {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.checked_add(other).expect("a sum of sectors fits 64 bits")
    }
}

impl AddAssign for Sectors {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Sectors {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.checked_sub(other.0).expect("a difference of sectors is not negative"))
    }
}

impl Sum for Sectors {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Sectors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} sectors", self.0)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} bytes", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_goes_the_way_its_name_says() {
        let unit = Sectors(2048);
        assert_eq!(Sectors(2049).floor_to(unit), Sectors(2048));
        assert_eq!(Sectors(2049).ceil_to(unit), Sectors(4096));
        assert_eq!(Sectors(2048).ceil_to(unit), Sectors(2048));
    }

    #[test]
    fn a_part_of_a_sector_is_not_a_size() {
        assert_eq!(Bytes(511).sectors(), None);
        assert_eq!(Bytes(1024).sectors(), Some(Sectors(2)));
        assert_eq!(Bytes(u128::MAX / 512 * 512).sectors(), None);
    }
}
