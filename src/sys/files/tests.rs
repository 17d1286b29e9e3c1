//! The machine of files on a real core, with the host's real file system below and the host's tools
//! as judges (xfs_repair, blkid).
//!
//! Deliberately absent: power failures. What the host makes durable is the host's own promise; which
//! order we ask for is tested on the simulated machine.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cores::executor::{CoreSpec, start};
use cores::rt;
use uuid::Uuid;

use super::{FilesRoot, FilesSys};
use crate::engine::volume;
use crate::error::{Failure, Fault, Refusal, Why};
use crate::limits::OPEN_AGAIN_AFTER_MS;
use crate::model::blank::ReadsZeroes;
use crate::model::device::{Candidate, DeviceNumber, DevicePath, Occupant};
use crate::model::dm::{Below, Dm, LinearLine, Role, Table};
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::model::name::Name;
use crate::shard::ops::format;
use crate::sys::{Folder, Opening, Sys, Target, Write, WriteData};
use crate::units::Sectors;
use crate::xfs::Log;

const POOL: PoolUuid = PoolUuid(Uuid::from_u128(1));
const FS: FsUuid = FsUuid(Uuid::from_u128(2));
const XFS: Uuid = Uuid::from_u128(0x0e5f_2ad7_6f0b_4d44_9d5c_4c1c_5bd4_4f3e);
const VOLUME: Dm = Dm::Thin(POOL, FS);
const MDV: Dm = Dm::Private(POOL, Role::Mdv);
const ID: ThinId = ThinId(5);
const SIZE: Sectors = Sectors(1 << 22);

/// Runs one process on the machine of this folder.
fn run<T: Send + 'static>(folder: &Path, work: impl AsyncFnOnce(FilesSys) -> T + Send + 'static) -> T {
    let root = FilesRoot::open(&folder.join("machine")).expect("ours");
    let core = start(CoreSpec { name: "files".to_owned(), cpu: None }, move || async move {
        work(FilesSys::new(root, None)).await
    });
    core.expect("io_uring").join().expect("no panic")
}

fn disk(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).expect("created").set_len(SIZE.offset()).expect("sized");
    path
}

async fn examine(sys: &FilesSys, path: &Path) -> Candidate {
    let path = DevicePath::try_from(path.to_str().expect("UTF-8")).expect("absolute");
    sys.examine(&path).await.expect("a file")
}

async fn open(sys: &FilesSys, path: &Path) -> DeviceNumber {
    let candidate = examine(sys, path).await;
    sys.open(&candidate, Opening::Member).await.expect("free");
    candidate.number
}

fn linear(below: Below, start: u64, length: u64) -> Table {
    Table::Linear(vec![LinearLine { length: Sectors(length), below, start: Sectors(start) }])
}

async fn set_up(sys: &FilesSys, path: &Path) {
    let device = Below::Device(open(sys, path).await);
    let pool = Table::ThinPool { length: Sectors(1 << 20), block: Sectors(2048), low_water: 1, features: Vec::new() };
    let layers = [
        (Dm::Private(POOL, Role::ThinMeta), linear(device, 8192, 8192)),
        (Dm::Private(POOL, Role::ThinData), linear(device, 16384, 1 << 20)),
        (MDV, linear(device, 2 << 20, 1 << 20)),
        (Dm::Private(POOL, Role::ThinPool), pool),
    ];
    for (dm, table) in layers {
        sys.activate(&[(dm, table)]).await.expect("what it needs is active");
    }
}

async fn make_volume(sys: &FilesSys, length: Sectors) -> Option<ReadsZeroes> {
    let blank = sys.thin_create(POOL, ID).await.expect("new");
    sys.activate(&[(VOLUME, Table::Thin { length, id: ID })]).await.expect("it exists");
    blank
}

async fn format_thin(sys: &FilesSys, length: Sectors, blank: Option<ReadsZeroes>) -> Result<(), Fault> {
    let shape = volume::thin(length, sys.block_sizes(VOLUME).await?).expect("a shape");
    format::make(sys, VOLUME, &shape, volume::log(&[], blank), XFS).await
}

