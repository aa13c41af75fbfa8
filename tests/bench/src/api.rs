//! What only a control plane does: writes by many clients, events to many watchers, bills.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use http::Request;
use http::header::CONTENT_TYPE;
use kube::Client;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::carob::{Carob, NAMESPACE, create_namespace};

/// Where the objects of this module are.
const OBJECTS: &str = "bench-objects";

/// Creates of ConfigMaps, each acknowledged after it is on the disk.
pub struct Creates {
    /// Clients, each with one request under way.
    pub clients: usize,
    /// How many in all.
    pub objects: u64,
    /// In how long.
    pub took: Duration,
    /// Of each.
    pub latencies: Vec<Duration>,
}

/// One object's updates as a thousand watchers see them.
pub struct Deliveries {
    /// Connections with a watch on each.
    pub watchers: usize,
    /// How many.
    pub writes: usize,
    /// From a write's sending to its answer.
    pub write: Vec<Duration>,
    /// From a write's sending to each watcher's event.
    pub from_sending: Vec<Duration>,
    /// From a write's answer, which follows the commit, to each watcher's event; zero where the event came first.
    pub from_answer: Vec<Duration>,
}

/// A namespace's bill, per pod and second.
pub struct Report {
    /// Of each request, with the whole answer.
    pub latencies: Vec<Duration>,
    /// Of the answer.
    pub rows: usize,
    /// Different pods in it.
    pub pods: usize,
    /// Readings in the ledger.
    pub readings: u64,
}

/// Measures [`Creates`].
pub fn creates(runtime: &Handle, carob: &Carob, clients: usize, length: Duration) -> Result<Creates> {
    runtime.block_on(async {
        let connected: Vec<Client> = (0..clients).map(|_| carob.connect()).collect::<Result<_>>()?;
        prepare_namespace(&connected[0]).await?;
        let next = Arc::new(AtomicU64::new(0));
        let begin = Instant::now();
        let mut tasks = JoinSet::new();
        for client in connected {
            let next = Arc::clone(&next);
            tasks.spawn(async move {
                let mut latencies = Vec::new();
                while begin.elapsed() < length {
                    let name = format!("object-{}", next.fetch_add(1, Ordering::Relaxed));
                    let body = config_map(&name, "0")?;
                    let request = Request::post(format!("/api/v1/namespaces/{OBJECTS}/configmaps"))
                        .header(CONTENT_TYPE, "application/json")
                        .body(body)?;
                    let sent = Instant::now();
                    client.request_text(request).await?;
                    latencies.push(sent.elapsed());
                }
                anyhow::Ok(latencies)
            });
        }
        let mut latencies = Vec::new();
        while let Some(task) = tasks.join_next().await {
            latencies.extend(task??);
        }
        Ok(Creates { clients, objects: latencies.len() as u64, took: begin.elapsed(), latencies })
    })
}

/// Measures [`Deliveries`].
pub fn deliveries(
    runtime: &Handle,
    carob: &Carob,
    watchers: usize,
    writes: usize,
    pause: Duration,
) -> Result<Deliveries> {
    runtime.block_on(async {
        let client = carob.connect()?;
        prepare_namespace(&client).await?;
        let object = format!("/api/v1/namespaces/{OBJECTS}/configmaps/watched");
        let put = |sequence: usize| -> Result<Request<Vec<u8>>> {
            let body = config_map("watched", &sequence.to_string())?;
            Ok(Request::put(&object).header(CONTENT_TYPE, "application/json").body(body)?)
        };
        let create = Request::post(format!("/api/v1/namespaces/{OBJECTS}/configmaps"))
            .header(CONTENT_TYPE, "application/json")
            .body(config_map("watched", "0")?)?;
        client.request_text(create).await?;
        let path = format!(
            "/api/v1/namespaces/{OBJECTS}/configmaps?watch=true&fieldSelector=metadata.name%3Dwatched&timeoutSeconds=3600"
        );
        let opened = futures::stream::iter(0..watchers).map(|_| async {
            let stream = client.request_stream(Request::get(&path).body(Vec::new())?).await?;
            let mut lines = Box::pin(stream.lines());
            // The object as it is, which shows that the watch is there.
            lines.try_next().await?.context("a watch ended")?;
            anyhow::Ok(lines)
        });
        let opened: Vec<_> = opened.buffer_unordered(16).try_collect().await?;
        let mut tasks = JoinSet::new();
        for mut lines in opened {
            tasks.spawn(async move {
                let mut seen = Vec::with_capacity(writes);
                while seen.len() < writes {
                    let line = lines.try_next().await?.context("a watch ended")?;
                    let now = Instant::now();
                    if sequence(&line) != Some(seen.len() + 1) {
                        bail!("event {} is missing or out of order", seen.len() + 1);
                    }
                    seen.push(now);
                }
                Ok(seen)
            });
        }
        let mut sent = Vec::new();
        let mut answered = Vec::new();
        for sequence in 1..=writes {
            let request = put(sequence)?;
            sent.push(Instant::now());
            client.request_text(request).await?;
            answered.push(Instant::now());
            tokio::time::sleep(pause).await;
        }
        let mut deliveries = Deliveries {
            watchers,
            writes,
            write: sent.iter().zip(&answered).map(|(sent, answered)| answered.duration_since(*sent)).collect(),
            from_sending: Vec::with_capacity(watchers * writes),
            from_answer: Vec::with_capacity(watchers * writes),
        };
        while let Some(task) = tasks.join_next().await {
            for (index, seen) in task??.into_iter().enumerate() {
                deliveries.from_sending.push(seen.duration_since(sent[index]));
                deliveries.from_answer.push(seen.saturating_duration_since(answered[index]));
            }
        }
        Ok(deliveries)
    })
}

/// Measures [`Report`]s of the pods that were measured before.
pub fn report(carob: &Carob, times: usize) -> Result<Report> {
    let path = format!("/billing/v1/report?namespace={NAMESPACE}&step=1s&groupBy=pod");
    let mut latencies = Vec::new();
    let mut text = String::new();
    for _ in 0..times {
        let begin = Instant::now();
        text = carob.get(&path)?;
        latencies.push(begin.elapsed());
    }
    let report: Value = serde_json::from_str(&text)?;
    let verified: Value = serde_json::from_str(&carob.get("/billing/v1/verify")?)?;
    let rows = report["rows"].as_array().context("a report without rows")?;
    let pods: BTreeSet<&str> = rows.iter().filter_map(|row| row["pod"].as_str()).collect();
    Ok(Report {
        latencies,
        rows: rows.len(),
        pods: pods.len(),
        readings: verified["readings"].as_u64().context("a ledger without readings")?,
    })
}

async fn prepare_namespace(client: &Client) -> Result<()> {
    let mut outcome = Ok(());
    for _ in 0..100 {
        outcome = create_namespace(client, OBJECTS).await;
        if outcome.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    outcome
}

fn config_map(name: &str, sequence: &str) -> Result<Vec<u8>> {
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app": "bench"}},
        "data": {"sequence": sequence, "text": "x".repeat(200)},
    });
    Ok(serde_json::to_vec(&object)?)
}

/// The number in an event's object, found without reading all of it: a thousand watchers share the machine with the
/// gateway.
fn sequence(line: &str) -> Option<usize> {
    let (_, rest) = line.split_once("\"sequence\":\"")?;
    rest.split('"').next()?.parse().ok()
}
