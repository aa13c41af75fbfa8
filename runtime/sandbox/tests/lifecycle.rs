//! Containers from start to end on the real kernel: exit codes, signals, logs, limits, mounts.

mod machine;

use carob_sandbox::{Error, Limits, Mount, MountKind, PodConfig, Propagation, Rlimit, User};
use machine::{Machine, PATIENCE, log_text, show};
use std::fs;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

fn bind(source: &std::path::Path, destination: &str, read_only: bool) -> Mount {
    Mount {
        source: source.to_owned(),
        source_fd: None,
        in_pod: false,
        recursive: false,
        destination: destination.to_owned(),
        read_only,
        propagation: Propagation::Private,
        kind: MountKind::Bind,
    }
}

#[tokio::test]
async fn a_program_runs_ends_and_its_log_is_complete_before_its_exit_is_told() {
    let mut live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let container = live.machine.container("p", &["sh", "-c", "echo hello; echo problem >&2; hostname; exit 7"]);
    let (id, log, upper) = (container.id.clone(), container.log_path.clone(), container.rootfs.upper.clone());
    let started = live.runtime.start_container(container).await.expect("start");
    println!("{}", show(&started));
    let exit = live.exit().await;
    assert_eq!((exit.container, exit.code, exit.signal), (id.clone(), 7, None));
    let text = log_text(&log);
    assert!(text.contains("hello\n") && text.contains("problem\n") && text.contains("host-p\n"), "{text}");
    assert!(exit.usage.cpu_ns > 0 && exit.usage.memory_peak_bytes > 0);
    assert!(exit.finished_at >= exit.started_at);
    assert!(started.cgroup.cpuacct.exists(), "the cgroup stays until the removal");
    live.runtime.remove_container(&id).await.expect("remove");
    assert!(!started.cgroup.cpuacct.exists() && !upper.exists());
    live.runtime.remove_pod("p").await.expect("remove");
    live.end().await;
}

