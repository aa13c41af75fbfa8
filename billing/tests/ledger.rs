//! From counters to a bill, on counters that the test moves and a real ledger.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use carob_billing::price::PriceBook;
use carob_billing::report::{GroupBy, Query, Report};
use carob_billing::{BATCH, Billing, BillingConfig, Counters, End, Keeping, Meterable, Requests};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

fn open(dir: &Path) -> Arc<Billing> {
    open_with(dir, "currency: EUR\nvcpuSecond: '1'\ngibSecond: '1'\n")
}

fn open_with(dir: &Path, prices: &str) -> Arc<Billing> {
    let prices = PriceBook::parse(prices).unwrap();
    Billing::open(BillingConfig {
        dir: dir.join("ledger"),
        prices,
        interval: Duration::from_secs(1),
        keeping: Keeping::Ledger,
    })
    .unwrap()
}

/// A container whose counters are plain files.
struct Fake {
    meterable: Meterable,
    group: tempfile::TempDir,
}

impl Fake {
    fn new(id: &str, pod: &str, started_at: Timestamp) -> Self {
        let group = tempfile::tempdir().unwrap();
        let meterable = Meterable {
            container_id: id.into(),
            pod_uid: format!("uid-{pod}"),
            namespace: "default".into(),
            pod: pod.into(),
            container: "main".into(),
            attempt: 0,
            labels: BTreeMap::from([("team".into(), "a".into())]),
            node: "node".into(),
            started_at,
            requests: Requests { cpu_millis: 1_000, memory_bytes: 1 << 30 },
            counters: Some(Counters::V2(group.path().into())),
        };
        let fake = Self { meterable, group };
        std::fs::write(fake.group.path().join("memory.stat"), "inactive_file 0\n").unwrap();
        fake.set(0, 0);
        fake
    }

    fn set(&self, cpu_us: u64, memory: u64) {
        std::fs::write(self.group.path().join("cpu.stat"), format!("usage_usec {cpu_us}\n")).unwrap();
        std::fs::write(self.group.path().join("memory.current"), format!("{memory}\n")).unwrap();
    }
}

fn a_minute_ago() -> Timestamp {
    Timestamp::now() - SignedDuration::from_mins(1)
}

fn query() -> Query {
    Query { namespace: None, pod: None, from: None, to: None, step: None, group_by: GroupBy::Pod }
}

fn run(billing: &Billing, query: &Query) -> Report {
    query.run(billing.ledger(), billing.prices()).unwrap()
}

fn end(cpu_us: u64) -> End {
    End { finished_at: Timestamp::now(), cpu_ns: cpu_us * 1_000, memory_peak_bytes: 0, unknown: false }
}

#[tokio::test]
async fn a_container_that_nobody_looked_at_is_billed_to_the_nanosecond() {
    let dir = tempfile::tempdir().unwrap();
    let billing = open(dir.path());
    let started = a_minute_ago();
    let brief = Fake::new("a", "brief", started);
    let end = End {
        finished_at: started + SignedDuration::from_millis(5),
        cpu_ns: 1_234_567,
        memory_peak_bytes: 1 << 20,
        unknown: false,
    };
    billing.container_exited(brief.meterable.clone(), end).await.unwrap();
    let report = run(&billing, &query());
    assert_eq!(report.rows.len(), 1);
    assert_eq!(report.rows[0].cpu_nanoseconds, 1_234_567);
    assert_eq!(report.rows[0].pod.as_deref(), Some("brief"));
    assert_eq!(report.rows[0].end.duration_since(report.rows[0].start), SignedDuration::from_millis(5));
    let half_mib_5ms = (1_u128 << 19) * 5 / 1_000;
    assert_eq!(report.rows[0].memory_byte_seconds, half_mib_5ms);
}

#[tokio::test]
async fn cpu_that_was_used_while_no_process_looked_is_in_the_next_reading() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new("a", "pod", Timestamp::now());
    {
        let billing = open(dir.path());
        billing.container_started(fake.meterable.clone());
        fake.set(100, 10);
        billing.read_all().await;
        // This process ends here without a word.
    }
    fake.set(250, 10);
    let billing = reopen(dir.path()).await;
    billing.container_started(fake.meterable.clone());
    billing.read_all().await;
    fake.set(300, 10);
    billing.container_exited(fake.meterable.clone(), end(300)).await.unwrap();
    assert_eq!(run(&billing, &query()).total.cpu_nanoseconds, 300_000);
    billing.ledger().verify().unwrap();
}

