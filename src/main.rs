//! stratisd: arguments, plan, cores, exit code.
//!
//! Invariants: nothing is touched before the single-instance lock is held and everything the daemon
//! needs was tried; signals are blocked before any thread exists; whatever ends the bus role ends
//! the process. Exit codes: 0 stopped, 1 failure (one line says which), 2 bad use, 3 ended by a
//! second signal.

use std::process::ExitCode;
use std::rc::Rc;

use clap::Parser;
use cores::executor::{self, CoreHandle, CoreSpec};
use cores::limits::IO_MEMORY_BYTES;
use cores::memory;
use cores::placement::{Placement, Role, place};
use cores::preflight::{self, Needs};
use cores::rt::{self, Join};
use cores::signals::{self, StopFlag};
use cores::topology::Topology;
use crossbeam_channel::{Sender, unbounded};
use ring::{Endpoint, Sizes, mesh};
use stratisd::args::{Args, Machine, start_log};
use stratisd::bus::address::system_bus;
use stratisd::bus::run::{self as bus_role, BusConfig};
use stratisd::directory::Directory;
use stratisd::engine::grow::Pace;
use stratisd::event;
use stratisd::limits::{FILES_OPEN_MIN, OUTBOX_MAX, RING_SLOTS};
use stratisd::lock::Lock;
use stratisd::message::Message;
use stratisd::shard::home::home;
use stratisd::shard::{Places, Shard, turn};
use stratisd::sys::Sys;
use stratisd::sys::files::{FilesRoot, FilesSys};
use stratisd::sys::kernel::{KernelSys, namespace};
use stratisd::sys::sim::{Machine as SimMachine, SimSys};

/// Places in the mesh: bus and directory, event core, then the shards.
const BUS: usize = 0;
const EVENT: usize = 1;
const FIRST_SHARD: usize = 2;

/// Messages are freed on another core than the one that made them. With one arena for each thread, as the C library has
/// it, every such free takes a lock of the other core's; here it is a push to a list.
#[global_allocator]
static MEMORY: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The end of a role, in words for the last line on standard error.
type Ended = Result<(), String>;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("stratisd: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Ended {
    let _lock = Lock::take(&args.run_dir).map_err(words)?;
    start_log(args.log_level).map_err(words)?;
    memory::one_arena();
    // Passphrases come through this process: no core dump holds one, and nobody attaches to read them.
    nix::sys::prctl::set_dumpable(false).map_err(words)?;
    let machine = args.machine();
    if machine == Machine::Kernel {
        namespace::prepare().map_err(words)?;
    }
    signals::block().map_err(words)?;
    let placement = place(&Topology::of_this_process(), &args.wanted()).map_err(words)?;
    let needs = Needs { executors: placement.cores.len(), io_memory_bytes: IO_MEMORY_BYTES };
    preflight::check(&needs).map_err(words)?;
    preflight::raise_open_files(FILES_OPEN_MIN).map_err(words)?;
    let stop = signals::watch().map_err(words)?;
    log::info!(
        "stratisd {} (cores={} shards={})",
        env!("CARGO_PKG_VERSION"),
        placement.cores.len(),
        placement.shards()
    );
    let settings = Settings { bus_message_max: args.bus_message_max, pace: args.pace() };
    match machine {
        Machine::Sim => {
            log::info!("the machine is simulated: device-mapper and udev are not looked at");
            serve(&placement, settings, &stop, sim)
        }
        Machine::Files(folder) => {
            let root = FilesRoot::open(&folder).map_err(words)?;
            log::info!("devices and volumes are files (folder={})", folder.display());
            serve(&placement, settings, &stop, move |cpu| Ok(FilesSys::new(root.clone(), cpu)))
        }
        Machine::Kernel => serve(&placement, settings, &stop, |cpu| KernelSys::new(cpu).map_err(words)),
    }
}

/// Every shard has a machine of its own: devices in use are known to the directory, so no two shards
/// ever work on one.
fn sim(_cpu: Option<usize>) -> Result<SimSys, String> {
    Ok(SimMachine::daemon().sys())
}

fn words(fault: impl ToString) -> String {
    fault.to_string()
}

