//! Thin data that fill up where the pool has nothing left, under filesystems that are mounted: who needs a new block is
//! refused at once, what has its blocks goes on, and a further device brings everything back.
//!
//! The disks are of memory, so that filling one takes seconds. Deliberately absent: growth while there is room
//! (`extend`, `race`), and metadata that fill up (`metadata`).

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::guest::Guest;
use crate::guest::files::{self, Contents};
use crate::host::{SPEC, Spec};
use crate::metadata::{SMALL_MIB, another_daemon_gets_a_device, disks, expect_told, property};
use crate::scenario;
use crate::support::MIB;
use crate::support::client::Client;
use crate::trouble::calm_is_calm;

/// With memory for what its disks are given.
const MACHINE: Spec = Spec { disks: &[], limit_s: 240, memory_mib: 3_584, ..SPEC };

scenario!(
    /// Two mounted filesystems share what is left. Once nothing is, the one that is written meets ENOSPC and is not
    /// kept waiting; both can be read; another daemon sees the same; with a device more, both are written again.
    that_have_no_room_left_wait_for_a_device,
    MACHINE,
    |guest: &mut Guest| {
        let [own, calm, more] = disks(SMALL_MIB).map(|disk| disk.path());
        guest.start();
        let client = guest.client();
        client.create_pool("calm", &[calm]).done();
        let (_, (pool, _)) = client.create_pool("p", &[own]).done();
        let volumes = ["f", "g"].map(|name| Volume::new(&client, &pool, name));
        let kept = volumes.each_ref().map(|volume| volume.write("file"));
        files::drop_caches();

        let watch = guest.client();
        watch.subscribe();
        let refused = fill(&volumes[0].folder.join("large"));
        assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC), "{refused}");
        guest.until("the daemon has heard of it", |guest| guest.log().contains("now=out_of_data_space"));
        assert!(property(&client, "p", "NoAllocSpace").is_true());
        assert_eq!(property(&client, "p", "AvailableActions").text(), "fully_operational");
        expect_told(&watch, &pool, "NoAllocSpace");
        let refused = client.create_filesystems(&pool, &[("h", None, None)]).refused(&(false, Vec::new()));
        assert!(refused.contains("\"p\" is full"), "{refused}");
        assert_eq!(client.family("filesystem").len(), 2, "nothing is half made");
        volumes.iter().zip(&kept).for_each(|(volume, file)| file.check(&volume.folder));
        calm_is_calm(&client);

        another_daemon_gets_a_device(guest, &more, || true);
        let again = volumes.each_ref().map(|volume| volume.write("again"));
        files::drop_caches();
        for ((volume, kept), again) in volumes.iter().zip(&kept).zip(&again) {
            kept.check(&volume.folder);
            again.check(&volume.folder);
            files::unmount(&volume.folder);
            files::check_xfs(&volume.node);
        }
        guest.stop();
    }
);

/// A filesystem of the pool that is mounted, larger than the pool.
struct Volume {
    node: PathBuf,
    folder: PathBuf,
}

impl Volume {
    fn new(client: &Client, pool: &str, name: &str) -> Self {
        let size = (4 << 10) * MIB;
        let (_, made) = client.create_filesystems(pool, &[(name, Some(&size.to_string()), None)]).done();
        let node = files::node(client, &made[0].0);
        let folder = files::mount(&node, name);
        Self { node, folder }
    }

    /// Writes a file, and waits until it is on the disk.
    fn write(&self, name: &str) -> Contents {
        Contents::write(self.folder.join(name), 20 * MIB, 20)
    }
}

/// Writes a file past the page cache until that fails; with what.
fn fill(path: &Path) -> io::Error {
    let mut file = OpenOptions::new().write(true).create(true).custom_flags(libc::O_DIRECT).open(path).expect("a file");
    let length = usize::try_from(MIB).expect("a MiB fits");
    let buffer = vec![7; length + 4_096];
    let piece = &buffer[buffer.as_ptr().align_offset(4_096)..][..length];
    (0..).find_map(|_| file.write_all(piece).err()).expect("there is an end")
}
