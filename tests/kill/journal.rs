//! What must be known after the machine itself was switched off: a file of lines, each the whole of what
//! its owner knows.
//!
//! Invariant: when `note` returns, the line is on the disk; a line that was cut off is not read.

#![allow(dead_code, reason = "the kills of a process need none: what the test knows survives them")]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A file that only grows.
#[derive(Debug)]
pub(crate) struct Journal(File);

impl Journal {
    /// Opens or makes the file.
    pub(crate) fn open(path: &Path) -> Self {
        Self(OpenOptions::new().create(true).append(true).open(path).expect("the journal's folder is writable"))
    }

    /// Notes what is known now.
    pub(crate) fn note(&mut self, known: &impl Serialize) {
        let line = serde_json::to_string(known).expect("plain values have a text");
        // One write: of two, the second may be missing.
        self.0.write_all(format!("{line}\n").as_bytes()).expect("there is room for a line");
        self.0.sync_all().expect("the journal reaches its disk");
    }

    /// What was noted last, if anything was.
    pub(crate) fn last<T: DeserializeOwned>(path: &Path) -> Option<T> {
        let text = fs::read_to_string(path).ok()?;
        let whole = &text[..=text.rfind('\n')?];
        let line = whole.lines().next_back()?;
        Some(serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}: {line}", path.display())))
    }
}
