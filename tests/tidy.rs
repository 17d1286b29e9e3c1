//! House rules that a machine can check. A broken rule names its file and line.
//!
//! The tables at the top are the architecture as far as imports show it: a new edge between rooms
//! is a visible change here, with a reason in its commit. The rules look at source text whose
//! comments and literals were blanked out, so this is no compiler: it sees what is written, not what
//! a macro makes of it.
//!
//! Deliberately absent: what rustfmt and clippy check, and taste.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

const LINE_COLUMNS_MAX: usize = 120;
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 800;

/// What is looked at. Folders that do not exist are skipped, but `src` must.
const FOLDERS: &[&str] = &["src", "tests", "benches", "cores", "ring"];

/// What every room above `model` may use.
const COMMON: &[&str] = &["descriptors", "error", "limits", "message", "observe", "units", "zoo"];

/// Who may import whom inside `src`; `true`: and whatever is in `COMMON`. A module that is not
/// listed may import nothing.
const MAY_IMPORT: &[(&str, &[&str], bool)] = &[
    ("units", &[], false),
    ("limits", &["units"], false),
    ("zoo", &[], false),
    ("model", &["limits", "units", "zoo"], false),
    // A fault says in its own words why a filesystem was not understood.
    ("error", &["limits", "model", "units", "xfs"], false),
    ("descriptors", &[], false),
    ("message", &["descriptors", "error", "limits", "model", "units"], false),
    ("observe", &["limits", "units"], false),
    ("format", &["model"], true),
    ("xfs", &["model"], true),
    ("engine", &["format", "model", "xfs"], true),
    ("sys", &["model"], true),
    // Reads signatures where devices are found and where they are set up, so both may import it.
    ("probe", &["format", "model", "sys"], true),
    // Carries reads and writes of a filesystem between where they are made up and where they are done.
    ("shard", &["engine", "format", "model", "probe", "sys", "xfs"], true),
    ("directory", &["model"], true),
    ("event", &["format", "model", "probe", "sys"], true),
    ("bus", &["model"], true),
];

/// Modules that put the rooms together: they may import anything.
const ANYTHING: &[&str] = &["args", "lib", "lock", "main"];

/// Which modules of `src` may name a crate. What is not listed here is free for all.
const CRATES: &[(&str, &[&str])] = &[
    ("crossbeam_channel", &[]),
    ("cores", &["bus", "directory", "event", "observe", "shard", "sys"]),
    ("dbus", &["bus"]),
    ("glommio", &[]),
    ("io_uring", &[]),
    ("libblkid_rs", &["sys"]),
    ("loom", &[]),
    ("ring", &["bus", "directory", "event", "shard"]),
];

/// Modules that decide and describe: no I/O, no clock, no threads, nothing to await.
const PURE: &[&str] = &["engine", "error", "format", "limits", "message", "model", "units", "xfs"];
const PURE_WITHOUT_STD: &[&str] = &["env", "fs", "net", "os", "process", "thread", "time"];
const PURE_WITHOUT_WORDS: &[&str] = &["async", "await"];

/// Where `unsafe` may stand, always with its reason.
const UNSAFE_IN: &[&str] = &["ring/", "cores/", "src/sys/"];

/// Values that promise something about the machine: only who has seen to it may make one.
const MADE_BY: &[(&str, &str)] = &[("ReadsZeroes", "sys")];

/// Where threads may share mutable state.
const SHARED_STATE_IN: &[&str] = &["ring/", "cores/"];

/// Rows of the D-Bus tables stay on one line: that way they can be compared.
const LONG_LINES_IN: &[&str] = &["src/bus/table"];

/// Paths outside the repository, which nobody who clones it has. Written in two parts, so that this
/// file is not found itself.
const OUTSIDE: &[&str] = &[concat!("../", "shared"), concat!("/work/", "shared")];

#[test]
fn the_sources_keep_the_house_rules() {
    let mut faults = Vec::new();
    let files = rust_files();
    assert!(files.iter().any(|path| path == "src/lib.rs"), "the tests run in the root of the repository");
    for path in files {
        let text = fs::read_to_string(&path).expect("a listed file can be read");
        check(&Source::new(&path, &text), &mut faults);
    }
    for path in tracked_files() {
        // What cannot be read was deleted and not committed yet: nothing to look at.
        let text = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        check_outside(&path, &text, &mut faults);
    }
    assert!(faults.is_empty(), "{} house rules are broken:\n{}\n", faults.len(), faults.join("\n"));
}

