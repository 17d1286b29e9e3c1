//! The command line, and the log that it steers.
//!
//! Invariant: what `Args` holds can be used as it is; whatever cannot has been refused with exit
//! code 2 and a hint on standard error. Help and version go to standard output, with exit code 0.
//!
//! Deliberately absent: a configuration file. Which CPUs are allowed and how many shards are
//! possible is `cores::placement`'s to say, because it depends on the machine.

use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use cores::placement::Wanted;
use cores::topology::{CpuList, CpuListFault, parse_cpus};
use env_logger::Builder;
use log::{LevelFilter, SetLoggerError};

use crate::engine::grow::Pace;
use crate::limits::{BUS_MESSAGE_BYTES_DEFAULT, BUS_MESSAGE_BYTES_MAX, BUS_MESSAGE_BYTES_MIN, GROW_MIB_MAX};

/// The crates whose messages `--log-level` steers.
const OUR_CRATES: [&str; 3] = ["stratisd", "cores", "ring"];

/// Where environments put a log filter, such as `stratisd=info`.
const LOG_VARIABLE: &str = "RUST_LOG";

const EXAMPLES: &str = "\
Examples:
  stratisd                                manage the pools of this machine (as root)
  stratisd --sim --run-dir /tmp/run       a machine in memory, to try clients with
  stratisd --files /srv/trial             devices and volumes are files below /srv/trial
  stratisd --cpus 0-3,6 --log-level info  use these five CPUs only, say what happens

SIGINT or SIGTERM stops the daemon, and the pools stay as they are. A second one ends it at once.
Exit codes: 0 stopped, 1 failure, 2 bad use, 3 ended by a second signal.";

/// Storage management daemon for Stratis pools
#[derive(Clone, Debug, Eq, Parser, PartialEq)]
#[command(name = "stratisd", version, after_help = EXAMPLES)]
pub struct Args {
    /// Work on a simulated machine in memory: no device is touched
    #[arg(long)]
    sim: bool,
    /// Work on regular files below DIR instead of devices: real I/O, no device-mapper
    #[arg(long, value_name = "DIR", conflicts_with = "sim")]
    files: Option<PathBuf>,
    /// Where lock and pid files are
    #[arg(long, value_name = "DIR", default_value = "/run")]
    pub run_dir: PathBuf,
    /// Log messages of this severity and worse; without it RUST_LOG decides, or errors only
    #[arg(long, value_name = "LEVEL", value_enum)]
    pub log_level: Option<LogLevel>,
    /// Longest message that the message bus takes, in bytes: its max_message_size
    #[arg(long, value_name = "BYTES", default_value_t = BUS_MESSAGE_BYTES_DEFAULT, value_parser = message_max)]
    pub bus_message_max: usize,
    /// By how many MiB the data space of a pool grows at once
    #[arg(long, value_name = "MIB", default_value_t = Pace::default().step, value_parser = data_blocks)]
    grow_step: u64,
    /// At how many free MiB the data space of a pool grows
    #[arg(long, value_name = "MIB", default_value_t = Pace::default().low_water, value_parser = data_blocks)]
    low_water: u64,
    /// How many shards (owners of pools) to run; by default as many as there are CPUs for, up to 8
    #[arg(long, value_name = "N", value_parser = shard_count)]
    shards: Option<usize>,
    /// Use only these CPUs: numbers and ranges, such as 0-3,6
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    cpus: Option<CpuList>,
}

/// What pools are made of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Machine {
    /// The devices of this machine.
    Kernel,
    /// Files below this folder.
    Files(PathBuf),
    /// Memory.
    Sim,
}

/// A severity, and everything worse.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
#[allow(missing_docs, reason = "the levels of the log crate, named as it names them")]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl LogLevel {
    const fn filter(self) -> LevelFilter {
        match self {
            Self::Trace => LevelFilter::Trace,
            Self::Debug => LevelFilter::Debug,
            Self::Info => LevelFilter::Info,
            Self::Warn => LevelFilter::Warn,
            Self::Error => LevelFilter::Error,
        }
    }
}

impl Args {
    /// What pools are to be made of.
    pub fn machine(&self) -> Machine {
        match (&self.files, self.sim) {
            (Some(folder), _) => Machine::Files(folder.clone()),
            (None, true) => Machine::Sim,
            (None, false) => Machine::Kernel,
        }
    }

