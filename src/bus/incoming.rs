//! Messages on their way in: where one ends, what its header says, and the body as `dbus` reads it.
//!
//! `dbus::Message::demarshal` cannot take descriptors, so a body that announces some is changed
//! before: each `h` of its signature becomes `u` (same size, same alignment) and the count of
//! descriptors becomes 0. What was an index into the descriptors is then read as a number. The
//! signature that the sender wrote is kept, for the comparison with the table.
//!
//! Invariant: no input makes these functions panic or read outside the bytes they were given; the
//! bus daemon has checked messages, but it is another program.
//!
//! Deliberately absent: an `h` inside a variant; no member of the API has one.

use dbus::Message;
use thiserror::Error;

use crate::limits::BUS_MESSAGE_BYTES_MAX;

// The fixed part of a header (D-Bus specification, "Message Format").
const KIND_OFFSET: usize = 1;
const BODY_LENGTH_OFFSET: usize = KIND_OFFSET + 3;
const SERIAL_OFFSET: usize = BODY_LENGTH_OFFSET + size_of::<u32>();
const FIELDS_LENGTH_OFFSET: usize = SERIAL_OFFSET + size_of::<u32>();
const FIELDS_OFFSET: usize = FIELDS_LENGTH_OFFSET + size_of::<u32>();

const FIELD_SIGNATURE: u8 = 8;
const FIELD_DESCRIPTORS: u8 = 9;

/// The bytes are not a D-Bus message.
#[derive(Clone, Copy, Debug, Error, Eq, PartialEq)]
pub enum Unreadable {
    /// Neither `l` nor `B`.
    #[error("a message begins with byte {0}, which is no byte order")]
    ByteOrder(u8),
    /// Longer than D-Bus allows.
    #[error("a message of {0} bytes is longer than D-Bus allows")]
    Long(u64),
    /// The header contradicts itself.
    #[error("the header of a message cannot be read")]
    Header,
    /// The body contradicts its signature.
    #[error("the body of a message cannot be read")]
    Body,
}

/// What a message is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A client wants something.
    Call,
    /// The bus daemon answers, with a value or an error.
    Answer,
    /// Somebody announces something.
    Signal,
    /// A type that D-Bus may yet define, which must be ignored.
    Other,
}

/// One message from the bus.
#[derive(Debug)]
pub struct Incoming {
    /// What it is for. `Message::msg_type` panics where it does not know the type.
    pub kind: Kind,
    /// Header fields and body.
    pub message: Message,
    /// The signature of the body, as it was sent.
    pub signature: String,
}

/// How long the message is that begins here; `None` as long as that cannot be seen.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, Unreadable> {
    let Some(fixed) = bytes.first_chunk::<FIELDS_OFFSET>() else {
        return Ok(None);
    };
    let order = Order::of(fixed[0])?;
    let number = |offset| u64::from(order.u32(fixed, offset).unwrap_or(u32::MAX));
    let header = (FIELDS_OFFSET as u64 + number(FIELDS_LENGTH_OFFSET)).next_multiple_of(8);
    let total = header + number(BODY_LENGTH_OFFSET);
    match usize::try_from(total) {
        Ok(total) if total <= BUS_MESSAGE_BYTES_MAX => Ok(Some(total)),
        Ok(_) | Err(_) => Err(Unreadable::Long(total)),
    }
}

/// How many descriptors came with a whole message.
pub fn descriptors(bytes: &[u8]) -> Result<usize, Unreadable> {
    let fields = Fields::of(bytes)?;
    let announced = fields.descriptors.and_then(|at| fields.order.u32(bytes, at));
    usize::try_from(announced.unwrap_or(0)).map_err(|_| Unreadable::Header)
}

/// Reads a whole message, and changes its bytes as said above.
pub fn read(bytes: &mut [u8]) -> Result<Incoming, Unreadable> {
    let fields = Fields::of(bytes)?;
    let mut signature = String::new();
    if let Some((start, end)) = fields.signature {
        let text = bytes.get_mut(start..end).ok_or(Unreadable::Header)?;
        signature = std::str::from_utf8(text).map_err(|_| Unreadable::Header)?.to_owned();
        text.iter_mut().filter(|kind| **kind == b'h').for_each(|kind| *kind = b'u');
    }
    if let Some(at) = fields.descriptors {
        bytes.get_mut(at..at + size_of::<u32>()).ok_or(Unreadable::Header)?.fill(0);
    }
    let message = Message::demarshal(bytes).map_err(|_| Unreadable::Body)?;
    let kind = match bytes.get(KIND_OFFSET) {
        Some(1) => Kind::Call,
        Some(2 | 3) => Kind::Answer,
        Some(4) => Kind::Signal,
        Some(_) | None => Kind::Other,
    };
    Ok(Incoming { kind, message, signature })
}

#[derive(Clone, Copy)]
enum Order {
    Little,
    Big,
}

impl Order {
    const fn of(byte: u8) -> Result<Self, Unreadable> {
        match byte {
            b'l' => Ok(Self::Little),
            b'B' => Ok(Self::Big),
            other => Err(Unreadable::ByteOrder(other)),
        }
    }

