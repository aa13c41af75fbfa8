//! Another machine, which here is a network namespace with a link to this one and no more in common with it than the disk.

use std::process::Command;

use nix::sched::{CloneFlags, setns};

use crate::{network_octet, text};

/// Another machine.
pub struct Machine {
    /// The name of its namespace.
    pub namespace: String,
    /// This machine's end of the link.
    pub link: String,
    /// This machine's address on the network between the two.
    pub here: String,
    /// The other's.
    pub there: String,
}

/// Runs `ip`, which must succeed.
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip (package iproute2)");
    assert!(output.status.success(), "ip {arguments}: {}", text(&output));
}

impl Machine {
    /// Makes one, whose way to everywhere is this machine.
    #[expect(clippy::new_without_default, reason = "it changes the machine's network")]
    pub fn new() -> Self {
        let octet = network_octet();
        let machine = Self {
            namespace: format!("carob-test-{octet}"),
            link: format!("ct{octet}"),
            here: format!("10.213.{octet}.1"),
            there: format!("10.213.{octet}.2"),
        };
        let Self { namespace, link, here, there } = &machine;
        ip(&format!("netns add {namespace}"));
        ip(&format!("link add {link} type veth peer name eth0 netns {namespace}"));
        ip(&format!("addr add {here}/24 dev {link}"));
        ip(&format!("link set {link} up"));
        for inside in [
            "link set lo up".to_owned(),
            format!("addr add {there}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add default via {here}"),
        ] {
            ip(&format!("-n {namespace} {inside}"));
        }
        machine
    }

    /// Does something there, such as opening a socket.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_network_of(&format!("/run/netns/{}", self.namespace), work)
    }
}

/// Does something in a network namespace, on a thread of its own.
pub fn in_network_of<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let namespace = std::fs::File::open(namespace).expect("a network namespace");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET).expect("it can be entered");
            work()
        });
        thread.join().expect("it is done")
    })
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.link]).output();
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).output();
    }
}
