//! Other machines, which here are network namespaces with a link to this one and no more in common with it than the disk; and
//! workers on them.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use carob_tests::machine::Traces;
use carob_tests::{Carob, binary, network_octet, text};
use serde_json::Value;

/// Another machine.
pub(crate) struct Machine {
    pub(crate) namespace: String,
    pub(crate) link: String,
    /// This machine's address on the network between the two, and the other's.
    pub(crate) here: String,
    pub(crate) there: String,
}

pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip (package iproute2)");
    assert!(output.status.success(), "ip {arguments}: {}", text(&output));
}

impl Machine {
    pub(crate) fn new() -> Self {
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

    /// The binary, there.
    fn carob(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg(binary()).args(arguments).stdin(Stdio::null());
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.link]).output();
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).output();
    }
}

/// A worker on another machine.
pub(crate) struct Worker<'a> {
    machine: &'a Machine,
    dir: PathBuf,
    process: Option<Child>,
}

impl<'a> Worker<'a> {
    /// One that hasn't started yet.
    pub(crate) fn new(machine: &'a Machine, carob: &Carob, name: &str, images: &[&str]) -> Self {
        let dir = carob.path(name);
        fs::create_dir_all(&dir).unwrap();
        let data = dir.join("data");
        for image in images {
            let layout = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/images").join(image);
            let (data, layout) = (data.to_string_lossy(), layout.to_string_lossy());
            let output = carob.carob(&["image", "import", "--data-dir", &data, &layout]);
            assert!(output.status.success(), "importing {image}: {}", text(&output));
        }
        Self { machine, dir, process: None }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let data = self.data();
        let mut all = vec!["worker", "--data-dir", data.to_str().unwrap()];
        all.extend(arguments);
        self.machine.carob(&all)
    }

    /// Tries to join, which must fail; what it says.
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        let output: Output = self.command(arguments).output().expect("the binary starts");
        assert!(!output.status.success(), "{arguments:?} is let in: {}", text(&output));
        text(&output)
    }

    pub(crate) fn start(&mut self, arguments: &[&str]) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap();
        let child = self.command(arguments).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.process = Some(child.expect("the binary starts"));
    }

    /// Joins for the first time, as a node of this name.
    pub(crate) fn join(&mut self, carob: &Carob, node: &str) {
        let (gateway, token) = (gateway(carob), token(carob, &format!("token-{node}"), "1h"));
        self.start(&["--join", &gateway, "--node-name", node, "--token-file", token.to_str().unwrap()]);
    }

    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("a running worker");
        process.kill().expect("SIGKILL can be sent");
        process.wait().expect("it ends");
    }

    pub(crate) fn down(&mut self) -> Output {
        let data = self.data();
        let output = self.machine.carob(&["down", "--grace", "0", "--data-dir", data.to_str().unwrap()]).output();
        if let Some(mut process) = self.process.take() {
            let _ = process.wait();
        }
        output.expect("the binary starts")
    }

    pub(crate) fn instance(&self) -> String {
        let text = fs::read(self.data().join("instance.json")).expect("an instance");
        serde_json::from_slice::<Value>(&text).unwrap()["id"].as_str().unwrap().to_owned()
    }

    /// Cgroups of containers there.
    pub(crate) fn containers(&self) -> BTreeSet<String> {
        let traces = Traces::of(&self.instance(), &self.data());
        let names = traces.cgroups.iter().filter_map(|path| path.rsplit('/').next());
        names.filter(|name| name.len() == 64).map(str::to_owned).collect()
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the worker's log:\n{}", fs::read_to_string(self.dir.join("log")).unwrap_or_default());
        }
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if self.data().join("instance.json").exists() {
            self.down();
        }
    }
}

pub(crate) fn token(carob: &Carob, name: &str, ttl: &str) -> PathBuf {
    let data = carob.data_dir();
    let output = carob.carob(&["token", "create", "--ttl", ttl, "--data-dir", data.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    let path = carob.path(name);
    fs::write(&path, output.stdout).unwrap();
    path
}

/// Where workers find the gateway.
pub(crate) fn gateway(carob: &Carob) -> String {
    carob.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"])
}
