//! Many small files of one folder, read with a few system calls. Blocking; runs on a lane.
//!
//! The kernel is asked at once to open and to read many of them (a ring of io_uring that lives as long as the call), so
//! their inodes and contents come from the disk side by side, and nobody goes in and out of the kernel for each. The
//! next ones use the memory of those before them, because fresh memory costs more than what is read into it.
//!
//! Invariant: what is given of a file is all of it. Deliberately absent: files that are long, errors, and kernels
//! before 5.19: of these nothing is given, and the caller reads one after the other, and finds out what is wrong.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::types::{DestinationSlot, Fd, Fixed};
use io_uring::{IoUring, opcode, squeue};

use crate::limits::BULK_FILES_AT_ONCE;

/// Marks the completion of an opening; that of a reading has the file's place.
const OPENED: u64 = u64::MAX;

/// What there was to be had of each file, of those that have less than `room` bytes (at least one).
pub fn read(folder: &File, files: &[String], room: usize) -> Vec<Option<Vec<u8>>> {
    together(folder, files, room).unwrap_or_else(|error| {
        log::info!("files are read one after the other: {error}");
        vec![None; files.len()]
    })
}

fn together(folder: &File, files: &[String], room: usize) -> io::Result<Vec<Option<Vec<u8>>>> {
    let batch = files.len().min(BULK_FILES_AT_ONCE);
    let count = u32::try_from(batch).map_err(io::Error::other)?;
    let mut ring = IoUring::new((2 * count).max(1))?;
    ring.submitter().register_files_sparse(count)?;
    let mut buffers = vec![0; batch * room];
    let mut all = Vec::with_capacity(files.len());
    for files in files.chunks(BULK_FILES_AT_ONCE) {
        let names = files.iter().map(|file| CString::new(file.as_str())).collect::<Result<Vec<CString>, _>>()?;
        let lengths = match ask(&mut ring, folder, &names, &mut buffers, room) {
            Ok(lengths) => lengths,
            Err(error) => {
                std::mem::forget((names, buffers));
                return Err(error);
            }
        };
        // What fills its room may go on.
        let whole = |length: i32| usize::try_from(length).ok().filter(|length| *length < room);
        let contents = lengths.into_iter().zip(buffers.chunks_exact(room));
        all.extend(contents.map(|(length, buffer)| whole(length).map(|length| buffer[..length].to_vec())));
    }
    Ok(all)
}

/// Opens and reads each of some files; gives the kernel's results of the latter. After an error the kernel may still
/// use names and buffers, which must not be freed then. A file that replaces another in its slot closes that.
fn ask(ring: &mut IoUring, folder: &File, names: &[CString], buffers: &mut [u8], room: usize) -> io::Result<Vec<i32>> {
    let length = u32::try_from(room).map_err(io::Error::other)?;
    for (place, (name, buffer)) in (0..).zip(names.iter().zip(buffers.chunks_exact_mut(room))) {
        let slot = DestinationSlot::try_from_slot_target(place).expect("there are far fewer");
        let open = opcode::OpenAt::new(Fd(folder.as_raw_fd()), name.as_ptr()).file_index(Some(slot));
        let open = open.flags(libc::O_RDONLY).build().flags(squeue::Flags::IO_LINK).user_data(OPENED);
        let read = opcode::Read::new(Fixed(place), buffer.as_mut_ptr(), length).build().user_data(place.into());
        // SAFETY: folder, name and buffer stay where they are until both are complete: all completions are waited for
        // below, and where that is not possible the caller never frees names and buffers.
        unsafe { ring.submission().push_multiple(&[open, read]) }.map_err(io::Error::other)?;
    }
    complete(ring, names.len())
}

/// Waits until every file is opened and read; gives the kernel's results of the latter.
fn complete(ring: &mut IoUring, count: usize) -> io::Result<Vec<i32>> {
    let mut lengths = vec![-1; count];
    let mut left = 2 * count;
    while left > 0 {
        match ring.submit_and_wait(left) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(_) | Err(_) => {}
        }
        for completion in ring.completion() {
            left -= 1;
            if let Some(length) = usize::try_from(completion.user_data()).ok().and_then(|place| lengths.get_mut(place))
            {
                *length = completion.result();
            }
        }
    }
    Ok(lengths)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ROOM: usize = 1_024;

    #[test]
    fn small_files_are_given_whole_and_others_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut files: Vec<String> = (0..300).map(|number| format!("f{number}")).collect();
        for file in &files {
            fs::write(folder.path().join(file), file.repeat(3)).expect("written");
        }
        fs::write(folder.path().join("empty"), "").expect("written");
        fs::write(folder.path().join("full"), vec![7; ROOM]).expect("written");
        fs::create_dir(folder.path().join("folder")).expect("made");
        files.extend(["empty", "full", "folder", "missing", "a\0b"].map(str::to_owned));
        let open = File::open(folder.path()).expect("it is there");
        assert_eq!(read(&open, &files, ROOM), vec![None; files.len()], "a name that is none spoils all");
        files.pop();
        let read = read(&open, &files, ROOM);
        for (file, read) in files.iter().zip(&read[..300]) {
            assert_eq!(read.as_deref(), Some(file.repeat(3).as_bytes()), "{file}");
        }
        assert_eq!(read[300..], [Some(Vec::new()), None, None, None]);
    }
}
