//! Cookies: how udev tells that it has dealt with what we did to dm devices.
//!
//! A cookie is the key of a semaphore. Each ioctl that makes the kernel send an event counts it up and
//! sends the cookie along; udev's rules for dm devices end with counting it down. At zero, everything
//! was dealt with. One cookie serves a whole batch of ioctls.
//!
//! Invariant: before a semaphore exists, a note in a folder that is emptied by each boot names it, and a
//! semaphore goes before its note. So what a killed daemon leaves is found by the next one, by its own
//! word: a semaphore that no note names, or that has another id than noted, is somebody else's. A note without an
//! id is of a daemon that died about when it made the semaphore: then one that is not older than the note and that
//! nobody has counted in is ours. (Others count in theirs at once.)
//!
//! Deliberately absent: waiting without a limit, and who waits.

use std::cell::OnceCell;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use devicemapper_sys::{
    DM_COOKIE_MAGIC, DM_UDEV_DISABLE_DISK_RULES_FLAG, DM_UDEV_DISABLE_OTHER_RULES_FLAG,
    DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG, DM_UDEV_FLAGS_SHIFT, DM_UDEV_PRIMARY_SOURCE_FLAG,
};

use super::semaphore::{Semaphore, Waited};
use crate::model::dm::Dm;

/// Where the notes are: memory, and emptied by each boot.
const NOTES: &str = "/run/stratisd/cookies";
/// A running udevd listens here.
const UDEV: &str = "/run/udev/control";
/// Only root reads and writes notes.
const MODE: u32 = 0o600;

/// The key of a cookie, from the 16 bits that are free.
fn key(low: u16) -> u32 {
    DM_COOKIE_MAGIC << DM_UDEV_FLAGS_SHIFT | u32::from(low)
}

/// What udev is to do with an event of this device. Nobody else has business with private devices: they
/// are not looked into and get no links but the one in `/dev/mapper`.
fn flags(device: Dm) -> u32 {
    let private = match device {
        Dm::Private(..) => {
            DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG | DM_UDEV_DISABLE_DISK_RULES_FLAG | DM_UDEV_DISABLE_OTHER_RULES_FLAG
        }
        Dm::Thin(..) => 0,
    };
    // The rules take an event without this for one that somebody triggered by hand.
    DM_UDEV_PRIMARY_SOURCE_FLAG | private
}

/// What an ioctl is sent with: the flags, and the cookie where udev's answer is waited for.
pub(super) fn event(device: Dm, cookie: Option<&Cookie>) -> u32 {
    flags(device) << DM_UDEV_FLAGS_SHIFT | cookie.map_or(0, |cookie| u32::from(cookie.low))
}

/// What a swap of tables is sent with that nobody waits for: nothing where the device is private. What udev is to leave
/// alone of that it knows since the device came, and so it asks no program what the flags mean, for each event.
pub(super) fn swapped(device: Dm) -> u32 {
    match device {
        Dm::Private(..) => 0,
        Dm::Thin(..) => event(device, None),
    }
}

/// A cookie of a batch.
#[derive(Debug)]
pub(super) struct Cookie {
    low: u16,
    // The order of the fields is the order in which they go.
    semaphore: Semaphore,
    _note: Note,
}

impl Cookie {
    /// A cookie from random bytes, unless no udevd runs that would answer.
    fn new(random: [u8; 16]) -> Option<Self> {
        if !Path::new(UDEV).exists() {
            return None;
        }
        let cookie = Self::in_folder(Path::new(NOTES), random);
        cookie.inspect_err(|error| log::warn!("udev is not waited for: there is no cookie to be had: {error}")).ok()
    }

