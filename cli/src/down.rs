//! `carob down`: stops the pods of a data directory and removes what Carob made on the machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use carob_billing::price::PriceBook;
use carob_billing::{Billing, BillingConfig};
use carob_image::{Images, RegistryConfig};
use carob_network::Network;
use carob_sandbox::{Runtime, RuntimeConfig};
use carob_worker::Unobserved;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::DataDirOption;
use crate::data_dir::{DataDir, Lock, Locked};
use crate::wiring::LastReadings;

/// How long a running gateway may take to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a ledger that can't be opened is tried again.
const LEDGER_PATIENCE: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    data: DataDirOption,
    /// Seconds that containers get to stop by themselves.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    grace: u32,
    /// Go on when the ledger can't be written: what containers used last is then on no bill
    #[arg(long)]
    force: bool,
}

/// The last readings are not in the ledger.
#[derive(Debug, thiserror::Error)]
#[error(
    "the ledger {} cannot be written. The pods are stopped, and what they used last is kept in {}: when the ledger can be \
     written, run carob down again; or give these readings up with --force",
    ledger.display(),
    sandboxes.display()
)]
struct Unbilled {
    ledger: PathBuf,
    sandboxes: PathBuf,
    #[source]
    cause: anyhow::Error,
}

pub async fn run(options: Options) -> Result<()> {
    let dir = DataDir::open(&options.data.data_dir)?;
    let Some(mut instance) = dir.instance()? else {
        println!("nothing to stop: no carob was started on {}", dir.root().display());
        return Ok(());
    };
    let _lock = stop_gateway(&dir).await?;
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let runtime_config = RuntimeConfig { dir: dir.sandboxes(), instance: instance.id.clone(), exe };
    if let Err(error) = stop_pods(&dir, runtime_config.clone(), Duration::from_secs(options.grace.into())).await {
        if error.is::<Unbilled>() && !options.force {
            return Err(error);
        }
        eprintln!("carob: pods could not be stopped in order, they are killed: {error:#}");
    }
    carob_sandbox::teardown(runtime_config).await.context("cannot remove the sandboxes")?;
    Network::teardown(&instance.id).await.context("cannot remove the network")?;
    let pods = dir.root().join("pods");
    if pods.exists() {
        carob_sandbox::remove_tree(&pods).with_context(|| format!("cannot remove {}", pods.display()))?;
    }
    release_images(&dir).await.context("cannot release the containers' images")?;
    // Another Carob may take the pods' addresses meanwhile: the next start looks for free ones.
    instance.pod_cidr = None;
    dir.save_instance(&instance)?;
    println!(
        "stopped; objects, images and the ledger stay in {}: carob up starts the pods again",
        dir.root().display()
    );
    Ok(())
}

/// Stops the pods as a worker would, so that their last usage is in the ledger.
async fn stop_pods(dir: &DataDir, runtime: RuntimeConfig, grace: Duration) -> Result<()> {
    if !runtime.dir.exists() {
        return Ok(());
    }
    let (runtime, pods, exits) = Runtime::start(runtime).await.context("cannot reach the spawner")?;
    let unbilled = |cause: anyhow::Error| Unbilled { ledger: dir.ledger(), sandboxes: dir.sandboxes(), cause };
    let (stuck, written) = match open_ledger(dir).await {
        Ok(billing) => {
            let observer = LastReadings::new(billing);
            let stuck = carob_worker::drain(&runtime, pods, exits, &observer, grace).await;
            (stuck, observer.outcome().map_err(anyhow::Error::from))
        }
        // Who says that the pods are stopped has to stop them.
        Err(error) => (carob_worker::drain(&runtime, pods, exits, &Unobserved, grace).await, Err(error.into())),
    };
    written.map_err(unbilled)?;
    if stuck > 0 {
        bail!("{stuck} containers did not end");
    }
    runtime.shutdown().await.context("cannot end the spawner")
}

/// A gateway that is ending may still be closing it.
async fn open_ledger(dir: &DataDir) -> Result<Arc<Billing>, carob_billing::Error> {
    let begin = Instant::now();
    loop {
        let config =
            BillingConfig { dir: dir.ledger(), prices: PriceBook::default(), interval: Duration::from_secs(1) };
        match Billing::open(config) {
            Err(_) if begin.elapsed() < LEDGER_PATIENCE => tokio::time::sleep(Duration::from_millis(50)).await,
            other => return other,
        }
    }
}

/// No container is left: images that only they kept can be removed from here on.
async fn release_images(dir: &DataDir) -> Result<(), carob_image::Error> {
    if !dir.images().exists() {
        return Ok(());
    }
    let images = Images::open(&dir.images(), RegistryConfig::default())?;
    for container in images.holders().await? {
        images.release(&container).await?;
    }
    images.collect_garbage().await.map(drop)
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
