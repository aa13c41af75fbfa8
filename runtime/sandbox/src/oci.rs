//! Other OCI runtimes (runc, crun, …) as the handlers of RuntimeClasses: they make the container and run further processes
//! in it; cgroups, logs, signals and exits stay the spawner's, of which everything that they start becomes a child.

#![allow(unsafe_code)]

use crate::cgroup::Layout;
use crate::kernel::process;
use crate::protocol::Failure;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Name of the directory in the spawner's where they keep their state: a tmpfs, since some write environments to it.
pub const STATE: &str = "oci";

/// One runtime and where it keeps its state.
#[derive(Debug, Clone)]
pub struct Oci {
    binary: PathBuf,
    state: PathBuf,
    /// Where version 2 cgroups are mounted beside those of version 1.
    second_version: Option<CString>,
}

/// A runtime's work on one container.
#[derive(Debug)]
pub struct Work<'a> {
    /// The container.
    pub id: &'a str,
    /// Where its files for this step are: private to it, and removed afterwards by whoever made it.
    pub place: &'a Path,
}

impl Oci {
    /// `directory` is the spawner's.
    pub fn new(binary: &Path, directory: &Path, layout: &Layout) -> Self {
        let second = layout.unified().filter(|_| !layout.is_v2());
        let second_version = second.and_then(|unified| CString::new(unified.root.as_os_str().as_bytes()).ok());
        Self { binary: binary.to_owned(), state: directory.join(STATE), second_version }
    }

    fn command(&self, log: Option<&Path>) -> Command {
        let mut command = Command::new(&self.binary);
        command.env_clear().env("PATH", crate::program::DEFAULT_PATH).current_dir("/");
        command.arg("--root").arg(&self.state);
        if let Some(unified) = self.second_version.clone() {
            // crun refuses to work where it sees both: it is shown one.
            let hide = move || {
                process::unshare(libc::CLONE_NEWNS)?;
                nix::mount::umount2(unified.as_c_str(), nix::mount::MntFlags::MNT_DETACH)?;
                Ok(())
            };
            // SAFETY: two system calls in a child of a process with one thread; nothing is allocated.
            unsafe { command.pre_exec(hide) };
        }
        if let Some(log) = log {
            command.arg("--log").arg(log).args(["--log-format", "json"]);
        }
        command
    }

    /// `create` from the bundle at `work.place`. Gives the process id of what will be the container's init.
    pub fn create(
        &self,
        work: &Work<'_>,
        streams: Option<[OwnedFd; 3]>,
        console: Option<&Path>,
    ) -> Result<i32, Failure> {
        let pid_file = work.place.join("pid");
        let mut command = self.command(Some(&work.place.join("log")));
        command.arg("create").arg("--bundle").arg(work.place).arg("--pid-file").arg(&pid_file);
        finish(&mut command, streams, console);
        command.arg(work.id);
        run(command, &work.place.join("log"))?;
        read_pid(&pid_file)
    }

    /// `start`.
    pub fn start(&self, work: &Work<'_>) -> Result<(), Failure> {
        let mut command = self.command(Some(&work.place.join("log")));
        finish(&mut command, None, None);
        command.args(["start", work.id]);
        run(command, &work.place.join("log"))
    }

    /// `exec` of a process as in the specification. Gives its process id.
    pub fn exec(
        &self,
        work: &Work<'_>,
        process: &[u8],
        streams: Option<[OwnedFd; 3]>,
        console: Option<&Path>,
    ) -> Result<i32, Failure> {
        let wrap = |error: io::Error| Failure::sandbox("exec", error);
        // It holds the environment: no disk is to have it.
        let memory = memfd_create(c"process", MFdFlags::MFD_CLOEXEC).map_err(|errno| wrap(errno.into()))?;
        let mut file = File::from(memory);
        file.write_all(process).and_then(|()| file.rewind()).map_err(wrap)?;
        let pid_file = work.place.join("pid");
        let mut command = self.command(Some(&work.place.join("log")));
        command.args(["exec", "--detach", "--process"]);
        // As one of ours: the runtime closes what it inherits.
        command.arg(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        command.arg("--pid-file").arg(&pid_file);
        finish(&mut command, streams, console);
        command.arg(work.id);
        run(command, &work.place.join("log"))?;
        read_pid(&pid_file)
    }

    /// `delete`: what the runtime keeps of a container that has ended. Trouble is written to the spawner's log: nothing
    /// depends on it.
    pub fn delete(&self, id: &str) {
        if !self.state.join(id).exists() {
            return;
        }
        let mut command = self.command(None);
        finish(&mut command, None, None);
        match command.args(["delete", "--force", id]).status() {
            Ok(status) if status.success() => {}
            other => {
                say!("{}: {id} was not deleted: {other:?}", self.binary.display());
                let _ = crate::remove_tree(&self.state.join(id));
            }
        }
    }
}

fn finish(command: &mut Command, streams: Option<[OwnedFd; 3]>, console: Option<&Path>) {
    if let Some(console) = console {
        command.arg("--console-socket").arg(console);
    }
    match streams {
        Some([stdin, stdout, stderr]) => command.stdin(stdin).stdout(stdout).stderr(stderr),
        None => command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()),
    };
}

/// Runs it to its end. What it says of a failure is the message, as containerd shows it.
fn run(mut command: Command, log: &Path) -> Result<(), Failure> {
    let program = command.get_program().to_owned();
    let status = command.status().map_err(|error| {
        let message = format!("OCI runtime {}: {error}", program.display());
        Failure::Start { message, exit_code: 128 }
    })?;
    if status.success() {
        return Ok(());
    }
    let said = last_message(&fs::read_to_string(log).unwrap_or_default()).unwrap_or_else(|| status.to_string());
    let lower = said.to_lowercase();
    let exit_code = if lower.contains("executable file not found") || lower.contains("no such file or directory") {
        127
    } else if lower.contains("permission denied") {
        126
    } else {
        128
    };
    Err(Failure::Start { message: format!("OCI runtime failed: {said}"), exit_code })
}

/// The last error of a log of JSON lines.
fn last_message(log: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    lines.rfind(|line| line.level == "error").map(|line| line.msg)
}

fn read_pid(path: &Path) -> Result<i32, Failure> {
    let text = fs::read_to_string(path).map_err(|error| Failure::sandbox("pid file", error))?;
    text.trim().parse().map_err(|_| Failure::sandbox("pid file", format!("{text:?} is no process id")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_the_message() {
        let log = concat!(
            r#"{"level":"warning","msg":"signal: killed","time":"x"}"#,
            "\n",
            r#"{"level":"error","msg":"runc create failed: exec: \"x\": executable file not found in $PATH","time":"x"}"#,
            "\nnot json\n"
        );
        assert_eq!(
            last_message(log).as_deref(),
            Some("runc create failed: exec: \"x\": executable file not found in $PATH")
        );
        assert_eq!(last_message(""), None);
    }
}
