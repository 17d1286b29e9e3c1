//! A D-Bus value that can be compared, printed and asked for its type; and message bodies by signature.
//!
//! Invariant: `signature` of a value read from a message is the signature it had on the wire, also
//! for empty arrays. Deliberately absent: file descriptors and floating point, which no reply of the
//! daemon holds.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;

use dbus::Message;
use dbus::arg::{ArgType, Iter, IterAppend};
use dbus::strings::Signature;

/// One complete value.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Value {
    /// `b`
    Bool(bool),
    /// `y`, `q`, `u`, `t`: the letter and the number.
    Unsigned(char, u64),
    /// `n`, `i`, `x`: the letter and the number.
    Signed(char, i64),
    /// `s`
    Text(String),
    /// `o`
    Path(String),
    /// `g`
    Signature(String),
    /// An array that is not a dictionary: the signature of an element, the elements.
    Array(String, Vec<Value>),
    /// A dictionary: the signature of an entry (with braces), the entries.
    Dict(String, BTreeMap<Value, Value>),
    /// A struct.
    Struct(Vec<Value>),
    /// A variant.
    Variant(Box<Value>),
}

impl Value {
    /// All arguments of a message.
    pub(crate) fn body(message: &Message) -> Vec<Self> {
        Self::rest(&mut message.iter_init())
    }

    /// The type on the wire.
    pub(crate) fn signature(&self) -> String {
        match self {
            Self::Bool(_) => "b".to_owned(),
            Self::Unsigned(letter, _) | Self::Signed(letter, _) => letter.to_string(),
            Self::Text(_) => "s".to_owned(),
            Self::Path(_) => "o".to_owned(),
            Self::Signature(_) => "g".to_owned(),
            Self::Array(element, _) | Self::Dict(element, _) => format!("a{element}"),
            Self::Struct(members) => format!("({})", members.iter().map(Self::signature).collect::<String>()),
            Self::Variant(_) => "v".to_owned(),
        }
    }