    fn in_folder(notes: &Path, random: [u8; 16]) -> io::Result<Self> {
        fs::create_dir_all(notes)?;
        let mut last = None;
        // Keys are few and everybody draws from the same: one in use is no reason to give up.
        for bytes in random.as_chunks().0 {
            // 0 stands for no cookie.
            let low = u16::from_le_bytes(*bytes).max(1);
            match Self::with_key(notes, low) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => last = Some(error),
                outcome => return outcome,
            }
        }
        Err(last.expect("there are eight pairs in sixteen bytes"))
    }

    fn with_key(notes: &Path, low: u16) -> io::Result<Self> {
        let note = Note::new(notes, key(low))?;
        let semaphore = Semaphore::create(key(low))?;
        note.id(&semaphore)?;
        Ok(Self { low, semaphore, _note: note })
    }

    /// The kernel is about to send an event with this cookie.
    pub(super) fn up(&self) -> io::Result<()> {
        self.semaphore.up()
    }

    /// It did not send it.
    pub(super) fn down(&self) -> io::Result<()> {
        self.semaphore.down()
    }

    /// Whether udev is going to answer to any event.
    fn is_awaited(&self) -> bool {
        !matches!(self.wait(Duration::ZERO), Ok(Waited::Done))
    }

    /// Waits, for so long at most, until udev has dealt with all of the events. Blocks.
    pub(super) fn wait(&self, longest: Duration) -> io::Result<Waited> {
        self.semaphore.wait(longest)
    }
}

/// A cookie that is made when udev's first answer is expected: a batch may turn out to change nothing.
#[derive(Debug)]
pub(super) struct LazyCookie {
    random: [u8; 16],
    made: OnceCell<Option<Cookie>>,
}

impl LazyCookie {
    /// None yet; it will be made from these random bytes.
    pub(super) const fn new(random: [u8; 16]) -> Self {
        Self { random, made: OnceCell::new() }
    }

    /// The cookie, unless there is none to be had.
    pub(super) fn made(&self) -> Option<&Cookie> {
        self.made.get_or_init(|| Cookie::new(self.random)).as_ref()
    }

    /// The cookie, if udev is going to answer to any event.
    pub(super) fn awaited(self) -> Option<Cookie> {
        self.made.into_inner().flatten().filter(Cookie::is_awaited)
    }
}

/// A note that names a semaphore; gone when it is dropped.
#[derive(Debug)]
struct Note(PathBuf);

impl Note {
    fn new(notes: &Path, key: u32) -> io::Result<Self> {
        let path = notes.join(format!("{key:08x}"));
        OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path)?;
        Ok(Self(path))
    }

    /// Notes the id of the semaphore.
    fn id(&self, semaphore: &Semaphore) -> io::Result<()> {
        OpenOptions::new().write(true).open(&self.0)?.write_all(semaphore.id().to_string().as_bytes())
    }

    /// The semaphore of this key, if the note is about it.
    fn semaphore(&self, key: u32) -> Option<Semaphore> {
        let said = fs::read_to_string(&self.0).ok()?;
        if said.is_empty() {
            let noted = fs::metadata(&self.0).and_then(|note| note.modified()).ok()?;
            return Semaphore::unused(key, noted);
        }
        said.parse().ok().and_then(|id| Semaphore::left(key, id))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            log::warn!("a note of a cookie stays (note={}): {error}", self.0.display());
        }
    }
}

/// Removes the semaphores that a dead daemon noted. Call it before this process makes any. One that stays
/// does no harm but to be there.
pub(super) fn clear() {
    match clear_in(Path::new(NOTES)) {
        Ok(0) => {}
        Ok(removed) => log::info!("semaphores of a daemon that died are removed (count={removed})"),
        Err(error) => log::warn!("semaphores of a daemon that died may stay: {NOTES} cannot be read: {error}"),
    }
}

