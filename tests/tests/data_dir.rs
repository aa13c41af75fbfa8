//! Where Carob keeps its state: whose directories it takes, what it does when the disk is full, when nobody reads what it says,
//! and when its own file is gone.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use carob_tests::{binary, eventually, free_port, holds_within, kubectl, text};

/// A Carob on a directory that the test has made.
struct Up {
    data: PathBuf,
    port: u16,
    process: Child,
}

impl Up {
    /// Starts this file with these further arguments; it says what it has to say to `output`.
    fn start(program: &Path, data: &Path, arguments: &[&str], output: &File) -> Self {
        let port = free_port();
        let process = Command::new(program)
            .args(["up", "--listen", &format!("127.0.0.1:{port}"), "--data-dir"])
            .arg(data)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a descriptor"))
            .stderr(output.try_clone().expect("a descriptor"))
            .spawn()
            .expect("the binary starts");
        let mut up = Self { data: data.to_owned(), port, process };
        eventually("the API is ready", || {
            assert!(!up.has_ended(), "it ended at its start");
            up.is_ready()
        });
        up
    }

    fn kubectl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(kubectl());
        command.arg("--kubeconfig").arg(self.data.join("admin.kubeconfig")).args(arguments);
        command.env("HOME", &self.data).stdin(Stdio::null()).output().expect("kubectl starts")
    }

    fn is_ready(&self) -> bool {
        std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
            && self.kubectl(&["get", "--raw", "/readyz"]).status.success()
    }

    fn has_ended(&mut self) -> bool {
        self.process.try_wait().expect("its state can be read").is_some()
    }

    /// Makes a ConfigMap with so many bytes.
    fn keep(&self, name: &str, bytes: usize) -> Output {
        self.kubectl(&["create", "configmap", name, &format!("--from-literal=text={}", "x".repeat(bytes))])
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = down(&self.data);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn down(data: &Path) -> Output {
    let command = Command::new(binary()).args(["down", "--grace", "0", "--data-dir"]).arg(data).output();
    command.expect("the binary starts")
}

/// A disk of this test's own.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf, size: &str) -> Self {
        fs::create_dir(&at).expect("made");
        let options = format!("size={size},mode=700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at).status();
        assert!(mounted.expect("mount starts").success());
        Self(at)
    }

    /// Takes all that is free.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut filler = File::create(&path).expect("made");
        while filler.write_all(&[1; 4096]).is_ok() {}
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: what failed may still have files open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn while_the_disk_is_full_nothing_is_written_it_says_so_and_goes_on_once_there_is_room() {
    let folder = tempfile::tempdir().expect("a directory");
    let disk = Disk::mount(folder.path().join("disk"), "64m");
    // What it says goes to the disk that is full.
    let log = File::create(disk.0.join("log")).expect("a file");
    let mut up = Up::start(&binary(), &disk.0, &["--workers", "0"], &log);
    let made = up.keep("before", 10);
    assert!(made.status.success(), "{}", text(&made));

    let filler = disk.fill();
    let refused = (0..20).map(|number| up.keep(&format!("full-{number}"), 100_000)).find(|made| !made.status.success());
    let refused = text(&refused.expect("no more than the journal had room for"));
    assert!(refused.contains("the server's disk is full"), "{refused}");
    for path in ["/readyz", "/livez", "/healthz"] {
        let health = text(&up.kubectl(&["get", "--raw", path]));
        assert!(health.contains("[-]store failed") && health.contains("[+]ping ok"), "{path}: {health}");
    }
    assert!(up.kubectl(&["get", "configmap", "before"]).status.success(), "reading goes on");

    fs::remove_file(filler).expect("removed");
    let made = up.keep("after", 100_000);
    assert!(made.status.success(), "{}", text(&made));
    assert!(up.is_ready() && !up.has_ended());
}

#[test]
fn nobody_has_to_read_what_it_says() {
    let folder = tempfile::tempdir().expect("a directory");
    let full = File::options().write(true).open("/dev/full").expect("the kernel's");
    let mut up = Up::start(&binary(), &folder.path().join("data"), &["--workers", "0"], &full);
    assert!(up.keep("one", 10).status.success());
    assert!(!up.has_ended());
}

#[test]
fn a_workers_data_directory_and_those_of_others_are_refused_as_they_are() {
    let folder = tempfile::tempdir().expect("a directory");
    let start = |data: &Path| {
        let listen = format!("127.0.0.1:{}", free_port());
        let started = Command::new(binary()).args(["up", "--listen", &listen, "--data-dir"]).arg(data).output();
        let started = started.expect("the binary starts");
        assert!(!started.status.success());
        text(&started)
    };
    let worker = folder.path().join("worker");
    fs::create_dir(&worker).expect("made");
    fs::set_permissions(&worker, fs::Permissions::from_mode(0o700)).expect("closed");
    fs::write(worker.join("identity.json"), "{}").expect("written");
    let refused = start(&worker);
    assert!(refused.contains("is the data directory of a worker"), "{refused}");
    let left: Vec<_> = fs::read_dir(&worker).expect("read").map(|entry| entry.expect("read").file_name()).collect();
    assert_eq!(left, ["identity.json"]);

    let home = folder.path().join("home");
    fs::create_dir(&home).expect("made");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).expect("opened");
    fs::write(home.join("letter"), "").expect("written");
    let refused = start(&home);
    assert!(refused.contains("(mode 0755) is open to others and in use for something else"), "{refused}");
    assert_eq!(fs::metadata(&home).expect("there").permissions().mode() & 0o777, 0o755);
}

#[test]
fn when_its_file_was_removed_and_the_spawner_dies_it_begins_anew_from_what_it_runs() {
    let folder = tempfile::tempdir().expect("a directory");
    let data = folder.path().join("data");
    let log = File::create(folder.path().join("log")).expect("a file");
    let program = binary().with_file_name(format!("carob-to-be-removed-{}", std::process::id()));
    fs::hard_link(binary(), &program).expect("linked");
    let mut up = Up::start(&program, &data, &[], &log);
    fs::remove_file(&program).expect("removed");
    let old = spawner(&data).expect("a spawner");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(old), nix::sys::signal::Signal::SIGKILL).expect("killed");
    let back = holds_within(Duration::from_secs(30), || spawner(&data).is_some_and(|new| new != old));
    let log = fs::read_to_string(folder.path().join("log")).expect("what it said");
    assert!(back && !up.has_ended(), "{log}");
    eventually("the API is ready again", || up.is_ready());
    let down = down(&data);
    assert!(down.status.success(), "{}", text(&down));
}

/// The process that serves a data directory's pods: it alone is given the directory by its command line.
fn spawner(data: &Path) -> Option<i32> {
    let sandboxes = data.join("sandboxes");
    fs::read_dir("/proc").expect("read").flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let of_this =
            read("cmdline").split(|byte| *byte == 0).any(|part| part == sandboxes.as_os_str().as_encoded_bytes());
        (of_this && read("comm") == b"carob-spawner\n").then_some(pid)
    })
}

#[test]
fn ranges_that_cannot_be_had_are_not_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let refused = Command::new(binary())
        .args(["up", "--listen", &format!("127.0.0.1:{}", free_port()), "--pod-cidr", "127.1.0.0/16", "--data-dir"])
        .arg(&data)
        .output()
        .expect("the binary starts");
    assert!(
        !refused.status.success() && text(&refused).contains("overlaps 127.0.0.0/8 on interface lo"),
        "{refused:?}"
    );
    let output = File::create(folder.path().join("output")).expect("a file");
    drop(Up::start(&binary(), &data, &[], &output));
}
