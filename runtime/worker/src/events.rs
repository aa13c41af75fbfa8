//! Events about pods and the node: queued without waiting, aggregated and limited as client-go does, written by one task.

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// `type` of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

/// The object that an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct About {
    kind: &'static str,
    namespace: String,
    name: String,
    uid: String,
    resource_version: Option<String>,
    field_path: Option<String>,
}

impl About {
    pub fn pod(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        Self {
            kind: "Pod",
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone(),
            field_path: None,
        }
    }

    pub fn container(pod: &Pod, container: &str) -> Self {
        let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        let ephemeral = pod.spec.iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
        let list = if init.into_iter().any(|init| init.name == container) {
            "initContainers"
        } else if ephemeral.into_iter().any(|ephemeral| ephemeral.name == container) {
            "ephemeralContainers"
        } else {
            "containers"
        };
        Self { field_path: Some(format!("spec.{list}{{{container}}}")), ..Self::pod(pod) }
    }

    pub fn service(service: &Service) -> Self {
        let meta = &service.metadata;
        Self {
            kind: "Service",
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone(),
            field_path: None,
        }
    }

    /// A node; as with the kubelet, its name stands for its uid.
    pub fn node(name: &str) -> Self {
        Self {
            kind: "Node",
            namespace: String::new(),
            name: name.to_owned(),
            uid: name.to_owned(),
            resource_version: None,
            field_path: None,
        }
    }

    /// Nodes' events live in the default namespace.
    fn namespace(&self) -> &str {
        if self.namespace.is_empty() { "default" } else { &self.namespace }
    }

    fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(self.kind.to_owned()),
            namespace: (!self.namespace.is_empty()).then(|| self.namespace.clone()),
            name: Some(self.name.clone()),
            uid: Some(self.uid.clone()),
            resource_version: self.resource_version.clone(),
            field_path: self.field_path.clone(),
        }
    }
}

struct Occurrence {
    about: About,
    severity: Severity,
    reason: &'static str,
    message: String,
    at: jiff::Timestamp,
}

/// Takes events from anywhere; [`Recorder::run`] writes them.
pub(crate) struct Recorder {
    node: String,
    sender: mpsc::Sender<Occurrence>,
    receiver: Mutex<Option<mpsc::Receiver<Occurrence>>>,
}

/// Events that wait to be written; beyond, new ones are dropped rather than slowing pods down.
const QUEUE: usize = 4096;

impl Recorder {
    pub fn new(node: String) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        Self { node, sender, receiver: Mutex::new(Some(receiver)) }
    }

    /// Queues an event; never waits.
    pub fn record(&self, about: About, severity: Severity, reason: &'static str, message: String) {
        let event = Occurrence { about, severity, reason, message, at: jiff::Timestamp::now() };
        if self.sender.try_send(event).is_err() {
            tracing::debug!(reason, "an event was dropped: too many wait");
        }
    }

    /// Writes events until `shutdown`.
    pub async fn run(self: Arc<Self>, client: Client, shutdown: CancellationToken) {
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut receiver) = receiver else { return };
        let mut known = Correlator::default();
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = receiver.recv() => event,
            };
            let Some(event) = event else { return };
            if let Some(action) = known.observe(&event, Instant::now()) {
                self.write(&client, &event, action, &mut known).await;
            }
        }
    }

    async fn write(&self, client: &Client, event: &Occurrence, action: Action, known: &mut Correlator) {
        let api: Api<Event> = Api::namespaced(client.clone(), event.about.namespace());
        let now = Time(event.at);
        if let Action::Again { name, count } = &action {
            let patch = json!({"count": count, "lastTimestamp": now, "message": event.message});
            match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => return,
                // It was removed (events live an hour): write it anew.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    tracing::debug!(%error, reason = event.reason, "an event could not be updated");
                    return;
                }
            }
        }
        let name = format!("{}.{:x}", event.about.name, event.at.as_nanosecond());
        let object = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(event.about.namespace().to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: event.about.reference(),
            reason: Some(event.reason.to_owned()),
            message: Some(event.message.clone()),
            type_: Some(format!("{:?}", event.severity)),
            source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(self.node.clone()) }),
            reporting_component: Some("kubelet".to_owned()),
            reporting_instance: Some(self.node.clone()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        };
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => known.written(event, name),
            Err(error) => tracing::debug!(%error, reason = event.reason, "an event could not be written"),
        }
    }
}

/// What is to be done with an occurrence.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Create,
    Again { name: String, count: i32 },
}

/// Remembers what was written: the same event again is counted, and an object that speaks too much is silenced.
#[derive(Default)]
struct Correlator {
    written: HashMap<u64, (String, i32)>,
    speakers: HashMap<String, Speaker>,
}

/// Tokens of one object: 25 events at once, then one in five minutes (client-go's EventSourceObjectSpamFilter).
struct Speaker {
    tokens: f64,
    at: Instant,
}

const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// Entries kept; beyond, memory is begun anew rather than grown.
const MEMORY: usize = 4096;

impl Correlator {
    fn observe(&mut self, event: &Occurrence, now: Instant) -> Option<Action> {
        if self.speakers.len() > MEMORY {
            self.speakers.clear();
        }
        let speaker = self.speakers.entry(event.about.uid.clone()).or_insert(Speaker { tokens: BURST, at: now });
        let earned = now.duration_since(speaker.at).as_secs_f64() / REFILL.as_secs_f64();
        speaker.tokens = (speaker.tokens + earned).min(BURST);
        speaker.at = now;
        if speaker.tokens < 1.0 {
            return None;
        }
        speaker.tokens -= 1.0;
        match self.written.get_mut(&key(event)) {
            Some((name, count)) => {
                *count += 1;
                Some(Action::Again { name: name.clone(), count: *count })
            }
            None => Some(Action::Create),
        }
    }

    fn written(&mut self, event: &Occurrence, name: String) {
        if self.written.len() > MEMORY {
            self.written.clear();
        }
        self.written.insert(key(event), (name, 1));
    }
}

fn key(event: &Occurrence) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    let about = &event.about;
    (about.kind, &about.namespace, &about.uid, &about.field_path).hash(&mut hasher);
    (event.severity, event.reason, &event.message).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(message: &str) -> Occurrence {
        Occurrence {
            about: About::node("n"),
            severity: Severity::Warning,
            reason: "BackOff",
            message: message.to_owned(),
            at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_same_event_again_is_counted() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        let event = occurrence("m");
        assert_eq!(correlator.observe(&event, now), Some(Action::Create));
        correlator.written(&event, "e1".into());
        assert_eq!(correlator.observe(&event, now), Some(Action::Again { name: "e1".into(), count: 2 }));
        assert_eq!(correlator.observe(&occurrence("other"), now), Some(Action::Create));
    }

    #[test]
    fn an_object_that_speaks_too_much_is_silenced_until_it_earned_a_token() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        let spoken = (0..40).filter(|n| correlator.observe(&occurrence(&n.to_string()), now).is_some()).count();
        assert_eq!(spoken, 25);
        assert!(correlator.observe(&occurrence("later"), now + REFILL).is_some());
        assert!(correlator.observe(&occurrence("again"), now + REFILL).is_none());
    }
}
