//! dbus-broker as the bus: the same daemon behind another program, which passes messages on in other portions.
//!
//! `TEST_BUS=broker cargo test --test bus` runs all the other tests on it, too.

use std::thread;

use crate::make_pool;
use crate::support::bus::PrivateBus;
use crate::support::client::{Answer, Client};
use crate::support::keys::{make_key, open_pipe, set_key_on};
use crate::support::picture::Picture;
use crate::support::rig::Rig;
use crate::support::{NAME, TOP, interface};

/// Filesystems of which a list does not fit any buffer on its way.
const MANY: usize = 400;
/// Clients that create and destroy, each so often.
const CLIENTS: usize = 4;
const PAIRS: usize = 50;

fn churn(client: &Client, pool: &str) {
    for number in 0..PAIRS {
        let made = client.make_filesystem(pool, &format!("churn{number}"));
        client.destroy_filesystems(pool, &[made]).done();
    }
}

#[test]
fn dbus_broker_serves_as_well() {
    let Some(bus) = PrivateBus::broker() else {
        println!("SKIPPED bus: dbus-broker is not installed, and DBUS_BROKER does not name one that was unpacked");
        return;
    };
    let mut rig = Rig::sim().with_bus(bus);
    let mut daemon = rig.start();
    let (client, listener) = (rig.client(), rig.client());
    let mut picture = Picture::first(&listener);
    let pools: Vec<_> = (0..CLIENTS).map(|number| make_pool(&rig, &client, &format!("p{number}"))).collect();
    client.set(&pools[0], &interface("pool", 9), "FsLimit", 1_000_u64).expect("it can be raised");
    (0..MANY).for_each(|number| drop(client.make_filesystem(&pools[0], &format!("fs{number}"))));
    thread::scope(|scope| {
        for pool in &pools {
            let rig = &rig;
            scope.spawn(move || churn(&rig.client(), pool));
        }
        // One that lists meanwhile; each list is whole.
        (0..PAIRS).for_each(|_again| assert!(client.objects().len() >= MANY + 2 * CLIENTS));
    });
    picture.assert_current(&listener, "after the churn");
    assert_eq!(client.family("filesystem").len(), MANY);
    // Descriptors pass, too.
    make_key(&client, "k");
    let (reader, _writer) = open_pipe(b"secret");
    assert_eq!(set_key_on(&client, 9, "k", reader).done(), (false, false));
    let keys: Answer<Vec<String>> = client.ask(TOP, &interface("Manager", 9), "ListKeys", ());
    assert_eq!(keys.done(), ["k"]);

    assert!(daemon.interrupt().success(), "{}", daemon.stderr());
    assert!(!client.has_owner(NAME));
    let mut daemon = rig.start();
    rig.bus.stop();
    assert_eq!(daemon.wait().code(), Some(1), "a daemon without a bus is of no use: {}", daemon.stderr());
}