async fn format_mdv(sys: &FilesSys) -> Result<(), Fault> {
    let shape = volume::metadata(Sectors(1 << 20), sys.block_sizes(MDV).await?).expect("a shape");
    format::make(sys, MDV, &shape, Log::Zeroed, XFS).await
}

fn bytes(target: Target, start: u64, value: u8, sectors: usize) -> Write {
    Write { target, start: Sectors(start), data: WriteData::Bytes(vec![value; sectors * 512]) }
}

fn why<T: std::fmt::Debug>(outcome: Result<T, Fault>) -> Why {
    outcome.expect_err("it must fail").why
}

fn name(text: &str) -> Name {
    Name::try_from(text).expect("a name")
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program is installed");
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A whole Stratis signature block.
fn signature() -> Vec<u8> {
    let mut block = vec![0; 512];
    block[4..20].copy_from_slice(b"!Stra0tis\x86\xff\x02^\x41rh");
    block[20..28].copy_from_slice(&SIZE.0.to_le_bytes());
    block[28] = 2;
    block[32..64].copy_from_slice(POOL.simple().as_bytes());
    block[64..96].copy_from_slice(POOL.simple().as_bytes());
    let checksum = crc32c::crc32c(&block[4..]).to_le_bytes();
    block[..4].copy_from_slice(&checksum);
    block
}

fn sectors_go_where_they_belong(folder: &Path) {
    let (one, other) = (disk(folder, "one"), disk(folder, "other"));
    let paths = (one.clone(), other.clone());
    run(folder, async move |sys| {
        let (one, other) = (open(&sys, &paths.0).await, open(&sys, &paths.1).await);
        let dm = Dm::Private(POOL, Role::OriginSub);
        let line = |device, start, length| LinearLine {
            length: Sectors(length),
            below: Below::Device(device),
            start: Sectors(start),
        };
        sys.activate(&[(dm, Table::Linear(vec![line(one, 100, 3), line(other, 7, 60)]))]).await.expect("free");
        let batch = vec![bytes(Target::Device(one), 1, 1, 1), bytes(Target::Dm(dm), 2, 2, 2)];
        assert_eq!(sys.write(batch).await, [Ok(()), Ok(())]);
        let targets = vec![Target::Dm(dm), Target::Device(one)];
        assert_eq!(sys.flush(targets).await, [Ok(()), Ok(())]);
        assert_eq!(sys.read(Target::Dm(dm), Sectors(2), Sectors(2)).await.as_deref(), Ok(&[2; 1024][..]));
        let zeroes = Write { target: Target::Dm(dm), start: Sectors(3), data: WriteData::Zeroes(Sectors(50)) };
        assert_eq!(sys.write(vec![zeroes]).await, [Ok(())]);
        let batch = vec![bytes(Target::Device(one), SIZE.0, 9, 1), bytes(Target::Device(other), 0, 3, 1)];
        let results = sys.write(batch).await;
        assert_eq!(results[0].clone().expect_err("behind the end").why, Why::Errno(libc::EIO));
        assert_eq!(results[1], Ok(()));
        sys.close(other, false).await;
        assert_eq!(why(sys.read(Target::Device(other), Sectors(0), Sectors(1)).await), Why::Errno(libc::EBADF));
    });
    let sector = |path: &Path, at: u64| {
        let mut sector = [0; 512];
        File::open(path).expect("there").read_exact_at(&mut sector, at * 512).expect("long enough");
        sector
    };
    assert_eq!(sector(&one, 1), [1; 512]);
    assert_eq!(sector(&one, 102), [2; 512]);
    assert_eq!(sector(&other, 7), [0; 512], "zeroed");
    assert_eq!(sector(&other, 0), [3; 512]);
    assert_eq!(fs::metadata(&one).expect("there").len(), SIZE.offset(), "it did not grow");
}

#[test]
fn sectors_go_where_they_belong_on_disk() {
    sectors_go_where_they_belong(tempfile::tempdir().expect("a folder").path());
}

#[test]
fn sectors_go_where_they_belong_in_memory() {
    sectors_go_where_they_belong(tempfile::tempdir_in("/dev/shm").expect("a folder").path());
}

#[test]
fn a_device_is_opened_by_one_daemon_and_only_as_it_was_examined() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = disk(folder.path(), "disk");
    run(folder.path(), async move |sys| {
        let candidate = examine(&sys, &path).await;
        let other = File::open(&path).expect("there");
        other.lock().expect("free");
        let taken = sys.open(&candidate, Opening::Look).await;
        assert!(matches!(taken, Err(Failure::Refused(Refusal::DeviceTaken { .. }))));
        other.unlock().expect("ours");
        File::options().write(true).open(&path).expect("there").set_len(512).expect("sized");
        let changed = sys.open(&candidate, Opening::Look).await;
        assert!(matches!(changed, Err(Failure::Refused(Refusal::DeviceChanged { .. }))));
    });
}

