//! The services beside the daemon: what is the least that an answer could take.
//!
//! Each says its unique name on standard output and serves until it is killed.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use dbus::arg::Variant;
use dbus::channel::Channel;
use dbus::{Message, MessageType};
use stratisd::bus::address;
use stratisd::bus::auth::Auth;
use stratisd::bus::daemon::Daemon as Questions;
use stratisd::bus::encode::Outgoing;
use stratisd::bus::read::Reader;
use stratisd::bus::value::Value;

use crate::place::TIMEOUT;

/// Answers every call with one small value, through libdbus. A call may name lengths: a signal of
/// each is sent before the answer.
pub(crate) fn echo(address: &str) {
    let mut channel = Channel::open_private(address).expect("the bus accepts");
    channel.register().expect("the bus greets");
    println!("{}", channel.unique_name().expect("the bus gives a name"));
    loop {
        let message = channel.blocking_pop_message(TIMEOUT).expect("the bus is there");
        let Some(call) = message.filter(|message| message.msg_type() == MessageType::MethodCall) else {
            continue;
        };
        for length in call.read1::<Vec<u32>>().unwrap_or_default() {
            let signal = Message::new_signal("/", "org.example.Echo", "Said").expect("valid");
            channel.send(signal.append1(vec![0_u8; length as usize])).expect("the bus takes it");
        }
        channel.send(call.method_return().append1(Variant("filesystem0"))).expect("the bus takes it");
    }
}

/// Answers `GetManagedObjects` with the body of the message on standard input, and every other call
/// with one small value, without a library.
pub(crate) fn bare(address: &str) {
    let mut message = Vec::new();
    std::io::stdin().read_to_end(&mut message).expect("standard input is a pipe");
    let body_length = u32::from_le_bytes(*message[4..].first_chunk().expect("a header")) as usize;
    let body = &message[message.len() - body_length..];
    let mut socket = connect(address);
    socket.write_all(&Questions::default().hello(1)).expect("the bus reads");
    let mut reader = Reader::default();
    let mut buffer = vec![0; 1 << 16];
    let mut serial = 10;
    loop {
        let count = socket.read(&mut buffer).unwrap_or(0);
        if count == 0 {
            return;
        }
        reader.handle_received(&buffer[..count], Vec::new());
        while let Some(received) = reader.poll_message().expect("well-formed") {
            let message = Message::demarshal(received.bytes).expect("well-formed");
            serial += 1;
            match message.msg_type() {
                // The only call that we make is Hello.
                MessageType::MethodReturn => println!("{}", message.read1::<&str>().expect("a name")),
                MessageType::MethodCall => answer(&mut socket, serial, &message, body),
                MessageType::Error | MessageType::Signal => {}
            }
        }
    }
}

fn connect(address: &str) -> UnixStream {
    let mut socket = address::connect(address).expect("the bus accepts");
    let mut auth = Auth::new(nix::unistd::getuid().as_raw());
    let mut buffer = [0; 512];
    while !auth.is_done() {
        if let Some(bytes) = auth.poll_bytes() {
            socket.write_all(&bytes).expect("the bus reads");
        }
        let count = socket.read(&mut buffer).expect("the bus answers");
        auth.handle_bytes(&buffer[..count]).expect("we are let in");
    }
    socket.write_all(&auth.poll_bytes().expect("BEGIN")).expect("the bus reads");
    socket
}

fn answer(socket: &mut UnixStream, serial: u32, call: &Message, body: &[u8]) {
    let (Some(sender), Some(number)) = (call.sender(), call.get_serial()) else {
        return;
    };
    if call.member().as_deref() != Some("GetManagedObjects") {
        let value = Value::Variant(Box::new(Value::text("filesystem0")));
        let reply = Outgoing::returns(serial, &sender, number, &[value]).finish();
        return socket.write_all(&reply).expect("the bus reads");
    }
    let head = Outgoing::returns_raw(serial, &sender, number, "a{oa{sa{sv}}}").finish_before(body.len());
    socket.write_all(&head).expect("the bus reads");
    socket.write_all(body).expect("the bus reads");
}
