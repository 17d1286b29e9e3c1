//! What a D-Bus client waits, and what it costs the daemon: property reads and listings.
//!
//! `cargo bench --bench bus -- [POOLS [FILESYSTEMS]]` (10 and 100) starts a private dbus-daemon and
//! the daemon in `STRATISD` (or target/release/stratisd) with the arguments in `STRATISD_ARGS` (or
//! `--sim`), makes that many pools and filesystems in each, and measures. Two services of a few lines
//! on the same bus say what is the least that it could take: an echo through libdbus, and one that
//! answers the bytes of the listing from memory. CPU times are those of all threads of the process,
//! from /proc.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dbus::Message;
use dbus::arg::Variant;
use dbus::blocking::LocalConnection;
use dbus::channel::Channel;
use stratisd::bus::address;
use stratisd::bus::auth::Auth;
use stratisd::bus::daemon::{Daemon as Questions, NAME};
use stratisd::bus::encode::Outgoing;
use stratisd::bus::read::Reader;

const TOP: &str = "/org/storage/stratis3";
const MANAGER: &str = "org.storage.stratis3.Manager.r9";
const POOL: &str = "org.storage.stratis3.pool.r9";
const FILESYSTEM: &str = "org.storage.stratis3.filesystem.r9";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
const ECHO: &str = "org.example.Echo";
const BARE: &str = "org.example.Bare";
const TIMEOUT: Duration = Duration::from_secs(60);

const GETS: usize = 10_000;
const CLIENTS: usize = 8;
const LISTINGS: usize = 40;
const LISTERS: usize = 4;

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

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let (pools, filesystems) = (*numbers.first().unwrap_or(&10), *numbers.get(1).unwrap_or(&100));
    let bus = Bus::start();
    let daemon = Stratisd::start(&bus);
    let client = LocalConnection::from(bus.client());
    wait_for(&client, NAME);
    let made = Instant::now();
    let fs = fill(&client, pools, filesystems);
    println!("{pools} pools with {filesystems} filesystems each, made in {:.1} s", made.elapsed().as_secs_f64());
    echo(&bus);
    let body = listing(&bus.client(), NAME);
    bare(&bus, body);
    wait_for(&client, ECHO);
    wait_for(&client, BARE);
    println!("{:<44} {:>9} {:>9} {:>9} {:>12}", "", "p50 us", "p99 us", "calls/s", "CPU us/call");
    for clients in [1, CLIENTS] {
        gets(&bus, None, ECHO, "/", &format!("Get of an echo through libdbus, {clients} clients"), clients);
        gets(&bus, Some(&daemon), NAME, &fs, &format!("Get, {clients} clients"), clients);
    }
    listings(&bus, None, BARE, "GetManagedObjects, the same bytes from memory");
    listings(&bus, Some(&daemon), NAME, "GetManagedObjects");
    under_load(&bus, &fs, BARE, "Get while 4 clients list, from memory");
    under_load(&bus, &fs, NAME, "Get while 4 clients list");
    println!("resident {} KiB", daemon.resident());
}

// ---- the world -----------------------------------------------------------------------------------

struct Bus {
    child: Child,
    address: String,
    _config: tempfile::NamedTempFile,
}

