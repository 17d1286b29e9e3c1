//! Growing an XFS on a thin volume that has become larger, through whatever mounts there are of it.
//!
//! These call the machine (`KernelSys`) themselves, beside a daemon that has made pool and filesystem.
//! Deliberately absent: when a filesystem is to grow (see `fsgrow`).

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use stratisd::model::dm::Dm;
use stratisd::sys::{Growth, Sys};
use stratisd::units::Bytes;

use crate::dm::on_machine;
use crate::guest::elsewhere::Elsewhere;
use crate::guest::files::{self, Contents, text};
use crate::guest::{Guest, run, state};
use crate::host::{SPEC, Spec};
use crate::scenario;
use crate::support::MIB;

const TIB: u128 = 1 << 40;
/// Not a multiple of what a thin pool hands out, nor of an allocation group.
const ODD: u128 = 3 * TIB + 4096 * 1001;

scenario!(
    /// Files stay as they are, whichever mount is taken; what is mounted nowhere stays as it is.
    a_mounted_filesystem_grows_with_its_volume,
    Spec { disks: &["10G"], ..SPEC },
    |guest: &mut Guest| {
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        let (_, made) = client.create_filesystems(&pool, &[("f", None, None)]).done();
        let volume = Volume(files::node(&client, &made[0].0));

        volume.resize(2 * TIB);
        assert_eq!(volume.grow(), Growth::NotMounted);

        let folder = files::mount(&volume.0, "a b\\c");
        let all = contents(&folder);
        assert_eq!(volume.grow(), Growth::Mounted(Bytes(2 * TIB)));
        assert_eq!(volume.grow(), Growth::Mounted(Bytes(2 * TIB)), "there is nothing to do");
        let size = statvfs(&folder).expect("it is mounted");
        assert!(u128::from(size.blocks()) * u128::from(size.fragment_size()) > TIB * 3 / 2, "the user sees it");

        volume.resize(ODD);
        hidden_and_read_only_mounts_are_passed_over(&volume, &folder);
        all.iter().for_each(|one| one.check(&folder));
        files::unmount(&folder);
        files::check_xfs(&volume.0);

        volume.resize(4 * TIB);
        a_mount_of_somebody_else_is_enough(&volume);
        assert_eq!(volume.grow(), Growth::NotMounted);
        files::check_xfs(&volume.0);
        let folder = files::mount(&volume.0, "f");
        all.iter().for_each(|one| one.check(&folder));
        files::unmount(&folder);
        state::expect_no_io_error();
        guest.stop();
    }
);

/// A thin volume, by its node.
struct Volume(PathBuf);

impl Volume {
    /// Gives it another length, as the daemon does when it grows one.
    fn resize(&self, bytes: u128) {
        let name = text(&self.0);
        let table = run("dmsetup", &["table", name]);
        let [_, _, target, pool, id] = table.split_whitespace().collect::<Vec<_>>().try_into().expect("five words");
        let table = format!("0 {} {target} {pool} {id}", bytes / 512);
        run("dmsetup", &["reload", name, "--table", &table]);
        run("dmsetup", &["resume", name]);
    }

    fn grow(&self) -> Growth {
        let device: Dm = self.0.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("it is one of ours");
        on_machine(move |sys| async move { sys.grow_xfs(device).await }).expect("it can be asked")
    }
}

/// A file of a few MiB, and many small ones.
fn contents(folder: &Path) -> Vec<Contents> {
    let small = (0..200).map(|seed| Contents::write(folder.join(seed.to_string()), seed * 61, seed));
    small.chain([Contents::write(folder.join("large"), 20 * MIB + 1, 1000)]).collect()
}

/// The first mount is covered by something else, the next refuses, the last one serves.
fn hidden_and_read_only_mounts_are_passed_over(volume: &Volume, folder: &Path) {
    let [reading, writing] = ["/mnt/reading", "/mnt/writing"];
    for other in [reading, writing] {
        fs::create_dir_all(other).expect("the guest's root is writable");
        run("mount", &["--bind", text(folder), other]);
        // What is mounted over the first would be mounted over these as well.
        run("mount", &["--make-private", other]);
    }
    run("mount", &["-o", "remount,bind,ro", reading]);
    run("mount", &["-t", "tmpfs", "cover", text(folder)]);
    // A last group that would be too small is left out.
    let Growth::Mounted(Bytes(size)) = volume.grow() else { panic!("it is mounted") };
    assert!((3 * TIB..=ODD).contains(&size) && size % 4096 == 0, "{size}");
    for other in [text(folder), reading, writing] {
        run("umount", &[other]);
    }
}

/// Mounted only where this process does not see it, and then nowhere again.
fn a_mount_of_somebody_else_is_enough(volume: &Volume) {
    let other = Elsewhere::mount(&volume.0);
    assert_eq!(volume.grow(), Growth::Mounted(Bytes(4 * TIB)));
    other.unmount();
}