/// The writer thread of a dropped ledger lets go of the file a moment later.
async fn reopen(dir: &Path) -> Arc<Billing> {
    open_again(&dir.join("ledger"), Keeping::Ledger).await
}

async fn open_again(dir: &Path, keeping: Keeping) -> Arc<Billing> {
    open_priced(dir, keeping, PriceBook::default()).await
}

async fn open_priced(dir: &Path, keeping: Keeping, prices: PriceBook) -> Arc<Billing> {
    let interval = Duration::from_secs(1);
    let config = BillingConfig { dir: dir.to_owned(), prices, interval, keeping };
    for _ in 0..500 {
        if let Ok(billing) = Billing::open(config.clone()) {
            return billing;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Billing::open(config).unwrap()
}

#[tokio::test]
async fn an_exit_that_is_told_twice_is_billed_once() {
    let dir = tempfile::tempdir().unwrap();
    let billing = open(dir.path());
    let fake = Fake::new("a", "pod", Timestamp::now());
    billing.container_started(fake.meterable.clone());
    for _ in 0..3 {
        billing.container_exited(fake.meterable.clone(), end(70)).await.unwrap();
    }
    billing.container_started(fake.meterable.clone());
    billing.read_all().await;
    let report = run(&billing, &query());
    assert_eq!((report.total.cpu_nanoseconds, report.total.containers), (70_000, 1));
}

#[tokio::test]
async fn a_counter_that_could_not_be_read_at_the_end_never_takes_back_what_was_read() {
    let dir = tempfile::tempdir().unwrap();
    let billing = open(dir.path());
    let fake = Fake::new("a", "pod", Timestamp::now());
    billing.container_started(fake.meterable.clone());
    fake.set(90, 0);
    billing.read_all().await;
    billing.container_exited(fake.meterable.clone(), end(0)).await.unwrap();
    assert_eq!(run(&billing, &query()).total.cpu_nanoseconds, 90_000);
}

#[tokio::test]
async fn the_time_after_the_last_look_is_not_billed_when_nobody_saw_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let billing = open_with(dir.path(), "currency: EUR\nvcpuSecond: '1'\ngibSecond: '1'\nrequestFloor: true\n");
    let started = a_minute_ago();
    let fake = Fake::new("a", "pod", started);
    let end = End { finished_at: Timestamp::now(), cpu_ns: 5_000, memory_peak_bytes: 1 << 30, unknown: true };
    billing.container_exited(fake.meterable.clone(), end).await.unwrap();
    let report = run(&billing, &query());
    assert_eq!(report.total.cpu_nanoseconds, 5_000, "the counter's last value is known");
    assert_eq!(report.total.memory_byte_seconds, 0);
    assert_eq!(report.total.cost, "0.000005000");
}

#[tokio::test]
async fn the_request_floor_bills_what_was_asked_for_where_less_was_used() {
    let dir = tempfile::tempdir().unwrap();
    let billing = open_with(dir.path(), "currency: EUR\nvcpuSecond: '1'\ngibSecond: '0'\nrequestFloor: true\n");
    let started = a_minute_ago();
    let fake = Fake::new("a", "pod", started);
    let end =
        End { finished_at: started + SignedDuration::from_secs(2), cpu_ns: 1, memory_peak_bytes: 0, unknown: false };
    billing.container_exited(fake.meterable.clone(), end).await.unwrap();
    let report = run(&billing, &query());
    assert_eq!(report.total.cost, "2.000000000");
    assert_eq!(report.total.cpu_nanoseconds, 1, "usage stays what it was");
    assert_eq!(report.total.billed_cpu_nanoseconds, 2_000_000_000, "and what is billed can be checked");
}

/// Three seconds as asked for at first, and two with a CPU more.
#[tokio::test]
async fn after_a_resize_each_span_has_the_floor_of_what_was_asked_for_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let floor = "currency: EUR\nvcpuSecond: '1'\ngibSecond: '0'\nrequestFloor: true\n";
    let billing = open_with(dir.path(), floor);
    let fake = Fake::new("a", "pod", Timestamp::now() - SignedDuration::from_secs(3));
    billing.container_started(fake.meterable.clone());
    let more = Requests { cpu_millis: 2_000, memory_bytes: 0 };
    for _ in 0..2 {
        billing.container_resized("a", more).await.unwrap();
    }
    billing.container_resized("nobody", more).await.unwrap();
    let spans = spans_of(&billing);
    assert_eq!(spans.len(), 1, "what it asks for already is no resize: {spans:?}");
    let resized_ns = spans[0].1;
    drop(billing);

    // The next process reads on with what was asked for last, whatever it is told of the start.
    let prices = PriceBook::parse(floor).unwrap();
    let billing = open_priced(&dir.path().join("ledger"), Keeping::Ledger, prices).await;
    billing.container_started(fake.meterable.clone());
    fake.set(1, 0);
    billing.read_all().await;
    let finished_at = Timestamp::from_nanosecond(i128::from(resized_ns) + 2_000_000_000).unwrap();
    billing.container_exited(fake.meterable.clone(), End { finished_at, ..end(1) }).await.unwrap();
    let spans = spans_of(&billing);
    assert!(spans[1..].iter().all(|(_, _, requests)| *requests == Some(more)), "{spans:?}");
    assert_eq!(spans[0].2, None, "the first is as it was described");
    let billed: u128 = spans
        .iter()
        .map(|(start, end, requests)| u128::from(start.abs_diff(*end)) * if requests.is_some() { 2 } else { 1 })
        .sum();
    let all = Query { to: Some(finished_at + SignedDuration::from_secs(1)), ..query() };
    let total = run(&billing, &all).total;
    assert_eq!(u128::from(total.billed_cpu_nanoseconds), billed);
    assert_eq!(total.cost, format!("{}.{:09}", billed / 1_000_000_000, billed % 1_000_000_000));
    billing.ledger().verify().unwrap();
}

