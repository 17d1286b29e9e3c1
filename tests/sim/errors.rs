//! What the daemon logs as errors, by thread: a history asks whether there was a reason.

use std::any::Any;
use std::cell::RefCell;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Lines that are kept of one thread.
const LINES_MAX: usize = 64;

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Recorder;

impl Log for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Error
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            LINES.with_borrow_mut(|lines| {
                if lines.len() < LINES_MAX {
                    lines.push(record.args().to_string());
                }
            });
        }
    }

    fn flush(&self) {}
}

/// Forgets what was logged on this thread, and keeps what is logged from now on.
pub(crate) fn forget() {
    if log::set_logger(&Recorder).is_ok() {
        log::set_max_level(LevelFilter::Error);
    }
    take();
}

/// What was logged on this thread. It is taken out.
pub(crate) fn take() -> Vec<String> {
    LINES.take()
}

/// What a panic says.
pub(crate) fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_else(|| "a panic".to_owned())
}
