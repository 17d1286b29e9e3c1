//! Who lives on a block device: SKELETON, owned by helper devices.
