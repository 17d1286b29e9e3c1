//! Requests that cannot both be granted, at the same time: exactly one wins, the others leave nothing.

use std::path::Path;
use std::time::Duration;

use dbus::Message;

use crate::support::client::{Client, create_pool_arguments, method};
use crate::support::disk::{fingerprint, is_blank};
use crate::support::raw::{RawClient, bytes_of};
use crate::support::rig::{Kind, Rig};
use crate::support::value::Value;
use crate::support::{GIB, TOP, interface};

const ROUNDS: usize = 5;
const RIVALS: usize = 6;

fn create(name: &str, disk: &str) -> Message {
    let mut message = method(TOP, &interface("Manager", 9), "CreatePool");
    message.append_all(create_pool_arguments(name, &[disk]));
    message
}

/// Sends each message on its own connection, all before any answer is read; says which were granted.
fn race(clients: &[Client], messages: Vec<Message>) -> Vec<bool> {
    let serials: Vec<_> = clients.iter().zip(messages).map(|(client, message)| client.send(message)).collect();
    let answers = clients.iter().zip(serials).map(|(client, serial)| {
        let reply = client.reply_to(serial).expect("each rival is answered").expect("by a Stratis answer");
        let body = Value::body(&reply);
        let (changed, code) = (body[0].members()[0].is_true(), body[1].number());
        assert!(code == 0 || !changed, "a refusal changes nothing: {body:?}");
        changed
    });
    answers.collect()
}

#[test]
fn one_name_is_given_once() {
    for kind in [Kind::Sim, Kind::Files] {
        let rig = Rig::new(kind);
        let mut daemon = rig.start();
        let clients: Vec<_> = (0..RIVALS).map(|_| rig.client()).collect();
        let observer = rig.client();
        for round in 0..ROUNDS {
            let disks: Vec<_> = (0..RIVALS).map(|index| rig.disk(&format!("{round}-{index}"), 2 * GIB)).collect();
            let before = (kind == Kind::Files)
                .then(|| disks.iter().map(|disk| fingerprint(Path::new(disk))).collect::<Vec<_>>());
            let won = race(&clients, disks.iter().map(|disk| create("same", disk)).collect());
            assert_eq!(won.iter().filter(|won| **won).count(), 1, "{kind:?} round {round}: {won:?}");
            let winner = won.iter().position(|won| *won).expect("one has won");
            let pools = observer.family("pool");
            assert_eq!(pools.len(), 1);
            assert_eq!(observer.family("blockdev").len(), 1);
            for (index, disk) in disks.iter().enumerate().filter(|(index, _)| *index != winner) {
                if let Some(before) = &before {
                    assert_eq!(
                        fingerprint(Path::new(disk)),
                        before[index],
                        "round {round}: a loser's disk is as it was"
                    );
                }
                let (changed, (pool, _)) = observer.create_pool("loser", &[disk]).done();
                assert!(changed, "round {round}: a loser's disk is free");
                observer.destroy_pool(&pool).done();
            }
            observer.destroy_pool(pools.keys().next().expect("there is one")).done();
        }
        assert!(daemon.is_alive());
    }
}

#[test]
fn one_device_is_given_once() {
    for kind in [Kind::Sim, Kind::Files] {
        let rig = Rig::new(kind);
        let mut daemon = rig.start();
        let clients: Vec<_> = (0..RIVALS).map(|_| rig.client()).collect();
        let observer = rig.client();
        let disk = rig.disk("one", 2 * GIB);
        for round in 0..ROUNDS {
            let won = race(&clients, (0..RIVALS).map(|index| create(&format!("p{index}"), &disk)).collect());
            assert_eq!(won.iter().filter(|won| **won).count(), 1, "{kind:?} round {round}: {won:?}");
            let pools = observer.family("pool");
            assert_eq!(pools.len(), 1);
            let (path, properties) = pools.first_key_value().expect("there is one");
            let winner = won.iter().position(|won| *won).expect("one has won");
            assert_eq!(properties["Name"].text(), format!("p{winner}"), "round {round}: who was told so has won");
            observer.destroy_pool(path).done();
            if kind == Kind::Files {
                assert!(is_blank_but_reserved(Path::new(&disk)), "a destroyed pool leaves no signature");
            }
        }
        assert!(daemon.is_alive());
    }
}

