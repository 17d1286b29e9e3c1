//! How many of the mistakes in `src/zoo.rs` are found, by what, and how soon: `make zoo`.
//!
//! Each mistake is planted into processes of its own, which run one hunt after the other until one fails: crash points
//! of single deeds, random histories, crash points of sequences, and at last the tests that were written for
//! something. A hunt that fails has found it, because none fails without it.
//!
//! `ZOO=<name>` before any test of this binary plants one; `SECONDS` is how long each is hunted at most.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use stratisd::zoo::{ALL, Origin, Row};

/// A test by its name, and how much of it.
struct Hunt {
    name: &'static str,
    arguments: &'static [&'static str],
    variables: &'static [(&'static str, &'static str)],
}

const HUNTS: &[Hunt] = &[
    Hunt { name: "single deeds", arguments: &["--exact", "deeds::single_deeds_are_all_or_nothing"], variables: &[] },
    Hunt {
        name: "faults of deeds",
        arguments: &["--exact", "failing::every_fault_of_every_deed_is_unwound"],
        variables: &[],
    },
    Hunt {
        name: "several at once",
        arguments: &["--exact", "together::clients_at_once_are_clients_in_some_order"],
        variables: &[("SEED", "1"), ("CASES", "3000")],
    },
    Hunt {
        name: "histories",
        arguments: &["--exact", "history::random_histories_keep_every_promise"],
        variables: &[("SEED", "1"), ("HISTORIES", "700")],
    },
    Hunt {
        name: "sequences",
        arguments: &["--exact", "deeds::sequences_of_two_deeds_are_all_or_nothing"],
        variables: &[("SEED", "1"), ("SEQUENCES", "600")],
    },
    Hunt {
        name: "a test of its own",
        arguments: &["--skip", "deeds::", "--skip", "failing::", "--skip", "together::", "--skip", "history::"],
        variables: &[],
    },
];

/// Why some are not found within five minutes.
const NOT_FOUND: &[(&str, &str)] = &[];

/// How a mistake was found.
struct Found {
    hunt: &'static str,
    what: String,
}

fn main_of(hunt: &Hunt, row: &Row, end: Instant) -> Option<Found> {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(hunt.arguments).args(["--nocapture", "--test-threads=2"]).envs(hunt.variables.iter().copied());
    command.env("ZOO", row.name).env("RUST_BACKTRACE", "0").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("this program can be run");
    // Both ends are read, so that neither keeps the child waiting.
    let (mut out, mut err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        let _ended = err.read_to_end(&mut text);
        text
    });
    let said = thread::spawn(move || {
        let mut text = Vec::new();
        let _ended = out.read_to_end(&mut text);
        text
    });
    let status = loop {
        match child.try_wait().expect("it is our child") {
            Some(status) => break Some(status),
            None if Instant::now() > end => {
                child.kill().expect("it is our child");
                child.wait().expect("it ends");
                break None;
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    let text = [said.join().expect("it reads"), reader.join().expect("it reads")].concat();
    let failed = status.is_some_and(|status| !status.success());
    failed.then(|| Found { hunt: hunt.name, what: promise(&String::from_utf8_lossy(&text)) })
}

/// What a test said that failed, in one line.
fn promise(text: &str) -> String {
    let told = text.lines().find_map(|line| line.strip_prefix("=> "));
    let after_panic = || text.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
    let line = told.or_else(after_panic).unwrap_or("it ended");
    let number = text
        .lines()
        .filter_map(|line| line.strip_prefix("history "))
        .next_back()
        .map(|line| format!(" (history {line})"));
    format!("{}{}", line.chars().take(110).collect::<String>(), number.unwrap_or_default())
}

#[test]
#[ignore = "half an hour: make zoo"]
fn nearly_all_of_the_zoo_is_found() {
    let seconds = crate::given("SECONDS").unwrap_or(300);
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let only = std::env::var("ONLY").unwrap_or_default();
    let rows: Vec<&Row> =
        ALL.iter().filter(|row| only.is_empty() || only.split(',').any(|name| name == row.name)).collect();
    let hunt_one = |row: &Row| {
        let end = Instant::now() + Duration::from_secs(seconds);
        HUNTS.iter().find_map(|hunt| main_of(hunt, row, end))
    };
    let work = || {
        while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
            let began = Instant::now();
            let outcome = hunt_one(row);
            let seconds = began.elapsed().as_secs();
            let line = match &outcome {
                Some(Found { hunt, what }) => format!("by {hunt}: {what}"),
                None => {
                    let known = NOT_FOUND.iter().find(|(name, _)| *name == row.name);
                    format!("NOT FOUND: {}", known.map_or("it is not known why", |(_, why)| why))
                }
            };
            println!("{:22} {:5} {seconds:4} s {line}", row.name, format!("{:?}", row.origin));
            found.lock().expect("nobody panics with it").push((row.origin, outcome.map(|found| found.hunt)));
        }
    };
    thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    let found = found.into_inner().expect("nobody panics with it");
    let found: Vec<(Origin, &str)> = found.into_iter().filter_map(|(origin, hunt)| Some((origin, hunt?))).collect();
    let all = found.len();
    let general = found.iter().filter(|(_, hunt)| *hunt != "a test of its own").count();
    let peers = found.iter().filter(|(origin, _)| *origin == Origin::Peer).count();
    println!("{all} of {} are found, {general} of them by what was written for none, {peers} are of 3.9.2", rows.len());
    assert!(10 * all >= 9 * rows.len(), "nine of ten are to be found");
}
