//! containerd with a daemon of its own, driven by `ctr`.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Handle;

use crate::peer::{COMMAND, Peer, Program, limits, until_it_serves};

/// The name in the image's layout.
const IMAGE: &str = "docker.io/library/busybox:latest";

/// A daemon and its client.
pub struct Containerd {
    client: Program,
    daemon: Child,
    version: String,
    runtime: Handle,
    home: PathBuf,
    cgroup: String,
}

impl Containerd {
    /// Starts a daemon that keeps all of its state in `home`; `namespace` is containerd's word for its own name.
    pub fn set_up(runtime: &Handle, home: &Path, cgroup: &str, namespace: &str, image: &Path) -> Result<Self> {
        let server = Program::find(runtime, "containerd", home.join("stderr"))?;
        let client = Program::find(runtime, "ctr", home.join("stderr"))?;
        let socket = home.join("socket");
        let disabled = ["grpc.v1.cri", "snapshotter.v1.devmapper", "snapshotter.v1.zfs", "snapshotter.v1.btrfs"]
            .map(|plugin| format!("\"io.containerd.{plugin}\""))
            .join(", ");
        let config = format!(
            "version = 2\nroot = \"{home}/root\"\nstate = \"{home}/state\"\ndisabled_plugins = [{disabled}]\n\
             [grpc]\naddress = \"{socket}\"\n",
            home = home.display(),
            socket = socket.display(),
        );
        let config_file = home.join("config.toml");
        fs::write(&config_file, config)?;
        let log = fs::File::create(home.join("log"))?;
        let daemon = Command::new(server.path())
            .arg("--config")
            .arg(&config_file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start containerd")?;
        let client = client.with_arguments(["--address", &socket.to_string_lossy(), "--namespace", namespace]);
        let (version, home, cgroup) = (server.version(), home.to_owned(), cgroup.to_owned());
        // From here on the daemon is ended whatever happens.
        let mut containerd = Self { client, daemon, version, runtime: runtime.clone(), home, cgroup };
        containerd.wait_until_it_serves(&socket)?;
        let archive = containerd.home.join("image.tar");
        let status = Command::new("tar").arg("-C").arg(image).arg("-cf").arg(&archive).arg(".").status()?;
        if !status.success() {
            bail!("tar: {status}");
        }
        containerd.client.output(&["image", "import", &archive.to_string_lossy()])?;
        Ok(containerd)
    }

    fn wait_until_it_serves(&mut self, socket: &Path) -> Result<()> {
        let (client, daemon, home) = (&self.client, &mut self.daemon, &self.home);
        until_it_serves(&self.runtime, || {
            if let Some(status) = daemon.try_wait()? {
                let log = fs::read_to_string(home.join("log")).unwrap_or_default();
                bail!("it ended with {status}: {}", log.lines().next_back().unwrap_or_default());
            }
            Ok(UnixStream::connect(socket).is_ok() && client.output(&["version"]).is_ok())
        })
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let left = self.client.output(&["container", "ls", "--quiet"]).unwrap_or_default();
        for id in left.lines() {
            if let Err(error) = self.delete(id) {
                eprintln!("{error:#}");
            }
        }
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(self.daemon.id().cast_signed()), Signal::SIGTERM);
        let _ = self.daemon.wait();
    }
}

impl Peer for Containerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    fn comprises(&self) -> &'static str {
        "`ctr run --detach` with runc, its default seccomp profile and an overlay snapshot: no pod, no address (a network \
         namespace with nothing in it), no log files; deleted by SIGKILL, in two commands"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn home(&self) -> &Path {
        &self.home
    }

    fn start(&self, id: &str) -> Result<Duration> {
        let path = |name: &str| self.home.join(name).to_string_lossy().into_owned();
        let (runc_root, fifos, cgroup) = (path("runc"), path("fifos"), format!("{}/{id}", self.cgroup));
        let (memory, cpus, shares) =
            (limits::MEMORY.to_string(), limits::CPUS.to_string(), limits::CPU_SHARES.to_string());
        let mut arguments = vec!["run", "--detach", "--null-io", "--seccomp"];
        arguments.extend(["--runc-root", &runc_root, "--fifo-dir", &fifos, "--cgroup", &cgroup]);
        arguments.extend(["--memory-limit", &memory, "--cpus", &cpus, "--cpu-shares", &shares, IMAGE, id]);
        arguments.extend(COMMAND);
        self.client.run(&arguments)
    }

    fn exec(&self, id: &str) -> Result<Duration> {
        let fifos = self.home.join("fifos");
        self.client.run(&["task", "exec", "--fifo-dir", &fifos.to_string_lossy(), "--exec-id", "true", id, "true"])
    }

    fn delete(&self, id: &str) -> Result<Duration> {
        let task = self.client.run(&["task", "delete", "--force", id])?;
        Ok(task + self.client.run(&["container", "delete", id])?)
    }

    fn pull(&self, reference: &str) -> Result<Option<Duration>> {
        self.client.run(&["image", "pull", "--plain-http", reference]).map(Some)
    }

    fn forget(&self, reference: &str) -> Result<()> {
        self.client.run(&["image", "rm", "--sync", reference]).map(drop)
    }
}