fn check(source: &Source, faults: &mut Vec<String>) {
    let mut found: Vec<(usize, String)> = Vec::new();
    for rule in [
        check_opening,
        check_lengths,
        check_functions,
        check_words,
        check_dropped,
        check_unsafe,
        check_edges,
        check_crates,
        check_made,
        check_pure,
    ] {
        found.extend(rule(source));
    }
    found.sort();
    faults.extend(found.into_iter().map(|(line, what)| format!("{}:{}: {what}", source.path, line + 1)));
}

// ---- rules ------------------------------------------------------------------------------------

type Found = Vec<(usize, String)>;

fn check_opening(source: &Source) -> Found {
    let opens = source.raw.first().is_some_and(|line| line.starts_with("//!"));
    if opens { Vec::new() } else { vec![(0, "the file does not open with `//!`: what it is, what it promises".into())] }
}

fn check_lengths(source: &Source) -> Found {
    let mut found = Vec::new();
    if source.raw.len() > FILE_LINES_MAX {
        found.push((0, format!("the file has {} lines: at most {FILE_LINES_MAX}", source.raw.len())));
    }
    if source.is_in(LONG_LINES_IN) {
        return found;
    }
    for (number, line) in source.raw.iter().enumerate() {
        let columns = line.chars().count();
        // A string literal may be long: breaking it would hide what is searched for.
        if columns > LINE_COLUMNS_MAX && !source.code[number].contains(LITERAL) {
            found.push((number, format!("the line has {columns} columns: at most {LINE_COLUMNS_MAX}")));
        }
    }
    found
}

fn check_functions(source: &Source) -> Found {
    let mut found = Vec::new();
    for (at, word) in words(&source.text) {
        let named = word == "fn" && source.text[at + word.len()..].trim_start().starts_with(is_word);
        let Some(body) = named.then(|| body_after(&source.text, at)).flatten() else {
            continue;
        };
        let (first, last) = (source.line_of(at), source.line_of(body.end));
        let lines = last - first + 1;
        if lines > FUNCTION_LINES_MAX {
            found.push((first, format!("the function has {lines} lines: at most {FUNCTION_LINES_MAX}")));
        }
    }
    found
}

fn check_words(source: &Source) -> Found {
    let mut found = Vec::new();
    for (at, word) in words(&source.text) {
        let line = source.line_of(at);
        let (before, after) = (source.text[..at].trim_end(), source.text[at + word.len()..].trim_start());
        let shared = word == "Mutex" || word == "RwLock" || (word == "static" && after.starts_with("mut "));
        if word == "unwrap" && before.ends_with('.') && after.starts_with("()") {
            found.push((line, "`unwrap` does not say why it cannot fail: `expect` does".into()));
        } else if ["todo", "unimplemented", "dbg"].contains(&word) && after.starts_with('!') {
            found.push((line, format!("`{word}!` is left over")));
        } else if shared && !source.is_in(SHARED_STATE_IN) && !source.is_test(line) {
            found.push((line, format!("`{word}`: mutable state is shared in ring and cores only")));
        }
    }
    found
}

fn check_dropped(source: &Source) -> Found {
    let mut found = Vec::new();
    for (number, line) in source.code.iter().enumerate() {
        // `.ok()` that ends a statement which binds or gives back its value drops nothing.
        let start = source.statement_start(number);
        let used = source.code[start..=number].iter().any(|line| line.contains('=') || line.contains("return "));
        let dropped = line.contains("let _ =") || (line.contains(".ok();") && !used);
        let above = start.checked_sub(1).is_some_and(|above| source.is_comment(above) && !source.is_doc(above));
        if dropped && !above && !source.raw[number].contains("//") && !source.is_test(number) {
            found.push((number, "a result is dropped, and no comment says why that is right".into()));
        }
    }
    found
}

