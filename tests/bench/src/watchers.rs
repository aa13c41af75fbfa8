//! One object's writes as a thousand watchers see them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http::Request;
use http::header::CONTENT_TYPE;
use tokio::runtime::Handle;

use crate::api::{OBJECTS, config_map, prepare_namespace};
use crate::carob::Carob;
use crate::processes;
use crate::readers::{Readers, Shape};

/// Between the opening of the watches and a look at the memory that they take.
const SETTLE: Duration = Duration::from_secs(2);

/// What was measured.
pub struct Deliveries {
    /// How the watchers are connected.
    pub shape: Shape,
    /// How many there are.
    pub watchers: usize,
    /// From a write's sending to its answer.
    pub write: Vec<Duration>,
    /// From a write's sending until the last of all watchers has its event.
    pub last: Vec<Duration>,
    /// From the first sign of the commit that anybody has, its answer or an event, until the last watcher has its event.
    pub spread: Vec<Duration>,
    /// What an event for one watcher takes of a core in the gateway, with the write's share.
    pub gateway_cpu: Duration,
    /// What it takes in the client.
    pub client_cpu: Duration,
    /// How much the gateway's resident memory grew per idle watch, in bytes.
    pub memory: u64,
}

/// Measures them.
pub fn deliveries(
    runtime: &Handle,
    carob: &Carob,
    shape: Shape,
    watchers: usize,
    writes: usize,
    pause: Duration,
) -> Result<Deliveries> {
    let client = {
        let _inside = runtime.enter();
        carob.connect()?
    };
    // The two shapes watch objects of their own.
    let name = if shape == Shape::Connections { "watched-by-connections" } else { "watched-by-streams" };
    let path = format!("/api/v1/namespaces/{OBJECTS}/configmaps");
    let object = format!("{path}/{name}");
    runtime.block_on(async {
        prepare_namespace(&client).await?;
        let create = Request::post(&path).header(CONTENT_TYPE, "application/json").body(config_map(name, "0")?)?;
        client.request_text(create).await?;
        anyhow::Ok(())
    })?;
    let watch = format!("{path}?watch=true&fieldSelector=metadata.name%3D{name}&timeoutSeconds=3600");
    let empty = processes::of(carob.gateway())?;
    let readers = Readers::open(carob.config(), &watch, shape, watchers, writes)?;
    #[expect(clippy::disallowed_methods, reason = "what is measured is what is held when nothing happens")]
    std::thread::sleep(SETTLE);
    let before = processes::of(carob.gateway())?;
    let (sent, answered) = runtime.block_on(async {
        let mut sent = Vec::with_capacity(writes);
        let mut answered = Vec::with_capacity(writes);
        for sequence in 1..=writes {
            let body = config_map(name, &sequence.to_string())?;
            let request = Request::put(&object).header(CONTENT_TYPE, "application/json").body(body)?;
            sent.push(Instant::now());
            client.request_text(request).await?;
            answered.push(Instant::now());
            tokio::time::sleep(pause).await;
        }
        anyhow::Ok((sent, answered))
    })?;
    let followed = readers.finish()?;
    let after = processes::of(carob.gateway())?;
    let mut deliveries = Deliveries {
        shape,
        watchers,
        write: sent.iter().zip(&answered).map(|(sent, answered)| answered.duration_since(*sent)).collect(),
        last: Vec::with_capacity(writes),
        spread: Vec::with_capacity(writes),
        gateway_cpu: per_event(after.cpu.saturating_sub(before.cpu), watchers * writes),
        client_cpu: per_event(followed.cpu, watchers * writes),
        memory: before.rss.saturating_sub(empty.rss) / watchers.max(1) as u64,
    };
    for index in 0..writes {
        let arrived = || followed.seen.iter().map(|seen| seen[index]);
        let first = arrived().min().context("no watchers")?.min(answered[index]);
        let last = arrived().max().context("no watchers")?;
        deliveries.last.push(last.duration_since(sent[index]));
        deliveries.spread.push(last.duration_since(first));
    }
    Ok(deliveries)
}

fn per_event(all: Duration, events: usize) -> Duration {
    all / u32::try_from(events.max(1)).unwrap_or(u32::MAX)
}
