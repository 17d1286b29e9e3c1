//! What the process needs before it has threads: SKELETON, owned by helper volume. Root, a private
//! mount namespace with the folder for metadata volumes, the process keyring, device-mapper's version.

use crate::error::Fault;

/// Prepares the process for real devices. Call it before any thread exists.
///
/// # Errors
/// What is missing.
pub fn prepare() -> Result<(), Fault> {
    Err(Fault::errno("prepare", "the process", libc::ENOSYS))
}
