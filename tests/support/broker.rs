//! dbus-broker as the message bus of one test, without systemd: we are its launcher.
//!
//! It knows neither addresses nor policies by itself. Its launcher speaks D-Bus with it over a socket pair, and gives
//! it a socket that listens, with rules in their binary form: here one that lets everybody do everything.
//!
//! Invariant: `start` returns after the broker has taken the socket, that is, when it serves.
//! Deliberately absent: service activation, and configuration files.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use dbus::{Message, MessageType};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use stratisd::bus::encode::Buffer;

use super::daemon::PATIENCE;

/// One set of rules: who may connect, who may own what, who may send what, who may receive what.
const RULES: &str = "bta(btbs)a(btssssuutt)a(btssssuutt)";

/// More than any test uses, of bytes, descriptors, matches and objects.
const PLENTY: &str = "1000000000";

/// The program, if it is installed. Debian's package makes it the system's bus, so nothing installs it for a test;
/// `DBUS_BROKER` can name one that was unpacked elsewhere.
pub(crate) fn program() -> Option<PathBuf> {
    let named = std::env::var_os("DBUS_BROKER").map(PathBuf::from);
    let usual = || Some(PathBuf::from("/usr/bin/dbus-broker"));
    named.or_else(usual).filter(|program| program.exists())
}

/// Starts the broker on a socket. It ends when the second value does.
pub(crate) fn start(program: &Path, socket: &Path) -> (Child, UnixStream) {
    let listener = UnixListener::bind(socket).expect("the folder is ours");
    listener.set_nonblocking(true).expect("a socket can be");
    let (mut control, theirs) = UnixStream::pair().expect("two sockets");
    theirs.set_nonblocking(true).expect("a socket can be");
    let child = Command::new(program)
        // Its standard input is the way to its launcher.
        .args(["--controller", "0", "--machine-id", "0123456789abcdef0123456789abcdef"])
        .args(["--max-bytes", PLENTY, "--max-fds", PLENTY, "--max-matches", PLENTY, "--max-objects", PLENTY])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .expect("dbus-broker can be executed");
    control.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let hello = b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n";
    control.write_all(hello).expect("the broker reads");
    let mut said = String::new();
    while !said.ends_with("AGREE_UNIX_FD\r\n") {
        said.push(char::from(byte(&mut control)));
    }
    let descriptors = [listener.as_raw_fd()];
    let bytes = add_listener();
    let sent = sendmsg::<()>(
        control.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        &[ControlMessage::ScmRights(&descriptors)],
        MsgFlags::empty(),
        None,
    );
    assert_eq!(sent, Ok(bytes.len()), "the broker reads");
    let mut reply = Vec::new();
    while Message::demarshal_bytes_needed(&reply).ok().is_none_or(|needed| needed == 0 || reply.len() < needed) {
        reply.push(byte(&mut control));
    }
    let reply = Message::demarshal(&reply).expect("the broker sends valid messages");
    assert_eq!(reply.msg_type(), MessageType::MethodReturn, "{reply:?}");
    (child, control)
}

fn byte(from: &mut UnixStream) -> u8 {
    let mut byte = [0];
    from.read_exact(&mut byte).expect("the broker answers");
    byte[0]
}

/// The call that gives it the socket.
fn add_listener() -> Vec<u8> {
    let mut body = Buffer::default();
    body.string("/org/bus1/DBus/Listener/0");
    // The first descriptor of this message.
    body.u32(0);
    body.signature(&format!("(a(u({RULES}))a(buu({RULES}))a(ss)bs)"));
    body.align(8);
    write_policy(&mut body);

    let mut message = Buffer::default();
    // Little endian, a call, no flags, version 1 of the protocol.
    for byte in [b'l', 1, 0, 1] {
        message.byte(byte);
    }
    message.u32(body.position());
    message.u32(1);
    message.array(8, |fields| {
        let (path, interface) = ("/org/bus1/DBus/Broker", "org.bus1.DBus.Broker");
        for (code, kind, value) in [(1, "o", path), (2, "s", interface), (3, "s", "AddListener")] {
            fields.align(8);
            fields.byte(code);
            fields.signature(kind);
            fields.string(value);
        }
        fields.align(8);
        fields.byte(8);
        fields.signature("g");
        fields.signature("ohv");
        fields.align(8);
        fields.byte(9);
        fields.signature("u");
        fields.u32(1);
    });
    message.fragment(body.as_bytes());
    message.into_bytes()
}

/// Everything is allowed to the user that stands for all others; no rules for groups, none for SELinux or AppArmor.
fn write_policy(out: &mut Buffer) {
    let verdict = |out: &mut Buffer| {
        out.align(8);
        out.u32(1);
        out.u64(1);
    };
    let any_message = |out: &mut Buffer| {
        verdict(out);
        (0..4).for_each(|_anything| out.string(""));
        // Any type, whether or not for everybody, with any number of descriptors.
        out.u32(0);
        out.u32(0);
        out.u64(0);
        out.u64(u64::MAX);
    };
    out.array(8, |users| {
        users.align(8);
        users.u32(u32::MAX);
        verdict(users);
        users.array(8, |names| {
            verdict(names);
            // All names that begin with nothing.
            names.u32(1);
            names.string("");
        });
        users.array(8, any_message);
        users.array(8, any_message);
    });
    out.array(8, |_groups| ());
    out.array(8, |_contexts| ());
    out.u32(0);
    out.string("");
}
