//! logs, exec, attach and cp: the streams between a person and a container.

use carob_tests::pods::{list, pod, shell, shell_pod, tools};
use carob_tests::terminal::Running;
use carob_tests::{Carob, text};
use serde_json::json;
use std::io::Write;
use std::process::Stdio;

#[test]
fn logs_are_followed_cut_timed_and_kept_of_the_previous_attempt() {
    let carob = Carob::start(&["busybox", "tools"]);
    let mut crashing = shell_pod(
        "crashing",
        "echo attempt on $(cat /data/count 2>/dev/null || echo first); echo second >/data/count; [ -e /data/stay ] && sleep 3600; touch /data/stay; exit 3",
    );
    crashing["spec"]["restartPolicy"] = json!("Always");
    crashing["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    crashing["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    let endless = pod("ticking", &[tools("main", &["print", "tick", "--interval", "50ms"])]);
    let ended = pod(
        "ended",
        &[
            tools("main", &["print", "line", "--lines", "100", "--no-newline"]),
            shell("other", "echo out; echo err >&2"),
        ],
    );
    let wide = pod("wide", &[tools("main", &["print", "w", "--lines", "2", "--width", "40000"])]);
    carob.apply(&list(&[crashing, endless, ended, wide]));

    carob.wait_phase("ended", "Succeeded");
    let whole = carob.kubectl(&["logs", "ended", "-c", "main"]);
    assert_eq!(whole.lines().count(), 100);
    assert!(
        whole.starts_with("line 1\nline 2\n") && whole.ends_with("\nline 100"),
        "the last line had no end: {whole:?}"
    );
    assert_eq!(carob.kubectl(&["logs", "ended", "-c", "main", "--tail=3"]), "line 98\nline 99\nline 100");
    assert_eq!(carob.kubectl(&["logs", "ended", "-c", "main", "--tail=0"]), "");
    assert_eq!(carob.kubectl(&["logs", "ended", "-c", "main", "--limit-bytes=9"]), "line 1\nli");
    let both = carob.kubectl(&["logs", "ended", "-c", "other"]);
    assert!(both.contains("out\n") && both.contains("err\n"), "{both}");
    let prefixed = carob.kubectl(&["logs", "ended", "--all-containers", "--prefix", "--tail=1"]);
    assert!(prefixed.contains("[pod/ended/main] line 100") && prefixed.contains("[pod/ended/other] "), "{prefixed}");
    let refused = carob.kubectl_fails(&["logs", "ended", "-c", "nobody"]);
    assert!(refused.contains("container nobody is not valid for pod ended"), "{refused}");

    carob.wait_phase("wide", "Succeeded");
    let long: Vec<usize> = carob.kubectl(&["logs", "wide"]).lines().map(str::len).collect();
    assert_eq!(long, [40000, 40000], "long lines come back in one piece");

    let follow = Running::start(carob.kubectl_command().args(["logs", "-f", "ticking", "--tail=1"]));
    follow.expect("tick");
    let first: u64 =
        follow.output().lines().next().and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("a number");
    follow.expect(&format!("tick {}\n", first + 20));
    let numbers: Vec<u64> =
        follow.output().lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).take(20).collect();
    assert_eq!(numbers, (first..first + 20).collect::<Vec<_>>(), "each line once, in order");
    let since = carob.kubectl(&["logs", "ticking", "--since=1s"]);
    assert!((1..60).contains(&since.lines().count()), "about 20 lines a second: {}", since.lines().count());
    let timed = carob.kubectl(&["logs", "ticking", "--timestamps", "--tail=1"]);
    let (stamp, line) = timed.trim().split_once(' ').expect("a time before the line");
    assert!(stamp.contains('T') && stamp.ends_with('Z') && line.starts_with("tick "), "{timed}");
    let since_time = format!("--since-time={stamp}");
    let later = carob.kubectl(&["logs", "ticking", "--timestamps", &since_time]);
    assert!(later.lines().all(|line| line.split(' ').next() >= Some(&stamp[..19])), "{later}");
    let mut follow = follow;
    carob.kubectl(&["delete", "pod", "ticking", "--now"]);
    assert!(follow.end().success(), "following ends with the container");

    carob.until(&["logs", "crashing"], |seen| seen == "attempt on second\n");
    assert_eq!(carob.kubectl(&["logs", "crashing", "--previous"]), "attempt on first\n");
    let none = carob.kubectl_fails(&["logs", "ended", "-c", "main", "--previous"]);
    assert!(none.contains("previous terminated container \"main\" in pod \"ended\" not found"), "{none}");
}

