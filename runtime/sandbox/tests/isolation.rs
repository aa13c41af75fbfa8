//! What a container can and cannot do: capabilities, filter, devices, masked paths, descriptors.

mod machine;

use carob_sandbox::{Error, ExecConfig, PathMasks, PodConfig, Seccomp, User, UserRange};
use machine::Machine;
use std::fs;
use std::io::Read;

/// containerd's default set as the kernel prints it.
const DEFAULT_CAPABILITIES: &str = "00000000a80425fb";

#[tokio::test]
async fn capabilities_are_exactly_the_given_ones_and_none_is_inheritable() {
    let mut live = Machine::new().start().await;
    let (_, text) = live.script("grep Cap /proc/self/status", |_, _| {}).await;
    for (set, value) in [
        ("CapInh", "0000000000000000"),
        ("CapPrm", DEFAULT_CAPABILITIES),
        ("CapEff", DEFAULT_CAPABILITIES),
        ("CapBnd", DEFAULT_CAPABILITIES),
        ("CapAmb", "0000000000000000"),
    ] {
        assert!(text.contains(&format!("{set}:\t{value}\n")), "{set}: {text}");
    }
    // A user other than root has none, but the bound of what a set-user-id program may get stays.
    let (_, text) = live
        .script("grep Cap /proc/self/status", |_, container| {
            container.user = User { uid: 1000, gid: 1000, groups: vec![] };
        })
        .await;
    assert!(
        text.contains("CapEff:\t0000000000000000\n") && text.contains(&format!("CapBnd:\t{DEFAULT_CAPABILITIES}\n"))
    );
    let (_, text) = live.script("grep Cap /proc/self/status", |_, container| container.capabilities.clear()).await;
    assert!(text.contains("CapBnd:\t0000000000000000\n"), "{text}");
    live.end().await;
}

#[tokio::test]
async fn the_filter_is_there_with_and_without_privilege_escalation_and_for_exec_too() {
    let mut live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    for no_new_privs in [false, true] {
        let mut container = live
            .machine
            .container("p", &["sh", "-c", "grep -E 'Seccomp:|NoNewPrivs' /proc/self/status; exec sleep 1000"]);
        container.no_new_privs = no_new_privs;
        let (id, log) = (container.id.clone(), container.log_path.clone());
        live.runtime.start_container(container).await.expect("start");
        let exec = ExecConfig {
            argv: [
                "sh",
                "-c",
                "grep -E 'Seccomp:|NoNewPrivs|CapEff' /proc/self/status; unshare -m true || echo refused",
            ]
            .map(str::to_owned)
            .to_vec(),
            ..ExecConfig::default()
        };
        let process = live.runtime.exec(&id, exec).await.expect("exec");
        let mut text = String::new();
        fs::File::from(process.stdout.expect("stdout")).read_to_string(&mut text).expect("read");
        let expected = format!("NoNewPrivs:\t{}\nSeccomp:\t2\n", i32::from(no_new_privs));
        assert!(
            text.contains(&expected) && text.contains(DEFAULT_CAPABILITIES) && text.ends_with("refused\n"),
            "{text}"
        );
        live.runtime.signal(&id, libc::SIGKILL).await.expect("kill");
        live.exit().await;
        let log = machine::log_text(&log);
        assert_eq!(log, expected);
    }
    let (_, text) =
        live.script("grep Seccomp: /proc/self/status", |_, container| container.seccomp = Seccomp::Unconfined).await;
    assert_eq!(text, "Seccomp:\t0\n");
    live.end().await;
}

#[tokio::test]
async fn a_profile_from_a_file_is_carried_out() {
    let mut live = Machine::new().start().await;
    let profile = live.machine.path().join("profile.json");
    fs::write(
        &profile,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#,
    )
    .expect("profile");
    let (_, text) = live
        .script("mkdir /x 2>/dev/null || echo refused; touch /y && echo touched", |_, container| {
            container.seccomp = Seccomp::Localhost(profile);
        })
        .await;
    assert_eq!(text, "refused\ntouched\n");
    live.end().await;
}

