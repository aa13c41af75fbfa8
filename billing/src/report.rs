//! Reports: readings summed by group and step, and priced.
//!
//! Sums are exact: a container's usage is split over steps so that the parts add up to the whole, and the cost of a part is
//! the difference of the container's rounded running totals. So rows add up to the total to the nano-unit, however they are
//! grouped, and what a container cost that has ended never changes because of others.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::ledger::{Error, Ledger};
use crate::price::{Cost, PriceBook, decimal};
use crate::reading::{Reading, nanoseconds};
use crate::{Meterable, Requests, Traffic};

/// At most this many rows: a report is read by people and programs, and held in memory.
const MOST_ROWS: usize = 1_000_000;

/// What a row stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupBy {
    /// A namespace.
    Namespace,
    /// A pod.
    Pod,
    /// All pods that share a value of this label.
    Label(String),
}

/// What a report is about.
#[derive(Clone, Debug)]
pub struct Query {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only pods of this name.
    pub pod: Option<String>,
    /// From here on; from the beginning if not given.
    pub from: Option<Timestamp>,
    /// Up to here, not included; up to now if not given.
    pub to: Option<Timestamp>,
    /// One row per group and step; one row per group if not given.
    pub step: Option<SignedDuration>,
    /// What a row stands for.
    pub group_by: GroupBy,
}

/// A priced sum of usage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Begin of the step, or of the usage.
    pub start: Timestamp,
    /// End of the step, or of the usage.
    pub end: Timestamp,
    /// Of the group.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub namespace: Option<String>,
    /// Of the group.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pod: Option<String>,
    /// Value of the label, for a group by label; empty for pods without it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub label: Option<String>,
    /// Containers that had a part in it.
    pub containers: u64,
    /// CPU time used.
    pub cpu_nanoseconds: u64,
    /// Memory times time.
    pub memory_byte_seconds: u128,
    /// How far that may be off, either way.
    pub memory_byte_seconds_error: u128,
    /// CPU time that is billed: what was requested where that is more, if the price book says so.
    pub billed_cpu_nanoseconds: u64,
    /// Memory times time that is billed.
    pub billed_memory_byte_seconds: u128,
    /// What pods received and sent; none where no pod has a network of its own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub traffic: Option<Traffic>,
    /// In the currency's units, with nine decimals.
    pub cost: String,
}

/// A report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// ISO 4217.
    pub currency: String,
    /// In order of step, then group.
    pub rows: Vec<Row>,
    /// Sum of the rows.
    pub total: Row,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The question makes no sense; the text says what would.
    #[error("{0}")]
    BadQuery(String),
    /// The ledger failed.
    #[error("cannot read the ledger")]
    Ledger(#[from] Error),
}

#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    cpu_ns: u128,
    memory_byte_seconds: u128,
    memory_error_byte_ns: u128,
    billed_cpu_ns: u128,
    billed_memory_byte_seconds: u128,
    traffic: Option<Traffic>,
    cost_nano: u128,
    containers: u64,
    first_ns: Option<i64>,
    last_ns: i64,
}

impl Usage {
    fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.cpu_ns, other.cpu_ns),
            (&mut self.memory_byte_seconds, other.memory_byte_seconds),
            (&mut self.memory_error_byte_ns, other.memory_error_byte_ns),
            (&mut self.billed_cpu_ns, other.billed_cpu_ns),
            (&mut self.billed_memory_byte_seconds, other.billed_memory_byte_seconds),
            (&mut self.cost_nano, other.cost_nano),
        ] {
            *sum = sum.saturating_add(more);
        }
        if let Some(more) = other.traffic {
            self.traffic = Some(self.traffic.unwrap_or_default().with(more, u64::saturating_add));
        }
        self.containers += other.containers;
        self.first_ns = [self.first_ns, other.first_ns].into_iter().flatten().min();
        self.last_ns = self.last_ns.max(other.last_ns);
    }
}

/// Group of a row: namespace, pod, label value.
type Group = (Option<String>, Option<String>, Option<String>);

