//! The pods of this node: one watch, one actor per pod, and what an earlier process left behind.

use crate::Error;
use crate::context::Context;
use crate::pod::{Message, actor};
use carob_sandbox::{Exit, RecoveredPod};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::{WatchStreamExt, watcher};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What a pod has that shows what a node runs of its own files. There are none here, so it shows nothing.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Runs pods until `shutdown`; their containers go on running. An error when the spawner has ended, and they with it.
pub(crate) async fn run(
    ctx: Arc<Context>,
    recovered: Vec<RecoveredPod>,
    mut exits: mpsc::UnboundedReceiver<Exit>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let mut pods = Pods::new(ctx.clone(), recovered);
    let api: Api<Pod> = Api::all(ctx.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", ctx.node));
    let stream = watcher(api, config).default_backoff();
    let mut stream = std::pin::pin!(stream);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            exit = exits.recv() => pods.exited(exit.ok_or(Error::Spawner)?),
            event = stream.try_next() => match event {
                Ok(Some(event)) => pods.heard(event),
                Ok(None) => return Ok(()),
                // It begins again by itself, with a back-off, and lists anew where it has to.
                Err(error) => tracing::debug!(%error, "the watch of this node's pods is being renewed"),
            },
        }
    }
}

struct Pods {
    ctx: Arc<Context>,
    /// Found in the sandbox at start and not yet matched with an object.
    recovered: HashMap<String, RecoveredPod>,
    /// Exits of pods whose actor isn't there yet.
    waiting_exits: Vec<Exit>,
    /// uids of the list that is being received.
    listing: HashSet<String>,
    /// The first list is complete: what has no object is an orphan.
    synced: bool,
}

impl Pods {
    fn new(ctx: Arc<Context>, recovered: Vec<RecoveredPod>) -> Self {
        let recovered = recovered.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        Self { ctx, recovered, waiting_exits: Vec::new(), listing: HashSet::new(), synced: false }
    }

    fn heard(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Apply(pod) => self.apply(pod),
            watcher::Event::Delete(pod) => {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                self.ctx.pods.send(&uid, Message::Gone);
            }
            watcher::Event::Init => self.listing.clear(),
            watcher::Event::InitApply(pod) => {
                self.listing.extend(pod.metadata.uid.clone());
                self.apply(pod);
            }
            watcher::Event::InitDone => self.list_complete(),
        }
    }

    fn apply(&mut self, pod: Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if self.ctx.pods.contains(&uid) {
            self.ctx.pods.send(&uid, Message::Object(Arc::new(pod)));
            return;
        }
        if is_mirror(&pod) {
            tokio::spawn(remove_mirror(self.ctx.client.clone(), pod));
            return;
        }
        let recovered = self.recovered.remove(&uid);
        actor::spawn(&self.ctx, pod, recovered);
        for exit in self.waiting_exits.extract_if(.., |exit| exit.pod_uid == uid) {
            self.ctx.pods.send(&uid, Message::Exit(exit));
        }
    }

    /// Pods that the list doesn't have are gone; the first time, sandboxes without an object too.
    fn list_complete(&mut self) {
        for uid in self.ctx.pods.uids() {
            if !self.listing.contains(&uid) {
                self.ctx.pods.send(&uid, Message::Gone);
            }
        }
        if std::mem::replace(&mut self.synced, true) {
            return;
        }
        for (uid, pod) in std::mem::take(&mut self.recovered) {
            tracing::info!(uid, "a sandbox without a pod is removed");
            actor::spawn(&self.ctx, crate::pod::orphan(&pod), Some(pod));
            self.ctx.pods.send(&uid, Message::Gone);
        }
        for exit in std::mem::take(&mut self.waiting_exits) {
            self.ctx.pods.send(&exit.pod_uid.clone(), Message::Exit(exit));
        }
        let (ctx, keep) = (self.ctx.clone(), self.listing.clone());
        tokio::task::spawn_blocking(move || remove_stale_directories(&ctx, &keep));
    }

    fn exited(&mut self, exit: Exit) {
        let uid = exit.pod_uid.clone();
        if let Some(Message::Exit(exit)) = self.ctx.pods.send(&uid, Message::Exit(exit))
            && !self.synced
        {
            self.waiting_exits.push(exit);
        }
    }
}

fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(MIRROR))
}

/// Such a pod is never run, or it would run unbilled. Its object goes at once, as with a kubelet that has no such file.
async fn remove_mirror(client: kube::Client, pod: Pod) {
    let (name, namespace) = (pod.metadata.name.unwrap_or_default(), pod.metadata.namespace.unwrap_or_default());
    let preconditions = Preconditions { uid: pod.metadata.uid, ..Preconditions::default() };
    let params = DeleteParams::default().grace_period(0).preconditions(preconditions);
    match Api::<Pod>::namespaced(client, &namespace).delete(&name, &params).await {
        Ok(_) => tracing::info!(namespace, name, "a mirror pod of nothing is removed"),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
        // Whatever changes it, or the next list, tries again.
        Err(error) => tracing::warn!(namespace, name, %error, "a mirror pod of nothing can't be removed"),
    }
}

/// Directories of pods that are neither in the API nor have an actor: an earlier process was killed while it cleaned up.
fn remove_stale_directories(ctx: &Context, keep: &HashSet<String>) {
    let entries = |path: &std::path::Path| std::fs::read_dir(path).into_iter().flatten().flatten().collect::<Vec<_>>();
    let alive = |uid: &str| keep.contains(uid) || ctx.pods.contains(uid);
    for entry in entries(ctx.dirs.pods()) {
        if !alive(&entry.file_name().to_string_lossy()) {
            crate::container::build::remove_directory(&entry.path());
        }
    }
    for entry in entries(ctx.dirs.logs()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.rsplit('_').next().is_some_and(alive) {
            crate::container::build::remove_directory(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_only_mirrors_is_told_by_its_annotation_whatever_its_value() {
        let annotated = |key: &str| {
            let mut pod = Pod::default();
            pod.metadata.annotations = Some([(key.to_owned(), String::new())].into());
            pod
        };
        assert!(is_mirror(&annotated(MIRROR)));
        assert!(!is_mirror(&annotated("kubernetes.io/config.source")) && !is_mirror(&Pod::default()));
    }
}
