//! The programs of xfsprogs, as oracles.

use std::path::Path;
use std::process::{Command, Output};

use stratisd::xfs::{Groups, LogLength, Sector, Shape};

/// What a shape is called in a message, and what mkfs.xfs is told.
pub(crate) fn options(shape: &Shape, log: LogLength) -> Vec<String> {
    let sector = match shape.sector {
        Sector::Bytes512 => 512,
        Sector::Bytes4096 => 4096,
    };
    let mut all = vec!["-s".into(), format!("size={sector}"), "-i".into(), "nrext64=0".into()];
    let mut data = Vec::new();
    if let Some(stripe) = shape.stripe {
        data.push(format!("su={},sw={}", stripe.unit.offset(), stripe.width.0 / stripe.unit.0));
    }
    if let Groups::Exactly(count) = shape.groups {
        data.push(format!("agcount={count}"));
    }
    if !data.is_empty() {
        all.extend(["-d".into(), data.join(",")]);
    }
    match log {
        LogLength::Default => {}
        LogLength::Smallest => all.extend(["-l".into(), "size=64m".into()]),
        LogLength::Exactly(length) => all.extend(["-l".into(), format!("size={}", length.offset())]),
    }
    all
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).env("LC_ALL", "C").output();
    output.unwrap_or_else(|error| panic!("{program}: {error} (xfsprogs is needed, see `make deps`)"))
}

/// Runs a program that must succeed; what it says.
#[track_caller]
pub(crate) fn must(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}\n{said}{complained}", output.status);
    said
}

/// A path as an argument.
pub(crate) fn arg(path: &Path) -> &str {
    path.to_str().expect("our paths are text")
}

/// Runs mkfs.xfs; whether it made a filesystem, and what it said.
pub(crate) fn mkfs(path: &Path, options: &[String], more: &[&str]) -> (bool, String) {
    let mut args: Vec<&str> = vec!["-f", "-K"];
    args.extend(more);
    args.extend(options.iter().map(String::as_str));
    args.push(arg(path));
    let output = run("mkfs.xfs", &args);
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// The numbers after `name=`, in the order in which mkfs.xfs prints them.
pub(crate) fn printed(said: &str, name: &str) -> Vec<u64> {
    let found = said.split([' ', '\n', ',']).filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    found.filter_map(|number| number.parse().ok()).collect()
}

/// That xfs_repair finds nothing to say.
#[track_caller]
pub(crate) fn repair_is_content(path: &Path, what: &str) {
    let output = run("xfs_repair", &["-n", "-f", arg(path)]);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{what}: xfs_repair: {}\n{said}", output.status);
    for fault in ["would ", "bad ", "totally zeroed"] {
        // `-n` says itself what it would do, were there anything to do.
        let mut lines = said.lines().filter(|line| !line.contains("would be") && !line.contains("No modify"));
        assert!(!lines.any(|line| line.contains(fault)), "{what}: {said}");
    }
}