#[test]
fn a_lock_that_a_killed_process_still_holds_is_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = disk(folder.path(), "disk");
    run(folder.path(), async move |sys| {
        let candidate = examine(&sys, &path).await;
        // As the kernel has it that still writes for a process that is gone.
        let held = File::open(&path).expect("there");
        held.lock().expect("free");
        let opener = sys.clone();
        let opening = rt::spawn("open", async move { opener.open(&candidate, Opening::Look).await });
        rt::spawn("let go", async move {
            rt::sleep(Duration::from_millis(OPEN_AGAIN_AFTER_MS / 2)).await;
            drop(held);
        })
        .detach();
        opening.await.expect("no panic").expect("it is free in time");
    });
}

#[test]
fn remembered_devices_are_found_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let paths = ["kept", "forgotten", "gone"].map(|name| disk(folder.path(), name));
    let own = paths.clone();
    run(folder.path(), async move |sys| {
        for path in &own {
            let number = open(&sys, path).await;
            let block =
                Write { target: Target::Device(number), start: Sectors(1), data: WriteData::Bytes(signature()) };
            assert_eq!(sys.write(vec![block]).await, [Ok(())]);
            assert_eq!(sys.flush(vec![Target::Device(number)]).await, [Ok(())]);
            sys.close(number, path.ends_with("forgotten")).await;
        }
        assert_eq!(examine(&sys, &own[0]).await.occupant, Occupant::Stratis);
    });
    fs::remove_file(&paths[2]).expect("there");
    let kept = paths[0].clone();
    run(folder.path(), async move |sys| {
        let found = sys.discover().await.expect("a list");
        assert_eq!(found, [examine(&sys, &kept).await]);
    });
    let links = fs::read_dir(folder.path().join("machine/devices")).expect("a folder").count();
    assert_eq!(links, 1, "the link to what is gone was dropped");
}

#[test]
fn a_device_under_another_number_is_remembered_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = disk(folder.path(), "disk");
    let devices = folder.path().join("machine/devices");
    drop(FilesRoot::open(&folder.path().join("machine")).expect("new"));
    std::os::unix::fs::symlink(&path, devices.join("1-2")).expect("made");
    run(folder.path(), async move |sys| {
        let number = open(&sys, &path).await;
        let names = |()| fs::read_dir(&devices).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        assert_eq!(names(()).collect::<Vec<_>>(), [format!("{}-{}", number.0, number.1).as_str()]);
        sys.close(number, true).await;
        assert_eq!(names(()).count(), 0);
    });
}

