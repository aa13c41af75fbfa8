//! The end of a namespace: first its pods go, then everything else, then the namespace itself.
//!
//! Pods go first and are waited for, so that whatever protects them (policies, secrets they need to end well) outlives
//! them. What is left, and who holds it, stands in the namespace's conditions. Every object that goes from a namespace
//! that is ending leads to another look, so nothing is polled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::json;

use crate::aggregated;
use crate::cluster::Cluster;
use crate::controller::Setup;
use crate::informer::Key;
use crate::inventory::News;
use crate::kinds::{Kind, Kinds};
use crate::queue::{Again, Queue};
use crate::status;

/// The finalizer that this controller takes off.
const FINALIZER: &str = "kubernetes";
/// Another look even if nothing was heard: a watch may have been broken.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

pub(crate) struct Controller {
    cluster: Cluster,
    kinds: Kinds,
}

/// What is still in a namespace.
#[derive(Default)]
struct Remains {
    /// By resource and group.
    objects: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    failures: Vec<String>,
    /// Versions of groups of which nobody knows what they hold: their servers don't answer.
    unknown: Vec<String>,
}

impl crate::controller::Controller for Controller {
    type Item = String;
    const NAME: &'static str = "namespace-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone(), kinds: setup.inventory.kinds().clone() }
    }

    fn listen(self: &Arc<Self>, setup: &Setup<'_>, queue: &Queue<String>) {
        let ending = queue.clone();
        self.cluster.namespaces.on_change(move |change| {
            if let Some(namespace) = change.new.filter(|namespace| is_ending(namespace)) {
                ending.add(namespace.metadata.name.clone().unwrap_or_default());
            }
        });
        let (namespaces, ending) = (self.cluster.namespaces.clone(), queue.clone());
        setup.inventory.on_news(move |news| {
            let News::Gone(_, namespace) = *news else { return };
            if namespaces.get(&Key::new("", namespace)).is_some_and(|namespace| is_ending(&namespace)) {
                ending.add(namespace.to_owned());
            }
        });
    }

    async fn reconcile(&self, name: String) -> Result<Again, kube::Error> {
        self.empty_and_finalize(name).await
    }
}

fn is_ending(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
}

impl Controller {
    async fn empty_and_finalize(&self, name: String) -> Result<Again, kube::Error> {
        let Some(namespace) = self.cluster.namespaces.get(&Key::new("", &name)).filter(|known| is_ending(known)) else {
            return Ok(None);
        };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(None);
        }
        let remains = self.empty(&name).await;
        let done = remains.objects.is_empty() && remains.failures.is_empty() && remains.unknown.is_empty();
        let namespace = self.report(&namespace, &remains).await?;
        if !done {
            return Ok(Some(LOOK_AGAIN));
        }
        self.finalize(namespace, &name).await?;
        Ok(None)
    }

    /// Asks for everything to go, and counts what is left: pods before all else.
    async fn empty(&self, namespace: &str) -> Remains {
        let mut remains = Remains { unknown: aggregated::unavailable(&self.cluster), ..Remains::default() };
        let is_pod = |kind: &Kind| kind.group.is_empty() && kind.name == "Pod";
        let kinds = self.kinds.all();
        let (pods, others): (Vec<_>, Vec<_>) =
            kinds.into_iter().filter(|kind| kind.namespaced).partition(|kind| is_pod(kind));
        for kind in pods {
            self.empty_of(&kind, namespace, &mut remains).await;
        }
        if remains.objects.is_empty() {
            for kind in others {
                self.empty_of(&kind, namespace, &mut remains).await;
            }
        }
        remains
    }

    async fn empty_of(&self, kind: &Kind, namespace: &str, remains: &mut Remains) {
        if let Err(error) = self.try_empty_of(kind, namespace, remains).await {
            remains.failures.push(format!("unexpected items still remain in namespace: {namespace} for gvr: {error}"));
            tracing::debug!(namespace, kind = kind.plural, %error, "cannot delete what is in a namespace");
        }
    }

    async fn try_empty_of(&self, kind: &Kind, namespace: &str, remains: &mut Remains) -> Result<(), kube::Error> {
        let api = kind.api(&self.cluster.client, namespace);
        let all = ListParams::default();
        if api.list_metadata(&all.clone().limit(1)).await?.items.is_empty() {
            return Ok(());
        }
        api.delete_collection(&DeleteParams::background(), &all).await?;
        let left = api.list_metadata(&all).await?.items;
        if left.is_empty() {
            return Ok(());
        }
        remains.objects.insert(kind.group_resource(), left.len());
        for finalizer in left.iter().flat_map(|object| object.metadata.finalizers.iter().flatten()) {
            *remains.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        Ok(())
    }

    /// Says in the namespace's conditions what is left of it. Gives the namespace as it is then.
    async fn report(&self, namespace: &Arc<Namespace>, remains: &Remains) -> Result<Arc<Namespace>, kube::Error> {
        let known = namespace.status.clone().unwrap_or_default();
        let conditions = remains.conditions(&known, Timestamp::now());
        if known.conditions.as_ref() == Some(&conditions) {
            return Ok(Arc::clone(namespace));
        }
        let api: Api<Namespace> = Api::all(self.cluster.client.clone());
        let patch = json!({
            "status": {"phase": "Terminating", "conditions": conditions},
        });
        let namespace = status::change_status(&api, namespace, patch).await?;
        self.cluster.namespaces.learn(namespace.clone());
        Ok(Arc::new(namespace))
    }

    async fn finalize(&self, namespace: Arc<Namespace>, name: &str) -> Result<(), kube::Error> {
        let mut namespace = Arc::unwrap_or_clone(namespace);
        if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        let api: Api<Namespace> = Api::all(self.cluster.client.clone());
        match api.replace_subresource("finalize", name, &PostParams::default(), &namespace).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            outcome => outcome.map(|_: Namespace| ()),
        }
    }
}

