//! Disks that fail, hang, are slow or vanish under a pool, and thin-pool metadata that has gone bad: what becomes
//! of the pool, that another one notices nothing, and that all is well again afterwards.
//!
//! Deliberately absent: every point at which this can happen; the simulation tries those.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use crate::guest::files::{self, Contents};
use crate::guest::lab::Lab;
use crate::guest::{Guest, dm, run, try_run, udev};
use crate::host::{SPEC, Spec};
use crate::scenario;
use crate::support::client::{BusError, Client};
use crate::support::{MIB, interface};

/// Sectors of a device that hold nothing but signatures and records.
const METADATA: u64 = 8_192;

/// Two disks that can be made to fail, and one that stays as it is.
const THREE: Spec = Spec { disks: &["3G", "3G", "2G"], limit_s: 240, ..SPEC };

/// A pool `p` on disks that can fail, with a mounted filesystem and a file on it, and a pool `calm` beside.
struct World {
    client: Client,
    labs: Vec<Lab>,
    folder: PathBuf,
    file: Contents,
}

impl World {
    fn new(guest: &mut Guest) -> Self {
        let disks = guest.disks();
        let (calm, below) = disks.split_last().expect("there are disks");
        let names = ["lab-a", "lab-b"];
        let labs: Vec<Lab> = below.iter().zip(names).map(|(disk, name)| Lab::over(disk, name)).collect();
        guest.start();
        let client = guest.client();
        client.create_pool("calm", &[calm]).done();
        let paths: Vec<String> = labs.iter().map(Lab::path).collect();
        let (_, (pool, _)) = client.create_pool("p", &paths).done();
        let filesystem = client.make_filesystem(&pool, "f");
        let folder = files::mount(&files::node(&client, &filesystem), "f");
        let file = Contents::write(folder.join("file"), 20 * MIB, 20);
        Self { client, labs, folder, file }
    }

    /// Has the record of the pool saved; what came of it.
    fn save(&self, info: &str) -> Result<(), BusError> {
        save(&self.client, info)
    }

    /// Where on the first disk a private device of the pool lies: first sector and count.
    fn place(&self, role: &str) -> (u64, u64) {
        dm::on_disk(&self.client, &pool(&self.client, "p").expect("it runs"), role)
    }

    /// The other pool works as ever, and is not degraded.
    fn calm_is_calm(&self) {
        calm_is_calm(&self.client);
    }

    /// Stops and starts the pool; everything is there, and all is well.
    fn comes_back(self, guest: &Guest) {
        assert!(self.client.stop_pool("p", "name").done().0);
        udev::settle();
        assert!(self.client.start_pool("p", "name").done().0);
        self.all_is_well(guest);
    }

    /// All is well with the pool.
    fn all_is_well(self, guest: &Guest) {
        assert_eq!(available(&self.client, "p"), "fully_operational");
        let own = pool(&self.client, "p").expect("it runs");
        let filesystems = self.client.family("filesystem");
        let own = filesystems.into_iter().find(|(_, found)| found["Pool"].text() == own && found["Name"].text() == "f");
        let node = files::node(&self.client, &own.expect("the filesystem came with it").0);
        let folder = files::mount(&node, "f");
        self.file.check(&folder);
        files::unmount(&folder);
        files::check_xfs(&node);
        self.save("well").expect("its record can be changed again");
        assert!(!guest.log().contains("panicked"), "{}", guest.log());
    }
}

/// The pool `calm` works as ever, and is not degraded.
pub(crate) fn calm_is_calm(client: &Client) {
    let calm = pool(client, "calm").expect("it runs");
    let path = client.make_filesystem(&calm, "f");
    let folder = files::mount(&files::node(client, &path), "calm");
    Contents::write(folder.join("file"), MIB, 1).check(&folder);
    files::unmount(&folder);
    client.destroy_filesystems(&calm, &[&path]).done();
    assert_eq!(available(client, "calm"), "fully_operational");
}

/// The path of a pool that runs.
fn pool(client: &Client, name: &str) -> Option<String> {
    client.family("pool").into_iter().find(|(_, pool)| pool["Name"].text() == name).map(|(path, _)| path)
}

fn available(client: &Client, name: &str) -> String {
    let path = pool(client, name).expect("it runs");
    let property = client.get(&path, &interface("pool", 9), "AvailableActions");
    property.expect("properties can be read").text().to_owned()
}

