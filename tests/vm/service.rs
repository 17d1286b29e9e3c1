//! The unit that is shipped, under systemd itself: it starts the daemon, starts it again, and gets in the way of
//! nothing that the daemon asks of the kernel.
//!
//! Invariant: a scenario is skipped aloud where systemd is not installed. Deliberately absent: the boot of a machine
//! with systemd, and what udev's rules do, which `udev` and `links` look at.

use std::fs;
use std::path::Path;

use crate::guest::files::{self, Contents};
use crate::guest::systemd::{SYSTEMD, Systemd};
use crate::guest::{Guest, dm};
use crate::halves;
use crate::host::{self, SPEC, Spec};
use crate::support::{MIB, NAME};

/// What the kernel calls the policy of threads that go before all others, and of ordinary ones.
const RR: i32 = 2;
const ORDINARY: i32 = 0;

halves!(
    /// A start, a kill, an orderly end; and a start in a share of the CPU that an administrator has set.
    the_unit_is_one_for_systemd,
    |module| {
        if Path::new(SYSTEMD).exists() {
            host::run(module, &Spec { disks: &["4G"], ..SPEC });
        } else {
            println!("SKIPPED the unit under systemd: {SYSTEMD} is not there");
        }
    },
    |guest: &mut Guest| {
        let systemd = Systemd::boot(guest);
        systemd.order(&["start"]);
        assert!(guest.client().has_owner(NAME), "it is started once it has its name");
        guest.until("all go first", |_| all_are(&scheduling(&systemd, "events"), &[(RR, 0)]));
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        let filesystem = client.make_filesystem(&pool, "f");
        let folder = files::mount(&files::node(&client, &filesystem), "f");
        let contents = Contents::write(folder.join("file"), 8 * MIB, 1);
        let devices = dm::names();

        let first = systemd.daemon();
        systemd.order(&["kill", "--signal", "KILL"]);
        guest.until("systemd starts it again", |_| systemd.property("NRestarts") == "1");
        guest.until("it is up again", |_| systemd.property("ActiveState") == "active");
        assert_ne!(systemd.daemon(), first);
        let client = guest.client();
        guest.until("its pool is there", |_| client.family("filesystem").len() == 1);
        assert_eq!(dm::names(), devices, "it took over what was there");
        contents.check(&folder);
        // A step of its own, and not only what was there.
        let (pool, _) = client.family("pool").pop_first().expect("it is there");
        client.make_filesystem(&pool, "g");
        let devices = dm::names();

        systemd.order(&["stop"]);
        assert_eq!(systemd.property("Result"), "success", "{}", systemd.said());
        assert_eq!(dm::names(), devices, "pools stay as they are");

        // With groups of threads the kernel may refuse that any goes first; then they are ahead at least.
        systemd.set("CPUWeight=200");
        systemd.order(&["start"]);
        guest.until("both filesystems are there", |_| client.family("filesystem").len() == 2);
        let ahead = [(RR, 0), (ORDINARY, -20)];
        guest.until("all are ahead", |_| all_are(&scheduling(&systemd, "events"), &ahead));
        contents.check(&folder);
        systemd.order(&["stop"]);
        files::unmount(&folder);

        let said = systemd.said();
        for refused in ["not prepared", "events may wait"] {
            assert!(!said.contains(refused), "{refused}: {said}");
        }
    }
);

/// Whether there are threads, and all of them are scheduled in one of these ways.
fn all_are(threads: &[(i32, i32)], ways: &[(i32, i32)]) -> bool {
    !threads.is_empty() && threads.iter().all(|how| ways.contains(how))
}

/// The policy and niceness of the daemon's threads of that name.
fn scheduling(systemd: &Systemd, name: &str) -> Vec<(i32, i32)> {
    let tasks = Path::new("/proc").join(systemd.daemon().to_string()).join("task");
    let of_thread = |folder: &Path| {
        let text = fs::read_to_string(folder.join("stat")).ok()?;
        let (before, after) = text.rsplit_once(')')?;
        let (_, named) = before.split_once('(')?;
        // proc(5): the state, which comes first here, is field 3; 19 is the niceness, and 41 the policy.
        let fields: Vec<&str> = after.split_whitespace().collect();
        let number = |field: usize| fields[field - 3].parse().expect("a number");
        (named == name).then(|| (number(41), number(19)))
    };
    let threads = fs::read_dir(tasks).expect("it runs").flatten();
    threads.filter_map(|thread| of_thread(&thread.path())).collect()
}