fn check_unsafe(source: &Source) -> Found {
    let mut found = Vec::new();
    for (at, word) in words(&source.text) {
        if word != "unsafe" {
            continue;
        }
        let line = source.line_of(at);
        if !source.is_in(UNSAFE_IN) {
            found.push((line, "`unsafe` stands in ring, cores and src/sys only".into()));
        } else if !source.explained(line) {
            found.push((line, "`unsafe` without a SAFETY comment just above".into()));
        }
    }
    found
}

fn check_edges(source: &Source) -> Found {
    let Some(module) = source.module().filter(|module| !ANYTHING.contains(module)) else {
        return Vec::new();
    };
    let allowed = MAY_IMPORT.iter().find(|(from, ..)| *from == module);
    let mut found = Vec::new();
    let mut edges = source.first_names("crate");
    edges.extend(source.names_above_root());
    for (line, target) in edges {
        let may = allowed.is_some_and(|(_, to, common)| {
            to.contains(&target.as_str()) || (*common && COMMON.contains(&target.as_str()))
        });
        if target != module && target != "self" && !may && !source.is_test(line) {
            found.push((line, format!("`{module}` may not import `{target}`: see MAY_IMPORT in tests/tidy.rs")));
        }
    }
    found
}

fn check_crates(source: &Source) -> Found {
    let Some(module) = source.module().filter(|module| !ANYTHING.contains(module)) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (name, allowed) in CRATES.iter().filter(|(_, allowed)| !allowed.contains(&module)) {
        for (line, _) in source.first_names(name) {
            if !source.is_test(line) {
                let who = if allowed.is_empty() { "no module".to_owned() } else { allowed.join(", ") };
                found.push((line, format!("`{module}` may not use the crate `{name}`: {who} may")));
            }
        }
    }
    found
}

fn check_made(source: &Source) -> Found {
    let Some(module) = source.module() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (at, word) in words(&source.text) {
        let line = source.line_of(at);
        let maker = MADE_BY.iter().find(|(name, maker)| *name == word && *maker != module);
        if let Some((name, maker)) = maker
            && source.text[at + word.len()..].starts_with("::")
            && !source.is_test(line)
        {
            found.push((line, format!("`{module}` may not make a `{name}`: `{maker}` does")));
        }
    }
    found
}

fn check_pure(source: &Source) -> Found {
    let Some(module) = source.module().filter(|module| PURE.contains(module)) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (line, name) in source.first_names("std") {
        if PURE_WITHOUT_STD.contains(&name.as_str()) && !source.is_test(line) {
            found.push((line, format!("`{module}` decides and describes: no `std::{name}` here")));
        }
    }
    for (at, word) in words(&source.text) {
        let line = source.line_of(at);
        if PURE_WITHOUT_WORDS.contains(&word) && !source.is_test(line) {
            found.push((line, format!("`{module}` decides and describes: no `{word}` here")));
        }
    }
    found
}

fn check_outside(path: &str, text: &str, faults: &mut Vec<String>) {
    for (number, line) in text.lines().enumerate() {
        if OUTSIDE.iter().any(|outside| line.contains(outside)) {
            faults.push(format!("{path}:{}: names a path outside the repository", number + 1));
        }
    }
}

// ---- sources ----------------------------------------------------------------------------------

/// Stands for each character of a literal in `Source::text`. Comments become spaces.
const LITERAL: char = '~';

/// One file: as it is, and with comments and literals blanked out.
struct Source {
    path: String,
    raw: Vec<String>,
    /// Blanked, whole: as many characters as the file, all of them ASCII or whitespace where blanked.
    text: String,
    /// Blanked, by lines.
    code: Vec<String>,
    /// Byte offset in `text` where each line begins.
    starts: Vec<usize>,
    /// Byte ranges of `text` that only tests compile.
    tests: Vec<Range<usize>>,
}

impl Source {
    fn new(path: &str, raw: &str) -> Self {
        let text = blank(raw);
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let lines = |text: &str| text.lines().map(str::to_owned).collect();
        Self { path: path.into(), raw: lines(raw), code: lines(&text), starts, tests: test_ranges(&text), text }
    }

