//! `stratisd-bench`: what a daemon that owns the Stratis name gives its clients, and what it costs.
//!
//! It drives any such daemon, this one or another, and prints one line of JSON for each scenario.
//! Beside each figure stands that of a service that does nothing, on the same bus: an echo through
//! libdbus, or one that sends the bytes of a listing from memory. So figures of different machines
//! can be compared as ratios.
//!
//! It stands here because it measures: the daemon's package builds it, `make install` leaves it out.
//!
//! Deliberately absent: thresholds. What a figure should be is for whoever reads it.

mod measure;
mod place;
mod scenarios;
mod services;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  stratisd-bench bus --start 'target/release/stratisd --sim'
  stratisd-bench bus --start '/usr/libexec/stratisd --sim' --only get,mixed
  stratisd-bench bus --devices /dev/sdb,/dev/sdc   (the daemon that serves the system bus: pools are
                                                   made on these devices, and destroyed at the end)";

/// Measurements of a Stratis daemon
#[derive(Debug, Parser)]
#[command(name = "stratisd-bench", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What D-Bus clients wait, and what that costs the daemon
    Bus(Bus),
    /// A service that answers each call with a small value (used by `bus`)
    #[command(hide = true)]
    Echo {
        /// Where the bus is
        address: String,
    },
    /// A service that answers listings with the bytes on standard input (used by `bus`)
    #[command(hide = true)]
    Bare {
        /// Where the bus is
        address: String,
    },
}

/// What D-Bus clients wait, and what that costs the daemon.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
struct Bus {
    /// Start a bus and this daemon on it; without it the daemon that serves the system bus (or the
    /// bus that DBUS_SYSTEM_BUS_ADDRESS names) is measured
    #[arg(long, value_name = "COMMAND")]
    start: Option<String>,
    /// How many pools are made
    #[arg(long, default_value_t = 10)]
    pools: usize,
    /// How many filesystems are made in each
    #[arg(long, default_value_t = 100)]
    filesystems: usize,
    /// One device for each pool; without it names are made up, as a simulated machine takes them
    #[arg(long, value_delimiter = ',')]
    devices: Vec<String>,
    /// Clients at a time, where there are several
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Calls in each scenario of small calls
    #[arg(long, default_value_t = 20_000)]
    calls: usize,
    /// Listings in each scenario of those
    #[arg(long, default_value_t = 40)]
    listings: usize,
    /// Which scenarios; all by default
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Scenario>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Scenario {
    /// From the start of the process to its name, with `--start` only
    Startup,
    /// Memory: empty, and for each filesystem
    Rss,
    /// One property, one client and several
    Get,
    /// All properties of a filesystem
    GetAll,
    /// Every object
    ManagedObjects,
    /// One property while four clients list every object in a loop
    Mixed,
    /// Filesystems made and destroyed by several clients, each in a pool of its own
    Churn,
}

fn main() -> ExitCode {
    match Arguments::parse().what {
        What::Bus(options) => scenarios::run(&options),
        What::Echo { address } => services::echo(&address),
        What::Bare { address } => services::bare(&address),
    }
    ExitCode::SUCCESS
}
