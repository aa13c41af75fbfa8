//! Numbers that only one test at a time has, also when several suites run on the machine: ports, small networks.
//!
//! A port that the kernel hands out is somebody else's a moment later: every outgoing connection takes one. These are
//! below that range, and a lock on a file says who has which for as long as the test's process lives.

use std::fs::{self, File};
use std::net::TcpListener;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;

/// Below the kernel's own (`ip_local_port_range`) and below Services' node ports.
const PORTS: Range<u16> = 12_000..28_000;

/// A port of the loopback interface that nobody listens on and no other test is given.
pub fn free_port() -> u16 {
    claim("port", PORTS, |port| TcpListener::bind(("127.0.0.1", port)).is_ok())
}

/// The third octet of a `10.213.x.0/24` of one's own.
pub fn network_octet() -> u16 {
    claim("network", 1..250, |_| true)
}

/// One of `range` that no other process has claimed and that `suits`. It is held until this process ends.
fn claim(what: &str, range: Range<u16>, suits: impl Fn(u16) -> bool) -> u16 {
    let folder = std::env::temp_dir().join("carob-test-claims");
    fs::create_dir_all(&folder).expect("a folder for claims");
    // Whoever else runs the tests may claim too, as in /tmp itself; only the owner may change the mode.
    let _ = fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777));
    let start = u16::try_from(std::process::id() % u32::from(u16::MAX)).unwrap_or_default();
    for step in 0..range.len() {
        let offset = (usize::from(start) * 7 + step) % range.len();
        let number = range.start + u16::try_from(offset).expect("within the range");
        let file = File::create(folder.join(format!("{what}-{number}"))).expect("a claim can be written");
        if file.try_lock().is_ok() && suits(number) {
            // The descriptor stays open, and with it the lock.
            std::mem::forget(file);
            return number;
        }
    }
    panic!("every {what} of {range:?} is taken");
}
