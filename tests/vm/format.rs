//! Filesystems made on a real thin pool: on disks with large sectors, and where that goes wrong half-way.
//!
//! Deliberately absent: what is in a filesystem, and every other point at which making one can fail; that is
//! `tests/sim`.

use std::fs;
use std::path::Path;

use crate::guest::{Guest, dm, files, run, state, try_run, udev};
use crate::host::{SPEC, Spec};
use crate::scenario;
use crate::support::client::Client;

/// The disk that a pool lies on in these scenarios, under which others can be put.
const CUT: &str = "cut";

/// Makes the disk, or gives it another table.
fn cut(verb: &str, table: &str) {
    fs::write("/tmp/table", table).expect("the guest's root is writable");
    let uuid: &[&str] = if verb == "create" { &["--uuid", CUT] } else { &[] };
    run("dmsetup", &[&[verb, CUT, "/tmp/table"], uuid].concat());
    run("dmsetup", &["resume", CUT]);
}

/// The first line of an active table, in words.
fn line(name: &str) -> Vec<String> {
    let table = run("dmsetup", &["table", name]);
    table.lines().next().expect("it has a line").split(' ').map(str::to_owned).collect()
}

fn number(word: &str) -> u64 {
    word.parse().expect("it is a number")
}

/// Which sectors of the disk hold the data of its pool.
fn data_sectors() -> (u64, u64) {
    let [origin, data] = ["physical-originsub", "flex-thindata"].map(|end| {
        let names = dm::names();
        line(names.iter().find(|name| name.ends_with(end)).expect("the pool runs"))
    });
    let start = number(&origin[4]) + number(&data[4]);
    (start, start + number(&data[1]))
}

fn thin_pool() -> String {
    dm::names().into_iter().find(|name| name.ends_with("thinpool-pool")).expect("the pool runs")
}

/// Blocks of the thin pool that are in use.
fn used() -> u64 {
    let status = dm::status(&thin_pool());
    number(status.split(' ').nth(5).and_then(|used| used.split('/').next()).expect("used and total"))
}

/// Asks for a filesystem, which is not made for a reason in which these words are, and of which nothing is left.
#[track_caller]
fn expect_failure(client: &Client, pool: &str, words: &[&str]) {
    let tables = dm::tables();
    let answer = client.create_filesystems(pool, &[("data", None, None)]);
    assert_eq!(answer.code, 1, "{answer:?}");
    assert!(words.iter().all(|word| answer.text.contains(word)), "it says on what and why: {}", answer.text);
    udev::settle();
    assert_eq!(dm::tables(), tables);
    assert!(!Path::new("/dev/stratis/p/data").exists());
    assert!(client.family("filesystem").values().all(|seen| seen["Name"].text() != "data"));
}

scenario!(
    /// A disk that fails where the data of its pool lies.
    a_disk_that_fails_takes_no_filesystem,
    Spec { disks: &["4G"], ..SPEC },
    |guest: &mut Guest| {
        let disk = &guest.disks()[0];
        let size = number(run("blockdev", &["--getsz", disk]).trim());
        let whole = format!("0 {size} linear {disk} 0\n");
        cut("create", &whole);
        udev::settle();
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &[format!("/dev/mapper/{CUT}")]).done();
        let (start, end) = data_sectors();
        let rest = size - end;
        let broken = format!("0 {start} linear {disk} 0\n{start} {} error\n{end} {rest} linear {disk} {end}\n", end - start);
        cut("load", &broken);
        expect_failure(&client, &pool, &["cannot write stratis-1-", "-thin-fs-", "(os error 5)"]);
        cut("load", &whole);

        // The name is free, and the next one is as good as any.
        let made = files::node(&client, &client.make_filesystem(&pool, "data"));
        let folder = files::mount(&made, "data");
        let contents = files::Contents::write(folder.join("file"), 8 << 20, 1);
        files::unmount(&folder);
        files::check_xfs(&made);
        let folder = files::mount(&made, "data");
        contents.check(&folder);
        files::unmount(&folder);
        guest.kill9();
        guest.start();
        assert_eq!(guest.client().family("filesystem").len(), 1);
    }
);

scenario!(
    /// A pool that has no room for the headers of one more.
    a_full_pool_takes_no_filesystem,
    Spec { disks: &["2G"], ..SPEC },
    |guest: &mut Guest| {
        fs::write("/sys/module/dm_thin_pool/parameters/no_space_timeout", "1").expect("the module is loaded");
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        // Of 1 TiB.
        let made = client.create_filesystems(&pool, &[("filler", None, None)]).done().1;
        let filler = made[0].0.clone();
        let node = files::node(&client, &filler);
        let (status, said) =
            try_run("dd", &["if=/dev/zero", &format!("of={}", files::text(&node)), "bs=1M", "oflag=direct"]);
        assert!(!status.success() && said.contains("No space left"), "{said}");
        let blocks = used();
        expect_failure(&client, &pool, &["pool \"p\" is full", "add a data device"]);
        // What a disk refuses to zero the kernel itself keeps until thin_check: this is looked at here only.
        assert_eq!(used(), blocks, "its blocks were given back");
        client.destroy_filesystems(&pool, &[&filler]).done();
        let made = files::node(&client, &client.make_filesystem(&pool, "data"));
        files::check_xfs(&made);
        dm::expect_settled();
    }
);

scenario!(
    /// A disk with sectors of 4,096 bytes: so are those of the filesystem, and of the metadata volume.
    large_sectors_make_large_headers,
    Spec { disks: &[], ..SPEC },
    |guest: &mut Guest| {
        fs::File::create("/var/tmp/disk").and_then(|file| file.set_len(3 << 30)).expect("files can be sparse");
        let disk = run("losetup", &["--find", "--show", "--sector-size", "4096", "/var/tmp/disk"]);
        udev::settle();
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &[disk.trim()]).done();
        let made = files::node(&client, &client.make_filesystem(&pool, "data"));
        let folder = files::mount(&made, "data");
        let said = run("xfs_info", &[files::text(&folder)]);
        assert!(said.contains("sectsz=4096") && !said.contains("sectsz=512"), "{said}");
        assert!(said.contains("agcount=4") && said.contains("sunit=256"), "four groups, aligned to the pool: {said}");
        let contents = files::Contents::write(folder.join("file"), 8 << 20, 1);
        files::unmount(&folder);
        files::check_xfs(&made);
        guest.stop();
        guest.start();
        let folder = files::mount(&made, "data");
        contents.check(&folder);
        files::unmount(&folder);
        state::expect_no_io_error();
    }
);
