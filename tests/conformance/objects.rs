//! Items 1 and 2: introspection, and the list of all objects.

use crate::furnish;
use crate::support::client::Client;
use crate::support::introspection::{golden, parse};
use crate::support::rig::Rig;
use crate::support::{REVISIONS, TOP};

/// The kinds of the golden files, with an object of each.
fn one_of_each(rig: &Rig, client: &Client) -> [(&'static str, String); 4] {
    let all = furnish(rig, client, "p");
    [("manager", TOP.to_owned()), ("pool", all.pool), ("filesystem", all.origin), ("blockdev", all.device)]
}

#[test]
fn item_1_introspection_of_the_four_kinds_equals_the_appendix() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let mut interfaces = 0;
    for (kind, path) in one_of_each(&rig, &client) {
        let (_, found) = parse(&client.introspect(&path).expect("every object can be introspected"));
        let expected = golden(kind);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{kind}");
        for (name, declared) in &expected {
            assert_eq!(&found[name], declared, "{name}");
        }
        interfaces += found.len();
    }
    assert_eq!(interfaces, 50);
}

#[test]
fn item_2_the_list_of_objects_is_complete_on_every_revision() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    assert!(client.objects().is_empty(), "nothing, where there is nothing");
    let kinds = one_of_each(&rig, &client);
    let objects = client.objects();
    assert_eq!(objects.len(), 4, "a pool, two filesystems, a device: {:?}", objects.keys());
    for (kind, path) in &kinds[1..] {
        let found = &objects[path];
        assert_eq!(found.len(), usize::from(REVISIONS), "{path}");
        for (name, declared) in golden(kind) {
            let properties: Vec<_> = found[&name].keys().collect();
            assert_eq!(properties, declared.properties.keys().collect::<Vec<_>>(), "{name}");
        }
    }
}
