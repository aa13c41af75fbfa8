//! `carob down`: stops the pods of a data directory and removes what Carob made on the machine.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use carob_billing::price::PriceBook;
use carob_billing::{Billing, BillingConfig, Keeping};
use carob_image::{Images, RegistryConfig};
use carob_network::{Network, TrafficCounters};
use carob_sandbox::{ContainerId, Runtime, RuntimeConfig};
use carob_worker::{ContainerObserver, Unobserved};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::agent;
use crate::data_dir::{DataDir, Holder, Lock, Locked, Purpose, WorkerDir};
use crate::remote;
use crate::wiring::LastReadings;
use crate::{DataDirOption, complain};

/// How long a running gateway may take to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// What pods of a worker that is no longer wanted get to stop by themselves.
const RETIRING_GRACE: Duration = Duration::from_secs(10);
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

/// The last readings are not in the ledger, as far as is known.
#[derive(Debug, thiserror::Error)]
enum Unbilled {
    #[error(
        "the ledger {} cannot be written. The pods are stopped, and what they used last is kept in {}: when the ledger can \
         be written, run carob down again; or give these readings up with --force",
        ledger.display(),
        sandboxes.display()
    )]
    Unwritten {
        ledger: PathBuf,
        sandboxes: PathBuf,
        #[source]
        cause: anyhow::Error,
    },
    #[error(
        "not all pods can be stopped. What they used last is kept in {}: run carob down again; or have them killed, and give \
         these readings up, with --force",
        sandboxes.display()
    )]
    Untold {
        sandboxes: PathBuf,
        #[source]
        cause: anyhow::Error,
    },
}

pub async fn run(options: Options) -> Result<()> {
    let dir = DataDir::open(&options.data.data_dir)?;
    let Some(mut instance) = dir.instance()? else {
        println!("nothing to stop: no carob was started on {}", dir.root().display());
        return Ok(());
    };
    let _lock = stop_gateway(&dir).await?;
    let workers = dir.workers()?;
    let spawner = |worker: &WorkerDir| agent::spawner(worker, &instance.id);
    let spawners = workers.iter().map(spawner).collect::<Vec<_>>();
    let grace = Duration::from_secs(options.grace.into());
    if let Err(error) = stop_pods(&dir, &spawners, &instance.id, grace).await {
        if error.is::<Unbilled>() && !options.force {
            return Err(error);
        }
        complain(format_args!("pods could not be stopped in order, they are killed: {error:#}"));
    }
    for (worker, spawner) in workers.iter().zip(spawners) {
        remove_sandboxes(worker, spawner).await?;
    }
    Network::teardown(&instance.id).await.context("cannot remove the network")?;
    release_images(&dir).await.context("cannot release the containers' images")?;
    remote::worker::forget_place(&dir)?;
    // Another Carob may take the pods' addresses meanwhile: the next start looks for free ones.
    instance.pod_cidr = None;
    dir.save_instance(&instance)?;
    println!(
        "stopped; objects, images and the ledger stay in {}: carob {} starts the pods again",
        dir.root().display(),
        if remote::worker::is_one(&dir) { "worker" } else { "up" }
    );
    Ok(())
}

/// Removes what is left of a worker's pods.
async fn remove_sandboxes(worker: &WorkerDir, spawner: RuntimeConfig) -> Result<()> {
    carob_sandbox::teardown(spawner).await.context("cannot remove the sandboxes")?;
    let pods = worker.pods();
    if pods.exists() {
        carob_sandbox::remove_tree(&pods).with_context(|| format!("cannot remove {}", pods.display()))?;
    }
    Ok(())
}

/// Stops the pods as their workers would, so that their last usage is in the ledger.
async fn stop_pods(dir: &DataDir, spawners: &[RuntimeConfig], network: &str, grace: Duration) -> Result<()> {
    let spawners: Vec<_> = spawners.iter().filter(|spawner| spawner.dir.exists()).collect();
    let Some(first) = spawners.first() else { return Ok(()) };
    let unwritten =
        |cause: anyhow::Error| Unbilled::Unwritten { ledger: dir.ledger(), sandboxes: first.dir.clone(), cause };
    let ledger = open_ledger(dir).await;
    let readings = ledger.as_ref().ok().map(|billing| LastReadings::new(Arc::clone(billing)));
    // Who says that the pods are stopped has to stop them, also where the ledger can't be had.
    let observer: &dyn ContainerObserver = match &readings {
        Some(readings) => readings,
        None => &Unobserved,
    };
    let stopping = spawners.iter().map(|spawner| stop_pods_of((*spawner).clone(), network, observer, grace));
    let stopped = futures::future::join_all(stopping).await;
    match readings {
        Some(readings) => readings.outcome().map_err(anyhow::Error::from),
        None => ledger.as_ref().map(drop).map_err(|error| anyhow::anyhow!("{error}")),
    }
    .map_err(unwritten)?;
    if let (true, Ok(outbox)) = (remote::worker::is_one(dir), &ledger)
        && let Err(error) = remote::worker::settle(dir, outbox).await
    {
        complain(format_args!(
            "the last usage waits in {} until the worker is started again: {error:#}",
            dir.ledger().display()
        ));
    }
    let mut emptied = Vec::new();
    for (spawner, stopped) in spawners.iter().zip(stopped) {
        let untold = |cause| Unbilled::Untold { sandboxes: spawner.dir.clone(), cause };
        emptied.push(stopped.map_err(untold)?.runtime);
    }
    for runtime in emptied {
        runtime.shutdown().await.context("cannot end the spawner")?;
    }
    Ok(())
}

