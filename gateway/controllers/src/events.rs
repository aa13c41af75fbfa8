//! Events that tell users what a controller did; published beside the work, never in its way.

use kube::runtime::events::{Event, EventType, Recorder as Publisher, Reporter};
use kube::{Client, Resource};

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
        let reporter = Reporter { controller: controller.to_owned(), instance: None };
        Voice { publisher: Publisher::new(self.client.clone(), reporter) }
    }
}

/// Publishes in the name of one controller; repeated events of an object are counted, not multiplied.
#[derive(Clone)]
pub(crate) struct Voice {
    publisher: Publisher,
}

impl Voice {
    /// Something went as it should.
    pub(crate) fn normal<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &str, note: String) {
        self.publish(about, EventType::Normal, reason, note);
    }

    /// Something did not.
    pub(crate) fn warning<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &str, note: String) {
        self.publish(about, EventType::Warning, reason, note);
    }

    fn publish<K: Resource<DynamicType = ()>>(&self, about: &K, type_: EventType, reason: &str, note: String) {
        let event =
            Event { type_, reason: reason.to_owned(), note: Some(note), action: reason.to_owned(), secondary: None };
        let reference = about.object_ref(&());
        let publisher = self.publisher.clone();
        tokio::spawn(async move {
            if let Err(error) = publisher.publish(&event, &reference).await {
                tracing::debug!(reason = event.reason, %error, "an event was not taken");
            }
        });
    }
}
