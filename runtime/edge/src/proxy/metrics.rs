//! What the proxy counts.

use http::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters of all threads; clones share them.
#[derive(Clone)]
pub struct Metrics {
    answers: Family<[(&'static str, &'static str); 1], Counter>,
    /// Those of `answers`, by the first digit of the status: a request looks nothing up.
    classes: [Counter; 5],
    pub connections: Gauge,
    /// Connections and requests for which there was no place.
    pub refused: Counter,
    /// Endpoints that could not be connected to.
    pub unreachable: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let answers = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let classes = ["1xx", "2xx", "3xx", "4xx", "5xx"];
        let classes = classes.map(|class| answers.get_or_create(&[("class", class)]).clone());
        Self {
            answers,
            classes,
            connections: Gauge::default(),
            refused: Counter::default(),
            unreachable: Counter::default(),
        }
    }
}

impl Metrics {
    /// Counts an answer.
    pub fn answered(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.classes[class].inc();
    }

    pub fn register(&self, registry: &mut Registry) {
        registry.register("carob_edge_answers", "Answers of the proxy by class of their status", self.answers.clone());
        registry.register("carob_edge_connections", "Clients' open connections to the proxy", self.connections.clone());
        let help = "Clients' connections and requests that were too many";
        registry.register("carob_edge_refused", help, self.refused.clone());
        let help = "Attempts to connect to an endpoint that failed";
        registry.register("carob_edge_unreachable_endpoints", help, self.unreachable.clone());
    }
}