/// A spawner without anything to do, and the containers that it had.
struct Stopped {
    runtime: Runtime,
    containers: Vec<ContainerId>,
}

/// Stops the pods of one spawner, which are in this instance's network.
async fn stop_pods_of(
    spawner: RuntimeConfig,
    network: &str,
    observer: &dyn ContainerObserver,
    grace: Duration,
) -> Result<Stopped> {
    let counters = counters(network, &spawner.dir).await.context("cannot read what pods received and sent")?;
    let reached = match Runtime::start(spawner.clone()).await {
        // Nobody can ask it to stop its pods: that is done without it, and the next one tells how they ended.
        Err(carob_sandbox::Error::Version { .. }) => Runtime::replace(spawner, grace).await,
        reached => reached,
    };
    let (runtime, pods, exits) = reached.context("cannot reach the spawner")?;
    let containers = pods.iter().flat_map(|pod| &pod.containers).map(|container| container.id.clone()).collect();
    match carob_worker::drain(&runtime, pods, exits, observer, &counters, grace).await {
        0 => Ok(Stopped { runtime, containers }),
        stuck => bail!("{stuck} containers did not end"),
    }
}

/// What a worker's pods received and sent is counted in the network namespace of its spawner.
async fn counters(network: &str, dir: &Path) -> Result<TrafficCounters> {
    let spawner = carob_sandbox::spawner_of(dir).await?;
    let namespace = spawner.and_then(|spawner| File::open(format!("/proc/{spawner}/ns/net")).ok()).map(OwnedFd::from);
    Ok(TrafficCounters::open(network, namespace.as_ref())?)
}

/// Ends a worker of an earlier start that this one doesn't have: its pods are stopped, what they used is told to
/// `observer`, and nothing of it is kept.
pub async fn retire(
    worker: &WorkerDir,
    spawner: RuntimeConfig,
    network: &str,
    observer: &dyn ContainerObserver,
    images: &Images,
) -> Result<()> {
    let doing = || format!("cannot end the worker {} of an earlier start", worker.number);
    if spawner.dir.exists() {
        let stopped = stop_pods_of(spawner.clone(), network, observer, RETIRING_GRACE).await.with_context(doing)?;
        stopped.runtime.shutdown().await.with_context(doing)?;
        for container in &stopped.containers {
            images.release(container.as_str()).await.with_context(doing)?;
        }
    }
    remove_sandboxes(worker, spawner).await.with_context(doing)?;
    carob_sandbox::remove_tree(worker.root()).with_context(doing)
}

/// A gateway that is ending may still be closing it.
async fn open_ledger(dir: &DataDir) -> Result<Arc<Billing>, carob_billing::Error> {
    let begin = Instant::now();
    loop {
        let config = BillingConfig {
            dir: dir.ledger(),
            prices: PriceBook::default(),
            interval: Duration::from_secs(1),
            keeping: if remote::worker::is_one(dir) { Keeping::Outbox } else { Keeping::Ledger },
        };
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
        let locked = match dir.lock(Purpose::Ending) {
            Ok(lock) => return Ok(lock),
            Err(error) => error.downcast::<Locked>()?,
        };
        // Who is about to say who it is, or has just ended, is looked at again.
        if let Locked(Some(holder)) = locked
            && holder.purpose == Purpose::Serving
            && asked != Some(holder)
        {
            let process = holder.pid;
            let ended = ask_to_end(dir, holder).with_context(|| format!("cannot stop the gateway (process {process})"));
            asked = ended?.then_some(holder);
        }
        if tokio::time::Instant::now() > deadline {
            bail!("{locked}, and did not end within {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Sends SIGTERM to who has the lock, and to nobody else, whoever has the number of its process by now. False if it has gone.
fn ask_to_end(dir: &DataDir, holder: Holder) -> Result<bool> {
    let Some(pid) = Pid::from_raw(holder.pid) else { return Ok(false) };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    // From here on this is one process, and it is looked at only now whether it is the one.
    if !dir.is_locked_by(holder)? {
        return Ok(false);
    }
    match pidfd_send_signal(&process, Signal::TERM) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