impl Query {
    /// Reads the ledger and sums.
    pub fn run(&self, ledger: &Ledger, prices: &PriceBook) -> Result<Report, ReportError> {
        let now = Timestamp::now();
        let from_ns = self.from.map_or(i64::MIN, nanoseconds);
        let to_ns =
            nanoseconds(self.to.unwrap_or(now).max(Timestamp::UNIX_EPOCH)).saturating_add(i64::from(self.to.is_none()));
        if from_ns >= to_ns {
            return Err(ReportError::BadQuery("from: must be before to".to_owned()));
        }
        let step_ns = self.step_ns()?;
        let wanted = |container: &Meterable| {
            self.namespace.as_ref().is_none_or(|namespace| *namespace == container.namespace)
                && self.pod.as_ref().is_none_or(|pod| *pod == container.pod)
        };
        let mut sums = Sums::default();
        let mut current: Option<Meterable> = None;
        let mut seen: BTreeSet<i64> = BTreeSet::new();
        let mut running = Running::default();
        let mut containers = 0;
        ledger.visit(from_ns, to_ns, wanted, |container, reading| {
            if current.as_ref().is_none_or(|current| !current.is(container)) {
                current = Some(container.clone());
                seen.clear();
                running = Running::default();
                containers += u64::from(!container.is_network());
            }
            let group = self.group_of(container);
            let requests = reading.requests.unwrap_or(container.requests);
            for (step, part) in parts(&reading, (from_ns, to_ns), step_ns, requests, prices) {
                let mut usage = running.add(&part);
                if container.is_network() {
                    usage.traffic = Some(part.traffic);
                } else {
                    // A container counts once in each step, however many readings it has there.
                    usage.containers = u64::from(seen.insert(step));
                }
                sums.add((step, group.clone()), &usage)?;
            }
            ControlFlow::Continue(())
        })?;
        if sums.is_full() {
            let text = format!("step: more than {MOST_ROWS} rows; a larger step or a shorter span is needed");
            return Err(ReportError::BadQuery(text));
        }
        Ok(report(sums.rows(), containers, step_ns, prices))
    }

    fn step_ns(&self) -> Result<Option<i64>, ReportError> {
        let Some(step) = self.step else { return Ok(None) };
        match i64::try_from(step.as_nanos()) {
            Ok(step) if step >= 1_000_000_000 => Ok(Some(step)),
            _ => Err(ReportError::BadQuery("step: must be at least 1s".to_owned())),
        }
    }

    fn group_of(&self, container: &Meterable) -> Group {
        let namespace = Some(container.namespace.clone());
        match &self.group_by {
            GroupBy::Namespace => (namespace, None, None),
            GroupBy::Pod => (namespace, Some(container.pod.clone()), None),
            GroupBy::Label(key) => (None, None, Some(container.labels.get(key).cloned().unwrap_or_default())),
        }
    }
}

/// The rows to be.
#[derive(Default)]
struct Sums {
    used: BTreeMap<(i64, Group), Usage>,
    /// Networks that were there, and nothing came or went: they make no row.
    silent: BTreeMap<(i64, Group), Usage>,
}

