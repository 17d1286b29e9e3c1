//! Item 5: every method called twice, and refused.
//!
//! A row is a method called, called once more, and called so that it must be refused: what it changed, what it says
//! when nothing is left to change, and the neutral value of a refusal. The last assertion is that no method of any
//! revision was left out.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Debug;

use dbus::arg::{AppendAll, Arg, Get};

use crate::support::client::{
    Answer, Client, create_pool_arguments, specs_argument, start_pool_arguments, start_pool_with,
};
use crate::support::introspection::golden;
use crate::support::keys::{FREE, at, clevis_argument, create_encrypted, file, keys_argument, make_key};
use crate::support::rig::Rig;
use crate::support::{TOP, interface};
use crate::{NIL, Path, text_of};

/// An object, and one of its interfaces by family and revision.
type On<'a> = (&'a str, &'a str, u8);

const MANAGER: On<'_> = (TOP, "Manager", 9);
const REPORT: On<'_> = (TOP, "Report", 9);

/// A client that keeps in mind which methods it has called.
struct Asking<'a> {
    client: &'a Client,
    called: RefCell<BTreeSet<String>>,
}

impl Asking<'_> {
    #[track_caller]
    fn ask<T>(&self, (path, family, revision): On<'_>, member: &str, arguments: impl AppendAll) -> Answer<T>
    where
        T: Arg + for<'b> Get<'b>,
    {
        self.called.borrow_mut().insert(format!("{family}.{member}"));
        self.client.ask(path, &interface(family, revision), member, arguments)
    }

    /// A call that changes something, made twice: what the first one gave. The second gives `unchanged`.
    #[track_caller]
    fn twice<T, A: AppendAll>(&self, on: On<'_>, member: &str, arguments: impl Fn() -> A, unchanged: &T) -> T
    where
        T: Arg + for<'b> Get<'b> + Debug + PartialEq,
    {
        let first = self.ask(on, member, arguments()).done();
        assert_eq!(&self.ask::<T>(on, member, arguments()).done(), unchanged, "{member} once more");
        first
    }

    #[track_caller]
    fn refused<T>(&self, on: On<'_>, member: &str, arguments: impl AppendAll, neutral: &T)
    where
        T: Arg + for<'b> Get<'b> + Debug + PartialEq,
    {
        self.ask::<T>(on, member, arguments).refused(neutral);
    }
}

fn no_text() -> String {
    String::new()
}

fn no_paths() -> (bool, Vec<Path>) {
    (false, Vec::new())
}

fn root() -> Path {
    Path::from("/")
}

/// Creates a pool; its path and its UUID.
#[track_caller]
fn pool(client: &Client, name: &str) -> (String, String) {
    let (_, (pool, _)) = client.create_pool(name, &[format!("/disk-of-{name}")]).done();
    let uuid = text_of(client, &pool, "pool", "Uuid");
    (pool, uuid)
}

#[test]
fn item_5_every_method_called_again_changes_nothing_and_says_so() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let asking = Asking { client: &client, called: RefCell::default() };
    for rows in [keys, pools, filesystems, devices, reports, encryption, bindings] {
        rows(&asking);
    }
    let mut declared = BTreeSet::new();
    for kind in ["manager", "pool", "filesystem", "blockdev"] {
        for (name, interface) in golden(kind) {
            let family = name.rsplit('.').nth(1).expect("interfaces are named after family and revision");
            declared.extend(interface.methods.into_keys().map(|member| format!("{family}.{member}")));
        }
    }
    assert_eq!(asking.called.into_inner(), declared, "no method is left out");
}

fn keys(asking: &Asking<'_>) {
    let neither = (false, false);
    assert_eq!(asking.twice(MANAGER, "SetKey", || ("k", file(b"secret")), &neither), (true, false));
    assert_eq!(asking.twice(MANAGER, "SetKey", || ("k", file(b"other")), &neither), (true, true));
    asking.refused(MANAGER, "SetKey", ("k", file(&[0; 65])), &neither);
    asking.twice(MANAGER, "ListKeys", || (), &vec!["k".to_owned()]);
    assert!(asking.twice(MANAGER, "UnsetKey", || ("k",), &false));
    asking.refused(MANAGER, "UnsetKey", ("a;b",), &false);
    asking.twice(MANAGER, "ListKeys", || (), &Vec::<String>::new());
}

fn pools(asking: &Asking<'_>) {
    let create = |name: &str, device: &str| create_pool_arguments(name, &[device]);
    let none = (false, (root(), Vec::<Path>::new()));
    let (changed, (path, _)) = asking.twice(MANAGER, "CreatePool", || create("p", "/dev/p"), &none);
    assert!(changed);
    asking.refused(MANAGER, "CreatePool", create("p", "/dev/other"), &none);
    let no_devices: [&str; 0] = [];
    asking.refused(MANAGER, "CreatePool", create_pool_arguments("q", &no_devices), &none);
    let uuid = text_of(asking.client, &path, "pool", "Uuid");

    let unchanged = (false, no_text());
    let on_pool = (&*path, "pool", 9);
    pool(asking.client, "other");
    assert_eq!(asking.twice(on_pool, "SetName", || ("renamed",), &unchanged), (true, uuid.clone()));
    for name in ["other", "a b", ""] {
        asking.refused(on_pool, "SetName", (name,), &unchanged);
    }

    assert_eq!(asking.twice(MANAGER, "StopPool", || ("renamed", "name"), &unchanged), (true, uuid.clone()));
    for (id, kind) in [("nobody", "name"), ("renamed", "Name"), ("nobody", "uuid")] {
        asking.refused(MANAGER, "StopPool", (id, kind), &unchanged);
    }
    let none = (false, (root(), Vec::<Path>::new(), Vec::<Path>::new()));
    let (changed, (path, ..)) = asking.twice(MANAGER, "StartPool", || start_pool_arguments(&uuid, "uuid"), &none);
    assert!(changed);
    for (id, kind) in [("nobody", "name"), ("renamed", "Name"), ("nobody", "uuid")] {
        asking.refused(MANAGER, "StartPool", start_pool_arguments(id, kind), &none);
    }
    // It runs and is not encrypted, so there is nothing to unlock.
    asking.refused(MANAGER, "StartPool", start_pool_with(&uuid, (true, FREE), false), &none);
    asking.refused(MANAGER, "StartPool", start_pool_with(&uuid, (false, FREE), true), &none);

    let filesystem = asking.client.make_filesystem(&path, "f");
    asking.refused(MANAGER, "DestroyPool", (path.clone(),), &unchanged);
    asking.client.destroy_filesystems(&path, &[filesystem]).done();
    let (destroyed, id): (bool, String) = asking.ask(MANAGER, "DestroyPool", (path.clone(),)).done();
    assert_eq!((destroyed, id.len(), id.replace('-', "")), (true, 36, uuid), "here the UUID has hyphens");
    asking.refused(MANAGER, "DestroyPool", (path,), &unchanged);
    asking.refused(MANAGER, "DestroyPool", (Path::from(TOP),), &unchanged);
}

fn filesystems(asking: &Asking<'_>) {
    let (path, _) = pool(asking.client, "filesystems");
    let (other, _) = pool(asking.client, "others");
    let theirs = Path::from(asking.client.make_filesystem(&other, "theirs"));
    let on = (&*path, "pool", 9);
    let none = (false, Vec::<(Path, String)>::new());
    let spec = |name: &str, size: &str| (specs_argument(&[(name, Some(size), None)]),);
    let (_, made) = asking.twice(on, "CreateFilesystems", || spec("f", "536870912"), &none);
    asking.refused(on, "CreateFilesystems", spec("f", "1073741824"), &none);
    let two = specs_argument(&[("g", None, None), ("h", None, None)]);
    asking.refused(on, "CreateFilesystems", (two,), &none);
    asking.twice(on, "CreateFilesystems", || (specs_argument(&[]),), &none);

    let [(origin, _)] = &made[..] else { panic!("one was made: {made:?}") };
    let (_, snapshot) = asking.twice(on, "SnapshotFilesystem", || (origin.clone(), "s"), &(false, root()));
    for of in [root(), theirs.clone()] {
        asking.refused(on, "SnapshotFilesystem", (of, "t"), &(false, root()));
    }

    let renaming = (&**origin, "filesystem", 9);
    let uuid = text_of(asking.client, origin, "filesystem", "Uuid");
    let unchanged = (false, NIL.to_owned());
    assert_eq!(asking.twice(renaming, "SetName", || ("renamed",), &unchanged), (true, uuid.clone()));
    for name in ["s", "a b", ""] {
        asking.refused(renaming, "SetName", (name,), &unchanged);
    }

    let none = (false, Vec::<String>::new());
    let merge = |schedule: bool| asking.client.set(&snapshot, &interface("filesystem", 9), "MergeScheduled", schedule);
    assert_eq!(merge(true), Ok(()));
    for scheduled in [&snapshot, origin] {
        asking.refused(on, "DestroyFilesystems", (vec![scheduled.clone()],), &none);
    }
    assert_eq!(merge(false), Ok(()));
    let destroyed = asking.twice(on, "DestroyFilesystems", || (vec![origin.clone(), theirs.clone()],), &none);
    assert_eq!(destroyed, (true, vec![uuid]));
}

fn devices(asking: &Asking<'_>) {
    let (path, _) = pool(asking.client, "devices");
    let on = (&*path, "pool", 9);
    let give = |device: &str| (vec![device.to_owned()],);
    asking.refused(on, "AddCacheDevs", give("/dev/cache"), &no_paths());
    asking.refused(on, "InitCache", (Vec::<String>::new(),), &no_paths());
    let (added, made) = asking.twice(on, "AddDataDevs", || give("/dev/data"), &no_paths());
    assert_eq!((added, made.len()), (true, 1));
    let (added, cached) = asking.twice(on, "InitCache", || give("/dev/cache"), &no_paths());
    assert_eq!((added, cached.len()), (true, 1));
    for other in [give("/dev/more"), (Vec::new(),)] {
        asking.refused(on, "InitCache", other, &no_paths());
    }
    let (added, cached) = asking.twice(on, "AddCacheDevs", || give("/dev/more"), &no_paths());
    assert_eq!((added, cached.len()), (true, 1));
    for method in ["AddDataDevs", "AddCacheDevs"] {
        asking.refused(on, method, give("relative"), &no_paths());
        asking.twice(on, method, || (Vec::<String>::new(),), &no_paths());
    }
    asking.refused(on, "AddDataDevs", give("/dev/cache"), &no_paths());
    asking.refused(on, "AddCacheDevs", give("/dev/data"), &no_paths());

    let uuid = text_of(asking.client, &made[0], "blockdev", "Uuid");
    assert!(!asking.twice(on, "GrowPhysicalDevice", || (uuid.as_str(),), &false), "its size is what it was");
    asking.refused(on, "GrowPhysicalDevice", ("nobody",), &false);
    let (tagging, unchanged) = ((&*made[0], "blockdev", 0), (false, NIL.to_owned()));
    let tagged = asking.twice(tagging, "SetUserInfo", || ((true, "tag"),), &unchanged);
    assert_eq!(tagged, (true, uuid));
    asking.refused(tagging, "SetUserInfo", ((true, "a b"),), &unchanged);
}

fn reports(asking: &Asking<'_>) {
    let (path, _) = pool(asking.client, "reports");
    let on = (&*path, "pool", 9);
    let again = |on, member: &str, arguments: &dyn Fn() -> (bool,)| {
        let first: String = asking.ask(on, member, arguments()).done();
        assert!(first.starts_with('{'), "{member}: {first}");
        asking.twice(on, member, arguments, &first);
    };
    again(on, "Metadata", &|| (true,));
    again(on, "Metadata", &|| (false,));
    asking.twice(on, "FilesystemMetadata", || ((true, "nobody"), true), &"{}".to_owned());
    let state: String = asking.ask(MANAGER, "EngineStateReport", ()).done();
    asking.twice(MANAGER, "EngineStateReport", || (), &state);
    let stopped: String = asking.ask(REPORT, "GetReport", ("stopped_pools",)).done();
    asking.twice(REPORT, "GetReport", || ("stopped_pools",), &stopped);
    for name in ["", "engine_state_report"] {
        asking.refused(REPORT, "GetReport", (name,), &no_text());
    }
    asking.called.borrow_mut().insert("Manager.RefreshState".to_owned());
    for _twice in 0..2 {
        let said: Result<(u16, String), _> = asking.client.call(TOP, &interface("Manager", 9), "RefreshState", ());
        assert_eq!(said.expect("it is answered"), (0, "Ok".to_owned()));
    }
}

fn encryption(asking: &Asking<'_>) {
    let (path, uuid) = pool(asking.client, "plain");
    let on = (&*path, "pool", 9);
    let methods = |key| (keys_argument(key), clevis_argument(&[]));
    let unlocking = (TOP, "Manager", 0);
    let locked = (false, Vec::<String>::new());
    asking.refused(unlocking, "UnlockPool", (&*uuid, "any"), &locked);
    asking.refused(unlocking, "UnlockPool", ("nobody", "any"), &locked);
    asking.refused(on, "ReencryptPool", (), &false);
    asking.refused(on, "EncryptPool", methods(&[]), &false);
    assert!(asking.twice(on, "EncryptPool", || methods(&[(FREE, "k")]), &false));
    assert!(asking.twice(on, "ReencryptPool", || (), &true), "each time anew");
    assert!(asking.twice(on, "DecryptPool", || (), &false));

    make_key(asking.client, "k");
    let (_, (path, _)) = create_encrypted(asking.client, "locked", &[(FREE, "k")], &[]).done();
    let uuid = text_of(asking.client, &path, "pool", "Uuid");
    asking.client.stop_pool("locked", "name").done();
    let (unlocked, devices) = asking.twice(unlocking, "UnlockPool", || (&*uuid, "any"), &locked);
    assert_eq!((unlocked, devices.len()), (true, 1));
}

fn bindings(asking: &Asking<'_>) {
    let (_, (path, _)) = create_encrypted(asking.client, "bound", &[(at(0), "k")], &[]).done();
    let on = (&*path, "pool", 9);
    // The only way in stays.
    asking.refused(on, "UnbindKeyring", (at(0),), &false);
    asking.refused(on, "UnbindClevis", (FREE,), &false);
    asking.refused(on, "RebindClevis", (FREE,), &false);
    assert!(asking.twice(on, "BindKeyring", || ("two", FREE), &false), "in slot 1");
    assert!(asking.twice(on, "BindClevis", || ("tpm2", "{}", at(3)), &false));
    assert!(asking.twice(on, "BindClevis", || ("tpm2", "{}", FREE), &true), "in slots 2 and 4, once more each");
    asking.refused(on, "BindKeyring", ("three", at(3)), &false);
    asking.refused(on, "BindClevis", ("tpm2", "{}", at(0)), &false);
    asking.refused(on, "BindClevis", ("tpm2", "{", at(9)), &false);
    assert!(asking.twice(on, "RebindKeyring", || ("three", at(1)), &false));
    asking.refused(on, "RebindKeyring", ("four", at(3)), &false);
    assert!(asking.twice(on, "RebindClevis", || (at(3),), &true), "each time anew");
    asking.refused(on, "RebindClevis", (at(0),), &false);
    assert!(asking.twice(on, "UnbindKeyring", || (at(1),), &false));
    asking.refused(on, "UnbindKeyring", (at(3),), &false);
    assert!(asking.twice(on, "UnbindClevis", || (at(3),), &false));
    asking.refused(on, "UnbindClevis", (at(0),), &false);
}
