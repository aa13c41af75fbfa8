//! What pods and objects measure, by the metrics APIs.

use std::collections::BTreeMap;

use carob_api::quantity::Quantity;
use carob_api::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::MetricIdentifier;
use kube::Client;
use serde_json::{Value, json};

use crate::pod_control::message;

/// A measurement, in billionths of its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measured {
    pub(super) nanos: i128,
    pub(super) at: Option<Timestamp>,
    pub(super) window_seconds: i64,
}

async fn get(client: &Client, path: &str) -> Result<Value, String> {
    let request = http::Request::get(path).body(Vec::new()).map_err(|error| error.to_string())?;
    client.request(request).await.map_err(|error| message(&error))
}

fn selector_query(identifier: &MetricIdentifier) -> String {
    let selector = identifier.selector.as_ref().map(|written| json!(written));
    let text = selector.map(|written| LabelSelectorText(&written).text()).unwrap_or_default();
    if text.is_empty() { String::new() } else { escape(&text) }
}

/// A selector as a query has it.
struct LabelSelectorText<'a>(&'a Value);

impl LabelSelectorText<'_> {
    fn text(&self) -> String {
        debug_assert!(LabelSelector::from_object(self.0).is_ok());
        let labels = self.0["matchLabels"].as_object().into_iter().flatten();
        let mut parts: Vec<String> =
            labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
        for one in self.0["matchExpressions"].as_array().into_iter().flatten() {
            let key = one["key"].as_str().unwrap_or_default();
            let values = one["values"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let values = values.collect::<Vec<_>>().join(",");
            parts.push(match one["operator"].as_str().unwrap_or_default() {
                "In" => format!("{key} in ({values})"),
                "NotIn" => format!("{key} notin ({values})"),
                "Exists" => key.to_owned(),
                _ => format!("!{key}"),
            });
        }
        parts.join(",")
    }
}

/// A text as part of a query.
pub(super) fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn quantity(value: &Value) -> Option<i128> {
    Quantity::parse(value.as_str()?).ok().map(|quantity| quantity.nanos())
}

fn when(item: &Value) -> (Option<Timestamp>, i64) {
    let at = item["timestamp"].as_str().and_then(|text| text.parse().ok());
    let seconds = |text: &str| text.trim_end_matches('s').parse::<f64>().ok();
    // A window of seconds.
    #[allow(clippy::cast_possible_truncation)]
    let window = item["window"].as_str().and_then(seconds).map_or(60, |seconds| seconds.ceil() as i64);
    (at, window)
}

/// What each pod uses of a resource: all of it, or one container.
pub(super) async fn of_pods(
    client: &Client,
    namespace: &str,
    selector: &str,
    resource: &str,
    container: Option<&str>,
) -> Result<BTreeMap<String, Measured>, String> {
    let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={}", escape(selector));
    let list = get(client, &path).await.map_err(|why| {
        format!(
            "unable to get metrics for resource {resource}: unable to fetch metrics from resource metrics API: {why}"
        )
    })?;
    let mut measured = BTreeMap::new();
    for item in list["items"].as_array().into_iter().flatten() {
        let containers = item["containers"].as_array().into_iter().flatten();
        let meant: Vec<&Value> =
            containers.filter(|known| container.is_none_or(|name| known["name"].as_str() == Some(name))).collect();
        let amounts: Option<Vec<i128>> = meant.iter().map(|known| quantity(&known["usage"][resource])).collect();
        let (Some(amounts), Some(name)) =
            (amounts.filter(|amounts| !amounts.is_empty()), item["metadata"]["name"].as_str())
        else {
            continue;
        };
        let (at, window_seconds) = when(item);
        measured.insert(name.to_owned(), Measured { nanos: amounts.iter().sum(), at, window_seconds });
    }
    if measured.is_empty() {
        return Err(format!(
            "unable to get metrics for resource {resource}: no metrics returned from resource metrics API"
        ));
    }
    Ok(measured)
}

/// A metric of each pod's own.
pub(super) async fn of_pods_custom(
    client: &Client,
    namespace: &str,
    selector: &str,
    metric: &MetricIdentifier,
) -> Result<BTreeMap<String, Measured>, String> {
    let path = format!(
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/pods/%2A/{}?labelSelector={}&metricLabelSelector={}",
        escape(&metric.name),
        escape(selector),
        selector_query(metric)
    );
    let list = get(client, &path).await.map_err(|why| {
        format!("unable to get metric {}: unable to fetch metrics from custom metrics API: {why}", metric.name)
    })?;
    let mut measured = BTreeMap::new();
    for item in list["items"].as_array().into_iter().flatten() {
        let (at, window_seconds) = when(item);
        if let (Some(name), Some(nanos)) = (item["describedObject"]["name"].as_str(), quantity(&item["value"])) {
            measured.insert(name.to_owned(), Measured { nanos, at, window_seconds });
        }
    }
    if measured.is_empty() {
        return Err(format!("unable to get metric {}: no metrics returned from custom metrics API", metric.name));
    }
    Ok(measured)
}

/// A metric of one object: resource with group, and name.
pub(super) async fn of_object(
    client: &Client,
    namespace: &str,
    object: (&str, &str),
    metric: &MetricIdentifier,
) -> Result<i128, String> {
    let path = format!(
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/{}/{}/{}?metricLabelSelector={}",
        object.0,
        escape(object.1),
        escape(&metric.name),
        selector_query(metric)
    );
    let failed =
        |why: String| format!("unable to get metric {}: {} on {namespace} {}: {why}", metric.name, object.0, object.1);
    let list = get(client, &path)
        .await
        .map_err(|why| failed(format!("unable to fetch metrics from custom metrics API: {why}")))?;
    quantity(&list["items"][0]["value"]).ok_or_else(|| failed("no metrics returned from custom metrics API".to_owned()))
}

/// A metric of something outside: the sum of its values.
pub(super) async fn external(client: &Client, namespace: &str, metric: &MetricIdentifier) -> Result<i128, String> {
    let path = format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{}?labelSelector={}",
        escape(&metric.name),
        selector_query(metric)
    );
    let selector = json!(metric.selector);
    let failed = |why: String| format!("unable to get external metric {namespace}/{}/{selector}: {why}", metric.name);
    let list = get(client, &path)
        .await
        .map_err(|why| failed(format!("unable to fetch metrics from external metrics API: {why}")))?;
    let values: Vec<i128> =
        list["items"].as_array().into_iter().flatten().filter_map(|item| quantity(&item["value"])).collect();
    if values.is_empty() {
        return Err(failed("no metrics returned from external metrics API".to_owned()));
    }
    Ok(values.iter().sum())
}