/// Has the record of pool `p` saved, with other words about one of its devices.
fn save(client: &Client, info: &str) -> Result<(), BusError> {
    let own = pool(client, "p").expect("it runs");
    let devices = client.family("blockdev");
    let (device, _) = devices.into_iter().find(|(_, device)| device["Pool"].text() == own).expect("it has devices");
    client.set(&device, &interface("blockdev", 9), "UserInfo", (true, info.to_owned()))
}

scenario!(
    /// Records cannot be written to one of two disks, then they can again.
    a_disk_that_takes_no_records,
    THREE,
    |guest: &mut Guest| {
        let world = World::new(guest);
        world.labs[1].fail_writes(0, METADATA);
        world.save("one").expect("one disk has it");
        assert_eq!(available(&world.client, "p"), "no_ipc_requests");
        assert!(world.save("two").is_err(), "a pool with half its copies takes no requests");
        world.file.check(&world.folder);
        world.calm_is_calm();
        world.labs[1].mend();
        files::unmount(&world.folder);
        world.comes_back(guest);
    }
);

scenario!(
    /// A disk hangs while a record is saved: the other pool answers meanwhile, and in the end the disk has failed.
    a_disk_that_hangs,
    THREE,
    |guest: &mut Guest| {
        let world = World::new(guest);
        files::unmount(&world.folder);
        world.labs[1].hang();
        let saves = guest.client();
        thread::scope(|scope| {
            let saving = scope.spawn(move || save(&saves, "one"));
            let mut answered = 0;
            while !saving.is_finished() {
                world.calm_is_calm();
                answered += 1;
            }
            saving.join().expect("the call is answered").expect("one disk has it");
            assert!(answered > 1, "the calm pool was held up");
            println!("the calm pool made and destroyed {answered} filesystems meanwhile");
        });
        assert_eq!(available(&world.client, "p"), "no_ipc_requests");
        world.labs[1].go_on();
        world.comes_back(guest);
    }
);

scenario!(
    /// Both disks of a pool hang while many clients want something of it: the other pool answers as ever, and in the
    /// end so does this one.
    a_pool_that_hangs_keeps_no_other_waiting,
    THREE,
    |guest: &mut Guest| {
        let world = World::new(guest);
        files::unmount(&world.folder);
        let own = pool(&world.client, "p").expect("it runs");
        world.labs.iter().for_each(Lab::hang);
        let clients = [(); 6].map(|()| guest.client());
        thread::scope(|scope| {
            let ask = |(number, client): (usize, Client)| client.make_filesystem(&own, &format!("n{number}"));
            let asking: Vec<_> = clients.into_iter().enumerate().map(|asked| scope.spawn(move || ask(asked))).collect();
            // Each round takes volumes, records, mounts and udev, as what hangs does.
            for _ in 0..2 {
                world.calm_is_calm();
            }
            assert!(!asking.iter().any(thread::ScopedJoinHandle::is_finished), "nothing can be made meanwhile");
            world.labs.iter().for_each(Lab::go_on);
            for made in asking {
                made.join().expect("it is made");
            }
        });
        assert_eq!(own, pool(&world.client, "p").expect("it runs"));
        udev::settle();
        world.comes_back(guest);
    }
);

scenario!(
    /// The disks of four pools hang, and clients want several things of each: the other pool answers nevertheless.
    several_pools_that_hang_keep_no_other_waiting,
    Spec { disks: &["1G", "1G", "1G", "1G", "2G"], limit_s: 240, ..SPEC },
    |guest: &mut Guest| {
        let disks = guest.disks();
        let (calm, below) = disks.split_last().expect("there are disks");
        let names = ["lab-a", "lab-b", "lab-c", "lab-d"];
        let labs: Vec<Lab> = below.iter().zip(names).map(|(disk, name)| Lab::over(disk, name)).collect();
        guest.start();
        let client = guest.client();
        client.create_pool("calm", &[calm]).done();
        let make = |lab: &Lab| client.create_pool(&lab.path().replace("/dev/mapper/", ""), &[lab.path()]).done().1.0;
        let pools: Vec<String> = labs.iter().map(make).collect();
        labs.iter().for_each(Lab::hang);
        thread::scope(|scope| {
            let mut asking = Vec::new();
            for pool in &pools {
                for number in 0..3 {
                    let client = guest.client();
                    asking.push(scope.spawn(move || client.make_filesystem(pool, &format!("n{number}"))));
                }
            }
            for _ in 0..2 {
                calm_is_calm(&client);
            }
            assert!(!asking.iter().any(thread::ScopedJoinHandle::is_finished), "nothing can be made meanwhile");
            labs.iter().for_each(Lab::go_on);
            for made in asking {
                made.join().expect("it is made");
            }
        });
        assert_eq!(client.family("filesystem").len(), 12);
        assert!(!guest.log().contains("panicked"), "{}", guest.log());
        udev::settle();
        guest.stop();
    }
);

