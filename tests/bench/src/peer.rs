//! What is measured of everything that starts containers: Carob and its peers alike.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::Command;
use tokio::runtime::Handle;

/// How long one step may take before the peer counts as broken.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What every container runs: it waits, and ends at once when told to.
pub const COMMAND: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"];

/// What every container may use.
pub mod limits {
    /// Bytes.
    pub const MEMORY: u64 = 64 << 20;
    /// CPUs.
    pub const CPUS: u64 = 1;
    /// Relative weight: the kernel's least, as of a request of a thousandth of a CPU, of which a small machine has a
    /// thousand.
    pub const CPU_SHARES: u64 = 2;
}

/// Something that starts containers.
///
/// Times are those of the operation alone; [`Peer::prepare`] is not part of them.
pub trait Peer: Sync {
    /// Column of the table.
    fn name(&self) -> &'static str;
    /// What one start is made of, and what it leaves out beside a pod.
    fn comprises(&self) -> &'static str;
    /// Program and version.
    fn version(&self) -> String;
    /// A directory whose name is in the command line of every helper process, and of no other.
    fn home(&self) -> &Path;
    /// Called once on every thread before it calls anything else.
    fn enter(&self) -> Result<()> {
        Ok(())
    }
    /// Makes what a start needs that isn't part of it.
    fn prepare(&self, _id: &str) -> Result<()> {
        Ok(())
    }
    /// Until the container runs.
    fn start(&self, id: &str) -> Result<Duration>;
    /// Runs `true` in it, until its exit code is known.
    fn exec(&self, id: &str) -> Result<Duration>;
    /// Until it is gone.
    fn delete(&self, id: &str) -> Result<Duration>;
    /// Fetches an image from a registry without TLS and unpacks it; `None` where it knows no registries.
    fn pull(&self, _reference: &str) -> Result<Option<Duration>> {
        Ok(None)
    }
    /// Removes the image with its layers.
    fn forget(&self, _reference: &str) -> Result<()> {
        Ok(())
    }
}

/// Waits for a daemon of a peer's.
pub fn until_it_serves(runtime: &Handle, mut serves: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !serves()? {
        if Instant::now() > deadline {
            bail!("it does not serve within {} s", PATIENCE.as_secs());
        }
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
    }
    Ok(())
}

/// Runs a peer's command-line program; what it says on standard error is kept for messages.
pub struct Program {
    runtime: Handle,
    path: PathBuf,
    /// Come before the arguments of every call.
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
    complaints: PathBuf,
}

impl Program {
    /// `name` must be in the path; `complaints` is a file for its standard error.
    pub fn find(runtime: &Handle, name: &str, complaints: PathBuf) -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Debian has runc where only root looks.
        let found = std::env::split_paths(&path)
            .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
            .map(|directory| directory.join(name))
            .find(|path| path.exists());
        let path = found.with_context(|| format!("{name} is not installed"))?;
        let runtime = runtime.clone();
        Ok(Self { runtime, path, arguments: Vec::new(), environment: Vec::new(), complaints })
    }

    /// Arguments of every call.
    pub fn with_arguments<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// A variable of every call's environment.
    pub fn with_environment(mut self, name: &'static str, value: String) -> Self {
        self.environment.push((name, value));
        self
    }

    /// Where the program is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs it to its end and gives how long that took.
    ///
    /// Its output can't be a pipe: a container that it leaves behind would hold the pipe open.
    pub fn run(&self, arguments: &[&str]) -> Result<Duration> {
        let complaints = OpenOptions::new().create(true).append(true).open(&self.complaints)?;
        let before = complaints.metadata()?.len();
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(complaints).kill_on_drop(true);
        let (status, took) = self.runtime.block_on(async {
            let begin = Instant::now();
            let mut child = command.spawn()?;
            let status = tokio::time::timeout(PATIENCE, child.wait()).await??;
            anyhow::Ok((status, begin.elapsed()))
        })?;
        if !status.success() {
            bail!("{} {}: {}", self.name(), arguments.join(" "), self.complaint(before)?);
        }
        Ok(took)
    }

    /// Runs it to its end and gives what it printed.
    pub fn output(&self, arguments: &[&str]) -> Result<String> {
        let mut command = std::process::Command::new(&self.path);
        command.args(&self.arguments).args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = command.stdin(Stdio::null()).output()?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("{} {}: {}", self.name(), arguments.join(" "), complaint.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The first line of what it prints as its version.
    pub fn version(&self) -> String {
        let output = std::process::Command::new(&self.path).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    }

    fn name(&self) -> std::path::Display<'_> {
        Path::new(self.path.file_name().unwrap_or_default()).display()
    }

    fn complaint(&self, before: u64) -> Result<String> {
        let mut file = File::open(&self.complaints)?;
        file.seek(SeekFrom::Start(before))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(text.trim().lines().next_back().unwrap_or("it failed without a word").to_owned())
    }
}
