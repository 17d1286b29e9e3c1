//! What is said to be recorded is what the devices hold, also while that changes and when one cannot be read.

use std::time::Duration;

use cores::rt;
use stratisd::error::{Failure, Fault};
use stratisd::format::record;
use stratisd::message::{Answer, Wish};

use crate::world::{Driver, create_filesystem, create_pool, live, pool};
use crate::{SEED, machine};

async fn text(driver: &Driver, wish: Wish) -> String {
    match driver.call(wish).await {
        Ok(Answer::Text(text)) => text,
        other => panic!("a document was asked for: {other:?}"),
    }
}

/// Whether a pool's record allows overprovisioning.
async fn overprovisioning(driver: &Driver, current: bool) -> bool {
    let json = text(driver, Wish::Metadata(pool(), current)).await;
    record::decode(json.as_bytes()).expect("a whole record").overprovisioning()
}

#[test]
fn a_record_that_is_being_written_is_the_one_before_or_the_one_after() {
    let machine = machine();
    machine.set_write_time(Duration::from_millis(10));
    let (before, [old, new]) = live(SEED, &machine, |driver| async move {
        driver.call(create_pool(&["/dev/a", "/dev/b"])).await.expect("it is created");
        let setting = driver.clone();
        let set = rt::spawn("set", async move { setting.call(Wish::SetOverprovisioning(pool(), false)).await });
        let mut seen = [0, 0];
        // Again and again, through the whole save and a little longer.
        let mut last = true;
        while seen[1] < 3 {
            rt::sleep(Duration::from_millis(1)).await;
            let found = overprovisioning(&driver, false).await;
            assert!(last || !found, "what was written is not forgotten");
            last = found;
            seen[usize::from(!found)] += 1;
        }
        set.await.expect("no bug").expect("it is set");
        (overprovisioning(&driver, true).await, seen)
    })
    .finished();
    assert!(!before && old > 0 && new > 0, "{old} times the one before, {new} times the one after");
}

#[test]
fn one_device_that_can_be_read_is_enough() {
    let machine = machine();
    let failing = machine.clone();
    let outcome = live(SEED, &machine, |driver| async move {
        driver.call(create_pool(&["/dev/a", "/dev/b"])).await.expect("it is created");
        let whole = text(&driver, Wish::Metadata(pool(), false)).await;
        assert_eq!(text(&driver, Wish::Metadata(pool(), true)).await, whole, "what is shown was written first");
        failing.fail_reads("/dev/a", Some(libc::EIO));
        assert_eq!(text(&driver, Wish::Metadata(pool(), false)).await, whole);
        failing.fail_reads("/dev/b", Some(libc::EIO));
        assert_eq!(text(&driver, Wish::Metadata(pool(), true)).await, whole, "memory is not read from a device");
        let seen = driver.seen();
        let outcome = driver.call(Wish::Metadata(pool(), false)).await;
        assert_eq!(driver.seen(), seen, "a look changes nothing");
        outcome
    })
    .finished();
    assert!(matches!(outcome, Err(Failure::Faulted(Fault { doing: "read the record of", .. }))), "{outcome:?}");
}

#[test]
fn records_of_filesystems_are_there_once_they_are_durable() {
    let machine = machine();
    live(SEED, &machine, |driver| async move {
        driver.call(create_pool(&["/dev/a", "/dev/b"])).await.expect("it is created");
        let all = || Wish::FilesystemMetadata(pool(), None);
        assert_eq!(text(&driver, all()).await, "{}");
        driver.call(create_filesystem("one")).await.expect("it is created");
        let one = text(&driver, all()).await;
        assert!(one.contains(r#""name":"one""#) && one.contains(r#""thin_id":0"#), "{one}");
        assert_eq!(text(&driver, Wish::FilesystemMetadata(pool(), Some("one".into()))).await, one);
        assert_eq!(text(&driver, Wish::FilesystemMetadata(pool(), Some("two".into()))).await, "{}");
    })
    .finished();
}
