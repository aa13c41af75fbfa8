//! The StatefulSet controller: pods with a name and volumes of their own, made and removed in order.
//!
//! A pod's name is its place: the API lets no second one of that name in, so whatever happens there are never two of one
//! ordinal. Each look takes the steps that the pods' states allow ([`plan`]) and waits for the watch to tell of more.

mod claims;
mod identity;
mod plan;
mod report;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};

use self::plan::{Plan, Step};
use crate::cluster::Cluster;
use crate::controller::{self, Setup};
use crate::events::Voice;
use crate::informer::Key;
use crate::ownership::{self, Selector, controller_of, is_terminating};
use crate::pod_control::message;
use crate::queue::{Again, Queue};
use crate::revisions::{self, History};
use crate::status;

pub(crate) struct Controller {
    cluster: Cluster,
    voice: Voice,
}

/// A StatefulSet as of one look.
struct Look {
    set: Arc<StatefulSet>,
    spec: StatefulSetSpec,
    pods: Vec<Arc<Pod>>,
    /// That of the pods below the partition.
    current: Arc<ControllerRevision>,
    history: History,
    now: Timestamp,
}

impl controller::Controller for Controller {
    type Item = Key;
    const NAME: &'static str = "statefulset-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone(), voice: setup.voice.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.cluster.stateful_sets, queue);
        controller::controllers_of(&self.cluster.pods, "StatefulSet", queue);
        let (sets, queue) = (self.cluster.stateful_sets.clone(), queue.clone());
        self.cluster.pods.on_change(move |change| {
            let Some(orphan) = change.new.filter(|pod| controller_of(&pod.metadata).is_none()) else { return };
            let namespace = orphan.metadata.namespace.as_deref().unwrap_or_default();
            let could_adopt =
                |set: &StatefulSet| identity::is_member(set, orphan) && selector(set).matches(&orphan.metadata);
            sets.list_in(namespace, could_adopt).iter().for_each(|set| queue.add(Key::of(&**set)));
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(set) = self.cluster.stateful_sets.get(&key) else { return Ok(None) };
        let mut look = self.look(set, &key).await?;
        let outcome =
            if look.set.metadata.deletion_timestamp.is_some() { Ok(()) } else { self.act(&mut look, &key).await };
        let again = self.report(&look).await?;
        outcome?;
        self.truncate(&look).await?;
        Ok(again)
    }
}

impl Controller {
    async fn look(&self, set: Arc<StatefulSet>, key: &Key) -> Result<Look, kube::Error> {
        let spec = set.spec.clone().unwrap_or_default();
        let candidates = self.cluster.pods.list_in(&key.namespace, |_| true);
        let member = |pod: &Pod| identity::is_member(&set, pod);
        let mut pods = ownership::claim(&self.cluster.client, &*set, &selector(&set), candidates, member).await?;
        pods.retain(|pod| member(pod));
        let owner = revisions::Owner {
            object: &*set,
            selector: selector(&set),
            template: &spec.template,
            hash_label: "controller.kubernetes.io/hash",
            annotations: None,
            collisions: set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0),
        };
        let history = owner.history(&self.cluster).await?;
        let current = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
        let current = history.all.iter().find(|revision| Some(revisions::name(revision)) == current);
        let current = Arc::clone(current.unwrap_or(&history.update));
        Ok(Look { set, spec, pods, current, history, now: Timestamp::now() })
    }

    /// Takes all steps that may be taken now.
    async fn act(&self, look: &mut Look, key: &Key) -> Result<(), kube::Error> {
        for pod in look.pods.iter().filter(|pod| identity::ordinal(pod).is_some()) {
            let scaled_down = !look.spec_range().contains(&identity::ordinal(pod).unwrap_or(-1));
            self.keep_claims(look, pod, scaled_down).await?;
        }
        let plan = Plan::of(look);
        let steps = plan.steps.into_iter().map(|step| self.take(look, key, step));
        let mut failure = Ok(());
        let mut outcomes = Vec::new();
        for outcome in join_all(steps).await {
            match outcome {
                Ok(change) => outcomes.extend(change),
                Err(error) => failure = Err(error),
            }
        }
        for (name, pod) in outcomes {
            look.pods.retain(|known| known.metadata.name.as_deref() != Some(&name));
            look.pods.extend(pod);
        }
        failure
    }

