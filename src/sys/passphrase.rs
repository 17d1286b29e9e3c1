//! A passphrase: how it is read from a client's descriptor, and where it is kept.
//!
//! Invariants: its bytes are in one place only, a page of their own that is neither swapped nor dumped, and
//! are overwritten before the page is given back. Reading takes what one `read` gives: whoever passes a pipe
//! keeps its other end open until it is answered, so there is no end to wait for. Nobody waits longer than
//! `PASSPHRASE_WAIT_MS`, and of threads that wait there are at most `PASSPHRASES_READ_MAX`.
//!
//! Deliberately absent: any way to show one. `Debug` says only that there is one.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use cores::lane::Lane;
use cores::rt;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Whence, lseek};
use zeroize::Zeroize;

use crate::error::{Failure, Fault, Refusal};
use crate::limits::{PASSPHRASE_BYTES_MAX, PASSPHRASE_WAIT_MS, PASSPHRASES_READ_MAX};
use crate::sys::jobs;

/// What is read, in the words of a fault.
const DESCRIPTOR: &str = "the descriptor of a passphrase";
const PATIENCE: Duration = Duration::from_millis(PASSPHRASE_WAIT_MS);
const MAPPED: NonZeroUsize = NonZeroUsize::new(PASSPHRASE_BYTES_MAX).expect("not zero");

/// Up to `PASSPHRASE_BYTES_MAX` secret bytes.
pub struct Passphrase {
    /// A page of our own, of which the first `PASSPHRASE_BYTES_MAX` bytes are used.
    page: NonNull<libc::c_void>,
    length: usize,
}

// SAFETY: the page belongs to this value alone, and is reached through it alone.
unsafe impl Send for Passphrase {}

impl Passphrase {
    /// One without bytes.
    fn empty() -> io::Result<Self> {
        // SAFETY: a new private mapping; no memory of ours is touched.
        let page = unsafe {
            mmap_anonymous(None, MAPPED, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)?
        };
        let passphrase = Self { page, length: 0 };
        // SAFETY: the page was just mapped, and is unmapped only when `passphrase` is dropped.
        unsafe {
            mlock(page, PASSPHRASE_BYTES_MAX)?;
            madvise(page, PASSPHRASE_BYTES_MAX, MmapAdvise::MADV_DONTDUMP)?;
        }
        Ok(passphrase)
    }

    fn room(&mut self) -> &mut [u8] {
        // SAFETY: the page is mapped for reading and writing, at least this long, zeroed by the kernel, and
        // borrowed through `self`.
        unsafe { slice::from_raw_parts_mut(self.page.cast().as_ptr(), PASSPHRASE_BYTES_MAX) }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: as above; `length` is at most `PASSPHRASE_BYTES_MAX`.
        unsafe { slice::from_raw_parts(self.page.cast().as_ptr(), self.length) }
    }
}

impl PartialEq for Passphrase {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Passphrase(..)")
    }
}

impl Drop for Passphrase {
    fn drop(&mut self) {
        self.room().zeroize();
        // SAFETY: the page was mapped by `empty`, and nothing refers to it any more.
        if let Err(errno) = unsafe { munmap(self.page, PASSPHRASE_BYTES_MAX) } {
            log::error!("a page that held a passphrase stays: {errno}");
        }
    }
}

/// The threads that read passphrases.
#[derive(Debug, Default)]
pub struct Readers {
    /// Each of them has a share, and so have we. A count that one core keeps could not follow a thread that is left
    /// to its read for good.
    shares: Arc<()>,
}

impl Readers {
    /// A share for one thread more.
    fn admit(&self) -> Result<Arc<()>, Refusal> {
        if Arc::strong_count(&self.shares) > PASSPHRASES_READ_MAX {
            return Err(Refusal::Full {
                what: "the list of passphrases that are being read",
                max: PASSPHRASES_READ_MAX,
            });
        }
        Ok(self.shares.clone())
    }
}

/// Reads a passphrase. What is wrong with the descriptor or its bytes is a refusal or a fault; either way
/// nothing has changed but what was read from it.
pub async fn read(readers: &Readers, descriptor: OwnedFd) -> Result<Passphrase, Failure> {
    let share = readers.admit()?;
    // A thread for this one read, which only a stranger can end: it holds up nobody else, and a read that
    // even `poll` could not foresee to block (a file on a hung file system) is left to it.
    let lane = Lane::new("passphrase", 1, 1, None);
    let job = move || {
        let _until_it_ends = share;
        take(descriptor.as_fd(), PATIENCE)
    };
    match rt::within(PATIENCE * 2, jobs::on(&lane, job)).await {
        Some(ended) => ended.unwrap_or_else(|why| Err(Fault::new("read", DESCRIPTOR, why).into())),
        None => Err(too_late(PATIENCE * 2)),
    }
}

