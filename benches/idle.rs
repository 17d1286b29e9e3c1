//! How quiet an idle daemon is: context switches of all its threads in ten seconds of nothing to do.
//!
//! A switch that nobody asked for is a timer or a poll, that is, a laptop that does not sleep and a CPU
//! that is taken from others. Goal: at most 5 in ten seconds over all threads, best 0. The numbers
//! come from `/proc/PID/task/*/status`; reading them does not wake the daemon.
//!
//! Deliberately absent: a failure. This is a measurement; `make bench` shows it, a person judges.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use support::GIB;
use support::rig::{Kind, Rig};

/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(10);
/// Time for start-up work to settle.
const SETTLE: Duration = Duration::from_secs(2);
/// Switches in `IDLE` that are still called quiet.
const GOAL: u64 = 5;

fn main() {
    for kind in [Kind::Sim, Kind::Files] {
        let rig = Rig::new(kind);
        let daemon = rig.start();
        let client = rig.client();
        let (_, (pool, _)) = client.create_pool("p", &[rig.disk("one", 2 * GIB)]).done();
        client.make_filesystem(&pool, "f");
        // The bus has nothing to tell about us while we wait.
        drop(client);
        thread::sleep(SETTLE);
        let before = switches(daemon.id());
        thread::sleep(IDLE);
        report(kind, &before, &switches(daemon.id()));
    }
}

/// Context switches so far, by thread id, and the thread's name.
fn switches(process: u32) -> BTreeMap<String, (String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("the daemon runs");
    tasks
        .map(|task| {
            let task = task.expect("its threads can be listed").path();
            let status = fs::read_to_string(task.join("status")).expect("an idle daemon's threads stay");
            let value =
                |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).expect("the kernel counts").trim();
            let count = |key: &str| value(key).parse::<u64>().expect("a count is a number");
            let sum = count("voluntary_ctxt_switches:") + count("nonvoluntary_ctxt_switches:");
            (task.file_name().unwrap_or_default().to_string_lossy().into_owned(), (value("Name:").to_owned(), sum))
        })
        .collect()
}

fn report(kind: Kind, before: &BTreeMap<String, (String, u64)>, after: &BTreeMap<String, (String, u64)>) {
    let mut total = 0;
    println!("idle {kind:?}: context switches in {IDLE:?}, {} threads", after.len());
    for (id, (name, count)) in after {
        let count = count - before.get(id).map_or(0, |(_, count)| *count);
        total += count;
        println!("  {count:>6}  {name} ({id})");
    }
    let verdict = if total <= GOAL { "quiet" } else { "NOT quiet" };
    println!("  {total:>6}  in all; goal at most {GOAL}: {verdict}");
}