    /// Takes one step. What became of which pod.
    async fn take(
        &self,
        look: &Look,
        key: &Key,
        step: Step,
    ) -> Result<Option<(String, Option<Arc<Pod>>)>, kube::Error> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &key.namespace);
        match step {
            Step::Create(ordinal) => {
                let pod = look.pod(ordinal);
                let name = pod.metadata.name.clone().unwrap_or_default();
                if !self.make_claims(look, ordinal, &name).await? {
                    return Ok(None);
                }
                match pods.create(&PostParams::default(), &pod).await {
                    Ok(made) => {
                        let text = format!("create Pod {name} in StatefulSet {} successful", key.name);
                        self.voice.normal(&*look.set, "SuccessfulCreate", text);
                        Ok(Some((name, Some(Arc::new(made)))))
                    }
                    // The watch is late, or somebody else's pod is in the way, whose end it will tell of.
                    Err(kube::Error::Api(status)) if status.code == 409 || is_terminating(&status) => Ok(None),
                    Err(error) => {
                        let text =
                            format!("create Pod {name} in StatefulSet {} failed error: {}", key.name, message(&error));
                        self.voice.warning(&*look.set, "FailedCreate", text);
                        Err(error)
                    }
                }
            }
            Step::Delete(pod) => {
                let name = pod.metadata.name.clone().unwrap_or_default();
                let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
                match pods.delete(&name, &params).await {
                    Ok(answer) => {
                        let text = format!("delete Pod {name} in StatefulSet {} successful", key.name);
                        self.voice.normal(&*look.set, "SuccessfulDelete", text);
                        let ending = answer.left().filter(|pod| pod.metadata.deletion_timestamp.is_some());
                        ending.iter().for_each(|pod| self.cluster.pods.learn(pod.clone()));
                        Ok(Some((name, ending.map(Arc::new))))
                    }
                    Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(None),
                    Err(error) => {
                        let text =
                            format!("delete Pod {name} in StatefulSet {} failed error: {}", key.name, message(&error));
                        self.voice.warning(&*look.set, "FailedDelete", text);
                        Err(error)
                    }
                }
            }
            Step::Identify(pod) => {
                let patch = identity::correction(&look.set, &pod);
                let name = pod.metadata.name.clone().unwrap_or_default();
                match pods.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                    Ok(pod) => {
                        self.cluster.pods.learn(pod);
                        Ok(None)
                    }
                    Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(None),
                    Err(error) => Err(error),
                }
            }
        }
    }

    async fn report(&self, look: &Look) -> Result<Again, kube::Error> {
        let status = look.status();
        status::write(&self.cluster.client, &self.cluster.stateful_sets, &*look.set, look.set.status.as_ref(), &status)
            .await?;
        Ok(look.next_available())
    }

    async fn truncate(&self, look: &Look) -> Result<(), kube::Error> {
        let status = look.set.status.clone().unwrap_or_default();
        let mut in_use: HashSet<&str> = look.pods.iter().filter_map(|pod| identity::revision(pod)).collect();
        in_use.insert(revisions::name(&look.current));
        in_use.insert(revisions::name(&look.history.update));
        in_use.extend(status.current_revision.as_deref());
        revisions::truncate(&self.cluster, &look.history, &in_use, look.spec.revision_history_limit).await
    }

    /// Makes the claims of an ordinal that aren't there. Whether the pod may be made.
    async fn make_claims(&self, look: &Look, ordinal: i32, pod: &str) -> Result<bool, kube::Error> {
        let attempts = look.claims(ordinal).into_iter().map(|claim| self.make_claim(look, pod, claim));
        Ok(try_join_all(attempts).await?.into_iter().all(|there| there))
    }
}

impl Look {
    fn wanted(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    fn start(&self) -> i32 {
        self.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0)
    }

    /// The ordinals that there should be.
    fn spec_range(&self) -> std::ops::Range<i32> {
        self.start()..self.start() + self.wanted()
    }

    fn min_ready(&self) -> Duration {
        Duration::from_secs(self.spec.min_ready_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0))
    }
}

fn selector(set: &StatefulSet) -> Selector {
    Selector::read(set.spec.as_ref().map(|spec| &spec.selector))
}