/// Begin, end and requests of every reading.
fn spans_of(billing: &Billing) -> Vec<(i64, i64, Option<Requests>)> {
    let mut spans = Vec::new();
    let note = |_: &Meterable, reading: carob_billing::Reading| {
        spans.push((reading.start_ns, reading.end_ns, reading.requests));
        std::ops::ControlFlow::Continue(())
    };
    billing.ledger().visit(i64::MIN, i64::MAX, |_| true, note).unwrap();
    spans
}

#[tokio::test]
async fn groups_and_filters_choose_what_is_summed() {
    let dir = tempfile::tempdir().unwrap();
    let billing = open(dir.path());
    for (id, pod, cpu) in [("a", "x", 1), ("b", "x", 2), ("c", "y", 4)] {
        let fake = Fake::new(id, pod, Timestamp::now());
        billing.container_exited(fake.meterable.clone(), end(cpu)).await.unwrap();
    }
    let by_pod = run(&billing, &query());
    let sums: Vec<_> = by_pod.rows.iter().map(|row| (row.pod.clone().unwrap(), row.cpu_nanoseconds)).collect();
    assert_eq!(sums, [("x".into(), 3_000), ("y".into(), 4_000)]);
    let by_namespace = run(&billing, &Query { group_by: GroupBy::Namespace, ..query() });
    assert_eq!((by_namespace.rows.len(), by_namespace.rows[0].containers), (1, 3));
    let by_label = run(&billing, &Query { group_by: GroupBy::Label("team".into()), ..query() });
    assert_eq!(by_label.rows[0].label.as_deref(), Some("a"));
    let only_y = run(&billing, &Query { pod: Some("y".into()), ..query() });
    assert_eq!(only_y.total.cpu_nanoseconds, 4_000);
    let nobody = run(&billing, &Query { namespace: Some("other".into()), ..query() });
    assert_eq!((nobody.rows.len(), nobody.total.cpu_nanoseconds), (0, 0));
}

