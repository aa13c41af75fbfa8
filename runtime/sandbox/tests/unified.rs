//! The unified layout, in a mount namespace that has only that. Where the controllers belong to version 1 it has none,
//! but everything else is as on a machine with version 2 alone.

mod machine;

use carob_sandbox::CgroupVersion;
use machine::{Machine, log_text};
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[tokio::test]
async fn containers_run_are_told_apart_and_restricted_without_any_version_1_hierarchy() {
    let mut machine = Machine::new();
    let wrapper = machine.path().join("unified-spawner");
    let script = format!(
        "#!/bin/sh\nexec unshare -m sh -c 'umount -R -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; exec \"$0\" \"$@\"' {} \"$@\"\n",
        machine.config.exe.display()
    );
    fs::write(&wrapper, script).expect("wrapper");
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("mode");
    machine.config.exe = wrapper;

    let mut live = machine.start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let script = "cat /proc/self/cgroup; ls /sys/fs/cgroup | grep -c cgroup.procs; mkdir /sys/fs/cgroup/x 2>/dev/null || echo refused
        mknod /mem c 1 1 && head -c 1 /mem >/dev/null 2>&1 || echo memory refused; echo x > /dev/null && echo null; exit 3";
    let container = live.machine.container("p", &["sh", "-c", script]);
    let (id, log) = (container.id.clone(), container.log_path.clone());
    let started = live.runtime.start_container(container).await.expect("start");
    assert_eq!(started.cgroup.version, CgroupVersion::V2);
    let exit = live.exit().await;
    let text = log_text(&log);
    assert_eq!(exit.code, 3, "{text}");
    assert!(text.contains("0::/\n1\nrefused\nmemory refused\nnull\n"), "{text}");
    live.runtime.remove_container(&id).await.expect("remove");

    let container = live.machine.container("p", &["sh", "-c", "sleep 1000 & sleep 1000"]);
    let id = container.id.clone();
    live.runtime.start_container(container).await.expect("start");
    live.runtime.signal(&id, libc::SIGKILL).await.expect("kill");
    assert_eq!(live.exit().await.code, 137);
    live.end().await;
}