impl Bus {
    fn start() -> Self {
        let mut config = tempfile::NamedTempFile::new().expect("a file");
        config.write_all(CONFIG.as_bytes()).expect("it is written");
        let mut child = Command::new("dbus-daemon")
            .args(["--nofork", "--print-address"])
            .arg(format!("--config-file={}", config.path().display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon is installed");
        let mut address = String::new();
        let out = child.stdout.take().expect("it is piped");
        BufReader::new(out).read_line(&mut address).expect("it says where it is");
        Self { child, address: address.trim().to_owned(), _config: config }
    }

    fn client(&self) -> Channel {
        let mut channel = Channel::open_private(&self.address).expect("the bus accepts");
        channel.register().expect("the bus greets");
        channel
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

struct Stratisd(Child);

impl Stratisd {
    fn start(bus: &Bus) -> Self {
        let program = std::env::var("STRATISD").unwrap_or_else(|_| "target/release/stratisd".to_owned());
        let mut command = Command::new(&program);
        let arguments = std::env::var("STRATISD_ARGS").unwrap_or_else(|_| "--sim".to_owned());
        command.args(arguments.split_whitespace()).env(address::VARIABLE, &bus.address);
        Self(command.spawn().unwrap_or_else(|error| panic!("{program}: {error}; set STRATISD to the daemon")))
    }

    /// CPU time of all threads so far.
    fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).expect("it runs");
        let nanoseconds = tasks.filter_map(|task| {
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says so");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

impl Drop for Stratisd {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

fn end(child: &mut Child) {
    // It may have ended by itself, which is as good.
    let _ended = child.kill();
    child.wait().expect("a child can be waited for");
}

fn wait_for(client: &LocalConnection, name: &str) {
    let bus = client.with_proxy("org.freedesktop.DBus", "/org/freedesktop/DBus", TIMEOUT);
    let began = Instant::now();
    loop {
        let (owned,): (bool,) = bus.method_call("org.freedesktop.DBus", "NameHasOwner", (name,)).expect("an answer");
        if owned {
            return;
        }
        assert!(began.elapsed() < TIMEOUT, "{name} does not appear on the bus");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Makes the pools and filesystems; gives the path of one filesystem.
fn fill(client: &LocalConnection, pools: usize, filesystems: usize) -> String {
    let top = client.with_proxy(NAME, TOP, TIMEOUT);
    let mut last = String::new();
    for number in 0..pools {
        type Keys = Vec<((bool, u32), String)>;
        type Clevis = Vec<((bool, u32), String, String)>;
        type Created = (bool, (dbus::Path<'static>, Vec<dbus::Path<'static>>));
        let devices = vec![format!("/dev/bench{number}")];
        let integrity = ((true, 0u64), (true, "0b"), (true, false));
        let args =
            (format!("bench{number}"), devices, Keys::new(), Clevis::new(), integrity.0, integrity.1, integrity.2);
        let (created, code, text): (Created, u16, String) =
            top.method_call(MANAGER, "CreatePool", args).expect("an answer");
        assert_eq!(code, 0, "{text}");
        let pool = client.with_proxy(NAME, created.1.0, TIMEOUT);
        let (limit,): (Variant<u64>,) = pool.method_call(PROPERTIES, "Get", (POOL, "FsLimit")).expect("an answer");
        if limit.0 < filesystems as u64 {
            let set = (POOL, "FsLimit", Variant(filesystems as u64));
            let () = pool.method_call(PROPERTIES, "Set", set).expect("the limit can be raised");
        }
        for fs in 0..filesystems {
            type Made = (bool, Vec<(dbus::Path<'static>, String)>);
            let size = (true, "1073741824");
            let specs = vec![(format!("filesystem{fs}"), size, (false, ""))];
            let (made, code, text): (Made, u16, String) =
                pool.method_call(POOL, "CreateFilesystems", (specs,)).expect("an answer");
            assert_eq!(code, 0, "{text}");
            last = made.1[0].0.to_string();
        }
    }
    last
}

/// A service that answers every call with one small value, through libdbus.
fn echo(bus: &Bus) {
    let channel = bus.client();
    channel.send(request_name(ECHO)).expect("the bus takes it");
    thread::spawn(move || {
        loop {
            let message = channel.blocking_pop_message(TIMEOUT).ok().flatten();
            let Some(message) = message.filter(|message| message.msg_type() == dbus::MessageType::MethodCall) else {
                continue;
            };
            let reply = message.method_return().append1(Variant("filesystem0"));
            channel.send(reply).expect("the bus takes it");
        }
    });
}

fn request_name(name: &str) -> Message {
    let bus = "org.freedesktop.DBus";
    let call = Message::new_method_call(bus, "/org/freedesktop/DBus", bus, "RequestName").expect("valid");
    call.append2(name, 4u32)
}

/// The bytes of the reply to `GetManagedObjects`.
fn listing(client: &Channel, name: &str) -> Vec<u8> {
    let call = Message::new_method_call(name, TOP, OBJECT_MANAGER, "GetManagedObjects").expect("valid");
    let reply = client.send_with_reply_and_block(call, TIMEOUT).expect("an answer");
    let mut all = Vec::new();
    let marshalled = reply.marshal(|bytes| -> Result<(), ()> {
        all.extend_from_slice(bytes);
        Ok(())
    });
    marshalled.expect("in memory");
    all
}

/// A service that answers every call with the body of `message`, from memory.
fn bare(bus: &Bus, message: Vec<u8>) {
    let mut socket = address::connect(&bus.address).expect("the bus accepts");
    let uid = nix::unistd::getuid().as_raw();
    let mut auth = Auth::new(uid);
    let mut buffer = vec![0; 1 << 16];
    while !auth.is_done() {
        if let Some(bytes) = auth.poll_bytes() {
            socket.write_all(&bytes).expect("the bus reads");
        }
        let count = socket.read(&mut buffer).expect("the bus answers");
        auth.handle_bytes(&buffer[..count]).expect("we are let in");
    }
    socket.write_all(&auth.poll_bytes().expect("BEGIN")).expect("the bus reads");
    let body_length = u32::from_le_bytes(*message[4..].first_chunk().expect("a header")) as usize;
    let body = message[message.len() - body_length..].to_vec();
    socket.write_all(&Questions::default().hello(1)).expect("the bus reads");
    let name = stratisd::bus::value::Value::text(BARE);
    let flags = stratisd::bus::value::Value::U32(4);
    socket.write_all(&Outgoing::call_bus(2, "RequestName", &[name, flags]).finish()).expect("the bus reads");
    thread::spawn(move || serve_bare(socket, &body));
}

fn serve_bare(mut socket: UnixStream, body: &[u8]) {
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
            let call = Message::demarshal(received.bytes).expect("well-formed");
            let (Some(sender), Some(number), dbus::MessageType::MethodCall) =
                (call.sender(), call.get_serial(), call.msg_type())
            else {
                continue;
            };
            serial += 1;
            let mut reply = Outgoing::returns_raw(serial, &sender, number, "a{oa{sa{sv}}}");
            reply.body().fragment(body);
            socket.write_all(&reply.finish()).expect("the bus reads");
        }
    }
}

// ---- measuring -------------------------------------------------------------------------------------

fn get(client: &Channel, name: &str, path: &str) -> Duration {
    let call = Message::new_method_call(name, path, PROPERTIES, "Get").expect("valid");
    let call = call.append2(FILESYSTEM, "Name");
    let began = Instant::now();
    client.send_with_reply_and_block(call, TIMEOUT).expect("an answer");
    began.elapsed()
}

fn list(client: &Channel, name: &str) -> Duration {
    let call = Message::new_method_call(name, TOP, OBJECT_MANAGER, "GetManagedObjects").expect("valid");
    let began = Instant::now();
    client.send_with_reply_and_block(call, TIMEOUT).expect("an answer");
    began.elapsed()
}

/// One line of the table.
fn print(what: &str, mut times: Vec<Duration>, wall: Duration, cpu: Option<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    let rate = times.len() as f64 / wall.as_secs_f64();
    let cpu = cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{:.1}", cpu.as_secs_f64() * 1e6 / times.len() as f64));
    println!("{what:<44} {:>9.1} {:>9.1} {:>9.0} {:>12}", at(50), at(99), rate, cpu);
}

fn gets(bus: &Bus, daemon: Option<&Stratisd>, name: &'static str, path: &str, what: &str, clients: usize) {
    let connections: Vec<_> = (0..clients).map(|_| bus.client()).collect();
    let began_cpu = daemon.map(Stratisd::cpu);
    let began = Instant::now();
    let threads: Vec<_> = connections
        .into_iter()
        .map(|client| {
            let path = path.to_owned();
            thread::spawn(move || (0..GETS / clients).map(|_| get(&client, name, &path)).collect::<Vec<_>>())
        })
        .collect();
    let times = threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
    let wall = began.elapsed();
    print(what, times, wall, daemon.zip(began_cpu).map(|(daemon, before)| daemon.cpu() - before));
}

fn listings(bus: &Bus, daemon: Option<&Stratisd>, name: &'static str, what: &str) {
    let client = bus.client();
    let bytes = listing(&client, name).len();
    let began_cpu = daemon.map(Stratisd::cpu);
    let began = Instant::now();
    let times = (0..LISTINGS).map(|_| list(&client, name)).collect();
    let wall = began.elapsed();
    let cpu = daemon.zip(began_cpu).map(|(daemon, before)| daemon.cpu() - before);
    print(&format!("{what} ({} KiB)", bytes >> 10), times, wall, cpu);
}

/// Reads of a property while other clients list everything in a loop; listings are from `name`.
fn under_load(bus: &Bus, path: &str, name: &'static str, what: &str) {
    let stop = Arc::new(AtomicBool::new(false));
    let listers: Vec<_> = (0..LISTERS)
        .map(|_| {
            let (client, stop) = (bus.client(), stop.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    list(&client, name);
                }
            })
        })
        .collect();
    let client = bus.client();
    let began = Instant::now();
    let times = (0..GETS / 10).map(|_| get(&client, NAME, path)).collect();
    let wall = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    listers.into_iter().for_each(|thread| thread.join().expect("no panic"));
    print(what, times, wall, None);
}
