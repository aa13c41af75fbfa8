//! A further worker of the same machine: in a network namespace of its own, on threads that live there.
//!
//! Whatever such a worker opens (probes, its packet rules, its spawner and with it the pods on its node's network) belongs
//! to the namespace of the thread that opens it. So the worker needs to know nothing of where it is.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use anyhow::{Context, Result};
use carob_network::{Ipv4Net, Network, NetworkConfig};
use carob_worker::Worker;
use nix::sched::{CloneFlags, setns};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;

use crate::agent::Plan;

/// A further worker, and the threads it runs on.
pub struct Annex {
    agent: Arc<Worker>,
    threads: Runtime,
}

impl Annex {
    /// Starts a worker in the namespace where it was before, or in a new one.
    pub async fn start(plan: Plan, first: &Network, config: NetworkConfig) -> Result<Self> {
        let kept = kept(&plan).await?;
        let netns = first.annex(config.pod_cidr, kept).await.context("cannot make its network namespace")?;
        let threads = threads_in(netns, config.pod_cidr)?;
        let begin = async move {
            let network = Network::start(config).await.context("cannot set up its pods' network")?;
            plan.begin(network, None).await
        };
        let outcome = threads.spawn(begin).await.context("it panicked")?;
        match outcome {
            Ok(agent) => Ok(Self { agent, threads }),
            Err(error) => {
                threads.shutdown_background();
                Err(error)
            }
        }
    }

    /// What answers for its pods, and where.
    pub fn answers(&self) -> (axum::Router, Handle) {
        (self.agent.router(), self.threads.handle().clone())
    }

    /// Runs it until it is told to stop.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        let outcome = self.threads.spawn(async move { Box::pin(self.agent.run(stop)).await }).await;
        self.threads.shutdown_background();
        Ok(outcome.context("a worker panicked")??)
    }
}

/// The namespace of a spawner that is still there: with it live the pods on its node's network.
async fn kept(plan: &Plan) -> Result<Option<OwnedFd>> {
    let Some(spawner) = carob_sandbox::spawner_of(&plan.runtime.dir).await? else { return Ok(None) };
    let namespace = File::open(format!("/proc/{spawner}/ns/net"));
    let own = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
    // One that has just died, or that isn't in a namespace of its own, has none to be kept.
    Ok(namespace.ok().filter(|file| file.metadata().is_ok_and(|found| found.ino() != own)).map(OwnedFd::from))
}

/// Threads that are in a network namespace, all of them: also those that block.
fn threads_in(netns: OwnedFd, block: Ipv4Net) -> Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .thread_name(format!("worker-{}", block.network()))
        .on_thread_start(move || {
            if let Err(error) = setns(&netns, CloneFlags::CLONE_NEWNET) {
                // A thread elsewhere would change another worker's network.
                tracing::error!(%error, "a thread can't enter its worker's network namespace");
                std::process::abort();
            }
        })
        .build()
        .context("cannot start its threads")
}
