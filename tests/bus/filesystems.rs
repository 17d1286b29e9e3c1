//! CreateFilesystems and DestroyFilesystems: twice, wrongly, and up to the limits.

use crate::support::client::{Client, Spec};
use crate::support::rig::{Kind, Rig};
use crate::support::{GIB, interface};
use crate::{KINDS, assert_simple_uuid, make_pool, text_of};

fn none() -> (bool, Vec<(String, String)>) {
    (false, Vec::new())
}

/// Creates and says whether it was new; refusals fail.
#[track_caller]
fn create(client: &Client, pool: &str, spec: Spec<'_>) -> bool {
    client.create_filesystems(pool, &[spec]).done().0
}

#[test]
fn creating_a_filesystem_twice_changes_nothing_the_second_time() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let spec = ("f", Some("1073741824"), Some("2147483648"));
        let (changed, made) = client.create_filesystems(&pool, &[spec]).done();
        assert!(changed);
        assert_eq!(made.len(), 1);
        let (path, name) = &made[0];
        assert_eq!(name, "f");
        let property = |name: &str| text_of(&client, path, "filesystem", name);
        assert_eq!((property("Name").as_str(), property("Size").as_str()), ("f", "1073741824"));
        assert_eq!(property("Pool"), pool);
        assert_simple_uuid(&property("Uuid"));
        assert!(property("Devnode").ends_with("/p/f"), "{:?}", property("Devnode"));
        let before = client.objects();
        assert_eq!(client.create_filesystems(&pool, &[spec]).done(), none());
        let other_limit = ("f", Some("1073741824"), Some("4294967296"));
        assert_eq!(client.create_filesystems(&pool, &[other_limit]).done(), none(), "limits are not compared");
        client.create_filesystems(&pool, &[("f", Some("536870912"), None)]).refused(&none());
        client.create_filesystems(&pool, &[("f", None, None)]).refused(&none());
        assert_eq!(client.objects().keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    }
}

#[test]
fn filesystems_are_created_one_at_a_time() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    client.create_filesystems(&pool, &[("a", None, None), ("b", None, None)]).refused(&none());
    assert_eq!(client.create_filesystems(&pool, &[]).done(), none());
    assert!(client.family("filesystem").is_empty());
}

#[test]
fn a_filesystem_has_one_tebibyte_if_nothing_is_said() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let (_, made) = client.create_filesystems(&pool, &[("f", None, None)]).done();
    assert_eq!(text_of(&client, &made[0].0, "filesystem", "Size"), "1099511627776");
    assert!(!create(&client, &pool, ("f", Some("1099511627776"), None)), "the default and its number are equal");
}

#[test]
fn sizes_and_limits_are_checked() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let wrong = [
        "",
        "-1",
        "-536870912",
        "garbage",
        "0x20000000",
        "536870912.0",
        " 536870912",
        "512MiB",
        "0",
        "512",
        "536870400",
        "536870913",
        "536871000",
        "9444732965739290427392",
        "340282366920938463463374607431768211456",
        "99999999999999999999999999999999999999999999999999",
    ];
    for size in wrong {
        client.create_filesystems(&pool, &[("f", Some(size), None)]).refused(&none());
        client.create_filesystems(&pool, &[("f", Some("536870912"), Some(size))]).refused(&none());
    }
    client.create_filesystems(&pool, &[("f", Some("1073741824"), Some("1073741312"))]).refused(&none());
    client.create_filesystems(&pool, &[("f", None, Some("1073741824"))]).refused(&none());
    assert!(client.family("filesystem").is_empty(), "nothing was left behind");
    assert!(create(&client, &pool, ("equal", Some("1073741824"), Some("1073741824"))));
    assert!(create(&client, &pool, ("plus", Some("+536870912"), None)), "a leading plus is tolerated");
    assert!(create(&client, &pool, ("least", Some("536870912"), Some("536871424"))));
    assert_eq!(client.family("filesystem").len(), 3);
}

#[test]
fn filesystem_names_follow_the_rules() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let long = "x".repeat(256);
    for bad in
        ["", ".", "..", &long, " a", "a\u{a0}", "a\nb", "a b", "a/b", "a/", "/", "a*b", "a~", "a;b", "$a", "a\\b"]
    {
        client.create_filesystems(&pool, &[(bad, None, None)]).refused(&none());
    }
    assert!(client.family("filesystem").is_empty());
    let longest = "x".repeat(255);
    for good in ["a,b", "...", "-a", "#+,-.:=@_", "\u{1f600}", &longest] {
        assert!(create(&client, &pool, (good, None, None)), "{good:?} is a name");
    }
}

