//! The networks of this node's pods, as billing is told of them. A pod on the host's network has none: nobody can tell its
//! bytes from the node's.

use crate::ContainerObserver;
use crate::context::Context;
use crate::observer::ObservedNetwork;
use carob_network::Network;
use carob_sandbox::RecoveredPod;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// By the pods' uids.
#[derive(Debug, Default)]
pub(crate) struct Networks(Mutex<HashMap<String, ObservedNetwork>>);

impl Networks {
    /// Those that were there before this process.
    pub async fn adopt(pods: &[RecoveredPod], network: &Network, observer: &Arc<dyn ContainerObserver>) -> Self {
        let mut living = HashMap::new();
        for pod in pods {
            let Some(observed) = ObservedNetwork::recovered(pod) else { continue };
            if pod.alive {
                observer.network_started(&observed, network.traffic()).await;
                living.insert(pod.uid.clone(), observed);
            } else {
                // It died with the spawner: its address may soon be another pod's.
                let (last, observer) = (observed.last(network.traffic()), Arc::clone(observer));
                tokio::spawn(async move { observer.network_ended(&observed, last).await });
            }
        }
        Self(Mutex::new(living))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, ObservedNetwork>> {
        // A panic of another holder leaves a map that is still right.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod has this one now.
    pub async fn start(&self, network: ObservedNetwork, ctx: &Context) {
        self.lock().insert(network.pod_uid.clone(), network.clone());
        ctx.observer.network_started(&network, ctx.network.traffic()).await;
    }

    /// A pod has left its network; returns when its last bytes are on the bill.
    pub async fn end(&self, uid: &str, ctx: &Context) {
        let left = self.lock().remove(uid);
        if let Some(network) = left {
            ctx.observer.network_ended(&network, network.last(ctx.network.traffic())).await;
        }
    }
}
