//! What the end-to-end tests share: a Carob of its own per test, driven by real kubectl as a user would.
//!
//! Nothing here looks inside: the binary is started, kubectl is run, the machine is looked at. A test's Carob has its own
//! data directory, port and addresses, and is brought down with all it made when the test ends, however it ends.

pub mod bill;
pub mod cgroups;
mod claim;
pub mod machine;
pub mod neighbour;
pub mod pods;
pub mod proxy;
pub mod registry;
pub mod terminal;

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub use claim::{free_port, network_octet};
use serde_json::Value;

/// How long anything may take before a test gives up; far above what it takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How many times slower than others this machine is (`CAROB_TEST_SLOWNESS`): an emulated one is many times.
fn slowness() -> u32 {
    std::env::var("CAROB_TEST_SLOWNESS").map_or(1, |times| times.parse().expect("CAROB_TEST_SLOWNESS is a number"))
}

/// `--timeout` for kubectl.
fn timeout() -> String {
    format!("--timeout={}s", (PATIENCE * slowness()).as_secs())
}

/// A running Carob.
pub struct Carob {
    dir: tempfile::TempDir,
    address: String,
    port: u16,
    gateway: Option<Child>,
    kubectl: PathBuf,
}

/// How a Carob is started.
#[derive(Default)]
pub struct Setup<'a> {
    /// Images of `target/images` to import beforehand.
    pub images: &'a [&'a str],
    /// Further arguments of `carob up`.
    pub arguments: &'a [&'a str],
    /// The file of `--config`.
    pub config: Option<&'a str>,
    /// Where the API is served, instead of on loopback.
    pub address: Option<&'a str>,
}

impl Carob {
    /// Starts one with these images, and waits until its node is ready.
    pub fn start(images: &[&str]) -> Self {
        Self::start_with(&Setup { images, ..Setup::default() })
    }

    /// Starts one, and waits until its node is ready.
    pub fn start_with(setup: &Setup<'_>) -> Self {
        let dir = tempfile::Builder::new().prefix("carob-test-").tempdir().expect("a temporary directory");
        let address = setup.address.unwrap_or("127.0.0.1").to_owned();
        let mut carob = Self { dir, address, port: free_port(), gateway: None, kubectl: kubectl() };
        for image in setup.images {
            carob.import(image);
        }
        if let Some(config) = setup.config {
            fs::write(carob.path("carob.yaml"), config).expect("the configuration is written");
        }
        carob.up(setup.arguments);
        carob
    }

