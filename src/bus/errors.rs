//! Names of D-Bus errors. They are for calls that are wrong in form; an operation that is refused
//! or fails answers in a normal reply with return code 1.
//!
//! Deliberately absent: names of our own. Clients know the standard ones.

/// Types, counts or values of arguments that cannot mean anything.
pub const INVALID_ARGS: &str = "org.freedesktop.DBus.Error.InvalidArgs";
/// No such method on a known interface.
pub const UNKNOWN_METHOD: &str = "org.freedesktop.DBus.Error.UnknownMethod";
/// No such interface on a known object.
pub const UNKNOWN_INTERFACE: &str = "org.freedesktop.DBus.Error.UnknownInterface";
/// No such object.
pub const UNKNOWN_OBJECT: &str = "org.freedesktop.DBus.Error.UnknownObject";
/// No such property, or one that may only be read; clients know no other name for the latter.
pub const UNKNOWN_PROPERTY: &str = "org.freedesktop.DBus.Error.UnknownProperty";
/// One of the bounds of `limits.rs`.
pub const LIMITS_EXCEEDED: &str = "org.freedesktop.DBus.Error.LimitsExceeded";
/// A `Set` that was refused or failed. stratis-cli depends on this spelling.
pub const SET_FAILED: &str = "org.freedesktop.DBus.Error.Failed";
/// A call that could not be answered because of a bug or a missing file of ours.
pub const FAILED: &str = "org.freedesktop.DBus.Error.Failed";
