//! runc, on a bare bundle.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tokio::runtime::Handle;

use crate::oci::OciRuntime;
use crate::peer::{Peer, Program};

/// The runtime alone.
pub struct Runc(OciRuntime);

impl Runc {
    /// Keeps all of its state in `home`.
    pub fn set_up(runtime: &Handle, home: &Path, cgroup: &str, image: &Path) -> Result<Self> {
        let program = Program::find(runtime, "runc", home.join("stderr"))?;
        Ok(Self(OciRuntime::new(program, home, cgroup, image)?))
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        for id in self.0.remaining() {
            if let Err(error) = self.0.delete(&id) {
                eprintln!("{error:#}");
            }
        }
    }
}

impl Peer for Runc {
    fn name(&self) -> &'static str {
        "runc"
    }

    fn comprises(&self) -> &'static str {
        "`runc run --detach` of a ready bundle: no image, no overlay, a network namespace with nothing in it, no logs, \
         nobody who waits for the end; deleted by SIGKILL"
    }

    fn version(&self) -> String {
        self.0.version()
    }

    fn home(&self) -> &Path {
        self.0.home()
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
