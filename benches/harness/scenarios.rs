//! The scenarios: a world of pools and filesystems, and the calls of clients in it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use dbus::arg::{AppendAll, Variant};
use dbus::blocking::LocalConnection;
use dbus::channel::Channel;
use dbus::{Message, Path};
use serde_json::{Value, json};
use stratisd::bus::daemon::NAME;

use crate::measure::{Process, ROUNDS, Times, ratios, timed};
use crate::place::{Bus, Daemon, Service, TIMEOUT};
use crate::{Bus as Options, Scenario};

const TOP: &str = "/org/storage/stratis3";
const MANAGER: &str = "org.storage.stratis3.Manager.r9";
const POOL: &str = "org.storage.stratis3.pool.r9";
const FILESYSTEM: &str = "org.storage.stratis3.filesystem.r9";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";

/// Starts of the daemon of which the middle one counts.
const STARTS: usize = 5;
/// Clients that list in a loop while another one reads.
const LISTERS: usize = 4;
/// Calls of the one that reads, for each listing that was asked for.
const READS_FOR_EACH_LISTING: usize = 25;

/// Measures what was asked for; a line for each scenario.
pub(crate) fn run(options: &Options) {
    let wanted = |scenario| options.only.is_empty() || options.only.contains(&scenario);
    let bus = if options.start.is_some() { Bus::start() } else { Bus::of_the_system() };
    if let Some(command) = options.start.as_ref().filter(|_| wanted(Scenario::Startup)) {
        startup(&bus, command);
    }
    let daemon = options.start.as_ref().map(|command| Daemon::start(&bus, command));
    let Some(process) = bus.process(NAME) else {
        eprintln!("stratisd-bench: nobody owns {NAME} on the bus {}: start a daemon, or use --start", bus.address);
        std::process::exit(1);
    };
    let empty = process.resident();
    let filled = fill(&bus, options);
    let body = listing(&bus.client(), NAME);
    let world = World { _daemon: daemon, bus, process, options, filled, bytes: body.len() };
    if wanted(Scenario::Rss) {
        world.rss(empty);
    }
    let echo = Service::start(&world.bus, "echo", &[]);
    let bare = Service::start(&world.bus, "bare", &body);
    drop(body);
    let scenarios: [(Scenario, &dyn Fn()); 5] = [
        (Scenario::Get, &|| world.get(&echo)),
        (Scenario::GetAll, &|| world.get_all(&echo)),
        (Scenario::ManagedObjects, &|| world.managed_objects(&bare)),
        (Scenario::Mixed, &|| world.mixed(&bare)),
        (Scenario::Churn, &|| world.churn(&echo)),
    ];
    scenarios.iter().filter(|(scenario, _)| wanted(*scenario)).for_each(|(_, measure)| measure());
    if options.start.is_none() {
        world.destroy();
    }
}

fn say(line: &Value) {
    println!("{line}");
}

fn startup(bus: &Bus, command: &str) {
    let mut times: Vec<_> = (0..STARTS).map(|_| Daemon::start(bus, command).startup).collect();
    times.sort_unstable();
    say(&json!({ "scenario": "startup", "starts": STARTS, "p50_ms": times[STARTS / 2].as_secs_f64() * 1e3 }));
}

// ---- the world ---------------------------------------------------------------------------------------

/// What was made.
struct Filled {
    pools: Vec<Path<'static>>,
    /// One of the filesystems.
    filesystem: Path<'static>,
}

struct World<'a> {
    /// Ends before the bus does.
    _daemon: Option<Daemon>,
    bus: Bus,
    process: Process,
    options: &'a Options,
    filled: Filled,
    /// The length of a listing.
    bytes: usize,
}