fn clear_in(notes: &Path) -> io::Result<usize> {
    let entries = match fs::read_dir(notes) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    for entry in entries {
        let note = Note(entry?.path());
        let name = note.0.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let key = u32::from_str_radix(&name, 16).ok();
        if let Some(semaphore) = key.and_then(|key| note.semaphore(key)) {
            drop(semaphore);
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::model::dm::Role;
    use crate::model::ids::{FsUuid, PoolUuid};

    fn devices() -> [Dm; 2] {
        let pool = PoolUuid::from_random([1; 16]);
        [Dm::Private(pool, Role::Mdv), Dm::Thin(pool, FsUuid::from_random([2; 16]))]
    }

    /// Random bytes for a test of its own, so that tests side by side do not draw the same keys.
    fn random(test: u8) -> [u8; 16] {
        std::array::from_fn(|at| if at % 2 == 0 { u8::try_from(at).expect("small") } else { test })
    }

    fn left(folder: &Path) -> usize {
        fs::read_dir(folder).expect("the folder is there").count()
    }

    #[test]
    fn an_event_carries_flags_above_the_cookie() {
        assert_eq!(key(0x1234), 0x0d4d_1234);
        let folder = tempfile::tempdir().expect("a folder");
        let cookie = Cookie::in_folder(folder.path(), random(0x31)).expect("a cookie");
        let [private, thin] = devices();
        assert_eq!(event(private, None), 0x004e_0000);
        assert_eq!(event(thin, None), 0x0040_0000);
        assert_eq!((swapped(private), swapped(thin)), (0, 0x0040_0000));
        assert_eq!(event(private, Some(&cookie)), 0x004e_0000 | u32::from(cookie.low));
    }

    #[test]
    fn a_cookie_that_is_dropped_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let notes = folder.path().join("run/cookies");
        let cookie = Cookie::in_folder(&notes, random(0x32)).expect("a cookie");
        let (key, id) = (key(cookie.low), cookie.semaphore.id());
        assert_eq!(left(&notes), 1);
        drop(cookie);
        assert_eq!(left(&notes), 0);
        assert!(Semaphore::left(key, id).is_none());
    }

    #[test]
    fn a_key_that_is_taken_is_not_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = Cookie::in_folder(folder.path(), random(0x33)).expect("a cookie");
        let second = Cookie::in_folder(folder.path(), random(0x33)).expect("another key");
        assert_ne!(first.low, second.low);
        // A semaphore of somebody else, whom we have no note of.
        let other = tempfile::tempdir().expect("a folder");
        let third = Cookie::in_folder(other.path(), random(0x33)).expect("another key");
        assert!(![first.low, second.low].contains(&third.low));
        assert_eq!((left(folder.path()), left(other.path())), (2, 1));
    }

    #[test]
    fn what_a_dead_process_noted_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let notes = folder.path();
        assert_eq!(clear_in(&notes.join("nothing")).expect("no notes, nothing to do"), 0);
        let dead = Cookie::in_folder(notes, random(0x34)).expect("a cookie");
        let alive = Semaphore::create(0x0d4d_3435).expect("free");
        fs::write(notes.join("0d4d3435"), (alive.id() + 1).to_string()).expect("written");
        let counted = Semaphore::create(0x0d4d_3436).expect("free");
        counted.up().and_then(|()| counted.down()).expect("counts");
        fs::write(notes.join("0d4d3436"), "").expect("written");
        let older = Semaphore::create(0x0d4d_3437).expect("free");
        fs::write(notes.join("0d4d3437"), "").expect("written");
        let later = SystemTime::now() + Duration::from_secs(10);
        let note = OpenOptions::new().write(true).open(notes.join("0d4d3437")).expect("just written");
        note.set_modified(later).expect("it is ours");
        fs::write(notes.join("0d4d3438"), "").expect("written");
        let unnumbered = Semaphore::create(0x0d4d_3438).expect("free");
        let unnumbered_id = unnumbered.id();
        std::mem::forget(unnumbered);
        fs::write(notes.join("what is this"), "17").expect("written");
        let dead_key = key(dead.low);
        let dead_id = dead.semaphore.id();
        std::mem::forget(dead);
        assert_eq!(clear_in(notes).expect("readable"), 2);
        assert!(Semaphore::left(dead_key, dead_id).is_none());
        assert!(Semaphore::left(0x0d4d_3438, unnumbered_id).is_none());
        assert_eq!(left(notes), 0);
        for (semaphore, key) in [(&alive, 0x0d4d_3435), (&counted, 0x0d4d_3436), (&older, 0x0d4d_3437)] {
            assert_eq!(Semaphore::create(key).expect_err("it is there").raw_os_error(), Some(libc::EEXIST));
            assert_eq!(semaphore.wait(Duration::ZERO).expect("it works"), Waited::Done);
        }
    }
}
