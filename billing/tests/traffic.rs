//! Pods' networks on the bill, on counters that the test moves and a real ledger.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carob_billing::price::PriceBook;
use carob_billing::report::{GroupBy, Query, Report};
use carob_billing::{
    BATCH, Billing, BillingConfig, Counters, End, Keeping, Meterable, Requests, Traffic, TrafficSource,
};
use jiff::{SignedDuration, Timestamp};

const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const PRICES: &str = "currency: EUR\nvcpuSecond: '0'\ngibSecond: '0'\ninternetSentGib: '1073.741824'\n";

async fn open(dir: &Path, keeping: Keeping) -> Arc<Billing> {
    let prices = PriceBook::parse(PRICES).unwrap();
    let config = BillingConfig { dir: dir.to_owned(), prices, interval: Duration::from_secs(1), keeping };
    for _ in 0..500 {
        // The writer of a dropped ledger lets go of the file a moment later.
        if let Ok(billing) = Billing::open(config.clone()) {
            return billing;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Billing::open(config).unwrap()
}

/// The kernel's counters.
#[derive(Clone, Default)]
struct Kernel(Arc<Mutex<HashMap<Ipv4Addr, Traffic>>>);

impl Kernel {
    fn set(&self, sent: u64, received: u64) {
        self.0.lock().unwrap().insert(POD, bytes(sent, received));
    }

    fn source(&self) -> TrafficSource {
        let all = Arc::clone(&self.0);
        TrafficSource::new("node".to_owned(), move || Ok(all.lock().unwrap().clone()))
    }
}

fn bytes(sent: u64, received: u64) -> Traffic {
    Traffic { internet_sent_bytes: sent, cluster_received_bytes: received, ..Traffic::default() }
}

fn network(kernel: &Kernel) -> Meterable {
    Meterable {
        container_id: "network-uid".into(),
        pod_uid: "uid".into(),
        namespace: "default".into(),
        pod: "pod".into(),
        container: String::new(),
        attempt: 0,
        labels: BTreeMap::new(),
        node: "node".into(),
        started_at: Timestamp::now() - SignedDuration::from_secs(2),
        requests: Requests::default(),
        counters: Some(Counters::Network(kernel.source(), POD)),
    }
}

fn container(pod: &str) -> Meterable {
    let id = format!("container-of-{pod}");
    Meterable {
        container_id: id,
        pod: pod.to_owned(),
        container: "main".into(),
        counters: None,
        ..network(&Kernel::default())
    }
}

fn report(billing: &Billing, step: Option<i64>) -> Report {
    let step = step.map(SignedDuration::from_secs);
    let to = Some(Timestamp::now() + SignedDuration::from_secs(1));
    let query = Query { namespace: None, pod: None, from: None, to, step, group_by: GroupBy::Pod };
    query.run(billing.ledger(), billing.prices()).unwrap()
}

#[tokio::test]
async fn every_byte_is_billed_once_whoever_dies_and_also_when_a_counter_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (kernel, mut billing) = (Kernel::default(), open(dir.path(), Keeping::Ledger).await);
    let pod = network(&kernel);
    kernel.set(100, 7);
    billing.container_started(pod.clone());
    billing.read_all().await;
    // What came while nobody looked is in the next reading.
    drop(billing);
    kernel.set(1_000, 7);
    billing = open(dir.path(), Keeping::Ledger).await;
    billing.container_started(pod.clone());
    billing.read_all().await;
    assert_eq!(report(&billing, None).total.traffic, Some(bytes(1_000, 7)));
    // The kernel's table was made anew.
    kernel.set(50, 0);
    billing.read_all().await;
    kernel.set(60, 1);
    billing.read_all().await;
    for _ in 0..2 {
        billing.network_ended(pod.clone(), Some(bytes(64, 1))).await.unwrap();
    }
    billing.container_started(pod);
    kernel.set(9_999, 9_999);
    billing.read_all().await;
    let whole = report(&billing, None);
    assert_eq!(whole.total.traffic, Some(bytes(1_064, 8)));
    // A millionth of the price of a GiB, which is 2^30 millionths, for each byte.
    assert_eq!(whole.total.cost, "0.001064000");
    assert_eq!(whole.total.containers, 0, "a network is no container");
    let stepped = report(&billing, Some(1));
    assert_eq!(stepped.total.traffic, whole.total.traffic);
    assert_eq!(stepped.total.cost, whole.total.cost);
    let sum: u64 = stepped.rows.iter().filter_map(|row| Some(row.traffic?.internet_sent_bytes)).sum();
    assert_eq!(sum, 1_064);
    billing.ledger().verify().unwrap();
}

#[tokio::test]
async fn a_last_count_that_could_not_be_read_takes_nothing_back() {
    let dir = tempfile::tempdir().unwrap();
    let (kernel, billing) = (Kernel::default(), open(dir.path(), Keeping::Ledger).await);
    kernel.set(10, 0);
    billing.container_started(network(&kernel));
    billing.read_all().await;
    billing.network_ended(network(&kernel), None).await.unwrap();
    assert_eq!(report(&billing, None).total.traffic, Some(bytes(10, 0)));
}

#[tokio::test]
async fn a_pod_without_a_network_of_its_own_has_no_count_and_one_that_is_silent_has_zero() {
    let dir = tempfile::tempdir().unwrap();
    let (kernel, billing) = (Kernel::default(), open(dir.path(), Keeping::Ledger).await);
    kernel.set(0, 0);
    billing.container_started(network(&kernel));
    billing.read_all().await;
    billing.network_ended(network(&kernel), None).await.unwrap();
    assert!(report(&billing, Some(1)).rows.is_empty(), "silence makes no row");
    let end = End { finished_at: Timestamp::now(), cpu_ns: 1, memory_peak_bytes: 0, unknown: false };
    for pod in ["pod", "on-the-host"] {
        billing.container_exited(container(pod), end).await.unwrap();
    }
    let rows: Vec<_> =
        report(&billing, None).rows.into_iter().map(|row| (row.pod.unwrap(), row.traffic, row.containers)).collect();
    assert_eq!(rows, [("on-the-host".into(), None, 1), ("pod".into(), Some(Traffic::default()), 1)]);
}

#[tokio::test]
async fn bytes_of_another_machine_arrive_by_its_outbox_and_must_fit_its_counters() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = Kernel::default();
    let worker = open(&dir.path().join("outbox"), Keeping::Outbox).await;
    let ledger = open(&dir.path().join("ledger"), Keeping::Ledger).await;
    worker.container_started(network(&kernel));
    for sent in [5, 12] {
        kernel.set(sent, 0);
        worker.read_all().await;
    }
    worker.network_ended(network(&kernel), Some(bytes(20, 3))).await.unwrap();
    let parcel = worker.parcel(BATCH).unwrap().expect("three readings");
    let sent = serde_json::to_value(&parcel.delivery).unwrap();
    for _ in 0..2 {
        ledger.take(serde_json::from_value(sent.clone()).unwrap()).await.unwrap();
    }
    assert_eq!(report(&ledger, None).total.traffic, Some(bytes(20, 3)));
    assert!(ledger.usage().is_empty(), "a network uses neither CPU nor memory");
    let mut forged = sent;
    forged["records"][1]["reading"]["traffic"]["internetSentBytes"] = 1.into();
    ledger.take(serde_json::from_value(forged).unwrap()).await.unwrap_err();
}
