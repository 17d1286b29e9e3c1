//! Fields of on-disk structures: where one lies, and its number as big-endian bytes.
//!
//! A structure is a chain of constants, each made from the one before, so that no offset is typed.
//!
//! Deliberately absent: types for the numbers. A number that does not fit its field is our bug and
//! panics; what is read is at most 64 bits wide.

/// Where a field lies in its structure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    at: usize,
    bytes: usize,
}

impl Field {
    /// The field that a structure begins with.
    pub(super) const fn first(bytes: usize) -> Self {
        Self { at: 0, bytes }
    }

    /// The field right behind this one.
    pub(super) const fn then(self, bytes: usize) -> Self {
        Self { at: self.end(), bytes }
    }

    /// The first byte of the field.
    pub(super) const fn at(self) -> usize {
        self.at
    }

    /// The first byte behind the field.
    pub(super) const fn end(self) -> usize {
        self.at + self.bytes
    }

    /// The field's bytes.
    pub(super) fn of(self, structure: &[u8]) -> &[u8] {
        &structure[self.at..self.end()]
    }

    /// The field's bytes, to be changed.
    pub(super) fn of_mut(self, structure: &mut [u8]) -> &mut [u8] {
        &mut structure[self.at..self.end()]
    }

    /// Writes a number.
    pub(super) fn put(self, structure: &mut [u8], value: impl Into<u64>) {
        let wide = value.into().to_be_bytes();
        let (above, low) = wide.split_at(wide.len() - self.bytes);
        assert!(above.iter().all(|byte| *byte == 0), "{wide:x?} does not fit {self:?}");
        self.of_mut(structure).copy_from_slice(low);
    }

    /// Writes "none": all bits set.
    pub(super) fn put_none(self, structure: &mut [u8]) {
        self.of_mut(structure).fill(0xff);
    }

    /// Writes as many bytes as the field has.
    pub(super) fn put_bytes(self, structure: &mut [u8], bytes: &[u8]) {
        self.of_mut(structure).copy_from_slice(bytes);
    }

    /// Reads a number.
    pub(super) fn get(self, structure: &[u8]) -> u64 {
        self.of(structure).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Reads sixteen bytes.
    pub(super) fn get_uuid(self, structure: &[u8]) -> uuid::Uuid {
        uuid::Uuid::from_slice(self.of(structure)).expect("a UUID's field has sixteen bytes")
    }
}

/// The checksum of a structure, its own field counted as zero.
pub(super) fn checksum(structure: &[u8], field: Field) -> [u8; 4] {
    let before = crc32c::crc32c(&structure[..field.at()]);
    let field_too = crc32c::crc32c_append(before, &[0; 4]);
    crc32c::crc32c_append(field_too, &structure[field.end()..]).to_le_bytes()
}

/// Writes the checksum of a structure that is complete otherwise.
pub(super) fn seal(structure: &mut [u8], field: Field) {
    let sum = checksum(structure, field);
    field.put_bytes(structure, &sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Field = Field::first(2);
    const TWO: Field = ONE.then(4);

    #[test]
    fn numbers_are_big_endian_and_keep_to_their_field() {
        let mut structure = [0xaa; 8];
        TWO.put(&mut structure, 0x0102_0304_u32);
        assert_eq!(structure, [0xaa, 0xaa, 1, 2, 3, 4, 0xaa, 0xaa]);
        assert_eq!(TWO.get(&structure), 0x0102_0304);
        ONE.put_none(&mut structure);
        assert_eq!(ONE.get(&structure), 0xffff);
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_number_too_large_for_its_field_is_our_bug() {
        ONE.put(&mut [0; 2], 0x1_0000_u32);
    }

    #[test]
    fn a_checksum_does_not_depend_on_what_its_field_held() {
        let (mut first, mut second) = (*b"xxabcdyy", *b"xxefghyy");
        seal(&mut first, TWO);
        seal(&mut second, TWO);
        assert_eq!(first, second);
        assert_eq!(TWO.of(&first), crc32c::crc32c(b"xx\0\0\0\0yy").to_le_bytes());
    }
}
