//! Gateways come and go, spawners die: pods run on, exits are told, nothing is lost or left.

mod machine;

use carob_sandbox::{ContainerState, Runtime, teardown};
use machine::{Machine, PATIENCE, leftovers, log_text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

#[tokio::test]
async fn containers_outlive_the_gateway_and_their_exits_are_told_to_the_next() {
    let live = Machine::new().start().await;
    let runtime = live.runtime;
    runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let long = live.machine.container("p", &["sleep", "1000"]);
    let short = live.machine.container("p", &["sh", "-c", "sleep 0.2; exit 9"]);
    let (long_id, short_id) = (long.id.clone(), short.id.clone());
    let started = runtime.start_container(long).await.expect("start");
    runtime.start_container(short).await.expect("start");
    let spawner = runtime.spawner_pid();
    // What kill -9 of the gateway does to the spawner: the connection is gone.
    drop(runtime);
    drop(live.exits);
    let record = live.machine.config.dir.join("pods/p").join(short_id.as_str()).join("exit.json");
    until("the end is recorded", || record.exists()).await;

    let (runtime, pods, mut exits) = Runtime::start(live.machine.config.clone()).await.expect("again");
    assert_eq!(runtime.spawner_pid(), spawner);
    let [pod] = pods.as_slice() else { panic!("{pods:?}") };
    assert!(pod.alive && pod.annotations["pod"] == "p" && pod.hostname == "host-p" && !pod.host_network);
    assert_eq!(pod.containers.len(), 2);
    for container in &pod.containers {
        assert_eq!(container.annotations["container"], "c");
        match &container.state {
            ContainerState::Running { pid, .. } => assert_eq!((&container.id, *pid), (&long_id, started.pid)),
            ContainerState::Exited(exit) => assert_eq!((&container.id, exit.code), (&short_id, 9)),
        }
    }
    let exit = exits.recv().await.expect("told again");
    assert_eq!((exit.container, exit.code, exit.unknown), (short_id.clone(), 9, false));
    // It still works: network namespace, exec, signals.
    runtime.pod_network("p").await.expect("namespace");
    runtime.remove_container(&short_id).await.expect("remove");
    runtime.signal(&long_id, libc::SIGKILL).await.expect("kill");
    assert_eq!(exits.recv().await.expect("exit").code, 137);
    runtime.remove_container(&long_id).await.expect("remove");

    // A removed container is not told again.
    drop((runtime, exits));
    let (runtime, pods, mut exits) = Runtime::start(live.machine.config.clone()).await.expect("third");
    assert!(pods[0].containers.is_empty());
    assert!(exits.try_recv().is_err());
    runtime.shutdown().await.expect("shutdown");
    assert_eq!(leftovers(&live.machine.config.instance), Vec::<String>::new());
}

#[tokio::test]
async fn the_newest_gateway_acts_and_the_older_one_notices() {
    let live = Machine::new().start().await;
    let (newer, _, _exits) = Runtime::start(live.machine.config.clone()).await.expect("second");
    newer.create_pod(live.machine.pod("p")).await.expect("pod");
    assert!(live.runtime.create_pod(live.machine.pod("q")).await.is_err());
    newer.shutdown().await.expect("shutdown");
}

#[tokio::test]
async fn what_a_dead_spawner_left_is_killed_and_told_as_unknown() {
    let live = Machine::new().start().await;
    let runtime = live.runtime;
    runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let container = live.machine.container("p", &["sh", "-c", "sleep 1000 & sleep 1000"]);
    let (id, upper) = (container.id.clone(), container.rootfs.upper.clone());
    let started = runtime.start_container(container).await.expect("start");
    let spawner = runtime.spawner_pid();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(spawner), nix::sys::signal::Signal::SIGKILL).expect("kill");
    while runtime.usage(&id).await.is_ok() {}

    let (runtime, pods, mut exits) = Runtime::start(live.machine.config.clone()).await.expect("a new spawner");
    assert_ne!(runtime.spawner_pid(), spawner);
    assert!(!pods[0].alive);
    let exit = exits.recv().await.expect("exit");
    assert_eq!((exit.container, exit.code, exit.unknown), (id.clone(), 137, true));
    assert!(exit.usage.cpu_ns > 0);
    assert!(processes(&started.cgroup.memory).is_empty());
    assert!(runtime.start_container(live.machine.container("p", &["true"])).await.is_err());
    runtime.remove_container(&id).await.expect("remove");
    runtime.remove_pod("p").await.expect("remove");
    assert!(!upper.exists());
    runtime.create_pod(live.machine.pod("p")).await.expect("the same uid again");
    runtime.shutdown().await.expect("shutdown");
    assert_eq!(leftovers(&live.machine.config.instance), Vec::<String>::new());
}

