//! The HorizontalPodAutoscaler: as many replicas as the metrics ask for.
//!
//! Every so often each autoscaler reads its target's scale and its metrics, through the API like anybody; what the metrics
//! ask for ([`replicas`]) is held back by the behaviour ([`behavior`]).

mod behavior;
mod metrics;
mod replicas;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec,
    HorizontalPodAutoscalerStatus, MetricStatus,
};
use kube::api::{Api, DynamicObject, PostParams};
use serde_json::{Value, json};

use self::behavior::History;
use self::replicas::Problem;
use crate::cluster::Cluster;
use crate::controller::{Controller, Setup};
use crate::events::Voice;
use crate::informer::Key;
use crate::kinds::Kinds;
use crate::pod_control::message;
use crate::queue::{Again, Queue};
use crate::status;

/// How long a new or changed autoscaler is left alone, so that whoever makes one can finish. In Kubernetes a whole period.
const FIRST_LOOK: Duration = Duration::from_secs(1);

pub(crate) struct Autoscaler {
    cluster: Cluster,
    voice: Voice,
    kinds: Kinds,
    period: Duration,
    histories: Mutex<HashMap<Key, History>>,
}

/// The scale of a target.
struct Scale {
    api: Api<DynamicObject>,
    name: String,
    object: DynamicObject,
    /// Replicas that are wanted now.
    wanted: i32,
    /// Replicas that there are.
    there: i32,
    selector: String,
}

impl Controller for Autoscaler {
    type Item = Key;
    const NAME: &'static str = "horizontal-pod-autoscaler";