/// Whether both signature blocks are gone: the first 8 KiB are zero.
fn is_blank_but_reserved(disk: &Path) -> bool {
    crate::support::disk::head(disk, 8192).iter().all(|byte| *byte == 0)
}

#[test]
fn equal_requests_make_one_pool() {
    for kind in [Kind::Sim, Kind::Files] {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let clients: Vec<_> = (0..RIVALS).map(|_| rig.client()).collect();
        let disk = rig.disk("one", 2 * GIB);
        let won = race(&clients, (0..RIVALS).map(|_| create("p", &disk)).collect());
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{kind:?}: {won:?}");
        assert_eq!(clients[0].family("pool").len(), 1);
        assert!(!clients[0].create_pool("p", &[&disk]).done().0);
    }
}

#[test]
fn one_filesystem_name_is_given_once() {
    for kind in [Kind::Sim, Kind::Files] {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let clients: Vec<_> = (0..RIVALS).map(|_| rig.client()).collect();
        let (_, (pool, _)) = clients[0].create_pool("p", &[rig.disk("one", 4 * GIB)]).done();
        for round in 0..ROUNDS {
            let messages = (0..RIVALS).map(|_| {
                let specs = crate::support::client::specs_argument(&[("f", Some("536870912"), None)]);
                method(&pool, &interface("pool", 9), "CreateFilesystems").append1(specs)
            });
            let won = race(&clients, messages.collect());
            assert_eq!(won.iter().filter(|won| **won).count(), 1, "{kind:?} round {round}: {won:?}");
            let made: Vec<_> = clients[0].family("filesystem").into_keys().collect();
            assert_eq!(made.len(), 1);
            let destroy = |path: &String| {
                let paths = vec![dbus::Path::from(path.clone())];
                method(&pool, &interface("pool", 9), "DestroyFilesystems").append1(paths)
            };
            let won = race(&clients, (0..RIVALS).map(|_| destroy(&made[0])).collect());
            assert_eq!(won.iter().filter(|won| **won).count(), 1, "{kind:?} round {round}: {won:?}");
            assert!(clients[0].family("filesystem").is_empty());
        }
    }
}

#[test]
fn stopping_and_destroying_at_once_grants_one() {
    for kind in [Kind::Sim, Kind::Files] {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let clients = [rig.client(), rig.client()];
        for round in 0..ROUNDS {
            let (_, (pool, _)) = clients[0].create_pool("p", &[rig.disk("one", 2 * GIB)]).done();
            let stop = method(TOP, &interface("Manager", 9), "StopPool").append2("p", "name");
            let destroy = method(TOP, &interface("Manager", 9), "DestroyPool").append1(dbus::Path::from(pool));
            let won = race(&clients, vec![stop, destroy]);
            assert!(won[0] != won[1], "{kind:?} round {round}: {won:?}");
            assert!(clients[0].objects().is_empty());
            let stopped = clients[0].stopped_pools(9);
            assert_eq!(stopped.len(), usize::from(won[0]), "{kind:?} round {round}");
            if won[0] {
                let (_, (pool, _, _)) = clients[0].start_pool("p", "name").done();
                clients[0].destroy_pool(&pool).done();
            }
        }
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_call_does_no_harm() {
    for kind in [Kind::Sim, Kind::Files] {
        let rig = Rig::new(kind);
        let mut daemon = rig.start();
        let client = rig.client();
        for round in 0..5 {
            let disk = rig.disk(&format!("d{round}"), 2 * GIB);
            let mut raw = RawClient::connect(rig.bus.socket()).hello();
            let own = format!("p{round}");
            let mut message = create(&own, &disk);
            message.set_serial(2);
            raw.send(&bytes_of(&message)).expect("the bus reads");
            drop(raw);
            // A started request runs to its end; until then an equal one is refused as busy. Whichever
            // of the two the bus daemon delivers first makes the pool, the other finds it.
            while client.create_pool(&own, &[&disk]).code != 0 {
                client.wait_message(Duration::from_millis(5));
                assert!(daemon.is_alive(), "round {round}");
            }
            assert_eq!(client.objects().len(), 2 * (round + 1), "one pool, one device more");
        }
    }
}

#[test]
fn a_fresh_disk_is_blank() {
    // The checks above stand on this.
    let rig = Rig::files();
    assert!(is_blank(Path::new(&rig.disk("one", 2 * GIB))));
}
