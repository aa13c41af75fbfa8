//! crun, on a bare bundle. It refuses machines that have both cgroup versions, unless version 2 is hidden from it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tokio::runtime::Handle;

use crate::oci::OciRuntime;
use crate::peer::{Peer, Program};

/// Where the hybrid layout has version 2.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// The runtime alone.
pub struct Crun(OciRuntime);

impl Crun {
    /// Keeps all of its state in `home`.
    pub fn set_up(runtime: &Handle, home: &Path, cgroup: &str, image: &Path) -> Result<Self> {
        let program = Program::find(runtime, "crun", home.join("stderr"))?;
        Ok(Self(OciRuntime::new(program, home, cgroup, image)?))
    }
}

impl Drop for Crun {
    fn drop(&mut self) {
        // A thread of its own: this one's mounts stay as they are.
        let outcome = std::thread::scope(|scope| {
            let clear = || {
                self.enter()?;
                self.0.remaining().iter().try_for_each(|id| self.0.delete(id).map(drop))
            };
            scope.spawn(clear).join()
        });
        if let Ok(Err(error)) = outcome {
            eprintln!("{error:#}");
        }
    }
}

impl Peer for Crun {
    fn name(&self) -> &'static str {
        "crun"
    }

    fn comprises(&self) -> &'static str {
        "`crun run --detach` of the same bundle as runc's, with the same left out; where the machine has both cgroup \
         versions, version 2 is hidden from it (beforehand: that costs it nothing)"
    }

    fn version(&self) -> String {
        self.0.version()
    }

    fn home(&self) -> &Path {
        self.0.home()
    }

    /// Gives the thread a mount namespace without cgroup version 2, which its children inherit.
    fn enter(&self) -> Result<()> {
        if !Path::new(UNIFIED).join("cgroup.procs").exists() {
            return Ok(());
        }
        unshare(CloneFlags::CLONE_NEWNS).context("cannot have a mount namespace")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        umount2(UNIFIED, MntFlags::MNT_DETACH).context("cannot hide cgroup version 2")
    }

    fn prepare(&self, id: &str) -> Result<()> {
        self.0.prepare(id)
    }

    fn start(&self, id: &str) -> Result<Duration> {
        self.0.start(id)
    }

    fn exec(&self, id: &str) -> Result<Duration> {
        self.0.exec(id)
    }

    fn delete(&self, id: &str) -> Result<Duration> {
        self.0.delete(id)
    }
}
