//! An idle core sleeps: this counts how often any thread of this process was woken in two seconds.
//!
//! One test in its own binary, since the count is of the whole process.

use std::fs;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use cores::executor::{self, CoreSpec};
use cores::lane::Lane;
use cores::rt;

/// The sleep of the test thread and the end of two sleeps of the core, with a few for chance.
const SWITCHES_MAX: u64 = 8;

/// Context switches of every thread of this process so far, wanted or not.
fn switches() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").expect("every process has its threads listed");
    tasks
        .map(|task| {
            let path = task.expect("the list can be read").path().join("status");
            let status = fs::read_to_string(path).expect("no thread ends during the test");
            let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
            counts
                .map(|line| line.split_whitespace().nth(1).expect("a count").parse::<u64>().expect("a count"))
                .sum::<u64>()
        })
        .sum()
}

#[test]
fn an_idle_core_with_its_side_ring_and_a_lane_sleeps() {
    let (sender, woken) = crossbeam_channel::bounded(1);
    let core = CoreSpec { name: "idle".to_owned(), cpu: None };
    let handle = executor::start(core, move || async move {
        let side = rt::side();
        let lane = Lane::new("helper", 2, 4, None);
        lane.run(|| ()).await.expect("the job runs");
        let (pipe, _writer) = io::pipe().expect("a pipe");
        let pipe = Rc::new(pipe.into());
        let wait = side.clone();
        rt::spawn("wait", async move { wait.readable(&pipe).await }).detach();
        rt::sleep(Duration::from_millis(200)).await;
        sender.send(switches()).expect("the test waits for this");
        rt::sleep(Duration::from_secs(2)).await;
        switches()
    });
    let before = woken.recv().expect("the core sleeps");
    let after = handle.expect("an executor starts").join().expect("the main future does not panic");
    assert!(after - before <= SWITCHES_MAX, "{} context switches in two idle seconds", after - before);
}
