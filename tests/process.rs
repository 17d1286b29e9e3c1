//! The daemon as a process: options, exit codes, the lock, signals, and what it says where.
//!
//! Exit codes: 0 asked to end, 1 cannot run, 2 wrong command line, 3 a second signal cut it short.
//! Deliberately absent: the wording of messages; a test asks only for what a person needs from them.

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::client::{Client, create_pool_arguments, method};
use support::daemon::{BINARY, Daemon, PATIENCE};
use support::rig::{Kind, Rig, text};
use support::{GIB, NAME, TOP, interface};

/// Runs the binary to its end.
fn run(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().expect("the daemon's binary can be executed")
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect()
}

#[test]
fn version_is_one_line_on_stdout() {
    for option in ["--version", "-V"] {
        let output = run(&[option]);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(lines(&output.stdout), [format!("stratisd {}", env!("CARGO_PKG_VERSION"))]);
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn help_names_every_option_and_needs_no_lock() {
    for option in ["--help", "-h"] {
        let output = run(&[option]);
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for named in ["--sim", "--files", "--run-dir", "--log-level", "--shards", "--cpus", "--version"] {
            assert!(text.contains(named), "{option} names {named}: {text}");
        }
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn a_wrong_command_line_exits_2_with_a_hint_on_stderr() {
    let rig = Rig::sim();
    let (files, run_dir) = (text(&rig.files_folder()), text(&rig.run_folder()));
    let wrong: [&[&str]; 10] = [
        &["--no-such-option"],
        &["positional"],
        &["--sim", "--log-level", "loud"],
        &["--sim", "--log-level"],
        &["--sim", "--files", &files],
        &["--files"],
        &["--sim", "--shards", "many"],
        &["--sim", "--shards", "0"],
        &["--sim", "--cpus", "x"],
        &["--sim", "--run-dir"],
    ];
    for arguments in wrong {
        let output = rig.bare_command().args(arguments).output().expect("the binary can be executed");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?} is explained");
    }
    assert_eq!(fs::read_dir(run_dir).expect("the folder exists").count(), 0, "nothing was locked");
}

#[test]
fn a_second_instance_names_the_first_and_leaves_it_alone() {
    let rig = Rig::sim();
    let mut first = rig.start();
    let client = rig.client();
    client.create_pool("p", &["/a"]).done();
    let second = rig.command().output().expect("the binary can be executed");
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains(&first.id().to_string()), "{said:?} names the process {}", first.id());
    assert!(second.stdout.is_empty());
    assert!(first.is_alive());
    assert_eq!(client.process_of(NAME), Some(first.id()));
    assert_eq!(client.family("pool").len(), 1);
    let locked = fs::read_to_string(rig.run_folder().join("stratisd.pid")).expect("the lock file exists");
    assert_eq!(locked, first.id().to_string(), "the pid, without newline");
}

#[test]
fn a_second_instance_with_another_lock_does_not_take_the_name() {
    let rig = Rig::sim();
    let first = rig.start();
    let elsewhere = rig.disks_folder();
    let mut command = rig.bare_command();
    let second = command.arg("--sim").arg("--run-dir").arg(elsewhere).output().expect("the binary can be executed");
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains(NAME), "{said:?} names the name");
    assert_eq!(rig.client().process_of(NAME), Some(first.id()));
}

#[test]
fn the_name_is_waited_for_while_the_bus_has_not_noticed_the_end_of_its_owner() {
    let rig = Rig::sim();
    let owner = rig.client();
    owner.own_name(NAME);
    let daemon = Daemon::spawn(&mut rig.command());
    daemon.wait_said("is asked for again");
    drop(owner);
    let daemon = daemon.wait_ready(rig.bus.address());
    assert_eq!(rig.client().process_of(NAME), Some(daemon.id()));
}

#[test]
fn a_full_disk_for_the_log_is_no_reason_to_end() {
    let rig = Rig::sim();
    let full = File::options().write(true).open("/dev/full").expect("it is on every Linux");
    let mut daemon = rig.command().stdin(Stdio::null()).stderr(full).spawn().expect("the binary can be executed");
    let client = rig.client();
    let end = Instant::now() + PATIENCE;
    while client.process_of(NAME) != Some(daemon.id()) {
        assert!(daemon.try_wait().expect("a child can be waited for").is_none(), "it has ended");
        assert!(Instant::now() < end, "it does not take its name");
        thread::sleep(Duration::from_millis(5));
    }
    let (_, (pool, _)) = client.create_pool("p", &["/a"]).done();
    client.make_filesystem(&pool, "f");
    client.create_filesystems(&pool, &[("f", Some("1"), None)]).refused(&(false, Vec::new()));
    kill(Pid::from_raw(i32::try_from(daemon.id()).expect("process ids are small")), Signal::SIGTERM).expect("it runs");
    assert!(daemon.wait().expect("a child can be waited for").success());
}

#[test]
fn both_signals_end_it_with_0_and_free_the_name() {
    for kind in [Kind::Sim, Kind::Files] {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let rig = Rig::new(kind);
            let mut daemon = rig.start();
            let client = rig.client();
            client.create_pool("p", &[rig.disk("one", 2 * GIB)]).done();
            daemon.signal(signal);
            let status = daemon.wait();
            assert_eq!(status.code(), Some(0), "{signal}: {}", daemon.stderr());
            assert_eq!(daemon.stdout(), "", "stdout stays empty");
            assert!(!client.has_owner(NAME));
            // The lock is free again, although its file stays.
            let mut again = rig.start();
            assert!(again.is_alive());
        }
    }
}