    /// In which steps pools grow. A data block is a MiB.
    pub const fn pace(&self) -> Pace {
        Pace { step: self.grow_step, low_water: self.low_water }
    }

    /// What is wished of the placement.
    pub fn wanted(&self) -> Wanted {
        Wanted { shards: self.shards, cpus: self.cpus.as_ref().map(|list| list.0.iter().copied().collect()) }
    }
}

/// A step of nothing would never end, and more than 1 TiB is taken from everything else for no good.
fn data_blocks(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(blocks) if (1..=GROW_MIB_MAX).contains(&blocks) => Ok(blocks),
        Ok(_) => Err(format!("between 1 and {GROW_MIB_MAX} MiB are possible")),
        Err(fault) => Err(format!("{fault}")),
    }
}

/// How many are too many depends on the machine; none is never enough.
fn shard_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least one shard is needed: it is what owns pools".to_owned()),
        Ok(count) => Ok(count),
        Err(fault) => Err(format!("{fault}")),
    }
}

/// Less would refuse what every client needs, more is no D-Bus message.
fn message_max(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if (BUS_MESSAGE_BYTES_MIN..=BUS_MESSAGE_BYTES_MAX).contains(&bytes) => Ok(bytes),
        Ok(_) => Err(format!("between {BUS_MESSAGE_BYTES_MIN} and {BUS_MESSAGE_BYTES_MAX} bytes are possible")),
        Err(fault) => Err(format!("{fault}")),
    }
}

fn cpu_list(text: &str) -> Result<CpuList, CpuListFault> {
    parse_cpus(text).map(CpuList)
}

/// Starts the log on standard error. Call it once.
///
/// # Errors
/// When the process has a logger already.
pub fn start_log(level: Option<LogLevel>) -> Result<(), SetLoggerError> {
    let variable = std::env::var(LOG_VARIABLE).ok();
    logging(level, variable.as_deref()).try_init()
}