    fn new(setup: &Setup<'_>) -> Self {
        Self {
            cluster: setup.cluster.clone(),
            voice: setup.voice.clone(),
            kinds: setup.inventory.kinds().clone(),
            period: setup.options.autoscaler_period,
            histories: Mutex::default(),
        }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        let (queue, wait) = (queue.clone(), self.period.min(FIRST_LOOK));
        self.cluster.autoscalers.on_change(move |change| {
            // Its own status is no reason to look again.
            if change.old.map(|old| &old.spec) != change.new.map(|new| &new.spec) {
                change.new.or(change.old).into_iter().for_each(|object| queue.add_after(Key::of(&**object), wait));
            }
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(object) = self.cluster.autoscalers.get(&key) else {
            self.histories.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            return Ok(None);
        };
        let mut look = Look::of(&object);
        self.step(&object, &key, &mut look).await;
        let status = look.status;
        status::write(&self.cluster.client, &self.cluster.autoscalers, &*object, object.status.as_ref(), &status)
            .await?;
        Ok(Some(self.period))
    }
}

/// What is found out in one look, to be written down.
struct Look {
    spec: HorizontalPodAutoscalerSpec,
    status: HorizontalPodAutoscalerStatus,
}

impl Look {
    fn of(object: &HorizontalPodAutoscaler) -> Self {
        let mut status = object.status.clone().unwrap_or_default();
        status.observed_generation = object.metadata.generation;
        Self { spec: object.spec.clone().unwrap_or_default(), status }
    }

    fn say(&mut self, type_: &str, holds: bool, reason: &str, message: &str) {
        let value = if holds { "True" } else { "False" };
        let conditions = self.status.conditions.get_or_insert_default();
        let known = conditions.iter_mut().find(|condition| condition.type_ == type_);
        let since =
            known.as_ref().filter(|known| known.status == value).and_then(|known| known.last_transition_time.clone());
        let condition = HorizontalPodAutoscalerCondition {
            type_: type_.to_owned(),
            status: value.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(since.unwrap_or_else(status::now)),
        };
        match known {
            Some(known) => *known = condition,
            None => conditions.push(condition),
        }
    }

    fn least(&self) -> i32 {
        self.spec.min_replicas.unwrap_or(1)
    }
}

impl Scale {
    /// Writes how many replicas are wanted, unless that was changed meanwhile.
    async fn set(&self, replicas: i32) -> Result<DynamicObject, kube::Error> {
        let mut scale = self.object.clone();
        scale.data["spec"]["replicas"] = json!(replicas);
        self.api.replace_subresource("scale", &self.name, &PostParams::default(), &scale).await
    }
}

const ABLE: &str = "AbleToScale";
const ACTIVE: &str = "ScalingActive";
const LIMITED: &str = "ScalingLimited";

impl Autoscaler {
    async fn step(&self, object: &HorizontalPodAutoscaler, key: &Key, look: &mut Look) {
        let scale = match self.scale(key, &look.spec).await {
            Ok(scale) => scale,
            Err(why) => {
                self.voice.warning(object, "FailedGetScale", why.clone());
                let text = format!("the HPA controller was unable to get the target's current scale: {why}");
                return look.say(ABLE, false, "FailedGetScale", &text);
            }
        };
        look.say(ABLE, true, "SucceededGetScale", "the HPA controller was able to get the target's current scale");
        let current = scale.wanted;
        look.status.current_replicas = Some(current);
        let (least, most) = (look.least(), look.spec.max_replicas);
        let (desired, reason) = if current == 0 && least != 0 {
            let text = "scaling is disabled since the replica count of the target is zero";
            look.say(ACTIVE, false, "ScalingDisabled", text);
            (0, String::new())
        } else if current > most {
            (most, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < least {
            (least, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else if let Some((proposed, metric)) = self.wanted_by_metrics(object, key, look, &scale).await {
            let reason = match proposed.cmp(&current) {
                std::cmp::Ordering::Greater => format!("{metric} above target"),
                std::cmp::Ordering::Less => "All metrics below target".to_owned(),
                std::cmp::Ordering::Equal => String::new(),
            };
            (self.held_back(look, key, current, proposed), reason)
        } else {
            look.status.desired_replicas = current;
            return;
        };
        look.status.desired_replicas = desired;
        if desired == current {
            return;
        }
        match scale.set(desired).await {
            Ok(_) => {
                self.voice.normal(object, "SuccessfulRescale", format!("New size: {desired}; reason: {reason}"));
                let text = format!("the HPA controller was able to update the target scale to {desired}");
                look.say(ABLE, true, "SucceededRescale", &text);
                look.status.last_scale_time = Some(status::now());
                let mut histories = self.histories.lock().unwrap_or_else(PoisonError::into_inner);
                histories.entry(key.clone()).or_default().scaled(current, desired);
            }
            Err(error) => {
                let why = message(&error);
                let text = format!("New size: {desired}; reason: {reason}; error: {why}");
                self.voice.warning(object, "FailedRescale", text);
                let text = format!("the HPA controller was unable to update the target scale: {why}");
                look.say(ABLE, false, "FailedUpdateScale", &text);
            }
        }
    }

    async fn scale(&self, key: &Key, spec: &HorizontalPodAutoscalerSpec) -> Result<Scale, String> {
        let target = &spec.scale_target_ref;
        let version = target.api_version.as_deref().unwrap_or_default();
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let unknown = || format!("no matches for kind {:?} in group {group:?}", target.kind);
        let kind = self.kinds.get(group, &target.kind).ok_or_else(unknown)?;
        let api = kind.api(&self.cluster.client, &key.namespace);
        let scale = api.get_subresource("scale", &target.name).await.map_err(|error| message(&error))?;
        let number = |pointer: &str| {
            scale
                .data
                .pointer(pointer)
                .and_then(Value::as_i64)
                .and_then(|number| i32::try_from(number).ok())
                .unwrap_or(0)
        };
        let selector = scale.data.pointer("/status/selector").and_then(Value::as_str).unwrap_or_default().to_owned();
        let (wanted, there) = (number("/spec/replicas"), number("/status/replicas"));
        Ok(Scale { wanted, there, object: scale, selector, name: target.name.clone(), api })
    }

    /// The most that any metric asks for, and which; none if that can't be said.
    async fn wanted_by_metrics(
        &self,
        object: &HorizontalPodAutoscaler,
        key: &Key,
        look: &mut Look,
        scale: &Scale,
    ) -> Option<(i32, String)> {
        if scale.selector.is_empty() {
            let text = "the HPA target's scale is missing a selector";
            self.voice.warning(object, "SelectorRequired", "selector is required".to_owned());
            look.say(ACTIVE, false, "InvalidSelector", text);
            return None;
        }
        let metrics = look.spec.metrics.clone().unwrap_or_default();
        let tolerance = behavior::tolerances(look.spec.behavior.as_ref());
        let (mut best, mut problems): (Option<(i32, String)>, Vec<Problem>) = (None, Vec::new());
        let mut statuses: Vec<MetricStatus> = Vec::new();
        for metric in &metrics {
            let asked = replicas::Asked { cluster: &self.cluster, namespace: &key.namespace, scale, tolerance };
            match asked.replicas(metric).await {
                Ok((count, name, status)) => {
                    statuses.push(status);
                    if best.as_ref().is_none_or(|(most, _)| count > *most) {
                        best = Some((count, name));
                    }
                }
                Err(problem) => {
                    self.voice.warning(object, problem.reason, problem.text.clone());
                    problems.push(problem);
                }
            }
        }
        look.status.current_metrics = Some(statuses).filter(|statuses| !statuses.is_empty());
        // What some metrics don't say may be that no replica can be spared.
        let unsure = problems.len() == metrics.len() || best.as_ref().is_some_and(|(count, _)| *count < scale.wanted);
        if let Some(first) = problems.first().filter(|_| unsure) {
            let text = format!(
                "invalid metrics ({} invalid out of {}), first error is: {}",
                problems.len(),
                metrics.len(),
                first.text
            );
            self.voice.warning(object, "FailedComputeMetricsReplicas", text.clone());
            let text = format!("the HPA was unable to compute the replica count: {}", first.text);
            look.say(ACTIVE, false, first.reason, &text);
            return None;
        }
        let (count, name) = best?;
        let text = format!("the HPA was able to successfully calculate a replica count from {name}");
        look.say(ACTIVE, true, "ValidMetricFound", &text);
        Some((count, name))
    }

    /// What of a proposal the behaviour and the limits let through.
    fn held_back(&self, look: &mut Look, key: &Key, current: i32, proposed: i32) -> i32 {
        let mut histories = self.histories.lock().unwrap_or_else(PoisonError::into_inner);
        let history = histories.entry(key.clone()).or_default();
        let held =
            history.hold_back(look.spec.behavior.as_ref(), look.least(), look.spec.max_replicas, current, proposed);
        drop(histories);
        let (reason, text) = held.stabilized;
        look.say(ABLE, true, reason, text);
        let (holds, reason, text) = held.limited;
        look.say(LIMITED, holds, reason, text);
        held.replicas
    }
}