#[test]
fn an_interrupt_right_after_a_request_is_answered_or_undone() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let (_, (pool, _)) = client.create_pool("p", &[rig.disk("one", 2 * GIB)]).done();
    let mut message = method(&pool, &interface("pool", 9), "CreateFilesystems");
    message.append_all((support::client::specs_argument(&[("f", Some("536870912"), None)]),));
    let serial = client.send(message);
    daemon.signal(Signal::SIGINT);
    // An answer, or the bus's word that the daemon has gone; never silence.
    let reply = client.reply_to(serial).expect("the bus answers for a service that has gone");
    let created = reply.as_ref().is_ok_and(|reply| {
        let (_, code, _): (support::value::Value, u16, String) = outcome(reply);
        code == 0
    });
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.stderr());
    let _daemon = rig.start();
    let names: Vec<_> = client.family("filesystem").into_values().map(|one| one["Name"].text().to_owned()).collect();
    if created {
        assert_eq!(names, ["f"], "what was answered is there");
    } else {
        assert!(names.is_empty() || names == ["f"], "entirely or not at all: {names:?}");
    }
}

fn outcome(reply: &dbus::Message) -> (support::value::Value, u16, String) {
    let body = support::value::Value::body(reply);
    let code = u16::try_from(body[1].number()).expect("a return code is 16 bits");
    (body[0].clone(), code, body[2].text().to_owned())
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let disks: Vec<_> = (0..8).map(|index| rig.disk(&format!("d{index}"), 2 * GIB)).collect();
    for (index, disk) in disks.iter().enumerate() {
        let mut message = method(TOP, &interface("Manager", 9), "CreatePool");
        message.append_all(create_pool_arguments(&format!("p{index}"), std::slice::from_ref(disk)));
        client.send(message);
    }
    daemon.signal(Signal::SIGINT);
    daemon.signal(Signal::SIGTERM);
    let code = daemon.wait().code();
    // Whether the second one found it still at work is a matter of luck; how it ends is not.
    assert!(code == Some(3) || code == Some(0), "{code:?}: {}", daemon.stderr());
    let _daemon = rig.start();
}

