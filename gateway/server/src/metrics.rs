//! What the server counts and measures, for Prometheus, under the names and with the labels of kube-apiserver.

mod labels;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use carob_api::kind::KindRef;
use carob_store::{KeyRange, Store};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub(crate) use labels::{Answered, RequestLabels};

/// Upper bounds of durations in seconds: Kubernetes', and finer ones below, for most answers here take a millisecond.
const SECONDS: [f64; 26] = [
    0.0005, 0.001, 0.0025, 0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
];
/// Upper bounds of sizes in bytes.
const BYTES: [f64; 7] = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// What OpenMetrics appends to the names of counters.
const COUNTER_SUFFIX: &str = "_total";

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// All metrics of the process.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<Answered, Counter>,
    durations: Histograms<RequestLabels>,
    sizes: Histograms<RequestLabels>,
    in_flight: Family<RequestKind, Gauge>,
    long_running: Family<RequestLabels, Gauge>,
    objects: Family<Resource, Gauge>,
    deprecated: Family<Deprecated, Gauge>,
    pub connections: Gauge,
}

/// Whether a request changes something.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestKind {
    request_kind: &'static str,
}

/// What is stored.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Resource {
    group: &'static str,
    resource: &'static str,
}

/// A version that clients should leave.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Deprecated {
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    removed_release: &'static str,
}

/// Counted as long as it is held.
pub(crate) struct Counted(Gauge);

impl Counted {
    fn by(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub fn new() -> Self {
        let histogram = |bounds: fn() -> Histogram| Family::new_with_constructor(bounds);
        let metrics = Self {
            registry: Mutex::default(),
            requests: Family::default(),
            durations: histogram(|| Histogram::new(SECONDS)),
            sizes: histogram(|| Histogram::new(BYTES)),
            in_flight: Family::default(),
            long_running: Family::default(),
            objects: Family::default(),
            deprecated: Family::default(),
            connections: Gauge::default(),
        };
        metrics.register(|registry| {
            let name = |rest: &str| format!("apiserver_{rest}");
            registry.register(name("request"), "Requests that were answered", metrics.requests.clone());
            let help = "Time from a request's head to its answer's head";
            registry.register(name("request_duration_seconds"), help, metrics.durations.clone());
            registry.register(name("response_sizes"), "Sizes of what was read, in bytes", metrics.sizes.clone());
            let help = "Requests that are worked on, long ones excepted";
            registry.register(name("current_inflight_requests"), help, metrics.in_flight.clone());
            let help = "Watches and other requests without an end of their own";
            registry.register(name("longrunning_requests"), help, metrics.long_running.clone());
            registry.register(name("resource_objects"), "Objects that are stored", metrics.objects.clone());
            let help = "Deprecated versions that were asked for";
            registry.register(name("requested_deprecated_apis"), help, metrics.deprecated.clone());
            registry.register(name("connections"), "Open network connections", metrics.connections.clone());
        });
        metrics
    }

    /// Lets somebody add metrics.
    pub fn register(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Counts a request that is being worked on.
    pub fn begins(&self, labels: &RequestLabels) -> Counted {
        if labels.is_long_running() {
            return Counted::by(&self.long_running.get_or_create(labels));
        }
        let request_kind = if matches!(labels.verb, "GET" | "LIST") { "readOnly" } else { "mutating" };
        Counted::by(&self.in_flight.get_or_create(&RequestKind { request_kind }))
    }

    /// Notes that a request was answered; `size` of what was read, if it is known already.
    pub fn observe(&self, labels: &RequestLabels, code: u16, took: Duration, size: Option<u64>) {
        self.requests.get_or_create(&Answered { request: labels.clone(), code }).inc();
        self.durations.get_or_create(labels).observe(took.as_secs_f64());
        if let Some(size) = size.filter(|_| matches!(labels.verb, "GET" | "LIST")) {
            #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
            self.sizes.get_or_create(labels).observe(size as f64);
        }
    }

    /// Notes that a deprecated version was asked for.
    pub fn deprecated(&self, labels: &RequestLabels, removed_release: &'static str) {
        let &RequestLabels { group, version, resource, subresource, .. } = labels;
        self.deprecated.get_or_create(&Deprecated { group, version, resource, subresource, removed_release }).set(1);
    }

    /// Counts what is stored.
    pub async fn count_objects(&self, store: &dyn Store, kinds: impl Iterator<Item = &KindRef>) {
        for kind in kinds.filter(|kind| kind.stored_as.is_none() && kind.verbs.contains(&"list")) {
            let group = if kind.group.is_empty() { "core" } else { kind.group };
            let range = KeyRange::prefix(format!("/{group}/{}/", kind.plural));
            let count = match store.range(&range, Some(1), None).await {
                Ok(page) => i64::try_from(page.remaining).unwrap_or(i64::MAX) + i64::from(!page.entries.is_empty()),
                Err(_) => -1,
            };
            self.objects.get_or_create(&Resource { group: kind.group, resource: kind.plural }).set(count);
        }
    }

    /// All of it, as OpenMetrics writes it or as Prometheus did before.
    pub fn text(&self, open_metrics: bool) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &registry) {
            tracing::warn!(%error, "cannot write metrics");
        }
        if open_metrics { text } else { classic(&text) }
    }
}

/// OpenMetrics as Prometheus' text format 0.0.4: a counter's type is told of its full name, and no end is marked.
fn classic(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // Its name depends on the type, which comes next.
            help = rest.split_once(' ');
            continue;
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { COUNTER_SUFFIX } else { "" };
            let kind = if kind == "unknown" { "untyped" } else { kind };
            if let Some((_, help)) = help.take() {
                written.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            written.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
            continue;
        }
        written.extend([line, "\n"]);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_shown_under_kubernetes_names() {
        let metrics = Metrics::new();
        let labels =
            RequestLabels { verb: "LIST", version: "v1", resource: "pods", scope: "cluster", ..Default::default() };
        let running = metrics.begins(&labels);
        metrics.observe(&labels, 200, Duration::from_millis(3), Some(2000));
        let text = metrics.text(false);
        for line in [
            "# TYPE apiserver_request_total counter",
            "apiserver_request_total{verb=\"LIST\",dry_run=\"\",group=\"\",version=\"v1\",resource=\"pods\",\
             subresource=\"\",scope=\"cluster\",component=\"apiserver\",code=\"200\"} 1",
            "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("# EOF"));
        assert!(metrics.text(true).ends_with("# EOF\n"));
        drop(running);
        assert!(metrics.text(false).contains("apiserver_current_inflight_requests{request_kind=\"readOnly\"} 0"));
    }
}