    fn u32(self, bytes: &[u8], offset: usize) -> Option<u32> {
        let raw = *bytes.get(offset..)?.first_chunk::<4>()?;
        Some(match self {
            Self::Little => u32::from_le_bytes(raw),
            Self::Big => u32::from_be_bytes(raw),
        })
    }
}

/// Where the two header fields are that are changed.
struct Fields {
    order: Order,
    /// Start and end of the text of the body's signature.
    signature: Option<(usize, usize)>,
    /// Start of the count of descriptors.
    descriptors: Option<usize>,
}

impl Fields {
    fn of(bytes: &[u8]) -> Result<Self, Unreadable> {
        let order = Order::of(*bytes.first().ok_or(Unreadable::Header)?)?;
        let length = order.u32(bytes, FIELDS_LENGTH_OFFSET).ok_or(Unreadable::Header)?;
        let end = FIELDS_OFFSET + usize::try_from(length).map_err(|_| Unreadable::Header)?;
        let header = bytes.get(..end).ok_or(Unreadable::Header)?;
        let mut found = Self { order, signature: None, descriptors: None };
        let mut at = FIELDS_OFFSET;
        while at < end {
            at = found.field(header, at).ok_or(Unreadable::Header)?;
        }
        Ok(found)
    }

    /// Looks at the field that begins at `at` and says where the next one may begin.
    fn field(&mut self, header: &[u8], at: usize) -> Option<usize> {
        let at = at.next_multiple_of(8);
        let &[code, 1, kind, 0] = header.get(at..)?.first_chunk::<4>()? else {
            return None;
        };
        let value = at + 4;
        match kind {
            b'g' => {
                let start = value + 1;
                let end = start + usize::from(*header.get(value)?);
                if code == FIELD_SIGNATURE {
                    self.signature = Some((start, end));
                }
                Some(end + 1)
            }
            b'u' => {
                if code == FIELD_DESCRIPTORS {
                    self.descriptors = Some(value);
                }
                Some(value + size_of::<u32>())
            }
            b's' | b'o' => {
                let length = usize::try_from(self.order.u32(header, value)?).ok()?;
                Some(value + size_of::<u32>() + length + 1)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bus::encode::tests::Call;
    use crate::bus::value::Value;

    /// `StartPool` r8 of blivet: `(bh)` in the signature, as the wire has it, in either byte order.
    pub(crate) fn descriptor_call(big: bool, announced: u32) -> Vec<u8> {
        let mut bytes = vec![if big { b'B' } else { b'l' }, 1, 0, 1];
        let number = |n: u32| if big { n.to_be_bytes() } else { n.to_le_bytes() };
        bytes.extend_from_slice(&number(8));
        bytes.extend_from_slice(&number(9));
        bytes.extend_from_slice(&number(0));
        let text = |bytes: &mut Vec<u8>, code: u8, kind: u8, text: &str| {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes.extend_from_slice(&[code, 1, kind, 0]);
            bytes.extend_from_slice(&number(u32::try_from(text.len()).expect("short")));
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
        };
        text(&mut bytes, 1, b'o', "/a");
        text(&mut bytes, 3, b's', "M");
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend_from_slice(&[FIELD_SIGNATURE, 1, b'g', 0, 4]);
        bytes.extend_from_slice(b"(bh)\0");
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend_from_slice(&[FIELD_DESCRIPTORS, 1, b'u', 0]);
        bytes.extend_from_slice(&number(announced));
        let fields = u32::try_from(bytes.len() - FIELDS_OFFSET).expect("short");
        bytes[FIELDS_LENGTH_OFFSET..FIELDS_OFFSET].copy_from_slice(&number(fields));
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend_from_slice(&number(1));
        bytes.extend_from_slice(&number(0));
        bytes
    }

    #[test]
    fn a_descriptor_is_read_as_its_index_in_both_byte_orders() {
        for big in [false, true] {
            let mut bytes = descriptor_call(big, 3);
            assert_eq!(length(&bytes), Ok(Some(bytes.len())));
            assert_eq!(descriptors(&bytes), Ok(3));
            let read = read(&mut bytes).expect("well-formed");
            assert_eq!(read.signature, "(bh)");
            assert_eq!(read.message.read1::<(bool, u32)>(), Ok((true, 0)));
        }
    }

    #[test]
    fn a_length_is_seen_as_soon_as_the_fixed_part_is_there() {
        let bytes = Call::new("/a", "x.y", "M", &[Value::text("abc")]).bytes();
        assert_eq!(length(&bytes[..15]), Ok(None));
        assert_eq!(length(&bytes[..16]), Ok(Some(bytes.len())));
        assert_eq!(length(&[0; 16]), Err(Unreadable::ByteOrder(0)));
        let mut huge = bytes;
        huge[4..8].fill(0xff);
        assert!(matches!(length(&huge), Err(Unreadable::Long(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            order in prop_oneof![Just(b'l'), Just(b'B')],
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = order;
            }
            let _ignored_only_panics_count = (length(&bytes), descriptors(&bytes), read(&mut bytes).is_ok());
        }

        #[test]
        fn a_damaged_byte_makes_no_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = descriptor_call(false, 1);
            let place = at.index(bytes.len());
            bytes[place] = byte;
            let _ignored_only_panics_count = (length(&bytes), descriptors(&bytes), read(&mut bytes).is_ok());
        }
    }
}
