//! A regular file that stands in for a device, looked at. Blocking; runs on a lane.
//!
//! Invariant: nothing is changed.
//!
//! Deliberately absent: who lives there (`occupant` asks libblkid), and reading Stratis metadata.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use crate::error::{Failure, Fault, Refusal};
use crate::model::device::{BlockSizes, Candidate, DeviceNumber, DevicePath, Occupant};
use crate::sys::occupant::occupant;
use crate::units::{SECTOR_BYTES, Sectors};

/// A file takes any multiple of a sector, and writes back pages; tearing is between sectors.
const BLOCKS: BlockSizes = BlockSizes { logical: 512, physical: 512 };

/// Looks at the file under a path.
pub(super) fn examine(path: &DevicePath) -> Result<Candidate, Failure> {
    let fault = |error: &io::Error| Failure::from(Fault::io("examine", path, error));
    let canonical = match path.as_path().canonicalize() {
        Ok(canonical) => canonical,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            return Err(Refusal::DeviceMissing(path.clone()).into());
        }
        Err(error) => return Err(fault(&error)),
    };
    // The kind is looked at before the file is opened: opening a pipe waits, opening a device acts.
    if !canonical.metadata().map_err(|error| fault(&error))?.is_file() {
        return Err(Refusal::DeviceKind(path.clone(), "regular file").into());
    }
    let kind = || Failure::from(Refusal::DeviceKind(path.clone(), "file with a UTF-8 path"));
    let canonical = DevicePath::try_from(canonical.to_str().ok_or_else(kind)?).map_err(|_| kind())?;
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(canonical.as_path());
    let file = file.map_err(|error| fault(&error))?;
    let (number, size) = identity(&file).map_err(|error| fault(&error))?;
    let occupant = if size == Sectors::ZERO { Occupant::Nobody } else { occupant(&file) };
    Ok(Candidate { path: canonical, number, size, blocks: BLOCKS, occupant, hardware: None })
}

/// The number and the size of an open file.
pub(super) fn identity(file: &File) -> io::Result<(DeviceNumber, Sectors)> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::from_raw_os_error(libc::ENOTBLK));
    }
    Ok((DeviceNumber(metadata.dev(), metadata.ino()), Sectors(metadata.size() / SECTOR_BYTES)))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    use super::*;

    const SIZE: u64 = 64 << 20;

    fn image(folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        File::create(&path).expect("created").set_len(SIZE).expect("sized");
        path
    }

    fn look(path: &Path) -> Result<Candidate, Failure> {
        examine(&DevicePath::try_from(path.to_str().expect("UTF-8")).expect("absolute"))
    }

    fn run(program: &str, arguments: &[&str], input: &str) {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the program is installed");
        io::Write::write_all(&mut child.stdin.take().expect("piped"), input.as_bytes()).expect("read by the child");
        assert!(child.wait().expect("ours").success(), "{program}");
    }

    #[test]
    fn filesystems_partition_tables_and_encrypted_volumes_are_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let cases: [(&str, &[&str], &str, &str); 4] = [
            ("mkfs.ext4", &["-q", "-F"], "", "a filesystem (ext4)"),
            ("sfdisk", &["-q"], "label: gpt\n,,\n", "a partition table (gpt)"),
            ("sfdisk", &["-q"], "label: dos\n,,\n", "a partition table (dos)"),
            (
                "cryptsetup",
                &["luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"],
                "secret",
                "an encrypted volume (crypto_LUKS)",
            ),
        ];
        for (program, arguments, input, expected) in cases {
            let path = image(folder.path(), expected);
            let arguments = [arguments, &[path.to_str().expect("UTF-8")]].concat();
            run(program, &arguments, input);
            let candidate = look(&path).expect("a file");
            assert_eq!(candidate.occupant, Occupant::Other(expected.to_owned()));
            assert_eq!(candidate.size.offset(), SIZE);
        }
    }

    #[test]
    fn two_signatures_are_more_than_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = image(folder.path(), "both");
        let text = path.to_str().expect("UTF-8");
        run("mkfs.ext4", &["-q", "-F", text], "");
        // The start of a ReiserFS superblock: journal at block 18, blocks of 4,096 bytes, its magic.
        let mut other = [0; 64];
        other[12] = 18;
        other[44..46].copy_from_slice(&4096_u16.to_le_bytes());
        other[52..61].copy_from_slice(b"ReIsEr2Fs");
        let file = OpenOptions::new().write(true).open(&path).expect("ours");
        std::os::unix::fs::FileExt::write_all_at(&file, &other, 64 << 10).expect("written");
        let candidate = look(&path).expect("a file");
        assert_eq!(candidate.occupant, Occupant::Other("more than one signature".to_owned()));
    }

    #[test]
    fn an_empty_file_is_nobody_s_whatever_its_size() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = image(folder.path(), "file");
        assert_eq!(look(&path).expect("a file").occupant, Occupant::Nobody);
        for size in [0, 100, 1000, 4096] {
            File::create(&path).expect("ours").set_len(size).expect("sized");
            let candidate = look(&path).expect("a file");
            assert_eq!((candidate.occupant, candidate.size), (Occupant::Nobody, Sectors(size / 512)));
        }
    }

    #[test]
    fn links_lead_to_the_file_and_other_kinds_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = image(folder.path(), "file");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("made");
        assert_eq!(look(&link).expect("a file"), look(&path).expect("a file"));
        assert!(matches!(look(folder.path()), Err(Failure::Refused(Refusal::DeviceKind(..)))));
        assert!(matches!(look(Path::new("/dev/null")), Err(Failure::Refused(Refusal::DeviceKind(..)))));
        for missing in [folder.path().join("nothing"), path.join("below")] {
            assert!(matches!(look(&missing), Err(Failure::Refused(Refusal::DeviceMissing(_)))));
        }
    }
}
