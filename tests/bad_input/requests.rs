//! Requests on files with wrong names, sizes and objects: refused, and nothing on disk has changed.

use crate::support::rig::Rig;
use crate::support::{GIB, TOP, interface};
use crate::{assert_untouched, no_pool, state};

#[test]
fn wrong_names_change_nothing() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let (_, (pool, _)) = client.create_pool("p", &[rig.disk("one", 2 * GIB)]).done();
    client.make_filesystem(&pool, "f");
    let good = rig.disk("good", 2 * GIB);
    let before = state(&rig, &client);
    let long = "\u{20ac}".repeat(86);
    let mut wrong: Vec<String> =
        ["", ".", "..", "/", "a/", "../escape", "a/../../b", " a", "a ", "a\u{7f}", "a\u{85}b", "\u{2003}a", &long]
            .map(str::to_owned)
            .to_vec();
    wrong.extend(" !\"$%&'()*;<>?[\\]^`{|}~\t\n\u{1}\u{1b}".chars().map(|letter| format!("a{letter}b")));
    for name in &wrong {
        client.create_pool(name, &[&good]).refused(&no_pool());
        client.create_filesystems(&pool, &[(name, Some("536870912"), None)]).refused(&(false, Vec::new()));
    }
    assert_untouched(&rig, &client, &mut daemon, &before, "wrong names");
}

#[test]
fn wrong_sizes_change_nothing() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let (_, (pool, _)) = client.create_pool("p", &[rig.disk("one", 2 * GIB)]).done();
    let before = state(&rig, &client);
    let wrong = [
        "",
        "-536870912",
        "536870913",
        "536870400",
        "5.4e8",
        "0b100000000000000000000000000000",
        "18446744073709551616000000000",
        "9444732965739290427392",
        "340282366920938463463374607431768211456",
        "\u{664}\u{665}",
        "536870912\n",
    ];
    for size in wrong {
        client.create_filesystems(&pool, &[("f", Some(size), None)]).refused(&(false, Vec::new()));
        client.create_filesystems(&pool, &[("f", None, Some(size))]).refused(&(false, Vec::new()));
    }
    client.create_filesystems(&pool, &[("f", Some("1073741824"), Some("536870912"))]).refused(&(false, Vec::new()));
    client.create_filesystems(&pool, &[("a", None, None), ("b", None, None)]).refused(&(false, Vec::new()));
    assert_untouched(&rig, &client, &mut daemon, &before, "wrong sizes");
}

#[test]
fn a_filesystem_that_cannot_be_made_leaves_nothing() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let (_, (pool, _)) = client.create_pool("p", &[rig.disk("one", 2 * GIB)]).done();
    let before = state(&rig, &client);
    // Larger than any file of the machine: the volume cannot be made, or not be formatted.
    for size in ["9223372036854774784", "9444732965739290426880"] {
        let answer = client.create_filesystems(&pool, &[("f", Some(size), None)]);
        answer.refused(&(false, Vec::new()));
        assert_untouched(&rig, &client, &mut daemon, &before, size);
    }
    client.make_filesystem(&pool, "f");
}

#[test]
fn the_wrong_objects_change_nothing() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let (_, (pool, devices)) = client.create_pool("p", &[rig.disk("one", 2 * GIB)]).done();
    let (_, (other, _)) = client.create_pool("q", &[rig.disk("two", 2 * GIB)]).done();
    let filesystem = client.make_filesystem(&pool, "f");
    let before = state(&rig, &client);
    for path in
        ["/", TOP, "/org/storage/stratis3/4294967296", "/org/storage/stratis3/x", &filesystem, &devices[0], &pool]
    {
        client.destroy_pool(path).refused(&(false, String::new()));
    }
    let foreign = [filesystem.clone(), other.clone(), devices[0].clone(), "/".to_owned()];
    assert_eq!(client.destroy_filesystems(&other, &foreign).done(), (false, Vec::new()));
    for (path, family) in [(&devices[0], "pool"), (&filesystem, "pool"), (&pool, "blockdev")] {
        client.get_all(path, &interface(family, 9)).expect_err("another kind of object");
    }
    assert_untouched(&rig, &client, &mut daemon, &before, "wrong objects");
}

#[test]
fn wrong_ids_stop_nothing() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let (_, (pool, _)) = client.create_pool("p", &[rig.disk("one", 2 * GIB)]).done();
    client.make_filesystem(&pool, "f");
    let before = state(&rig, &client);
    for (id, kind) in [("p ", "name"), ("", "name"), ("p", "uuid"), ("P", "name")] {
        client.stop_pool(id, kind).refused(&(false, String::new()));
    }
    assert_untouched(&rig, &client, &mut daemon, &before, "wrong ids");
}
