//! Messages on their way out: the little-endian D-Bus wire format, header and body in one buffer.
//!
//! Invariant: every offset is aligned relative to the start of its buffer. A body starts at a
//! multiple of 8, so bytes that were written into a buffer of their own from offset 0 mean the same
//! when they are appended at any multiple of 8: this is what makes cached fragments possible.
//!
//! Deliberately absent: big-endian output, descriptors, and any check of the strings we are given;
//! they come from types that cannot hold a NUL or an invalid path.

use crate::bus::value::Value;

/// Bytes under construction.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    /// An empty one that is not moved before so many bytes are in it.
    pub fn with_room(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    /// What was written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What was written, given away.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Forgets what was written and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Where the next byte goes.
    pub fn position(&self) -> u32 {
        size(self.bytes.len())
    }

    /// Pads with zeroes up to a multiple of `to`.
    pub fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    /// `y`
    pub fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    /// `q`
    pub fn u16(&mut self, number: u16) {
        self.align(2);
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    /// `u`
    pub fn u32(&mut self, number: u32) {
        self.align(4);
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    /// `t`
    pub fn u64(&mut self, number: u64) {
        self.align(8);
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    /// `s` or `o`
    pub fn string(&mut self, text: &str) {
        self.string_of(&[text]);
    }

    /// `s` or `o`, from parts that are put together here.
    pub fn string_of(&mut self, parts: &[&str]) {
        self.u32(size(parts.iter().map(|part| part.len()).sum()));
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part.as_bytes()));
        self.bytes.push(0);
    }

    /// `g`
    pub fn signature(&mut self, text: &str) {
        self.bytes.push(u8::try_from(text.len()).expect("our signatures are shorter than 256"));
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    /// `a…`: its length, then what `items` writes, the first of which is aligned to `align`.
    pub fn array(&mut self, align: usize, items: impl FnOnce(&mut Self)) {
        let length = self.length();
        self.align(align);
        let start = self.bytes.len();
        items(self);
        let written = size(self.bytes.len() - start);
        self.set_length(length, written);
    }

    /// Leaves room for a `u` that is known later, and gives its place.
    pub fn length(&mut self) -> usize {
        self.u32(0);
        self.bytes.len() - size_of::<u32>()
    }

    /// Fills that room.
    pub fn set_length(&mut self, place: usize, length: u32) {
        self.bytes[place..place + size_of::<u32>()].copy_from_slice(&length.to_le_bytes());
    }

    /// `v`: signature, then value.
    pub fn variant(&mut self, value: &Value) {
        self.signature(&value.to_signature());
        value.write(self);
    }

    /// Bytes that were written into a buffer of their own, from its start.
    pub fn fragment(&mut self, bytes: &[u8]) {
        self.align(8);
        self.bytes.extend_from_slice(bytes);
    }
}

/// A length as D-Bus writes it.
pub fn size(length: usize) -> u32 {
    u32::try_from(length).expect("no message of ours reaches 4 GiB: it is bounded before it is built")
}

// The fixed part of a header: byte order, type, flags, protocol version, then these.
const BODY_LENGTH_OFFSET: usize = 4;
const SERIAL_OFFSET: usize = BODY_LENGTH_OFFSET + size_of::<u32>();

// Header field codes.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

const NO_REPLY_EXPECTED: u8 = 1;

/// What most messages fit into, so that they are not moved while they are written.
const SMALL_BYTES: usize = 256;

/// One message, header written, body being written.
#[derive(Debug)]
pub struct Outgoing {
    buffer: Buffer,
    body: usize,
}

impl Outgoing {
    /// The reply to a call, with all its values.
    pub fn returns(serial: u32, to: &str, call: u32, values: &[Value]) -> Self {
        let mut message = Self::returns_raw(serial, to, call, &signature_of(values));
        values.iter().for_each(|value| value.write(&mut message.buffer));
        message
    }

    /// The reply to a call, whose body the caller writes; it must have this signature.
    pub fn returns_raw(serial: u32, to: &str, call: u32, signature: &str) -> Self {
        Self::new(METHOD_RETURN, NO_REPLY_EXPECTED, serial, |header| {
            header.field_u32(REPLY_SERIAL, call);
            header.field_text(DESTINATION, 's', to);
            header.field_signature(signature);
        })
    }

    /// An error in reply to a call.
    pub fn error(serial: u32, to: &str, call: u32, name: &str, text: &str) -> Self {
        let mut message = Self::new(ERROR, NO_REPLY_EXPECTED, serial, |header| {
            header.field_text(ERROR_NAME, 's', name);
            header.field_u32(REPLY_SERIAL, call);
            header.field_text(DESTINATION, 's', to);
            header.field_signature("s");
        });
        message.buffer.string(text);
        message
    }

    /// A signal to whoever listens, whose body the caller writes; it must have this signature.
    pub fn signal(serial: u32, path: &str, interface: &str, member: &str, signature: &str) -> Self {
        Self::new(SIGNAL, NO_REPLY_EXPECTED, serial, |header| {
            header.field_text(PATH, 'o', path);
            header.field_text(INTERFACE, 's', interface);
            header.field_text(MEMBER, 's', member);
            header.field_signature(signature);
        })
    }

    /// A call of the bus daemon itself.
    pub fn call_bus(serial: u32, member: &str, values: &[Value]) -> Self {
        Self::to_bus(0, serial, member, values)
    }

    /// A call of the bus daemon itself that it does not answer.
    pub fn tell_bus(serial: u32, member: &str, values: &[Value]) -> Self {
        Self::to_bus(NO_REPLY_EXPECTED, serial, member, values)
    }

    fn to_bus(flags: u8, serial: u32, member: &str, values: &[Value]) -> Self {
        let mut message = Self::new(METHOD_CALL, flags, serial, |header| {
            header.field_text(PATH, 'o', "/org/freedesktop/DBus");
            header.field_text(INTERFACE, 's', "org.freedesktop.DBus");
            header.field_text(MEMBER, 's', member);
            header.field_text(DESTINATION, 's', "org.freedesktop.DBus");
            header.field_signature(&signature_of(values));
        });
        values.iter().for_each(|value| value.write(&mut message.buffer));
        message
    }

    fn new(kind: u8, flags: u8, serial: u32, fields: impl FnOnce(&mut Buffer)) -> Self {
        let mut buffer = Buffer::with_room(SMALL_BYTES);
        buffer.bytes.extend_from_slice(&[b'l', kind, flags, 1]);
        buffer.u32(0);
        buffer.u32(serial);
        buffer.array(8, fields);
        buffer.align(8);
        let body = buffer.bytes.len();
        Self { buffer, body }
    }

    /// Where the body goes.
    pub fn body(&mut self) -> &mut Buffer {
        &mut self.buffer
    }

    /// Gives the message another number.
    pub fn set_serial(&mut self, serial: u32) {
        let place = SERIAL_OFFSET..SERIAL_OFFSET + size_of::<u32>();
        self.buffer.bytes[place].copy_from_slice(&serial.to_le_bytes());
    }

    /// The bytes for the socket.
    pub fn finish(self) -> Vec<u8> {
        self.finish_before(0)
    }

    /// The bytes for the socket, of a message whose body goes on with so many bytes more.
    pub fn finish_before(mut self, more: usize) -> Vec<u8> {
        let length = size(self.buffer.bytes.len() - self.body + more);
        let place = BODY_LENGTH_OFFSET..BODY_LENGTH_OFFSET + size_of::<u32>();
        self.buffer.bytes[place].copy_from_slice(&length.to_le_bytes());
        self.buffer.into_bytes()
    }
}

impl Buffer {
    fn field_text(&mut self, code: u8, kind: char, text: &str) {
        self.align(8);
        self.byte(code);
        self.signature(kind.encode_utf8(&mut [0; 4]));
        self.string(text);
    }

    fn field_u32(&mut self, code: u8, number: u32) {
        self.align(8);
        self.byte(code);
        self.signature("u");
        self.u32(number);
    }

    /// An empty body has no signature field.
    fn field_signature(&mut self, signature: &str) {
        if signature.is_empty() {
            return;
        }
        self.align(8);
        self.byte(SIGNATURE);
        self.signature("g");
        self.signature(signature);
    }
}

fn signature_of(values: &[Value]) -> String {
    let mut signature = String::new();
    values.iter().for_each(|value| value.signature(&mut signature));
    signature
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A call as a client sends it.
    #[derive(Clone)]
    pub(crate) struct Call<'a> {
        pub(crate) path: &'a str,
        pub(crate) interface: &'a str,
        pub(crate) member: &'a str,
        pub(crate) values: &'a [Value],
        /// In place of the values' own.
        pub(crate) signature: Option<&'a str>,
        pub(crate) descriptors: u32,
        pub(crate) sender: &'a str,
        pub(crate) serial: u32,
        pub(crate) no_reply: bool,
    }

    impl<'a> Call<'a> {
        pub(crate) fn new(path: &'a str, interface: &'a str, member: &'a str, values: &'a [Value]) -> Self {
            let (sender, serial) = (":1.4", 77);
            Self { path, interface, member, values, signature: None, descriptors: 0, sender, serial, no_reply: false }
        }

        pub(crate) fn bytes(&self) -> Vec<u8> {
            let flags = if self.no_reply { NO_REPLY_EXPECTED } else { 0 };
            let mut message = Outgoing::new(METHOD_CALL, flags, self.serial, |header| {
                header.field_text(PATH, 'o', self.path);
                if !self.interface.is_empty() {
                    header.field_text(INTERFACE, 's', self.interface);
                }
                header.field_text(MEMBER, 's', self.member);
                header.field_text(DESTINATION, 's', "org.storage.stratis3");
                let own = signature_of(self.values);
                header.field_signature(self.signature.unwrap_or(&own));
                header.field_text(7, 's', self.sender);
                if self.descriptors > 0 {
                    header.field_u32(9, self.descriptors);
                }
            });
            self.values.iter().for_each(|value| value.write(&mut message.buffer));
            message.finish()
        }
    }

    #[test]
    fn each_kind_of_message_reads_back() {
        let error = Outgoing::error(2, ":1.7", 40, "org.freedesktop.DBus.Error.Failed", "no").finish();
        let error = dbus::Message::demarshal(&error).expect("well-formed");
        assert_eq!(error.msg_type(), dbus::MessageType::Error);
        assert_eq!((error.get_serial(), error.get_reply_serial()), (Some(2), Some(40)));
        assert_eq!(error.read1::<&str>(), Ok("no"));

        let mut signal = Outgoing::signal(3, "/a/b", "x.y", "Z", "s");
        signal.body().string("gone");
        let signal = dbus::Message::demarshal(&signal.finish()).expect("well-formed");
        assert_eq!(signal.path().as_deref(), Some("/a/b"));
        assert_eq!(signal.interface().as_deref(), Some("x.y"));
        assert_eq!(signal.member().as_deref(), Some("Z"));

        let call = Outgoing::call_bus(4, "RequestName", &[Value::text("x.y"), Value::U32(4)]).finish();
        let call = dbus::Message::demarshal(&call).expect("well-formed");
        assert_eq!(call.destination().as_deref(), Some("org.freedesktop.DBus"));
        assert_eq!(call.read2::<&str, u32>(), Ok(("x.y", 4)));
    }

    #[test]
    fn a_fragment_means_the_same_wherever_it_is_put() {
        let mut fragment = Buffer::default();
        fragment.string("name");
        fragment.variant(&Value::U64(7));
        let mut message = Outgoing::returns_raw(1, ":1.1", 1, "sa{sv}");
        message.body().string("abc");
        message.body().array(8, |out| {
            out.fragment(fragment.as_bytes());
            out.fragment(fragment.as_bytes());
        });
        let read = dbus::Message::demarshal(&message.finish()).expect("well-formed");
        let dict: std::collections::HashMap<String, dbus::arg::Variant<u64>> =
            read.read2::<&str, _>().expect("as declared").1;
        assert_eq!(dict["name"].0, 7);
    }
}