    fn line_of(&self, at: usize) -> usize {
        self.starts.partition_point(|&start| start <= at) - 1
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path.starts_with(place))
    }

    /// Whether only tests compile the line.
    fn is_test(&self, line: usize) -> bool {
        let file = ["tests/", "benches/"].iter().any(|folder| self.path.starts_with(folder))
            || self.path.contains("/tests/")
            || self.path.ends_with("/tests.rs");
        let end = self.starts.get(line + 1).copied().unwrap_or(self.text.len());
        file || self.tests.iter().any(|test| self.starts[line] < test.end && test.start < end)
    }

    fn is_comment(&self, line: usize) -> bool {
        self.raw[line].trim_start().starts_with("//")
    }

    fn is_doc(&self, line: usize) -> bool {
        ["///", "//!"].iter().any(|doc| self.raw[line].trim_start().starts_with(doc))
    }

    /// The first line of the statement that this line belongs to.
    fn statement_start(&self, line: usize) -> usize {
        let mut start = line;
        while let Some(above) = start.checked_sub(1) {
            let code = self.code[above].trim_end();
            if code.is_empty() || code.ends_with([';', '{', '}', ',']) {
                break;
            }
            start = above;
        }
        start
    }

    /// Whether the comment just above the statement of this line, or on it, gives a reason for
    /// `unsafe`: `SAFETY:`, or the section `# Safety` of what the caller has to promise.
    fn explained(&self, line: usize) -> bool {
        let reason = |line: &String| line.contains("SAFETY:") || line.contains("# Safety");
        let start = self.statement_start(line);
        let above = (0..start).rev().take_while(|&above| self.is_comment(above));
        self.raw[start..=line].iter().chain(above.map(|above| &self.raw[above])).any(reason)
    }

    /// The room of a file in `src`: `bus` for `src/bus/tree.rs`. `None` elsewhere.
    fn module(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        inside.split('/').next().map(|first| first.trim_end_matches(".rs"))
    }

    /// Every `name` in `root::name` and `root::{name, …}`, with its line.
    fn first_names(&self, root: &str) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for (at, word) in words(&self.text) {
            // `a::std::b` is not about the crate std.
            if word == root && !self.text[..at].ends_with("::") {
                found.extend(names_after(&self.text, at + word.len()));
            }
        }
        found.into_iter().map(|(at, name)| (self.line_of(at), name)).collect()
    }

    /// What is reached by climbing with `super` from this file up to the root of the crate.
    fn names_above_root(&self) -> Vec<(usize, String)> {
        let parts = self.path.trim_start_matches("src/").trim_end_matches("/mod.rs").split('/').count();
        let climb = vec!["super"; parts].join("::");
        let mut found = Vec::new();
        for (at, _) in self.text.match_indices(&climb) {
            let end = at + climb.len();
            let whole = !self.text[..at].ends_with(|c: char| is_word(c) || c == ':');
            if whole && !self.text[end..].starts_with("::super") {
                found.extend(names_after(&self.text, end).into_iter().map(|(at, name)| (self.line_of(at), name)));
            }
        }
        found
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Every identifier, keyword and number, with its byte offset.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = 0;
    std::iter::from_fn(move || {
        let start = rest + text[rest..].find(is_word)?;
        let end = text[start..].find(|c| !is_word(c)).map_or(text.len(), |length| start + length);
        rest = end;
        Some((start, &text[start..end]))
    })
}

/// The names that follow `::` at this offset: one, or those of a group in braces.
fn names_after(text: &str, at: usize) -> Vec<(usize, String)> {
    let Some(tail) = text[at..].strip_prefix("::") else {
        return Vec::new();
    };
    let start = at + "::".len();
    if !tail.starts_with('{') {
        return words(tail).take(1).map(|(offset, word)| (start + offset, word.to_owned())).collect();
    }
    let (mut depth, mut first, mut found) = (0_usize, true, Vec::new());
    for (offset, c) in tail.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' => first = first || depth == 1,
            c if is_word(c) && first && depth == 1 => {
                first = false;
                found.extend(words(&tail[offset..]).take(1).map(|(_, word)| (start + offset, word.to_owned())));
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    found
}

/// From the first `{` after `at` to its `}`; `None` when a `;` outside of brackets comes first.
fn body_after(text: &str, at: usize) -> Option<Range<usize>> {
    let mut brackets = 0_i32;
    let mut open = None;
    for (offset, c) in text[at..].char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if brackets == 0 => return None,
            '{' if brackets == 0 => {
                open = Some(at + offset);
                break;
            }
            _ => {}
        }
    }
    let open = open?;
    let mut depth = 0_i32;
    for (offset, c) in text[open..].char_indices() {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if depth == 0 {
            return Some(open..open + offset);
        }
    }
    Some(open..text.len())
}

