//! A place to run containers in: a directory, a spawner, a root file system made of busybox. Removed at the end.
#![allow(dead_code, reason = "each test file uses a part")]

use carob_sandbox::{
    CgroupPaths, ContainerConfig, ContainerId, DEFAULT_CAPABILITIES, Exit, Limits, PathMasks, PodConfig, RecoveredPod,
    Rootfs, Runtime, RuntimeConfig, Seccomp, Started, User,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;

/// Far above what anything takes on a busy machine, or an emulated one.
pub const PATIENCE: Duration = Duration::from_secs(120);

static NEXT: AtomicU32 = AtomicU32::new(0);

pub struct Machine {
    pub config: RuntimeConfig,
    pub root: PathBuf,
    directory: tempfile::TempDir,
}

pub struct Live {
    pub machine: Machine,
    pub runtime: Runtime,
    pub recovered: Vec<RecoveredPod>,
    pub exits: UnboundedReceiver<Exit>,
}

impl Machine {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let root = directory.path().join("root");
        for name in ["bin", "etc", "tmp", "proc", "sys", "dev", "usr"] {
            std::fs::create_dir_all(root.join(name)).expect("root file system");
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        for applet in [
            "sh", "sleep", "cat", "echo", "id", "ls", "mount", "umount", "kill", "ps", "wc", "head", "tail", "dd",
            "grep", "mknod", "stat", "hostname", "touch", "mkdir", "env", "true", "false", "su", "test", "seq", "tr",
            "yes", "nc", "readlink", "chmod", "unshare", "chroot", "tty", "stty", "date", "nproc", "sysctl", "ln",
            "rm", "df", "find",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("applet");
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
            .expect("passwd");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let instance = format!("{:05x}{:03x}", std::process::id() & 0xf_ffff, number & 0xfff);
        let config = RuntimeConfig {
            dir: directory.path().join("sandboxes"),
            instance,
            exe: PathBuf::from(env!("CARGO_BIN_EXE_carob-spawner-test")),
        };
        Self { config, root, directory }
    }

    pub async fn start(self) -> Live {
        let (runtime, recovered, exits) = Runtime::start(self.config.clone()).await.expect("spawner");
        Live { machine: self, runtime, recovered, exits }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    #[expect(clippy::unused_self, reason = "reads like container()")]
    pub fn pod(&self, uid: &str) -> PodConfig {
        PodConfig {
            runtime: None,
            users: None,
            user_namespaces: None,
            uid: uid.to_owned(),
            hostname: format!("host-{uid}"),
            netns: Some(own_network()),
            host_ipc: false,
            host_pid: false,
            share_pid: false,
            limits: Limits::default(),
            sysctls: BTreeMap::new(),
            annotations: BTreeMap::from([("pod".to_owned(), uid.to_owned())]),
        }
    }

    pub fn container(&self, pod: &str, argv: &[&str]) -> ContainerConfig {
        let id = ContainerId::random().expect("random id");
        let logs = self.path().join("logs");
        std::fs::create_dir_all(&logs).expect("log directory");
        ContainerConfig {
            log_path: logs.join(format!("{id}.log")),
            pod_uid: pod.to_owned(),
            argv: argv.iter().map(|&argument| argument.to_owned()).collect(),
            env: vec![("PATH".to_owned(), "/bin".to_owned())],
            cwd: "/".to_owned(),
            user: User::default(),
            rootfs: Rootfs {
                lower: vec![self.root.clone()],
                upper: self.path().join("upper").join(id.as_str()),
                read_only: false,
            },
            mounts: Vec::new(),
            limits: Limits::default(),
            capabilities: DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
            privileged: false,
            no_new_privs: false,
            seccomp: Seccomp::RuntimeDefault,
            masks: PathMasks::Default,
            tty: false,
            stdin: false,
            oom_score_adj: 0,
            pid_of: None,
            rlimits: Vec::new(),
            devices: Vec::new(),
            annotations: BTreeMap::from([("container".to_owned(), "c".to_owned())]),
            id,
        }
    }
}

/// A network namespace that nobody else has.
pub fn own_network() -> std::os::fd::OwnedFd {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
        std::fs::File::open("/proc/thread-self/ns/net").expect("own namespace").into()
    })
    .join()
    .expect("thread")
}

/// A test that failed leaves nothing either.
impl Drop for Machine {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let config = self.config.clone();
        let teardown = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(carob_sandbox::teardown(config))
        });
        if let Ok(Err(error)) = teardown.join() {
            eprintln!("left behind: {error}");
        }
    }
}

impl Live {
    pub async fn exit(&mut self) -> Exit {
        tokio::time::timeout(PATIENCE, self.exits.recv()).await.expect("an exit in time").expect("the spawner is there")
    }

    /// Runs a container to its end: exit and log.
    pub async fn run(&mut self, container: ContainerConfig) -> (Exit, String) {
        let (id, log) = (container.id.clone(), container.log_path.clone());
        self.runtime.start_container(container).await.expect("start");
        let exit = self.exit().await;
        assert_eq!(exit.container, id);
        self.runtime.remove_container(&id).await.expect("remove");
        (exit, log_text(&log))
    }

    /// Runs a shell script in a new container of a new pod.
    pub async fn script(
        &mut self,
        script: &str,
        change: impl FnOnce(&mut PodConfig, &mut ContainerConfig),
    ) -> (Exit, String) {
        let uid = format!("s{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut pod = self.machine.pod(&uid);
        let mut container = self.machine.container(&uid, &["sh", "-c", script]);
        change(&mut pod, &mut container);
        self.runtime.create_pod(pod).await.expect("pod");
        let result = self.run(container).await;
        self.runtime.remove_pod(&uid).await.expect("remove pod");
        result
    }

    pub async fn end(self) {
        let Live { machine, runtime, .. } = &self;
        runtime.clone().shutdown().await.expect("shutdown");
        assert_eq!(leftovers(&machine.config.instance), Vec::<String>::new());
    }
}

/// The text of a CRI log without times, streams and tags.
pub fn log_text(path: &Path) -> String {
    let log = std::fs::read_to_string(path).expect("log");
    let mut text = String::new();
    for line in log.lines() {
        let mut fields = line.splitn(4, ' ');
        let (_, _, tag, rest) = (fields.next(), fields.next(), fields.next(), fields.next().unwrap_or(""));
        text.push_str(rest);
        if tag == Some("F") {
            text.push('\n');
        }
    }
    text
}

/// Cgroups of the instance, wherever they are.
pub fn leftovers(instance: &str) -> Vec<String> {
    let name = format!("carob-{instance}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let mut found: Vec<String> = mounts.lines().filter(|line| line.contains(&name)).map(str::to_owned).collect();
    for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
        let point = line.split(' ').nth(4).unwrap_or_default();
        let path = Path::new(point).join(&name);
        if path.exists() {
            found.push(path.display().to_string());
        }
    }
    found
}

pub fn read(paths: &CgroupPaths, file: &str) -> String {
    std::fs::read_to_string(paths.memory.join(file)).unwrap_or_default()
}

pub fn show(started: &Started) -> String {
    let parts: Vec<String> =
        started.stages.iter().map(|(name, took)| format!("{name} {:.1}", took.as_secs_f64() * 1000.0)).collect();
    parts.join(", ")
}
