//! How many replicas a metric asks for.

use std::collections::BTreeMap;
use std::sync::Arc;

use carob_api::quantity::Quantity;
use carob_api::selector::LabelSelector;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
    ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use serde_json::json;

use super::Scale;
use super::behavior::as_float;
use super::metrics::{self, Measured};
use crate::cluster::Cluster;
use crate::pod_control::phase;

/// How long a pod's CPU isn't trusted after its start.
const INITIALIZATION: SignedDuration = SignedDuration::from_secs(300);
/// How soon after its start a pod that isn't ready may have been.
const READINESS_DELAY: SignedDuration = SignedDuration::from_secs(30);

/// Why a metric says nothing.
pub(super) struct Problem {
    pub(super) reason: &'static str,
    pub(super) text: String,
}

/// What a metric is asked about.
pub(super) struct Asked<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) namespace: &'a str,
    pub(super) scale: &'a Scale,
    pub(super) tolerance: (f64, f64),
}

impl Asked<'_> {
    /// The replicas that a metric asks for, its name for people, and its value.
    pub(super) async fn replicas(&self, spec: &MetricSpec) -> Result<(i32, String, MetricStatus), Problem> {
        let client = &self.cluster.client;
        let type_ = spec.type_.clone();
        let mut status = MetricStatus { type_: type_.clone(), ..MetricStatus::default() };
        match type_.as_str() {
            "Resource" | "ContainerResource" => {
                let (reason, name, container, target) = match (&spec.resource, &spec.container_resource) {
                    (Some(source), _) => ("FailedGetResourceMetric", source.name.clone(), None, &source.target),
                    (None, Some(source)) => {
                        let container = Some(source.container.clone());
                        ("FailedGetContainerResourceMetric", source.name.clone(), container, &source.target)
                    }
                    _ => return Err(incomplete()),
                };
                let failed = |text: String| Problem { reason, text };
                let (count, current) = self
                    .by_resource(&name, container.as_deref(), target)
                    .await
                    .map_err(|why| failed(format!("failed to get {name} utilization: {why}")))?;
                let text = match &container {
                    Some(container) => {
                        format!("{name} container resource utilization (percentage of request) of {container}")
                    }
                    None if target.average_utilization.is_some() => {
                        format!("{name} resource utilization (percentage of request)")
                    }
                    None => format!("{name} resource"),
                };
                match container {
                    Some(container) => {
                        status.container_resource = Some(ContainerResourceMetricStatus { container, current, name });
                    }
                    None => status.resource = Some(ResourceMetricStatus { current, name }),
                }
                Ok((count, text, status))
            }
            "Pods" => {
                let Some(source) = &spec.pods else { return Err(incomplete()) };
                let failed = |text: String| Problem { reason: "FailedGetPodsMetric", text };
                let measured =
                    metrics::of_pods_custom(client, self.namespace, &self.scale.selector, &source.metric).await;
                let target = nanos(source.target.average_value.as_ref());
                let usage = measured.and_then(|measured| self.by_average(&measured, target, false));
                let (count, average) =
                    usage.map_err(|why| failed(format!("failed to get pods metric value: {why}")))?;
                status.pods = Some(PodsMetricStatus { current: average_value(average), metric: source.metric.clone() });
                Ok((count, format!("pods metric {}", source.metric.name), status))
            }
            "Object" => {
                let Some(source) = &spec.object else { return Err(incomplete()) };
                let object = &source.described_object;
                let group =
                    object.api_version.as_deref().and_then(|version| version.split_once('/')).map(|(group, _)| group);
                let plural = format!("{}s", object.kind.to_lowercase());
                let resource = group.map_or_else(|| plural.clone(), |group| format!("{plural}.{group}"));
                let value = metrics::of_object(client, self.namespace, (&resource, &object.name), &source.metric).await;
                let (count, current) =
                    value.map(|value| self.by_total(value, &source.target)).map_err(|why| Problem {
                        reason: "FailedGetObjectMetric",
                        text: format!("failed to get object metric value: {why}"),
                    })?;
                status.object = Some(ObjectMetricStatus {
                    current,
                    described_object: object.clone(),
                    metric: source.metric.clone(),
                });
                Ok((count, format!("{} metric {}", object.kind, source.metric.name), status))
            }
            "External" => {
                let Some(source) = &spec.external else { return Err(incomplete()) };
                let value = metrics::external(client, self.namespace, &source.metric).await;
                let (count, current) =
                    value.map(|value| self.by_total(value, &source.target)).map_err(|why| Problem {
                        reason: "FailedGetExternalMetric",
                        text: format!("failed to get external metric {}: {why}", source.metric.name),
                    })?;
                status.external = Some(ExternalMetricStatus { current, metric: source.metric.clone() });
                Ok((
                    count,
                    format!("external metric {}({})", source.metric.name, json!(source.metric.selector)),
                    status,
                ))
            }
            other => {
                let text = format!("unknown metric source type {other:?}");
                Err(Problem { reason: "InvalidMetricSourceType", text })
            }
        }
    }

    async fn by_resource(
        &self,
        resource: &str,
        container: Option<&str>,
        target: &MetricTarget,
    ) -> Result<(i32, MetricValueStatus), String> {
        let (client, selector) = (&self.cluster.client, &self.scale.selector);
        let measured = metrics::of_pods(client, self.namespace, selector, resource, container).await?;
        if let Some(wanted) = target.average_utilization {
            let groups = Groups::of(&self.pods()?, &measured, resource == "cpu");
            return self.by_utilization(&groups, resource, container, wanted);
        }
        let (count, average) = self.by_average(&measured, nanos(target.average_value.as_ref()), resource == "cpu")?;
        Ok((count, average_value(average)))
    }

    fn pods(&self) -> Result<Vec<Arc<Pod>>, String> {
        let selector = LabelSelector::parse(&self.scale.selector)?;
        let pods = self.cluster.pods.list_in(self.namespace, |pod| selector.matches(Some(&json!(pod.metadata.labels))));
        if pods.is_empty() {
            Err("no pods returned by selector while calculating replica count".to_owned())
        } else {
            Ok(pods)
        }
    }

    fn by_utilization(
        &self,
        groups: &Groups,
        resource: &str,
        container: Option<&str>,
        wanted: i32,
    ) -> Result<(i32, MetricValueStatus), String> {
        let mut requests: BTreeMap<&str, i128> = BTreeMap::new();
        for pod in &groups.all {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            requests.insert(name, request(pod, resource, container)?);
        }
        let of = |name: &str| requests.get(name).copied().unwrap_or(0);
        let utilization = |usage: &BTreeMap<String, i128>| {
            let total: i128 = usage.keys().map(|name| of(name)).sum();
            (usage.values().sum::<i128>() * 100)
                .checked_div(total)
                .ok_or_else(|| "did not receive metrics for targeted pods (pods might be unready)".to_owned())
        };
        let now = utilization(&groups.ready)?;
        let average = groups.ready.values().sum::<i128>() / i128::try_from(groups.ready.len().max(1)).unwrap_or(1);
        let current = MetricValueStatus {
            average_utilization: i32::try_from(now).ok(),
            average_value: Some(Written(canonical(average))),
            value: None,
        };
        let ratio = as_float(now) / f64::from(wanted.max(1));
        // Pods that say nothing are taken for what speaks against the change.
        let assumed = |name: &str| if ratio < 1.0 { of(name) * i128::from(wanted.max(100)) / 100 } else { 0 };
        let ready = i32::try_from(groups.ready.len()).unwrap_or(i32::MAX);
        let count = self.decide(ratio, ready, groups, assumed, |usage| {
            utilization(usage).map_or(ratio, |now| as_float(now) / f64::from(wanted.max(1)))
        });
        Ok((count, current))
    }

    /// The same by what a pod uses on average, without regard to what it asks for.
    fn by_average(
        &self,
        measured: &BTreeMap<String, Measured>,
        target: i128,
        is_cpu: bool,
    ) -> Result<(i32, i128), String> {
        let groups = Groups::of(&self.pods()?, measured, is_cpu);
        let count = i128::try_from(groups.ready.len()).unwrap_or(0);
        if count == 0 {
            return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
        }
        let mean = |usage: &BTreeMap<String, i128>| {
            usage.values().sum::<i128>() / i128::try_from(usage.len().max(1)).unwrap_or(1)
        };
        let average = mean(&groups.ready);
        let ratio = as_float(average) / as_float(target.max(1));
        let assumed = |_: &str| if ratio < 1.0 { target } else { 0 };
        let ready = i32::try_from(count).unwrap_or(i32::MAX);
        let replicas =
            self.decide(ratio, ready, &groups, assumed, |usage| as_float(mean(usage)) / as_float(target.max(1)));
        Ok((replicas, average))
    }

    fn decide(
        &self,
        ratio: f64,
        ready: i32,
        groups: &Groups,
        assumed: impl Fn(&str) -> i128,
        again: impl Fn(&BTreeMap<String, i128>) -> f64,
    ) -> i32 {
        let current = self.scale.wanted;
        let counts_unready = !groups.unready.is_empty() && ratio > 1.0;
        if !counts_unready && groups.missing.is_empty() {
            return if self.is_close(ratio) { current } else { ceil(ratio * f64::from(ready)) };
        }
        let mut usage = groups.ready.clone();
        for name in &groups.missing {
            usage.insert(name.clone(), assumed(name));
        }
        if counts_unready {
            usage.extend(groups.unready.iter().map(|name| (name.clone(), 0)));
        }
        let new = again(&usage);
        if self.is_close(new) || (ratio < 1.0) != (new < 1.0) {
            return current;
        }
        let count = ceil(new * f64::from(i32::try_from(usage.len()).unwrap_or(i32::MAX)));
        // No step in the other direction than the ratio says.
        if new < 1.0 && count > current || new > 1.0 && count < current { current } else { count }
    }

    /// A value of the whole.
    fn by_total(&self, value: i128, target: &MetricTarget) -> (i32, MetricValueStatus) {
        let there = self.scale.there.max(1);
        if let Some(average) = &target.average_value {
            let wanted = nanos(Some(average)).max(1);
            let ratio = as_float(value) / (as_float(wanted) * f64::from(there));
            let count = if self.is_close(ratio) { self.scale.there } else { ceil(as_float(value) / as_float(wanted)) };
            return (count, average_value(value / i128::from(there)));
        }
        let ratio = as_float(value) / as_float(nanos(target.value.as_ref()).max(1));
        let ready = self
            .pods()
            .map_or(0, |pods| pods.iter().filter(|pod| crate::pod_control::ready_since(pod).is_some()).count());
        let ready = i32::try_from(ready).unwrap_or(i32::MAX);
        let count = if self.is_close(ratio) { self.scale.wanted } else { ceil(ratio * f64::from(ready)) };
        (count, MetricValueStatus { value: Some(Written(canonical(value))), ..MetricValueStatus::default() })
    }

    fn is_close(&self, ratio: f64) -> bool {
        let (up, down) = self.tolerance;
        ratio <= 1.0 + up && ratio >= 1.0 - down
    }
}

