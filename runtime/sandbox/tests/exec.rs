//! Further processes in a running container.

mod machine;

use carob_sandbox::{ContainerId, Error, ExecConfig, ExecProcess, User};
use machine::{Live, Machine, PATIENCE};
use std::fs::File;
use std::io::{Read, Write};

fn command(script: &str) -> ExecConfig {
    ExecConfig { argv: ["sh", "-c", script].map(str::to_owned).to_vec(), ..ExecConfig::default() }
}

async fn sleeper() -> (Live, ContainerId) {
    let live = Machine::new().start().await;
    live.runtime.create_pod(live.machine.pod("p")).await.expect("pod");
    let container = live.machine.container("p", &["sleep", "1000"]);
    let id = container.id.clone();
    live.runtime.start_container(container).await.expect("start");
    (live, id)
}

async fn code(process: ExecProcess) -> i32 {
    tokio::time::timeout(PATIENCE, process.exit).await.expect("in time").expect("connected")
}

fn all(fd: Option<std::os::fd::OwnedFd>) -> String {
    let mut text = String::new();
    File::from(fd.expect("stream")).read_to_string(&mut text).expect("read");
    text
}

#[tokio::test]
async fn streams_are_apart_and_the_exit_code_is_the_processs() {
    let (live, id) = sleeper().await;
    let mut exec = command("cat; echo problem >&2; echo $EXTRA; exit 5");
    exec.stdin = true;
    exec.env = vec![("EXTRA".to_owned(), "more".to_owned())];
    let mut process = live.runtime.exec(&id, exec).await.expect("exec");
    let mut stdin = File::from(process.stdin.take().expect("stdin"));
    stdin.write_all(b"typed\n").expect("write");
    drop(stdin);
    assert_eq!(all(process.stdout.take()), "typed\nmore\n");
    assert_eq!(all(process.stderr.take()), "problem\n");
    assert_eq!(code(process).await, 5);

    let process = live.runtime.exec(&id, command("kill -9 $$")).await.expect("exec");
    assert_eq!(code(process).await, 137);
    live.end().await;
}

#[tokio::test]
async fn it_is_in_the_containers_namespaces_cgroup_and_directory() {
    let (live, id) = sleeper().await;
    let mut exec = command("hostname; cat /proc/self/cgroup | grep -vc ':/$'; pwd; id -u; ps | grep -c sleep");
    exec.cwd = Some("/etc".to_owned());
    exec.user = Some(User { uid: 1000, gid: 1000, groups: vec![] });
    let mut process = live.runtime.exec(&id, exec).await.expect("exec");
    let text = all(process.stdout.take());
    assert!(text.starts_with("host-p\n0\n/etc\n1000\n"), "{text}");
    assert_eq!(code(process).await, 0);
    live.end().await;
}

#[tokio::test]
async fn a_terminal_has_its_size_and_echoes() {
    let (live, id) = sleeper().await;
    let mut exec = command("tty; stty size; read line; echo got $line");
    exec.tty = true;
    exec.terminal_size = Some((132, 43));
    let mut process = live.runtime.exec(&id, exec).await.expect("exec");
    let mut terminal = File::from(process.terminal.take().expect("terminal"));
    terminal.write_all(b"words\n").expect("type");
    let mut text = String::new();
    // A terminal ends with an error where a pipe has an end.
    let mut buffer = [0u8; 1024];
    while let Ok(length) = terminal.read(&mut buffer) {
        if length == 0 {
            break;
        }
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    assert!(text.contains("/dev/pts/") && text.contains("43 132") && text.contains("got words"), "{text}");
    assert_eq!(code(process).await, 0);
    live.end().await;
}

#[tokio::test]
async fn a_command_that_is_not_there_is_named_and_the_container_lives_on() {
    let (live, id) = sleeper().await;
    let exec = ExecConfig { argv: vec!["nonsense".to_owned()], ..ExecConfig::default() };
    match live.runtime.exec(&id, exec).await {
        Err(Error::Start { message, exit_code }) => {
            assert_eq!(message, r#"exec: "nonsense": executable file not found in $PATH"#);
            assert_eq!(exit_code, 127);
        }
        other => panic!("{other:?}"),
    }
    let process = live.runtime.exec(&id, command("exit 0")).await.expect("exec");
    assert_eq!(code(process).await, 0);
    live.end().await;
}

#[tokio::test]
async fn what_is_left_running_dies_with_the_container_and_later_ones_are_refused() {
    let (mut live, id) = sleeper().await;
    let process = live.runtime.exec(&id, command("sleep 1000 & sleep 1000")).await.expect("exec");
    live.runtime.signal(&id, libc::SIGKILL).await.expect("kill");
    assert_eq!(live.exit().await.code, 137);
    assert_eq!(code(process).await, 137);
    match live.runtime.exec(&id, command("true")).await {
        Err(Error::WrongState { .. }) => {}
        other => panic!("{other:?}"),
    }
    live.end().await;
}
