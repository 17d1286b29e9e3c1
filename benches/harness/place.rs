//! Where it happens: the bus, the daemon, and the services beside it.
//!
//! Invariant: what was started here ends with its value.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dbus::Message;
use dbus::channel::Channel;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stratisd::bus::address::{VARIABLE, system_bus};
use stratisd::bus::daemon::NAME;

use crate::measure::Process;

/// How long anything may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);

const DBUS: &str = "org.freedesktop.DBus";

const CONFIG: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:tmpdir=/tmp</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"#;

/// A bus: one that was started for this, or the one that is there.
pub(crate) struct Bus {
    own: Option<(Child, PathBuf)>,
    pub(crate) address: String,
}

impl Bus {
    /// The system bus, or the one that the environment names.
    pub(crate) fn of_the_system() -> Self {
        Self { own: None, address: system_bus() }
    }

    /// A bus of our own, with the limits that dbus-daemon has by default.
    pub(crate) fn start() -> Self {
        let config = std::env::temp_dir().join(format!("stratisd-bench-{}.conf", std::process::id()));
        fs::write(&config, CONFIG).expect("the folder for temporary files is writable");
        let mut child = Command::new("dbus-daemon")
            .args(["--nofork", "--print-address"])
            .arg(format!("--config-file={}", config.display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon is installed");
        let address = first_line(&mut child);
        Self { own: Some((child, config)), address }
    }

    /// A connection.
    pub(crate) fn client(&self) -> Channel {
        let mut channel = Channel::open_private(&self.address).expect("the bus accepts");
        channel.register().expect("the bus greets");
        channel
    }

    /// The process behind a name, if it has an owner.
    pub(crate) fn process(&self, name: &str) -> Option<Process> {
        process(&self.client(), name)
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        if let Some((child, config)) = &mut self.own {
            end(child, Signal::SIGKILL);
            // It is in the folder for temporary files: whoever cleans that up finds it.
            let _left = fs::remove_file(config).is_err();
        }
    }
}

/// Asks the bus; `None` for an error.
fn ask<T: dbus::arg::Arg + for<'a> dbus::arg::Get<'a>>(client: &Channel, member: &str, argument: &str) -> Option<T> {
    let call = Message::new_method_call(DBUS, "/org/freedesktop/DBus", DBUS, member).expect("valid").append1(argument);
    client.send_with_reply_and_block(call, TIMEOUT).ok()?.read1().ok()
}

fn process(client: &Channel, name: &str) -> Option<Process> {
    ask(client, "GetConnectionUnixProcessID", name).map(Process)
}

/// A daemon that was started for this.
pub(crate) struct Daemon {
    child: Child,
    /// From its start to its name.
    pub(crate) startup: Duration,
}

impl Daemon {
    /// Starts it and waits until it owns the name.
    pub(crate) fn start(bus: &Bus, command: &str) -> Self {
        let client = bus.client();
        let rule = format!("type='signal',member='NameOwnerChanged',arg0='{NAME}'");
        let call = Message::new_method_call(DBUS, "/org/freedesktop/DBus", DBUS, "AddMatch").expect("valid");
        client.send_with_reply_and_block(call.append1(rule), TIMEOUT).expect("the bus takes a rule");
        let mut words = command.split_whitespace();
        let program = words.next().expect("--start names a program");
        let began = Instant::now();
        let mut command = Command::new(program);
        let started = command.args(words).env(VARIABLE, &bus.address).spawn();
        let child = started.unwrap_or_else(|error| panic!("{program}: {error}"));
        let mut daemon = Self { child, startup: Duration::ZERO };
        loop {
            let message = client.blocking_pop_message(TIMEOUT).expect("the bus is there");
            let message = message.unwrap_or_else(|| panic!("{program} does not take the name {NAME}"));
            if message.member().as_deref() == Some("NameOwnerChanged") {
                daemon.startup = began.elapsed();
                return daemon;
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        end(&mut self.child, Signal::SIGINT);
    }
}

/// A service beside the daemon, in a process of its own so that its CPU time can be told.
pub(crate) struct Service {
    child: Child,
    /// Its unique name: no bus has to allow it another.
    pub(crate) name: String,
    /// Its process.
    pub(crate) process: Process,
}

impl Service {
    /// Starts one of our hidden subcommands with this on its standard input.
    pub(crate) fn start(bus: &Bus, which: &str, input: &[u8]) -> Self {
        let program = std::env::current_exe().expect("Linux knows");
        let mut command = Command::new(program);
        command.arg(which).arg(&bus.address).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("we run ourselves");
        child.stdin.take().expect("it is piped").write_all(input).expect("it reads");
        let name = first_line(&mut child);
        let process = Process(child.id());
        Self { child, name, process }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        end(&mut self.child, Signal::SIGKILL);
    }
}

fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    let output = child.stdout.take().expect("it is piped");
    BufReader::new(output).read_line(&mut line).expect("it says where it is");
    line.trim().to_owned()
}

fn end(child: &mut Child, signal: Signal) {
    let id = i32::try_from(child.id()).expect("process ids are small");
    // It may have ended by itself, which is as good.
    let _ended = kill(Pid::from_raw(id), signal).is_err();
    child.wait().expect("a child can be waited for");
}
