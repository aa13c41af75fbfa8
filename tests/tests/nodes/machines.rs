//! Workers on other machines.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use carob_tests::machine::Traces;
pub(crate) use carob_tests::neighbour::{Machine, ip};
use carob_tests::{Carob, binary, text};
use serde_json::Value;

/// The binary, there.
fn carob_on(machine: &Machine, arguments: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", machine.namespace)).arg(binary()).args(arguments).stdin(Stdio::null());
    command
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
        carob_on(self.machine, &all)
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
        let output = carob_on(self.machine, &["down", "--grace", "0", "--data-dir", data.to_str().unwrap()]).output();
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
