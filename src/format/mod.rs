//! Bytes on disk <-> values: everything Stratis writes outside of XFS and LUKS, and nothing else.
//!
//! All of it is pure: bytes come in, bytes go out, and whoever holds a descriptor carries them.
//! What is decoded here came from outside, so every number is bounded when it is read: sums over a
//! decoded record and offsets in bytes cannot pass 64 bits (`limits::SECTORS_MAX`).
//!
//! Deliberately absent: I/O, choices between devices, and any opinion on whether a pool's record
//! makes sense (that is `engine::check`).

pub mod filesystem;
pub mod header;
pub mod intent;
pub mod mda;
pub mod record;
pub mod thin;
