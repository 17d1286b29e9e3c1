//! Every subcommand of both releases, in success and in failure, as one table that is walked from top to bottom.
//!
//! A row is a command line, how it must end, and what there is afterwards. A row that fails must change nothing that
//! any property shows. In a line `@alpha` stands for the UUID of a pool, `@alpha/f` for that of a filesystem and
//! `@/dev/one` for that of a device; `KEY`, `OTHER` and `LONG` are files with passphrases, the last of 128 bytes.

use std::collections::BTreeSet;
use std::process::Command;

use crate::support::client::{Client, Objects, Properties};
use crate::support::rig::{Rig, text};
use crate::{Cli, NEW, OLD, Release};

use Ends::{Done, Fails, Misused, Says};

/// How a command ends.
#[derive(Clone, Copy, Debug)]
enum Ends {
    /// It succeeds, and this is there afterwards: each pool, with a star if it is encrypted, with its data and cache
    /// devices and its filesystems, then those that are stopped.
    Done(&'static str),
    /// It succeeds and prints this; nothing changes.
    Says(&'static str),
    /// It ends with 1 and explains with this; nothing changes.
    Fails(&'static str),
    /// It ends with 2, because the client itself does not take such a line; nothing changes.
    Misused,
}

type Row = (&'static str, Ends);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("daemon version", Says("3.9.2")),
    ("pool", Says("Name")),
    ("pool list", Says("Name")),
    ("pool list --stopped", Says("Name")),
    ("blockdev", Says("Pool Name")),
    ("filesystem", Says("Pool")),
    ("report", Says("\"pools\": []")),

    ("pool create alpha /dev/one /dev/two", Done("alpha 2+0")),
    ("pool create alpha /dev/one /dev/two", Fails("alpha")),
    ("pool create alpha /dev/five", Fails("alpha")),
    ("pool create beta /dev/one", Fails("/dev/one")),
    ("pool create beta /dev/three --no-overprovision --integrity no", Done("alpha 2+0; beta 1+0")),
    ("pool create gamma /dev/four --integrity pre-allocate --journal-size 131072KiB --tag-spec 32b", Done("alpha 2+0; beta 1+0; gamma 1+0")),
    ("pool create delta /dev/five --journal-size 131079KiB", Fails("4096")),
    ("pool create delta /dev/five --integrity no --journal-size 8MiB", Misused),
    ("pool create delta", Misused),
    ("pool create a!b /dev/five", Fails("a!b")),
    ("pool create .. /dev/five", Fails("..")),
    ("pool list", Says("alpha")),
    ("pool list --name gamma", Says("Name: gamma")),
    ("pool list --uuid @gamma", Says("Name: gamma")),
    ("pool list --name nobody", Fails("does not exist")),
    ("pool destroy gamma", Done("alpha 2+0; beta 1+0")),
    ("pool destroy gamma", Fails("does not exist")),
    ("pool explain WS001", Says(" ")),
    ("pool explain XX", Misused),

    ("filesystem create alpha f --size 1GiB", Done("alpha 2+0 f; beta 1+0")),
    ("filesystem create alpha g", Done("alpha 2+0 f g; beta 1+0")),
    ("fs create alpha h --size 1GiB --size-limit 1GiB", Done("alpha 2+0 f g h; beta 1+0")),
    ("filesystem create alpha f", Fails("f")),
    ("filesystem create alpha i j", Fails("one at a time")),
    ("filesystem create alpha i --size 511MiB", Fails("536870912")),
    ("filesystem create alpha i --size 536870913B", Fails("512")),
    ("filesystem create alpha i --size 1GiB --size-limit 513MiB", Fails("limit")),
    ("filesystem create alpha i --size 1", Misused),
    ("filesystem create alpha a!b", Fails("a!b")),
    ("filesystem create beta big --size 32TiB", Fails("overprovisioning")),
    ("filesystem create nobody i", Fails("does not exist")),
    ("filesystem list", Says("alpha")),
    ("filesystem list alpha", Says("1 GiB")),
    ("filesystem list alpha --name f", Says("Name: f")),
    ("filesystem list alpha --uuid @alpha/f", Says("Name: f")),
    ("filesystem list alpha --name nobody", Fails("does not exist")),
    ("filesystem list nobody", Fails("does not exist")),
    ("filesystem snapshot alpha f s", Done("alpha 2+0 f g h s; beta 1+0")),
    ("filesystem snapshot alpha f s", Fails("s")),
    ("filesystem snapshot alpha f a!b", Fails("a!b")),
    ("filesystem snapshot alpha nobody t", Fails("does not exist")),
    ("filesystem snapshot nobody f t", Fails("does not exist")),
    ("filesystem set-size-limit alpha f 4GiB", Done("alpha 2+0 f g h s; beta 1+0")),
    ("filesystem set-size-limit alpha f 4GiB", Fails("4")),
    ("filesystem set-size-limit alpha f 512MiB", Fails("below")),
    ("filesystem set-size-limit alpha f current", Done("alpha 2+0 f g h s; beta 1+0")),
    ("filesystem list alpha --name f", Says("Size Limit: 1 GiB")),
    ("filesystem unset-size-limit alpha f", Done("alpha 2+0 f g h s; beta 1+0")),
    ("filesystem unset-size-limit alpha f", Fails("not set")),
    ("filesystem schedule-revert alpha f", Fails("snapshot")),
    ("filesystem cancel-revert alpha f", Fails("snapshot")),
    ("filesystem cancel-revert alpha s", Fails("not currently scheduled")),
    ("filesystem schedule-revert alpha s", Done("alpha 2+0 f g h s; beta 1+0")),
    ("filesystem schedule-revert alpha s", Fails("already scheduled")),
    ("filesystem destroy alpha f", Fails("merged")),
    ("filesystem destroy alpha s", Fails("merged")),
    ("filesystem cancel-revert alpha s", Done("alpha 2+0 f g h s; beta 1+0")),
    ("filesystem destroy alpha s", Done("alpha 2+0 f g h; beta 1+0")),
    ("filesystem destroy alpha s", Fails("s")),
    ("filesystem destroy nobody f", Fails("does not exist")),
    ("filesystem debug get-object-path --name f", Says("/org/storage/stratis3/")),
    ("filesystem debug get-object-path --uuid @alpha/f", Says("/org/storage/stratis3/")),
    ("filesystem debug get-object-path --name nobody", Fails("does not exist")),
    ("filesystem debug get-metadata alpha", Says("\"name\": \"g\"")),
    ("filesystem debug get-metadata alpha --fs-name f --written --pretty", Says("\"size\": 2097152")),
    ("filesystem debug get-metadata alpha --fs-name nobody", Says("{}")),
    ("filesystem debug get-metadata nobody", Fails("does not exist")),

    ("pool debug get-object-path --name alpha", Says("/org/storage/stratis3/")),
    ("pool debug get-object-path --uuid @alpha", Says("/org/storage/stratis3/")),
    ("pool debug get-object-path --name nobody", Fails("does not exist")),
    ("pool debug get-metadata --name alpha", Says("\"name\": \"alpha\"")),
    ("pool debug get-metadata --uuid @alpha --written --pretty", Says("\"fs_limit\": 100")),
    ("pool debug get-metadata --name nobody", Fails("does not exist")),
    ("blockdev list", Says("/dev/two")),
    ("blockdev list beta", Says("/dev/three")),
    ("blockdev list nobody", Fails("does not exist")),
    ("blockdev debug get-object-path --uuid @/dev/one", Says("/org/storage/stratis3/")),
    ("blockdev debug get-object-path --uuid 00000000-0000-4000-8000-000000000000", Fails("does not exist")),
    ("report engine_state_report --no-sort-keys", Says("\"path\": \"/dev/one\"")),
    ("report managed_objects_report", Says("org.storage.stratis3.pool.r9")),
    ("report stopped_pools", Says("\"stopped_pools\": []")),
    ("report nonsense", Misused),
    ("debug uevent /dev/no/such/device", Fails("device")),

    ("pool set-fs-limit alpha 150", Done("alpha 2+0 f g h; beta 1+0")),
    ("pool list --name alpha", Says("Limit: 150")),
    ("pool set-fs-limit alpha 150", Fails("150")),
    ("pool set-fs-limit alpha 100", Fails("100")),
    ("pool set-fs-limit alpha many", Misused),
    ("pool set-fs-limit nobody 200", Fails("does not exist")),
    ("pool overprovision beta no", Fails("overprovision")),
    ("pool overprovision beta yes", Done("alpha 2+0 f g h; beta 1+0")),
    ("pool overprovision nobody yes", Fails("does not exist")),
    ("pool extend-data alpha", Fails("device")),
    ("pool extend-data alpha --device-uuid @/dev/one", Fails("no effect")),
    ("pool extend-data nobody", Fails("does not exist")),
    ("pool add-data beta /dev/one", Fails("/dev/one")),
    ("pool destroy alpha", Fails("filesystems")),

    ("pool rename beta bravo", Done("alpha 2+0 f g h; bravo 1+0")),
    ("pool rename bravo bravo", Fails("bravo")),
    ("pool rename bravo alpha", Fails("alpha")),
    ("pool rename bravo a!b", Fails("a!b")),
    ("pool rename nobody x", Fails("does not exist")),
    ("pool rename bravo beta", Done("alpha 2+0 f g h; beta 1+0")),
    ("filesystem rename alpha f ff", Done("alpha 2+0 ff g h; beta 1+0")),
    ("filesystem rename alpha ff ff", Fails("ff")),
    ("filesystem rename alpha ff g", Fails("g")),
    ("filesystem rename alpha ff a!b", Fails("a!b")),
    ("filesystem rename alpha nobody x", Fails("does not exist")),
    ("filesystem rename alpha ff f", Done("alpha 2+0 f g h; beta 1+0")),

    ("key", Says("Key Description")),
    ("key list", Says("Key Description")),
    ("key set k1 --keyfile-path KEY", Done("alpha 2+0 f g h; beta 1+0")),
    ("key set k1 --keyfile-path KEY", Fails("k1")),
    ("key set k2 --keyfile-path LONG", Fails("64")),
    ("key set k2 --keyfile-path no-such-file", Fails("no-such-file")),
    ("key set k2", Misused),
    ("key reset k1 --keyfile-path KEY", Fails("k1")),
    ("key reset k1 --keyfile-path OTHER", Done("alpha 2+0 f g h; beta 1+0")),
    ("key reset k9 --keyfile-path KEY", Fails("k9")),
    ("key set k2 --keyfile-path KEY", Done("alpha 2+0 f g h; beta 1+0")),
    ("key set k3 --keyfile-path KEY", Done("alpha 2+0 f g h; beta 1+0")),
    ("key list", Says("k3")),
    ("pool create crypt /dev/c --key-desc k9", Fails("k9")),
    ("pool create crypt /dev/c --clevis tang", Misused),
    ("pool create crypt /dev/c --key-desc k1 --clevis tpm2", Done("alpha 2+0 f g h; beta 1+0; crypt* 1+0")),
    ("pool list", Says("crypt")),
    ("pool bind keyring crypt k2", Done("alpha 2+0 f g h; beta 1+0; crypt* 1+0")),
    ("pool bind keyring crypt k2", Fails("crypt")),
    ("pool bind keyring alpha k2", Fails("encrypted")),
    ("pool bind tpm2 crypt", Done("alpha 2+0 f g h; beta 1+0; crypt* 1+0")),
    ("pool bind tpm2 alpha", Fails("encrypted")),
    ("pool bind nbde crypt http://x --trust-url", Done("alpha 2+0 f g h; beta 1+0; crypt* 1+0")),
    ("pool bind tang crypt http://x --thumbprint abc", Done("alpha 2+0 f g h; beta 1+0; crypt* 1+0")),
    ("pool bind tang crypt http://x", Misused),
    ("pool rebind clevis crypt", Done("alpha 2+0 f g h; beta 1+0; crypt* 1+0")),
    ("pool rebind clevis alpha", Fails("encrypted")),
    ("pool rebind keyring crypt k3", Done("alpha 2+0 f g h; beta 1+0; crypt* 1+0")),
    ("pool rebind keyring crypt k3", Fails("crypt")),
    ("pool unbind keyring crypt", Done("alpha 2+0 f g h; beta 1+0; crypt* 1+0")),
    ("pool unbind clevis crypt --token-slot 32", Fails("crypt")),
    ("pool unbind keyring alpha", Fails("encrypted")),
    ("pool stop --name crypt", Done("alpha 2+0 f g h; beta 1+0; stopped crypt")),
    ("pool list --stopped", Says("crypt")),
    ("pool start --name crypt", Fails("encrypted")),
    ("pool start --name crypt --unlock-method clevis", Fails("token-slot")),
    ("pool start --name crypt --unlock-method any", Done("alpha 2+0 f g h; beta 1+0; crypt* 1+0")),
    ("pool stop --name crypt", Done("alpha 2+0 f g h; beta 1+0; stopped crypt")),
    ("pool start --name crypt --token-slot 1", Done("alpha 2+0 f g h; beta 1+0; crypt* 1+0")),
    ("pool destroy crypt", Done("alpha 2+0 f g h; beta 1+0")),
    ("key unset k1", Done("alpha 2+0 f g h; beta 1+0")),
    ("key unset k1", Fails("k1")),

    ("pool start --name alpha", Fails("alpha")),
    ("pool start --name alpha --unlock-method any", Fails("not encrypted")),
    ("pool stop --name alpha", Done("beta 1+0; stopped alpha")),
    ("pool stop --name alpha", Fails("alpha")),
    ("pool stop --name nobody", Fails("nobody")),
    ("pool list --stopped", Says("alpha")),
    ("pool list --stopped --name alpha", Says("Name: alpha")),
    ("pool list --stopped --uuid @alpha", Says("Name: alpha")),
    ("pool list --stopped --name nobody", Fails("nobody")),
    ("report stopped_pools", Says("\"name\": \"alpha\"")),
    ("pool start --name alpha --unlock-method any", Fails("not encrypted")),
    ("pool start --name alpha --unlock-method keyring", Fails("")),
    ("pool start --name alpha --unlock-method clevis", Fails("")),
    ("pool start --name alpha --token-slot 1", Fails("not encrypted")),
    ("pool start --name alpha --keyfile-path Cargo.toml", Fails("not encrypted")),
    ("pool start --name nobody", Fails("nobody")),
    ("pool start --uuid @alpha", Done("alpha 2+0 f g h; beta 1+0")),
    ("pool stop --uuid @alpha", Done("beta 1+0; stopped alpha")),
    ("pool start --name alpha", Done("alpha 2+0 f g h; beta 1+0")),
    ("filesystem destroy alpha f g h", Done("alpha 2+0; beta 1+0")),
    ("pool destroy alpha", Done("beta 1+0")),

    ("pool add-data beta /dev/six /dev/seven", Done("beta 3+0")),
    ("pool add-data beta /dev/six", Fails("/dev/six")),
    ("pool add-data nobody /dev/nine", Fails("does not exist")),
    ("pool add-cache beta /dev/eight", Fails("cache")),
    ("pool init-cache beta /dev/six", Fails("/dev/six")),
    ("pool init-cache beta /dev/eight", Done("beta 3+1")),
    ("pool init-cache beta /dev/eight", Fails("cache")),
    ("pool init-cache nobody /dev/nine", Fails("does not exist")),
    ("pool add-cache beta /dev/nine", Done("beta 3+2")),
    ("pool add-cache beta /dev/nine", Fails("/dev/nine")),
    ("pool add-cache nobody /dev/ten", Fails("does not exist")),
    ("debug refresh", Done("beta 3+2")),
    ("pool destroy beta", Done("")),
];

/// Rows that only the newer release takes.
#[rustfmt::skip]
const ROWS_NEW: &[Row] = &[
    ("pool create delta /dev/five --journal-size 18446744073709551616B", Fails("journal-size")),
    ("pool start --name nobody --remove-cache", Fails("nobody")),
    ("pool create delta /dev/five", Done("delta 1+0")),
    ("pool encryption on --name delta --clevis tpm2", Fails("in-place")),
    ("pool encryption on --in-place --name delta", Fails("encrypt with")),
    ("pool encryption on --in-place --name delta --clevis tpm2", Done("delta* 1+0")),
    ("pool encryption on --in-place --name delta --clevis tpm2", Fails("delta")),
    ("pool encryption bind keyring k2 --name delta", Done("delta* 1+0")),
    ("pool encryption bind tpm2 --uuid @delta", Done("delta* 1+0")),
    ("pool encryption bind nbde http://x --trust-url --name delta", Done("delta* 1+0")),
    ("pool encryption rebind clevis --name delta", Done("delta* 1+0")),
    ("pool encryption rebind keyring k3 --name delta", Done("delta* 1+0")),
    ("pool encryption unbind keyring --name delta", Done("delta* 1+0")),
    ("pool encryption unbind keyring --name delta", Fails("delta")),
    ("pool encryption reencrypt --in-place --name delta", Done("delta* 1+0")),
    ("pool encryption off --in-place --name delta", Done("delta 1+0")),
    ("pool encryption off --in-place --name delta", Fails("delta")),
    ("pool encryption reencrypt --in-place --name delta", Fails("encrypted")),
    ("pool encryption bind tpm2 --name delta", Fails("encrypted")),
    ("pool init-cache delta /dev/six", Done("delta 1+1")),
    ("pool stop --name delta", Done("stopped delta")),
    ("pool start --name delta --remove-cache", Done("delta 1+0")),
    ("pool destroy delta", Done("")),
];

/// Files with passphrases.
const KEYS: [(&str, &[u8]); 3] = [("KEY", &[b'k'; 32]), ("OTHER", &[b'o'; 32]), ("LONG", &[b'l'; 128])];

/// Everything that properties show.
#[derive(Debug, Eq, PartialEq)]
struct State {
    objects: Objects,
    stopped: std::collections::BTreeMap<String, Properties>,
}

impl State {
    fn of(client: &Client) -> Self {
        Self { objects: client.objects(), stopped: client.stopped_pools(9) }
    }

    /// The newest properties of the objects of a family, with their paths.
    fn family<'a>(&'a self, family: &str) -> impl Iterator<Item = (&'a String, &'a Properties)> {
        let name = crate::support::interface(family, 9);
        self.objects.iter().filter_map(move |(path, interfaces)| Some((path, interfaces.get(&name)?)))
    }

    /// As the table writes it.
    fn short(&self) -> String {
        let pool = |(path, pool): (&String, &Properties)| {
            let own = |family| self.family(family).map(|(_, one)| one).filter(|one| one["Pool"].text() == path);
            let devices = |tier: u64| own("blockdev").filter(|device| device["Tier"].number() == tier).count();
            let names: BTreeSet<String> = own("filesystem").map(|one| format!(" {}", one["Name"].text())).collect();
            let names: String = names.into_iter().collect();
            let star = if pool["Encrypted"].is_true() { "*" } else { "" };
            format!("{}{star} {}+{}{names}", pool["Name"].text(), devices(0), devices(1))
        };
        let running: BTreeSet<String> = self.family("pool").map(pool).collect();
        let stopped = self.stopped.values().map(|pool| format!("stopped {}", pool["name"].text()));
        running.into_iter().chain(stopped).collect::<Vec<_>>().join("; ")
    }

    /// The UUID that `@` and this stand for.
    fn uuid(&self, what: &str) -> String {
        if what.starts_with('/') {
            let found = self.family("blockdev").find(|(_, device)| device["PhysicalPath"].text() == what);
            return found.expect("the device is there").1["Uuid"].text().to_owned();
        }
        let (pool, filesystem) = what.split_once('/').map_or((what, None), |(pool, name)| (pool, Some(name)));
        let named = |one: &Properties, name: &str| one["Name"].text() == name;
        let Some((path, found)) = self.family("pool").find(|(_, one)| named(one, pool)) else {
            let stopped = self.stopped.iter().find(|(_, one)| one["name"].text() == pool);
            return stopped.expect("the pool is there").0.clone();
        };
        let Some(name) = filesystem else { return found["Uuid"].text().to_owned() };
        let mut all = self.family("filesystem").filter(|(_, one)| one["Pool"].text() == path);
        all.find(|(_, one)| named(one, name)).expect("the filesystem is there").1["Uuid"].text().to_owned()
    }
}

fn walk(release: Release, rows: &[Row]) {
    let rig = Rig::sim();
    let Some(cli) = Cli::new(release, &rig) else { return };
    let mut daemon = rig.start();
    for (key, passphrase) in KEYS {
        std::fs::write(rig.run_folder().join(key), passphrase).expect("the folder is ours");
    }
    let client = rig.client();
    let mut faults = Vec::new();
    for (line, ends) in rows {
        let before = State::of(&client);
        let word = |word: &str| match word.strip_prefix('@') {
            Some(what) => before.uuid(what),
            None if KEYS.iter().any(|(key, _)| *key == word) => text(&rig.run_folder().join(word)),
            None => word.to_owned(),
        };
        let words: Vec<String> = line.split_whitespace().map(word).collect();
        let said = cli.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let after = State::of(&client);
        let (code, text) = match ends {
            Done(_) => (0, ""),
            Says(text) => (0, *text),
            Fails(text) => (1, *text),
            Misused => (2, "usage"),
        };
        let printed = if code == 0 { &said.output } else { &said.errors };
        let as_said = match ends {
            Done(state) => after.short() == *state,
            Says(_) | Fails(_) | Misused => after == before,
        };
        if said.code != Some(code) || !printed.contains(text) || !as_said {
            faults.push(format!("{line}: {ends:?}, but {said:?} and then: {}", after.short()));
        }
    }
    assert!(faults.is_empty(), "stratis-cli {}:\n{}", release.version, faults.join("\n"));
    assert!(daemon.interrupt().success(), "{}", daemon.stderr());
}

/// That each subcommand which the client knows has a row that succeeds.
fn all_are_walked(release: Release, rows: &[Row]) {
    let rig = Rig::sim();
    let Some(cli) = Cli::new(release, &rig) else { return };
    let script = "from stratis_cli._parser import _parser as p\n\
        print('\\n'.join({one.prog.removeprefix('stratis').strip() for one, _ in p.gen_subparsers(p.gen_parser(), [])}))";
    let output = Command::new(cli.binary.with_file_name("python")).args(["-c", script]).output();
    let known = String::from_utf8(output.expect("the environment has a python").stdout).expect("names are texts");
    let starts = |line: &str, with: &str| line == with || line.starts_with(&format!("{with} "));
    let walked = |known: &str| rows.iter().any(|(line, ends)| starts(line, known) && matches!(ends, Done(_) | Says(_)));
    // No pool has a device that has grown here, and a real device is left alone.
    let only_fail = ["pool extend-data", "debug uevent", "debug"];
    let left: Vec<_> =
        known.lines().filter(|known| !known.is_empty() && !walked(known) && !only_fail.contains(known)).collect();
    assert!(known.lines().count() > 40, "the client's parser was asked: {known}");
    assert_eq!(left, Vec::<&str>::new(), "subcommands of {} without a row", release.version);
}

#[test]
fn every_subcommand_of_3_9_1_ends_as_the_table_says() {
    walk(NEW, &[ROWS, ROWS_NEW].concat());
}

#[test]
fn every_subcommand_of_3_8_1_ends_as_the_table_says() {
    walk(OLD, ROWS);
}

#[test]
fn the_table_has_every_subcommand() {
    all_are_walked(NEW, &[ROWS, ROWS_NEW].concat());
    all_are_walked(OLD, ROWS);
}
