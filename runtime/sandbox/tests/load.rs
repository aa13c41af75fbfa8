//! Many containers at once and one after the other: how long each stage takes (printed), and that nothing stays.

mod machine;

use carob_sandbox::ExecConfig;
use machine::{Live, Machine, PATIENCE, leftovers};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").count()
}

fn memory_kib(pid: i32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps");
    let line = text.lines().find(|line| line.starts_with(field)).expect("field");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("number")
}

fn median(values: &mut [Duration]) -> Duration {
    values.sort();
    values[values.len() / 2]
}

async fn start_one(live: &Live, number: usize) -> (carob_sandbox::ContainerId, Vec<(&'static str, Duration)>) {
    let uid = format!("pod-{number}");
    live.runtime.create_pod(live.machine.pod(&uid)).await.expect("pod");
    let container = live.machine.container(&uid, &["sleep", "1000"]);
    let id = container.id.clone();
    let started = live.runtime.start_container(container).await.expect("start");
    (id, started.stages)
}

#[tokio::test]
async fn starts_in_a_row_and_eight_at_a_time_leave_nothing_behind() {
    const ROW: usize = 24;
    const PARALLEL: usize = 8;
    const ROUNDS: usize = 6;
    let mut live = Machine::new().start().await;
    let spawner = live.runtime.spawner_pid();
    start_one(&live, 9999).await;
    live.runtime.remove_pod("pod-9999").await.expect("remove");
    tokio::time::sleep(Duration::from_millis(20)).await;
    let before = descriptors(spawner);

    let mut whole = Vec::new();
    let mut stages: BTreeMap<&'static str, Vec<Duration>> = BTreeMap::new();
    let mut ids = Vec::new();
    for number in 0..ROW {
        let pod = live.machine.pod(&format!("pod-{number}"));
        let container = live.machine.container(&format!("pod-{number}"), &["sleep", "1000"]);
        ids.push(container.id.clone());
        let begun = Instant::now();
        live.runtime.create_pod(pod).await.expect("pod");
        stages.entry("(create_pod)").or_default().push(begun.elapsed());
        let started = live.runtime.start_container(container).await.expect("start");
        whole.push(begun.elapsed());
        for (name, took) in started.stages {
            stages.entry(name).or_default().push(took);
        }
    }
    print!("one at a time: p50 {:?}", median(&mut whole));
    for (name, values) in &mut stages {
        print!(", {name} {:?}", median(values));
    }
    println!();
    println!("{ROW} pods: spawner PSS {} KiB, {} descriptors", memory_kib(spawner, "Pss:"), descriptors(spawner));

    let mut execs = Vec::new();
    for _ in 0..ROW {
        let exec = ExecConfig { argv: vec!["true".to_owned()], ..ExecConfig::default() };
        let begun = Instant::now();
        let process = live.runtime.exec(&ids[0], exec).await.expect("exec");
        assert_eq!(process.exit.await.expect("exit"), 0);
        execs.push(begun.elapsed());
    }
    println!("exec of true, to its exit: p50 {:?}", median(&mut execs));

    let mut number = 1000;
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        let starts = (0..PARALLEL).map(|offset| start_one(&live, number + offset));
        ids.extend(join_all(starts).await.into_iter().map(|(id, _)| id));
        number += PARALLEL;
    }
    let total = ROUNDS * PARALLEL;
    println!("{PARALLEL} at a time: {:?} a pod", begun.elapsed() / u32::try_from(total).expect("few"));

    for id in &ids {
        live.runtime.signal(id, libc::SIGKILL).await.expect("kill");
    }
    for _ in &ids {
        assert_eq!(live.exit().await.code, 137);
    }
    let begun = Instant::now();
    for number in (0..ROW).chain(1000..1000 + total) {
        live.runtime.remove_pod(&format!("pod-{number}")).await.expect("remove");
    }
    println!("removal: {:?} a pod", begun.elapsed() / u32::try_from(ROW + total).expect("few"));
    // The last job's descriptor goes just after its answer.
    let deadline = Instant::now() + PATIENCE;
    while descriptors(spawner) != before {
        assert!(Instant::now() < deadline, "{} descriptors, {before} before", descriptors(spawner));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let instance = live.machine.config.instance.clone();
    live.end().await;
    assert_eq!(leftovers(&instance), Vec::<String>::new());
}

async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = futures.map(Box::pin).map(Some).collect();
    let mut done: Vec<Option<T>> = pending.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (slot, result) in pending.iter_mut().zip(&mut done) {
            if let Some(future) = slot
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *result = Some(value);
                *slot = None;
            }
        }
        if pending.iter().all(Option::is_none) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}
