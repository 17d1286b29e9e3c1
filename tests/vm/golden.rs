//! Pools that the released daemon made on a real kernel (`tests/golden/pools`): used, and left so that it can use
//! them again.
//!
//! Deliberately absent: their bytes, which `tests/format.rs` takes apart.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use stratisd::format::mda;

use crate::cache::Stack;
use crate::guest::files::{self, Contents, text};
use crate::guest::{Guest, dm, run, state};
use crate::host::{SPEC, Spec};
use crate::load::{self, Load};
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
    /// The older kind of pool works like the other and is left in its own layout, with a cache and without.
    a_v1_pool_goes_on,
    Spec { disks: &["3G", "2G", "2G"], images: |folder| unpack("v1plain", folder), limit_s: 240, ..SPEC },
    |guest: &mut Guest| {
        let golden = golden("v1plain");
        guest.start();
        let client = guest.client();
        let (uuid, entry) = client.stopped_pools(9).pop_first().expect("it was stopped, and it stays that way");
        assert_eq!(uuid, golden["pool_uuid"].as_str().expect("a text").replace('-', ""));
        assert_eq!(entry["name"].clone().bare().text(), "v1plain");
        assert_eq!(dm::names(), Vec::<String>::new());
        assert!(client.start_pool("v1plain", "name").done().0);
        dm::expect_settled();
        assert_eq!(shapes(&dm::tables()), recorded_shapes("v1plain"), "there is no placeholder for a cache");
        let (pool, properties) = client.family("pool").pop_first().expect("it runs");
        assert_eq!(properties["MetadataVersion"].number(), 1);
        check_filesystems(&client, &golden);
        check_files(&client, &golden);

        work_on_v1(guest, &pool);
        adopt_v1(guest);
        cache_v1(guest);
        let client = guest.client();
        check_files(&client, &golden);
        assert!(client.stop_pool("v1plain", "name").done().0);
        state::expect_nothing_left();
        expect_v1(&data_disks(guest));
        assert!(client.start_pool("v1plain", "name").done().0);
        Stack::expect_cached();
        assert!(client.stop_pool("v1plain", "name").done().0);
        let (_, (_, devices, _)) = client.start_without_cache("v1plain").done();
        assert_eq!(devices.len(), 3);
        assert!(dm::names().iter().all(|name| !name.contains("physical-cache")), "{:?}", dm::names());
        check_files(&client, &golden);
        assert!(client.stop_pool("v1plain", "name").done().0);
        state::expect_nothing_left();
        expect_v1(&data_disks(guest));
        state::expect_no_io_error();
        guest.stop();
        guest.expect_quiet();
    }
);

scenario!(
    /// The device of an encrypted pool of version 1 that somebody has unlocked is listed; a start is refused and says
    /// why, and not a byte is changed.
    an_unlocked_v1_pool_is_left_alone,
    Spec { disks: &[], images: |folder| unpack("v1plain", folder), ..SPEC },
    |guest: &mut Guest| {
        // As cryptsetup would name it. What is below is hidden from udev, as a volume that is encrypted would be.
        let disks = guest.disks();
        for (disk, place) in disks.iter().zip(1..) {
            hide(disk, place);
        }
        let before: Vec<_> = disks.iter().map(|path| disk::head(Path::new(path), 4 * MIB)).collect();
        guest.start();
        let client = guest.client();
        let stopped = client.stopped_pools(9);
        assert_eq!(stopped.len(), 1, "it is recognised: {}", guest.log());
        let refused = client.start_pool("v1plain", "name");
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.text.contains("version 1 and is encrypted"), "{}", refused.text);
        assert_eq!(client.stopped_pools(9), stopped);
        assert_eq!(dm::names().len(), 2, "{:?}", dm::names());
        guest.stop();
        let after: Vec<_> = disks.iter().map(|path| disk::head(Path::new(path), 4 * MIB)).collect();
        assert!(before == after, "nothing was written");
    }
);

/// Puts a dm device on a disk that has the UUID of an unlocked LUKS volume, and has udev forget the disk.
fn hide(disk: &str, place: u32) {
    let name = format!("stratis-1-private-{place:032x}-crypt");
    let uuid = format!("CRYPT-LUKS2-{place:032x}-{name}");
    let kernel = disk.trim_start_matches("/dev/");
    fs::create_dir_all("/run/udev/rules.d").expect("/run is writable");
    let rule = format!("KERNEL==\"{kernel}\", ENV{{ID_FS_TYPE}}=\"crypto_LUKS\", ENV{{ID_FS_USAGE}}=\"crypto\"\n");
    fs::write(format!("/run/udev/rules.d/99-hide-{place}.rules"), rule).expect("/run is writable");
    run("udevadm", &["control", "--reload"]);
    let sectors = run("blockdev", &["--getsz", disk]);
    let table = format!("0 {} linear {disk} 0", sectors.trim());
    run("dmsetup", &["create", &name, "--uuid", &uuid, "--table", &table]);
    run("udevadm", &["trigger", "--settle", "--action=change", disk]);
}