fn nano(cost: &str) -> u128 {
    cost.replace('.', "").parse().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However usage falls and whatever the step: rows add up to the total and the total to the counters.
    #[test]
    fn rows_add_up_exactly(
        usage in prop::collection::vec((0_u64..5_000_000, 0_i64..4_000), 1..12),
        step in 1_i64..5,
        peak in 0_u64..1 << 33,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let billing = open_with(dir.path(), "currency: EUR\nvcpuSecond: '0.0000112'\ngibSecond: '0.000003331'\n");
            let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
            let mut cpu_ns = 0;
            for (index, (cpu_us, milliseconds)) in usage.iter().enumerate() {
                let started = start + SignedDuration::from_millis(137 * i64::try_from(index).unwrap());
                let fake = Fake::new(&format!("c{index}"), &format!("p{}", index % 3), started);
                let end = End {
                    finished_at: started + SignedDuration::from_millis(*milliseconds),
                    cpu_ns: cpu_us * 1_000,
                    memory_peak_bytes: peak,
                    unknown: false,
                };
                billing.container_exited(fake.meterable.clone(), end).await.unwrap();
                cpu_ns += cpu_us * 1_000;
            }
            let whole = run(&billing, &query());
            let stepped = run(&billing, &Query { step: Some(SignedDuration::from_secs(step)), ..query() });
            for report in [&whole, &stepped] {
                assert_eq!(report.total.cpu_nanoseconds, cpu_ns);
                assert_eq!(report.rows.iter().map(|row| row.cpu_nanoseconds).sum::<u64>(), cpu_ns);
                assert_eq!(report.rows.iter().map(|row| nano(&row.cost)).sum::<u128>(), nano(&report.total.cost));
                let memory: u128 = report.rows.iter().map(|row| row.memory_byte_seconds).sum();
                assert_eq!(memory, report.total.memory_byte_seconds);
            }
            assert_eq!(whole.total.cost, stepped.total.cost);
            // What a pod cost that has ended doesn't depend on who else is on the bill.
            for row in &whole.rows {
                let alone = run(&billing, &Query { pod: row.pod.clone(), ..query() });
                assert_eq!(alone.total.cost, row.cost);
            }
            assert_eq!(billing.ledger().verify().unwrap(), usage.len() as u64);
        });
    }
}

/// A worker's outbox, whose readings the test carries to the ledger.
async fn outbox(dir: &Path) -> Arc<Billing> {
    open_again(&dir.join("outbox"), Keeping::Outbox).await
}

#[tokio::test]
async fn readings_of_another_machine_arrive_exactly_once_whoever_crashes() {
    let folder = tempfile::tempdir().unwrap();
    let started = a_minute_ago();
    let fake = Fake::new("far", "far", started);
    let (mut worker, mut ledger) = (outbox(folder.path()).await, open(folder.path()));
    worker.container_started(fake.meterable.clone());
    for step in 1..=4_u64 {
        fake.set(step * 250_000, 1 << 20);
        worker.read_all().await;
        let parcel = worker.parcel(BATCH).unwrap().expect("a reading waits");
        let sent = serde_json::to_vec(&parcel.delivery).unwrap();
        let deliver = || serde_json::from_slice(&sent).unwrap();
        match step {
            // It arrives, and the answer is lost.
            1 => assert!(ledger.take(deliver()).await.unwrap().is_empty()),
            // The gateway dies before and after it.
            2 => {
                drop(ledger);
                ledger = reopen(folder.path()).await;
                ledger.take(deliver()).await.unwrap();
                drop(ledger);
                ledger = reopen(folder.path()).await;
            }
            // The worker dies with all that it has not delivered.
            3 => {
                drop(worker);
                worker = outbox(folder.path()).await;
                worker.container_started(fake.meterable.clone());
            }
            _ => {}
        }
        ledger.take(deliver()).await.unwrap();
        if step > 1 {
            worker.delivered(&parcel).unwrap();
        }
    }
    let end = End { finished_at: Timestamp::now(), unknown: false, cpu_ns: 1_500_000_000, memory_peak_bytes: 1 << 20 };
    worker.container_exited(fake.meterable.clone(), end).await.unwrap();
    let parcel = worker.parcel(BATCH).unwrap().expect("the last reading");
    ledger.take(serde_json::from_slice(&serde_json::to_vec(&parcel.delivery).unwrap()).unwrap()).await.unwrap();
    worker.delivered(&parcel).unwrap();
    assert!(worker.parcel(BATCH).unwrap().is_none(), "nothing is left");
    // Told again, as by a worker that died before it removed the container.
    worker.container_exited(fake.meterable.clone(), end).await.unwrap();
    if let Some(parcel) = worker.parcel(BATCH).unwrap() {
        ledger.take(parcel.delivery).await.unwrap();
    }
    let report = run(&ledger, &query());
    assert_eq!(report.total.cpu_nanoseconds, 1_500_000_000);
    ledger.ledger().verify().unwrap();
}

