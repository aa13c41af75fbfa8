//! What only a control plane does: writes by many clients, bills.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http::Method;
use kube::Client;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::carob::{Carob, NAMESPACE, create_namespace};
use crate::processes;

/// Where the objects of this module are.
pub const OBJECTS: &str = "bench-objects";

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
    /// The gateway's CPU per create.
    pub gateway_cpu: Duration,
    /// The client's, on the same cores.
    pub client_cpu: Duration,
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
        prepare_namespace(&carob.connect()?).await?;
        let mut wires = Vec::new();
        for _ in 0..clients {
            wires.push(carob.wire().await?);
        }
        let next = Arc::new(AtomicU64::new(0));
        let cpu = || -> Result<_> {
            let own = std::process::id().cast_signed();
            Ok((processes::of(carob.gateway())?.cpu, processes::of(own)?.cpu))
        };
        let before = cpu()?;
        let begin = Instant::now();
        let mut tasks = JoinSet::new();
        for mut wire in wires {
            let next = Arc::clone(&next);
            tasks.spawn(async move {
                let mut latencies = Vec::new();
                while begin.elapsed() < length {
                    let name = format!("object-{}", next.fetch_add(1, Ordering::Relaxed));
                    let body = config_map(&name, "0")?;
                    let sent = Instant::now();
                    wire.send(Method::POST, &format!("/api/v1/namespaces/{OBJECTS}/configmaps"), body).await?;
                    latencies.push(sent.elapsed());
                }
                anyhow::Ok(latencies)
            });
        }
        let mut latencies = Vec::new();
        while let Some(task) = tasks.join_next().await {
            latencies.extend(task??);
        }
        let (took, after) = (begin.elapsed(), cpu()?);
        let each = |after: Duration, before: Duration| {
            after.saturating_sub(before) / u32::try_from(latencies.len().max(1)).unwrap_or(u32::MAX)
        };
        let (gateway_cpu, client_cpu) = (each(after.0, before.0), each(after.1, before.1));
        Ok(Creates { clients, objects: latencies.len() as u64, took, latencies, gateway_cpu, client_cpu })
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

/// Makes the namespace of this module's objects.
pub async fn prepare_namespace(client: &Client) -> Result<()> {
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

/// A small object with a number in it, at its end.
pub fn config_map(name: &str, sequence: &str) -> Result<Vec<u8>> {
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app": "bench"}},
        "data": {"padding": "x".repeat(200), "sequence": sequence},
    });
    Ok(serde_json::to_vec(&object)?)
}