/// The pods by what their measurements are worth.
struct Groups {
    all: Vec<Arc<Pod>>,
    ready: BTreeMap<String, i128>,
    unready: Vec<String>,
    missing: Vec<String>,
}

impl Groups {
    fn of(pods: &[Arc<Pod>], measured: &BTreeMap<String, Measured>, is_cpu: bool) -> Self {
        let mut groups = Self { all: Vec::new(), ready: BTreeMap::new(), unready: Vec::new(), missing: Vec::new() };
        for pod in pods {
            if pod.metadata.deletion_timestamp.is_some() || phase(pod) == "Failed" {
                continue;
            }
            groups.all.push(Arc::clone(pod));
            let name = pod.metadata.name.clone().unwrap_or_default();
            match measured.get(&name) {
                _ if phase(pod) == "Pending" => groups.unready.push(name),
                None => groups.missing.push(name),
                Some(measured) if is_cpu && is_starting(pod, measured) => groups.unready.push(name),
                Some(measured) => {
                    groups.ready.insert(name, measured.nanos);
                }
            }
        }
        groups
    }
}

/// Whether a pod's CPU is that of its start.
fn is_starting(pod: &Pod, measured: &Measured) -> bool {
    let status = pod.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    let (Some(start), Some(ready)) = (status.start_time, ready) else { return true };
    let changed = ready.last_transition_time.as_ref().map_or(start.0, |at| at.0);
    let is_ready = ready.status == "True";
    if Timestamp::now().duration_since(start.0) < INITIALIZATION {
        let window = SignedDuration::from_secs(measured.window_seconds);
        return !is_ready || measured.at.is_some_and(|at| at.duration_since(changed) < window);
    }
    !is_ready && changed.duration_since(start.0) < READINESS_DELAY
}

