//! A D-Bus value that we send: what it holds, its signature, and how it is written down.
//!
//! Invariant: the items of an `Array` all have the signature that the array names, so the bytes of
//! `write` always have the shape that `signature` says. A wrong item is our bug and asserts.
//!
//! Deliberately absent: reading. What clients send is read by `dbus::Message`; this type is for
//! the way out only, and has no variants that Stratis never sends (signed numbers, doubles, file
//! descriptors).

use std::borrow::Cow;
use std::fmt::Display;

use crate::bus::encode::Buffer;

/// One complete value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Value {
    /// `y`
    Byte(u8),
    /// `b`
    Flag(bool),
    /// `q`
    U16(u16),
    /// `u`
    U32(u32),
    /// `t`
    U64(u64),
    /// `s`
    Text(String),
    /// `o`
    Path(String),
    /// `a…`, with the signature of its items.
    Array(&'static str, Vec<Value>),
    /// `(…)`
    Struct(Vec<Value>),
    /// `{…}`, only inside an array.
    Entry(Box<(Value, Value)>),
    /// `v`
    Variant(Box<Value>),
}

impl Value {
    /// A string of anything that can be shown.
    pub fn text(shown: impl Display) -> Self {
        Self::Text(shown.to_string())
    }

    /// The optional string `(bs)`: `(true, text)` or `(false, absent)`.
    pub fn optional(text: Option<impl Display>, absent: &str) -> Self {
        match text {
            Some(text) => Self::Struct(vec![Self::Flag(true), Self::text(text)]),
            None => Self::Struct(vec![Self::Flag(false), Self::text(absent)]),
        }
    }

    /// An entry of a dictionary whose values are variants.
    pub fn entry(name: &str, value: Self) -> Self {
        Self::Entry(Box::new((Self::text(name), Self::Variant(Box::new(value)))))
    }

    /// Appends the signature.
    pub fn signature(&self, out: &mut String) {
        match self {
            Self::Byte(_) => out.push('y'),
            Self::Flag(_) => out.push('b'),
            Self::U16(_) => out.push('q'),
            Self::U32(_) => out.push('u'),
            Self::U64(_) => out.push('t'),
            Self::Text(_) => out.push('s'),
            Self::Path(_) => out.push('o'),
            Self::Array(items, _) => {
                out.push('a');
                out.push_str(items);
            }
            Self::Struct(members) => {
                out.push('(');
                members.iter().for_each(|member| member.signature(out));
                out.push(')');
            }
            Self::Entry(pair) => {
                out.push('{');
                pair.0.signature(out);
                pair.1.signature(out);
                out.push('}');
            }
            Self::Variant(_) => out.push('v'),
        }
    }

    /// The signature by itself.
    pub fn to_signature(&self) -> Cow<'static, str> {
        match self {
            // What most properties are.
            Self::Text(_) => Cow::Borrowed("s"),
            Self::Flag(_) => Cow::Borrowed("b"),
            Self::U64(_) => Cow::Borrowed("t"),
            Self::Byte(_)
            | Self::U16(_)
            | Self::U32(_)
            | Self::Path(_)
            | Self::Array(..)
            | Self::Struct(_)
            | Self::Entry(_)
            | Self::Variant(_) => {
                let mut out = String::new();
                self.signature(&mut out);
                Cow::Owned(out)
            }
        }
    }

    /// Appends the value, aligned.
    pub fn write(&self, out: &mut Buffer) {
        match self {
            Self::Byte(byte) => out.byte(*byte),
            Self::Flag(flag) => out.u32(u32::from(*flag)),
            Self::U16(number) => out.u16(*number),
            Self::U32(number) => out.u32(*number),
            Self::U64(number) => out.u64(*number),
            Self::Text(text) | Self::Path(text) => out.string(text),
            Self::Array(signature, items) => out.array(alignment(signature), |out| {
                for item in items {
                    debug_assert_eq!(item.to_signature(), *signature, "an array holds items of one signature");
                    item.write(out);
                }
            }),
            Self::Struct(members) => {
                out.align(8);
                members.iter().for_each(|member| member.write(out));
            }
            Self::Entry(pair) => {
                out.align(8);
                pair.0.write(out);
                pair.1.write(out);
            }
            Self::Variant(inner) => {
                out.signature(&inner.to_signature());
                inner.write(out);
            }
        }
    }
}

/// The alignment of a value with this signature (D-Bus specification, "Marshaling").
fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'y' | b'g' | b'v') => 1,
        Some(b'n' | b'q') => 2,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        Some(_) | None => 4,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use dbus::arg::messageitem::MessageItem;
    use proptest::prelude::*;

    use super::*;
    use crate::bus::encode::Outgoing;

    /// What `dbus` read, in our terms.
    pub(crate) fn from_item(item: &MessageItem) -> Value {
        match item {
            MessageItem::Byte(byte) => Value::Byte(*byte),
            MessageItem::Bool(flag) => Value::Flag(*flag),
            MessageItem::UInt16(number) => Value::U16(*number),
            MessageItem::UInt32(number) => Value::U32(*number),
            MessageItem::UInt64(number) => Value::U64(*number),
            MessageItem::Str(text) => Value::text(text),
            MessageItem::ObjectPath(path) => Value::Path(path.to_string()),
            MessageItem::Array(array) => {
                let signature = array.signature().to_string()[1..].to_owned();
                Value::Array(signature.leak(), array.iter().map(from_item).collect())
            }
            MessageItem::Dict(dict) => {
                let signature = dict.signature().to_string()[1..].to_owned();
                let entry = |(key, value): &(MessageItem, MessageItem)| {
                    Value::Entry(Box::new((from_item(key), from_item(value))))
                };
                Value::Array(signature.leak(), dict.iter().map(entry).collect())
            }
            MessageItem::Struct(members) => Value::Struct(members.iter().map(from_item).collect()),
            MessageItem::Variant(inner) => Value::Variant(Box::new(from_item(inner))),
            other => panic!("we never send {other:?}"),
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<u8>().prop_map(Value::Byte),
            any::<bool>().prop_map(Value::Flag),
            any::<u16>().prop_map(Value::U16),
            any::<u32>().prop_map(Value::U32),
            any::<u64>().prop_map(Value::U64),
            "[^\0]{0,9}".prop_map(Value::Text),
            "(/[a-z0-9_]{1,4}){1,3}".prop_map(Value::Path),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                (inner.clone(), 0..4usize).prop_map(|(item, count)| {
                    Value::Array(item.to_signature().into_owned().leak(), vec![item; count])
                }),
                prop::collection::vec(inner.clone(), 1..4).prop_map(Value::Struct),
                inner.clone().prop_map(|value| Value::Variant(Box::new(value))),
                prop::collection::btree_map("[a-z]{1,5}", inner, 0..4).prop_map(|map| {
                    let entries = map.into_iter().map(|(name, value)| Value::entry(&name, value)).collect();
                    Value::Array("{sv}", entries)
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn another_implementation_reads_what_we_write(all in prop::collection::vec(values(), 1..5)) {
            let mut message = Outgoing::returns(7, ":1.5", 3, &all);
            message.set_serial(9);
            let bytes = message.finish();
            let read = dbus::Message::demarshal(&bytes).expect("well-formed");
            let items: Vec<Value> = read.get_items().iter().map(from_item).collect();
            prop_assert_eq!(items, all);
        }
    }
}