#[tokio::test]
async fn set_user_id_programs_work_unless_escalation_is_refused() {
    let mut live = Machine::new().start().await;
    let busybox = live.machine.root.join("suid/busybox");
    fs::create_dir(live.machine.root.join("suid")).expect("directory");
    fs::copy("/bin/busybox", &busybox).expect("copy");
    fs::set_permissions(&busybox, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).expect("mode");
    fs::write(live.machine.root.join("etc/passwd"), "root::0:0::/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")
        .expect("passwd");
    for (no_new_privs, root) in [(false, true), (true, false)] {
        let (_, text) = live
            .script("/suid/busybox su root -c 'id -u'", |_, container| {
                container.user = User { uid: 1000, gid: 1000, groups: vec![] };
                container.no_new_privs = no_new_privs;
            })
            .await;
        assert_eq!(text.contains("0\n") && !text.contains("must be"), root, "{text}");
    }
    live.end().await;
}

#[tokio::test]
async fn masked_and_read_only_paths_and_the_own_cgroup() {
    let mut live = Machine::new().start().await;
    let script = "test -e /proc/kcore && wc -c < /proc/kcore || echo 0; cat /proc/keys | wc -c; ls /sys/firmware | wc -l; ls /proc/scsi 2>/dev/null | wc -l
        echo 1 2>/dev/null > /proc/sys/kernel/panic || echo sysctl refused
        echo h 2>/dev/null > /proc/sysrq-trigger || echo sysrq refused
        touch /sys/x 2>/dev/null || echo sys refused
        cat /proc/self/cgroup | grep -c ':/carob'
        ls /sys/fs/cgroup | wc -l
        find /sys/fs/cgroup -name cgroup.procs | wc -l
        mkdir /sys/fs/cgroup/memory/x 2>/dev/null || echo cgroup refused
        grep -c carob /proc/self/mountinfo";
    let (_, text) = live.script(script, |_, _| {}).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..7], ["0", "0", "0", "0", "sysctl refused", "sysrq refused", "sys refused"], "{text}");
    assert_eq!(lines[7], "0", "its own cgroup is the root: {text}");
    assert!(lines[8].parse::<i32>().expect("number") > 1 && lines[9].parse::<i32>().expect("number") >= 1, "{text}");
    assert_eq!(lines[10], "cgroup refused");
    let (_, text) = live.script("cat /proc/keys | wc -c", |_, container| container.masks = PathMasks::Unmasked).await;
    assert_ne!(text, "0\n");
    live.end().await;
}

#[tokio::test]
async fn devices_can_be_made_but_only_the_usual_ones_opened() {
    let mut live = Machine::new().start().await;
    let numbers = nix::sys::stat::stat("/").expect("root").st_dev;
    let (major, minor) = (libc::major(numbers), libc::minor(numbers));
    let script = format!(
        "mknod /disk b {major} {minor} && head -c 1 /disk >/dev/null 2>&1 || echo disk refused
         mknod /mem c 1 1 && head -c 1 /mem >/dev/null 2>&1 || echo memory refused
         mknod /dev/kmsg2 c 1 11 && head -c 1 /dev/kmsg2 >/dev/null 2>&1 || echo kernel log refused
         head -c 1 /dev/urandom | wc -c; echo x > /dev/null && echo null; ls /dev"
    );
    let (_, text) = live.script(&script, |_, _| {}).await;
    assert!(text.starts_with("disk refused\nmemory refused\nkernel log refused\n1\nnull\n"), "{text}");
    assert!(!text.contains("vda") && !text.contains("sda"), "{text}");
    let (_, text) = live
        .script("grep -c . /proc/self/status >/dev/null; grep CapEff /proc/self/status; touch /sys/fs/cgroup 2>&1; ls /dev | wc -l; grep Seccomp: /proc/self/status", |_, container| {
            container.privileged = true;
        })
        .await;
    assert!(text.contains("Seccomp:\t0") && !text.contains(DEFAULT_CAPABILITIES), "{text}");
    live.end().await;
}