fn too_late(waited: Duration) -> Failure {
    Refusal::PassphraseLate { seconds: waited.as_secs() }.into()
}

/// Waits for bytes, or the end, and reads once. Blocks.
fn take(descriptor: BorrowedFd<'_>, patience: Duration) -> Result<Passphrase, Failure> {
    let fault = |errno: Errno| Failure::from(Fault::errno("read", DESCRIPTOR, errno as i32));
    let flags = OFlag::from_bits_truncate(fcntl(descriptor, FcntlArg::F_GETFL).map_err(fault)?);
    if flags & OFlag::O_ACCMODE == OFlag::O_WRONLY {
        // Nothing would ever come.
        return Err(fault(Errno::EBADF));
    }
    let mut passphrase = Passphrase::empty().map_err(|error| Fault::io("lock memory for", "a passphrase", &error))?;
    let patience = PollTimeout::try_from(patience).expect("a few seconds");
    if ready(descriptor, patience).map_err(fault)?.is_empty() {
        return Err(too_late(PATIENCE));
    }
    passphrase.length = nix::unistd::read(descriptor, passphrase.room()).map_err(fault)?;
    if passphrase.length == PASSPHRASE_BYTES_MAX && has_more(descriptor).map_err(fault)? {
        return Err(Refusal::PassphraseLong { max: PASSPHRASE_BYTES_MAX }.into());
    }
    Ok(passphrase)
}

/// What there is to be heard of a descriptor; nothing when time is up.
fn ready(descriptor: BorrowedFd<'_>, patience: PollTimeout) -> nix::Result<PollFlags> {
    let mut one = [PollFd::new(descriptor, PollFlags::POLLIN)];
    poll(&mut one, patience)?;
    Ok(one[0].revents().unwrap_or(PollFlags::empty()))
}

/// Whether bytes follow those that were read. Without reading: only one read is ours.
fn has_more(descriptor: BorrowedFd<'_>) -> nix::Result<bool> {
    let status = fstat(descriptor)?;
    if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG {
        // A regular file is always ready, at its end too.
        return Ok(lseek(descriptor, 0, Whence::SeekCur)? < status.st_size);
    }
    Ok(ready(descriptor, PollTimeout::ZERO)?.contains(PollFlags::POLLIN))
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::{Seek, Write, pipe};

    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("it takes bytes");
        file.rewind().expect("it has a start");
        file
    }

    fn taken(from: impl AsFd) -> Result<Vec<u8>, Failure> {
        take(from.as_fd(), SHORT).map(|passphrase| passphrase.bytes().to_vec())
    }

    fn long() -> Result<Vec<u8>, Failure> {
        Err(Refusal::PassphraseLong { max: PASSPHRASE_BYTES_MAX }.into())
    }

    #[test]
    fn up_to_64_bytes_are_taken_as_they_are() {
        for length in [0, 1, 32, 63, 64, 65, 128] {
            let bytes: Vec<u8> = (0..length).map(|n| b'\n' ^ n).collect();
            let expected = if length <= 64 { Ok(bytes.clone()) } else { long() };
            assert_eq!(taken(file(&bytes)), expected, "a file of {length}");
            let (reader, mut writer) = pipe().expect("a pipe");
            writer.write_all(&bytes).expect("it takes bytes");
            if length > 0 {
                assert_eq!(taken(&reader), expected, "an open pipe with {length}");
            }
            let (reader, mut writer) = pipe().expect("a pipe");
            writer.write_all(&bytes).expect("it takes bytes");
            drop(writer);
            assert_eq!(taken(reader), expected, "a closed pipe with {length}");
        }
    }

    #[test]
    fn a_file_is_read_from_where_it_stands() {
        let mut file = file(b"skippedkept");
        file.seek(io::SeekFrom::Start(7)).expect("it is longer");
        assert_eq!(taken(file), Ok(b"kept".to_vec()));
    }

    #[test]
    fn what_never_comes_is_not_waited_for() {
        let (reader, writer) = pipe().expect("a pipe");
        assert!(matches!(taken(&reader), Err(Failure::Refused(Refusal::PassphraseLate { .. }))));
        assert!(matches!(taken(&writer), Err(Failure::Faulted(_))), "it can only be written to");
        let folder = File::open("/").expect("a folder");
        assert!(matches!(taken(folder), Err(Failure::Faulted(_))));
        let null = OpenOptions::new().write(true).open("/dev/null").expect("it is there");
        assert!(matches!(taken(null), Err(Failure::Faulted(_))));
    }

    #[test]
    fn it_is_shown_by_nothing_and_compared_by_value() {
        let of = |bytes: &[u8]| take(file(bytes).as_fd(), SHORT).expect("short");
        assert_eq!(of(b"secret"), of(b"secret"));
        assert_ne!(of(b"secret"), of(b"secre"));
        assert!(!format!("{:?}", of(b"secret")).contains("secret"));
    }
}
