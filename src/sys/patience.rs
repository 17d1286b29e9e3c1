//! How long anybody waits for a device.
//!
//! Invariant: one that says nothing for `DEVICE_WAIT_MS` counts as failed, so that it holds up no other. Deliberately
//! absent: what becomes of it then, and of an answer that comes later.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use cores::rt;

use crate::error::{Fault, Why};
use crate::limits::DEVICE_WAIT_MS;

/// What is heard of a device in time; `None` if it is nothing.
pub async fn in_time<F: Future>(work: F) -> Option<F::Output> {
    rt::within(Duration::from_millis(DEVICE_WAIT_MS), work).await
}

/// That nothing was heard in time.
pub fn late(doing: &'static str, subject: impl Display) -> Fault {
    Fault::new(doing, subject, Why::Late { seconds: DEVICE_WAIT_MS / 1_000 })
}