    /// The text of a string or path.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Path(text) => text,
            other => panic!("{other} is not a text"),
        }
    }

    /// A truth value.
    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Bool(truth) => *truth,
            other => panic!("{other} is not a truth value"),
        }
    }

    /// An unsigned number of any width.
    pub(crate) fn number(&self) -> u64 {
        match self {
            Self::Unsigned(_, number) => *number,
            other => panic!("{other} is not an unsigned number"),
        }
    }

    /// The members of a struct or the elements of an array.
    pub(crate) fn members(&self) -> &[Self] {
        match self {
            Self::Struct(members) | Self::Array(_, members) => members,
            other => panic!("{other} has no members"),
        }
    }

    /// A dictionary with text keys, variants taken out of their wrapping.
    pub(crate) fn entries(&self) -> BTreeMap<String, Self> {
        match self {
            Self::Dict(_, entries) => {
                entries.iter().map(|(key, value)| (key.text().to_owned(), value.clone().bare())).collect()
            }
            other => panic!("{other} is not a dictionary"),
        }
    }

    /// The value inside, if this is a variant.
    pub(crate) fn bare(self) -> Self {
        match self {
            Self::Variant(inner) => *inner,
            other => other,
        }
    }

    fn rest(iter: &mut Iter<'_>) -> Vec<Self> {
        let mut values = Vec::new();
        while iter.arg_type() != ArgType::Invalid {
            values.push(Self::read(iter));
            iter.next();
        }
        values
    }

    fn read(iter: &mut Iter<'_>) -> Self {
        let kind = iter.arg_type();
        let inside = "the iterator stands on an argument of the type it reported";
        match kind {
            ArgType::Boolean => Self::Bool(iter.get().expect(inside)),
            ArgType::Byte => Self::Unsigned('y', iter.get::<u8>().expect(inside).into()),
            ArgType::UInt16 => Self::Unsigned('q', iter.get::<u16>().expect(inside).into()),
            ArgType::UInt32 => Self::Unsigned('u', iter.get::<u32>().expect(inside).into()),
            ArgType::UInt64 => Self::Unsigned('t', iter.get().expect(inside)),
            ArgType::Int16 => Self::Signed('n', iter.get::<i16>().expect(inside).into()),
            ArgType::Int32 => Self::Signed('i', iter.get::<i32>().expect(inside).into()),
            ArgType::Int64 => Self::Signed('x', iter.get().expect(inside)),
            ArgType::String => Self::Text(iter.get().expect(inside)),
            ArgType::ObjectPath => Self::Path(iter.get::<dbus::Path<'_>>().expect(inside).to_string()),
            ArgType::Signature => Self::Signature(iter.get::<Signature<'_>>().expect(inside).to_string()),
            ArgType::Struct => Self::Struct(Self::rest(&mut iter.recurse(kind).expect(inside))),
            ArgType::Variant => Self::Variant(Box::new(Self::read(&mut iter.recurse(kind).expect(inside)))),
            ArgType::Array => Self::read_array(iter),
            ArgType::Double | ArgType::UnixFd | ArgType::DictEntry | ArgType::Invalid => {
                panic!("no reply of the daemon holds a {}", kind.as_str())
            }
        }
    }

    fn read_array(iter: &mut Iter<'_>) -> Self {
        let signature = iter.signature();
        let element = signature.strip_prefix('a').expect("an array's signature begins with a").to_owned();
        let mut inner = iter.recurse(ArgType::Array).expect("the iterator stands on an array");
        if !element.starts_with('{') {
            return Self::Array(element, Self::rest(&mut inner));
        }
        let mut entries = BTreeMap::new();
        while let Some(mut entry) = inner.recurse(ArgType::DictEntry) {
            let key = Self::read(&mut entry);
            entry.next();
            let twice = entries.insert(key, Self::read(&mut entry));
            assert!(twice.is_none(), "a key appears once in a dictionary");
            inner.next();
        }
        Self::Dict(element, entries)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |out: &mut fmt::Formatter<'_>, values: &[Self]| {
            for (index, value) in values.iter().enumerate() {
                write!(out, "{}{value}", if index == 0 { "" } else { ", " })?;
            }
            Ok(())
        };
        match self {
            Self::Bool(truth) => write!(out, "{truth}"),
            Self::Unsigned(_, number) => write!(out, "{number}"),
            Self::Signed(_, number) => write!(out, "{number}"),
            Self::Text(text) | Self::Path(text) | Self::Signature(text) => write!(out, "{text:?}"),
            Self::Variant(inner) => write!(out, "<{inner}>"),
            Self::Struct(members) => {
                write!(out, "(")?;
                list(out, members)?;
                write!(out, ")")
            }
            Self::Array(_, elements) => {
                write!(out, "[")?;
                list(out, elements)?;
                write!(out, "]")
            }
            Self::Dict(_, entries) => {
                write!(out, "{{")?;
                for (key, value) in entries {
                    write!(out, "{key}: {value}, ")?;
                }
                write!(out, "}}")
            }
        }
    }
}

/// Appends arguments of these types with neutral values: zero, empty, `/`, and `/dev/null`.
pub(crate) fn append_neutral(message: &mut Message, signature: &str) {
    let mut iter = IterAppend::new(message);
    for one in split(signature) {
        append_one(&mut iter, one);
    }
}

fn append_one(iter: &mut IterAppend<'_>, signature: &str) {
    match signature.as_bytes().first().expect("split gives no empty types") {
        b'b' => iter.append(false),
        b'y' => iter.append(0_u8),
        b'q' => iter.append(0_u16),
        b'u' => iter.append(0_u32),
        b't' => iter.append(0_u64),
        b's' => iter.append(""),
        b'o' => iter.append(dbus::Path::from("/")),
        b'h' => iter.append(File::open("/dev/null").expect("/dev/null can be opened")),
        b'a' => iter.append_array(&Signature::from(signature[1..].to_owned()), |_| ()),
        b'(' => iter.append_struct(|inner| {
            for one in split(&signature[1..signature.len() - 1]) {
                append_one(inner, one);
            }
        }),
        other => panic!("no argument of the API has the type {}", char::from(*other)),
    }
}

/// The complete types of a signature.
pub(crate) fn split(signature: &str) -> Vec<&str> {
    let (mut types, mut start, mut depth) = (Vec::new(), 0, 0);
    for (index, letter) in signature.char_indices() {
        match letter {
            '(' | '{' => depth += 1,
            ')' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 && letter != 'a' {
            types.push(&signature[start..=index]);
            start = index + 1;
        }
    }
    types
}
