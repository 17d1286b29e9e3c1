//! The role on a core of its own, against a real dbus-daemon and a client that is not ours.
//!
//! The shard is a few lines here: it answers every request with one pool, and stops when told.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use cores::executor::{self, CoreHandle, CoreSpec};
use cores::rt;
use dbus::arg::Variant;
use dbus::blocking::LocalConnection;
use dbus::channel::Channel;
use ring::{Endpoint, Lane, Sizes, mesh};

use super::*;
use crate::bus::daemon::{NAME, NameFault};
use crate::bus::{BusConfig, BusFault, run};
use crate::message::{CallId, Message as Crossing};

const TIMEOUT: Duration = Duration::from_secs(20);

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

/// A bus of our own; it ends with this value.
struct Daemon {
    child: Child,
    address: String,
    _config: tempfile::NamedTempFile,
}

impl Daemon {
    fn start() -> Self {
        let mut config = tempfile::NamedTempFile::new().expect("a file");
        config.write_all(CONFIG.as_bytes()).expect("it is written");
        let mut child = Command::new("dbus-daemon")
            .args(["--nofork", "--print-address"])
            .arg(format!("--config-file={}", config.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon is installed");
        let mut address = String::new();
        let out = child.stdout.take().expect("it is piped");
        BufReader::new(out).read_line(&mut address).expect("it says where it is");
        Self { child, address: address.trim().to_owned(), _config: config }
    }

    fn client(&self) -> LocalConnection {
        let mut channel = Channel::open_private(&self.address).expect("the bus accepts");
        channel.register().expect("the bus greets");
        LocalConnection::from(channel)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().expect("it still runs");
        self.child.wait().expect("it has ended");
    }
}

/// The role with one shard, each on a core of its own.
struct World {
    stop: Arc<AtomicBool>,
    role: CoreHandle<Result<(), BusFault>>,
    shard: CoreHandle,
    /// One word for each request that reached the shard.
    asked: Receiver<CallId>,
    /// How often the shard was told to look at sizes in use.
    looks: Arc<AtomicUsize>,
}

/// What the shard does.
#[derive(Clone, Default)]
struct Manner {
    /// It answers only when it is told to stop.
    at_the_end: bool,
    /// It finds a pool at the start.
    has_pool: bool,
    looks: Arc<AtomicUsize>,
}

impl World {
    /// `at_the_end`: the shard answers only when it is told to stop.
    fn start(address: &str, at_the_end: bool) -> Self {
        Self::start_with(address, Manner { at_the_end, ..Manner::default() })
    }

    fn start_with(address: &str, manner: Manner) -> Self {
        let mut endpoints = mesh(2, Sizes { ring_slots: 64, outbox_max: 1_024 });
        let (to_bus, to_shard) = (endpoints.pop().expect("two"), endpoints.pop().expect("two"));
        let stop = Arc::new(AtomicBool::new(false));
        let (heard, address) = (stop.clone(), address.to_owned());
        let spec = |name: &str| CoreSpec { name: name.to_owned(), cpu: None };
        let config = BusConfig {
            address,
            shards: 1,
            first_shard: 1,
            event: 1,
            version: "3.9.2".to_owned(),
            message_max: 1 << 20,
        };
        let role = executor::start(spec("bus"), move || async move {
            let stop = async move {
                while !heard.load(Ordering::SeqCst) {
                    rt::sleep(Duration::from_millis(2)).await;
                }
            };
            run(config, Rc::new(to_shard), |_, _| Vec::new(), |_| 1, stop).await
        });
        let told = stop.clone();
        let (saw, asked) = channel();
        let looks = manner.looks.clone();
        let shard = executor::start(spec("shard"), move || shard(to_bus, told, saw, manner));
        Self { asked, looks, stop, role: role.expect("an executor starts"), shard: shard.expect("an executor starts") }
    }

    fn stop(self) -> Result<(), BusFault> {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.role.join().expect("no panic");
        self.shard.join().expect("no panic");
        ended
    }
}

/// Creates pool 1 with one filesystem and one device, whatever is asked; says `Stopped` at the end.
async fn shard(endpoint: Endpoint<Crossing>, stop: Arc<AtomicBool>, saw: Sender<CallId>, manner: Manner) {
    let send = |message| assert!(endpoint.send(0, Lane::Normal, message).is_ok(), "there is room");
    if manner.has_pool {
        send(Crossing::Views(vec![View::Pool(pool(1))]));
    }
    send(Crossing::Settled);
    let mut batch = Vec::new();
    let mut calls = Vec::new();
    loop {
        let stopping = stop.load(Ordering::SeqCst);
        endpoint.receive(&mut batch, 64);
        for (_, message) in batch.drain(..) {
            let request = match message {
                Crossing::Request(request) => request,
                // Somebody reads; nothing changes by itself here.
                Crossing::Look => {
                    manner.looks.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                other => panic!("the bus does not send this to a shard: {other:?}"),
            };
            saw.send(request.call).expect("the test listens");
            calls.push(request.call);
        }
        for call in calls.drain(if manner.at_the_end && !stopping { calls.len().. } else { 0.. }) {
            let views = vec![View::Pool(pool(1)), View::Filesystem(filesystem(1, 1)), View::Device(device(1, 1))];
            send(Crossing::Views(views));
            let outcome = Ok(Answer::PoolCreated(pool_id(1), vec![dev_id(1)]));
            send(Crossing::Reply(Box::new(Reply { call, outcome })));
        }
        if stopping {
            return send(Crossing::Stopped);
        }
        rt::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until the name has an owner, without asking again and again.
fn wait_for_name(client: &LocalConnection) {
    let bus = client.with_proxy("org.freedesktop.DBus", "/org/freedesktop/DBus", TIMEOUT);
    let rule = format!("type='signal',member='NameOwnerChanged',arg0='{NAME}'");
    let () = bus.method_call("org.freedesktop.DBus", "AddMatch", (rule,)).expect("a rule");
    let (owned,): (bool,) = bus.method_call("org.freedesktop.DBus", "NameHasOwner", (NAME,)).expect("an answer");
    let mut owned = owned;
    while !owned {
        let message = client.channel().blocking_pop_message(TIMEOUT).expect("the bus is there").expect("in time");
        owned = message.member().as_deref() == Some("NameOwnerChanged");
    }
}

fn version(client: &LocalConnection) -> Result<String, dbus::Error> {
    let top = client.with_proxy(NAME, TOP, TIMEOUT);
    let (version,): (Variant<String>,) = top.method_call(PROPERTIES, "Get", (manager(0), "Version"))?;
    Ok(version.0)
}

#[test]
fn a_client_on_a_real_bus_creates_a_pool_and_sees_it() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let world = World::start(&daemon.address, false);
    wait_for_name(&client);
    assert_eq!(version(&client).expect("it is served"), "3.9.2");

    let top = client.with_proxy(NAME, TOP, TIMEOUT);
    type Created = (bool, (dbus::Path<'static>, Vec<dbus::Path<'static>>));
    let none = || (false, "");
    let args = ("p", vec!["/dev/a"], none(), (false, ("", "")));
    let (created, code, text): (Created, u16, String) =
        top.method_call(manager(7), "CreatePool", args).expect("an answer");
    assert_eq!((created.0, code, &*text), (true, 0, "Ok"));
    assert_eq!(created.1.0.to_string(), format!("{TOP}/0"));
    assert_eq!(created.1.1.len(), 1);

    type Properties = std::collections::HashMap<String, Variant<Box<dyn dbus::arg::RefArg>>>;
    type Objects = std::collections::HashMap<dbus::Path<'static>, std::collections::HashMap<String, Properties>>;
    let (objects,): (Objects,) =
        top.method_call("org.freedesktop.DBus.ObjectManager", "GetManagedObjects", ()).expect("an answer");
    assert_eq!(objects.len(), 3);
    assert!(objects.values().all(|interfaces| interfaces.len() == 10));
    world.stop().expect("it ends in peace");
    assert!(version(&client).is_err(), "the name is given back");
}

#[test]
fn pools_that_just_came_up_are_not_looked_at_again_for_who_reads() {
    for has_pool in [false, true] {
        let daemon = Daemon::start();
        let client = daemon.client();
        let world = World::start_with(&daemon.address, Manner { has_pool, ..Manner::default() });
        wait_for_name(&client);
        assert_eq!(version(&client).expect("it is served"), "3.9.2");
        // What the read leads to comes to the shard before what is asked for later.
        let call = dbus::Message::new_method_call(NAME, TOP, &*manager(7), "CreatePool").expect("valid");
        let call = call.append3("p", vec!["/dev/a"], (false, "")).append1((false, ("", "")));
        dbus::channel::Sender::send(client.channel(), call).expect("the bus takes it");
        world.asked.recv_timeout(TIMEOUT).expect("the call reaches the shard");
        assert_eq!(world.looks.load(Ordering::SeqCst), usize::from(!has_pool), "a pool is there: {has_pool}");
        world.stop().expect("it ends in peace");
    }
}

#[test]
fn a_call_that_was_accepted_is_answered_by_a_stopping_daemon() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let world = World::start(&daemon.address, true);
    wait_for_name(&client);
    let call = dbus::Message::new_method_call(NAME, TOP, &*manager(7), "CreatePool").expect("valid");
    let call = call.append3("p", vec!["/dev/a"], (false, "")).append1((false, ("", "")));
    let serial = dbus::channel::Sender::send(client.channel(), call).expect("the bus takes it");
    world.asked.recv_timeout(TIMEOUT).expect("the call reaches the shard");
    world.stop().expect("it ends in peace");
    loop {
        let message = client.channel().blocking_pop_message(TIMEOUT).expect("the bus is there").expect("in time");
        if message.get_reply_serial() == Some(serial) {
            assert_eq!(triple(&[message]).1, 0);
            return;
        }
    }
}

#[test]
fn descriptors_arrive_with_their_call() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let world = World::start(&daemon.address, false);
    wait_for_name(&client);
    let top = client.with_proxy(NAME, TOP, TIMEOUT);
    let file = || tempfile::tempfile().expect("a file");
    type Started = (bool, (dbus::Path<'static>, Vec<dbus::Path<'static>>, Vec<dbus::Path<'static>>));
    for _ in 0..100 {
        let args = ("nobody", "name", (true, (false, 0u32)), (true, file()));
        let (_, code, text): (Started, u16, String) =
            top.method_call(manager(8), "StartPool", args).expect("an answer, not an error");
        assert_eq!(code, 1);
        assert!(text.contains("\"nobody\""), "{text}");
    }
    world.stop().expect("it ends in peace");
}

#[test]
fn a_second_daemon_on_the_same_bus_does_not_start() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let first = World::start(&daemon.address, false);
    wait_for_name(&client);
    let second = World::start(&daemon.address, false);
    let refused = second.role.join().expect("no panic").expect_err("the name is taken");
    assert!(matches!(refused, BusFault::Name(NameFault::Taken)), "{refused}");
    second.stop.store(true, Ordering::SeqCst);
    second.shard.join().expect("no panic");
    assert_eq!(version(&client).expect("the first still serves"), "3.9.2");
    first.stop().expect("it ends in peace");
}

#[test]
fn a_bus_that_goes_away_ends_the_role_with_an_error() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let world = World::start(&daemon.address, false);
    wait_for_name(&client);
    drop(client);
    drop(daemon);
    assert!(world.role.join().expect("no panic").is_err());
    world.stop.store(true, Ordering::SeqCst);
    world.shard.join().expect("no panic");
}
