//! Priority and fairness: requests share a bounded number of seats by the FlowSchemas and PriorityLevelConfigurations of
//! the API, so that one noisy client cannot starve the others.

mod config;
mod queues;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::response::Response;
use carob_store::{Entry, Event, Store};
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::authn::Identity;
use crate::authz::Attributes;
use crate::authz::follow::{self, Mirror};
use crate::metrics::Metrics;
use crate::query::Query;
use crate::response;
use config::{Level, Schema};
use queues::{Seats, Ticket};

const SCHEMAS: &str = "/flowcontrol.apiserver.k8s.io/flowschemas/";
const LEVELS: &str = "/flowcontrol.apiserver.k8s.io/prioritylevelconfigurations/";
/// Seats unless the settings say otherwise: as many as Kubernetes gives to reads and writes together.
const SEATS: u32 = 600;
/// How long a request waits for a seat: a quarter of what an ordinary request may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// When a client may try again, in seconds.
const TRY_AGAIN: u32 = 1;
/// Upper bounds in seconds.
const BUCKETS: [f64; 10] = [0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 15.0];

/// The room for requests.
pub(crate) struct Flow {
    total: u64,
    schemas: RwLock<Arc<Vec<Schema>>>,
    levels: RwLock<Arc<HashMap<String, Level>>>,
    room: Mutex<Room>,
    measures: Measures,
}

#[derive(Default)]
struct Room {
    seats: Seats,
    waiting: HashMap<Ticket, oneshot::Sender<(String, usize)>>,
}

#[derive(Clone)]
struct Measures {
    executing: Family<LevelLabel, Gauge>,
    in_queue: Family<LevelLabel, Gauge>,
    dispatched: Family<FlowLabels, Counter>,
    rejected: Family<RejectLabels, Counter>,
    wait: Family<LevelLabel, Histogram, fn() -> Histogram>,
}

#[derive(Clone, Debug, Default, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LevelLabel {
    priority_level: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FlowLabels {
    flow_schema: String,
    priority_level: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RejectLabels {
    flow_schema: String,
    priority_level: String,
    reason: String,
}

/// A seat, free again when dropped.
pub(crate) struct Seat {
    held: Option<(Arc<Flow>, String, usize)>,
    /// Of the schema and the level.
    uids: Option<(String, String)>,
}

/// There is no room.
pub(crate) struct Full;

/// Whether the answer may take as long as the client likes. Such requests take no seat.
pub(crate) fn is_long_running(wanted: &Attributes, query: &Query) -> bool {
    match wanted.subresource.as_str() {
        "exec" | "attach" | "portforward" | "proxy" => true,
        "log" => query.is_set("follow"),
        _ => wanted.verb == "watch",
    }
}

impl Full {
    /// 429, in Kubernetes' words.
    pub fn answer() -> Response {
        let mut answer = response::text(StatusCode::TOO_MANY_REQUESTS, "Too many requests, please try again later.\n");
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(TRY_AGAIN));
        answer
    }
}