#[tokio::test]
async fn nothing_of_the_spawner_reaches_the_program() {
    let mut live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let container = live.machine.container("p", &["sleep", "1000"]);
    let id = container.id.clone();
    live.runtime.start_container(container).await.expect("start");
    let started = live.machine.container(
        "p",
        &["sh", "-c", "ls -l /proc/self/fd 2>/dev/null | grep -v '^total' | wc -l; ps | wc -l; grep -E 'Sig(Blk|Ign)' /proc/self/status; umask; cat /proc/self/oom_score_adj; ls /proc/self/cwd/ | head -1"],
    );
    let (_, text) = live.run(started).await;
    // Three streams and the directory that ls reads.
    assert!(text.starts_with("4\n"), "{text}");
    assert!(text.contains("SigBlk:\t0000000000000000") && text.contains("SigIgn:\t0000000000000000"), "{text}");
    assert!(text.contains("0022\n0\nbin\n"), "{text}");
    let exec = ExecConfig {
        argv: ["sh", "-c", "ls -l /proc/self/fd 2>/dev/null | grep -v '^total' | wc -l; grep -E 'Sig(Blk|Ign)' /proc/self/status; readlink /proc/1/exe"]
            .map(str::to_owned)
            .to_vec(),
        ..ExecConfig::default()
    };
    let process = live.runtime.exec(&id, exec).await.expect("exec");
    let mut text = String::new();
    fs::File::from(process.stdout.expect("stdout")).read_to_string(&mut text).expect("read");
    assert!(text.starts_with("4\n") && text.contains("SigBlk:\t0000000000000000"), "{text}");
    assert!(text.ends_with("/bin/busybox\n"), "{text}");
    live.end().await;
}

#[tokio::test]
async fn the_runtime_cannot_be_overwritten_through_an_entrypoint_that_is_itself() {
    let mut live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let before = fs::read(&live.machine.config.exe).expect("runtime");
    // CVE-2019-5736: the program is the runtime itself, through the link of the process that executes it.
    let mut container = live.machine.container("p", &["/proc/self/exe", "spawner"]);
    container.no_new_privs = false;
    match live.runtime.start_container(container).await {
        Ok(_) => assert_ne!(live.exit().await.code, 0),
        Err(error) => println!("{error}"),
    }
    // And an exec'd process that holds it open for writing from inside.
    let container = live.machine.container("p", &["sleep", "1000"]);
    let id = container.id.clone();
    live.runtime.start_container(container).await.expect("start");
    let spawner = format!("/proc/{}/exe", live.runtime.spawner_pid());
    let flags = nix::sys::statvfs::statvfs(spawner.as_str()).expect("its mount").flags();
    assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY), "{flags:?}");
    live.runtime.signal(&id, libc::SIGKILL).await.expect("kill");
    live.exit().await;
    assert_eq!(fs::read(&live.machine.config.exe).expect("runtime"), before);
    live.end().await;
}

#[tokio::test]
async fn a_directory_that_is_not_in_the_container_is_refused() {
    let live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    // CVE-2024-21626: the runtime's descriptors as working directory.
    for fd in 3..12 {
        let mut container = live.machine.container("p", &["sh", "-c", "pwd"]);
        container.cwd = format!("/proc/self/fd/{fd}");
        assert!(live.runtime.start_container(container).await.is_err(), "{fd}");
    }
    live.end().await;
}

#[tokio::test]
async fn users_of_a_pod_are_no_other_pods_whosever_spawner_it_has() {
    // Below those that Carobs of this machine give.
    let range = UserRange { first: 0x2ff0_0000 };
    let (one, other) = (Machine::new().start().await, Machine::new().start().await);
    let made = one.runtime.make_users(range).await.expect("free");
    let pod = PodConfig { netns: None, users: Some(range), user_namespaces: Some(made), ..one.machine.pod("p") };
    one.runtime.create_pod(pod).await.expect("pod");
    for live in [&one, &other] {
        let refused = live.runtime.make_users(range).await.expect_err("they are taken");
        assert!(matches!(refused, Error::UsersTaken), "{refused}");
    }
    one.runtime.remove_pod("p").await.expect("remove");
    other.runtime.make_users(range).await.expect("free again");
    one.end().await;
    other.end().await;
}
