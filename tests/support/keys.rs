//! Keys and encrypted pools: passphrases in files and pipes, `SetKey`, and `CreatePool` with token slots.
//!
//! Deliberately absent: what any of it should answer.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Seek, Write, pipe};
use std::os::fd::OwnedFd;

use super::client::{Answer, Client, Created, Slot, create_pool_arguments, created};
use super::{TOP, interface};

/// No slot is named.
pub(crate) const FREE: Slot = (false, 0);

/// The slot with this number.
pub(crate) const fn at(slot: u32) -> Slot {
    (true, slot)
}

/// A file that holds these bytes and stands at its start.
pub(crate) fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("it takes bytes");
    file.rewind().expect("it has a start");
    file
}

/// A pipe that holds these bytes and whose other end stays open.
pub(crate) fn open_pipe(bytes: &[u8]) -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().expect("a pipe");
    writer.write_all(bytes).expect("it takes bytes");
    (reader, writer)
}

/// `SetKey` on a revision.
#[track_caller]
pub(crate) fn set_key_on(client: &Client, revision: u8, key: &str, from: impl Into<OwnedFd>) -> Answer<(bool, bool)> {
    client.ask(TOP, &interface("Manager", revision), "SetKey", (key, File::from(from.into())))
}

/// Sets a key that must not be there yet.
#[track_caller]
pub(crate) fn make_key(client: &Client, key: &str) {
    assert_eq!(set_key_on(client, 9, key, file(b"secret")).done(), (true, false), "{key:?} is new");
}

/// Keys as `CreatePool` and `EncryptPool` take them.
pub(crate) fn keys_argument(keys: &[(Slot, &str)]) -> Vec<(Slot, String)> {
    keys.iter().map(|(slot, key)| (*slot, (*key).to_owned())).collect()
}

/// Clevis configurations as `CreatePool` and `EncryptPool` take them.
pub(crate) fn clevis_argument(clevis: &[(Slot, &str, &str)]) -> Vec<(Slot, String, String)> {
    clevis.iter().map(|(slot, pin, json)| (*slot, (*pin).to_owned(), (*json).to_owned())).collect()
}

/// `CreatePool` r9 with these keys and Clevis configurations, on a disk named after the pool.
#[track_caller]
pub(crate) fn create_encrypted(
    client: &Client,
    name: &str,
    keys: &[(Slot, &str)],
    clevis: &[(Slot, &str, &str)],
) -> Answer<Created> {
    let mut arguments = create_pool_arguments(name, &[format!("/disk-of-{name}")]);
    (arguments.2, arguments.3) = (keys_argument(keys), clevis_argument(clevis));
    client.ask(TOP, &interface("Manager", 9), "CreatePool", arguments).map(created)
}