/// A log level is about our own crates; what others report is shown when it is an error. Without
/// one the filter of the environment counts, on top of errors only.
fn logging(level: Option<LogLevel>, variable: Option<&str>) -> Builder {
    let mut builder = Builder::new();
    builder.filter_level(LevelFilter::Error);
    match (level, variable) {
        (Some(level), _) => {
            for ours in OUR_CRATES {
                builder.filter_module(ours, level.filter());
            }
        }
        (None, Some(filter)) => {
            builder.parse_filters(filter);
        }
        (None, None) => {}
    }
    builder.format(|out, record| {
        let (time, level) = (out.timestamp_millis(), record.level());
        let module = record.module_path().unwrap_or_else(|| record.target());
        writeln!(out, "[{time} {level} {module}] {}", record.args())
    });
    builder
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc;

    use clap::error::ErrorKind;
    use env_logger::Target;
    use log::{Level, Log, Record};

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    fn refused(line: &str) -> clap::Error {
        parse(line).expect_err("this is bad use")
    }

    #[test]
    fn without_arguments_the_real_machine_is_managed() {
        let args = parse("stratisd").expect("no argument is needed");
        assert_eq!(args.machine(), Machine::Kernel);
        assert_eq!(args.run_dir, PathBuf::from("/run"));
        assert_eq!(args.log_level, None);
        assert_eq!(args.bus_message_max, 33_554_432);
        assert_eq!(args.pace(), Pace { step: 51_200, low_water: 15_360 });
        assert_eq!(args.wanted(), Wanted { shards: None, cpus: None });
    }

    #[test]
    fn every_option_reaches_its_place() {
        let line = "stratisd --files /srv/x --run-dir /tmp/r --log-level debug --shards 3 --cpus 0-3,6 --bus-message-max 134217728";
        let args = parse(line).expect("this is good use");
        assert_eq!(args.machine(), Machine::Files("/srv/x".into()));
        assert_eq!(args.run_dir, PathBuf::from("/tmp/r"));
        assert_eq!(args.log_level, Some(LogLevel::Debug));
        assert_eq!(args.bus_message_max, 128 << 20);
        assert_eq!(args.wanted(), Wanted { shards: Some(3), cpus: Some(vec![0, 1, 2, 3, 6]) });
        assert_eq!(parse("stratisd --sim").map(|args| args.machine()).ok(), Some(Machine::Sim));
    }

    #[test]
    fn version_and_help_are_no_failures() {
        for flag in ["--version", "-V"] {
            let version = parse(&format!("stratisd {flag}")).expect_err("it ends the program");
            assert_eq!((version.kind(), version.exit_code()), (ErrorKind::DisplayVersion, 0));
            assert_eq!(version.to_string(), "stratisd 3.9.2\n");
            assert!(!version.use_stderr());
        }
        for flag in ["--help", "-h"] {
            let help = parse(&format!("stratisd {flag}")).expect_err("it ends the program");
            assert_eq!((help.kind(), help.exit_code()), (ErrorKind::DisplayHelp, 0));
            assert!(help.to_string().contains("Usage: stratisd") && help.to_string().contains("Examples:"));
            assert!(!help.use_stderr());
        }
    }

    #[test]
    fn bad_use_is_explained_on_standard_error_with_code_2() {
        for (line, hint) in [
            ("stratisd --frobnicate", "--frobnicate"),
            ("stratisd pool", "pool"),
            ("stratisd --log-level loud", "loud"),
            ("stratisd --log-level", "--log-level"),
            ("stratisd --sim --files /srv/x", "--sim"),
            ("stratisd --shards few", "few"),
            ("stratisd --bus-message-max 1000", "between 1048576 and 134217728"),
            ("stratisd --bus-message-max 134217729", "between"),
            ("stratisd --bus-message-max 64M", "64M"),
            ("stratisd --grow-step 0", "between 1 and 1048576 MiB"),
            ("stratisd --low-water 1048577", "between"),
            ("stratisd --shards -1", "-1"),
            ("stratisd --cpus 3-1", "the range 3-1 runs backwards"),
            ("stratisd --cpus a", "neither a CPU number"),
        ] {
            let error = refused(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.use_stderr(), "{line}");
            assert!(error.to_string().contains(hint), "{line}: {error}");
            assert!(error.to_string().contains("--help"), "{line}: {error}");
        }
    }

    /// Whether a module's messages of a level would be shown.
    fn shows(level: Option<LogLevel>, variable: Option<&str>, module: &str, message: Level) -> bool {
        let logger = logging(level, variable).build();
        logger.matches(&Record::builder().target(module).level(message).build())
    }

    #[test]
    fn a_log_level_steers_our_own_modules_and_errors_of_others_stay() {
        for ours in ["stratisd", "stratisd::bus::tree", "cores::rt", "ring"] {
            assert!(shows(Some(LogLevel::Info), None, ours, Level::Info));
            assert!(!shows(Some(LogLevel::Info), None, ours, Level::Debug));
            assert!(!shows(None, None, ours, Level::Warn));
            assert!(shows(None, None, ours, Level::Error));
        }
        assert!(!shows(Some(LogLevel::Trace), None, "glommio", Level::Warn));
        assert!(shows(Some(LogLevel::Info), None, "glommio", Level::Error));
    }

    #[test]
    fn the_environment_counts_only_without_a_log_level() {
        assert!(shows(None, Some("stratisd=info"), "stratisd::bus", Level::Info));
        assert!(!shows(None, Some("off"), "stratisd", Level::Error));
        assert!(!shows(Some(LogLevel::Error), Some("trace"), "stratisd", Level::Warn));
    }

    struct Pipe(mpsc::Sender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_owned()).expect("the test still listens");
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_has_time_level_module_and_text() {
        let (pipe, lines) = mpsc::channel();
        let logger = logging(None, None).target(Target::Pipe(Box::new(Pipe(pipe)))).build();
        let text = format_args!("it broke").to_string();
        logger.log(
            &Record::builder()
                .args(format_args!("{text}"))
                .level(Level::Error)
                .target("elsewhere")
                .module_path(Some("stratisd::bus"))
                .build(),
        );
        drop(logger);
        let line = String::from_utf8(lines.iter().flatten().collect()).expect("a line is text");
        let (time, rest) = line.strip_prefix('[').and_then(|line| line.split_once(' ')).expect("a time comes first");
        assert_eq!(rest, "ERROR stratisd::bus] it broke\n");
        assert_eq!(time.len(), "2026-11-21T04:22:59.123Z".len());
        humantime::parse_rfc3339(time).expect("the time is RFC 3339 in UTC");
    }
}