#[tokio::test]
async fn a_delivery_is_as_large_as_a_gateway_takes_and_what_is_set_aside_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    let worker = outbox(folder.path()).await;
    let mut fakes: Vec<Fake> = (0..30).map(|n| Fake::new(&format!("{n}"), "far", a_minute_ago())).collect();
    for fake in &mut fakes {
        fake.meterable.labels.insert("long".to_owned(), "x".repeat(100 << 10));
        worker.container_exited(fake.meterable.clone(), end(1)).await.unwrap();
    }
    let huge = Fake::new("huge", "far", a_minute_ago());
    let labels = BTreeMap::from([("long".to_owned(), "x".repeat(3 << 20))]);
    worker.container_exited(Meterable { labels, ..huge.meterable.clone() }, end(1)).await.unwrap();
    assert_eq!(worker.parcel(3).unwrap().expect("readings wait").readings(), 3);
    assert_eq!(worker.parcel(0).unwrap().expect("readings wait").readings(), 1, "one at least");
    let (mut sizes, mut last) = (Vec::new(), String::new());
    while let Some(parcel) = worker.parcel(BATCH).unwrap() {
        sizes.push((parcel.readings(), serde_json::to_vec(&parcel.delivery).unwrap().len()));
        last = parcel.about();
        match parcel.readings() {
            1 => worker.set_aside(&parcel).unwrap(),
            _ => worker.delivered(&parcel).unwrap(),
        }
    }
    assert_eq!(sizes.iter().map(|(readings, _)| readings).sum::<usize>(), 31);
    assert!(sizes.iter().all(|(readings, bytes)| *readings == 1 || *bytes < 1 << 20), "{sizes:?}");
    assert_eq!(sizes.last().unwrap().0, 1);
    assert!(last.contains("container \"main\" huge of pod default/far") && last.contains("1000 ns of CPU"), "{last}");
    assert_eq!(worker.aside().unwrap(), 1);
    drop(worker);
    assert_eq!(outbox(folder.path()).await.aside().unwrap(), 1, "it is kept");
}

#[tokio::test]
async fn a_resize_waits_in_the_outbox_like_any_usage() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new("far", "far", a_minute_ago());
    let more = Requests { cpu_millis: 5_000, memory_bytes: 0 };
    // The gateway can't be reached, and the worker dies.
    let worker = outbox(folder.path()).await;
    worker.container_started(fake.meterable.clone());
    worker.container_resized("far", more).await.unwrap();
    drop(worker);
    let worker = outbox(folder.path()).await;
    worker.container_started(fake.meterable.clone());
    worker.container_exited(fake.meterable.clone(), end(1)).await.unwrap();
    let ledger = open(folder.path());
    let parcel = worker.parcel(BATCH).unwrap().expect("two readings");
    let sent = serde_json::to_value(&parcel.delivery).unwrap();
    for _ in 0..2 {
        ledger.take(serde_json::from_value(sent.clone()).unwrap()).await.unwrap();
    }
    let asked: Vec<_> = spans_of(&ledger).into_iter().map(|(_, _, requests)| requests).collect();
    assert_eq!(asked, [None, Some(more)]);
    ledger.ledger().verify().unwrap();
    // What says another thing than the checkpoint before it is no reading.
    let mut forged = sent;
    forged["records"][1]["container"]["containerId"] = "other".into();
    forged["records"][1]["reading"]["requests"] = serde_json::Value::Null;
    ledger.take(serde_json::from_value(forged).unwrap()).await.unwrap_err();
}

