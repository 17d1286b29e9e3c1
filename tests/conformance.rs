//! The checklist of the API's specification, item by item, against a daemon on a private bus.
//!
//! Each item is a test (or several) that begins with its number and says the item as a whole once more, however much
//! of it the tests of single members say too: this is the file to look into for whether the API is complete.
//! Item 3, every subcommand of stratis-cli, is `tests/clients/subcommands.rs`.
//!
//! Deliberately absent: texts, and what is inside a value beyond what clients rely on.

mod support;

#[path = "conformance/access.rs"]
mod access;
#[path = "conformance/again.rs"]
mod again;
#[path = "conformance/calls.rs"]
mod calls;
#[path = "conformance/encryption.rs"]
mod encryption;
#[path = "conformance/objects.rs"]
mod objects;
#[path = "conformance/process.rs"]
mod process;
#[path = "conformance/signals.rs"]
mod signals;

use support::client::Client;
use support::rig::Rig;
use support::{GIB, interface};

/// A D-Bus object path.
type Path = dbus::Path<'static>;

/// The nil UUID as the API writes it.
const NIL: &str = "00000000000000000000000000000000";

/// A pool of one disk with two filesystems, of which `s` is a snapshot of `f`.
struct Furnished {
    pool: String,
    device: String,
    origin: String,
    snapshot: String,
}

fn furnish(rig: &Rig, client: &Client, name: &str) -> Furnished {
    let (_, (pool, mut devices)) = client.create_pool(name, &[rig.disk(&format!("disk-of-{name}"), 4 * GIB)]).done();
    let origin = client.make_filesystem(&pool, "f");
    let (_, snapshot) = client.snapshot(&pool, &origin, "s").done();
    Furnished { pool, device: devices.remove(0), origin, snapshot }
}

/// A property on the newest revision, as text.
fn text_of(client: &Client, path: &str, family: &str, property: &str) -> String {
    client.get(path, &interface(family, 9), property).expect("the property can be read").text().to_owned()
}