fn processes(cgroup: &std::path::Path) -> String {
    std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default()
}

#[tokio::test]
async fn who_replaces_a_spawner_gives_its_containers_grace_and_hears_of_their_ends() {
    let live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let polite = live.machine.container("p", &["sh", "-c", "trap 'exit 7' TERM; touch /tmp/ready; sleep 1000 & wait"]);
    let deaf = live.machine.container("p", &["sleep", "1000"]);
    let (polite_id, deaf_id, ready) = (polite.id.clone(), deaf.id.clone(), polite.rootfs.upper.join("upper/tmp/ready"));
    live.runtime.start_container(polite).await.expect("start");
    live.runtime.start_container(deaf).await.expect("start");
    until("it listens", || ready.exists()).await;
    drop((live.runtime, live.exits));

    let replaced = Runtime::replace(live.machine.config.clone(), Duration::from_secs(1)).await;
    let (runtime, pods, mut exits) = replaced.expect("another spawner");
    assert_eq!(pods[0].containers.len(), 2);
    let mut ends = [exits.recv().await.expect("exit"), exits.recv().await.expect("exit")];
    ends.sort_by_key(|exit| exit.code);
    assert_eq!((&ends[0].container, ends[0].code, ends[0].unknown), (&polite_id, 7, false));
    assert_eq!((&ends[1].container, ends[1].code, ends[1].unknown), (&deaf_id, 137, true));
    assert!(ends.iter().all(|exit| exit.usage.cpu_ns > 0));
    runtime.shutdown().await.expect("shutdown");
    assert_eq!(leftovers(&live.machine.config.instance), Vec::<String>::new());
}

#[tokio::test]
async fn a_teardown_removes_all_with_a_living_and_with_a_dead_spawner() {
    for dead in [false, true] {
        let live = Machine::new().start().await;
        live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
        live.runtime.start_container(live.machine.container("p", &["sleep", "1000"])).await.expect("start");
        if dead {
            let spawner = nix::unistd::Pid::from_raw(live.runtime.spawner_pid());
            nix::sys::signal::kill(spawner, nix::sys::signal::Signal::SIGKILL).expect("kill");
        }
        drop(live.runtime);
        teardown(live.machine.config.clone()).await.expect("teardown");
        assert_eq!(leftovers(&live.machine.config.instance), Vec::<String>::new());
        assert!(!live.machine.config.dir.join("pods").exists());
        teardown(live.machine.config.clone()).await.expect("nothing there is no error");
    }
}

#[tokio::test]
async fn removing_a_pod_ends_all_that_is_in_it() {
    let live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let container = live.machine.container("p", &["sh", "-c", "sleep 1000 & sleep 1000"]);
    let upper = container.rootfs.upper.clone();
    let started = live.runtime.start_container(container).await.expect("start");
    live.runtime.remove_pod("p").await.expect("remove");
    assert!(!started.cgroup.memory.exists() && !upper.exists());
    live.runtime.remove_pod("p").await.expect("again is no error");
    live.end().await;
}

