//! Thin metadata that run low grow in time; and when nothing is left for them, what becomes of their pool.
//!
//! Volumes that no record names are made behind the daemon's back, because each takes a block of metadata and none of
//! data. Deliberately absent: metadata that are damaged, see `trouble`.

use std::thread;
use std::time::{Duration, Instant};

use stratisd::model::dm::{Dm, Role};
use stratisd::model::ids::{PoolUuid, ThinId};
use stratisd::sys::Sys;

use crate::dm::on_machine;
use crate::guest::files::{self, Contents};
use crate::guest::{Guest, dm, try_run};
use crate::host::{SPEC, Spec};
use crate::limit::Pool;
use crate::scenario;
use crate::support::daemon::PATIENCE;
use crate::support::{MIB, interface};

/// The first number of a volume that is made behind the daemon's back.
const FIRST: u32 = 1 << 20;
/// What a pool of a GiB has for metadata at first, in blocks of 4 KiB; and what it gets when it runs low.
const AT_FIRST: u64 = 1_024;
const DOUBLED: u64 = 2 * AT_FIRST;

scenario!(
    /// It doubles; what is left is used; then the pool takes no more changes, can be read and stopped; and once it has
    /// more devices it works as ever.
    thin_metadata_grow_until_nothing_is_left,
    Spec { disks: &["1G", "2G"], limit_s: 120, ..SPEC },
    |guest: &mut Guest| {
        guest.start();
        let client = guest.client();
        let disks = guest.disks();
        let (_, (path, _)) = client.create_pool("p", &disks[..1]).done();
        let filesystem = client.make_filesystem(&path, "f");
        let folder = files::mount(&files::node(&client, &filesystem), "f");
        let file = Contents::write(folder.join("file"), 5 * MIB, 1);
        let pool = Pool::found(&client);
        assert_eq!(pool.meta(), (AT_FIRST, AT_FIRST));

        let name = pool.private("thinpool-pool");
        let mut volumes = Volumes { pool: name.parse::<Dm>().expect("one of ours").pool(), next: FIRST };
        let (used, total) = volumes.used();
        volumes.make(total - 250 - used);
        wait("it has doubled", || pool.meta() == (DOUBLED, DOUBLED));
        assert_eq!(action(guest), "fully_operational");

        volumes.make(DOUBLED);
        wait("all that is left was taken", || pool.meta().0 > DOUBLED);
        volumes.make(DOUBLED);
        println!("metadata: {} blocks, {} volumes", pool.meta().0, volumes.next - FIRST);
        // Whoever writes to a new place finds that there is no metadata for it.
        let (_, said) = try_run("dd", &["if=/dev/zero", "of=/mnt/f/more", "bs=1M", "count=60", "oflag=direct"]);
        println!("metadata: {said}");
        wait("it takes no more changes", || action(guest) == "no_pool_changes");
        let refused = client.create_filesystems(&path, &[("g", None, None)]).refused(&(false, Vec::new()));
        assert!(refused.contains("no_pool_changes"), "{refused}");
        files::drop_caches();
        file.check(&folder);
        files::unmount(&folder);
        assert!(client.stop_pool("p", "name").done().0);

        client.start_pool("p", "name").done();
        let pool = Pool::found(&client);
        let before = pool.meta().0;
        client.give_devices(&pool.path, ("AddDataDevs", 9), &disks[1..]).done();
        wait("it grows again", || pool.meta().0 >= 2 * before);
        assert_eq!(action(guest), "fully_operational");
        assert_eq!(volumes.make(1), 1);
        let (path, _) = client.family("filesystem").into_iter().next().expect("it is there");
        let device = files::node(&client, &path);
        let folder = files::mount(&device, "f");
        file.check(&folder);
        Contents::write(folder.join("more"), 20 * MIB, 2).check(&folder);
        files::unmount(&folder);
        files::check_xfs(&device);
        dm::expect_settled();
        guest.stop();
    }
);

/// What may be done with the only pool.
fn action(guest: &Guest) -> String {
    let client = guest.client();
    let path = Pool::found(&client).path;
    client.get(&path, &interface("pool", 9), "AvailableActions").expect("a property").text().to_owned()
}

#[track_caller]
fn wait(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "within {PATIENCE:?}: {what}; {:#?}", dm::tables());
        thread::sleep(Duration::from_millis(20));
    }
}

/// Volumes that take metadata.
struct Volumes {
    pool: PoolUuid,
    next: u32,
}

impl Volumes {
    /// Makes more, until that cannot be; how many.
    fn make(&mut self, count: u64) -> u64 {
        let (pool, first) = (self.pool, self.next);
        let made = on_machine(move |sys| async move {
            for made in 0..u32::try_from(count).expect("a small number") {
                if sys.thin_create(pool, ThinId(first + made)).await.is_err() {
                    return made;
                }
            }
            u32::try_from(count).expect("a small number")
        });
        self.next += made;
        made.into()
    }

    /// Blocks of metadata that are used, and all.
    fn used(&self) -> (u64, u64) {
        let status = dm::status(&Dm::Private(self.pool, Role::ThinPool).to_string());
        let (used, total) = status.split_ascii_whitespace().nth(4).and_then(|word| word.split_once('/')).expect("two");
        let number = |text: &str| text.parse::<u64>().expect("a number");
        (number(used), number(total))
    }
}