#[test]
fn the_filesystem_limit_comes_before_identity() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let limit = client.get(&pool, &interface("pool", 9), "FsLimit").expect("readable").number();
    assert_eq!(limit, 100, "the default");
    for index in 0..limit {
        assert!(create(&client, &pool, (&format!("f{index}"), None, None)));
    }
    let text = client.create_filesystems(&pool, &[("one-more", None, None)]).refused(&none());
    assert!(text.contains("100"), "{text:?} states the limit");
    client.create_filesystems(&pool, &[("f0", None, None)]).refused(&none());
    let paths: Vec<_> = client.family("filesystem").into_keys().collect();
    assert_eq!(paths.len(), 100);
    assert_eq!(client.destroy_filesystems(&pool, &paths).done().1.len(), 100);
    assert!(create(&client, &pool, ("f0", None, None)));
}

#[test]
fn destroying_filesystems_twice_changes_nothing_the_second_time() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let paths = ["a", "b", "c"].map(|name| client.make_filesystem(&pool, name));
        let mut uuids: Vec<_> = paths[..2].iter().map(|path| text_of(&client, path, "filesystem", "Uuid")).collect();
        let (changed, mut destroyed) = client.destroy_filesystems(&pool, &paths[..2]).done();
        uuids.sort();
        destroyed.sort();
        assert_eq!((changed, destroyed), (true, uuids));
        assert_eq!(client.family("filesystem").into_keys().collect::<Vec<_>>(), [paths[2].clone()]);
        assert_eq!(client.destroy_filesystems(&pool, &paths[..2]).done(), (false, Vec::new()));
        assert_eq!(client.destroy_filesystems::<&str>(&pool, &[]).done(), (false, Vec::new()));
        assert!(create(&client, &pool, ("a", Some("536870912"), None)), "the name is free again");
    }
}

#[test]
fn filesystems_of_other_pools_are_left_alone() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let [mine, other] = ["mine", "other"].map(|name| make_pool(&rig, &client, name));
    let own = client.make_filesystem(&mine, "f");
    let foreign = client.make_filesystem(&other, "f");
    let unknown = "/org/storage/stratis3/999999".to_owned();
    let ignored = [foreign.clone(), unknown, mine.clone(), "/".to_owned()];
    assert_eq!(client.destroy_filesystems(&mine, &ignored).done(), (false, Vec::new()));
    let (changed, uuids) = client.destroy_filesystems(&mine, &[own.clone(), foreign.clone(), own]).done();
    assert_eq!((changed, uuids.len()), (true, 1), "the own one, once");
    assert_eq!(client.family("filesystem").into_keys().collect::<Vec<_>>(), [foreign]);
}

#[test]
fn the_volume_of_a_filesystem_holds_xfs_with_its_uuid() {
    let rig = Rig::new(Kind::Files);
    let _daemon = rig.start();
    let client = rig.client();
    let disk = rig.disk("one", 2 * GIB);
    let (_, (pool, _)) = client.create_pool("p", &[disk]).done();
    let filesystem = client.make_filesystem(&pool, "f");
    let devnode = text_of(&client, &filesystem, "filesystem", "Devnode");
    let uuid = crate::hyphenated(&text_of(&client, &filesystem, "filesystem", "Uuid"));
    assert!(devnode.starts_with(rig.files_folder().to_str().expect("test paths are UTF-8")), "{devnode:?}");
    let volume = std::fs::canonicalize(&devnode).expect("the path leads to the volume");
    assert_eq!(std::fs::metadata(&volume).expect("the volume exists").len(), 512 << 20);
    // An XFS superblock: magic at 0, UUID at 32.
    let head = crate::support::disk::head(&volume, 48);
    assert_eq!(&head[..4], b"XFSB");
    let found: String = head[32..48].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(crate::hyphenated(&found), uuid);
    client.destroy_filesystems(&pool, &[filesystem]).done();
    assert!(!volume.exists(), "a destroyed filesystem leaves no volume");
    assert!(std::fs::symlink_metadata(&devnode).is_err(), "and no link");
}
