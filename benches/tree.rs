//! What a thousand filesystems that appear at once cost the bus core: taken into the tree, and listed.
//!
//! Time is that of the thread, so what else runs on the machine counts little. Invariant: each round has a tree of its
//! own. Deliberately absent: a bus, and a failure because of a figure.

use std::fs;
use std::hint::black_box;
use std::rc::Rc;

use nix::time::{ClockId, clock_gettime};
use stratisd::bus::calls::Caller;
use stratisd::bus::listing::Listing;
use stratisd::bus::tree::Tree;
use stratisd::message::View;
use stratisd::model::filesystem::{FilesystemRecord, FilesystemView};
use stratisd::model::ids::{FsUuid, PoolUuid, ThinId};
use stratisd::model::name::Name;
use stratisd::model::pool::{Availability, MetadataVersion, PoolView};
use stratisd::units::{Bytes, Sectors};

#[global_allocator]
static MEMORY: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Objects that appear together.
const FILESYSTEMS: u32 = 1_000;
/// How often that is measured.
const ROUNDS: usize = 30;

fn main() {
    let mut all = Vec::new();
    for _ in 0..ROUNDS {
        all.push(round());
    }
    for (part, what) in ["taken in", "first list", "second list", "taken in again"].iter().enumerate() {
        let mut of_part: Vec<_> = all.iter().map(|figures| figures[part]).collect();
        let first = of_part[0];
        of_part.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        println!(
            "{what}: first {:.0} us with {} faults, best {:.0} us, median {:.0} us with {} faults",
            first.0,
            first.1,
            of_part[0].0,
            of_part[ROUNDS / 2].0,
            of_part[ROUNDS / 2].1
        );
    }
}

/// CPU time and page faults of each step.
fn round() -> [(f64, u64); 4] {
    let mut tree = Tree::new("3.9.2");
    let views = views(0);
    let taken = measured(|| drop(black_box(tree.apply(views))));
    let first = measured(|| assert!(list(&tree) > 0));
    let second = measured(|| assert!(list(&tree) > 0));
    let views = self::views(4096);
    let again = measured(|| drop(black_box(tree.apply(views))));
    [taken, first, second, again]
}

fn list(tree: &Tree) -> usize {
    let caller = Caller { sender: Rc::from(":1.7"), serial: 7, no_reply: false };
    let mut listing = Listing::new(1, &caller, tree);
    let mut bytes = 0;
    while let Some(excerpts) = listing.poll_excerpts() {
        bytes += excerpts.iter().flat_map(|excerpt| excerpt.slices()).map(<[u8]>::len).sum::<usize>();
    }
    bytes
}

fn measured(what: impl FnOnce()) -> (f64, u64) {
    let (faults, start) = (faults(), now());
    what();
    ((now() - start) * 1e6, self::faults() - faults)
}

fn now() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a thread has a clock");
    time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9
}

fn faults() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/stat").expect("a thread has a status");
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(7)).expect("a field").parse().expect("a number")
}

fn views(used: u128) -> Vec<View> {
    let pool = PoolUuid::from_random([1; 16]);
    let running = PoolView {
        uuid: pool,
        name: Name::try_from("p").expect("a name"),
        availability: Availability::Full,
        version: MetadataVersion::V2,
        has_cache: false,
        physical_size: Bytes(1 << 40),
        physical_used: Some(Bytes(1 << 39)),
        allocated: Bytes(2_684_354_560),
        no_alloc_space: false,
        fs_limit: 1_000,
        overprovisioning: true,
        encryption: None,
    };
    let filesystem = |number: u32| FilesystemView {
        pool,
        record: FilesystemRecord {
            name: Name::try_from(&*format!("f{number}")).expect("a name"),
            uuid: FsUuid::from_random((0x1234_5678_9abc_def0_u128 << 32 | u128::from(number)).to_be_bytes()),
            thin_id: ThinId(number),
            size: Sectors(1_048_576),
            created: 1_795_234_979 + u64::from(number),
            size_limit: None,
            origin: None,
            merge: false,
        },
        devnode: format!("/dev/stratis/p/f{number}"),
        used: Some(Bytes(5_242_880 + used)),
    };
    let filesystems = (0..FILESYSTEMS).map(|number| View::Filesystem(filesystem(number)));
    std::iter::once(View::Pool(running)).chain(filesystems).collect()
}
