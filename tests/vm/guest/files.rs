//! Files on a pool's filesystems: mounted, filled with what a seed says, and looked at again.
//!
//! Invariant: `Contents` knows every byte it wrote without keeping it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::{run, udev};
use crate::support::MIB;
use crate::support::client::Client;
use crate::support::interface;

/// The dm device of a filesystem object, by the link in `/dev/mapper`, which may come later than the reply.
#[track_caller]
pub(crate) fn node(client: &Client, filesystem: &str) -> PathBuf {
    let get = |path: &str, family: &str, name: &str| {
        client.get(path, &interface(family, 9), name).expect("properties can be read").text().to_owned()
    };
    let pool = get(filesystem, "filesystem", "Pool");
    let (pool, own) = (get(&pool, "pool", "Uuid"), get(filesystem, "filesystem", "Uuid"));
    let simple = |uuid: &str| uuid.replace('-', "");
    linked(format!("/dev/mapper/stratis-1-{}-thin-fs-{}", simple(&pool), simple(&own)))
}

/// A path that udev makes, once it has.
#[track_caller]
pub(crate) fn linked(path: impl Into<PathBuf>) -> PathBuf {
    let path = path.into();
    if !path.exists() {
        udev::settle();
    }
    path
}

/// Mounts a device at `/mnt/<name>`.
#[track_caller]
pub(crate) fn mount(device: &Path, name: &str) -> PathBuf {
    let folder = Path::new("/mnt").join(name);
    fs::create_dir_all(&folder).expect("the guest's root is writable");
    run("mount", &["-t", "xfs", text(device), text(&folder)]);
    folder
}

/// Unmounts a folder.
#[track_caller]
pub(crate) fn unmount(folder: &Path) {
    run("umount", &[text(folder)]);
}

/// A file of pseudo-random bytes.
#[derive(Clone, Debug)]
pub(crate) struct Contents {
    path: PathBuf,
    bytes: u64,
    seed: u64,
}

impl Contents {
    /// Writes the file, and waits until it is on the disk.
    #[track_caller]
    pub(crate) fn write(path: PathBuf, bytes: u64, seed: u64) -> Self {
        let contents = Self { path, bytes, seed };
        contents.write_again();
        contents
    }

    /// A file that may be there already.
    pub(crate) fn known(path: PathBuf, bytes: u64, seed: u64) -> Self {
        Self { path, bytes, seed }
    }

    /// Writes the file, whatever it was, and waits until it is on the disk.
    #[track_caller]
    pub(crate) fn write_again(&self) {
        let mut file = File::create(&self.path).expect("a file can be made on a mounted filesystem");
        self.pieces(|piece| file.write_all(piece).expect("there is room, and no I/O error"));
        file.sync_all().expect("what was written reaches the disk");
    }

    /// Panics unless the file below this folder still is what was written; the page cache is not asked.
    #[track_caller]
    pub(crate) fn check(&self, folder: &Path) {
        let path = folder.join(self.path.file_name().expect("a file has a name"));
        let mut file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut read = vec![0; usize::try_from(MIB).expect("a MiB fits")];
        let mut at = 0;
        self.pieces(|piece| {
            let read = &mut read[..piece.len()];
            file.read_exact(read).unwrap_or_else(|error| panic!("{} at {at}: {error}", path.display()));
            assert!(read == piece, "{} is not what was written, in the MiB at {at}", path.display());
            at += piece.len();
        });
        assert_eq!(file.metadata().expect("an open file has a size").len(), self.bytes, "{}", path.display());
    }

    fn pieces(&self, mut visit: impl FnMut(&[u8])) {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut piece = vec![0; usize::try_from(MIB).expect("a MiB fits")];
        let mut left = self.bytes;
        while left > 0 {
            random.fill(&mut piece);
            let length = left.min(MIB);
            visit(&piece[..usize::try_from(length).expect("a MiB fits")]);
            left -= length;
        }
    }
}

/// Makes the next reads come from the disks.
pub(crate) fn drop_caches() {
    run("sync", &[]);
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root may drop caches");
}

/// Panics unless the unmounted filesystem on this device is whole.
#[track_caller]
pub(crate) fn check_xfs(device: &Path) {
    run("xfs_repair", &["-n", text(device)]);
}

/// A path as programs want it.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}