#[test]
fn a_missing_bus_is_one_line_that_names_the_cure() {
    let rig = Rig::sim();
    for address in ["unix:path=/no/such/socket", "nonsense"] {
        let mut command = Command::new(BINARY);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", address).env_remove("RUST_LOG");
        let output =
            command.arg("--sim").arg("--run-dir").arg(rig.run_folder()).output().expect("the binary can be executed");
        assert_eq!(output.status.code(), Some(1), "{address:?}");
        let said = lines(&output.stderr);
        assert_eq!(said.len(), 1, "{address:?}: one line: {said:?}");
        assert!(said[0].contains("DBUS_SYSTEM_BUS_ADDRESS") || said[0].contains("dbus"), "{said:?} names the cure");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_killed_bus_ends_it_with_one_line_and_the_next_one_adopts_its_pools() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let (_, (pool, _)) = client.create_pool("p", &[rig.disk("one", 2 * GIB)]).done();
    client.make_filesystem(&pool, "f");
    client.create_pool("stopped", &[rig.disk("two", 2 * GIB)]).done();
    client.stop_pool("stopped", "name").done();
    let before = lasting(&client);
    // The bus ends as a crash would, and another one comes.
    let rig = rig.with_bus(support::bus::PrivateBus::start());
    assert_eq!(daemon.wait().code(), Some(1), "a daemon without a bus is of no use: {}", daemon.stderr());
    let said = daemon.stderr();
    let last = said.lines().last().expect("it says why");
    assert!(last.starts_with("stratisd: ") && last.contains("bus"), "{said}");
    let _daemon = rig.start();
    let client = rig.client();
    assert_eq!(lasting(&client), before, "what ran runs, what was stopped is stopped, and all of it is the same");
    let (pool, _) = client.family("pool").pop_first().expect("one runs");
    client.make_filesystem(&pool, "g");
    assert!(!client.create_filesystems(&pool, &[("f", Some("536870912"), None)]).done().0, "it is there already");
}

/// What of all objects does not change when a daemon follows another one: everything but paths.
fn lasting(client: &Client) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for family in ["pool", "filesystem", "blockdev"] {
        for mut properties in client.family(family).into_values() {
            // Paths are numbers of one process; sizes in use are looked at from time to time.
            for passing in ["Pool", "Used", "TotalPhysicalUsed"] {
                properties.remove(passing);
            }
            all.insert(format!("{family} {properties:?}"));
        }
    }
    all.extend(client.stopped_pools(9).into_iter().map(|(uuid, entry)| format!("stopped {uuid} {entry:?}")));
    all
}

#[test]
fn an_unusable_folder_is_one_line() {
    let rig = Rig::sim();
    let file = rig.disks_folder().join("a-file");
    fs::write(&file, b"").expect("the folder is writable");
    let output = |arguments: &[&std::ffi::OsStr]| {
        rig.bare_command().args(arguments).output().expect("the binary can be executed")
    };
    let run_dir = rig.run_folder();
    let cases = [
        output(&["--sim".as_ref(), "--run-dir".as_ref(), file.as_ref()]),
        output(&["--files".as_ref(), file.as_ref(), "--run-dir".as_ref(), run_dir.as_ref()]),
    ];
    for output in cases {
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        let said = lines(&output.stderr);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("a-file"), "{said:?} names the folder");
    }
}

#[test]
fn a_folder_is_not_shared_and_not_taken_from_others() {
    let rig = Rig::files();
    let mut first = rig.start();
    let bus = support::bus::PrivateBus::start();
    let elsewhere = rig.disks_folder();
    let run = |folder: &std::path::Path| {
        let mut command = rig.bare_command();
        command.env("DBUS_SYSTEM_BUS_ADDRESS", bus.address()).arg("--files").arg(folder);
        command.arg("--run-dir").arg(&elsewhere).output().expect("the binary can be executed")
    };
    let foreign = rig.disks_folder().join("university");
    fs::create_dir(&foreign).expect("the folder is writable");
    fs::write(foreign.join("thesis.tex"), b"years of work").expect("the folder is writable");
    for (folder, named) in [(rig.files_folder(), "files"), (foreign.clone(), "thesis.tex")] {
        let output = run(&folder);
        assert_eq!(output.status.code(), Some(1), "{folder:?}");
        let said = lines(&output.stderr);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains(named), "{said:?} names {named}");
    }
    assert!(first.is_alive());
    assert_eq!(rig.client().process_of(NAME), Some(first.id()));
    let left = fs::read_dir(foreign).expect("the folder exists").count();
    assert_eq!(left, 1, "nothing was put beside the thesis");
}

