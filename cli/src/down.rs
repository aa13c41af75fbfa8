//! `carob down`: stops the pods of a data directory and removes what Carob made on the machine.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use carob_network::Network;
use carob_sandbox::RuntimeConfig;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::DataDirOption;
use crate::data_dir::{DataDir, Lock, Locked};

/// How long a running gateway may take to end.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    data: DataDirOption,
}

pub async fn run(options: Options) -> Result<()> {
    let dir = DataDir::open(&options.data.data_dir)?;
    let Some(instance) = dir.instance()? else {
        println!("nothing to stop: no carob was started on {}", dir.root().display());
        return Ok(());
    };
    let _lock = stop_gateway(&dir).await?;
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    carob_sandbox::teardown(RuntimeConfig { dir: dir.sandboxes(), instance: instance.id.clone(), exe })
        .await
        .context("cannot remove the sandboxes")?;
    Network::teardown(&instance.id).await.context("cannot remove the network")?;
    let pods = dir.root().join("pods");
    if pods.exists() {
        std::fs::remove_dir_all(&pods).with_context(|| format!("cannot remove {}", pods.display()))?;
    }
    println!("stopped; objects, images and the ledger stay in {}", dir.root().display());
    Ok(())
}

/// Ends a gateway that runs on the directory, and keeps others out.
async fn stop_gateway(dir: &DataDir) -> Result<Lock> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut asked = None;
    loop {
        let pid = match dir.lock() {
            Ok(lock) => return Ok(lock),
            Err(error) => match error.downcast_ref::<Locked>() {
                Some(locked) => locked.pid,
                None => return Err(error),
            },
        };
        if asked != Some(pid) {
            match kill(Pid::from_raw(pid), Signal::SIGTERM) {
                Ok(()) | Err(Errno::ESRCH) => asked = Some(pid),
                Err(error) => return Err(error).with_context(|| format!("cannot stop the gateway (process {pid})")),
            }
        }
        if tokio::time::Instant::now() > deadline {
            bail!("the gateway (process {pid}) did not end within {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