impl Remains {
    fn discovery_failure(&self) -> String {
        let groups: Vec<String> =
            self.unknown.iter().map(|version| format!("{version}: stale GroupVersion discovery: {version}")).collect();
        format!(
            "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
            groups.len(),
            groups.join(", ")
        )
    }

    fn conditions(&self, known: &NamespaceStatus, now: Timestamp) -> Vec<NamespaceCondition> {
        let objects: Vec<String> =
            self.objects.iter().map(|(resource, count)| format!("{resource} has {count} resource instances")).collect();
        let finalizers: Vec<String> =
            self.finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances")).collect();
        let or = |bad: bool, yes: (&'static str, String), no: (&'static str, &str)| {
            if bad { ("True", yes.0, yes.1) } else { ("False", no.0, no.1.to_owned()) }
        };
        let all = [
            (
                "NamespaceDeletionDiscoveryFailure",
                or(
                    !self.unknown.is_empty(),
                    ("DiscoveryFailed", self.discovery_failure()),
                    ("ResourcesDiscovered", "All resources successfully discovered"),
                ),
            ),
            (
                "NamespaceDeletionGroupVersionParsingFailure",
                ("False", "ParsedGroupVersions", "All legacy kube types successfully parsed".to_owned()),
            ),
            (
                "NamespaceDeletionContentFailure",
                or(
                    !self.failures.is_empty(),
                    (
                        "ContentDeletionFailed",
                        format!(
                            "Failed to delete all resource types, {} remaining: {}",
                            self.failures.len(),
                            self.failures.join(", ")
                        ),
                    ),
                    ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
                ),
            ),
            (
                "NamespaceContentRemaining",
                or(
                    !objects.is_empty(),
                    ("SomeResourcesRemain", format!("Some resources are remaining: {}", objects.join(", "))),
                    ("ContentRemoved", "All content successfully removed"),
                ),
            ),
            (
                "NamespaceFinalizersRemaining",
                or(
                    !finalizers.is_empty(),
                    (
                        "SomeFinalizersRemain",
                        format!("Some content in the namespace has finalizers remaining: {}", finalizers.join(", ")),
                    ),
                    ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
                ),
            ),
        ];
        let mut conditions: Vec<NamespaceCondition> = known.conditions.clone().unwrap_or_default();
        for (type_, (status, reason, message)) in all {
            let earlier = conditions.iter_mut().find(|condition| condition.type_ == type_);
            let since = earlier.as_ref().filter(|earlier| earlier.status == status);
            let since = since.map_or(Some(Time(now)), |earlier| earlier.last_transition_time.clone());
            let condition = NamespaceCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_transition_time: since,
            };
            match earlier {
                Some(earlier) => *earlier = condition,
                None => conditions.push(condition),
            }
        }
        conditions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_is_left_and_keep_the_time_of_their_last_change() {
        let then = "2026-01-01T00:00:00Z".parse().unwrap();
        let now = "2026-01-01T00:00:09Z".parse().unwrap();
        let mut remains = Remains::default();
        remains.objects.insert("configmaps.".into(), 1);
        remains.finalizers.insert("e.x/f".into(), 1);
        let held = remains.conditions(&NamespaceStatus::default(), then);
        assert_eq!(
            held[3].message.as_deref(),
            Some("Some resources are remaining: configmaps. has 1 resource instances")
        );
        assert_eq!(held[4].reason.as_deref(), Some("SomeFinalizersRemain"));
        let status = NamespaceStatus { conditions: Some(held), ..NamespaceStatus::default() };
        let free = Remains::default().conditions(&status, now);
        assert_eq!(free[3].status, "False");
        assert_eq!(free[3].last_transition_time, Some(Time(now)));
        assert_eq!(free[2].last_transition_time, Some(Time(then)));
        assert_eq!(free.len(), 5);
    }
}