/// Starts the cores and waits for them. The first failure of a role is the daemon's.
fn serve<S: Sys>(
    placement: &Placement,
    settings: Settings,
    stop: &StopFlag,
    machine: impl Fn(Option<usize>) -> Result<S, String> + Clone + Send + 'static,
) -> Ended {
    let shards = placement.shards();
    let sizes = Sizes { ring_slots: RING_SLOTS, outbox_max: OUTBOX_MAX };
    let mut endpoints: Vec<Option<Endpoint<Message>>> =
        mesh(FIRST_SHARD + shards, sizes).into_iter().map(Some).collect();
    let (report, reports) = unbounded::<Ended>();
    let mut handles: Vec<CoreHandle> = Vec::new();
    for core in &placement.cores {
        let roles: Vec<(Role, Endpoint<Message>)> = core
            .roles
            .iter()
            .map(|role| (*role, endpoints[seat(*role)].take().expect("every role is placed once")))
            .collect();
        let (stop, machine, report) = (stop.clone(), machine.clone(), report.clone());
        let work = Work { shards, settings, cpu: core.cpu, stop, machine, report };
        let spec = CoreSpec { name: core_name(&core.roles), cpu: core.cpu };
        handles.push(executor::start(spec, move || work.run(roles)).map_err(words)?);
    }
    drop(report);
    // Every role reports once; the channel ends with the last of them.
    for ended in reports {
        ended?;
    }
    for handle in handles {
        handle.join().map_err(|panicked| format!("{}: {}", panicked.task, panicked.message))?;
    }
    log::info!("stopped");
    Ok(())
}

const fn seat(role: Role) -> usize {
    match role {
        Role::Bus => BUS,
        Role::Event => EVENT,
        Role::Shard(shard) => FIRST_SHARD + shard,
    }
}

fn core_name(roles: &[Role]) -> String {
    let name = |role: &Role| match role {
        Role::Bus => "bus".to_owned(),
        Role::Event => "event".to_owned(),
        Role::Shard(shard) => format!("shard{shard}"),
    };
    roles.iter().map(name).collect::<Vec<_>>().join("+")
}

/// What the command line says of the roles themselves.
#[derive(Clone, Copy)]
struct Settings {
    bus_message_max: usize,
    pace: Pace,
}

/// What one core needs to run its roles.
struct Work<M> {
    shards: usize,
    settings: Settings,
    cpu: Option<usize>,
    stop: StopFlag,
    machine: M,
    report: Sender<Ended>,
}

impl<S: Sys, M: Fn(Option<usize>) -> Result<S, String> + 'static> Work<M> {
    async fn run(self, roles: Vec<(Role, Endpoint<Message>)>) {
        let mut running: Vec<Join<()>> = Vec::new();
        for (role, endpoint) in roles {
            let endpoint = Rc::new(endpoint);
            running.push(match role {
                Role::Bus => {
                    self.play("bus", bus(endpoint, self.shards, self.settings.bus_message_max, self.stop.clone()))
                }
                Role::Event => {
                    let machine = (self.machine)(self.cpu);
                    self.play("event", events(machine, endpoint, self.shards, self.stop.clone()))
                }
                Role::Shard(_) => self.play("shard", shard((self.machine)(self.cpu), endpoint, self.settings.pace)),
            });
        }
        for role in running {
            // A role that panicked has reported that.
            let _reported = role.await;
        }
        log::info!("core stopped ({:?})", rt::counters());
    }

    /// Runs a role and reports its end at once: the first failure is the daemon's, whatever else of
    /// this core still runs.
    fn play(&self, name: &'static str, role: impl Future<Output = Ended> + 'static) -> Join<()> {
        let report = self.report.clone();
        let role = rt::spawn_urgent(name, role);
        rt::spawn(name, async move {
            let ended = role.await.unwrap_or_else(|panicked| Err(format!("{}: {}", panicked.task, panicked.message)));
            // Main listens until the last role has reported; if it is gone, the process is ending.
            let _main_is_gone = report.send(ended).is_err();
        })
    }
}

async fn bus(endpoint: Rc<Endpoint<Message>>, shards: usize, message_max: usize, stop: StopFlag) -> Ended {
    let mut directory = Directory::default();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let config =
        BusConfig { address: system_bus(), shards, first_shard: FIRST_SHARD, event: EVENT, version, message_max };
    let on_claim = move |from, claim| directory.handle(claim).map(|claimed| (from, claimed)).into_iter().collect();
    let home = move |pool| FIRST_SHARD + home(pool, shards);
    bus_role::run(config, endpoint, on_claim, home, stop.raised()).await.map_err(words)
}

async fn events<S: Sys>(
    machine: Result<S, String>,
    endpoint: Rc<Endpoint<Message>>,
    shards: usize,
    stop: StopFlag,
) -> Ended {
    let places = event::Places { bus: BUS, shards: FIRST_SHARD..FIRST_SHARD + shards };
    event::run(&machine?, endpoint, places, |pool| FIRST_SHARD + home(pool, shards), stop.raised()).await;
    Ok(())
}

async fn shard<S: Sys>(machine: Result<S, String>, endpoint: Rc<Endpoint<Message>>, pace: Pace) -> Ended {
    let shard = Shard::new(machine?, endpoint, Places { bus: BUS, event: EVENT });
    shard.pace.set(pace);
    turn::run(shard).await;
    Ok(())
}