scenario!(
    /// A disk hangs when the daemon starts: the other pool is there before that disk has failed, and its own when it
    /// answers.
    a_disk_that_hangs_at_the_start,
    THREE,
    |guest: &mut Guest| {
        let world = World::new(guest);
        let tables = dm::tables();
        udev::settle();
        guest.kill9();
        world.labs[1].hang();
        guest.start_of_some(&[]);
        world.calm_is_calm();
        assert!(pool(&world.client, "p").is_none(), "one of its disks says nothing");
        assert!(!guest.log().contains("cannot be looked at"), "the others waited until it had failed");
        world.labs[1].go_on();
        guest.until("its own pool runs", |_| pool(&world.client, "p").is_some());
        assert!(guest.log().contains("a device has spoken"), "whoever reads the log sees that it has gone on");
        assert_eq!(dm::tables(), tables);
        world.file.check(&world.folder);
        files::unmount(&world.folder);
        world.comes_back(guest);
    }
);

scenario!(
    /// A disk that is slow makes saves slow, and nothing else.
    a_disk_that_is_slow,
    THREE,
    |guest: &mut Guest| {
        let world = World::new(guest);
        world.labs[1].delay(300);
        let saves = guest.client();
        thread::scope(|scope| {
            let saving = scope.spawn(move || save(&saves, "one"));
            let mut answered = 0;
            while !saving.is_finished() {
                available(&world.client, "p");
                answered += 1;
            }
            saving.join().expect("the call is answered").expect("both disks have it");
            println!("the pool answered {answered} questions meanwhile");
            assert!(answered > 1, "questions were held up");
        });
        world.calm_is_calm();
        assert_eq!(available(&world.client, "p"), "fully_operational");
        world.labs[1].mend();
        world.file.check(&world.folder);
        files::unmount(&world.folder);
        world.comes_back(guest);
    }
);

scenario!(
    /// One of two disks vanishes with all that is on it. The pool goes on without, is stopped for a daemon that
    /// starts meanwhile, and starts by itself when the disk is back.
    a_disk_that_vanishes,
    THREE,
    |guest: &mut Guest| {
        let mut world = World::new(guest);
        files::unmount(&world.folder);
        world.labs[1].vanish();
        world.save("one").expect("the other disk has it");
        assert_eq!(available(&world.client, "p"), "no_ipc_requests");
        world.calm_is_calm();
        guest.kill9();
        guest.start();
        world.client = guest.client();
        world.calm_is_calm();
        assert_eq!(pool(&world.client, "p"), None, "it is not whole");
        world.labs[1].mend();
        run("udevadm", &["trigger", "--settle", "--action=change", &world.labs[1].path()]);
        guest.until("the pool runs", |_| pool(&world.client, "p").is_some());
        world.all_is_well(guest);
        assert!(guest.log().contains("copies of metadata are made good"), "{}", guest.log());
    }
);

scenario!(
    /// The kernel cannot write thin-pool metadata: the pool takes no changes, at once, until it is started anew.
    thin_metadata_that_cannot_be_written,
    THREE,
    |guest: &mut Guest| {
        let world = World::new(guest);
        let (start, count) = world.place("flex-thinmeta");
        world.labs[0].fail_writes(start, count);
        // New blocks are mapped for this, which the kernel cannot commit.
        let more = format!("of={}", world.folder.join("more").display());
        try_run("dd", &["if=/dev/zero", &more, "bs=1M", "count=64", "oflag=direct", "conv=fsync"]);
        guest.until("the pool is degraded by the kernel's event", |_| {
            available(&world.client, "p") == "no_pool_changes"
        });
        world.calm_is_calm();
        assert!(world.save("one").is_err(), "it takes no changes");
        world.labs[0].mend();
        run("umount", &[files::text(&world.folder)]);
        world.comes_back(guest);
    }
);

