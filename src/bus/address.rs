//! Where the bus is: D-Bus server addresses, and connecting to the first that answers.
//!
//! An address is a list of `transport:key=value,…` separated by semicolons, with percent escapes
//! (D-Bus specification, "Server Addresses"). Understood are `unix:path=` and `unix:abstract=`; others
//! are passed over, because a list may offer several.
//!
//! Deliberately absent: TCP and launching a bus; a system bus has neither.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;

use thiserror::Error;

/// The environment variable that names the system bus.
pub const VARIABLE: &str = "DBUS_SYSTEM_BUS_ADDRESS";

/// Where it is when the variable is not set.
pub const DEFAULT: &str = "unix:path=/run/dbus/system_bus_socket";

/// One place to connect to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// A socket in the file system.
    Path(PathBuf),
    /// A socket in the abstract namespace.
    Abstract(Vec<u8>),
}

/// No connection.
#[derive(Debug, Error)]
pub enum AddressFault {
    /// A `%` is not followed by two hex digits, or a part has no `=`.
    #[error(
        "{0:?} is not a D-Bus address: DBUS_SYSTEM_BUS_ADDRESS names one, such as unix:path=/run/dbus/system_bus_socket"
    )]
    Malformed(String),
    /// Nothing in the list is understood.
    #[error("{0:?} names no unix socket: set {VARIABLE} to unix:path=… of a running bus")]
    NoUnix(String),
    /// The last one that was tried.
    #[error("cannot connect to the bus at {0}: {1}; is dbus-daemon running?")]
    Connect(String, io::Error),
}

/// The address of the system bus: what the environment says, or the default.
pub fn system_bus() -> String {
    std::env::var(VARIABLE).ok().filter(|text| !text.is_empty()).unwrap_or_else(|| DEFAULT.to_owned())
}

/// Reads a list of addresses.
pub fn parse(text: &str) -> Result<Vec<Address>, AddressFault> {
    let mut found = Vec::new();
    for one in text.split(';').filter(|one| !one.is_empty()) {
        let (transport, keys) = one.split_once(':').ok_or_else(|| AddressFault::Malformed(text.to_owned()))?;
        for pair in keys.split(',').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| AddressFault::Malformed(text.to_owned()))?;
            let value = unescape(value).ok_or_else(|| AddressFault::Malformed(text.to_owned()))?;
            match (transport, key) {
                ("unix", "path") => found.push(Address::Path(OsString::from_vec(value).into())),
                ("unix", "abstract") => found.push(Address::Abstract(value)),
                (_, _) => {}
            }
        }
    }
    if found.is_empty() { Err(AddressFault::NoUnix(text.to_owned())) } else { Ok(found) }
}

/// `%xx` becomes a byte.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digit = |at: usize| char::from(digits[at]).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(digit(0)? << 4 | digit(1)?);
        rest = after;
    }
    Some(bytes)
}

/// Connects to the first that accepts. A unix socket accepts or refuses at once.
pub fn connect(text: &str) -> Result<UnixStream, AddressFault> {
    let mut last = AddressFault::NoUnix(text.to_owned());
    for address in parse(text)? {
        match open(&address) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = AddressFault::Connect(text.to_owned(), error),
        }
    }
    Err(last)
}

fn open(address: &Address) -> io::Result<UnixStream> {
    match address {
        Address::Path(path) => UnixStream::connect(path),
        Address::Abstract(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn lists_escapes_and_other_transports_are_read() {
        let list = "tcp:host=a,port=1;unix:abstract=/tmp/x%20y,guid=12;unix:path=/run/%C3%A4;";
        let expected = [Address::Abstract(b"/tmp/x y".to_vec()), Address::Path("/run/ä".into())];
        assert_eq!(parse(list).expect("well-formed"), expected);
    }

    #[test]
    fn what_is_no_address_is_named() {
        for text in ["unix", "unix:path", "unix:path=%4", "unix:path=%zz"] {
            assert!(matches!(parse(text), Err(AddressFault::Malformed(_))), "{text}");
        }
        for text in ["", ";", "tcp:host=a", "unix:runtime=yes"] {
            assert!(matches!(parse(text), Err(AddressFault::NoUnix(_))), "{text}");
        }
    }

    #[test]
    fn the_first_that_accepts_is_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a socket");
        let _listener = UnixListener::bind(&path).expect("a listener");
        let escaped = path.display().to_string().replace(' ', "%20");
        connect(&format!("unix:path=/nowhere;unix:path={escaped}")).expect("the second accepts");
        let refused = connect("unix:path=/nowhere/else").expect_err("nobody listens");
        assert!(refused.to_string().contains("/nowhere/else"), "{refused}");
    }
}
