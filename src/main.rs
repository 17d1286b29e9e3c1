//! stratisd
fn main() {}
