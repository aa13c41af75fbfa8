//! podman with a storage, a network and a configuration of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use nix::mount::{MntFlags, umount2};
use serde_json::json;
use tokio::runtime::Handle;

use crate::peer::{COMMAND, Peer, Program, limits};

/// Containers' addresses: a part of the range that is kept for benchmarks of networks (RFC 2544).
const SUBNET: &str = "198.18.240.0/20";

/// The engine, without a daemon.
pub struct Podman {
    program: Program,
    home: PathBuf,
    cgroup: String,
    bridge: String,
}

impl Podman {
    /// Keeps all of its state in `home`; `bridge` is the name of the link that its containers are on.
    pub fn set_up(runtime: &Handle, home: &Path, cgroup: &str, bridge: &str, image: &Path) -> Result<Self> {
        let program = Program::find(runtime, "podman", home.join("stderr"))?;
        let networks = home.join("networks");
        fs::create_dir_all(&networks)?;
        let network = json!({
            "cniVersion": "0.4.0",
            "name": "bench",
            "plugins": [{
                "type": "bridge",
                "bridge": bridge,
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": home.join("addresses"),
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "ranges": [[{"subnet": SUBNET}]],
                },
            }],
        });
        fs::write(networks.join("bench.conflist"), serde_json::to_vec(&network)?)?;
        // Its locks would be the machine's; its limits on open files may be more than this machine allows.
        let config = format!(
            "[containers]\ndefault_ulimits = []\n[engine]\nlock_type = \"file\"\nruntime = \"runc\"\n\
             cgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n\
             [network]\nnetwork_backend = \"cni\"\nnetwork_config_dir = \"{networks}\"\ndefault_network = \"bench\"\n\
             default_subnet = \"{SUBNET}\"\n",
            networks = networks.display(),
        );
        let config_file = home.join("containers.conf");
        fs::write(&config_file, config)?;
        let path = |name: &str| home.join(name).to_string_lossy().into_owned();
        let program = program
            .with_environment("CONTAINERS_CONF", config_file.to_string_lossy().into_owned())
            .with_arguments(["--root", &path("root"), "--runroot", &path("run"), "--tmpdir", &path("tmp")])
            .with_arguments(["--storage-driver", "overlay"]);
        let podman = Self { program, home: home.to_owned(), cgroup: cgroup.to_owned(), bridge: bridge.to_owned() };
        let id = podman.program.output(&["pull", "--quiet", &format!("oci:{}", image.display())])?;
        podman.program.output(&["tag", id.trim(), "localhost/bench"])?;
        Ok(podman)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Err(error) = self.program.output(&["rm", "--all", "--force", "--time", "0"]) {
            eprintln!("{error:#}");
        }
        // Links and mounts that were never made need no removing.
        let _ = Command::new("ip").args(["link", "delete", &self.bridge]).output();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let targets: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        for target in targets.into_iter().rev().filter(|target| Path::new(target).starts_with(&self.home)) {
            let _ = umount2(target, MntFlags::MNT_DETACH);
        }
    }
}

impl Peer for Podman {
    fn name(&self) -> &'static str {
        "podman"
    }

    fn comprises(&self) -> &'static str {
        "`podman run --detach` with runc and conmon, its default seccomp profile, an overlay, a log file and an address on \
         a CNI bridge (without masquerade and port mapping, which would cost it more); deleted by SIGKILL"
    }

    fn version(&self) -> String {
        self.program.version()
    }

    fn home(&self) -> &Path {
        &self.home
    }

    fn start(&self, id: &str) -> Result<Duration> {
        let (memory, cpus, shares) =
            (limits::MEMORY.to_string(), limits::CPUS.to_string(), limits::CPU_SHARES.to_string());
        let mut arguments = vec!["run", "--detach", "--pull", "never", "--name", id, "--log-driver", "k8s-file"];
        arguments.extend(["--ulimit", "host", "--cgroup-parent", &self.cgroup]);
        arguments.extend(["--memory", &memory, "--cpus", &cpus, "--cpu-shares", &shares, "localhost/bench"]);
        arguments.extend(COMMAND);
        self.program.run(&arguments)
    }

    fn exec(&self, id: &str) -> Result<Duration> {
        self.program.run(&["exec", id, "true"])
    }

    fn delete(&self, id: &str) -> Result<Duration> {
        self.program.run(&["rm", "--force", "--time", "0", id])
    }

    fn pull(&self, reference: &str) -> Result<Option<Duration>> {
        self.program.run(&["pull", "--quiet", "--tls-verify=false", reference]).map(Some)
    }

    fn forget(&self, reference: &str) -> Result<()> {
        self.program.run(&["rmi", reference]).map(drop)
    }
}
