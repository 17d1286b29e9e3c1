//! What must be true below the records after a kill, with `--files`: the daemon's folder holds a volume for
//! each record and nothing else, and the volumes are filesystems.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::check;
use crate::model::Seen;
use crate::support::disk::{head, walk};
use crate::support::rig::Rig;
use crate::worker::FILESYSTEM_BYTES;

/// Volumes that are examined by `xfs_repair` after each kill; it takes most of the time.
const SAMPLE: usize = 1;

/// Checks the folder, and every volume.
pub(crate) fn everything(rig: &Rig, seen: &Seen, random: &mut fastrand::Rng, context: &str) {
    folder(rig, seen, context);
    let mut sample: Vec<_> = seen.filesystems.values().collect();
    random.shuffle(&mut sample);
    for (index, found) in sample.into_iter().enumerate() {
        let volume =
            fs::canonicalize(&found.devnode).unwrap_or_else(|error| panic!("{}: {error}; {context}", found.devnode));
        volume_holds(&volume, &found.uuid, context);
        if index < SAMPLE {
            examine(&volume, &found.uuid, context);
        }
    }
}

/// The daemon's folder holds one folder for each pool, in it one volume for each record, and no rest.
fn folder(rig: &Rig, seen: &Seen, context: &str) {
    let files = rig.files_folder();
    let mut links = BTreeSet::new();
    walk(&files, &mut |path| {
        let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        assert!(!name.contains(".temp"), "{} is left over; {context}", path.display());
        let parent = path.parent().and_then(Path::file_name).unwrap_or_default();
        assert!(parent != "intents", "the intent {} is left over; {context}", path.display());
        assert!(parent != "links", "the link {} was never placed; {context}", path.display());
        if path.is_symlink() && parent != "devices" {
            links.insert(path.display().to_string());
        }
    });
    let wanted: BTreeSet<_> = seen.filesystems.values().map(|one| one.devnode.clone()).collect();
    assert_eq!(links, wanted, "links to volumes; {context}");
    let uuids: BTreeSet<_> = seen.pools.values().map(|pool| pool.uuid.clone()).collect();
    for entry in fs::read_dir(&files).expect("the folder exists") {
        let name = entry.expect("the folder can be listed").file_name().to_string_lossy().into_owned();
        let is_pool = name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(!is_pool || uuids.contains(&name), "folder {name} of no pool; {context}");
    }
    for pool in seen.pools.values() {
        let own = files.join(&pool.uuid);
        let thin = check::records(&own.join("filesystems"), seen, pool, context);
        assert_eq!(check::list(&own.join("thin")), thin, "volumes of pool {}; {context}", pool.uuid);
    }
}

/// The volume is as large as it should be and holds an XFS with this UUID.
fn volume_holds(volume: &Path, uuid: &str, context: &str) {
    assert_eq!(fs::metadata(volume).expect("the volume exists").len(), FILESYSTEM_BYTES, "{context}");
    let superblock = head(volume, 48);
    assert_eq!(&superblock[..4], b"XFSB", "{}; {context}", volume.display());
    let found: String = superblock[32..48].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(found, uuid, "{}; {context}", volume.display());
}

/// The tools agree: `blkid` sees the UUID, `xfs_repair` finds nothing to repair.
fn examine(volume: &Path, uuid: &str, context: &str) {
    let output = Command::new("blkid").args(["-p", "-o", "value", "-s", "UUID"]).arg(volume).output();
    let found = String::from_utf8_lossy(&output.expect("blkid is installed").stdout).trim().replace('-', "");
    assert_eq!(found, uuid, "{}; {context}", volume.display());
    let output = Command::new("xfs_repair").args(["-n", "-f"]).arg(volume).output().expect("xfs_repair is installed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {said}; {context}", volume.display());
}