/// A method of three results, of which the second must be 0: the first.
fn done<T, A: AppendAll>(client: &LocalConnection, path: &Path<'static>, interface: &str, member: &str, args: A) -> T
where
    T: dbus::arg::Arg + for<'b> dbus::arg::Get<'b> + 'static,
{
    let proxy = client.with_proxy(NAME, path.clone(), TIMEOUT);
    let (value, code, text): (T, u16, String) =
        proxy.method_call(interface, member, args).unwrap_or_else(|error| panic!("{member}: {error}"));
    assert_eq!(code, 0, "{member}: {text}");
    value
}

fn fill(bus: &Bus, options: &Options) -> Filled {
    let client = LocalConnection::from(bus.client());
    let pools: Vec<_> = (0..options.pools).map(|number| create_pool(&client, options, number)).collect();
    let mut last = None;
    for pool in &pools {
        let proxy = client.with_proxy(NAME, pool.clone(), TIMEOUT);
        let (limit,): (Variant<u64>,) = proxy.method_call(PROPERTIES, "Get", (POOL, "FsLimit")).expect("an answer");
        // One more, for the churn.
        let needed = options.filesystems as u64 + 1;
        if limit.0 < needed {
            let set = (POOL, "FsLimit", Variant(needed));
            let () = proxy.method_call(PROPERTIES, "Set", set).expect("the limit can be raised");
        }
        for number in 0..options.filesystems {
            last = Some(create_filesystem(&client, pool, &format!("filesystem{number}")));
        }
    }
    Filled { pools, filesystem: last.expect("at least one filesystem in one pool is needed") }
}

fn create_pool(client: &LocalConnection, options: &Options, number: usize) -> Path<'static> {
    type Keys = Vec<((bool, u32), String)>;
    type Clevis = Vec<((bool, u32), String, String)>;
    let device = options.devices.get(number).cloned().unwrap_or_else(|| format!("/dev/bench{number}"));
    let (journal, tag, superblock) = ((true, 0_u64), (true, "0b"), (true, false));
    let args = (format!("bench{number}"), vec![device], Keys::new(), Clevis::new(), journal, tag, superblock);
    let created: (bool, (Path<'static>, Vec<Path<'static>>)) = done(client, &TOP.into(), MANAGER, "CreatePool", args);
    created.1.0
}

