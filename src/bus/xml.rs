//! Introspection: what the table says, as the XML that D-Bus tools read.
//!
//! Invariant: `tests/introspect.rs` finds every interface here equal to what a released stratisd
//! shows, so a row that is wrong does not pass.
//!
//! Parents show their children as bare nodes. Deliberately absent: escaping, because every name
//! comes from the table, and none holds a character that XML cares about.

use std::fmt::{Display, Write};

use crate::bus::facts::TOP;
use crate::bus::table::{self, BLOCKDEV, Emits, FILESYSTEM, Family, LATEST, MANAGER, Method, POOL, Property, REPORT};

const HEADER: &str = "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"
 \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">
<node>
";

const PEER: &str = r#"  <interface name="org.freedesktop.DBus.Peer">
    <method name="GetMachineId">
      <arg type="s" direction="out"/>
    </method>
    <method name="Ping"/>
  </interface>
"#;

const INTROSPECTABLE: &str = r#"  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect">
      <arg type="s" direction="out"/>
    </method>
  </interface>
"#;

const PROPERTIES: &str = r#"  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg type="v" direction="out"/>
    </method>
    <method name="GetAll">
      <arg name="interface_name" type="s" direction="in"/>
      <arg type="a{sv}" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface_name" type="s"/>
      <arg name="changed_properties" type="a{sv}"/>
      <arg name="invalidated_properties" type="as"/>
    </signal>
  </interface>
"#;

const OBJECT_MANAGER: &str = r#"  <interface name="org.freedesktop.DBus.ObjectManager">
    <method name="GetManagedObjects">
      <arg type="a{oa{sa{sv}}}" direction="out"/>
    </method>
    <signal name="InterfacesAdded">
      <arg name="object_path" type="o"/>
      <arg name="interfaces_and_properties" type="a{sa{sv}}"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg name="object_path" type="o"/>
      <arg name="interfaces" type="as"/>
    </signal>
  </interface>
"#;

/// The top object, with the numbers of its children.
pub fn top(children: impl Iterator<Item = impl Display>) -> String {
    let mut out = document();
    out.push_str(OBJECT_MANAGER);
    family(&mut out, &MANAGER);
    family(&mut out, &REPORT);
    nodes(&mut out, children);
    end(out)
}

/// A pool.
pub fn pool() -> String {
    child(&POOL)
}

/// A filesystem.
pub fn filesystem() -> String {
    child(&FILESYSTEM)
}

/// A block device.
pub fn blockdev() -> String {
    child(&BLOCKDEV)
}

/// `/`, `/org` and `/org/storage`, which have nothing of their own; `None` for any other path.
pub fn parent(path: &str) -> Option<String> {
    let below = TOP.strip_prefix(path).filter(|below| !below.is_empty() && !path.is_empty())?;
    let component = if path == "/" { Some(below) } else { below.strip_prefix('/') };
    let next = component?.split('/').next()?;
    let mut out = document();
    nodes(&mut out, std::iter::once(next));
    Some(end(out))
}

fn child<V>(of: &Family<V>) -> String {
    let mut out = document();
    family(&mut out, of);
    end(out)
}

fn document() -> String {
    [HEADER, INTROSPECTABLE, PEER, PROPERTIES].concat()
}

fn end(mut out: String) -> String {
    out.push_str("</node>\n");
    out
}

fn nodes(out: &mut String, names: impl Iterator<Item = impl Display>) {
    for name in names {
        line(out, format_args!("  <node name=\"{name}\"/>"));
    }
}

fn family<V>(out: &mut String, family: &Family<V>) {
    for rev in 0..=LATEST {
        line(out, format_args!("  <interface name=\"{}\">", family.interface_at(rev)));
        family.methods_at(rev).for_each(|row| method(out, row));
        family.properties_at(rev).for_each(|row| property(out, row));
        line(out, format_args!("  </interface>"));
    }
}

fn method<V>(out: &mut String, row: &Method<V>) {
    line(out, format_args!("    <method name=\"{}\">", row.name));
    for (list, direction) in [(row.args, "in"), (row.returns, "out")] {
        for (name, kind) in table::arguments(list) {
            line(out, format_args!("      <arg name=\"{name}\" type=\"{kind}\" direction=\"{direction}\"/>"));
        }
    }
    line(out, format_args!("    </method>"));
}

fn property<V>(out: &mut String, row: &Property<V>) {
    let access = if row.write.is_declared() { "readwrite" } else { "read" };
    let opening = format!("    <property name=\"{}\" type=\"{}\" access=\"{access}\"", row.name, row.signature);
    let emits = match row.emits {
        // The default of D-Bus needs no annotation.
        Emits::True => return line(out, format_args!("{opening}/>")),
        Emits::Invalidates => "invalidates",
        Emits::Const => "const",
        Emits::False => "false",
    };
    line(out, format_args!("{opening}>"));
    let annotation = "org.freedesktop.DBus.Property.EmitsChangedSignal";
    line(out, format_args!("      <annotation name=\"{annotation}\" value=\"{emits}\"/>"));
    line(out, format_args!("    </property>"));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("a String takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_parents_of_the_top_object_are_parents() {
        for (path, node) in [("/", "org"), ("/org", "storage"), ("/org/storage", "stratis3")] {
            let xml = parent(path).expect("a parent");
            assert!(xml.contains(&format!("<node name=\"{node}\"/>")), "{path}: {xml}");
        }
        for path in ["", "/or", "/org/", "/org/stor", "/org/storage/stratis3", "/org/storage/stratis3/1", "/x"] {
            assert_eq!(parent(path), None, "{path}");
        }
    }
}
