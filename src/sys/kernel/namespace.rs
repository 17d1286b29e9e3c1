//! What the process needs on a real machine before it has threads: root, device-mapper,
//! a mount namespace of its own with a folder for metadata volumes, and the process keyring.
//!
//! Threads inherit namespace and keyring, so both are made while there is one thread. Mounts of the
//! host are seen in the namespace, ours are not seen on the host, and they go with the last process
//! in the namespace, however it ends.
//!
//! Invariant: after `prepare` nothing that is mounted below `MOUNTS` is another daemon's.
//!
//! Deliberately absent: undoing. The process ends when one of these steps fails.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process;

use devicemapper::DM;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use super::{dm, thin_meta};
use crate::error::{Fault, Why};
use crate::limits::STALE_MOUNTS_MAX;
use crate::sys::volume::make_folder;

/// What a daemon keeps while it runs.
const RUN: &str = "/run/stratisd";
/// Where metadata volumes are mounted.
pub(super) const MOUNTS: &str = "/run/stratisd/ns_mounts";
/// The tmpfs there holds mount points only.
const MOUNTS_OPTIONS: &str = "size=1M,mode=0700";
/// The first version of device-mapper's interface that raises events for one poll of all devices.
const DM_VERSION_MIN: (u32, u32) = (4, 37);

/// `keyctl` operation: the id of a keyring, made if it is missing.
const KEYCTL_GET_KEYRING_ID: libc::c_long = 0;
/// The keyring of the process, shared by the threads that it starts afterwards.
const KEY_SPEC_PROCESS_KEYRING: libc::c_long = -2;

/// Prepares the process for real devices. Call it before any thread exists.
///
/// # Errors
/// What is missing.
pub fn prepare() -> Result<(), Fault> {
    let user = geteuid();
    if !user.is_root() {
        let why = Why::Data("only root may (to try the daemon: --files DIR, or --sim)");
        return Err(Fault::new("work with block devices as user", user, why));
    }
    check_dm()?;
    take_namespace()?;
    make_keyring();
    dm::clear_cookies();
    thin_meta::look_for_programs();
    Ok(())
}

fn check_dm() -> Result<(), Fault> {
    let missing = |error| Fault::io("open", "/dev/mapper/control (is the module dm_mod loaded?)", &error);
    File::open("/dev/mapper/control").map_err(missing)?;
    let version = DM::new().and_then(|dm| dm.version()).map_err(|error| {
        log::error!("device-mapper does not say its version: {error}");
        Fault::new("use", "device-mapper", Why::Data("it does not say its version"))
    });
    let (major, minor, patch) = version?;
    if (major, minor) < DM_VERSION_MIN {
        let subject = format!("device-mapper {major}.{minor}.{patch}");
        return Err(Fault::new("use", subject, Why::Data("version 4.37 is the oldest that will do")));
    }
    Ok(())
}

/// Takes a mount namespace, and in it makes an empty `MOUNTS`.
fn take_namespace() -> Result<(), Fault> {
    let fault =
        |doing: &'static str, subject: &'static str| move |errno: Errno| Fault::errno(doing, subject, errno as i32);
    let make = |folder: &'static str| {
        make_folder(Path::new(folder)).map_err(|error| Fault::io("create folder", folder, &error))
    };
    // In an initial RAM disk the process is everything there is: what it mounts is for all.
    let alone = process::id() == 1;
    if !alone {
        unshare(CloneFlags::CLONE_NEWNS).map_err(fault("take", "a mount namespace"))?;
        change_propagation("/").map_err(fault("keep from the host what is mounted below", "/"))?;
    }
    make(RUN)?;
    make(MOUNTS)?;
    unmount_stale().map_err(fault("unmount what an older daemon left on", MOUNTS))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("stratisd"), MOUNTS, Some("tmpfs"), flags, Some(MOUNTS_OPTIONS))
        .map_err(fault("mount a tmpfs on", MOUNTS))?;
    if alone {
        change_propagation(MOUNTS).map_err(fault("keep from others what is mounted below", MOUNTS))?;
    }
    Ok(())
}

/// From here on mounts come in and do not go out.
fn change_propagation(path: &str) -> nix::Result<()> {
    mount(None::<&str>, path, None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
}

/// Takes away mounts on `MOUNTS` itself, with all below: a daemon without a namespace of its own left
/// them, or one that is still going and has its own view of them.
fn unmount_stale() -> nix::Result<()> {
    for _ in 0..STALE_MOUNTS_MAX {
        match umount2(MOUNTS, MntFlags::MNT_DETACH) {
            Ok(()) => log::info!("what was mounted on {MOUNTS} is unmounted"),
            Err(Errno::EINVAL) => return Ok(()), // It is no mount point.
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EBUSY)
}

/// Makes the process keyring. A kernel without keyrings runs pools that need no keys.
fn make_keyring() {
    const CREATE: libc::c_long = 1;
    // SAFETY: this operation of keyctl takes two integers and touches no memory of ours.
    let id = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_PROCESS_KEYRING, CREATE) };
    if id < 0 {
        log::warn!("there is no process keyring, encrypted pools cannot be used: {}", io::Error::last_os_error());
    }
}
