//! Events that tell users what a controller did; published beside the work, never in its way.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde_json::json;

/// Events that are remembered for counting what is said again, for each controller: as many as Kubernetes does.
const REMEMBERED: usize = 4096;

/// What was being done, for the reasons with which Kubernetes says so: the scheduler's.
const ACTIONS: [(&str, &str); 2] = [("FailedScheduling", "Scheduling"), ("Scheduled", "Binding")];

/// Publishes events. Clones share it.
#[derive(Clone)]
pub(crate) struct Recorder {
    client: Client,
}

impl Recorder {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// The voice of one controller.
    pub(crate) fn of(&self, controller: &'static str) -> Voice {
        Voice { client: self.client.clone(), controller, told: Arc::default() }
    }
}

/// Publishes in the name of one controller; what is said again is counted, not multiplied.
#[derive(Clone)]
pub(crate) struct Voice {
    client: Client,
    controller: &'static str,
    told: Arc<Mutex<Told>>,
}

/// What was said lately.
#[derive(Default)]
struct Told {
    /// By a hash of object, reason and text.
    said: HashMap<u64, Said>,
}

struct Said {
    name: String,
    count: i32,
    last: Instant,
}

impl Told {
    /// The name of the event that says this, and how often it was said by now.
    fn count(&mut self, about: &ObjectReference, reason: &str, note: &str) -> (String, i32) {
        let mut hasher = DefaultHasher::new();
        (&about.uid, &about.namespace, &about.name, reason, note).hash(&mut hasher);
        let hash = hasher.finish();
        if self.said.len() >= REMEMBERED && !self.said.contains_key(&hash) {
            let oldest = self.said.iter().min_by_key(|(_, said)| said.last).map(|(hash, _)| *hash);
            oldest.and_then(|oldest| self.said.remove(&oldest));
        }
        let now = Instant::now();
        let said = self.said.entry(hash).or_insert_with(|| Said {
            name: format!("{}.{:x}", about.name.as_deref().unwrap_or_default(), Timestamp::now().as_nanosecond()),
            count: 0,
            last: now,
        });
        said.count += 1;
        said.last = now;
        (said.name.clone(), said.count)
    }
}

impl Voice {
    /// Something went as it should.
    pub(crate) fn normal<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &str, note: String) {
        self.publish(about.object_ref(&()), "Normal", reason, note);
    }

    /// Something did not.
    pub(crate) fn warning<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &str, note: String) {
        self.publish(about.object_ref(&()), "Warning", reason, note);
    }

    /// Says something about an object of any kind.
    pub(crate) fn publish(&self, about: ObjectReference, type_: &'static str, reason: &str, note: String) {
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let (name, count) = self.told().count(&about, reason, &note);
        let now = Timestamp::now();
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: about,
            type_: Some(type_.to_owned()),
            action: ACTIONS.iter().find(|(of, _)| *of == reason).map(|(_, action)| (*action).to_owned()),
            reason: Some(reason.to_owned()),
            message: Some(note),
            count: Some(count),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource { component: Some(self.controller.to_owned()), host: None }),
            reporting_component: Some(self.controller.to_owned()),
            reporting_instance: Some(String::new()),
            ..Event::default()
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        tokio::spawn(async move {
            if count > 1 {
                let patch = Patch::Merge(json!({"count": count, "lastTimestamp": event.last_timestamp}));
                match api.patch(&name, &PatchParams::default(), &patch).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(error) => return tracing::debug!(name, %error, "an event was not counted"),
                    Ok(_) => return,
                }
            }
            if let Err(error) = api.create(&PostParams::default(), &event).await {
                tracing::debug!(reason = event.reason, %error, "an event was not taken");
            }
        });
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_what_is_remembered_only_the_oldest_is_forgotten() {
        let mut told = Told::default();
        let mut say =
            |name: &str| told.count(&ObjectReference { name: Some(name.to_owned()), ..Default::default() }, "r", "n").1;
        assert_eq!(say("kept"), 1);
        for number in 1..REMEMBERED {
            say(&number.to_string());
        }
        assert_eq!(say("kept"), 2);
        say("one more");
        assert_eq!((say("kept"), say("2")), (3, 2));
        assert_eq!(say("1"), 1);
    }
}