fn create_filesystem(client: &LocalConnection, pool: &Path<'static>, name: &str) -> Path<'static> {
    let specs = vec![(name, (true, "1073741824"), (false, ""))];
    let mut made: (bool, Vec<(Path<'static>, String)>) = done(client, pool, POOL, "CreateFilesystems", (specs,));
    made.1.remove(0).0
}

fn destroy_filesystem(client: &LocalConnection, pool: &Path<'static>, filesystem: Path<'static>) {
    let _destroyed: (bool, Vec<String>) = done(client, pool, POOL, "DestroyFilesystems", (vec![filesystem],));
}

/// The reply to `GetManagedObjects`, as it was on the wire.
fn listing(client: &Channel, name: &str) -> Vec<u8> {
    let reply = client.send_with_reply_and_block(list_call(name), TIMEOUT).expect("an answer");
    let mut all = Vec::new();
    let marshalled = reply.marshal(|bytes| -> Result<(), ()> {
        all.extend_from_slice(bytes);
        Ok(())
    });
    marshalled.expect("in memory");
    all
}

// ---- calls -------------------------------------------------------------------------------------------

fn list_call(name: &str) -> Message {
    Message::new_method_call(name, TOP, OBJECT_MANAGER, "GetManagedObjects").expect("valid")
}

fn get_call(name: &str, path: &Path<'static>) -> Message {
    let call = Message::new_method_call(name, path, PROPERTIES, "Get").expect("valid");
    call.append2(FILESYSTEM, "Name")
}

fn get_all_call(name: &str, path: &Path<'static>) -> Message {
    Message::new_method_call(name, path, PROPERTIES, "GetAll").expect("valid").append1(FILESYSTEM)
}

/// How long the answer takes.
fn call(client: &Channel, message: Message) -> Duration {
    timed(|| drop(client.send_with_reply_and_block(message, TIMEOUT).expect("an answer")))
}

impl World<'_> {
    /// The same call by several clients, `calls` times in all.
    fn calls(&self, process: Process, clients: usize, calls: usize, message: impl Fn() -> Message + Sync) -> Times {
        let connect = |_| self.bus.client();
        let each = |client: Channel| (0..calls.div_ceil(clients)).map(|_| call(&client, message())).collect();
        Times::of(process, clients, connect, each)
    }

    /// The same of the daemon and of the echo service.
    fn beside_echo(&self, scenario: &str, clients: usize, measure: [&mut dyn FnMut() -> Times; 2]) {
        let [daemon, echo] = Times::in_turns(measure);
        let ratios = ratios(&daemon, &echo);
        say(&json!({ "scenario": scenario, "clients": clients, "daemon": daemon, "echo": echo, "ratio": ratios }));
    }

    // ---- scenarios -----------------------------------------------------------------------------------

    fn rss(&self, empty: u64) {
        let filesystems = self.options.pools * self.options.filesystems;
        let filled = self.process.resident();
        say(&json!({
            "scenario": "rss",
            "empty_kib": empty,
            "filesystems": filesystems,
            "filled_kib": filled,
            "bytes_per_filesystem": (filled - empty.min(filled)) * 1024 / filesystems as u64,
        }));
    }

    fn get(&self, echo: &Service) {
        for clients in [1, self.options.clients] {
            self.small_calls("get", echo, clients, get_call);
        }
    }

    fn get_all(&self, echo: &Service) {
        self.small_calls("get-all", echo, 1, get_all_call);
    }

    fn small_calls(
        &self,
        scenario: &str,
        echo: &Service,
        clients: usize,
        message: impl Fn(&str, &Path<'static>) -> Message + Sync,
    ) {
        let (path, calls) = (&self.filled.filesystem, self.options.calls.div_ceil(ROUNDS));
        let mut daemon = || self.calls(self.process, clients, calls, || message(NAME, path));
        let mut beside = || self.calls(echo.process, clients, calls, || message(&echo.name, path));
        self.beside_echo(scenario, clients, [&mut daemon, &mut beside]);
    }

    fn managed_objects(&self, bare: &Service) {
        let listings = self.options.listings;
        let listings = listings.div_ceil(ROUNDS);
        let mut beside = || self.calls(bare.process, 1, listings, || list_call(&bare.name));
        let mut daemon = || self.calls(self.process, 1, listings, || list_call(NAME));
        let [daemon, beside] = Times::in_turns([&mut daemon, &mut beside]);
        let ratios = ratios(&daemon, &beside);
        say(&json!({
            "scenario": "managed-objects", "bytes": self.bytes, "daemon": daemon, "bare": beside, "ratio": ratios,
            "daemon_resident_kib": self.process.resident(),
        }));
    }

    fn mixed(&self, bare: &Service) {
        let one = self.calls(bare.process, 1, self.options.listings, || list_call(&bare.name)).json();
        let beside = self.reads_while_others_list(bare.process, &bare.name);
        let daemon = self.reads_while_others_list(self.process, NAME);
        let ratios = ratios(&daemon, &beside);
        say(&json!({
            "scenario": "mixed", "listers": LISTERS, "bytes": self.bytes, "daemon": daemon, "bare": beside,
            "ratio": ratios, "one_bare_listing_p50_us": one["p50_us"], "daemon_resident_kib": self.process.resident(),
        }));
    }

    fn reads_while_others_list(&self, process: Process, name: &str) -> Value {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..LISTERS {
                let (client, stop) = (self.bus.client(), &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        call(&client, list_call(name));
                    }
                });
            }
            let reads = self.options.listings * READS_FOR_EACH_LISTING;
            let figures = self.calls(process, 1, reads, || get_call(name, &self.filled.filesystem)).json();
            stop.store(true, Ordering::Relaxed);
            figures
        })
    }

    /// Pairs of a creation and a destruction; beside it an echo that sends as many signals of the
    /// same lengths.
    fn churn(&self, echo: &Service) {
        let clients = self.options.clients.min(self.filled.pools.len());
        let pairs = self.options.calls.div_ceil(10 * ROUNDS * clients);
        let connect = |index: usize| (self.bus.client(), self.filled.pools[index].clone());
        let pair = |client: &LocalConnection, pool: &Path<'static>| {
            timed(|| {
                let made = create_filesystem(client, pool, "churn");
                destroy_filesystem(client, pool, made);
            })
        };
        let churning = |(client, pool)| {
            let client = LocalConnection::from(client);
            (0..pairs).map(|_| pair(&client, &pool)).collect()
        };
        let mut daemon = || Times::of(self.process, clients, connect, churning);
        let signals = self.signals_of(|| {
            pair(&LocalConnection::from(self.bus.client()), &self.filled.pools[0]);
        });
        let echoing = |(client, _)| {
            let half = || Message::new_method_call(&echo.name, "/", "org.example.Echo", "Half").expect("valid");
            let pair = || call(&client, half().append1(&signals)) + call(&client, half());
            (0..pairs).map(|_| pair()).collect()
        };
        let mut beside = || Times::of(echo.process, clients, connect, echoing);
        self.beside_echo("churn", clients, [&mut daemon, &mut beside]);
    }

    /// The lengths of the signals that the daemon sends because of what `happens`.
    fn signals_of(&self, happens: impl FnOnce()) -> Vec<u32> {
        let client = self.bus.client();
        let dbus = "org.freedesktop.DBus";
        let rule = Message::new_method_call(dbus, "/org/freedesktop/DBus", dbus, "AddMatch").expect("valid");
        let rule = rule.append1(format!("type='signal',sender='{NAME}'"));
        client.send_with_reply_and_block(rule, TIMEOUT).expect("the bus takes a rule");
        happens();
        // What was sent before the answer to this call is before it.
        let last = client.send(get_call(NAME, &self.filled.filesystem)).expect("the bus takes a call");
        let mut lengths = Vec::new();
        loop {
            let message = client.blocking_pop_message(TIMEOUT).expect("the bus is there").expect("in time");
            if message.get_reply_serial() == Some(last) {
                return lengths;
            }
            let mut length = 0;
            let marshalled = message.marshal(|bytes| -> Result<(), ()> {
                length += bytes.len();
                Ok(())
            });
            marshalled.expect("in memory");
            lengths.push(u32::try_from(length).expect("a message is shorter"));
        }
    }

    fn destroy(&self) {
        let client = LocalConnection::from(self.bus.client());
        for pool in &self.filled.pools {
            // A pool with filesystems is not destroyed.
            let objects = self.filesystems_of(&client, pool);
            if !objects.is_empty() {
                let _destroyed: (bool, Vec<String>) = done(&client, pool, POOL, "DestroyFilesystems", (objects,));
            }
            let _destroyed: (bool, String) = done(&client, &TOP.into(), MANAGER, "DestroyPool", (pool.clone(),));
        }
    }

    fn filesystems_of(&self, client: &LocalConnection, pool: &Path<'static>) -> Vec<Path<'static>> {
        type Properties = std::collections::HashMap<String, Variant<Box<dyn dbus::arg::RefArg>>>;
        type Objects = std::collections::HashMap<Path<'static>, std::collections::HashMap<String, Properties>>;
        let proxy = client.with_proxy(NAME, TOP, TIMEOUT);
        let (objects,): (Objects,) = proxy.method_call(OBJECT_MANAGER, "GetManagedObjects", ()).expect("an answer");
        let of_pool = |interfaces: &std::collections::HashMap<String, Properties>| {
            interfaces.get(FILESYSTEM)?.get("Pool")?.0.as_str().map(|path| *path == **pool)
        };
        let mine = objects.into_iter().filter(|(_, interfaces)| of_pool(interfaces) == Some(true));
        mine.map(|(path, _)| path).collect()
    }
}