#[test]
fn the_log_goes_to_stderr_in_the_documented_form() {
    let rig = Rig::sim();
    let mut daemon = rig.start();
    rig.client().create_pool("p", &["/a"]).done();
    assert!(daemon.interrupt().success());
    let said = daemon.stderr();
    assert!(!said.is_empty(), "at info a daemon says what it does");
    for line in said.lines() {
        let stamp = line.strip_prefix('[').and_then(|rest| rest.get(.."2026-11-21T04:22:59.123Z".len()));
        assert!(stamp.is_some_and(|stamp| stamp.ends_with('Z')), "{line:?} begins with [<time>Z");
    }
    assert_eq!(daemon.stdout(), "");

    let mut quiet = rig.bare_command();
    let mut quiet =
        Daemon::spawn(quiet.arg("--sim").arg("--run-dir").arg(rig.run_folder())).wait_ready(rig.bus.address());
    rig.client().create_pool("p", &["/a"]).done();
    assert!(quiet.interrupt().success());
    assert_eq!(quiet.stderr(), "", "by default only errors are logged");
}

#[test]
fn the_process_is_called_stratisd() {
    let rig = Rig::sim();
    let daemon = rig.start();
    let name = fs::read_to_string(format!("/proc/{}/comm", daemon.id())).expect("it runs");
    assert_eq!(name.trim(), "stratisd");
}

/// What the C library reserves for an arena besides the first one. It begins at a multiple of that, and what is not
/// used of it yet nobody may touch.
const ARENA_BYTES: u64 = 64 << 20;

#[test]
fn no_thread_has_memory_of_the_c_library_to_itself() {
    let rig = Rig::sim();
    let daemon = rig.start();
    let Ok(maps) = fs::read_to_string(format!("/proc/{}/maps", daemon.id())) else {
        return println!("SKIPPED no_thread_has_memory_of_the_c_library_to_itself: only root sees what is mapped");
    };
    let hex = |text| u64::from_str_radix(text, 16).expect("an address");
    let mapped: Vec<(u64, u64, &str)> = maps
        .lines()
        .map(|line| {
            let (range, rest) = line.split_once(' ').expect("what may be done follows");
            let (start, end) = range.split_once('-').expect("it has two ends");
            (hex(start), hex(end), &rest[..4])
        })
        .collect();
    let arenas = mapped.windows(2).filter(|pair| {
        let [(start, end, _), (next, last, unused)] = pair else { unreachable!("there are two") };
        start % ARENA_BYTES == 0 && end == next && start + ARENA_BYTES == *last && *unused == "---p"
    });
    assert_eq!(arenas.count(), 0, "{maps}");
}

#[test]
fn placement_options_are_taken() {
    for arguments in [["--shards", "1"], ["--shards", "3"], ["--cpus", "0"]] {
        let rig = Rig::sim();
        let mut daemon = Daemon::spawn(rig.command().args(arguments)).wait_ready(rig.bus.address());
        let client = rig.client();
        for index in 0..8 {
            let (_, (pool, _)) = client.create_pool(&format!("p{index}"), &[format!("/d{index}")]).done();
            client.make_filesystem(&pool, "f");
        }
        assert_eq!(client.objects().len(), 24, "{arguments:?}");
        assert!(daemon.interrupt().success());
    }
}

#[test]
fn a_killed_daemon_leaves_a_lock_that_can_be_taken() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    client.create_pool("p", &[rig.disk("one", 2 * GIB)]).done();
    daemon.kill9();
    let _daemon = rig.start();
    assert_eq!(client.family("pool").len(), 1);
    client.wait_message(Duration::ZERO);
}
