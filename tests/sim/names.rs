//! Other names: every crash point, the paths that follow them, and of several who want one name one gets it.

use super::*;

fn rename(seen: &Seen, filesystem: &str, to: &str) -> Wish {
    Wish::SetFilesystemName(pool(), world::filesystem(seen, filesystem), name(to))
}

/// The paths that lead to filesystems, in order.
fn paths(machine: &Machine) -> Vec<String> {
    machine.announced().into_keys().collect()
}

#[test]
fn a_filesystem_has_its_old_name_or_the_other() {
    every_crash_point(Before::Filesystem, |seen| rename(seen, "one", "uno"));
    every_crash_point(Before::Mounted, |seen| rename(seen, "one", "uno"));
}

#[test]
fn a_pool_has_its_old_name_or_the_other() {
    every_crash_point(Before::Filesystem, |_| Wish::SetPoolName(pool(), name("q")));
}

#[test]
fn paths_follow_names_wherever_that_is_cut_off() {
    for wish in [(|_| Wish::SetPoolName(pool(), name("q"))) as fn(&Seen) -> Wish, |seen| rename(seen, "one", "uno")] {
        let (actions, ended) = attempt(&machine(), Before::Filesystem, wish, None);
        assert_eq!(ended.finished(), Ok(Answer::Set));
        for point in 1..=actions {
            let machine = machine();
            attempt(&machine, Before::Filesystem, wish, Some(point));
            // Only the process dies: paths stay as they were left.
            machine.kill();
            let seen = look(SEED, &machine);
            let (own, filesystems) = &seen.running[&pool()];
            let mut expected: Vec<String> = filesystems.values().map(|name| format!("{own}/{name}")).collect();
            expected.sort();
            assert_eq!(paths(&machine), expected, "action {point} of {actions}");
        }
    }
}

#[test]
fn paths_follow_names_before_the_reply() {
    let machine = machine();
    let (own, seen) = (machine.clone(), machine.clone());
    live(SEED, &machine, move |driver| async move {
        prepare(&driver, &own, Before::Filesystem).await;
        let wish = rename(&driver.seen(), "one", "uno");
        assert_eq!(driver.call(wish.clone()).await, Ok(Answer::Set));
        assert_eq!(paths(&own), ["p/two", "p/uno"]);
        assert_eq!(driver.call(wish).await, Ok(Answer::Identity));
        assert_eq!(driver.call(Wish::SetPoolName(pool(), name("q"))).await, Ok(Answer::Set));
        assert_eq!(paths(&own), ["q/two", "q/uno"]);
        assert_eq!(driver.call(Wish::SetPoolName(pool(), name("q"))).await, Ok(Answer::Identity));
        let taken = driver.call(rename(&driver.seen(), "two", "uno")).await;
        assert!(matches!(taken, Err(Failure::Refused(Refusal::FilesystemNameTaken { .. }))), "{taken:?}");
    })
    .finished();
    assert_eq!(paths(&seen), ["q/two", "q/uno"], "a refusal changes nothing");
}

/// Names that several want at once, while filesystems come and go.
#[test]
fn of_several_that_want_one_name_one_gets_it() {
    for seed in 0..60 {
        let machine = machine();
        let own = machine.clone();
        let (outcomes, seen) = live(seed, &machine, move |driver| async move {
            prepare(&driver, &own, Before::Filesystem).await;
            let seen = driver.seen();
            let wishes = vec![
                create_filesystem("x"),
                rename(&seen, "one", "x"),
                Wish::SetPoolName(pool(), name("q")),
                rename(&seen, "two", "y"),
                create_filesystem("y"),
                snapshot(&seen, "one", "z"),
                create_filesystem("v"),
            ];
            let outcomes = all(wishes.into_iter().map(|wish| driver.call(wish))).await;
            (outcomes, driver.seen())
        })
        .finished();
        let done = |at: usize| matches!(outcomes[at], Ok(Answer::Set | Answer::FilesystemsCreated(_)));
        assert!(done(0) != done(1) && done(2) && done(3) != done(4), "{outcomes:?}");
        let (of_pool, filesystems) = &seen.running[&pool()];
        let names: Vec<&String> = filesystems.values().collect();
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!((of_pool.as_str(), distinct.len()), ("q", names.len()), "{names:?}");
        let expected: std::collections::BTreeSet<String> = names.iter().map(|name| format!("q/{name}")).collect();
        assert_eq!(machine.announced().into_keys().collect::<std::collections::BTreeSet<_>>(), expected, "seed {seed}");
        assert_eq!(machine.bugs(), Vec::<String>::new());
        machine.crash(seed);
        assert_eq!(look(seed, &machine), seen, "what was replied stays");
    }
}

#[test]
fn a_name_that_a_pool_is_about_to_have_is_no_other_pools() {
    let other = PoolUuid::from_random([9; 16]);
    for seed in 0..40 {
        let machine = machine();
        let (outcomes, seen) = live(seed, &machine, move |driver| async move {
            driver.call(create_pool(&["/dev/a"])).await.expect("the name is free");
            let mut second = create_pool(&["/dev/b"]);
            if let Wish::CreatePool { pool, name: own, .. } = &mut second {
                (*pool, *own) = (other, name("q"));
            }
            driver.call(second).await.expect("the name is free");
            let calls = [pool(), other].map(|one| driver.call(Wish::SetPoolName(one, name("r"))));
            let outcomes = all(calls).await;
            // What lost has kept its name.
            let taken = driver.call(Wish::SetPoolName(pool(), name("q"))).await;
            assert_eq!(taken.is_err(), outcomes[1].is_err(), "{taken:?}");
            (outcomes, driver.seen())
        })
        .finished();
        assert!(outcomes[0].is_ok() != outcomes[1].is_ok(), "{outcomes:?}");
        machine.crash(seed);
        assert_eq!(look(seed, &machine), seen);
    }
}

#[test]
fn a_name_that_cannot_be_saved_is_given_back() {
    let machine = machine();
    let failing = machine.clone();
    live(SEED, &machine, move |driver| async move {
        driver.call(create_pool(&["/dev/a"])).await.expect("the name is free");
        failing.fail_writes("/dev/a", Some(libc::EIO));
        let failed = driver.call(Wish::SetPoolName(pool(), name("q"))).await;
        assert!(matches!(failed, Err(Failure::Faulted(_))), "{failed:?}");
        let mut second = create_pool(&["/dev/b"]);
        if let Wish::CreatePool { pool, name: own, .. } = &mut second {
            (*pool, *own) = (PoolUuid::from_random([9; 16]), name("q"));
        }
        driver.call(second).await.expect("nobody has the name");
        assert_eq!(driver.seen().running[&pool()].0, "p");
    })
    .finished();
}