    /// Starts the gateway (again) and waits until its node is ready.
    pub fn up(&mut self, arguments: &[&str]) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("gateway.log")).expect("a log file");
        let mut command = Command::new(binary());
        command
            .args(["up", "--data-dir"])
            .arg(self.data_dir())
            .args(["--listen", &format!("{}:{}", self.address, self.port)])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log file"))
            .stderr(log);
        if self.path("carob.yaml").exists() {
            command.arg("--config").arg(self.path("carob.yaml"));
        }
        self.gateway = Some(command.spawn().expect("the binary starts"));
        eventually("the API is ready", || {
            let gateway = self.gateway.as_mut().expect("it was just started");
            if let Some(status) = gateway.try_wait().expect("its state can be read") {
                panic!("carob up ended with {status}:\n{}", self.log());
            }
            // kubectl starts at some expense, and not before it has somebody to talk to.
            TcpStream::connect((self.address.as_str(), self.port)).is_ok()
                && self.run(&["get", "--raw", "/readyz"]).status.success()
        });
        if !arguments.contains(&"--workers") {
            self.kubectl(&["wait", "--for=condition=Ready", "nodes", "--all", &timeout()]);
            eventually("the default service account exists", || {
                self.run(&["get", "serviceaccount", "default"]).status.success()
            });
        }
    }

    /// Ends the gateway the hard way; pods are left alone.
    pub fn kill(&mut self) {
        let mut gateway = self.gateway.take().expect("a running gateway");
        gateway.kill().expect("SIGKILL can be sent");
        gateway.wait().expect("it ends");
    }

    /// Ends the gateway as a service manager does, and gives how long that took.
    pub fn terminate(&mut self) -> Duration {
        let mut gateway = self.gateway.take().expect("a running gateway");
        let begin = Instant::now();
        let pid = nix::unistd::Pid::from_raw(gateway.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("SIGTERM can be sent");
        let status = gateway.wait().expect("it ends");
        assert!(status.success(), "carob up ended with {status}:\n{}", self.log());
        begin.elapsed()
    }

    /// `carob down`: afterwards nothing of this Carob is left on the machine.
    pub fn down(&mut self) {
        let output = self.carob(&["down", "--grace", "0", "--data-dir", &self.data_dir().to_string_lossy()]);
        assert!(output.status.success(), "{}", text(&output));
        if let Some(mut gateway) = self.gateway.take() {
            gateway.wait().expect("carob down ended it");
        }
    }

    /// Process id of the gateway.
    pub fn pid(&self) -> u32 {
        self.gateway.as_ref().expect("a running gateway").id()
    }

    /// A path beside the data directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("admin.kubeconfig")
    }

    /// The port of the API.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Eight hexadecimal digits that everything of this Carob on the machine carries in its name.
    pub fn instance(&self) -> String {
        let text = fs::read(self.data_dir().join("instance.json")).expect("an instance");
        let instance: Value = serde_json::from_slice(&text).expect("JSON");
        instance["id"].as_str().expect("an id").to_owned()
    }

    /// What the gateway printed and logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("gateway.log")).unwrap_or_default()
    }

    /// Imports an image of `target/images`.
    pub fn import(&self, image: &str) {
        let output = self.carob(&[
            "image",
            "import",
            "--data-dir",
            &self.data_dir().to_string_lossy(),
            &image_layout(image).to_string_lossy(),
        ]);
        assert!(output.status.success(), "importing {image}: {}", text(&output));
    }

    /// Runs the binary.
    pub fn carob(&self, arguments: &[&str]) -> Output {
        Command::new(binary()).args(arguments).stdin(Stdio::null()).output().expect("the binary starts")
    }

    /// The bill as JSON.
    pub fn bill(&self, arguments: &[&str]) -> Value {
        let kubeconfig = self.kubeconfig();
        let mut all = vec!["bill", "--kubeconfig", kubeconfig.to_str().expect("UTF-8"), "-o", "json"];
        all.extend(arguments);
        let output = self.carob(&all);
        assert!(output.status.success(), "carob {all:?}: {}", text(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Drives it with another kubectl from now on.
    pub fn use_kubectl(&mut self, program: PathBuf) {
        self.kubectl = program;
    }

    /// A kubectl command, not yet run.
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Runs kubectl, whatever comes of it.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.kubectl_command().args(arguments).output().expect("kubectl starts")
    }

    /// Runs kubectl, which must succeed; what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "kubectl {arguments:?}: {}\n{}", text(&output), self.log_tail());
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Runs kubectl, which must fail; its error.
    pub fn kubectl_fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "kubectl {arguments:?} succeeded: {}", text(&output));
        String::from_utf8(output.stderr).expect("UTF-8")
    }

    /// Applies a manifest; what kubectl printed, warnings included.
    pub fn apply(&self, manifest: &str) -> String {
        let output = self.pipe(&["apply", "-f", "-"], manifest);
        assert!(output.status.success(), "apply: {}\n{manifest}", text(&output));
        text(&output)
    }

    /// Runs kubectl with this standard input.
    pub fn pipe(&self, arguments: &[&str], input: &str) -> Output {
        use std::io::Write;
        let mut child = self
            .kubectl_command()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        let input = input.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output().expect("kubectl ends");
        // A kubectl that failed early closes its end; its message says why.
        let _ = writer.join().expect("the writer doesn't panic");
        output
    }

    /// An object as JSON.
    pub fn get(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        serde_json::from_str(&self.kubectl(&all)).expect("JSON")
    }

    /// One value of an object.
    pub fn jsonpath(&self, object: &str, path: &str) -> String {
        self.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")])
    }

    /// Waits for `kubectl wait --for=…`.
    pub fn wait(&self, object: &str, condition: &str) {
        let output = self.run(&["wait", &format!("--for={condition}"), object, &timeout()]);
        if !output.status.success() {
            let described = text(&self.run(&["describe", object]));
            panic!("{object} never had {condition}: {}\n{described}\n{}", text(&output), self.log_tail());
        }
    }

    /// Applies a pod and waits until it is ready.
    pub fn start_pod(&self, manifest: &str, name: &str) {
        self.apply(manifest);
        self.wait(&format!("pod/{name}"), "condition=Ready");
    }

    /// Applies a pod, waits until it has ended well, and gives what it printed.
    pub fn run_to_end(&self, manifest: &Value) -> String {
        self.apply(&manifest.to_string());
        let name = manifest["metadata"]["name"].as_str().expect("a name");
        self.wait_phase(name, "Succeeded");
        self.kubectl(&["logs", name, "--all-containers"])
    }

    /// Waits until a pod is in a phase; fails at once when it has come to another end.
    pub fn wait_phase(&self, pod: &str, phase: &str) {
        let mut seen = String::new();
        let reached = holds_within(PATIENCE, || {
            seen = self.jsonpath(&format!("pod/{pod}"), ".status.phase");
            seen == phase || ["Succeeded", "Failed"].contains(&seen.as_str())
        });
        if !reached || seen != phase {
            let described = text(&self.run(&["describe", "pod", pod]));
            let logs = text(&self.run(&["logs", pod, "--all-containers", "--tail=20"]));
            panic!("pod {pod} is {seen}, not {phase}:\n{described}\nits logs:\n{logs}\n{}", self.log_tail());
        }
    }

    /// Waits until a command of kubectl prints something that satisfies `condition`; what it printed.
    pub fn until(&self, arguments: &[&str], condition: impl Fn(&str) -> bool) -> String {
        let mut seen = String::new();
        let found = holds_within(PATIENCE, || {
            let output = self.run(arguments);
            seen = text(&output);
            output.status.success() && condition(&seen)
        });
        assert!(found, "kubectl {arguments:?} never printed what it should, but:\n{seen}\n{}", self.log_tail());
        seen
    }

    /// Waits for an event about a pod whose message holds this text; the event's message.
    pub fn wait_event(&self, pod: &str, text: &str) -> String {
        let selector = format!("--field-selector=involvedObject.name={pod}");
        self.until(&["get", "events", &selector, "-o", "custom-columns=R:.reason,M:.message"], |seen| {
            seen.contains(text)
        })
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        format!("the gateway's log ends:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
    }
}

