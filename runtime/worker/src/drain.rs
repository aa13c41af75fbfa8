//! Ends all pods of a worker that doesn't run any more: what `carob down` does before it removes their sandboxes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use carob_network::TrafficCounters;
use carob_sandbox::{CgroupPaths, CgroupVersion, ContainerState, Exit, RecoveredPod, Runtime};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::container::signal::StopSignal;
use crate::observer::Identity;
use crate::pod::{IDENTITY, STOP_SIGNAL};
use crate::{ContainerEnd, ContainerObserver, ObservedContainer, ObservedNetwork};

/// How long a killed container may take to be gone.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// Asks every container to stop, kills those that haven't after `grace`, and tells the observer of every end and of what the
/// pods received and sent. Gives the number of containers that would not end.
pub async fn drain(
    runtime: &Runtime,
    pods: Vec<RecoveredPod>,
    mut exits: mpsc::UnboundedReceiver<Exit>,
    observer: &dyn ContainerObserver,
    counters: &TrafficCounters,
    grace: Duration,
) -> usize {
    let networks: Vec<_> = pods.iter().filter_map(ObservedNetwork::recovered).collect();
    let mut left = HashMap::new();
    for container in pods.into_iter().flat_map(|pod| pod.containers) {
        if let ContainerState::Running { .. } = container.state {
            let signal = StopSignal::read(container.annotations.get(STOP_SIGNAL).map(String::as_str));
            send(runtime, &container.id, signal.number).await;
        }
        left.insert(container.id, container.annotations);
    }
    for (signal, patience) in [(None, grace), (Some(nix::libc::SIGKILL), AFTER_KILL)] {
        if let Some(signal) = signal {
            for id in left.keys() {
                send(runtime, id, signal).await;
            }
        }
        let deadline = Instant::now() + patience;
        while !left.is_empty() {
            let Ok(Some(exit)) = timeout_at(deadline, exits.recv()).await else { break };
            let Some(annotations) = left.remove(&exit.container) else { continue };
            if let Some(container) = annotations.get(IDENTITY).and_then(|text| observed(text, &exit)) {
                observer.exited(&container, &end(&exit)).await;
            }
        }
    }
    for network in networks {
        observer.network_ended(&network, network.last(counters)).await;
    }
    left.len()
}

async fn send(runtime: &Runtime, id: &carob_sandbox::ContainerId, signal: i32) {
    if let Err(error) = runtime.signal(id, signal).await {
        tracing::warn!(%id, signal, %error, "a container could not be signalled");
    }
}

fn observed(identity: &str, exit: &Exit) -> Option<ObservedContainer> {
    let identity: Identity = serde_json::from_str(identity).ok()?;
    // Its counters are in the exit.
    let cgroup = CgroupPaths { version: CgroupVersion::V2, cpuacct: PathBuf::new(), memory: PathBuf::new() };
    Some(identity.observed(exit.container.as_str(), exit.started_at, cgroup))
}

fn end(exit: &Exit) -> ContainerEnd {
    ContainerEnd {
        finished_at: exit.finished_at,
        exit_code: exit.code,
        unknown: exit.unknown,
        cpu_ns: exit.usage.cpu_ns,
        memory_peak_bytes: exit.usage.memory_peak_bytes,
    }
}
