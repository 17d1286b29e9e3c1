//! `SetName` of pools and filesystems: neutral values, refusals, what follows the name.

use crate::support::client::{Answer, Client};
use crate::support::rig::{Kind, Rig};
use crate::support::{GIB, REVISIONS, interface};
use crate::{KINDS, NIL, make_pool, text_of};

/// What no name may be.
const WRONG: [&str; 10] = ["", ".", "..", "a/b", "/a", "a/", " x", "a b", "tab\there", "a\u{85}b"];

/// `SetName` of a pool or filesystem on a revision.
#[track_caller]
fn set_name(client: &Client, path: &str, (family, revision): (&str, u8), name: &str) -> Answer<(bool, String)> {
    client.ask(path, &interface(family, revision), "SetName", (name,))
}

#[test]
fn a_filesystem_is_renamed_on_every_revision() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let path = client.make_filesystem(&pool, "f");
        let uuid = text_of(&client, &path, "filesystem", "Uuid");
        for revision in 0..REVISIONS {
            let name = format!("f{revision}");
            let set = || set_name(&client, &path, ("filesystem", revision), &name).done();
            assert_eq!(set(), (true, uuid.clone()), "r{revision}");
            assert_eq!(set(), (false, NIL.to_owned()), "r{revision}: it has the name");
            assert_eq!(text_of(&client, &path, "filesystem", "Name"), name);
            assert!(text_of(&client, &path, "filesystem", "Devnode").ends_with(&format!("/p/{name}")));
        }
    }
}

#[test]
fn a_filesystem_gets_no_name_that_is_wrong_or_taken() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let path = client.make_filesystem(&pool, "f");
    client.make_filesystem(&pool, "other");
    let before = client.objects();
    let neutral = (false, NIL.to_owned());
    let long = "x".repeat(256);
    for wrong in WRONG.into_iter().chain([long.as_str()]) {
        set_name(&client, &path, ("filesystem", 9), wrong).refused(&neutral);
    }
    let text = set_name(&client, &path, ("filesystem", 9), "other").refused(&neutral);
    assert!(text.contains("other"), "{text}");
    assert_eq!(client.objects(), before);
    // A name is free again when nobody has it, and in another pool it is another name.
    let second = make_pool(&rig, &client, "q");
    client.make_filesystem(&second, "g");
    assert!(set_name(&client, &path, ("filesystem", 9), "g").done().0);
    client.make_filesystem(&pool, "f");
}

#[test]
fn a_pool_is_renamed_on_every_revision() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let path = make_pool(&rig, &client, "p");
        let filesystem = client.make_filesystem(&path, "f");
        let uuid = text_of(&client, &path, "pool", "Uuid");
        for revision in 0..REVISIONS {
            let name = format!("p{revision}");
            let set = || set_name(&client, &path, ("pool", revision), &name).done();
            assert_eq!(set(), (true, uuid.clone()), "r{revision}");
            assert_eq!(set(), (false, String::new()), "r{revision}: it has the name");
            assert_eq!(text_of(&client, &path, "pool", "Name"), name);
            assert!(text_of(&client, &filesystem, "filesystem", "Devnode").ends_with(&format!("/{name}/f")));
        }
    }
}

#[test]
fn a_pool_gets_no_name_that_is_wrong_or_taken() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let path = make_pool(&rig, &client, "p");
    make_pool(&rig, &client, "q");
    let before = client.objects();
    let neutral = (false, String::new());
    let long = "x".repeat(256);
    for wrong in WRONG.into_iter().chain([long.as_str(), "q"]) {
        set_name(&client, &path, ("pool", 9), wrong).refused(&neutral);
    }
    assert_eq!(client.objects(), before);
    // The old name is free, and the other is taken for those who come now.
    assert!(set_name(&client, &path, ("pool", 9), "r").done().0);
    client.create_pool("p", &[rig.disk("another", GIB)]).done();
    client.create_pool("r", &[rig.disk("third", GIB)]).refused(&(false, ("/".to_owned(), Vec::new())));
    // A pool that is stopped and started keeps it.
    client.stop_pool("r", "name").done();
    client.start_pool("r", "name").done();
}

#[test]
fn names_are_durable_and_links_follow_them() {
    let rig = Rig::new(Kind::Files);
    let mut daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let path = client.make_filesystem(&pool, "f");
    client.make_filesystem(&pool, "g");
    let links = || {
        let pools = std::fs::read_dir(rig.files_folder().join("stratis")).expect("links are there");
        let mut links = Vec::new();
        for pool in pools.map(|pool| pool.expect("readable").path()) {
            let inside = std::fs::read_dir(&pool).expect("a folder for each pool");
            links.extend(inside.map(|link| link.expect("readable").path()));
        }
        let leads = |link: &std::path::PathBuf| std::fs::metadata(link).is_ok_and(|volume| volume.is_file());
        assert!(links.iter().all(leads), "{links:?}");
        let name = |link: std::path::PathBuf| {
            let parts: Vec<_> = link.iter().rev().take(2).map(|part| part.to_string_lossy().into_owned()).collect();
            format!("{}/{}", parts[1], parts[0])
        };
        let mut names: Vec<String> = links.into_iter().map(name).collect();
        names.sort();
        names
    };
    assert_eq!(links(), ["p/f", "p/g"]);
    set_name(&client, &path, ("filesystem", 9), "h").done();
    assert_eq!(links(), ["p/g", "p/h"]);
    set_name(&client, &pool, ("pool", 9), "q").done();
    assert_eq!(links(), ["q/g", "q/h"], "the folder of the old name is gone");
    for _ in 0..2 {
        assert!(daemon.interrupt().success());
        daemon = rig.start();
        assert_eq!(links(), ["q/g", "q/h"]);
        let names: Vec<_> = client.family("pool").values().map(|pool| pool["Name"].text().to_owned()).collect();
        assert_eq!(names, ["q"]);
    }
}
