//! Calls of a pool: creating and destroying filesystems, making snapshots.
//!
//! What a shard would refuse (a name that is taken, a full pool) is not tested here: the bus only
//! checks form.

use super::*;

#[test]
fn both_shapes_of_create_filesystems_mean_the_same() {
    let size = || some("1073741824");
    let old = Value::Array("(s(bs))", vec![structure([text("f"), size()])]);
    let new = Value::Array("(s(bs)(bs))", vec![structure([text("f"), size(), none()])]);
    for rev in 0..=LATEST {
        let mut bus = bus();
        let args = if rev < 6 { &old } else { &new };
        let request =
            asked(&mut bus, &format!("{TOP}/0"), &pool_interface(rev), "CreateFilesystems", std::slice::from_ref(args));
        let spec = FilesystemSpec { name: name("f"), size: Some(GIB), size_limit: None };
        assert_eq!(request.wish, Wish::CreateFilesystems(pool_id(1), vec![spec]), "r{rev}");
        let answer = Answer::FilesystemsCreated(vec![(fs_id(2), name("f"))]);
        let messages = concluded(&mut bus, &request, vec![View::Filesystem(filesystem(1, 2))], answer);
        let list = Value::Array("(os)", vec![structure([path(3), text("f")])]);
        assert_eq!(triple(&messages), (pair(true, list), 0, "Ok".into()));
    }
}

#[test]
fn filesystems_are_created_one_at_a_time() {
    let mut bus = bus();
    let at = format!("{TOP}/0");
    let spec = |n: &str, size: Value, limit: Value| structure([text(n), size, limit]);
    let list = |specs: Vec<Value>| [Value::Array("(s(bs)(bs))", specs)];
    let neutral = pair(false, Value::Array("(os)", vec![]));
    let nothing = returned(&mut bus, &at, &pool_interface(9), "CreateFilesystems", &list(vec![]));
    assert_eq!(nothing, [neutral.clone(), Value::U16(0), text("Ok")]);
    let junk = structure([Value::Flag(false), text("junk")]);
    asked(&mut bus, &at, &pool_interface(9), "CreateFilesystems", &list(vec![spec("f", junk.clone(), junk)]));
    for (specs, part) in [
        (vec![spec("a", none(), none()), spec("b", none(), none())], "2 filesystems"),
        (vec![spec("a", some("many"), none())], "\"many\""),
        (vec![spec("a", some("513"), none())], "513"),
        (vec![spec("a", none(), some("512"))], "512"),
        (vec![spec("", none(), none())], "empty"),
    ] {
        let (first, why) = code_1(&mut bus, &at, &pool_interface(9), "CreateFilesystems", &list(specs));
        assert_eq!(first, neutral);
        assert!(why.contains(part), "{why}");
    }
}

#[test]
fn only_filesystems_of_the_pool_are_destroyed() {
    let mut bus = bus();
    bus.handle_views(vec![View::Pool(pool(2)), View::Filesystem(filesystem(2, 2))]);
    drain(&mut bus);
    let at = format!("{TOP}/0");
    let all = vec![path(1), path(1), path(4), path(0), path(99), Value::Path("/x".into())];
    let request = asked(&mut bus, &at, &pool_interface(0), "DestroyFilesystems", &[Value::Array("o", all)]);
    assert_eq!(request.wish, Wish::DestroyFilesystems(pool_id(1), vec![fs_id(1)]));
    let views = vec![View::FilesystemGone(pool_id(1), fs_id(1))];
    let messages = concluded(&mut bus, &request, views, Answer::FilesystemsDestroyed(vec![fs_id(1)]));
    assert_eq!(triple(&messages).0, pair(true, Value::Array("s", vec![text(&fs_id(1).simple())])));

    let none_left = [Value::Array("o", vec![path(1), path(4)])];
    let nothing = returned(&mut bus, &at, &pool_interface(0), "DestroyFilesystems", &none_left);
    assert_eq!(nothing[0], pair(false, Value::Array("s", vec![])));
    assert_eq!(nothing[1], Value::U16(0));
}

#[test]
fn a_snapshot_is_asked_for_and_answered_alike_on_every_revision() {
    for rev in 0..=LATEST {
        let mut bus = bus();
        let args = [path(1), text("s")];
        let request = asked(&mut bus, &format!("{TOP}/0"), &pool_interface(rev), "SnapshotFilesystem", &args);
        assert_eq!(request.wish, Wish::SnapshotFilesystem(pool_id(1), fs_id(1), name("s")), "r{rev}");
        let made = View::Filesystem(filesystem(1, 2));
        let messages = concluded(&mut bus, &request, vec![made], Answer::FilesystemSnapshotted(fs_id(2)));
        assert_eq!(triple(&messages), (pair(true, path(3)), 0, "Ok".into()));
        let request = asked(&mut bus, &format!("{TOP}/0"), &pool_interface(rev), "SnapshotFilesystem", &args);
        let messages = concluded(&mut bus, &request, vec![], Answer::Identity);
        assert_eq!(triple(&messages), (pair(false, Value::Path("/".into())), 0, "Ok".into()));
    }
}

#[test]
fn only_a_filesystem_of_the_pool_is_an_origin() {
    let mut bus = bus();
    bus.handle_views(vec![View::Pool(pool(2)), View::Filesystem(filesystem(2, 2))]);
    drain(&mut bus);
    for (origin, name, part) in [
        (path(4), "s", "/4"),
        (path(0), "s", "/0"),
        (path(2), "s", "/2"),
        (path(99), "s", "/99"),
        (Value::Path("/".into()), "s", "\"/\""),
        (path(1), "", "empty"),
        (path(1), "a/b", "a/b"),
    ] {
        let args = [origin, text(name)];
        let (first, why) = code_1(&mut bus, &format!("{TOP}/0"), &pool_interface(9), "SnapshotFilesystem", &args);
        assert_eq!(first, pair(false, Value::Path("/".into())));
        assert!(why.contains(part), "{why}");
    }
}

#[test]
fn another_origin_is_announced_where_it_is_shown() {
    let mut bus = bus();
    let mut snapshot = filesystem(1, 1);
    snapshot.record.origin = Some(fs_id(7));
    bus.handle_views(vec![View::Filesystem(snapshot)]);
    let told = drain(&mut bus);
    let interfaces: Vec<Value> = told.iter().map(|signal| values(signal)[0].clone()).collect();
    let expected = (7..=9).map(|rev| text(&format!("org.storage.stratis3.filesystem.r{rev}")));
    assert_eq!(interfaces, expected.collect::<Vec<_>>());
    let at = format!("{TOP}/1");
    assert_eq!(get(&mut bus, &at, "org.storage.stratis3.filesystem.r7", "Origin"), some(&fs_id(7).simple()));
}
