//! Blocking jobs on a lane, and what became of them, as the machines report it.
//!
//! Invariant: a full lane is an answer (`Why::Full`), a job that panicked is our bug and says so.
//! Deliberately absent: which lane is for what.

use std::io;

use cores::lane::{LaneFault, Use};

use crate::error::Why;

/// Runs a job on a lane, for whoever uses it.
pub(super) async fn on<'a, T: Send + 'static>(
    lane: impl Into<Use<'a>>,
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Why> {
    lane.into().run(job).await.map_err(|fault| match fault {
        LaneFault::Full { queue_max, .. } => Why::Full { what: "a lane of blocking calls", max: queue_max },
        LaneFault::NoThread { .. } => {
            log::error!("{fault}");
            Why::Errno(libc::EAGAIN)
        }
        LaneFault::Panicked(message) => Why::Bug(message),
    })
}

/// As `on`, for a job that ends with a system call's result.
pub(super) async fn blocking<'a, T: Send + 'static>(
    lane: impl Into<Use<'a>>,
    job: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Why> {
    on(lane, job).await?.map_err(|error| why(&error))
}

/// The errno of a failed call.
pub(super) fn why(error: &io::Error) -> Why {
    Why::Errno(error.raw_os_error().unwrap_or(libc::EIO))
}
