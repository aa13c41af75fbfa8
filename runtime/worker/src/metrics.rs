//! Where the time of a pod's start goes: a histogram per stage, and the breakdown of each pod.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: String,
}

/// The worker's metrics.
#[derive(Clone)]
pub(crate) struct Metrics {
    stages: Family<StageLabel, Histogram>,
    panics: Counter,
    usage_aside: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let stages = Family::<StageLabel, Histogram>::new_with_constructor(|| {
            // 50 µs to 13 s, doubling.
            Histogram::new(exponential_buckets(0.000_05, 2.0, 19))
        });
        Self { stages, panics: Counter::default(), usage_aside: Gauge::default() }
    }
}

impl Metrics {
    fn observe(&self, stage: &str, took: Duration) {
        self.stages.get_or_create(&StageLabel { stage: stage.to_owned() }).observe(took.as_secs_f64());
    }

    /// The care of a pod panicked.
    pub fn panicked(&self) {
        self.panics.inc();
    }

    /// So many readings are on no bill, for the gateway never takes them.
    pub fn usage_set_aside(&self, readings: u64) {
        self.usage_aside.set(i64::try_from(readings).unwrap_or(i64::MAX));
    }

    /// Adds them to a registry that somebody shows.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Time that a stage of a pod's start took";
        registry.register_with_unit("carob_worker_pod_start_stage", help, Unit::Seconds, self.stages.clone());
        let help = "How often the care of a pod panicked and began anew";
        registry.register("carob_worker_pod_panics", help, self.panics.clone());
        let help = "Readings that the gateway never takes, kept in this worker's ledger";
        registry.register("carob_worker_usage_set_aside", help, self.usage_aside.clone());
    }

    /// All metrics in the `OpenMetrics` text format.
    pub fn text(&self) -> String {
        let mut registry = Registry::default();
        self.register(&mut registry);
        let mut text = String::new();
        match encode(&mut text, &registry) {
            Ok(()) => text,
            Err(std::fmt::Error) => String::new(),
        }
    }
}

/// One pod's start, from the moment the worker saw the pod.
#[derive(Debug, Clone)]
pub(crate) struct StartLatency {
    inner: Arc<Mutex<Stages>>,
}

#[derive(Debug)]
struct Stages {
    seen: Instant,
    seen_at: jiff::Timestamp,
    /// Name, beginning after `seen`, length.
    list: Vec<(String, Duration, Duration)>,
    running: Option<Duration>,
}

impl StartLatency {
    /// Begins now.
    pub fn begin() -> Self {
        let stages = Stages { seen: Instant::now(), seen_at: jiff::Timestamp::now(), list: Vec::new(), running: None };
        Self { inner: Arc::new(Mutex::new(stages)) }
    }

    /// Notes a stage that began at `begin` and ends now. After the pod ran once, nothing is noted any more.
    pub fn stage(&self, metrics: &Metrics, name: &str, begin: Instant) {
        self.took(metrics, name, begin, begin.elapsed());
    }

    /// Notes a stage of known length.
    pub fn took(&self, metrics: &Metrics, name: &str, begin: Instant, took: Duration) {
        let mut stages = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if stages.running.is_some() {
            return;
        }
        metrics.observe(name, took);
        let offset = begin.saturating_duration_since(stages.seen);
        stages.list.push((name.to_owned(), offset, took));
    }

    /// The status that says Running has been accepted.
    pub fn running(&self, metrics: &Metrics, pod: &str) {
        {
            let mut stages = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            if stages.running.is_some() {
                return;
            }
            let total = stages.seen.elapsed();
            stages.running = Some(total);
            metrics.observe("total", total);
        }
        tracing::debug!(pod, breakdown = %self.to_json(), "the pod runs");
    }

    /// The breakdown, in milliseconds.
    pub fn to_json(&self) -> serde_json::Value {
        let stages = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let list: Vec<_> = stages
            .list
            .iter()
            .map(|(name, offset, took)| {
                serde_json::json!({"stage": name, "atMillis": millis(*offset), "millis": millis(*took)})
            })
            .collect();
        serde_json::json!({
            "seenAt": stages.seen_at.to_string(),
            "runningAfterMillis": stages.running.map(millis),
            "stages": list,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_noted_until_the_pod_runs() {
        let (metrics, latency) = (Metrics::default(), StartLatency::begin());
        latency.took(&metrics, "network", Instant::now(), Duration::from_millis(2));
        latency.running(&metrics, "p");
        latency.took(&metrics, "network", Instant::now(), Duration::from_millis(2));
        assert_eq!(latency.to_json()["stages"].as_array().unwrap().len(), 1);
        assert!(metrics.text().contains("carob_worker_pod_start_stage_seconds_count{stage=\"network\"} 1"));
    }
}
