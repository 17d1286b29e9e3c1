//! The atomics, cells and wakers of this crate: the real ones, or loom's under `--cfg loom`.
//!
//! Invariant: no other file names loom, and no other file names `std`'s atomics or cells for what two threads
//! share. So what loom explores is the code that ships.
//!
//! Deliberately absent: a model of [`Private`] numbers, which only one thread uses; as loom objects they would only
//! multiply the schedules.

#[cfg(loom)]
pub(crate) use loom::{
    cell::UnsafeCell,
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use std::{
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
};

/// Real under loom too: the sender makes a ring in it, and a receiver looks only after a post, whose order loom checks.
pub(crate) use std::sync::OnceLock;
use std::task::Waker;

/// `std`'s cell with the interface of loom's.
#[cfg(not(loom))]
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Gives `access` a pointer for reading and writing.
    #[inline]
    pub(crate) fn with_mut<R>(&self, access: impl FnOnce(*mut T) -> R) -> R {
        access(self.0.get())
    }
}

/// A number that one side of a ring keeps for itself. It is atomic only so that the ring is `Sync` without a
/// further unsafe claim; relaxed loads and stores cost what plain ones do.
#[derive(Debug, Default)]
pub(crate) struct Private(std::sync::atomic::AtomicUsize);

impl Private {
    #[inline]
    pub(crate) fn get(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set(&self, value: usize) {
        self.0.store(value, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Holds the waker of the task that sleeps. A `wake` that races with a `register` is never lost: it wakes the old
/// waker or the new one.
#[derive(Debug, Default)]
pub(crate) struct SharedWaker {
    #[cfg(not(loom))]
    inner: atomic_waker::AtomicWaker,
    #[cfg(loom)]
    inner: loom::future::AtomicWaker,
}

impl SharedWaker {
    pub(crate) fn register(&self, waker: &Waker) {
        #[cfg(not(loom))]
        self.inner.register(waker);
        #[cfg(loom)]
        self.inner.register_by_ref(waker);
    }

    pub(crate) fn wake(&self) {
        self.inner.wake();
    }

    /// Drops the waker, on the thread that calls.
    pub(crate) fn clear(&self) {
        #[cfg(not(loom))]
        drop(self.inner.take());
        #[cfg(loom)]
        drop(self.inner.take_waker());
    }
}
