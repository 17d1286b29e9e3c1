//! Item 6: signals come before the reply, on all revisions that have the property.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use dbus::arg::AppendAll;

use crate::support::client::{Answer, Client, Signal};
use crate::support::keys::{FREE, clevis_argument, keys_argument};
use crate::support::rig::Rig;
use crate::support::{REVISIONS, TOP, interface};
use crate::{Path, furnish};

/// Object, interface and property.
type Places = BTreeSet<(String, String, String)>;

/// Everything that was said to have changed, with its new value.
fn changes(signals: &[Signal]) -> Places {
    places(signals, |signal| signal.body[1].entries().into_keys().collect())
}

/// Everything that was said to have changed, without a value.
fn invalidated(signals: &[Signal]) -> Places {
    places(signals, |signal| signal.body[2].members().iter().map(|name| name.text().to_owned()).collect())
}

fn places(signals: &[Signal], names: impl Fn(&Signal) -> Vec<String>) -> Places {
    let mut found = BTreeSet::new();
    for signal in signals.iter().filter(|signal| signal.member == "PropertiesChanged") {
        let place = |name| (signal.path.clone(), signal.body[0].text().to_owned(), name);
        found.extend(names(signal).into_iter().map(place));
    }
    found
}

/// The same for one property on all revisions from one on.
fn on(path: &str, family: &str, property: &str, since: u8) -> Places {
    within(path, family, property, since..=REVISIONS - 1)
}

/// The same for one property on these revisions.
fn within(path: &str, family: &str, property: &str, revisions: RangeInclusive<u8>) -> Places {
    revisions.map(|revision| (path.to_owned(), interface(family, revision), property.to_owned())).collect()
}

/// What was said before the reply to the last call; nothing may follow.
fn said(client: &Client) -> Vec<Signal> {
    let signals = client.signals();
    assert_eq!(client.late_signals(), [], "everything is said before the reply");
    signals
}

/// The objects that came or went.
fn announced(signals: &[Signal], member: &str) -> BTreeSet<String> {
    families(signals, member).into_iter().map(|(path, _)| path).collect()
}

/// The objects that came or went, each with its family, in the order in which that was said first. Each must have
/// come or gone on all revisions.
fn families(signals: &[Signal], member: &str) -> Vec<(String, String)> {
    let mut order = Vec::new();
    let mut interfaces: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for signal in signals.iter().filter(|signal| signal.member == member) {
        let names: BTreeSet<String> = match member {
            "InterfacesAdded" => signal.body[1].entries().into_keys().collect(),
            _ => signal.body[1].members().iter().map(|name| name.text().to_owned()).collect(),
        };
        let path = signal.body[0].text().to_owned();
        let family = names.first().and_then(|name| name.rsplit('.').nth(1)).expect("an interface").to_owned();
        if !interfaces.contains_key(&path) {
            order.push((path.clone(), family));
        }
        interfaces.entry(path).or_default().extend(names);
    }
    for (path, family) in &order {
        let expected: BTreeSet<_> = (0..REVISIONS).map(|revision| interface(family, revision)).collect();
        assert_eq!(interfaces[path], expected, "{path} on all revisions");
    }
    order
}

/// The families of what came or went, in order.
fn order(signals: &[Signal], member: &str) -> Vec<String> {
    families(signals, member).into_iter().map(|(_, family)| family).collect()
}

#[test]
fn item_6_objects_come_and_go_before_the_reply() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    client.subscribe();
    let (_, (pool, devices)) = client.create_pool("p", &["/dev/one", "/dev/two"]).done();
    let expected: BTreeSet<_> = devices.iter().chain([&pool]).cloned().collect();
    let signals = said(&client);
    assert_eq!(announced(&signals, "InterfacesAdded"), expected);
    assert_eq!(order(&signals, "InterfacesAdded"), ["pool", "blockdev", "blockdev"]);
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
    assert_eq!(order(&signals, "InterfacesAdded"), ["pool", "filesystem", "blockdev", "blockdev"]);
    assert_eq!(changes(&signals), on(TOP, "Manager", "StoppedPools", 2));
    client.destroy_filesystems(&pool, &filesystems).done();
    client.destroy_pool(&pool).done();
    assert_eq!(order(&said(&client), "InterfacesRemoved"), ["blockdev", "blockdev", "pool"]);
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

