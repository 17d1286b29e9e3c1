//! A message bus for one test: a `dbus-daemon` child with its own socket and an open policy; with `TEST_BUS=broker`
//! in the environment dbus-broker instead, where no configuration of the bus is about.
//!
//! Invariant: `start` returns after the bus has printed its address, that is, when it listens.
//! Deliberately absent: service activation. A daemon that is not running stays that way.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::broker;

/// Everybody may own, send and receive everything.
const POLICY: &str = r#"<auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
    <allow user="*"/>
  </policy>"#;

/// A test may be greedy, the bus must not refuse it.
const GREEDY: &str = r#"<limit name="max_incoming_bytes">1000000000</limit>
  <limit name="max_outgoing_bytes">1000000000</limit>
  <limit name="max_message_size">1000000000</limit>
  <limit name="max_completed_connections">1000</limit>
  <limit name="max_connections_per_user">1000</limit>
  <limit name="max_match_rules_per_connection">1000</limit>
  <limit name="max_replies_per_connection">10000</limit>
  <limit name="reply_timeout">600000</limit>"#;

/// What a system bus denies and allows, and the policy that is installed with the daemon.
const AS_INSTALLED: &str = concat!(
    r#"<auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  <include>"#,
    env!("CARGO_MANIFEST_DIR"),
    "/dist/stratisd.conf</include>"
);

/// A bus that ends with this value.
pub(crate) struct PrivateBus {
    child: Child,
    address: String,
    // The socket lives here. In the system's own folder, because socket paths are short.
    folder: TempDir,
    // A broker ends with its launcher.
    _launcher: Option<UnixStream>,
}

impl PrivateBus {
    /// Starts a bus and waits until it listens.
    pub(crate) fn start() -> Self {
        if std::env::var("TEST_BUS").is_ok_and(|kind| kind == "broker") {
            return Self::broker().expect("dbus-broker is installed, or DBUS_BROKER names it");
        }
        Self::start_with(POLICY, GREEDY, None)
    }

    /// A bus that is dbus-broker, where that is installed.
    pub(crate) fn broker() -> Option<Self> {
        let program = broker::program()?;
        let folder = socket_folder();
        let socket = folder.path().join("socket");
        let (child, launcher) = broker::start(&program, &socket);
        let address = format!("unix:path={}", socket.display());
        Some(Self { child, address, folder, _launcher: Some(launcher) })
    }

    /// The same with the policy that is installed, and a socket that every user can connect to.
    pub(crate) fn as_installed() -> Self {
        let bus = Self::start_with(AS_INSTALLED, GREEDY, None);
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(bus.folder.path(), everybody).expect("the folder is ours");
        bus
    }

    /// A bus with the limits of a system bus, and one more file of configuration among its own.
    pub(crate) fn of_a_system(drop_in: Option<&Path>) -> Self {
        Self::start_with(POLICY, "<includedir>system.d</includedir>", drop_in)
    }

    fn start_with(policy: &str, limits: &str, drop_in: Option<&Path>) -> Self {
        let folder = socket_folder();
        let config = folder.path().join("bus.conf");
        fs::write(&config, configuration(folder.path(), policy, limits)).expect("the configuration can be written");
        fs::create_dir(folder.path().join("system.d")).expect("the folder is writable");
        if let Some(file) = drop_in {
            fs::copy(file, folder.path().join("system.d/drop-in.conf")).expect("it can be copied");
        }
        let mut child = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile", "--nosyslog", "--print-address=1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon starts (Debian: package dbus-daemon)");
        let mut address = String::new();
        let output = child.stdout.take().expect("its output is a pipe");
        BufReader::new(output).read_line(&mut address).expect("dbus-daemon prints its address");
        let address = address.trim().to_owned();
        assert!(!address.is_empty(), "dbus-daemon ended before it listened");
        Self { child, address, folder, _launcher: None }
    }

    /// Where it listens, as `DBUS_SYSTEM_BUS_ADDRESS` wants it.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The socket behind the address.
    pub(crate) fn socket(&self) -> &Path {
        let path = self.address.strip_prefix("unix:path=").expect("the address is that of a socket");
        Path::new(path.split(',').next().expect("split gives at least one part"))
    }
}

impl PrivateBus {
    /// Ends it, as a crash would.
    pub(crate) fn stop(&mut self) {
        // Best effort: if it has ended by itself there is nothing to kill, and wait still reaps it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        self.stop();
    }
}

fn socket_folder() -> TempDir {
    TempDir::with_prefix("stratis-bus-").expect("a folder for the socket can be made")
}

fn configuration(folder: &Path, policy: &str, limits: &str) -> String {
    format!(
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\"\n \
         \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n\
         <busconfig>\n  <type>session</type>\n  <listen>unix:path={}/socket</listen>\n  {policy}\n  {limits}\n</busconfig>\n",
        folder.display()
    )
}