#[test]
fn exec_runs_programs_with_their_streams_and_exit_codes() {
    let carob = Carob::start(&["busybox"]);
    let mut manifest = pod("box", &[shell("main", "sleep 3600"), shell("side", "sleep 3600")]);
    manifest["spec"]["containers"][0]["env"] = json!([{"name": "COLOUR", "value": "red"}]);
    manifest["spec"]["containers"][0]["workingDir"] = json!("/tmp");
    carob.start_pod(&manifest.to_string(), "box");

    let split = carob.run(&["exec", "box", "-c", "main", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(String::from_utf8_lossy(&split.stdout), "out\n");
    assert_eq!(String::from_utf8_lossy(&split.stderr), "err\ncommand terminated with exit code 7\n");
    assert_eq!(split.status.code(), Some(7));
    let environment =
        carob.kubectl(&["exec", "box", "-c", "main", "--", "sh", "-c", "echo $COLOUR $PWD $KUBERNETES_SERVICE_PORT"]);
    assert_eq!(environment, "red /tmp 443\n");
    assert_eq!(carob.kubectl(&["exec", "box", "-c", "side", "--", "sh", "-c", "echo $COLOUR"]), "\n");
    let defaulted = carob.run(&["exec", "box", "--", "true"]);
    assert!(text(&defaulted).contains("Defaulted container \"main\" out of: main, side"), "{}", text(&defaulted));

    let input = "a line of input\n".repeat(50_000);
    let counted = carob.pipe(&["exec", "-i", "box", "-c", "main", "--", "md5sum"], &input);
    let expected = carob.pipe(
        &["exec", "-i", "box", "-c", "main", "--", "sh", "-c", "yes 'a line of input' | head -n 50000 | md5sum"],
        "",
    );
    assert_eq!(text(&counted), text(&expected), "800 kB go in whole");
    let large = carob.kubectl(&["exec", "box", "-c", "main", "--", "sh", "-c", "yes 0123456 | head -c 4000000"]);
    assert_eq!(large.len(), 4_000_000, "4 MB come out whole");
    let echoed = carob.pipe(&["exec", "-i", "box", "-c", "main", "--", "cat"], &input);
    assert!(String::from_utf8_lossy(&echoed.stdout) == input, "both ways at once");

    let missing = carob.kubectl_fails(&["exec", "box", "-c", "main", "--", "no-such-program"]);
    assert!(missing.contains("executable file not found in $PATH"), "{missing}");
    let refused = carob.kubectl_fails(&["exec", "box", "-c", "nobody", "--", "true"]);
    assert!(
        refused.contains("container nobody is not valid for pod box") || refused.contains("container not found"),
        "{refused}"
    );
    carob.apply(&shell_pod("over", "exit 0").to_string());
    carob.wait_phase("over", "Succeeded");
    let over = carob.kubectl_fails(&["exec", "over", "--", "true"]);
    assert!(over.contains("cannot exec into a container in a completed pod"), "{over}");
    let signalled = carob.run(&["exec", "box", "-c", "main", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(signalled.status.code(), Some(137), "{}", text(&signalled));
}

#[test]
fn exec_on_a_terminal_is_interactive_and_follows_its_size() {
    let carob = Carob::start(&["busybox"]);
    carob.start_pod(&shell_pod("box", "sleep 3600").to_string(), "box");
    let mut kubectl = carob.kubectl_command();
    kubectl.args(["exec", "-it", "box", "--", "sh"]);
    let mut shell = Running::on_terminal(&kubectl, 33, 111);
    shell.expect("# ");
    shell.send("tty; stty size\n");
    shell.expect("/dev/pts/0\r\n33 111\r\n");
    shell.resize(44, 122);
    shell.send("until [ \"$(stty size)\" = '44 122' ]; do sleep 0.1; done; echo re''sized\n");
    shell.expect("resized");
    // The terminal's driver turns ^C into a signal inside the container.
    shell.send("echo wai''ting; sleep 3600\n");
    shell.expect("waiting");
    shell.send("\u{3}");
    shell.send("echo inter''rupted\n");
    shell.expect("interrupted");
    shell.send("exit 5\n");
    assert_eq!(shell.end().code(), Some(5), "{}", shell.output());
}

#[test]
fn attach_joins_a_running_container() {
    let carob = Carob::start(&["busybox"]);
    let mut manifest = shell_pod("reader", "echo ready; read line; echo got $line");
    manifest["spec"]["containers"][0]["stdin"] = json!(true);
    let mut terminal = shell_pod("terminal", "echo ready; read line; echo got $line on $(tty); sleep 3600");
    terminal["spec"]["containers"][0]["stdin"] = json!(true);
    terminal["spec"]["containers"][0]["tty"] = json!(true);
    carob.apply(&list(&[manifest, terminal]));
    carob.until(&["logs", "reader"], |seen| seen == "ready\n");
    carob.until(&["logs", "terminal"], |seen| seen.trim() == "ready");
    let mut kubectl = carob.kubectl_command();
    kubectl.args(["attach", "-it", "terminal"]);
    let mut attached = Running::on_terminal(&kubectl, 24, 80);
    attached.expect("If you don't see a command prompt, try pressing enter.");
    attached.send("words\n");
    attached.expect("got words on /dev/pts/0");
    let printed = carob.pipe(&["attach", "-i", "reader"], "something\n");
    assert_eq!(String::from_utf8_lossy(&printed.stdout), "got something\n");
    assert_eq!(carob.kubectl(&["logs", "reader"]), "ready\ngot something\n");
}

#[test]
fn the_end_of_an_attached_clients_input_is_the_containers_that_takes_it_once() {
    let carob = Carob::start(&["busybox"]);
    for (name, websockets) in [("over-websocket", "true"), ("over-spdy", "false")] {
        let mut manifest = shell_pod(name, "cat; echo ended");
        manifest["spec"]["containers"][0]["stdin"] = json!(true);
        manifest["spec"]["containers"][0]["stdinOnce"] = json!(true);
        carob.start_pod(&manifest.to_string(), name);
        let mut kubectl = carob.kubectl_command();
        kubectl.args(["attach", "-i", name]).env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
        kubectl.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut kubectl = kubectl.spawn().expect("kubectl starts");
        kubectl.stdin.take().expect("a pipe").write_all(b"words\n").expect("it is taken");
        let printed = kubectl.wait_with_output().expect("kubectl ends").stdout;
        assert_eq!(String::from_utf8_lossy(&printed), "words\nended\n", "{name}");
        carob.wait_phase(name, "Succeeded");
    }
}

#[test]
fn files_are_copied_both_ways() {
    let carob = Carob::start(&["busybox"]);
    carob.start_pod(&shell_pod("box", "sleep 3600").to_string(), "box");
    let tree = carob.path("tree");
    std::fs::create_dir_all(tree.join("below")).expect("a folder");
    let content: Vec<u8> = (0..1_500_000_u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(tree.join("below/large"), &content).expect("a file");
    std::fs::write(tree.join("small"), "small").expect("a file");
    carob.kubectl(&["cp", &tree.to_string_lossy(), "box:/tmp/tree"]);
    let sizes = carob.kubectl(&["exec", "box", "--", "sh", "-c", "cat /tmp/tree/small; wc -c < /tmp/tree/below/large"]);
    assert_eq!(sizes, "small1500000\n");
    let back = carob.path("back");
    carob.kubectl(&["cp", "box:/tmp/tree", &back.to_string_lossy()]);
    assert!(std::fs::read(back.join("below/large")).expect("it came back") == content, "the same bytes");
    assert_eq!(std::fs::read_to_string(back.join("small")).expect("it came back"), "small");
}