#[test]
fn item_6_other_names_invalidate_paths_before_the_reply_on_all_revisions() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    client.subscribe();
    let all = furnish(&rig, &client, "p");
    for revision in 0..REVISIONS {
        let rename = |path: &str, family: &str| {
            let answer: Answer<(bool, String)> =
                client.ask(path, &interface(family, revision), "SetName", (format!("name{revision}"),));
            assert!(answer.done().0);
            let signals = said(&client);
            assert_eq!(changes(&signals), on(path, family, "Name", 0), "through r{revision}");
            invalidated(&signals)
        };
        let paths = |filesystems: &[&String]| -> Places {
            filesystems.iter().flat_map(|path| on(path, "filesystem", "Devnode", 0)).collect()
        };
        assert_eq!(rename(&all.origin, "filesystem"), paths(&[&all.origin]));
        assert_eq!(rename(&all.pool, "pool"), paths(&[&all.origin, &all.snapshot]));
    }
    let same: Answer<(bool, String)> = client.ask(&all.pool, &interface("pool", 9), "SetName", ("name9",));
    assert!(!same.done().0);
    assert_eq!(said(&client), [], "what is unchanged is not announced");
}

#[test]
fn item_6_devices_come_before_the_reply_with_what_they_change() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    client.subscribe();
    let pool = furnish(&rig, &client, "p").pool;
    let give = |member: &str, device: &str| {
        let answer: Answer<(bool, Vec<Path>)> = client.ask(&pool, &interface("pool", 9), member, (vec![device],));
        let (changed, made) = answer.done();
        assert!(changed);
        let signals = said(&client);
        assert_eq!(announced(&signals, "InterfacesAdded"), made.iter().map(ToString::to_string).collect());
        let last = signals.iter().rposition(|signal| signal.member == "PropertiesChanged");
        let first = signals.iter().position(|signal| signal.member == "InterfacesAdded");
        assert!(last < first, "{member}: first what the pool has, then the device");
        changes(&signals)
    };
    let added = give("AddDataDevs", "/dev/data");
    assert!(added.is_superset(&on(&pool, "pool", "TotalPhysicalSize", 0)), "{added:?}");
    let sizes = ["AllocatedSize", "TotalPhysicalUsed", "TotalPhysicalSize"].map(|size| on(&pool, "pool", size, 0));
    let allowed: Places = sizes.into_iter().flatten().chain(on(&pool, "pool", "NoAllocSpace", 1)).collect();
    assert!(added.is_subset(&allowed), "{added:?}");
    assert_eq!(give("InitCache", "/dev/cache"), on(&pool, "pool", "HasCache", 0));
    assert_eq!(give("AddCacheDevs", "/dev/more"), Places::new());
}

/// What a method of a pool changes that answers with a truth value.
#[track_caller]
fn changed_by(client: &Client, (pool, revision): (&str, u8), member: &str, arguments: impl AppendAll) -> Places {
    let answer: Answer<bool> = client.ask(pool, &interface("pool", revision), member, arguments);
    assert!(answer.done(), "{member}");
    changes(&said(client))
}

#[test]
fn item_6_encryption_changes_before_the_reply_on_all_revisions() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    client.subscribe();
    let pool = furnish(&rig, &client, "p").pool;
    let both = |old: &str, new: &str| -> Places {
        within(&pool, "pool", old, 0..=7).into_iter().chain(on(&pool, "pool", new, 8)).collect()
    };
    let (keys, clevis) = (both("KeyDescription", "KeyDescriptions"), both("ClevisInfo", "ClevisInfos"));
    let free = on(&pool, "pool", "FreeTokenSlots", 8);
    let together = |parts: &[&Places]| -> Places { parts.iter().copied().flatten().cloned().collect() };
    let whole = together(&[&keys, &clevis, &free, &on(&pool, "pool", "Encrypted", 9)]);
    let methods = (keys_argument(&[(FREE, "k")]), clevis_argument(&[(FREE, "tpm2", "{}")]));
    let (old, new) = ((&*pool, 0), (&*pool, 9));
    assert_eq!(changed_by(&client, new, "EncryptPool", methods), whole);
    assert_eq!(changed_by(&client, new, "RebindKeyring", ("two", FREE)), keys);
    assert_eq!(changed_by(&client, old, "UnbindClevis", ()), together(&[&clevis, &free]));
    assert_eq!(changed_by(&client, new, "BindClevis", ("tpm2", "{}", FREE)), together(&[&clevis, &free]));
    // Old revisions show the lowest slot only.
    let newest = on(&pool, "pool", "KeyDescriptions", 8);
    assert_eq!(changed_by(&client, new, "BindKeyring", ("three", FREE)), together(&[&newest, &free]));
    let time = on(&pool, "pool", "LastReencryptedTimestamp", 9);
    assert_eq!(changed_by(&client, new, "ReencryptPool", ()), time);
    assert_eq!(changed_by(&client, new, "DecryptPool", ()), together(&[&whole, &time]));
}
