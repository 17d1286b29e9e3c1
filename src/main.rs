//! The daemon; its roles are wired when the bus role is there.
fn main() {}