/// What a pod, or one of its containers, asks for.
fn request(pod: &Pod, resource: &str, container: Option<&str>) -> Result<i128, String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let of = |container: &Container| {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        nanos(requests.and_then(|requests| requests.get(resource)))
    };
    if container.is_none() {
        let whole = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get(resource));
        if let Some(whole) = whole {
            return Ok(nanos(Some(whole)));
        }
    }
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|known| known.restart_policy.as_deref() == Some("Always"));
    let mut total = 0;
    for known in spec.containers.iter().chain(sidecars).filter(|known| container.is_none_or(|name| known.name == name))
    {
        let amount = of(known);
        if amount == 0 {
            return Err(format!("missing request for {resource} in container {} of Pod {name}", known.name));
        }
        total += amount;
    }
    Ok(total)
}

fn incomplete() -> Problem {
    Problem { reason: "InvalidMetricSourceType", text: "the metric's source is missing".to_owned() }
}

fn nanos(written: Option<&Written>) -> i128 {
    written.and_then(|written| Quantity::parse(&written.0).ok()).map_or(0, |quantity| quantity.nanos())
}

/// Metrics are written in thousandths.
fn canonical(nanos: i128) -> String {
    Quantity::from_nanos(nanos / 1_000_000 * 1_000_000).canonical()
}

fn average_value(nanos: i128) -> MetricValueStatus {
    MetricValueStatus { average_value: Some(Written(canonical(nanos))), ..MetricValueStatus::default() }
}

/// Replicas are few.
#[allow(clippy::cast_possible_truncation)]
fn ceil(number: f64) -> i32 {
    number.ceil().clamp(0.0, f64::from(i32::MAX)) as i32
}
