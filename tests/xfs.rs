//! Filesystems made natively, held against `mkfs.xfs` and `xfs_repair`.
//!
//! Geometry: what `mkfs.xfs -N` prints for the same options. Bytes: what `mkfs.xfs` writes, but for
//! the times of three inodes. Then `xfs_repair -n` looks at ours. Images are sparse files; nothing
//! but loop mounts of them is done to this machine.
//!
//! `SEED=` replays the random shapes of a run.

#[path = "xfs/equal.rs"]
mod equal;
#[path = "xfs/image.rs"]
mod image;
#[path = "xfs/mount.rs"]
mod mount;
#[path = "xfs/mounted.rs"]
mod mounted;
#[path = "xfs/tools.rs"]
mod tools;
