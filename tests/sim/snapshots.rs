//! Snapshots: every crash point, of origins that are mounted and that are not, and what becomes of
//! snapshots whose origin goes.

use stratisd::model::dm::ThinPoolMode;

use super::*;

/// What is a snapshot of what, as clients see it.
pub(crate) fn origins(seen: &Seen) -> Vec<&String> {
    seen.settings.iter().filter(|setting| setting.contains(" of ")).collect()
}

#[test]
fn a_snapshot_is_all_or_nothing() {
    every_crash_point(Before::Filesystem, |seen| snapshot(seen, "one", "s"));
}

#[test]
fn a_snapshot_of_a_mounted_filesystem_is_all_or_nothing() {
    every_crash_point(Before::Mounted, |seen| snapshot(seen, "one", "s"));
}

#[test]
fn a_snapshot_of_a_snapshot_is_all_or_nothing() {
    every_crash_point(Before::Snapshots, |seen| snapshot(seen, "t", "u"));
}

#[test]
fn an_origin_goes_and_its_snapshots_get_another_or_neither() {
    for origin in ["one", "s"] {
        let destroy: fn(&Seen) -> Wish = match origin {
            "one" => |seen| Wish::DestroyFilesystems(pool(), vec![filesystem(seen, "one")]),
            _ => |seen| Wish::DestroyFilesystems(pool(), vec![filesystem(seen, "s")]),
        };
        every_crash_point(Before::Snapshots, destroy);
    }
}

#[test]
fn what_is_destroyed_with_its_origin_does_not_come_back() {
    for seed in 0..20 {
        let machine = machine();
        let own = machine.clone();
        let told = live(seed, &machine, move |driver| async move {
            prepare(&driver, &own, Before::Snapshots).await;
            let seen = driver.seen();
            let both = ["one", "s"].map(|name| filesystem(&seen, name)).to_vec();
            driver.call(Wish::DestroyFilesystems(pool(), both)).await.expect("they are not in use");
            driver.seen()
        })
        .finished();
        machine.crash(seed);
        let seen = look(seed, &machine);
        assert_eq!(seen, told);
        assert_eq!(seen.running[&pool()].1.values().collect::<Vec<_>>(), ["t"]);
        assert!(origins(&seen).is_empty(), "nobody is left: {:?}", origins(&seen));
    }
}

/// Each goes by itself, so a crash may leave some of them; whoever stays has an origin that is there, or none.
#[test]
fn whatever_is_left_of_a_destruction_has_an_origin_that_is_there() {
    let destroy =
        |seen: &Seen| Wish::DestroyFilesystems(pool(), ["one", "s"].map(|name| filesystem(seen, name)).to_vec());
    let (actions, _) = attempt(&machine(), Before::Snapshots, destroy, None);
    let mut left = std::collections::BTreeSet::new();
    for point in 1..=actions {
        for crash in 0..CRASHES {
            let machine = machine();
            attempt(&machine, Before::Snapshots, destroy, Some(point));
            if crash == 0 {
                machine.kill()
            } else {
                machine.crash(crash)
            }
            let at = format!("action {point} of {actions}, crash {crash}");
            let seen = look(SEED + crash, &machine);
            let there = &seen.running[&pool()].1;
            for line in origins(&seen) {
                let (_, origin) = line.split_once(" of ").expect("that is how it is written");
                assert!(there.keys().any(|uuid| uuid.to_string() == origin), "{line}: {there:?} {at}");
            }
            let named: Vec<&str> = there.values().map(String::as_str).collect();
            let expected = usize::from(named.contains(&"s") && named.contains(&"one")) + usize::from(named.len() > 1);
            assert_eq!(origins(&seen).len(), expected, "{named:?} {seen:#?} {at}");
            nothing_left_over(&machine, &seen, &at);
            left.insert(named.join(" "));
        }
    }
    assert!(left.len() > 2, "a crash may come between them: {left:?}");
}

/// Snapshots of one origin, of snapshots, creations and the destruction of the origin, all at once.
#[test]
fn many_at_once_end_with_origins_that_are_there() {
    let mut made = 0;
    for seed in 0..60 {
        let machine = machine();
        let own = machine.clone();
        let (outcomes, seen) = live(seed, &machine, move |driver| async move {
            prepare(&driver, &own, Before::Snapshots).await;
            let seen = driver.seen();
            let destroy = |name| Wish::DestroyFilesystems(pool(), vec![filesystem(&seen, name)]);
            let wishes = vec![
                snapshot(&seen, "one", "a"),
                snapshot(&seen, "s", "b"),
                snapshot(&seen, "one", "c"),
                destroy("one"),
                create_filesystem("d"),
                snapshot(&seen, "s", "e"),
                snapshot(&seen, "one", "f"),
                destroy("s"),
                snapshot(&seen, "t", "d"),
            ];
            let outcomes = all(wishes.into_iter().map(|wish| driver.call(wish))).await;
            (outcomes, driver.seen())
        })
        .finished();
        for (outcome, wanted) in outcomes.iter().zip([true, true, true, true, true, true, false, true]) {
            assert_eq!(outcome.is_ok(), wanted, "in the order of arrival: {outcome:?}");
        }
        made += usize::from(matches!(outcomes[8], Ok(Answer::FilesystemSnapshotted(_))));
        assert_eq!(machine.bugs(), Vec::<String>::new());
        let names: Vec<&String> = seen.running[&pool()].1.values().collect();
        let uuids: Vec<String> = seen.running[&pool()].1.keys().map(ToString::to_string).collect();
        for origin in origins(&seen) {
            let of = origin.split(' ').next_back().expect("it names one");
            assert!(uuids.iter().any(|uuid| uuid == of), "{origin} is not among {names:?}");
        }
        nothing_left_over(&machine, &seen, &format!("seed {seed}"));
        machine.crash(seed);
        assert_eq!(look(seed, &machine), seen, "what was replied stays");
    }
    assert_eq!(made, 0, "the name was taken by a creation that arrived before");
}

#[test]
fn two_snapshots_of_one_name_are_one() {
    for seed in 0..20 {
        let machine = machine();
        let own = machine.clone();
        let outcomes = live(seed, &machine, move |driver| async move {
            prepare(&driver, &own, Before::Filesystem).await;
            let seen = driver.seen();
            all([("one", "s"), ("two", "s"), ("one", "s")].map(|(origin, name)| {
                let (driver, wish) = (Rc::clone(&driver), snapshot(&seen, origin, name));
                async move { driver.call(wish).await }
            }))
            .await
        })
        .finished();
        let made = outcomes.iter().filter(|one| matches!(one, Ok(Answer::FilesystemSnapshotted(_)))).count();
        assert_eq!(made, 1, "{outcomes:?}");
    }
}

#[test]
fn a_full_pool_keeps_nobody_waiting() {
    let machine = machine();
    let own = machine.clone();
    let (refused, made) = live(SEED, &machine, move |driver| async move {
        prepare(&driver, &own, Before::Filesystem).await;
        own.ail(pool(), ThinPoolMode::OutOfDataSpace, false);
        let refused = driver.call(snapshot(&driver.seen(), "one", "s")).await;
        own.ail(pool(), ThinPoolMode::ReadWrite, false);
        (refused, driver.call(snapshot(&driver.seen(), "one", "s")).await)
    })
    .finished();
    assert!(matches!(refused, Err(Failure::Refused(Refusal::PoolFull { .. }))), "{refused:?}");
    assert!(matches!(made, Ok(Answer::FilesystemSnapshotted(_))), "{made:?}");
}