scenario!(
    /// The sectors of thin data fail: whoever uses them gets the error, the pool goes on, nothing is half made.
    thin_data_that_cannot_be_written,
    THREE,
    |guest: &mut Guest| {
        let world = World::new(guest);
        files::unmount(&world.folder);
        let (start, count) = world.place("flex-thindata");
        let end: u64 = run("blockdev", &["--getsz", &world.labs[0].path()]).trim().parse().expect("a number");
        world.labs[0].fail_writes(start, count.min(end - start));
        let own = pool(&world.client, "p").expect("it runs");
        let refused = world.client.create_filesystems(&own, &[("g", Some(&(512 * MIB).to_string()), None)]);
        let why = refused.refused(&(false, Vec::new()));
        assert!(why.contains("Input/output error"), "{why}");
        assert_eq!(world.client.family("filesystem").len(), 1);
        world.calm_is_calm();
        world.labs[0].mend();
        world.comes_back(guest);
    }
);

scenario!(
    /// Thin-pool metadata is damaged on its disk while the pool is stopped: the start repairs it, for good. Where the
    /// programs for that are missing the pool stays as it is, and the reply says what to install.
    damaged_thin_metadata_is_repaired_at_start,
    THREE,
    |guest: &mut Guest| {
        let world = World::new(guest);
        files::unmount(&world.folder);
        let (start, count) = world.place("flex-thinmeta");
        assert!(world.client.stop_pool("p", "name").done().0);
        // The superblock stays; of the blocks behind it those in use are the first ones.
        damage(&world.labs[0].path(), start + 8, 8 * 24);

        let programs = ["/usr/sbin/thin_check", "/usr/sbin/thin_repair"];
        for program in programs {
            fs::rename(program, format!("{program}.away")).expect("the guest's root is writable");
        }
        let why = refused_start(&world.client);
        assert!(why.contains("thin-provisioning-tools"), "{why}");
        for program in programs {
            fs::rename(format!("{program}.away"), program).expect("it is put back");
        }
        assert!(world.client.start_pool("p", "name").done().0);
        assert_ne!(world.place("flex-thinmeta").0, start, "it lies where the spare was");
        assert_eq!(world.place("flex-thinmeta").1, count);
        assert!(dm::names().iter().all(|name| !name.ends_with("thinmetaspare")), "{:?}", dm::names());
        world.comes_back(guest);
        assert_eq!(guest.log().matches("is repaired into the spare").count(), 1, "once, because it was saved");
    }
);

fn refused_start(client: &Client) -> String {
    let neutral = (false, ("/".to_owned(), Vec::new(), Vec::new()));
    client.start_pool("p", "name").refused(&neutral)
}

/// Overwrites sectors with what is no metadata.
fn damage(path: &str, start: u64, count: u64) {
    let garbage = Path::new("/root/garbage");
    fs::write(garbage, vec![0x5a; usize::try_from(count * 512).expect("a few")]).expect("the root is writable");
    let (from, to, seek) = (format!("if={}", garbage.display()), format!("of={path}"), format!("seek={start}"));
    run("dd", &[&from, &to, &seek, "bs=512", "conv=notrunc,fsync"]);
    udev::settle();
}

scenario!(
    /// Somebody removes a volume's dm device: everything else goes on, and the next start of the pool brings it back.
    /// Its name has every character that a name may have.
    a_volume_that_is_removed_behind_our_back,
    THREE,
    |guest: &mut Guest| {
        let world = World::new(guest);
        files::unmount(&world.folder);
        let own = pool(&world.client, "p").expect("it runs");
        let ascii: String = (b'0'..=b'9').chain(b'A'..=b'Z').chain(b'a'..=b'z').map(char::from).collect();
        let head = format!("{ascii}#+,-.:=@_Übung-数据-");
        let name = format!("{head}{}", "n".repeat(255 - head.len()));
        let path = world.client.make_filesystem(&own, &name);
        let link = Path::new("/dev/stratis/p").join(&name);
        guest.until("the link of the long name", |_| link.exists());
        let node = files::node(&world.client, &path);
        let removed = node.file_name().expect("it has a name").to_str().expect("ASCII").to_owned();
        guest.until("nobody has the volume open", |_| try_run("dmsetup", &["remove", &removed]).0.success());

        // The kernel makes a snapshot of a volume whether that has a device or not.
        world.client.snapshot(&own, &path, "s").done();
        world.client.make_filesystem(&own, "g");
        world.calm_is_calm();
        assert!(world.client.stop_pool("p", "name").done().0);
        assert!(world.client.start_pool("p", "name").done().0);
        assert_eq!(world.client.family("filesystem").len(), 4);
        guest.until("the link of the long name", |_| link.exists());
        world.all_is_well(guest);
    }
);
