//! What must be true in the kernel and on the disks when a daemon has taken over: device-mapper has the devices of the
//! pools and no others, each thin volume has its record, no cookie and no intent is left, and the disks keep every
//! rule.
//!
//! Deliberately absent: objects and models, see `check`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::guest::{Guest, dm, files, run, state};
use crate::model::{Seen, SeenPool};
use crate::support::client::Client;
use crate::{check, reader};

/// dm devices of a running pool besides its filesystems.
const PRIVATE: [&str; 6] =
    ["physical-originsub", "physical-cache", "flex-thinmeta", "flex-thindata", "flex-mdv", "thinpool-pool"];

/// Words in the kernel's log that nothing here may cause.
const COMPLAINTS: [&str; 5] = ["I/O error", "orrupt", "BUG:", "blocked for more than", "metadata operation"];

/// Checks what the kernel has; every pool runs. One of the filesystems that are not in `mounted` is examined.
pub(crate) fn kernel(guest: &mut Guest, seen: &Seen, mounted: &[&str], random: &mut fastrand::Rng, context: &str) {
    devices(seen, context);
    cookies(context);
    complaints(context);
    for pool in seen.pools.values() {
        volumes(guest, seen, pool, context);
    }
    let idle: Vec<_> = seen.filesystems.iter().filter(|(name, _)| !mounted.contains(&name.as_str())).collect();
    if let Some((_, found)) = random.choice(idle) {
        let device = thin(&seen.pools[&found.pool].uuid, &found.uuid);
        files::check_xfs(&device);
        // Of a filesystem whose maker was killed before it was announced, the next daemon sees to that when clients
        // have their answers.
        let real = fs::canonicalize(&device).expect("it is active");
        let leads = |_: &mut Guest| fs::canonicalize(&found.devnode).is_ok_and(|linked| linked == real);
        guest.until(&format!("{} leads to the volume; {context}", found.devnode), leads);
    }
}

/// Disks of no pool carry nothing; here and there, that is tried with a new pool.
pub(crate) fn free(client: &Client, freed: &[Vec<String>], random: &mut fastrand::Rng, context: &str) {
    for disks in freed {
        for disk in disks {
            let left = run("wipefs", &["--no-act", "--noheadings", disk]);
            assert!(left.is_empty(), "{disk} still carries {left}; {context}");
        }
        // It takes as long as all the rest.
        if random.u32(0..4) == 0 {
            check::reusable(client, disks, context);
        }
    }
}

/// Examines the metadata volumes of pools whose daemon was killed: its mounts went with it.
pub(crate) fn metadata_volumes(seen: &Seen) {
    for pool in seen.pools.values() {
        files::check_xfs(&Path::new("/dev/mapper").join(dm::private(&pool.uuid, "flex-mdv")));
    }
}

/// The device node of a filesystem.
pub(crate) fn thin(pool: &str, filesystem: &str) -> PathBuf {
    files::linked(format!("/dev/mapper/stratis-1-{pool}-thin-fs-{filesystem}"))
}

/// dm devices are those of the pools, and none is half-made or suspended.
fn devices(seen: &Seen, context: &str) {
    dm::expect_settled();
    let pools = seen.pools.values().flat_map(|pool| PRIVATE.map(|role| dm::private(&pool.uuid, role)));
    let filesystems =
        seen.filesystems.values().map(|one| format!("stratis-1-{}-thin-fs-{}", seen.pools[&one.pool].uuid, one.uuid));
    let expected: BTreeSet<String> = pools.chain(filesystems).collect();
    let found: BTreeSet<String> = dm::names().into_iter().collect();
    assert_eq!(found, expected, "dm devices; {context}");
}

/// The kernel has not complained of what happened to devices and filesystems since it was booted.
pub(crate) fn complaints(context: &str) {
    let said = run("dmesg", &[]);
    let complaint = |line: &&str| COMPLAINTS.iter().any(|word| line.contains(word));
    let all: Vec<_> = said.lines().filter(complaint).collect();
    assert!(all.is_empty(), "the kernel says {all:#?}; {context}");
}

/// No semaphore waits for udev.
pub(crate) fn cookies(context: &str) {
    state::expect_no_cookies(context);
}

/// Thin volumes are those with a record, and no intent is left.
pub(crate) fn volumes(guest: &Guest, seen: &Seen, pool: &SeenPool, context: &str) {
    // The daemon's mounts are its own; this is the way to look at them from outside.
    let daemon = guest.daemon_id().expect("the daemon runs");
    let volume = PathBuf::from(format!("/proc/{daemon}/root/run/stratisd/ns_mounts/.mdv-{}", pool.uuid));
    let recorded = check::records(&volume.join("filesystems"), seen, pool, context);
    let intents = check::list(&volume.join("intents"));
    assert!(intents.is_empty(), "intents of pool {} are left: {intents:?}; {context}", pool.uuid);
    let thin_pool = dm::private(&pool.uuid, "thinpool-pool");
    run("dmsetup", &["message", &thin_pool, "0", "reserve_metadata_snap"]);
    let metadata = format!("/dev/mapper/{}", dm::private(&pool.uuid, "flex-thinmeta"));
    let listed = run("thin_ls", &["--metadata-snap", "--no-headers", "-o", "DEV", &metadata]);
    run("dmsetup", &["message", &thin_pool, "0", "release_metadata_snap"]);
    let ids: BTreeSet<String> = listed.split_whitespace().map(str::to_owned).collect();
    assert_eq!(ids, recorded, "thin volumes of pool {}; {context}", pool.uuid);
    let disks: Vec<String> = pool.devices.keys().cloned().collect();
    reader::record(&disks, context);
}
