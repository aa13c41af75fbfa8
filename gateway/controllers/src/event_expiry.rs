//! Events are news: an hour after the last word of one, it is removed.
//!
//! When an object was last written, its metadata say: each writer's entry in `managedFields` has the time. So nothing else
//! of the events is asked for, and they are listed only when the oldest of them may be due.

use std::time::Duration;

use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Preconditions};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Options;

/// Events listed at once.
const PAGE: u32 = 500;
/// Between two lists passes at least this part of an event's life, so that they don't follow each event's end one by one.
const LISTS_PER_LIFE: u32 = 12;

pub(crate) fn start(client: Client, options: &Options, stop: &CancellationToken, tasks: &mut JoinSet<()>) {
    let sweeper = Sweeper { client, ttl: options.event_ttl, workers: options.workers };
    let stop = stop.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = sweeper.run() => {}
        }
    });
}

struct Sweeper {
    client: Client,
    ttl: Duration,
    workers: usize,
}

impl Sweeper {
    async fn run(&self) {
        let shortest = self.ttl / LISTS_PER_LIFE;
        loop {
            let wait = match self.sweep().await {
                Ok(next) => next.clamp(shortest, self.ttl.max(shortest)),
                Err(error) => {
                    tracing::debug!(%error, "old events stay a little longer");
                    shortest
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Removes what is over; how long until the next event is. What can't be removed is tried again with the next list.
    async fn sweep(&self) -> Result<Duration, kube::Error> {
        let events: Api<Event> = Api::all(self.client.clone());
        let mut soonest = self.ttl;
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = events.list_metadata(&page).await?;
            let now = Timestamp::now();
            let mut over = Vec::new();
            for event in list.items {
                match left(&event.metadata, self.ttl, now) {
                    Some(left) => soonest = soonest.min(left),
                    None => over.push(event.metadata),
                }
            }
            stream::iter(over).for_each_concurrent(self.workers, |event| self.remove(event)).await;
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page.continue_token = Some(token),
                None => return Ok(soonest),
            }
        }
    }

    /// Removes the very event that was listed: one that was counted on meanwhile stays.
    async fn remove(&self, event: ObjectMeta) {
        let events: Api<Event> = Api::namespaced(self.client.clone(), event.namespace.as_deref().unwrap_or_default());
        let preconditions = Preconditions { uid: event.uid, resource_version: event.resource_version };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        let name = event.name.unwrap_or_default();
        match events.delete(&name, &params).await {
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
            Err(error) => tracing::debug!(name, %error, "an old event stays a little longer"),
            Ok(_) => {}
        }
    }
}

/// How much of its time an event has left; `None` if it is over.
fn left(event: &ObjectMeta, ttl: Duration, now: Timestamp) -> Option<Duration> {
    let writes = event.managed_fields.iter().flatten().filter_map(|entry| entry.time.as_ref());
    // A time to come is none at which it was written.
    let last = writes.chain(&event.creation_timestamp).map(|time| time.0).filter(|time| *time <= now).max();
    let passed = last.map_or(Duration::ZERO, |last| Duration::try_from(now.duration_since(last)).unwrap_or_default());
    ttl.checked_sub(passed).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn seconds_left(writes: &[&str]) -> Option<u64> {
        let writes: Vec<Value> = writes.iter().map(|time| json!({"time": time})).collect();
        let event = json!({"creationTimestamp": "2026-01-01T10:00:00Z", "managedFields": writes});
        let now = "2026-01-01T11:00:00Z".parse().unwrap();
        left(&serde_json::from_value(event).unwrap(), Duration::from_secs(3600), now).map(|left| left.as_secs())
    }

    #[test]
    fn an_event_lives_from_its_last_write_on() {
        assert_eq!(seconds_left(&[]), None);
        assert_eq!(seconds_left(&["2026-01-01T10:00:00Z", "2026-01-01T10:20:00Z"]), Some(1200));
        assert_eq!(seconds_left(&["2026-01-01T11:00:00Z"]), Some(3600));
    }

    #[test]
    fn a_time_to_come_prolongs_nothing() {
        assert_eq!(seconds_left(&["2099-01-01T00:00:00Z"]), None);
    }
}