impl Seat {
    /// Says in an answer which schema and level the request belonged to.
    pub fn name_in(&self, headers: &mut HeaderMap) {
        let Some((schema, level)) = &self.uids else { return };
        for (name, uid) in [("x-kubernetes-pf-flowschema-uid", schema), ("x-kubernetes-pf-prioritylevel-uid", level)] {
            if let Ok(uid) = HeaderValue::from_str(uid) {
                headers.insert(name, uid);
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some((flow, level, queue)) = self.held.take() {
            flow.leave(&level, queue);
        }
    }
}

impl Flow {
    /// With what the store holds, kept current until told to stop.
    pub async fn open(
        store: &Arc<dyn Store>,
        seats: Option<u32>,
        metrics: &Metrics,
        stop: &CancellationToken,
    ) -> Result<Arc<Self>, carob_store::Error> {
        let measures = Measures {
            executing: Family::default(),
            in_queue: Family::default(),
            dispatched: Family::default(),
            rejected: Family::default(),
            wait: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
        };
        metrics.register(|registry| measures.register(registry));
        let flow = Arc::new(Self {
            total: u64::from(seats.unwrap_or(SEATS).max(1)),
            schemas: RwLock::default(),
            levels: RwLock::default(),
            room: Mutex::default(),
            measures,
        });
        for (prefix, take) in [(LEVELS, Self::take_levels as fn(&Self, &[Entry])), (SCHEMAS, Self::take_schemas)] {
            let copy = Copy { flow: Arc::downgrade(&flow), entries: Mutex::default(), take };
            follow::follow(store, prefix, Arc::new(copy), stop.clone()).await?;
        }
        Ok(flow)
    }

    fn take_schemas(&self, entries: &[Entry]) {
        *self.schemas.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Schema::read(entries));
    }

    fn take_levels(&self, entries: &[Entry]) {
        let levels = Level::read(entries);
        let mut room = self.room();
        for ticket in room.seats.share(&levels, self.total) {
            // Dropping the other end lets the request in: its level is no more.
            room.waiting.remove(&ticket);
        }
        let called = room.seats.call();
        self.wake(&mut room, None, called);
        drop(room);
        let by_name = levels.into_iter().map(|level| (level.name.clone(), level)).collect();
        *self.levels.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(by_name);
    }

    /// A seat for a request, perhaps after a while.
    pub async fn seat(self: &Arc<Self>, who: &Identity, what: &Attributes, query: &Query) -> Result<Seat, Full> {
        let schemas = Arc::clone(&self.schemas.read().unwrap_or_else(PoisonError::into_inner));
        let Some(schema) = schemas.iter().find(|schema| schema.matches(who, what)) else {
            return Ok(Seat { held: None, uids: None });
        };
        let levels = Arc::clone(&self.levels.read().unwrap_or_else(PoisonError::into_inner));
        let Some(level) = levels.get(&schema.level) else { return Ok(Seat { held: None, uids: None }) };
        let uids = Some((schema.uid.clone(), level.uid.clone()));
        let labels = FlowLabels { flow_schema: schema.name.clone(), priority_level: level.name.clone() };
        if is_long_running(what, query) {
            return Ok(Seat { held: None, uids });
        }
        let ticket = {
            let mut room = self.room();
            match room.seats.enter(&level.name, &schema.name, schema.flow(who, what)) {
                queues::Entry::Seated(queue) => {
                    self.measures.dispatched.get_or_create(&labels).inc();
                    return Ok(Seat { held: Some((Arc::clone(self), level.name.clone(), queue)), uids });
                }
                queues::Entry::Full(why) => {
                    self.measures.reject(labels, why);
                    return Err(Full);
                }
                queues::Entry::Waits(ticket) => {
                    let (sender, receiver) = oneshot::channel();
                    room.waiting.insert(ticket, sender);
                    Waiting { flow: Arc::clone(self), level: level.name.clone(), ticket, receiver: Some(receiver) }
                }
            }
        };
        let started = Instant::now();
        let seated = ticket.wait().await;
        let level_label = LevelLabel { priority_level: level.name.clone() };
        self.measures.wait.get_or_create(&level_label).observe(started.elapsed().as_secs_f64());
        match seated {
            Ok(held) => {
                self.measures.dispatched.get_or_create(&labels).inc();
                Ok(Seat { held, uids })
            }
            Err(full) => {
                self.measures.reject(labels, "time-out");
                Err(full)
            }
        }
    }

    fn leave(self: &Arc<Self>, level: &str, queue: usize) {
        let mut room = self.room();
        let called = room.seats.leave(level, queue);
        self.wake(&mut room, Some(level), called);
    }

    /// Tells those who got a seat after somebody `left` one. Whoever went away meanwhile leaves it to the next.
    fn wake(&self, room: &mut Room, left: Option<&str>, mut called: Vec<queues::Called>) {
        let mut levels: BTreeSet<String> = left.into_iter().map(str::to_owned).collect();
        levels.extend(called.iter().map(|(level, ..)| level.clone()));
        while let Some((level, queue, ticket)) = called.pop() {
            let sender = room.waiting.remove(&ticket);
            let told = sender.is_some_and(|sender| sender.send((level.clone(), queue)).is_ok());
            if !told {
                called.extend(room.seats.leave(&level, queue));
            }
        }
        for level in levels {
            let (executing, waiting) = room.seats.occupancy(&level);
            let label = LevelLabel { priority_level: level };
            self.measures.executing.get_or_create(&label).set(i64::try_from(executing).unwrap_or(i64::MAX));
            self.measures.in_queue.get_or_create(&label).set(i64::try_from(waiting).unwrap_or(i64::MAX));
        }
    }

    fn room(&self) -> std::sync::MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in a queue. When dropped, it no longer is.
struct Waiting {
    flow: Arc<Flow>,
    level: String,
    ticket: Ticket,
    receiver: Option<oneshot::Receiver<(String, usize)>>,
}

impl Waiting {
    /// The seat; none where the level is no more.
    async fn wait(mut self) -> Result<Option<(Arc<Flow>, String, usize)>, Full> {
        let Some(receiver) = self.receiver.as_mut() else { return Err(Full) };
        let called = tokio::time::timeout(PATIENCE, receiver).await;
        match called {
            Ok(told) => {
                self.receiver = None;
                Ok(told.ok().map(|(level, queue)| (Arc::clone(&self.flow), level, queue)))
            }
            Err(_) => Err(Full),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(mut receiver) = self.receiver.take() else { return };
        let mut room = self.flow.room();
        room.waiting.remove(&self.ticket);
        room.seats.give_up(&self.level, self.ticket);
        // It may have been called at this very moment.
        receiver.close();
        if let Ok((level, queue)) = receiver.try_recv() {
            let called = room.seats.leave(&level, queue);
            self.flow.wake(&mut room, Some(&level), called);
        }
    }
}

impl Measures {
    fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        let name = |rest: &str| format!("apiserver_flowcontrol_{rest}");
        registry.register(
            name("current_executing_requests"),
            "Requests that have a seat, as of the last that left one",
            self.executing.clone(),
        );
        registry.register(
            name("current_inqueue_requests"),
            "Requests that wait for a seat, as of the last that left one",
            self.in_queue.clone(),
        );
        registry.register(name("dispatched_requests"), "Requests that got a seat", self.dispatched.clone());
        registry.register(name("rejected_requests"), "Requests for which there was no room", self.rejected.clone());
        registry.register(
            name("request_wait_duration_seconds"),
            "Time that requests waited for a seat",
            self.wait.clone(),
        );
    }

    fn reject(&self, labels: FlowLabels, reason: &str) {
        let FlowLabels { flow_schema, priority_level } = labels;
        let labels = RejectLabels { flow_schema, priority_level, reason: reason.to_owned() };
        self.rejected.get_or_create(&labels).inc();
    }
}

/// The objects of one kind, of which there are few: read anew at each change.
struct Copy {
    flow: std::sync::Weak<Flow>,
    entries: Mutex<Vec<Entry>>,
    take: fn(&Flow, &[Entry]),
}

impl Mirror for Copy {
    fn reset(&self, entries: &[Entry]) {
        let mut known = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        *known = entries.to_vec();
        if let Some(flow) = self.flow.upgrade() {
            (self.take)(&flow, &known);
        }
    }

    fn apply(&self, events: &[Event]) {
        let mut known = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            let (Event::Put { entry, .. } | Event::Delete { entry, .. }) = event;
            known.retain(|old| old.key != entry.key);
            if matches!(event, Event::Put { .. }) {
                known.push(entry.clone());
            }
        }
        if let Some(flow) = self.flow.upgrade() {
            (self.take)(&flow, &known);
        }
    }
}
