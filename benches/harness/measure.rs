//! Times of calls and what they cost a process, as JSON.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How often each of two services has its turn.
pub(crate) const ROUNDS: usize = 10;

/// A process that is looked at through /proc.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process(pub(crate) u32);

impl Process {
    /// CPU time of all its threads so far.
    fn cpu(self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0)).expect("it runs, and we may look at it");
        let nanoseconds = tasks.filter_map(|task| {
            let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    /// Memory that it has, in KiB.
    pub(crate) fn resident(self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says so");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

/// How long each of many calls took, how long all of them, and what they cost.
pub(crate) struct Times {
    each: Vec<Duration>,
    wall: Duration,
    cpu: Duration,
}

impl Times {
    /// Lets `clients` threads make their calls side by side; each call gives what it took.
    /// `connect` is called for each client before the clock starts.
    pub(crate) fn of<C: Send>(
        process: Process,
        clients: usize,
        connect: impl Fn(usize) -> C,
        calls: impl Fn(C) -> Vec<Duration> + Sync,
    ) -> Self {
        let connections: Vec<C> = (0..clients).map(connect).collect();
        let calls = &calls;
        let (cpu, began) = (process.cpu(), Instant::now());
        let each = thread::scope(|scope| {
            let threads: Vec<_> =
                connections.into_iter().map(|connection| scope.spawn(move || calls(connection))).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
        });
        Self { each, wall: began.elapsed(), cpu: process.cpu() - cpu }
    }

    /// Measures two services in turns, so that what else the machine does meets both; then as `of`.
    pub(crate) fn in_turns(mut measures: [&mut dyn FnMut() -> Self; 2]) -> [Value; 2] {
        let mut all = measures.each_mut().map(|measure| measure());
        for _ in 1..ROUNDS {
            for (times, measure) in all.iter_mut().zip(&mut measures) {
                times.add(measure());
            }
        }
        all.map(Self::json)
    }

    fn add(&mut self, other: Self) {
        self.each.extend(other.each);
        self.wall += other.wall;
        self.cpu += other.cpu;
    }

    /// The figures, of the sorted times.
    pub(crate) fn json(mut self) -> Value {
        self.each.sort_unstable();
        let count = self.each.len();
        let at = |percent: usize| micros(self.each[(count - 1) * percent / 100]);
        json!({
            "calls": count,
            "per_second": round(count_of(count) / self.wall.as_secs_f64()),
            "p50_us": at(50),
            "p99_us": at(99),
            "max_us": at(100),
            "cpu_us_per_call": round(self.cpu.as_secs_f64() * 1e6 / count_of(count)),
        })
    }
}

/// How long something took.
pub(crate) fn timed(call: impl FnOnce()) -> Duration {
    let began = Instant::now();
    call();
    began.elapsed()
}

fn micros(duration: Duration) -> f64 {
    round(duration.as_secs_f64() * 1e6)
}

fn round(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

fn count_of(count: usize) -> f64 {
    f64::from(u32::try_from(count).expect("nobody waits for so many calls"))
}

/// One figure divided by the same of the service beside it, for those where that means something.
pub(crate) fn ratios(daemon: &Value, beside: &Value) -> Value {
    let ratio = |key: &str| {
        let quotient = daemon[key].as_f64()? / beside[key].as_f64()?;
        Some((key.to_owned(), json!((quotient * 1_000.0).round() / 1_000.0)))
    };
    ["per_second", "p50_us", "p99_us", "cpu_us_per_call"].into_iter().filter_map(ratio).collect()
}
