//! Pools that the released daemon made on a real kernel (`tests/golden/pools`): used where they can be, and
//! otherwise recognised and left alone.
//!
//! Deliberately absent: their bytes, which `tests/format.rs` takes apart.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::guest::files::{self, Contents, text};
use crate::guest::{Guest, dm, run, state};
use crate::host::{SPEC, Spec};
use crate::scenario;
use crate::support::client::{Client, present};
use crate::support::{MIB, disk, interface};

scenario!(
    /// Files, sizes, limits and origins are what they were; the pool can be used, and comes back once more.
    a_v2_pool_goes_on,
    Spec { disks: &[], images: |folder| unpack("v2plain", folder), ..SPEC },
    |guest: &mut Guest| {
        let golden = golden("v2plain");
        guest.start();
        let client = guest.client();
        let stopped = client.stopped_pools(9);
        assert_eq!(stopped.len(), 1, "it was stopped, and it stays that way: {stopped:#?}");
        assert_eq!(dm::names(), Vec::<String>::new());
        assert!(client.start_pool("v2plain", "name").done().0);
        dm::expect_settled();
        assert_eq!(shapes(&dm::tables()), recorded_shapes("v2plain"));
        let features = dm::tables().values().find_map(|table| dm::thin_features(table)).expect("it has a thin pool");
        assert!(features.contains("skip_block_zeroing"), "it keeps the features on its record: {features}");
        check_filesystems(&client, &golden);
        check_files(&client, &golden);

        let (pool, _) = client.family("pool").pop_first().expect("it runs");
        let filesystem = client.make_filesystem(&pool, "new");
        let folder = files::mount(&files::node(&client, &filesystem), "new");
        let contents = Contents::write(folder.join("file"), 20 * MIB, 1);
        files::unmount(&folder);
        assert!(client.stop_pool("v2plain", "name").done().0);
        state::expect_nothing_left();
        assert!(client.start_pool("v2plain", "name").done().0);
        let filesystem = by_name(&client).remove("new").expect("it was made").0;
        files::mount(&files::node(&client, &filesystem), "new");
        contents.check(&folder);
        files::unmount(&folder);
        check_files(&client, &golden);
        assert!(client.stop_pool("v2plain", "name").done().0);
        state::expect_nothing_left();
        state::expect_no_io_error();
        guest.stop();
        guest.expect_quiet();
    }
);

scenario!(
    /// The older kind of pool is listed as stopped; a start is refused, and not a byte is changed.
    a_v1_pool_is_recognised,
    Spec { disks: &[], images: |folder| unpack("v1plain", folder), ..SPEC },
    |guest: &mut Guest| {
        let before: Vec<_> = guest.disks().iter().map(|path| disk::head(Path::new(path), 4 * MIB)).collect();
        guest.start();
        let client = guest.client();
        let stopped = client.stopped_pools(9);
        let (uuid, entry) = stopped.first_key_value().expect("it is recognised");
        assert_eq!(*uuid, golden("v1plain")["pool_uuid"].as_str().expect("a text").replace('-', ""));
        assert_eq!(entry["name"].clone().bare().text(), "v1plain");
        let refused = client.start_pool("v1plain", "name");
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.text.contains('1'), "the text says which version that is: {}", refused.text);
        assert_eq!(client.stopped_pools(9), stopped);
        assert_eq!(dm::names(), Vec::<String>::new());
        guest.stop();
        let after: Vec<_> = guest.disks().iter().map(|path| disk::head(Path::new(path), 4 * MIB)).collect();
        assert!(before == after, "nothing was written");
    }
);

/// Unpacks the disks of a pool, in the order of their numbers.
fn unpack(pool: &str, folder: &Path) -> Vec<PathBuf> {
    let archive = pools().join(format!("{pool}.tar.zst"));
    run("tar", &["-S", "--zstd", "-xf", text(&archive), "-C", text(folder)]);
    let names = golden(pool)["members"].as_array().expect("a list").clone();
    names.iter().map(|name| folder.join(name.as_str().expect("a text"))).collect()
}

fn pools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pools")
}

/// What is known of a pool.
fn golden(pool: &str) -> Json {
    let manifest = fs::read_to_string(pools().join("manifest.json")).expect("it belongs to the repository");
    let all: Vec<Json> = serde_json::from_str(&manifest).expect("it is JSON");
    all.into_iter().find(|one| one["pool"] == pool).expect("the pool is listed")
}

/// Filesystems by name: path and r9 properties.
fn by_name(client: &Client) -> BTreeMap<String, (String, crate::support::client::Properties)> {
    let all = client.family("filesystem").into_iter();
    all.map(|(path, properties)| (properties["Name"].text().to_owned(), (path, properties))).collect()
}

fn check_filesystems(client: &Client, golden: &Json) {
    let found = by_name(client);
    let wanted = golden["filesystems"].as_array().expect("a list");
    assert_eq!(found.len(), wanted.len());
    for one in wanted {
        let text = |name: &str| one[name].as_str().expect("a text");
        let simple = |uuid: &str| uuid.replace('-', "");
        let (_, properties) = &found[text("name")];
        assert_eq!(properties["Uuid"].text(), simple(text("uuid")));
        let sectors = one["size_sectors"].as_u64().expect("a number");
        assert_eq!(properties["Size"].text(), (sectors * 512).to_string());
        if let Some(sectors) = text("size_limit").strip_suffix(" sectors") {
            let bytes = sectors.parse::<u64>().expect("a number") * 512;
            assert_eq!(properties["SizeLimit"], present(&bytes.to_string()));
        }
        if text("origin") != "Not set" {
            assert_eq!(properties["Origin"], present(&simple(text("origin"))));
        }
    }
    let (pool, properties) = client.family("pool").pop_first().expect("it runs");
    assert_eq!(properties["Uuid"].text(), golden["pool_uuid"].as_str().expect("a text").replace('-', ""));
    assert_eq!(client.get(&pool, &interface("pool", 9), "FsLimit").expect("a property").number(), 100);
}

/// Mounts every filesystem at once and compares the sums of all files.
fn check_files(client: &Client, golden: &Json) {
    files::drop_caches();
    let found = by_name(client);
    for one in golden["filesystems"].as_array().expect("a list") {
        let name = one["name"].as_str().expect("a text");
        let folder = files::mount(&files::node(client, &found[name].0), name);
        for (file, sum) in one["files_sha256"].as_object().expect("an object") {
            let said = run("sha256sum", &[text(&folder.join(file))]);
            assert_eq!(said.split(' ').next(), sum.as_str(), "{name}/{file}");
        }
    }
    for name in found.keys().filter(|name| *name != "new") {
        files::unmount(&Path::new("/mnt").join(name));
    }
}

/// Tables without the numbers of devices, and of the thin pool only its size and its blocks.
fn shapes(tables: &BTreeMap<String, String>) -> BTreeMap<String, Vec<String>> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().filter(|word| !word.contains(':')).collect();
        words[..words.len().min(4)].join(" ")
    };
    tables.iter().map(|(name, table)| (name.clone(), table.lines().map(line).collect())).collect()
}

fn recorded_shapes(pool: &str) -> BTreeMap<String, Vec<String>> {
    let recorded = fs::read_to_string(pools().join(pool).join("dmtable.txt")).expect("it belongs to the repository");
    let mut tables: BTreeMap<String, String> = BTreeMap::new();
    for (name, table) in recorded.lines().filter_map(|line| line.split_once(": ")) {
        let whole = tables.entry(name.to_owned()).or_default();
        whole.push_str(table);
        whole.push('\n');
    }
    shapes(&tables)
}
