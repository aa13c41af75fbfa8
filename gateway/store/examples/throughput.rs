//! How fast the embedded store is: durable creates per second by 8 clients, and how long a write takes to reach 1,000
//! watchers.
//!
//! `cargo run --release -p carob-store --example throughput [DIRECTORY]` (default: the directory for temporary files, so
//! mind what it is mounted on: a sync to memory costs nothing).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use carob_store::redb::{Options, RedbStore};
use carob_store::{Document, Expect, KeyRange, Store, Txn, Watched, Write};
use futures::StreamExt;

const CLIENTS: u64 = 8;
const WATCHERS: usize = 1000;
const COMMITS: usize = 300;
const MEASURE: Duration = Duration::from_secs(3);
/// About what a small pod takes as JSON.
const DOCUMENT: usize = 2048;

#[tokio::main]
async fn main() {
    let directory = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let path = directory.join(format!("carob-throughput-{}.redb", std::process::id()));
    let opening = Instant::now();
    let store = RedbStore::open(&path, Options::default()).expect("a new file can be made here");
    println!("created in {:.1} ms", milliseconds(opening.elapsed()));
    one_by_one(&store).await;
    creates(&store).await;
    let idle = processor_time();
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("idle after that (cleaning, progress): {:.2}% of a core", (processor_time() - idle) / 2.0 * 100.0);
    fan_out(&store).await;
    let page = list(&store).await;
    store.close().await;
    let opening = Instant::now();
    let store = RedbStore::open(&path, Options::default()).expect("it was closed");
    let size = std::fs::metadata(&path).map_or(0, |file| file.len());
    let elapsed = milliseconds(opening.elapsed());
    println!("opened again with {page} keys, {:.1} MB, in {elapsed:.1} ms", megabytes(size));
    store.close().await;
    std::fs::remove_file(&path).expect("it is there");
}

async fn one_by_one(store: &RedbStore) {
    let mut latencies = Vec::new();
    for number in 0..COMMITS {
        let asked = Instant::now();
        create(store, format!("/core/events/default/{number}")).await;
        latencies.push(asked.elapsed());
    }
    latencies.sort_unstable();
    let at = |part: usize| milliseconds(latencies[COMMITS * part / 100 - 1]);
    println!("one client's create: p50 {:.2} ms, p99 {:.2} ms", at(50), at(99));
}

async fn creates(store: &RedbStore) {
    let done = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let clients = (0..CLIENTS).map(|client| {
        let (store, done) = (store.clone(), done.clone());
        tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            for number in 0_u64.. {
                let asked = Instant::now();
                if asked - began > MEASURE {
                    break;
                }
                create(&store, format!("/core/pods/default/{client}-{number}")).await;
                longest = longest.max(asked.elapsed());
                done.fetch_add(1, Ordering::Relaxed);
            }
            longest
        })
    });
    let clients: Vec<_> = clients.collect();
    let longest = futures::future::join_all(clients).await.into_iter().flatten().max().unwrap_or_default();
    let per_second = done.load(Ordering::Relaxed) / MEASURE.as_secs();
    println!("{per_second} creates/s by {CLIENTS} clients, the slowest took {:.1} ms", milliseconds(longest));
}

async fn fan_out(store: &RedbStore) {
    let after = store.revision().await.expect("open");
    let (arrivals, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..WATCHERS {
        let mut watch = store.watch(KeyRange::prefix("/core/nodes/"), after).await.expect("the newest revision");
        let arrivals = arrivals.clone();
        tokio::spawn(async move {
            while let Some(Ok(item)) = watch.next().await {
                let kept = !matches!(item, Watched::Events(_)) || arrivals.send(Instant::now()).is_ok();
                if !kept {
                    break;
                }
            }
        });
    }
    let mut latencies = Vec::new();
    for number in 0..COMMITS {
        // Counted from the request, so the commit itself (its sync) is in it: the answer comes after the watchers wake.
        let asked = Instant::now();
        create(store, format!("/core/nodes/{number}")).await;
        for _ in 0..WATCHERS {
            let at = arrived.recv().await.expect("the watchers live");
            latencies.push(at - asked);
        }
    }
    latencies.sort_unstable();
    let at = |part: usize| milliseconds(latencies[latencies.len() * part / 1000 - 1]);
    println!("request to {WATCHERS} watchers: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", at(500), at(990), at(1000));
}

async fn list(store: &RedbStore) -> usize {
    let began = Instant::now();
    let page = store.range(&KeyRange::prefix("/"), None, None).await.expect("open");
    println!("listed {} keys in {:.1} ms", page.entries.len(), milliseconds(began.elapsed()));
    page.entries.len()
}

async fn create(store: &RedbStore, key: String) {
    let document = Document::with_revision_at(vec![b'x'; DOCUMENT], 100);
    let txn = Txn { expect: vec![(key.clone(), Expect::Absent)], writes: vec![Write::Put(key, document)] };
    store.txn(txn).await.expect("the disk works");
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[allow(clippy::cast_precision_loss)] // printed with one digit
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Seconds of processor time that this process has used (/proc/self/stat, fields 14 and 15, in 1/100 s).
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}