/// What follows `#[cfg(test)]` and the like, to the end of the item.
fn test_ranges(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for (at, attribute) in text.match_indices("#[cfg(") {
        let end = text[at..].find(']').map_or(text.len(), |length| at + length);
        let condition = &text[at + attribute.len()..end];
        let for_tests = words(condition).any(|(_, word)| word == "test") && !condition.contains("not(");
        if for_tests && let Some(body) = body_after(text, end + 1) {
            found.push(at..body.end + 1);
        }
    }
    found
}

/// Replaces what is in comments by spaces and what is in literals by `LITERAL`, line by line.
fn blank(raw: &str) -> String {
    let chars: Vec<char> = raw.chars().collect();
    let mut out = String::with_capacity(raw.len());
    let mut at = 0;
    while at < chars.len() {
        let (length, filler) = match skipped(&chars, at) {
            Some((length, filler)) => (length, filler),
            None => {
                out.push(chars[at]);
                at += 1;
                continue;
            }
        };
        let end = (at + length).min(chars.len());
        out.extend(chars[at..end].iter().map(|&c| if c == '\n' { c } else { filler }));
        at = end;
    }
    out
}

/// The length of the comment or literal that begins here, if one does, and what replaces it.
fn skipped(chars: &[char], at: usize) -> Option<(usize, char)> {
    let rest = &chars[at..];
    let starts = |text: &str| text.chars().enumerate().all(|(offset, c)| rest.get(offset) == Some(&c));
    if starts("//") {
        return Some((rest.iter().take_while(|&&c| c != '\n').count(), ' '));
    }
    if starts("/*") {
        return Some((block_comment(rest), ' '));
    }
    if starts("\"") {
        return Some((until_quote(rest, '"'), LITERAL));
    }
    let in_word = at.checked_sub(1).is_some_and(|before| is_word(chars[before]));
    let prefix = rest.iter().take_while(|c| matches!(c, 'b' | 'c' | 'r')).count();
    if !in_word && prefix > 0 && rest[..prefix].contains(&'r') {
        let hashes = rest[prefix..].iter().take_while(|&&c| c == '#').count();
        if rest.get(prefix + hashes) == Some(&'"') {
            return Some((raw_string(rest, prefix + hashes + 1, hashes), LITERAL));
        }
    }
    // A quote is a character if it ends after one, or begins with a backslash; else a lifetime.
    let character = rest[0] == '\'' && (rest.get(1) == Some(&'\\') || rest.get(2) == Some(&'\''));
    character.then(|| (until_quote(rest, '\''), LITERAL))
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at + 1 < rest.len() {
        match (rest[at], rest[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn until_quote(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while let Some(&c) = rest.get(at) {
        at += if c == '\\' { 2 } else { 1 };
        if c == quote {
            return at;
        }
    }
    rest.len()
}

fn raw_string(rest: &[char], begin: usize, hashes: usize) -> usize {
    let closes = |at: usize| rest[at] == '"' && rest[at + 1..].iter().take_while(|&&c| c == '#').count() >= hashes;
    (begin..rest.len()).find(|&at| closes(at)).map_or(rest.len(), |at| at + 1 + hashes)
}

// ---- files ------------------------------------------------------------------------------------

fn rust_files() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders: Vec<String> = FOLDERS.iter().map(|&folder| folder.to_owned()).collect();
    while let Some(folder) = folders.pop() {
        if !Path::new(&folder).is_dir() {
            continue;
        }
        for entry in fs::read_dir(&folder).expect("a folder can be read") {
            let path = entry.expect("an entry can be read").path();
            let name = path.to_str().expect("our names are text").to_owned();
            let ours = !name.ends_with("/target");
            if path.is_dir() && ours {
                folders.push(name);
            } else if name.ends_with(".rs") {
                found.insert(name);
            }
        }
    }
    found
}

/// Everything in the repository; outside of one (an unpacked archive), the sources.
fn tracked_files() -> BTreeSet<String> {
    match Command::new("git").args(["ls-files", "-z"]).output() {
        Ok(listed) if listed.status.success() => {
            let listed = String::from_utf8(listed.stdout).expect("our names are text");
            listed.split_terminator('\0').map(str::to_owned).collect()
        }
        Ok(_) | Err(_) => rust_files(),
    }
}

// ---- the rules, tried -------------------------------------------------------------------------

fn faults_in(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    check(&Source::new(path, text), &mut faults);
    faults
}

/// The one fault of a text that opens as it should, without its file name.
fn fault(path: &str, text: &str) -> String {
    let faults = faults_in(path, &format!("//! Why.\n{text}\n"));
    assert_eq!(faults.len(), 1, "{path}: {text}: {faults:?}");
    faults[0].strip_prefix(path).expect("a fault begins with its file").to_owned()
}

fn fine(path: &str, text: &str) {
    assert_eq!(faults_in(path, &format!("//! Why.\n{text}\n")), [""; 0], "{path}: {text}");
}

#[test]
fn imports_that_point_the_wrong_way_are_found_however_they_are_written() {
    for text in [
        "use crate::bus::tree;",
        "use crate::{units::Sectors, bus::{self, tree}};",
        "use crate::{\n    bus,\n};",
        "fn f() { crate::bus::x(); }",
        "use super::super::bus;",
    ] {
        assert!(fault("src/engine/alloc.rs", text).contains("`engine` may not import `bus`"), "{text}");
    }
    assert!(fault("src/engine/mod.rs", "use super::sys;").contains("`engine` may not import `sys`"));
    assert!(fault("src/model/pool.rs", "use crate::error::Fault;").starts_with(":2: `model` may not"));
    assert!(fault("src/newcomer.rs", "use crate::units::Bytes;").contains("`newcomer` may not"));
    fine("src/engine/alloc.rs", "use crate::{error::{Refusal, bus}, format::record};\nuse super::grow;");
    fine("src/shard/ops/create.rs", "use crate::engine::bus; use crate::sys::Sys;");
    fine("src/engine/alloc.rs", "// use crate::bus;\nconst A: &str = \"crate::bus\";");
    fine("src/engine/alloc.rs", "#[cfg(test)]\nmod tests {\n    use crate::sys::Sys;\n}");
    fine("src/main.rs", "use crate::bus; use crate::engine;");
}

#[test]
fn crates_stay_in_their_rooms() {
    assert!(fault("src/shard/mod.rs", "use glommio::spawn_local;").contains("crate `glommio`: no module may"));
    assert!(fault("src/engine/alloc.rs", "fn f() { cores::rt::now(); }").contains("crate `cores`"));
    assert!(fault("src/event/udev.rs", "use dbus::Message;").contains("`dbus`: bus may"));
    fine("src/bus/decode.rs", "use dbus::Message;\nuse cores::rt;");
    fine("src/engine/alloc.rs", "use crate::model::ring::Ring;");
    fine("cores/src/executor.rs", "use glommio::spawn_local;");
}

#[test]
fn a_promise_about_the_machine_is_made_by_the_machine() {
    let made = "fn f() { ReadsZeroes::of_new_file(); }";
    assert!(fault("src/shard/ops/create.rs", made).contains("`shard` may not make a `ReadsZeroes`: `sys` does"));
    assert!(fault("src/xfs/format.rs", "fn f() { blank::ReadsZeroes::of_new_file(); }").contains("`xfs` may not"));
    fine("src/sys/files/thin.rs", made);
    fine("src/xfs/format.rs", "#[cfg(test)]\nmod tests {\n    fn f() { ReadsZeroes::of_new_file(); }\n}");
    fine("src/xfs/format.rs", "fn f(blank: Option<ReadsZeroes>) { let ReadsZeroes { .. } = blank; }");
}

#[test]
fn what_decides_does_no_io() {
    assert!(fault("src/format/bda.rs", "use std::{fmt, fs::File};").contains("no `std::fs`"));
    assert!(fault("src/engine/save.rs", "async fn save() {}").contains("no `async`"));
    fine("src/format/bda.rs", "use std::{fmt, io};");
    fine("src/sys/files.rs", "use std::fs;");
}

#[test]
fn unsafe_needs_its_place_and_its_reason() {
    assert!(fault("src/bus/read.rs", "// SAFETY: fine.\nunsafe { f() }").contains("src/sys only"));
    assert!(fault("cores/src/side.rs", "fn f() {\n    unsafe { g() }\n}").starts_with(":3: `unsafe` without"));
    let far = "// SAFETY: of another one.\nunsafe { f() };\nlet x = 1;\nunsafe { g() };";
    assert!(fault("ring/src/spsc.rs", far).starts_with(":5:"));
    fine("ring/src/spsc.rs", "// SAFETY: one.\n// Two.\nlet x =\n    unsafe { g() };");
    fine("ring/src/spsc.rs", "/// # Safety\n/// Call it once.\n#[inline]\npub unsafe fn f() {}");
    fine("src/bus/read.rs", "#![forbid(unsafe_code)] // no unsafe here");
}

#[test]
fn leftovers_and_shared_state_are_found_outside_of_comments_and_literals() {
    assert!(fault("src/bus/a.rs", "fn f() { g().unwrap(); }").contains("`unwrap`"));
    assert!(fault("tests/a.rs", "fn f() { g()\n    .unwrap(); }").starts_with(":3: `unwrap`"));
    assert!(fault("src/bus/a.rs", "fn f() { todo!() }").contains("`todo!` is left over"));
    assert!(fault("src/bus/a.rs", "static mut X: u8 = 0;").contains("`static`"));
    assert!(fault("src/bus/a.rs", "use std::sync::Mutex;").contains("`Mutex`"));
    assert!(fault("src/bus/a.rs", "fn f() { let _ = g(); }").contains("dropped"));
    assert!(fault("src/bus/a.rs", "fn f() {\n    g()\n        .ok();\n}").starts_with(":4: a result is dropped"));
    fine("src/bus/a.rs", "fn f() {\n    let x = g()\n        .ok();\n}");
    fine("src/bus/a.rs", "// It may be gone already.\nfn f() { let _ = g(); }");
    fine("src/bus/a.rs", "#[cfg(test)]\nmod tests {\n    use std::sync::Mutex;\n}");
    fine("cores/src/lane.rs", "use std::sync::Mutex;");
    let hidden = "/* a.unwrap() /* b */ todo!() */ const A: &str = r#\"x\".unwrap() dbg!\"#; const Q: char = '\"';";
    fine("src/bus/a.rs", hidden);
    fine("src/bus/a.rs", "fn f<'a>(x: &'a str) -> char { 'u' } // x.unwrap()");
    fine("src/bus/a.rs", "const A: &str = \"\\\".unwrap()\";");
}

#[test]
fn lengths_are_bounded() {
    let long = |lines: usize| format!("fn f(x: [u8; 4]) {{\n{}}}", "    g();\n".repeat(lines - 2));
    fine("src/bus/a.rs", &long(FUNCTION_LINES_MAX));
    assert!(fault("src/bus/a.rs", &long(FUNCTION_LINES_MAX + 1)).starts_with(":2: the function has 71 lines"));
    let wide = "x".repeat(LINE_COLUMNS_MAX + 1);
    assert!(fault("src/bus/a.rs", &format!("// {wide}")).contains("columns"));
    fine("src/bus/a.rs", &format!("const A: &str = \"{wide}\";"));
    fine("src/bus/table.rs", &format!("row!({wide});"));
    assert!(fault("src/bus/a.rs", &"//\n".repeat(FILE_LINES_MAX)).contains("the file has 802 lines"));
    assert_eq!(faults_in("src/bus/a.rs", "use std::fmt;\n").len(), 1);
}

#[test]
fn a_path_outside_the_repository_is_found_in_any_file() {
    let mut faults = Vec::new();
    check_outside("Makefile", &format!("a:\n\tcat {}/x\n", OUTSIDE[0]), &mut faults);
    check_outside("Makefile", "cat ../x/shared", &mut faults);
    assert_eq!(faults, ["Makefile:2: names a path outside the repository"]);
}
