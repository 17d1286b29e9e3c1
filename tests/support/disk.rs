//! Sparse files that stand for block devices, and fingerprints that tell whether one was touched.
//!
//! A fingerprint is the first 2 MiB (all Stratis metadata lies in the first MiB), the size, and the
//! allocated blocks: a write anywhere else allocates.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::MIB;

/// Makes a sparse file of `size` bytes.
pub(crate) fn make(path: &Path, size: u64) {
    let file = File::create(path).expect("a disk file can be created");
    file.set_len(size).expect("a sparse file can be made as large as asked");
}

/// The first `count` bytes.
pub(crate) fn head(path: &Path, count: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path)
        .expect("the disk file exists")
        .take(count)
        .read_to_end(&mut bytes)
        .expect("the disk file can be read");
    bytes
}

/// Whether nothing was ever left on it: the first 2 MiB are zero.
pub(crate) fn is_blank(path: &Path) -> bool {
    head(path, 2 * MIB).iter().all(|byte| *byte == 0)
}

/// What can be seen of a file from outside.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Fingerprint {
    size: u64,
    blocks: u64,
    head: u64,
}

/// The fingerprint of one file.
pub(crate) fn fingerprint(path: &Path) -> Fingerprint {
    let metadata = fs::metadata(path).expect("the disk file exists");
    let mut hasher = DefaultHasher::new();
    head(path, 2 * MIB).hash(&mut hasher);
    Fingerprint { size: metadata.len(), blocks: metadata.blocks(), head: hasher.finish() }
}

/// Fingerprints of all regular files below a folder, targets of links, and folders, by path.
pub(crate) fn survey(folder: &Path) -> BTreeMap<String, Option<Fingerprint>> {
    let mut found = BTreeMap::new();
    walk(folder, &mut |path| {
        let kind = fs::symlink_metadata(path).expect("what was listed exists").file_type();
        let name = if kind.is_symlink() {
            let target = fs::read_link(path).expect("a link has a target");
            format!("{} -> {}", path.display(), target.display())
        } else {
            path.display().to_string()
        };
        found.insert(name, kind.is_file().then(|| fingerprint(path)));
    });
    found
}

/// Calls `visit` with everything below a folder; links are not followed.
pub(crate) fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let entry = entry.expect("a folder can be listed");
        visit(&entry.path());
        if entry.file_type().expect("the type of an entry is known").is_dir() {
            walk(&entry.path(), visit);
        }
    }
}