impl Drop for Carob {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        if let Some(mut gateway) = self.gateway.take() {
            let _ = gateway.kill();
            let _ = gateway.wait();
        }
        let output = self.carob(&["down", "--grace", "0", "--data-dir", &self.data_dir().to_string_lossy()]);
        if !output.status.success() && self.data_dir().exists() {
            eprintln!("carob down: {}", text(&output));
        }
    }
}

/// Polls until `condition` holds.
///
/// # Panics
/// When it doesn't within [`PATIENCE`].
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_within(PATIENCE, what, condition);
}

/// Polls until `condition` holds, or panics.
pub fn eventually_within(patience: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_within(patience, condition), "not within {patience:?}: {what}");
}

/// Polls until `condition` holds; whether it did in time. A slow machine is given more of that.
#[expect(clippy::disallowed_methods, reason = "the condition is another process's: it can only be polled")]
pub fn holds_within(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience * slowness();
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    true
}

/// Standard output and error of a command.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// The binary under test: `CAROB_BIN`, or the one of the profile that the tests are built in.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("CAROB_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("this test's own file");
    let profile = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let path = profile.join("carob");
    assert!(path.exists(), "{} is missing: build it first (make test does)", path.display());
    path
}

/// The kubectl to test with: `CAROB_KUBECTL`, or the one in the path.
pub fn kubectl() -> PathBuf {
    std::env::var_os("CAROB_KUBECTL").map_or_else(|| "kubectl".into(), PathBuf::from)
}

/// The kubectl of this minor version that `make test` put beside the other tools.
pub fn kubectl_of(minor: u32) -> PathBuf {
    let path = root().join(format!("target/tools/kubectl-1.{minor}/kubectl"));
    assert!(path.exists(), "{} is missing: scripts/kubectl {minor} fetches it", path.display());
    path
}

/// What scripts of `make test` put into `target/tools`.
pub fn tool(name: &str) -> PathBuf {
    let path = root().join("target/tools").join(name);
    assert!(path.exists(), "{} is missing: scripts/test fetches it", path.display());
    path
}

/// The OCI layout of an image that `make images` built.
pub fn image_layout(name: &str) -> PathBuf {
    let path = root().join("target/images").join(name);
    assert!(path.exists(), "{} is missing: make images builds it", path.display());
    path
}
