//! One pod on this node: an actor that owns its state, and the pure functions that it decides with.

pub(crate) mod actor;
mod anew;
mod backoff;
mod change;
mod conditions;
mod ephemeral;
mod exits;
mod hooks;
mod plan;
mod prepare;
mod probe;
mod probes;
mod ready;
pub(crate) mod record;
mod recover;
mod resize;
mod restart_all;
mod retry;
mod start;
mod status;
mod stop;
mod storage;
mod view;
mod weight;
mod writer;

pub(crate) use prepare::{ADDRESS, HOST_PORTS, NETWORK, config};
pub(crate) use recover::orphan;
pub(crate) use start::{IDENTITY, STOP_SIGNAL};
pub(crate) use storage::used;
pub(crate) use weight::{Weight, is_critical};

use crate::metrics::StartLatency;
use carob_sandbox::{ContainerId, Exit};
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// What an actor is told from outside.
#[derive(Debug)]
pub(crate) enum Message {
    /// The pod's object as it is now.
    Object(Arc<Pod>),
    /// The object is gone from the API: stop everything and forget the pod.
    Gone,
    /// A container has ended.
    Exit(Exit),
    /// A probe's verdict changed.
    Probed(probes::Verdict),
    /// A ConfigMap or Secret that a volume comes from may have changed.
    VolumesChanged,
    /// Somebody wants to see its object, as the actor knows it.
    Show(oneshot::Sender<Arc<Pod>>),
    /// Somebody wants to know what it takes of the node.
    Weigh(oneshot::Sender<Weight>),
    /// The node needs what it takes.
    Evict { message: String, grace: Duration },
}

/// What the HTTP side may know of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodView {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub address: Option<std::net::IpAddr>,
    pub host_network: bool,
    /// `D/logs/pods/{namespace}_{name}_{uid}`
    pub logs: PathBuf,
    pub containers: Vec<ContainerView>,
}

/// What the HTTP side may know of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are the spec's")]
pub(crate) struct ContainerView {
    pub name: String,
    pub init: bool,
    /// The running container.
    pub running: Option<ContainerId>,
    /// Attempt of the newest log; `None` before the first start.
    pub attempt: Option<u32>,
    /// Why it isn't running, for error texts.
    pub waiting: Option<String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
}

/// A handle to an actor.
#[derive(Clone)]
pub(crate) struct PodHandle {
    pub sender: mpsc::UnboundedSender<Message>,
    pub view: watch::Receiver<PodView>,
    pub latency: StartLatency,
}

/// The actors of this node by uid.
#[derive(Default)]
pub(crate) struct PodTable {
    pods: Mutex<HashMap<String, PodHandle>>,
}

impl PodTable {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, PodHandle>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn insert(&self, uid: &str, handle: PodHandle) {
        self.lock().insert(uid.to_owned(), handle);
    }

    pub fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    pub fn contains(&self, uid: &str) -> bool {
        self.lock().contains_key(uid)
    }

    /// Whether a container of the pod runs.
    pub fn has_running(&self, uid: &str) -> bool {
        let handle = self.lock().get(uid).cloned();
        handle.is_some_and(|handle| handle.view.borrow().containers.iter().any(|c| c.running.is_some()))
    }

    pub fn uids(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Gives the message back when there is no such actor.
    pub fn send(&self, uid: &str, message: Message) -> Option<Message> {
        match self.lock().get(uid) {
            Some(handle) => handle.sender.send(message).err().map(|error| error.0),
            None => Some(message),
        }
    }

    /// The pod of that name; of several (one going, one coming) the one that has a running container, else any.
    pub fn find(&self, namespace: &str, name: &str) -> Option<PodHandle> {
        let pods = self.lock();
        let mut matching: Vec<&PodHandle> = pods
            .values()
            .filter(|handle| {
                let view = handle.view.borrow();
                view.namespace == namespace && view.name == name
            })
            .collect();
        matching.sort_by_key(|handle| !handle.view.borrow().containers.iter().any(|c| c.running.is_some()));
        matching.first().map(|handle| (*handle).clone())
    }
}
