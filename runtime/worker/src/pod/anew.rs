//! A pod whose actor panicked: what the next one begins with.

use super::backoff::Backoff;
use super::{Message, orphan};
use crate::context::Context;
use crate::objects;
use crate::observer::ObservedNetwork;
use carob_sandbox::RecoveredPod;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

/// Waits, longer each time, and asks the API and the spawner for what they know: a pod that panics whenever it is looked at
/// takes little of the machine.
pub(super) async fn anew(
    ctx: &Context,
    pod: &Pod,
    mailbox: &mut UnboundedReceiver<Message>,
    sender: &UnboundedSender<Message>,
    backoff: &mut Backoff,
) -> (Pod, Option<RecoveredPod>) {
    let (found, recovered) = loop {
        tokio::time::sleep(backoff.next(Instant::now())).await;
        // What has been said so far is known to those who are asked now.
        while mailbox.try_recv().is_ok() {}
        match ask(ctx, pod).await {
            Ok(known) => break known,
            Err(error) => tracing::warn!(uid = pod.metadata.uid, error, "a pod can't be taken up yet"),
        }
    };
    match &recovered {
        Some(recovered) => {
            if let Some(network) = ObservedNetwork::recovered(recovered).filter(|_| recovered.alive) {
                // Told again, if it was told before.
                ctx.networks.start(network, ctx).await;
            }
        }
        // Its sandbox may have been half made.
        None => ctx.give_back(pod.metadata.uid.as_deref().unwrap_or_default()).await,
    }
    let pod = found.unwrap_or_else(|| {
        // The mailbox is the caller's, who listens.
        let _ = sender.send(Message::Gone);
        recovered.as_ref().map_or_else(|| pod.clone(), orphan)
    });
    (pod, recovered)
}

/// The pod's object, while there is one, and what the spawner has of it.
async fn ask(ctx: &Context, pod: &Pod) -> Result<(Option<Pod>, Option<RecoveredPod>), String> {
    let meta = &pod.metadata;
    let (name, namespace) = (meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref().unwrap_or_default());
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), namespace);
    let found = api.get_opt(name).await.map_err(|error| objects::message(&error))?;
    let pods = ctx.runtime.pods().await.map_err(|error| error.to_string())?;
    let recovered = pods.into_iter().find(|known| Some(&known.uid) == meta.uid.as_ref());
    Ok((found.filter(|found| found.metadata.uid == meta.uid), recovered))
}
