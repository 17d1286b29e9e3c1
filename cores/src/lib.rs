//! cores

pub mod placement;
pub mod preflight;
pub mod signals;
pub mod topology;
