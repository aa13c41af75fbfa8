//! Volumes whose content is exchanged all the time while containers are made that have them: a directory for a link out,
//! `/dev/null` for a link to what is masked (CVE-2021-30465, CVE-2025-31133, CVE-2025-52565, CVE-2025-52881).

mod machine;

use carob_sandbox::{ContainerConfig, Mount, MountKind, Propagation};
use machine::{Live, Machine};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Starts per race. The exchanges are so many more that most starts meet several.
const TRIES: usize = 60;

fn mount(source: &Path, destination: &str) -> Mount {
    Mount {
        source: source.to_owned(),
        source_fd: None,
        in_pod: false,
        destination: destination.to_owned(),
        read_only: false,
        recursive: false,
        propagation: Propagation::Private,
        kind: MountKind::Bind,
    }
}

/// Exchanges pairs of names until it is dropped.
struct Exchange {
    end: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Exchange {
    fn of(pairs: Vec<(PathBuf, PathBuf)>) -> Self {
        let (end, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, counted) = (end.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
            while !ended.load(Ordering::Relaxed) {
                for (one, other) in &pairs {
                    let here = nix::fcntl::AT_FDCWD;
                    // What a container's start has just removed or made comes back with the next one.
                    if nix::fcntl::renameat2(here, one.as_path(), here, other.as_path(), flags).is_ok() {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        Self { end, count, thread: Some(thread) }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// A directory that stands for the machine, and how the runtime would get there.
fn outside(machine: &Machine) -> (PathBuf, String) {
    let bait = machine.path().join("outside");
    fs::create_dir(&bait).expect("directory");
    fs::write(bait.join("bait"), "bait").expect("file");
    fs::write(bait.join("ptmx"), "mine").expect("file");
    let by_process = format!("/proc/{}/root{}", std::process::id(), bait.display());
    (bait, by_process)
}

fn untouched(bait: &Path) {
    let mut names: Vec<_> =
        fs::read_dir(bait).expect("directory").map(|entry| entry.expect("entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["bait", "ptmx"]);
    assert_eq!(fs::read_to_string(bait.join("ptmx")).expect("file"), "mine");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains("/outside"), "{mounts}");
}

/// Starts the same container again and again; what it printed, each time that it ran. How many did.
async fn tries(live: &mut Live, script: &str, change: impl Fn(&mut ContainerConfig)) -> (usize, String) {
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let (mut ran, mut all) = (0, String::new());
    for _ in 0..TRIES {
        let mut container = live.machine.container("p", &["sh", "-c", script]);
        change(&mut container);
        let (id, log) = (container.id.clone(), container.log_path.clone());
        // Refused is as good.
        let Ok(_) = live.runtime.start_container(container).await else { continue };
        live.exit().await;
        live.runtime.remove_container(&id).await.expect("remove");
        all.push_str(&machine::log_text(&log));
        ran += 1;
    }
    (ran, all)
}

#[tokio::test]
async fn a_destination_that_is_exchanged_for_a_link_stays_in_the_container() {
    let mut live = Machine::new().start().await;
    let (bait, out) = outside(&live.machine);
    let (outer, inner) = (live.machine.path().join("v"), live.machine.path().join("w"));
    for directory in ["sub", "deep/er"] {
        fs::create_dir_all(outer.join(directory)).expect("directory");
    }
    fs::create_dir(&inner).expect("directory");
    fs::write(inner.join("mine"), "").expect("file");
    // What the runtime would meet if the second volume became its root.
    symlink(&out, inner.join("dev")).expect("link");
    for (link, target) in [("sub-link", "/"), ("deep-link", out.as_str()), ("er-link", "../../../../proc/1/root")] {
        symlink(target, outer.join(link)).expect("link");
    }
    let exchange = Exchange::of(vec![
        (outer.join("sub"), outer.join("sub-link")),
        (outer.join("deep"), outer.join("deep-link")),
        (outer.join("deep/er"), outer.join("er-link")),
    ]);
    let script = "cat /v/*/bait /v/sub/bait /v/deep/er/bait /v/deep/bait 2>/dev/null; ls /v/sub /v/deep/er 2>/dev/null; echo ran";
    let (ran, printed) = tries(&mut live, script, |container| {
        container.mounts = vec![mount(&outer, "/v"), mount(&inner, "/v/sub"), mount(&inner, "/v/deep/er")];
    })
    .await;
    let exchanged = exchange.count.load(Ordering::Relaxed);
    drop(exchange);
    println!("{ran} of {TRIES} ran, {exchanged} exchanges");
    assert!(exchanged > 1000, "{exchanged}");
    assert!(!printed.contains("bait"), "{printed}");
    untouched(&bait);
    live.end().await;
}

#[tokio::test]
async fn a_dev_of_somebody_elses_unmasks_nothing_and_makes_nothing_elsewhere() {
    let mut live = Machine::new().start().await;
    let (bait, out) = outside(&live.machine);
    let dev = live.machine.path().join("dev");
    fs::create_dir(&dev).expect("directory");
    let mut pairs = Vec::new();
    for (name, target) in [
        ("null", "/proc/sys/kernel/core_pattern"),
        ("fd", out.as_str()),
        ("pts", "/proc"),
        ("shm", out.as_str()),
        ("mqueue", "/"),
        ("console", "/proc/sysrq-trigger"),
        ("ptmx", out.as_str()),
        ("termination-log", "/proc/sys/kernel/core_pattern"),
    ] {
        symlink(target, dev.join(format!("{name}-link"))).expect("link");
        pairs.push((dev.join(name), dev.join(format!("{name}-link"))));
    }
    let exchange = Exchange::of(pairs);
    let script = "for f in /proc/keys /proc/interrupts /proc/timer_list /proc/kcore; do head -c 1 $f 2>/dev/null | grep -q . && echo OPEN $f; done
        for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/kcore; do (: >> $f) 2>/dev/null && echo OPEN $f; done
        grep -q ' /proc/keys ' /proc/self/mountinfo && echo masked; cat /dev/*/bait 2>/dev/null; echo ran";
    let log = live.machine.path().join("message");
    fs::write(&log, "").expect("file");
    for tty in [false, true] {
        let (ran, printed) = tries(&mut live, script, |container| {
            container.mounts = vec![mount(&dev, "/dev"), mount(&log, "/dev/termination-log")];
            container.tty = tty;
        })
        .await;
        println!("{ran} of {TRIES} ran");
        assert!(!printed.contains("OPEN") && !printed.contains("bait"), "{printed}");
        assert_eq!(printed.matches("masked").count(), ran, "{printed}");
        live.runtime.remove_pod("p").await.expect("remove pod");
    }
    drop(exchange);
    untouched(&bait);
    live.end().await;
}

#[tokio::test]
async fn a_volume_can_be_the_devices_of_a_container_and_keeps_its_files() {
    let mut live = Machine::new().start().await;
    let dev = live.machine.path().join("dev");
    fs::create_dir(&dev).expect("directory");
    fs::write(dev.join("ptmx"), "mine").expect("file");
    symlink("/proc/self/fd", dev.join("fd")).expect("link");
    let script = "ls /dev; df /dev/pts /dev/shm /dev/mqueue | grep -c /dev/; echo x > /dev/shm/x && cat /dev/shm/x; cat /dev/ptmx";
    for _ in 0..2 {
        let (_, text) = live.script(script, |_, container| container.mounts = vec![mount(&dev, "/dev")]).await;
        assert!(text.starts_with("fd\nmqueue\nptmx\npts\nshm\n3\nx\nmine"), "{text}");
    }
    assert_eq!(fs::read_to_string(dev.join("ptmx")).expect("file"), "mine");
    live.end().await;
}

#[tokio::test]
async fn proc_and_the_root_are_nobodys_to_cover() {
    let mut live = Machine::new().start().await;
    let volume = live.machine.path().join("v");
    fs::create_dir_all(&volume).expect("directory");
    for (link, target) in [("to-root", "/"), ("to-proc", "/proc"), ("to-self", "/proc/self")] {
        symlink(target, volume.join(link)).expect("link");
        symlink(target, live.machine.root.join(link)).expect("link");
    }
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    for destination in [
        "/proc",
        "/proc/",
        "//proc",
        "/proc/sys",
        "/proc/self",
        "/proc/1",
        "/proc/kcore",
        "/proc/new",
        "/to-root",
        "/to-proc",
        "/to-self",
        "/v/to-root",
        "/v/to-proc",
        "/v/to-self",
        "/v/to-root/proc",
        "/v/to-root/proc/1/root",
    ] {
        let mut container = live.machine.container("p", &["true"]);
        container.mounts = vec![mount(&volume, "/v"), mount(&volume, destination)];
        let error = live.runtime.start_container(container).await.expect_err(destination);
        assert!(error.to_string().contains("mount"), "{destination}: {error}");
    }
    // What tells of resources may be covered, and everything elsewhere.
    let file = live.machine.path().join("meminfo");
    fs::write(&file, "mine\n").expect("file");
    let (_, text) = live
        .script("cat /proc/meminfo /proc/sys/kernel/ostype; ls -d /sys/firmware/*; ls -d /opt/new/*", |_, container| {
            container.mounts =
                vec![mount(&file, "/proc/meminfo"), mount(&volume, "/sys/firmware"), mount(&volume, "/opt/new")];
        })
        .await;
    assert!(text.starts_with("mine\nLinux\n/sys/firmware/to-proc\n") && text.contains("/opt/new/to-self"), "{text}");
    live.end().await;
}

#[tokio::test]
async fn the_working_directory_may_be_in_a_volume() {
    let mut live = Machine::new().start().await;
    let volume = live.machine.path().join("v");
    fs::create_dir_all(volume.join("inner")).expect("directory");
    let (_, text) = live
        .script("pwd; ls", |_, container| {
            container.mounts = vec![mount(&volume, "/v")];
            container.cwd = "/v".to_owned();
            container.rootfs.read_only = true;
        })
        .await;
    assert_eq!(text, "/v\ninner\n");
    live.end().await;
}
