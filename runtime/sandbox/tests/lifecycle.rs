//! Containers from start to end on the real kernel: exit codes, signals, logs, limits.

mod machine;

use carob_sandbox::Error;
use machine::{Machine, log_text, show};

#[tokio::test]
async fn a_program_runs_ends_and_its_log_is_complete_before_its_exit_is_told() {
    let mut live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let container = live.machine.container("p", &["sh", "-c", "echo hello; echo problem >&2; hostname; exit 7"]);
    let (id, log) = (container.id.clone(), container.log_path.clone());
    let started = live.runtime.start_container(container).await.expect("start");
    println!("{}", show(&started));
    let exit = live.exit().await;
    assert_eq!((exit.container, exit.code, exit.signal), (id.clone(), 7, None));
    let text = log_text(&log);
    assert!(text.contains("hello\n") && text.contains("problem\n") && text.contains("host-p\n"), "{text}");
    assert!(exit.usage.cpu_ns > 0 && exit.usage.memory_peak_bytes > 0);
    live.runtime.remove_container(&id).await.expect("remove");
    live.runtime.remove_pod("p").await.expect("remove");
    live.end().await;
}

#[tokio::test]
async fn a_command_that_is_not_there_is_named_and_nothing_is_left() {
    let live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    for (command, expected) in [
        ("nonsense", r#"exec: "nonsense": executable file not found in $PATH"#),
        ("/no/where", r#"exec: "/no/where": stat /no/where: no such file or directory"#),
        ("/etc/passwd", r#"exec: "/etc/passwd": permission denied"#),
    ] {
        let container = live.machine.container("p", &[command]);
        let upper = container.rootfs.upper.clone();
        match live.runtime.start_container(container).await {
            Err(Error::Start { message, .. }) => assert_eq!(message, expected),
            other => panic!("{other:?}"),
        }
        assert!(!upper.exists());
    }
    live.end().await;
}
