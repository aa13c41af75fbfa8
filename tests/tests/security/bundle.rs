//! The probes' own test: a container of runc's that is open wherever it can be, in which every probe has to succeed.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use carob_tests::{eventually, image_layout, text};
use serde_json::{Value, json};

/// Linux's capabilities in the order of their numbers; those that this machine has are given.
const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT \
    SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP \
    MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE";

/// A directory in which runc can run containers of one image.
pub struct Bundle {
    dir: tempfile::TempDir,
}

impl Bundle {
    /// With the files of an image of `target/images`.
    pub fn of(image: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("carob-bundle-").tempdir().expect("a temporary directory");
        let rootfs = dir.path().join("rootfs");
        fs::create_dir(&rootfs).expect("a directory");
        let layout = image_layout(image);
        let read = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).expect("a blob")).expect("JSON") };
        let blob = |digest: &Value| layout.join("blobs").join(digest.as_str().expect("a digest").replace(':', "/"));
        let manifest = read(blob(&read(layout.join("index.json"))["manifests"][0]["digest"]));
        for layer in manifest["layers"].as_array().expect("layers") {
            let mut tar = Command::new("tar");
            tar.arg("-C").arg(&rootfs).arg("-xf").arg(blob(&layer["digest"]));
            let output = tar.output().expect("tar");
            assert!(output.status.success(), "{}", text(&output));
        }
        Self { dir }
    }

    /// The container: all capabilities, the machine's namespaces but for mounts, no filter, nothing masked.
    pub fn open(&self, arguments: &[&str], env: &[(&str, &str)]) -> Value {
        let bounding = fs::read_to_string("/proc/self/status").expect("this process");
        let bounding = bounding.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("its capabilities").trim();
        let bounding = u64::from_str_radix(bounding, 16).expect("a number");
        let all: Vec<String> = CAPABILITIES
            .split_whitespace()
            .enumerate()
            .filter(|(number, _)| bounding >> number & 1 == 1)
            .map(|(_, name)| format!("CAP_{name}"))
            .collect();
        let env: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut everything = vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()];
        everything.extend(env);
        let mount = |kind: &str, place: &str| json!({"destination": place, "type": kind, "source": kind});
        // Common to all containers of this bundle, as the machine's would be.
        let bind = |place: &str| {
            let source = self.dir.path().join(&place.replace('/', "-")[1..]);
            fs::create_dir_all(&source).expect("a directory");
            json!({"destination": place, "type": "bind", "source": source, "options": ["rbind"]})
        };
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": arguments, "env": everything, "cwd": "/", "user": {"uid": 0, "gid": 0},
                "capabilities": {"bounding": all, "effective": all, "permitted": all},
            },
            "root": {"path": "rootfs"},
            "mounts": [
                mount("proc", "/proc"), mount("tmpfs", "/dev"), mount("devpts", "/dev/pts"), mount("sysfs", "/sys"),
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]},
                bind("/dev/shm"), bind("/tmp"),
            ],
            "linux": {
                "namespaces": [{"type": "mount"}],
                "cgroupsPath": format!("/carob-probe-{}", std::process::id()),
                "resources": {"devices": [{"allow": true, "access": "rwm"}]},
            },
        })
    }

    /// Starts it. `keep`: so many descriptors beyond the standard ones reach the program.
    pub fn start(&self, name: &str, config: &Value, keep: usize) -> Running {
        let place = self.dir.path().join(name);
        fs::create_dir_all(&place).expect("a directory");
        let mut config = config.clone();
        config["root"]["path"] = json!(self.dir.path().join("rootfs"));
        let path = format!("{}-{name}", config["linux"]["cgroupsPath"].as_str().expect("a path"));
        config["linux"]["cgroupsPath"] = json!(path);
        fs::write(place.join("config.json"), config.to_string()).expect("written");
        let output = fs::File::create(place.join("output")).expect("a file");
        let state = self.dir.path().join("state");
        let id = format!("{name}-{}", std::process::id());
        let mut command = Command::new("runc");
        command.arg("--root").arg(&state).args(["run", "--preserve-fds", &keep.to_string(), "--bundle"]).arg(&place);
        let child = command
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("the file"))
            .stderr(output)
            .spawn()
            .expect("runc (package runc)");
        Running { child, state, id, output: place.join("output") }
    }
}

/// A container of runc's; it goes with this.
pub struct Running {
    child: Child,
    state: PathBuf,
    id: String,
    output: PathBuf,
}

impl Running {
    /// What it has printed, once there is this text in it.
    pub fn until(&mut self, wanted: &str) -> String {
        let mut seen = String::new();
        eventually("a probe in a container of runc's comes to its end", || {
            // Looked at first: what it printed before it ended is there afterwards.
            let ended = self.child.try_wait().expect("its state").is_some();
            seen = fs::read_to_string(&self.output).unwrap_or_default();
            assert!(seen.contains(wanted) || !ended, "it ended without {wanted:?}: {seen}");
            seen.contains(wanted)
        });
        seen
    }

    /// The container's process on the machine.
    pub fn pid(&self) -> u32 {
        let state = self.runc(&["state", &self.id]);
        let state: Value = serde_json::from_slice(&state.stdout).expect("JSON");
        u32::try_from(state["pid"].as_u64().expect("a number")).expect("a process id")
    }

    fn runc(&self, arguments: &[&str]) -> Output {
        Command::new("runc").arg("--root").arg(&self.state).args(arguments).output().expect("runc (package runc)")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.runc(&["delete", "--force", &self.id]);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What each line of a probe is about, of those that end with OPEN.
pub fn reached(printed: &str) -> BTreeSet<String> {
    printed.lines().filter_map(|line| line.strip_suffix(" OPEN")).map(str::to_owned).collect()
}
