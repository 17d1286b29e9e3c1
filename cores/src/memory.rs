//! The memory that the C library hands out.
//!
//! Invariant: none; this is about time. Deliberately absent: the memory of our own code, which the daemon's global
//! allocator hands out.

/// Has all threads share the C library's one arena. Little asks it for memory: libraries in C, and each thread for the
/// note of what it destroys when it ends. For that note alone a new thread would get an arena of its own: 128 MiB
/// mapped, most of it given back, a heap made writable. Call it before there are threads.
pub fn one_arena() {
    // SAFETY: integers only; what the C library has handed out stays valid.
    let done = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    if done == 0 {
        log::warn!("each thread has memory of the C library to itself: it does not know how to share it");
    }
}