fn a_volume_is_formatted_small_and_clean(folder: &Path) {
    let path = disk(folder, "disk");
    let length = Sectors(1 << 31); // 1 TiB
    run(folder, async move |sys| {
        set_up(&sys, &path).await;
        let blank = make_volume(&sys, length).await;
        assert!(blank.as_ref().is_some_and(|blank| blank.is_of(POOL, ID)));
        assert_eq!(sys.thin_used(POOL, FS).await.expect("active").0, 0);
        format_thin(&sys, length, blank).await.expect("the host has room");
        let used = sys.thin_used(POOL, FS).await.expect("active").0;
        assert!((1 << 17..1 << 20).contains(&used), "{used} bytes");
        assert_eq!(sys.read(Target::Dm(VOLUME), Sectors(0), Sectors(1)).await.expect("active")[..4], *b"XFSB");
        let behind = bytes(Target::Dm(VOLUME), length.0 - 1, 1, 2);
        assert_eq!(why(sys.write(vec![behind]).await.remove(0)), Why::Errno(libc::EIO));
        sys.deactivate(&[VOLUME]).await.expect("free");
        assert_eq!(why(format_thin(&sys, length, None).await), Why::Errno(libc::ENXIO));
    });
    let volume = folder.join("machine").join(POOL.simple()).join("thin/5");
    let volume = volume.to_str().expect("UTF-8");
    assert_eq!(output("blkid", &["-p", "-s", "UUID", "-o", "value", volume]).trim(), XFS.to_string());
    output("xfs_repair", &["-n", volume]);
    assert_eq!(fs::metadata(volume).expect("there").len(), 1 << 40);
}

#[test]
fn a_volume_is_formatted_small_and_clean_on_disk() {
    a_volume_is_formatted_small_and_clean(tempfile::tempdir().expect("a folder").path());
}

#[test]
fn a_volume_is_formatted_small_and_clean_in_memory() {
    a_volume_is_formatted_small_and_clean(tempfile::tempdir_in("/dev/shm").expect("a folder").path());
}

#[test]
fn a_volume_that_held_something_is_formatted_with_a_zeroed_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = disk(folder.path(), "disk");
    let volume = folder.path().join("machine").join(POOL.simple()).join("thin/5");
    let own = volume.clone();
    run(folder.path(), async move |sys| {
        set_up(&sys, &path).await;
        let length = Sectors(1 << 20);
        make_volume(&sys, length).await;
        fs::write(&own, vec![0xa5; 512 << 20]).expect("the host has room");
        format_thin(&sys, length, None).await.expect("the host has room");
    });
    output("xfs_repair", &["-n", volume.to_str().expect("UTF-8")]);
}

#[test]
fn volumes_are_made_once_kept_while_active_and_survive() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = disk(folder.path(), "disk");
    let own = path.clone();
    run(folder.path(), async move |sys| {
        assert_eq!(why(sys.thin_create(POOL, ID).await), Why::Errno(libc::ENXIO));
        set_up(&sys, &own).await;
        let thin = Table::Thin { length: Sectors(4096), id: ID };
        assert_eq!(why(sys.activate(&[(VOLUME, thin)]).await), Why::Errno(libc::ENODATA));
        make_volume(&sys, Sectors(4096)).await;
        assert_eq!(why(sys.thin_create(POOL, ID).await), Why::Errno(libc::EEXIST));
        assert_eq!(why(sys.thin_delete(POOL, ID).await), Why::Errno(libc::EBUSY));
        sys.thin_commit(POOL).await.expect("active");
    });
    run(folder.path(), async move |sys| {
        assert_eq!(sys.active(POOL).await.expect("a list"), [], "tables are gone, as after a reboot");
        set_up(&sys, &path).await;
        sys.thin_delete(POOL, ID).await.expect("there");
        assert_eq!(why(sys.thin_delete(POOL, ID).await), Why::Errno(libc::ENODATA));
    });
}

#[test]
fn a_volume_that_somebody_uses_stays_active() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = disk(folder.path(), "disk");
    let volume = folder.path().join("machine").join(POOL.simple()).join("thin/5");
    run(folder.path(), async move |sys| {
        set_up(&sys, &path).await;
        make_volume(&sys, Sectors(4096)).await;
        assert_eq!(sys.busy(VOLUME).await, Ok(false));
        let user = File::open(volume).expect("there");
        user.lock_shared().expect("free");
        assert_eq!(sys.busy(VOLUME).await, Ok(true));
        assert_eq!(why(sys.deactivate(&[VOLUME]).await), Why::Errno(libc::EBUSY));
        user.unlock().expect("ours");
        sys.deactivate(&[VOLUME]).await.expect("free");
        sys.deactivate(&[VOLUME]).await.expect("one that does not exist is fine");
    });
}