/// A reading as another machine would tell it: of these nanoseconds, with all of the CPU time that a counter can hold.
fn told(id: &str, sequence: u64, (start, end): (i64, i64), cpu: (u64, u64)) -> serde_json::Value {
    let meterable = Fake::new(id, "far", a_minute_ago()).meterable;
    let at = |sequence: u64, at: i64, cpu: u64| serde_json::json!({"next_sequence": sequence, "at_ns": at, "cpu_ns": cpu, "memory_bytes": null, "ended": false});
    serde_json::json!({"records": [{"container": meterable, "before": at(sequence, start, cpu.0),
        "after": at(sequence + 1, end, cpu.1),
        "reading": {"sequence": sequence, "start_ns": start, "end_ns": end, "cpu_ns": cpu.1 - cpu.0,
            "memory_byte_ns": 0, "memory_error_byte_ns": 0}}]})
}

fn delivery(told: serde_json::Value) -> carob_billing::Delivery {
    serde_json::from_value(told).unwrap()
}

fn now_ns() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap()
}

const SECOND: i64 = 1_000_000_000;

#[tokio::test]
async fn a_reading_before_the_last_one_is_refused_and_the_ledger_stays_whole() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path());
    let now = now_ns();
    assert!(ledger.take(delivery(told("a", 0, (now - 5, now), (0, 1)))).await.unwrap().is_empty());
    let refused = ledger.take(delivery(told("a", 1, (now - SECOND, now), (1, 2)))).await.unwrap();
    assert!(refused["a"].contains("before the end of the one before it"), "{refused:?}");
    assert_eq!(ledger.ledger().verify().unwrap(), 1);
    assert!(ledger.take(delivery(told("a", 1, (now, now + 1), (1, 2)))).await.unwrap().is_empty());
    assert_eq!(ledger.ledger().verify().unwrap(), 2);
}

#[tokio::test]
async fn a_reading_from_before_its_pod_or_after_now_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path());
    let (now, created) = (now_ns(), a_minute_ago());
    let ask: carob_billing::Ask = Arc::new(move |claim| {
        Box::pin(async move { Ok(Some(carob_billing::Binding { created: Some(created), ..claim })) })
    });
    for (id, span, why) in [
        ("old", (0, now), "before its pod was made"),
        ("month", (now - 2_592_000 * SECOND, now), "before its pod was made"),
        ("late", (now - SECOND, now + 100_000 * SECOND), "later than now"),
    ] {
        let refused = ledger.take_bound(delivery(told(id, 0, span, (0, 1))), &ask).await.unwrap();
        assert!(refused[id].contains(why), "{refused:?}");
    }
    // What this clock comes to is taken then.
    let early = ledger.take_bound(delivery(told("hour", 0, (now, now + 3_600 * SECOND), (0, 1))), &ask).await;
    assert!(early.unwrap_err().to_string().contains("the node's clock is 3"));
    // Clocks may be a little apart.
    for (id, span) in [("early", (now - 90 * SECOND, now)), ("ahead", (now, now + 30 * SECOND))] {
        assert!(ledger.take_bound(delivery(told(id, 0, span, (0, 1))), &ask).await.unwrap().is_empty());
    }
    assert_eq!(spans_of(&ledger).len(), 2);
}

#[tokio::test]
async fn a_report_makes_no_more_parts_than_rows_and_its_sums_do_not_wrap() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path());
    for id in ["a", "b"] {
        ledger.take(delivery(told(id, 0, (0, now_ns()), (0, u64::MAX)))).await.unwrap();
    }
    assert_eq!(run(&ledger, &query()).total.cpu_nanoseconds, u64::MAX);
    let seconds = Query { step: Some(SignedDuration::from_secs(1)), ..query() };
    let refused = seconds.run(ledger.ledger(), ledger.prices()).unwrap_err();
    assert!(refused.to_string().contains("rows; a larger step"), "{refused}");
}