/// What users do: filesystems are made, copied, renamed, removed, and written.
fn work_on_v1(guest: &Guest, pool: &str) {
    let client = guest.client();
    let filesystem = client.make_filesystem(pool, "new");
    let folder = files::mount(&files::node(&client, &filesystem), "new");
    let contents = Contents::write(folder.join("file"), 20 * MIB, 1);
    let (_, snapshot) = client.snapshot(pool, &filesystem, "copy").done();
    let copy = files::mount(&files::node(&client, &snapshot), "copy");
    contents.check(&copy);
    files::unmount(&copy);
    let renamed: Result<((bool, String), u16, String), _> =
        client.call(&snapshot, &interface("filesystem", 9), "SetName", ("kept",));
    assert!(renamed.expect("it is answered").0.0);
    files::unmount(&folder);
    client.destroy_filesystems(pool, &[filesystem]).done();
    // More of them take more metadata, and that more of the one piece that the record has.
    client.set(pool, &interface("pool", 9), "FsLimit", 1_000_u64).expect_err("there is no room");
    client.give_devices(pool, ("AddDataDevs", 9), &data_disks(guest)[2..]).done();
    client.set(pool, &interface("pool", 9), "FsLimit", 1_000_u64).expect("there is room");
    dm::expect_settled();
}

/// The two disks of the pool, and the one that it is given.
fn data_disks(guest: &Guest) -> Vec<String> {
    let disks = guest.disks();
    [0, 1, 4].map(|disk: usize| disks[disk].clone()).to_vec()
}

/// The daemon is killed and followed by one that keeps everything as it is.
fn adopt_v1(guest: &mut Guest) {
    let before = (state::objects(&guest.client()), dm::tables());
    guest.kill9();
    guest.start();
    assert_eq!((state::objects(&guest.client()), dm::tables()), before);
    dm::expect_settled();
}

/// A cache comes between the backstore and what lies on it, while a filesystem is written.
fn cache_v1(guest: &mut Guest) {
    let disks = guest.disks();
    let client = guest.client();
    let (pool, _) = client.family("pool").pop_first().expect("it runs");
    let (kept, _) = by_name(&client).remove("kept").expect("it was renamed");
    let folder = files::mount(&files::node(&client, &kept), "kept");
    let journal = Path::new("/out/load.journal");
    let load = Load::start(folder.clone(), journal.to_owned());
    assert!(client.give_devices(&pool, ("InitCache", 9), &disks[2..3]).done().0);
    Stack::expect_cached();
    assert!(client.give_devices(&pool, ("AddCacheDevs", 9), &disks[3..4]).done().0);
    Stack::expect_cached();
    adopt_v1(guest);
    assert!(!load.has_failed());
    load.stop();
    files::drop_caches();
    println!("golden: {} files whole", load::check(&folder, journal));
    files::unmount(&folder);
    let client = guest.client();
    let (kept, _) = by_name(&client).remove("kept").expect("it was adopted");
    files::check_xfs(&files::node(&client, &kept));
}

/// What 3.9.2 wants of the data devices of such a pool, read from the disks.
fn expect_v1(disks: &[String]) {
    for disk in disks {
        let head = disk::head(Path::new(disk), MIB);
        assert_eq!(head[512 + 28], 1, "the version on {disk}");
        let region = |at: usize| mda::decode(&head[8_192 + at * 508 * 512..][..508 * 512]);
        let regions = [region(0), region(1), region(2), region(3)];
        let (_, _, json) = mda::newest(&regions).expect("it has a record");
        let record: Json = serde_json::from_slice(json).expect("it is JSON");
        let (backstore, flex) = (&record["backstore"], &record["flex_devs"]);
        assert_eq!(record["started"], false);
        let absent =
            [&record["features"], &backstore["data_tier"]["integrity_spec"], &backstore["cap"]["crypt_meta_allocs"]];
        assert!(absent.iter().all(|value| value.is_null()), "{record}");
        let lists = ["meta_dev", "thin_meta_dev", "thin_data_dev", "thin_meta_dev_spare"].map(|list| &flex[list]);
        let pairs = || lists.iter().flat_map(|list| list.as_array().expect("a list"));
        let number = |value: &Json| value.as_u64().expect("a number");
        let end = pairs().map(|pair| number(&pair[0]) + number(&pair[1])).max().expect("there are some");
        assert_eq!(pairs().map(|pair| number(&pair[1])).sum::<u64>(), end, "{record}");
        assert_eq!(backstore["cap"]["allocs"], serde_json::json!([[0, end]]), "{record}");
    }
}

/// Unpacks the disks of a pool, in the order of their numbers.
pub(crate) fn unpack(pool: &str, folder: &Path) -> Vec<PathBuf> {
    let archive = pools().join(format!("{pool}.tar.zst"));
    run("tar", &["-S", "--zstd", "-xf", text(&archive), "-C", text(folder)]);
    let names = golden(pool)["members"].as_array().expect("a list").clone();
    names.iter().map(|name| folder.join(name.as_str().expect("a text"))).collect()
}

fn pools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pools")
}

/// What is known of a pool.
pub(crate) fn golden(pool: &str) -> Json {
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
    for one in golden["filesystems"].as_array().expect("a list") {
        files::unmount(&Path::new("/mnt").join(one["name"].as_str().expect("a text")));
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