#[tokio::test]
async fn a_command_that_is_not_there_is_named_and_nothing_is_left() {
    let live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    fs::write(live.machine.root.join("bin/junk"), "junk").expect("file");
    fs::set_permissions(live.machine.root.join("bin/junk"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("mode");
    for (command, expected) in [
        ("nonsense", r#"exec: "nonsense": executable file not found in $PATH"#),
        ("/no/where", r#"exec: "/no/where": stat /no/where: no such file or directory"#),
        ("/etc/passwd", r#"exec: "/etc/passwd": permission denied"#),
        ("junk", r#"exec: "junk": exec format error"#),
    ] {
        let container = live.machine.container("p", &[command]);
        let upper = container.rootfs.upper.clone();
        match live.runtime.start_container(container).await {
            Err(Error::Start { message, exit_code }) => assert_eq!((message.as_str(), exit_code), (expected, 128)),
            other => panic!("{other:?}"),
        }
        assert!(!upper.exists());
    }
    live.end().await;
}

#[tokio::test]
async fn a_signal_reaches_the_program_and_its_number_is_in_the_exit_code() {
    let mut live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let ready = |log: std::path::PathBuf| async move {
        while !fs::read_to_string(&log).is_ok_and(|text| text.contains("ready")) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    // Init of its PID namespace: it gets the signals it handles.
    let container =
        live.machine.container("p", &["sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done"]);
    let (id, log) = (container.id.clone(), container.log_path.clone());
    live.runtime.start_container(container).await.expect("start");
    ready(log).await;
    live.runtime.signal(&id, libc::SIGTERM).await.expect("signal");
    let exit = live.exit().await;
    assert_eq!((exit.code, exit.signal), (3, None));
    live.runtime.signal(&id, libc::SIGKILL).await.expect("signalling the dead is no error");

    let container = live.machine.container("p", &["sh", "-c", "sleep 1000 & echo ready; sleep 1000"]);
    let (id, log) = (container.id.clone(), container.log_path.clone());
    live.runtime.start_container(container).await.expect("start");
    ready(log).await;
    live.runtime.signal(&id, libc::SIGKILL).await.expect("signal");
    let exit = live.exit().await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
    live.end().await;
}

#[tokio::test]
async fn running_out_of_memory_is_told_as_such() {
    let mut live = Machine::new().start().await;
    let limits = Limits { memory_bytes: Some(32 << 20), ..Limits::default() };
    let (exit, _) =
        live.script("exec tail -c 200000000 /dev/zero", |_, container| container.limits = limits.clone()).await;
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    assert!(exit.usage.memory_peak_bytes > 30 << 20);
    // The pod's limit counts for its containers together.
    let (exit, _) = live.script("exec tail -c 200000000 /dev/zero", |pod, _| pod.limits = limits).await;
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    live.end().await;
}

#[tokio::test]
async fn limits_are_in_the_kernel_and_can_be_changed() {
    let mut live = Machine::new().start().await;
    let (exit, text) = live
        .script("i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i+1)); done", |_, container| {
            container.limits.pids = Some(10);
        })
        .await;
    assert_ne!(exit.code, 0, "{text}");
    assert!(text.contains("fork"), "{text}");

    // A tenth of a CPU: half a second of work takes much longer.
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let mut container = live.machine.container("p", &["sh", "-c", "while :; do :; done"]);
    container.limits =
        Limits { cpu_quota_us: Some(10_000), cpu_period_us: Some(100_000), cpu_shares: Some(128), ..Limits::default() };
    let id = container.id.clone();
    live.runtime.start_container(container).await.expect("start");
    let begun = Instant::now();
    let before = live.runtime.usage(&id).await.expect("usage");
    tokio::time::sleep(Duration::from_millis(700)).await;
    let after = live.runtime.usage(&id).await.expect("usage");
    let used = Duration::from_nanos(after.cpu_ns - before.cpu_ns);
    assert!(used * 4 < begun.elapsed(), "{used:?}");

    // A hundredth of a CPU and little memory, for it and for its pod: making the container isn't slowed by that, nor on
    // its bill. Set-up is tens of milliseconds of CPU here, so under that limit it would take seconds.
    let plain = live.machine.container("p", &["sleep", "1000"]);
    let plain_id = plain.id.clone();
    let begun = Instant::now();
    live.runtime.start_container(plain).await.expect("start");
    let unlimited = begun.elapsed();
    let mut tiny = live.machine.container("tiny", &["sleep", "1000"]);
    tiny.limits = Limits {
        cpu_quota_us: Some(1_000),
        cpu_period_us: Some(100_000),
        memory_bytes: Some(1 << 20),
        ..Limits::default()
    };
    let pod = PodConfig { limits: tiny.limits.clone(), ..live.machine.pod("tiny") };
    live.runtime.create_pod(pod).await.expect("pod");
    let begun = Instant::now();
    let tiny_id = tiny.id.clone();
    live.runtime.start_container(tiny).await.expect("start");
    let limited = begun.elapsed();
    let own = Duration::from_nanos(live.runtime.usage(&tiny_id).await.expect("usage").cpu_ns);
    // On an emulated machine everything takes longer, also the `execve` that is the container's own.
    assert!(own < Duration::from_millis(10).max(unlimited / 2), "{own:?}");
    let slowed = limited.saturating_sub(own * 100);
    assert!(slowed < unlimited * 4 + Duration::from_millis(500), "{limited:?}, without limits {unlimited:?}");
    live.runtime.signal(&plain_id, libc::SIGKILL).await.expect("signal");
    live.exit().await;
    live.runtime.signal(&tiny_id, libc::SIGKILL).await.expect("signal");
    live.exit().await;
    live.runtime
        .update_limits(&id, Limits { memory_bytes: Some(64 << 20), ..Limits::default() })
        .await
        .expect("update");
    live.runtime.signal(&id, libc::SIGKILL).await.expect("signal");
    live.exit().await;
    live.end().await;
}

#[tokio::test]
async fn huge_pages_are_limited_where_the_kernel_counts_them() {
    if !carob_sandbox::has_controller("hugetlb") {
        eprintln!("no cgroup limits huge pages here");
        return;
    }
    let mut live = Machine::new().start().await;
    let look = "cat $(find /sys/fs/cgroup -name hugetlb.2MB.max -o -name hugetlb.2MB.limit_in_bytes)";
    let limits = |bytes| Limits { huge_pages: vec![("2MB".to_owned(), bytes)], ..Limits::default() };
    let (_, text) = live
        .script(look, |pod, container| {
            pod.limits = limits(8 << 20);
            container.limits = limits(4 << 20);
        })
        .await;
    assert_eq!(text, format!("{}\n", 4 << 20));
    live.end().await;
}

#[tokio::test]
async fn volumes_are_where_they_belong_and_read_only_where_asked() {
    let mut live = Machine::new().start().await;
    let volume = live.machine.path().join("volume");
    fs::create_dir_all(volume.join("sub")).expect("volume");
    fs::write(volume.join("file"), "content").expect("file");
    fs::write(volume.join("sub/inner"), "inner").expect("file");
    let sub = fs::File::open(volume.join("sub")).expect("open").into();
    // The image's own link must not lead a mount out of the root.
    std::os::unix::fs::symlink("/../../../../tmp", live.machine.root.join("link")).expect("link");
    let (exit, text) = live
        .script(
            "cat /v/file; echo; cat /deep/path/f; echo; cat /sub/inner; echo
             echo new > /v/new; echo no 2>/dev/null > /ro/x || echo read-only; df /t | tail -1; cat /link/escaped/f/file; ls -d /tmp/escaped/f",
            |_, container| {
                let mut by_fd = bind(std::path::Path::new("/nonexistent"), "/sub", true);
                by_fd.source_fd = Some(sub);
                container.mounts = vec![
                    bind(&volume, "/v", false),
                    bind(&volume.join("file"), "/deep/path/f", true),
                    by_fd,
                    bind(&volume, "/ro", true),
                    bind(&volume, "/link/escaped/f", true),
                    Mount { kind: MountKind::Tmpfs { size: Some(1 << 20) }, ..bind(std::path::Path::new(""), "/t", false) },
                ];
            },
        )
        .await;
    assert_eq!(exit.code, 0, "{text}");
    assert!(text.starts_with("content\ncontent\ninner\nread-only\ntmpfs"), "{text}");
    assert!(text.contains(" 1024 "), "{text}");
    assert!(text.ends_with("content/tmp/escaped/f\n"), "{text}");
    assert!(!std::path::Path::new("/tmp/escaped").exists());
    assert_eq!(fs::read_to_string(volume.join("new")).expect("written"), "new\n");
    live.end().await;
}

#[tokio::test]
async fn memory_volumes_and_shm_are_shared_in_the_pod_and_not_on_the_host() {
    let mut live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let place = live.machine.path().join("memory");
    let root = live.runtime.mount_tmpfs("p", &place, Some(1 << 20)).await.expect("tmpfs");
    fs::write(format!("/proc/self/fd/{}/from-host", root.as_raw_fd()), "host").expect("through the descriptor");
    assert_eq!(fs::read_dir(&place).expect("place").count(), 0);
    let mut writer = live.machine.container("p", &["sh", "-c", "cat /m/from-host; echo x > /dev/shm/s; echo y > /m/t"]);
    writer.mounts = vec![bind(&place, "/m", false)];
    let (_, text) = live.run(writer).await;
    assert_eq!(text, "host");
    let mut reader = live.machine.container("p", &["sh", "-c", "cat /dev/shm/s /m/t; readlink /proc/self/ns/ipc"]);
    reader.mounts = vec![bind(&place, "/m", false)];
    let (_, text) = live.run(reader).await;
    assert!(text.starts_with("x\ny\n"), "{text}");
    let host = fs::read_link("/proc/self/ns/ipc").expect("namespace");
    assert!(!text.contains(host.to_str().expect("text")));
    live.end().await;
}

#[tokio::test]
async fn a_part_of_a_memory_volume_is_mounted_by_its_descriptor() {
    let mut live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let place = live.machine.path().join("memory");
    let root = live.runtime.mount_tmpfs("p", &place, None).await.expect("tmpfs");
    let inside = format!("/proc/self/fd/{}/part", root.as_raw_fd());
    fs::create_dir(&inside).expect("directory");
    fs::write(format!("{inside}/file"), "content").expect("file");
    let part = fs::File::open(&inside).expect("part");
    let mut container = live.machine.container("p", &["sh", "-c", "cat /part/file; ls /part | wc -l"]);
    container.mounts = vec![Mount { source_fd: Some(part.into()), in_pod: true, ..bind(&place, "/part", true) }];
    let (exit, text) = live.run(container).await;
    assert_eq!((exit.code, text.as_str()), (0, "content1\n"));
    live.end().await;
}

#[tokio::test]
async fn a_mount_on_an_images_link_that_leads_nowhere_goes_where_it_leads_inside_the_root() {
    let mut live = Machine::new().start().await;
    for (target, link) in [("../run/systemd/stub.conf", "etc/resolv.conf"), ("/../../../../tmp/away", "volume")] {
        std::os::unix::fs::symlink(target, live.machine.root.join(link)).expect("link");
    }
    let volume = live.machine.path().join("v");
    fs::create_dir(&volume).expect("volume");
    fs::write(volume.join("f"), "content").expect("file");
    let (exit, text) = live
        .script("cat /etc/resolv.conf /volume/f /run/systemd/stub.conf; readlink /volume", |_, container| {
            container.mounts =
                vec![bind(&volume.join("f"), "/etc/resolv.conf", false), bind(&volume, "/volume", false)];
        })
        .await;
    assert_eq!(exit.code, 0, "{text}");
    assert_eq!(text, "contentcontentcontent/../../../../tmp/away\n");
    assert!(!std::path::Path::new("/tmp/away").exists());
    assert!(!live.machine.root.join("run").exists(), "the image's own layers stay as they are");
    live.end().await;
}

#[tokio::test]
async fn user_directory_environment_and_limits_of_the_process_are_the_configured_ones() {
    let mut live = Machine::new().start().await;
    let (exit, text) = live
        .script(
            "id; env; grep 'open files' /proc/self/limits; pwd; touch /x 2>/dev/null || echo denied",
            |_, container| {
                container.user = User { uid: 1000, gid: 1000, groups: vec![2000] };
                container.cwd = "/made/on/demand".to_owned();
                container.env.push(("A".to_owned(), "1".to_owned()));
                container.env.push(("A".to_owned(), "2=3".to_owned()));
                container.rlimits = vec![Rlimit { kind: "RLIMIT_NOFILE".to_owned(), soft: 100, hard: 200 }];
            },
        )
        .await;
    assert_eq!(exit.code, 0);
    assert!(text.contains("uid=1000") && text.contains("gid=1000") && text.contains("groups=2000"), "{text}");
    assert!(text.contains("A=2=3\n") && !text.contains("A=1\n") && text.contains("HOME=/home/user\n"), "{text}");
    assert!(!text.contains("CAROB") && !text.contains("CARGO"), "nothing of ours: {text}");
    assert!(text.contains("100                  200"), "{text}");
    assert!(text.contains("/made/on/demand\ndenied\n"), "{text}");
    live.end().await;
}

#[tokio::test]
async fn a_read_only_root_cannot_be_written() {
    let mut live = Machine::new().start().await;
    let (_, text) = live
        .script("touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo shm", |_, container| {
            container.rootfs.read_only = true;
        })
        .await;
    assert_eq!(text, "refused\nshm\n");
    live.end().await;
}

#[tokio::test]
async fn many_layers_are_stacked_topmost_first() {
    let mut live = Machine::new().start().await;
    let mut layers = Vec::new();
    for number in 0..120 {
        let layer =
            live.machine.path().join("a-rather-long-directory-name-as-digests-make-them").join(number.to_string());
        fs::create_dir_all(&layer).expect("layer");
        fs::write(layer.join("number"), number.to_string()).expect("file");
        fs::write(layer.join(format!("only-{number}")), "").expect("file");
        layers.push(layer);
    }
    let (_, text) = live
        .script("cat number; ls | grep -c only-", |_, container| {
            container.rootfs.lower.splice(0..0, layers).for_each(drop);
        })
        .await;
    assert_eq!(text, "0120\n");
    live.end().await;
}

#[tokio::test]
async fn containers_that_share_processes_see_each_other_and_are_told_apart_in_the_end() {
    let mut live = Machine::new().start().await;
    let mut pod = live.machine.pod("p");
    pod.share_pid = true;
    live.runtime.create_pod(pod).await.expect("pod");
    let first = live.machine.container("p", &["sh", "-c", "sleep 1111 & sleep 2222"]);
    let id = first.id.clone();
    live.runtime.start_container(first).await.expect("start");
    let (exit, text) = live.run(live.machine.container("p", &["sh", "-c", "ps; exit 4"])).await;
    assert_eq!(exit.code, 4);
    assert!(text.contains("sleep 2222") && text.contains("/pause"), "{text}");
    live.runtime.signal(&id, libc::SIGKILL).await.expect("kill");
    assert_eq!(live.exit().await.code, 137);
    live.end().await;
}

#[tokio::test]
async fn the_first_of_shared_processes_shows_nothing_of_the_spawner_or_the_host() {
    let mut live = Machine::new().start().await;
    let mut pod = live.machine.pod("p");
    pod.share_pid = true;
    live.runtime.create_pod(pod).await.expect("pod");
    // As much as a container can be allowed to look.
    let script = "tr '\\0' '|' < /proc/1/cmdline; echo; cat /proc/1/comm; readlink /proc/1/exe; readlink /proc/1/cwd
        ls /proc/1/root; echo fds $(ls /proc/1/fd | wc -l) environ $(wc -c < /proc/1/environ); cat /proc/1/maps
        wc -l < /proc/1/mountinfo; grep -c . /proc/1/net/dev; grep -E 'Uid|CapEff|NoNewPrivs' /proc/1/status
        (sh -c 'sleep 0.1 &'); sleep 0.3; ps | grep -c Z; kill -9 1; kill -CHLD 1; sleep 0.1; ls -d /proc/1";
    let mut container = live.machine.container("p", &["sh", "-c", script]);
    container.privileged = true;
    let (exit, text) = live.run(container).await;
    assert_eq!(exit.code, 0, "{text}");
    assert!(text.starts_with("/pause|\npause\n/pause\n/\npause\nfds 0 environ 0\n"), "{text}");
    let maps: Vec<&str> = text.lines().filter(|line| line.contains("-p ") || line.contains("xp ")).collect();
    assert!(maps.iter().all(|map| map.ends_with("/pause") || map.ends_with(']')), "{text}");
    assert!(text.contains("\n1\n3\nUid:\t65535\t65535\t65535\t65535\nCapEff:\t0000000000000000\n"), "{text}");
    // The grep itself is the only line that may show a Z.
    assert!(text.ends_with("/proc/1\n") && !text.contains("[sleep]"), "{text}");

    // Nobody of the same user gets to look.
    let script =
        "for f in exe cwd root; do readlink /proc/1/$f || echo refused; done; cat /proc/1/environ || echo refused";
    let mut container = live.machine.container("p", &["sh", "-c", script]);
    container.user = User { uid: 65535, gid: 65535, groups: vec![] };
    let (_, text) = live.run(container).await;
    assert_eq!(text.matches("refused").count(), 4, "{text}");
    live.end().await;
}

#[tokio::test]
async fn what_a_container_leaves_behind_among_shared_processes_is_gone_and_billed_when_its_end_is_told() {
    let mut live = Machine::new().start().await;
    let mut pod = live.machine.pod("p");
    pod.share_pid = true;
    live.runtime.create_pod(pod).await.expect("pod");
    let burners = "i=0; while [ $i -lt 40 ]; do (while :; do :; done) & i=$((i+1)); done; exit 3";
    let container = live.machine.container("p", &["sh", "-c", burners]);
    let id = container.id.clone();
    let started = live.runtime.start_container(container).await.expect("start");
    let exit = live.exit().await;
    assert_eq!(exit.code, 3);
    let left = fs::read_to_string(started.cgroup.cpuacct.join("cgroup.procs")).expect("processes");
    assert_eq!(left, "");
    let later = live.runtime.usage(&id).await.expect("usage").cpu_ns;
    assert!(later - exit.usage.cpu_ns < 5_000_000, "told {}, then {later}", exit.usage.cpu_ns);
    live.end().await;
}

#[tokio::test]
async fn an_end_is_told_although_a_neighbour_holds_the_output_and_floods_it() {
    let mut live = Machine::new().start().await;
    let mut pod = live.machine.pod("p");
    pod.share_pid = true;
    live.runtime.create_pod(pod).await.expect("pod");
    let victim = live.machine.container("p", &["sh", "-c", "echo ready; sleep 1234"]);
    let (id, log) = (victim.id.clone(), victim.log_path.clone());
    live.runtime.start_container(victim).await.expect("start");
    let flood = "for p in /proc/[0-9]*; do grep -q 1234 $p/cmdline && [ $p != /proc/$$ ] && exec yes > $p/fd/1; done";
    let neighbour = live.machine.container("p", &["sh", "-c", flood]);
    let other = neighbour.id.clone();
    live.runtime.start_container(neighbour).await.expect("start");
    let begun = Instant::now();
    while !fs::metadata(&log).is_ok_and(|metadata| metadata.len() > 100_000) {
        assert!(begun.elapsed() < PATIENCE, "the neighbour writes nothing");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    live.runtime.signal(&id, libc::SIGKILL).await.expect("kill");
    let mut ends = [live.exit().await, live.exit().await].map(|exit| (exit.container, exit.signal));
    ends.sort_by_key(|(end, _)| *end != id);
    assert_eq!(ends, [(id, Some(libc::SIGKILL)), (other, Some(libc::SIGPIPE))]);
    live.end().await;
}

#[tokio::test]
async fn a_flood_is_logged_without_loss_and_rotated() {
    let mut live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    // 32 MB in lines of 64 bytes.
    let container = live.machine.container(
        "p",
        &["sh", "-c", "yes 123456789012345678901234567890123456789012345678901234567890123 | head -n 300000; echo end"],
    );
    let log = container.log_path.clone();
    let (_, text) = live.run(container).await;
    assert!(text.ends_with("end\n"));
    let mut lines = 0;
    let mut files = 0;
    for entry in fs::read_dir(log.parent().expect("directory")).expect("logs") {
        let path = entry.expect("entry").path();
        files += 1;
        lines += fs::read_to_string(path).expect("log").lines().count();
    }
    assert_eq!((lines, files), (300_001, 3));
    live.end().await;
}

#[tokio::test]
async fn a_terminal_is_logged_and_can_be_typed_into() {
    use std::io::Write;
    let mut live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let mut container = live.machine.container("p", &["sh", "-c", "tty; read line; echo got $line"]);
    container.tty = true;
    let (id, log) = (container.id.clone(), container.log_path.clone());
    live.runtime.start_container(container).await.expect("start");
    let master = live.runtime.attach_stdin(&id).await.expect("terminal");
    fs::File::from(master).write_all(b"words\n").expect("type");
    assert_eq!(live.exit().await.code, 0);
    let text = log_text(&log);
    assert!(text.contains("/dev/pts/0") && text.contains("got words"), "{text}");
    live.end().await;
}

#[tokio::test]
async fn standard_input_stays_open_until_it_is_closed() {
    use std::io::Write;
    let mut live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let mut container = live.machine.container("p", &["cat"]);
    container.stdin = true;
    let (id, log) = (container.id.clone(), container.log_path.clone());
    live.runtime.start_container(container).await.expect("start");
    let mut stdin = fs::File::from(live.runtime.attach_stdin(&id).await.expect("stdin"));
    stdin.write_all(b"first\n").expect("write");
    drop(stdin);
    let mut stdin = fs::File::from(live.runtime.attach_stdin(&id).await.expect("again"));
    stdin.write_all(b"second\n").expect("write");
    live.runtime.close_stdin(&id).await.expect("close");
    drop(stdin);
    assert_eq!(live.exit().await.code, 0);
    assert_eq!(log_text(&log), "first\nsecond\n");
    live.end().await;
}
