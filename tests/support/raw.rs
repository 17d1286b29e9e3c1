//! A connection to the bus without a library: for messages that no library would send.
//!
//! Invariant: bytes leave exactly as given. Deliberately absent: any check of what is sent.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use dbus::Message;

use super::daemon::PATIENCE;

/// A socket that has passed authentication.
pub(crate) struct RawClient {
    stream: UnixStream,
    pending: Vec<u8>,
}

impl RawClient {
    /// Connects and authenticates; says no hello yet.
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the private bus listens");
        Self::over(stream, nix::unistd::geteuid().as_raw())
    }

    /// The same over a connection that this user has made.
    pub(crate) fn over(mut stream: UnixStream, user: u32) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let identity: String = user.to_string().bytes().map(|byte| format!("{byte:02x}")).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {identity}\r\n").as_bytes()).expect("the bus reads");
        read_line(&mut stream, "OK ");
        stream.write_all(b"NEGOTIATE_UNIX_FD\r\n").expect("the bus reads");
        read_line(&mut stream, "AGREE_UNIX_FD");
        stream.write_all(b"BEGIN\r\n").expect("the bus reads");
        Self { stream, pending: Vec::new() }
    }

    /// Says hello, which every client must do first.
    pub(crate) fn hello(mut self) -> Self {
        let name = "org.freedesktop.DBus";
        let mut message =
            Message::new_method_call(name, "/org/freedesktop/DBus", name, "Hello").expect("constant names are fine");
        message.set_serial(1);
        self.send(&bytes_of(&message)).expect("the bus reads");
        self.reply_to(1).expect("the bus answers a hello");
        self
    }

    /// Sends bytes.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Waits for the reply to a serial. `None`: the bus has closed the connection.
    pub(crate) fn reply_to(&mut self, serial: u32) -> Option<Message> {
        self.messages_until(serial)?.pop()
    }

    /// Everything that comes up to the reply to a serial, which is the last. `None`: the bus has closed the
    /// connection.
    pub(crate) fn messages_until(&mut self, serial: u32) -> Option<Vec<Message>> {
        let mut messages = Vec::new();
        loop {
            let message = self.next()?;
            let is_last = message.get_reply_serial() == Some(serial);
            messages.push(message);
            if is_last {
                return Some(messages);
            }
        }
    }

    /// Reads until the bus closes the connection.
    pub(crate) fn wait_closed(&mut self) {
        while self.next().is_some() {}
    }

    fn next(&mut self) -> Option<Message> {
        loop {
            if self.pending.len() >= 16 {
                let wanted = Message::demarshal_bytes_needed(&self.pending).expect("the bus sends valid headers");
                if self.pending.len() >= wanted {
                    let rest = self.pending.split_off(wanted);
                    let whole = std::mem::replace(&mut self.pending, rest);
                    return Some(Message::demarshal(&whole).expect("the bus sends valid messages"));
                }
            }
            let mut part = [0; 65_536];
            match self.stream.read(&mut part) {
                Ok(0) => return None,
                Ok(count) => self.pending.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("the bus neither answers nor closes the connection: {error}"),
            }
        }
    }
}

/// A message as it stands on the wire. Its serial must be set.
pub(crate) fn bytes_of(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    let appended: Result<(), ()> = message.marshal(|part| {
        bytes.extend_from_slice(part);
        Ok(())
    });
    appended.expect("appending to a vector works");
    bytes
}

/// Replaces one occurrence of a text, of the same length, in a message on the wire.
pub(crate) fn patch(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len(), "lengths inside the message must stay true");
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("the text is there");
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
}

fn read_line(stream: &mut UnixStream, expected: &str) {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\r\n") {
        stream.read_exact(&mut byte).expect("the bus answers the authentication");
        line.push(byte[0]);
    }
    let line = String::from_utf8_lossy(&line).into_owned();
    assert!(line.starts_with(expected), "the bus agrees: {line:?}");
}