/// The spawner's log pump.
fn pump(spawner: i32) -> Option<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{spawner}/task/{spawner}/children")).expect("children");
    let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let pid = children.split_whitespace().find(|pid| name(pid) == "carob-logs\n")?;
    Some(Pid::from_raw(pid.parse().expect("a number")))
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_new_log_pump_reads_on_where_the_dead_one_stopped() {
    let mut live = Machine::new().start().await;
    let spawner = live.runtime.spawner_pid();
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let script = "i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); echo $i; done; echo last $i";
    let container = live.machine.container("p", &["sh", "-c", script]);
    let (id, log) = (container.id.clone(), container.log_path.clone());
    let mut terminal =
        live.machine.container("p", &["sh", "-c", "while [ ! -e /tmp/stop ]; do sleep 0.01; done; echo bye"]);
    terminal.tty = true;
    let (with_terminal, terminal_log) = (terminal.id.clone(), terminal.log_path.clone());
    live.runtime.start_container(container).await.expect("start");
    live.runtime.start_container(terminal).await.expect("start");
    for _ in 0..3 {
        let length = || std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let before = length();
        until("the log grows", || length() > before + 10_000).await;
        let old = pump(spawner).expect("a pump");
        kill(old, Signal::SIGKILL).expect("kill");
        until("another pump", || pump(spawner).is_some_and(|new| new != old)).await;
    }
    for container in [&id, &with_terminal] {
        let exec = carob_sandbox::ExecConfig {
            argv: ["touch", "/tmp/stop"].map(str::to_owned).to_vec(),
            ..carob_sandbox::ExecConfig::default()
        };
        let process = live.runtime.exec(container, exec).await.expect("exec");
        // Its own end may be the container's, which it brings about.
        process.exit.await.expect("exit");
        let exit = live.exit().await;
        assert_eq!((&exit.container, exit.code, exit.signal), (container, 0, None), "nobody got a SIGPIPE");
    }
    assert_eq!(log_text(&terminal_log), "bye\n");
    let text = log_text(&log);
    let numbers: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let last: u64 =
        text.lines().last().and_then(|line| line.strip_prefix("last ")?.parse().ok()).expect("the last line");
    assert_eq!(numbers.last(), Some(&last));
    // What a dead pump had read: a turn's bytes at most, three times.
    let missing = last - u64::try_from(numbers.len()).expect("count");
    assert!(missing < 3 * 64 * 1024 / 2, "{missing} of {last} lines are lost");
    live.end().await;
}

#[tokio::test]
async fn an_end_is_recorded_and_told_although_the_log_pump_hangs_and_the_log_is_whole_later() {
    let mut live = Machine::new().start().await;
    let spawner = live.runtime.spawner_pid();
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let hung = pump(spawner).expect("a pump");
    kill(hung, Signal::SIGSTOP).expect("stop");
    let container = live.machine.container("p", &["sh", "-c", "echo said; exit 7"]);
    let (id, log) = (container.id.clone(), container.log_path.clone());
    live.runtime.start_container(container).await.expect("start");
    let record = live.machine.config.dir.join("pods/p").join(id.as_str()).join("exit.json");
    until("the end is recorded", || record.exists()).await;
    let exit = live.exit().await;
    assert_eq!((exit.container, exit.code), (id.clone(), 7));
    assert!(!log.exists());
    kill(hung, Signal::SIGCONT).expect("continue");
    until("the log is written", || log.exists() && log_text(&log) == "said\n").await;
    live.runtime.remove_container(&id).await.expect("remove");
    live.end().await;
}

#[tokio::test]
async fn what_is_recorded_on_disk_holds_no_environment_and_exec_has_it_still() {
    let live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let mut container = live.machine.container("p", &["sleep", "1000"]);
    container.env.push(("PASSWORD".to_owned(), "hunter2".to_owned()));
    let id = container.id.clone();
    live.runtime.start_container(container).await.expect("start");
    let record = live.machine.config.dir.join("pods/p").join(id.as_str()).join("container.json");
    assert!(!std::fs::read_to_string(record).expect("record").contains("hunter2"));
    let exec = carob_sandbox::ExecConfig {
        argv: ["sh", "-c", "test \"$PASSWORD\" = hunter2"].map(str::to_owned).to_vec(),
        ..carob_sandbox::ExecConfig::default()
    };
    assert_eq!(live.runtime.exec(&id, exec).await.expect("exec").exit.await.expect("exit"), 0);
    live.end().await;
}
