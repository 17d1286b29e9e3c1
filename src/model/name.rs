//! Names that people give: pools, filesystems, user info of a device.
//!
//! A `Name` has passed every rule, so nothing behind the edge checks again. The rules are those of
//! the Stratis D-Bus API (names become path components below /dev/stratis), with one repair: a
//! trailing slash is refused too.

use std::fmt;

use thiserror::Error;

use crate::limits::NAME_BYTES_MAX;
use crate::zoo::{Bug, planted};

/// A checked name: not empty, at most 255 bytes, one path component, no white space at its ends.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name(String);

/// Which rule a text broke. The first broken rule wins, in the order of the variants.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum NameFault {
    /// The text has no characters.
    #[error("a name may not be empty")]
    Empty,
    /// The text holds a NUL character.
    #[error("{0:?} is not a name: it holds a NUL character")]
    Nul(String),
    /// `.` or `..`.
    #[error("{0:?} is not a name: it means a folder")]
    Dots(String),
    /// More than 255 bytes of UTF-8.
    #[error("a name of {0} bytes is too long: at most {NAME_BYTES_MAX} are allowed")]
    Long(usize),
    /// White space at the start or the end.
    #[error("{0:?} is not a name: it begins or ends with white space")]
    WhiteSpace(String),
    /// A control character anywhere.
    #[error("{0:?} is not a name: it holds a control character")]
    Control(String),
    /// An ASCII character that is not allowed.
    #[error("{0:?} is not a name: it holds {1:?}, and of ASCII only letters, digits and #+,-.:=@_ are allowed")]
    Forbidden(String, char),
}

impl Name {
    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for Name {
    type Error = NameFault;

    fn try_from(text: &str) -> Result<Self, NameFault> {
        if planted(Bug::TrailingSlash) && text.len() > 1 && text.ends_with('/') {
            return Ok(Self(text.to_owned()));
        }
        let own = || text.to_owned();
        if text.is_empty() {
            return Err(NameFault::Empty);
        }
        if text.contains('\0') {
            return Err(NameFault::Nul(own()));
        }
        if text == "." || text == ".." {
            return Err(NameFault::Dots(own()));
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(NameFault::Long(text.len()));
        }
        if text.trim() != text {
            return Err(NameFault::WhiteSpace(own()));
        }
        if text.chars().any(char::is_control) {
            return Err(NameFault::Control(own()));
        }
        match text.chars().find(|c| c.is_ascii() && !allowed(*c)) {
            Some(forbidden) => Err(NameFault::Forbidden(own(), forbidden)),
            None => Ok(Self(own())),
        }
    }
}

fn allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || "#+,-.:=@_".contains(c)
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_but_allowed_names_pass() {
        for text in ["a", "...", "1", "-a", "a,b", "#+,-.:=@_", "köln", "🦀", "\u{200b}", &"x".repeat(255)] {
            assert_eq!(Name::try_from(text).map(|name| name.as_str().to_owned()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn each_forbidden_ascii_character_is_refused() {
        for c in " !\"$%&'()*;<>?[\\]^{|}~`/".chars() {
            let text = format!("a{c}b");
            assert_eq!(Name::try_from(&*text), Err(NameFault::Forbidden(text.clone(), c)));
        }
    }

    #[test]
    fn the_first_broken_rule_is_named() {
        assert_eq!(Name::try_from(""), Err(NameFault::Empty));
        assert_eq!(Name::try_from("a\0"), Err(NameFault::Nul("a\0".into())));
        assert_eq!(Name::try_from(".."), Err(NameFault::Dots("..".into())));
        assert_eq!(Name::try_from(&*"x".repeat(256)), Err(NameFault::Long(256)));
        assert_eq!(Name::try_from("a\u{a0}"), Err(NameFault::WhiteSpace("a\u{a0}".into())));
        assert_eq!(Name::try_from("a\tb"), Err(NameFault::Control("a\tb".into())));
        assert_eq!(Name::try_from("a\u{85}b"), Err(NameFault::Control("a\u{85}b".into())));
        assert_eq!(Name::try_from("a/"), Err(NameFault::Forbidden("a/".into(), '/')));
    }
}
