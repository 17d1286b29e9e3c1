//! Item 6: signals come before the reply, on all revisions that have the property.

use std::collections::BTreeSet;

use crate::furnish;
use crate::support::client::{Client, Signal};
use crate::support::rig::Rig;
use crate::support::{REVISIONS, TOP, interface};

/// Object, interface and property of everything that was said to have changed.
fn changes(signals: &[Signal]) -> BTreeSet<(String, String, String)> {
    let mut found = BTreeSet::new();
    for signal in signals.iter().filter(|signal| signal.member == "PropertiesChanged") {
        let names = signal.body[1].entries().into_keys().collect::<Vec<_>>();
        let invalidated = signal.body[2].members().iter().map(|name| name.text().to_owned());
        let place = |name| (signal.path.clone(), signal.body[0].text().to_owned(), name);
        found.extend(names.into_iter().chain(invalidated).map(place));
    }
    found
}

/// The same for one property on these revisions.
fn on(path: &str, family: &str, property: &str, since: u8) -> BTreeSet<(String, String, String)> {
    (since..REVISIONS).map(|revision| (path.to_owned(), interface(family, revision), property.to_owned())).collect()
}

/// What was said before the reply to the last call; nothing may follow.
fn said(client: &Client) -> Vec<Signal> {
    let signals = client.signals();
    assert_eq!(client.late_signals(), [], "everything is said before the reply");
    signals
}

fn announced(signals: &[Signal], member: &str) -> BTreeSet<String> {
    let of = signals.iter().filter(|signal| signal.member == member);
    of.map(|signal| signal.body[0].text().to_owned()).collect()
}

#[test]
fn item_6_objects_come_and_go_before_the_reply() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    client.subscribe();
    let (_, (pool, devices)) = client.create_pool("p", &["/dev/one", "/dev/two"]).done();
    let expected: BTreeSet<_> = devices.iter().chain([&pool]).cloned().collect();
    assert_eq!(announced(&said(&client), "InterfacesAdded"), expected);
    let path = client.make_filesystem(&pool, "f");
    let of_one = |path: &String| BTreeSet::from([path.clone()]);
    assert_eq!(announced(&said(&client), "InterfacesAdded"), of_one(&path));
    let (_, snapshot) = client.snapshot(&pool, &path, "s").done();
    assert_eq!(announced(&said(&client), "InterfacesAdded"), of_one(&snapshot));
    client.destroy_filesystems(&pool, std::slice::from_ref(&path)).done();
    let signals = said(&client);
    assert_eq!(announced(&signals, "InterfacesRemoved"), of_one(&path));
    assert!(changes(&signals).is_superset(&on(&snapshot, "filesystem", "Origin", 7)), "{signals:?}");
    client.stop_pool("p", "name").done();
    let signals = said(&client);
    assert_eq!(announced(&signals, "InterfacesRemoved"), expected.iter().chain([&snapshot]).cloned().collect());
    assert_eq!(changes(&signals), on(TOP, "Manager", "StoppedPools", 2));
    let (_, (pool, devices, filesystems)) = client.start_pool("p", "name").done();
    let signals = said(&client);
    let expected = devices.into_iter().chain(filesystems.clone()).chain([pool.clone()]).collect();
    assert_eq!(announced(&signals, "InterfacesAdded"), expected);
    assert_eq!(changes(&signals), on(TOP, "Manager", "StoppedPools", 2));
    client.destroy_filesystems(&pool, &filesystems).done();
    client.destroy_pool(&pool).done();
    assert!(announced(&said(&client), "InterfacesRemoved").contains(&pool));
}

#[test]
fn item_6_properties_change_before_the_reply_on_all_revisions() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    client.subscribe();
    let all = furnish(&rig, &client, "p");
    let set = |outcome| {
        assert_eq!(outcome, Ok(()));
        changes(&said(&client))
    };
    let text = |text: &str| (true, text.to_owned());
    let limit = client.set(&all.origin, &interface("filesystem", 9), "SizeLimit", text("1073741824"));
    assert_eq!(set(limit), on(&all.origin, "filesystem", "SizeLimit", 6));
    let merge = client.set(&all.snapshot, &interface("filesystem", 9), "MergeScheduled", true);
    assert_eq!(set(merge), on(&all.snapshot, "filesystem", "MergeScheduled", 7));
    let tag = client.set(&all.device, &interface("blockdev", 9), "UserInfo", text("tag"));
    assert_eq!(set(tag), on(&all.device, "blockdev", "UserInfo", 3));
    let limit = client.set(&all.pool, &interface("pool", 9), "FsLimit", 101_u64);
    assert_eq!(set(limit), on(&all.pool, "pool", "FsLimit", 1));
    let promise = client.set(&all.pool, &interface("pool", 9), "Overprovisioning", false);
    assert_eq!(set(promise), on(&all.pool, "pool", "Overprovisioning", 1));
    let refused = client.set(&all.pool, &interface("pool", 9), "FsLimit", 1_u64);
    assert_eq!(refused.expect_err("it is lower").name, "org.freedesktop.DBus.Error.Failed");
    assert_eq!(said(&client), [], "what is refused is not announced");
}