#[test]
fn records_are_written_listed_renamed_and_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = disk(folder.path(), "disk");
    let own = path.clone();
    run(folder.path(), async move |sys| {
        set_up(&sys, &own).await;
        format_mdv(&sys).await.expect("active");
        assert_eq!(why(sys.mdv_list(POOL, Folder::Intents).await), Why::Errno(libc::ENOENT), "not mounted");
        sys.mdv_mount(POOL).await.expect("formatted");
        assert_eq!(why(sys.deactivate(&[MDV]).await), Why::Errno(libc::EBUSY));
        assert_eq!(why(format_mdv(&sys).await), Why::Errno(libc::EBUSY), "mounted");
        sys.mdv_write(POOL, Folder::Filesystems, "b.temp", b"record").await.expect("mounted");
        sys.mdv_sync(POOL, Folder::Filesystems, "b.temp").await.expect("there");
        sys.mdv_rename(POOL, Folder::Filesystems, "b.temp", "b").await.expect("there");
        sys.mdv_write(POOL, Folder::Filesystems, "a", b"").await.expect("mounted");
        sys.mdv_sync_folder(POOL, Folder::Filesystems).await.expect("mounted");
        assert_eq!(sys.mdv_list(POOL, Folder::Filesystems).await.expect("mounted"), ["a", "b"]);
        for bad in ["", "..", "a/b", "../../stratisd.lock"] {
            assert_eq!(why(sys.mdv_write(POOL, Folder::Intents, bad, b"").await), Why::Errno(libc::EINVAL));
        }
    });
    run(folder.path(), async move |sys| {
        set_up(&sys, &path).await;
        sys.mdv_mount(POOL).await.expect("formatted");
        assert_eq!(sys.mdv_read(POOL, Folder::Filesystems, "b").await.expect("there"), b"record");
        sys.mdv_remove(POOL, Folder::Filesystems, "b").await.expect("there");
        sys.mdv_remove(POOL, Folder::Filesystems, "b").await.expect("one that does not exist is fine");
        sys.mdv_unmount(POOL).await.expect("mounted");
        format_mdv(&sys).await.expect("active");
        sys.mdv_mount(POOL).await.expect("formatted");
        assert_eq!(sys.mdv_list(POOL, Folder::Filesystems).await.expect("mounted"), Vec::<String>::new());
    });
}

#[test]
fn a_filesystem_has_one_path_that_follows_its_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = disk(folder.path(), "disk");
    let names = folder.path().join("machine/stratis");
    run(folder.path(), async move |sys| {
        set_up(&sys, &path).await;
        make_volume(&sys, Sectors(4096)).await;
        let announce = async |pool, fs| sys.announce((POOL, &name(pool)), (FS, &name(fs), ID)).await;
        announce("pool", "fs").await;
        let devnode = PathBuf::from(sys.devnode(&name("pool"), &name("fs")));
        assert_eq!(fs::metadata(&devnode).expect("it leads to the volume").len(), 4096 * 512);
        announce("pool", "fs").await;
        announce("other", "new").await;
        assert!(!names.join("pool").exists());
        assert_eq!(fs::metadata(names.join("other/new")).expect("it leads to the volume").len(), 4096 * 512);
        sys.deactivate(&[VOLUME]).await.expect("free");
        assert_eq!(fs::read_dir(&names).expect("a folder").count(), 0);
    });
}

#[test]
fn a_scrapped_pool_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = disk(folder.path(), "disk");
    let pool = folder.path().join("machine").join(POOL.simple());
    run(folder.path(), async move |sys| {
        set_up(&sys, &path).await;
        make_volume(&sys, Sectors(4096)).await;
        format_mdv(&sys).await.expect("active");
        assert!(pool.exists());
        sys.scrap(POOL).await.expect("ours");
        assert!(!pool.exists());
        sys.scrap(POOL).await.expect("one that is gone is fine");
    });
}