impl Sums {
    /// Breaks when there are more rows than a report may have.
    fn add(&mut self, key: (i64, Group), usage: &Usage) -> ControlFlow<()> {
        let silent = usage.traffic == Some(Traffic::default());
        let rows = if silent { &mut self.silent } else { &mut self.used };
        rows.entry(key).or_default().add(usage);
        if self.is_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn is_full(&self) -> bool {
        self.used.len().max(self.silent.len()) > MOST_ROWS
    }

    fn rows(mut self) -> BTreeMap<(i64, Group), Usage> {
        for (key, usage) in self.silent {
            if let Some(row) = self.used.get_mut(&key) {
                row.add(&Usage { traffic: usage.traffic, ..Usage::default() });
            }
        }
        self.used
    }
}

/// What a reading says of a part of its time, not rounded yet.
struct Part {
    begin: i64,
    end: i64,
    cpu_ns: u128,
    memory_byte_ns: u128,
    memory_error_byte_ns: u128,
    billed_cpu_ns: u128,
    billed_memory_byte_ns: u128,
    traffic: Traffic,
    cost: Cost,
}

/// One container's totals so far. What is rounded is rounded here, and a part gets the difference.
#[derive(Default)]
struct Running {
    memory_byte_ns: u128,
    billed_memory_byte_ns: u128,
    cost: Cost,
}

impl Running {
    fn add(&mut self, part: &Part) -> Usage {
        let seconds = |total: &mut u128, more: u128| {
            let before = *total / BYTE_SECOND;
            *total = total.saturating_add(more);
            *total / BYTE_SECOND - before
        };
        let cost_before = self.cost.nano_units();
        self.cost = Cost(self.cost.0.saturating_add(part.cost.0));
        Usage {
            cpu_ns: part.cpu_ns,
            memory_byte_seconds: seconds(&mut self.memory_byte_ns, part.memory_byte_ns),
            memory_error_byte_ns: part.memory_error_byte_ns,
            billed_cpu_ns: part.billed_cpu_ns,
            billed_memory_byte_seconds: seconds(&mut self.billed_memory_byte_ns, part.billed_memory_byte_ns),
            traffic: None,
            cost_nano: self.cost.nano_units() - cost_before,
            containers: 0,
            first_ns: Some(part.begin),
            last_ns: part.end,
        }
    }
}

/// What a reading says of the span, by begin of the step: made one by one, as a long reading has very many.
fn parts(
    reading: &Reading,
    (from_ns, to_ns): (i64, i64),
    step_ns: Option<i64>,
    requests: Requests,
    prices: &PriceBook,
) -> impl Iterator<Item = (i64, Part)> {
    let mut next = Some(reading.start_ns.max(from_ns));
    let last = reading.end_ns.min(to_ns);
    std::iter::from_fn(move || {
        let begin = next?;
        let step = step_ns.map_or(0, |step| begin.div_euclid(step) * step);
        let step_end = step_ns.map_or(i64::MAX, |length| step.saturating_add(length));
        let end = last.min(step_end);
        next = (end < last).then_some(end);
        Some((step, part(reading, begin, end, requests, prices)))
    })
}

/// What a reading says of the time from `begin` to `end`.
fn part(reading: &Reading, begin: i64, end: i64, requests: Requests, prices: &PriceBook) -> Part {
    // The last part of a reading takes what rounding left over.
    let until = if end >= reading.end_ns { i64::MAX } else { end };
    let share = |quantity: u128| {
        let before = if begin <= reading.start_ns { 0 } else { reading.share_before(quantity, begin) };
        if until == i64::MAX { quantity - before } else { reading.share_before(quantity, until) - before }
    };
    let (mut billed_cpu, mut billed_memory) = (u128::from(reading.cpu_ns), reading.memory_byte_ns);
    if prices.request_floor {
        let duration = u128::from(reading.duration_ns());
        billed_cpu = billed_cpu.max(u128::from(requests.cpu_millis) * duration / 1_000);
        billed_memory = billed_memory.max(u128::from(requests.memory_bytes) * duration);
    }
    let whole = prices.cost(billed_cpu, billed_memory).0.saturating_add(prices.traffic_cost(reading.traffic).0);
    Part {
        begin,
        end,
        cpu_ns: share(reading.cpu_ns.into()),
        memory_byte_ns: share(reading.memory_byte_ns),
        memory_error_byte_ns: share(reading.memory_error_byte_ns),
        billed_cpu_ns: share(billed_cpu),
        billed_memory_byte_ns: share(billed_memory),
        traffic: reading
            .traffic
            .with(Traffic::default(), |bytes, _| u64::try_from(share(bytes.into())).unwrap_or(bytes)),
        cost: Cost(share(whole)),
    }
}

fn report(sums: BTreeMap<(i64, Group), Usage>, containers: u64, step_ns: Option<i64>, prices: &PriceBook) -> Report {
    let mut total = Usage::default();
    let mut rows = Vec::with_capacity(sums.len());
    for ((step, group), usage) in sums {
        total.add(&usage);
        let span = step_ns.map(|length| (step, step.saturating_add(length)));
        rows.push(row(&usage, span, group));
    }
    // A container that was there in several steps is one container all the same.
    total.containers = containers;
    let total = row(&total, None, (None, None, None));
    Report { currency: prices.currency.clone(), rows, total }
}

/// Byte-nanoseconds of a byte-second.
const BYTE_SECOND: u128 = 1_000_000_000;

fn row(usage: &Usage, span: Option<(i64, i64)>, group: Group) -> Row {
    let (start, end) = span.unwrap_or((usage.first_ns.unwrap_or(0), usage.last_ns));
    let nanoseconds = |total: u128| u64::try_from(total).unwrap_or(u64::MAX);
    Row {
        start: timestamp(start),
        end: timestamp(end),
        namespace: group.0,
        pod: group.1,
        label: group.2,
        containers: usage.containers,
        cpu_nanoseconds: nanoseconds(usage.cpu_ns),
        memory_byte_seconds: usage.memory_byte_seconds,
        memory_byte_seconds_error: usage.memory_error_byte_ns.div_ceil(BYTE_SECOND),
        billed_cpu_nanoseconds: nanoseconds(usage.billed_cpu_ns),
        billed_memory_byte_seconds: usage.billed_memory_byte_seconds,
        traffic: usage.traffic,
        cost: decimal(usage.cost_nano),
    }
}

fn timestamp(ns: i64) -> Timestamp {
    Timestamp::from_nanosecond(ns.into()).unwrap_or_default()
}
