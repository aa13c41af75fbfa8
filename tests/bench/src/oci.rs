//! The bundle that runc and crun run: the image's files, and a configuration as near to a pod's as it can be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::peer::{COMMAND, Program, limits};

/// Debian's package of the profile that podman applies by default.
const SECCOMP_PROFILE: &str = "/usr/share/containers/seccomp.json";

/// What containerd gives a container by default.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

const MASKED: [&str; 7] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A runtime without a daemon that takes bundles.
pub struct OciRuntime {
    program: Program,
    home: PathBuf,
    config: Value,
    cgroup: String,
}

impl OciRuntime {
    /// `home` is its own; `cgroup` is a path under which its containers' groups may be made.
    pub fn new(program: Program, home: &Path, cgroup: &str, image: &Path) -> Result<Self> {
        let rootfs = home.join("rootfs");
        unpack(image, &rootfs)?;
        fs::create_dir_all(home.join("bundles"))?;
        let state = home.join("state");
        let program = program.with_arguments(["--root", &state.to_string_lossy()]);
        Ok(Self { program, home: home.to_owned(), config: config(&rootfs)?, cgroup: cgroup.to_owned() })
    }

    /// Writes the container's bundle.
    pub fn prepare(&self, id: &str) -> Result<()> {
        let mut config = self.config.clone();
        config["linux"]["cgroupsPath"] = format!("{}/{id}", self.cgroup).into();
        let bundle = self.bundle(id);
        fs::create_dir_all(&bundle)?;
        fs::write(bundle.join("config.json"), serde_json::to_vec(&config)?)?;
        Ok(())
    }

    /// Creates and starts.
    pub fn start(&self, id: &str) -> Result<Duration> {
        self.program.run(&["run", "--detach", "--bundle", &self.bundle(id).to_string_lossy(), id])
    }

    /// Runs `true`.
    pub fn exec(&self, id: &str) -> Result<Duration> {
        self.program.run(&["exec", id, "true"])
    }

    /// Kills and removes.
    pub fn delete(&self, id: &str) -> Result<Duration> {
        self.program.run(&["delete", "--force", id])
    }

    /// Its directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Program and version.
    pub fn version(&self) -> String {
        self.program.version()
    }

    /// Containers that it still has.
    pub fn remaining(&self) -> Vec<String> {
        let list = self.program.output(&["list", "--quiet"]).unwrap_or_default();
        list.lines().map(str::to_owned).collect()
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.home.join("bundles").join(id)
    }
}

/// Unpacks the layers of an OCI layout, lowest first. The images of the benchmark have no whiteouts.
fn unpack(layout: &Path, rootfs: &Path) -> Result<()> {
    fs::create_dir_all(rootfs)?;
    let blob = |digest: &Value| -> Result<PathBuf> {
        let digest = digest.as_str().context("a descriptor without a digest")?;
        Ok(layout.join("blobs").join(digest.replace(':', "/")))
    };
    let read = |path: &Path| -> Result<Value> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    };
    let index = read(&layout.join("index.json"))?;
    let manifest = read(&blob(&index["manifests"][0]["digest"])?)?;
    for layer in manifest["layers"].as_array().context("a manifest without layers")? {
        let output = Command::new("tar").arg("-xf").arg(blob(&layer["digest"])?).arg("-C").arg(rootfs).output()?;
        if !output.status.success() {
            bail!("tar: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(())
}

fn config(rootfs: &Path) -> Result<Value> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let capabilities: serde_json::Map<String, Value> =
        ["bounding", "effective", "permitted"].map(|set| (set.to_owned(), json!(CAPABILITIES))).into_iter().collect();
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({"type": kind}));
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": {"path": rootfs, "readonly": false},
        "hostname": "bench",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": COMMAND,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": capabilities,
            "noNewPrivileges": false,
        },
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "namespaces": namespaces,
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": limits::MEMORY},
                "cpu": {"shares": limits::CPU_SHARES, "quota": limits::CPUS * 100_000, "period": 100_000},
            },
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": seccomp()?,
        },
    }))
}

/// The default profile in the runtime specification's form: the rules that hold for this architecture and the default
/// capabilities. Carob's filter knows one architecture; here it is that one, too.
fn seccomp() -> Result<Value> {
    let text = fs::read(SECCOMP_PROFILE).with_context(|| format!("cannot read {SECCOMP_PROFILE}"))?;
    let profile: Value = serde_json::from_slice(&text)?;
    let (architecture, scmp) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", "SCMP_ARCH_X86_64"),
        "aarch64" => ("arm64", "SCMP_ARCH_AARCH64"),
        other => bail!("no seccomp profile for {other}"),
    };
    let names = |value: &Value| -> Vec<String> {
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let has = |list: &[String], wanted: &str| list.iter().any(|name| name == wanted);
    let capable = |list: &[String]| list.iter().all(|capability| CAPABILITIES.contains(&capability.as_str()));
    let mut rules = Vec::new();
    for rule in profile["syscalls"].as_array().context("a profile without rules")? {
        let (includes, excludes) = (&rule["includes"], &rule["excludes"]);
        let (wanted, unwanted) = (names(&includes["arches"]), names(&excludes["arches"]));
        let (needed, forbidden) = (names(&includes["caps"]), names(&excludes["caps"]));
        let applies = (wanted.is_empty() || has(&wanted, architecture))
            && !has(&unwanted, architecture)
            && capable(&needed)
            && (forbidden.is_empty() || !capable(&forbidden));
        if !applies {
            continue;
        }
        let mut kept = serde_json::Map::new();
        for field in ["names", "action", "errnoRet", "args"] {
            if let Some(value) = rule.get(field).filter(|value| !value.is_null()) {
                kept.insert(field.to_owned(), value.clone());
            }
        }
        rules.push(Value::Object(kept));
    }
    let mut converted = json!({"defaultAction": profile["defaultAction"], "architectures": [scmp], "syscalls": rules});
    if let Some(number) = profile.get("defaultErrnoRet") {
        converted["defaultErrnoRet"] = number.clone();
    }
    Ok(converted)
}
