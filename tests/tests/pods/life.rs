//! A pod's life: what its containers run, how they end, and what is done about it.

use std::time::Instant;

use carob_tests::Carob;
use carob_tests::pods::{idle, list, pod, shell, shell_pod, tools};
use serde_json::{Value, json};

fn with(mut manifest: Value, pointer: &str, value: Value) -> Value {
    *pointer.split('/').skip(1).fold(&mut manifest, |at, key| match key.parse::<usize>() {
        Ok(index) => &mut at[index],
        Err(_) => &mut at[key],
    }) = value;
    manifest
}

#[test]
fn command_args_env_and_working_directory_are_as_the_image_and_the_spec_say() {
    let carob = Carob::start(&["busybox", "tools"]);
    // The image's entrypoint with its own arguments, with others, and neither.
    let image = pod("image", &[json!({"name": "main", "image": "tools", "imagePullPolicy": "IfNotPresent"})]);
    let args = pod("args", &[tools("main", &["print", "own", "--lines", "1"])]);
    let command = with(
        pod("command", &[tools("main", &["ignored"])]),
        "/spec/containers/0/command",
        json!(["sh", "-c", "echo $0 $1 $WHO '$(WHO)' $ALL $LATE $KEPT; pwd; hostname", "$(WHO)"]),
    );
    let mut command = with(
        command,
        "/spec/containers/0/env",
        json!([
            {"name": "WHO", "value": "carob"},
            {"name": "ALL", "value": "$(WHO)-$(LATE)-$(NOBODY)-$$(WHO)"},
            {"name": "LATE", "value": "late"},
            {"name": "KEPT", "value": "a b"},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
            {"name": "FROM_MAP", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
            {"name": "OPTIONAL", "valueFrom": {"secretKeyRef": {"name": "nobody", "key": "k", "optional": true}}},
        ]),
    );
    command["spec"]["containers"][0]["args"] = json!(["$(WHO)", "$$(WHO)"]);
    command["spec"]["containers"][0]["command"] =
        json!(["sh", "-c", "echo \"$0 $1\" \"$ALL\" \"$LATE\" \"$KEPT\"; pwd; env", "$(WHO)$(NOBODY)"]);
    command["spec"]["containers"][0]["workingDir"] = json!("/made/by/workingDir");
    command["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "250m"}});
    command["spec"]["containers"][0]["envFrom"] =
        json!([{"prefix": "S_", "configMapRef": {"name": "settings"}}, {"secretRef": {"name": "hidden"}}]);
    carob.kubectl(&["create", "configmap", "settings", "--from-literal=colour=green"]);
    carob.kubectl(&["create", "secret", "generic", "hidden", "--from-literal=PASSWORD=x"]);
    carob.apply(&list(&[image, args, command]));
    carob.wait("pod/image", "condition=Ready");
    assert_eq!(carob.kubectl(&["logs", "image"]), "listening on 8080\n");
    carob.wait_phase("args", "Succeeded");
    assert_eq!(carob.kubectl(&["logs", "args"]), "own 1\n");
    carob.wait_phase("command", "Succeeded");
    let printed = carob.kubectl(&["logs", "command"]);
    let address = carob.jsonpath("pod/command", ".status.podIP");
    assert!(
        printed.starts_with("carob$(NOBODY) carob carob-$(LATE)-$(NOBODY)-$(WHO) late a b\n/made/by/workingDir\n"),
        "a name is expanded when it is defined further up, and $$ is an escape: {printed}"
    );
    let service = carob.jsonpath("service/kubernetes", ".spec.clusterIP");
    for expected in [
        "S_colour=green",
        "PASSWORD=x",
        "FROM_MAP=green",
        "CPU=250",
        &format!("IP={address}"),
        "HOSTNAME=command",
        &format!("KUBERNETES_SERVICE_HOST={service}"),
        "KUBERNETES_SERVICE_PORT=443",
        &format!("KUBERNETES_PORT=tcp://{service}:443"),
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ] {
        assert!(printed.lines().any(|line| line == expected), "{expected} is missing: {printed}");
    }
    assert!(!printed.contains("OPTIONAL"), "an optional key that isn't there sets nothing: {printed}");
}

#[test]
fn ends_are_reported_with_codes_signals_and_messages() {
    let carob = Carob::start(&["busybox", "tools"]);
    let message = shell_pod("message", "printf 'disk on fire' > /dev/termination-log; exit 3");
    let mut from_logs = shell_pod("from-logs", "echo last words; exit 4");
    from_logs["spec"]["containers"][0]["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    let long = shell_pod("long", "printf '%05000d the end' 0 > /dev/termination-log");
    let mut elsewhere = shell_pod("elsewhere", "printf here > /tmp/message");
    elsewhere["spec"]["containers"][0]["terminationMessagePath"] = json!("/tmp/message");
    let signal = shell_pod("signal", "kill -SEGV $$$$; sh -c 'kill -9 $$$$'; exit $?");
    let two = pod("two", &[shell("good", "exit 0"), shell("bad", "exit 42")]);
    let missing = with(shell_pod("missing", ""), "/spec/containers/0/command", json!(["/no/such/program"]));
    let directory = with(shell_pod("directory", ""), "/spec/containers/0/command", json!(["/etc"]));
    let quick = shell_pod("quick", "exit 0");
    carob.apply(&list(&[message, long, from_logs, elsewhere, signal, two, missing, directory, quick]));
    let ended = |name: &str, phase: &str| {
        carob.wait_phase(name, phase);
        carob.get(&["pod", name])["status"]["containerStatuses"][0]["state"]["terminated"].clone()
    };
    let state = ended("message", "Failed");
    assert_eq!(
        (&state["exitCode"], &state["reason"], &state["message"]),
        (&json!(3), &json!("Error"), &json!("disk on fire"))
    );
    assert!(state["containerID"].as_str().is_some_and(|id| id.starts_with("carob://")), "{state}");
    assert!(state["startedAt"].as_str() <= state["finishedAt"].as_str() && state["finishedAt"].is_string(), "{state}");
    assert_eq!(ended("from-logs", "Failed")["message"], "last words\n");
    assert_eq!(ended("elsewhere", "Succeeded")["message"], "here");
    let state = ended("long", "Succeeded");
    let shown = state["message"].as_str().expect("a message");
    assert!(shown.len() == 4096 && shown.ends_with("0 the end"), "of a long one the end is kept: {shown}");
    // $$$$ is $$ to the shell. What pid 1 sends itself has no default action in its own namespace; for its child it has.
    let state = ended("signal", "Failed");
    assert_eq!(state["exitCode"], 137, "{state}");
    carob.wait_phase("two", "Failed");
    let codes = carob.jsonpath("pod/two", ".status.containerStatuses[*].state.terminated.exitCode");
    assert_eq!(codes, "0 42", "one that failed makes the pod fail");
    let state = ended("missing", "Failed");
    assert_eq!((&state["reason"], &state["exitCode"]), (&json!("StartError"), &json!(128)));
    assert!(
        state["message"]
            .as_str()
            .is_some_and(|text| text.contains("/no/such/program") && text.contains("no such file or directory")),
        "{state}"
    );
    let state = ended("directory", "Failed");
    assert!(
        state["message"]
            .as_str()
            .is_some_and(|text| text.contains("permission denied") || text.contains("is a directory")),
        "{state}"
    );
    let state = ended("quick", "Succeeded");
    assert_eq!((&state["exitCode"], &state["reason"]), (&json!(0), &json!("Completed")));
}

#[test]
fn what_fails_is_restarted_as_the_policy_says_with_a_growing_back_off() {
    let carob = Carob::start(&["busybox"]);
    let policy =
        |name: &str, policy: &str, script: &str| with(shell_pod(name, script), "/spec/restartPolicy", json!(policy));
    carob.apply(&list(&[
        policy("always", "Always", "exit 0"),
        policy("failing", "OnFailure", "exit 5"),
        policy("finishing", "OnFailure", "exit 0"),
        policy("never", "Never", "exit 5"),
    ]));
    let started = Instant::now();
    carob.wait_phase("finishing", "Succeeded");
    carob.wait_phase("never", "Failed");
    assert_eq!(carob.jsonpath("pod/finishing", ".status.containerStatuses[0].restartCount"), "0");
    assert_eq!(carob.jsonpath("pod/never", ".status.containerStatuses[0].restartCount"), "0");
    for name in ["always", "failing"] {
        carob.until(&["get", "pod", name], |seen| seen.contains("CrashLoopBackOff"));
        let status = carob.get(&["pod", name])["status"]["containerStatuses"][0].clone();
        assert_eq!(status["state"]["waiting"]["reason"], "CrashLoopBackOff", "{status}");
        let text = status["state"]["waiting"]["message"].as_str().unwrap_or_default();
        assert!(text.starts_with("back-off 10s restarting failed container=main pod="), "{text}");
        assert_eq!(status["lastState"]["terminated"]["exitCode"], if name == "always" { 0 } else { 5 }, "{status}");
        assert_eq!(status["ready"], false);
        assert_eq!(carob.jsonpath(&format!("pod/{name}"), ".status.phase"), "Running");
        carob.wait_event(name, "Back-off restarting failed container main in pod");
    }
    carob.until(
        &["get", "pod", "always", "-o", "jsonpath={.status.containerStatuses[0].state.waiting.message}"],
        |seen| seen.starts_with("back-off 20s"),
    );
    assert!(started.elapsed().as_secs() >= 10, "the second restart came after ten seconds");
}

#[test]
fn deletion_gives_the_time_that_was_asked_for_and_ends_with_the_stop_signal() {
    let carob = Carob::start(&["tools", "busybox", "nginx"]);
    let mut polite = pod("polite", &[tools("main", &["signal-log", "--exit-on", "TERM", "--linger", "1s"])]);
    polite["spec"]["terminationGracePeriodSeconds"] = json!(30);
    let mut stubborn = pod("stubborn", &[tools("main", &["signal-log", "--exit-on", "none"])]);
    stubborn["spec"]["terminationGracePeriodSeconds"] = json!(2);
    let mut hooked = pod("hooked", &[tools("main", &["signal-log"])]);
    hooked["spec"]["containers"][0]["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["sh", "-c", "echo hook ran > /proc/1/fd/1; sleep 1"]}}});
    let nginx = pod("nginx", &[json!({"name": "main", "image": "nginx", "imagePullPolicy": "IfNotPresent"})]);
    carob.apply(&list(&[polite, stubborn, hooked, nginx]));
    for name in ["polite", "stubborn", "hooked", "nginx"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let follow = |name: &str| carob_tests::terminal::Running::start(carob.kubectl_command().args(["logs", "-f", name]));
    let mut logs = ["polite", "stubborn", "hooked"].map(follow);
    for log in &logs {
        log.expect("ready");
    }
    let watch =
        carob_tests::terminal::Running::start(carob.kubectl_command().args(["get", "pods", "-w", "-o", "json"]));
    let started = Instant::now();
    carob.kubectl(&["delete", "pod", "polite", "stubborn", "hooked", "--wait=false"]);
    assert!(carob.kubectl(&["get", "pod", "polite"]).contains("Terminating"));
    carob.wait("pod/polite", "delete");
    let elapsed = started.elapsed().as_secs_f64();
    assert!((1.0..15.0).contains(&elapsed), "it lingered for a second, and wasn't killed: {elapsed}");
    for name in ["stubborn", "hooked"] {
        carob.wait(&format!("pod/{name}"), "delete");
    }
    assert!(started.elapsed().as_secs_f64() >= 2.0, "the stubborn one had its two seconds");
    for log in &mut logs {
        assert!(log.end().success());
    }
    let [polite, stubborn, hooked] = logs.map(|log| log.output());
    assert_eq!(polite, "ready\nSIGTERM\n");
    assert_eq!(stubborn, "ready\nSIGTERM\n");
    assert_eq!(hooked, "ready\nhook ran\nSIGTERM\n", "the hook comes first");
    // Watchers see how they ended before they are gone.
    let seen = watch.output();
    assert!(seen.contains("\"exitCode\": 137") && seen.contains("\"exitCode\": 0"), "{seen}");
    // nginx's image says SIGQUIT, on which its workers finish first.
    carob.kubectl(&["delete", "pod", "nginx", "--wait"]);
    let forced =
        carob.run(&["run", "forced", "--image=busybox", "--image-pull-policy=IfNotPresent", "--", "sleep", "3600"]);
    assert!(forced.status.success());
    carob.wait("pod/forced", "condition=Ready");
    let begin = Instant::now();
    carob.kubectl(&["delete", "pod", "forced", "--force", "--grace-period=0"]);
    assert!(begin.elapsed().as_secs() < 10);
    carob.kubectl_fails(&["get", "pod", "forced"]);
}

#[test]
fn a_hook_that_fails_has_its_container_restarted_and_tells_its_output_to_the_pod_alone() {
    let carob = Carob::start(&["tools"]);
    let mut hooked = pod("hooked", &[tools("main", &["sleep", "1h"])]);
    hooked["spec"]["restartPolicy"] = json!("Always");
    hooked["spec"]["containers"][0]["lifecycle"] =
        json!({"postStart": {"exec": {"command": ["/bin/no-such-program", "sesame"]}}});
    let watch =
        carob_tests::terminal::Running::start(carob.kubectl_command().args(["get", "pods", "-w", "-o", "json"]));
    carob.apply(&hooked.to_string());
    for expected in ["\"reason\": \"PostStartHookError\"", "\"reason\": \"CrashLoopBackOff\""] {
        watch.expect(expected);
    }
    assert!(watch.output().contains("no-such-program"));
    let events = carob.wait_event("hooked", "PostStartHook failed");
    assert!(!events.contains("no-such-program"), "{events}");
}

#[test]
fn probes_decide_on_readiness_and_restarts() {
    let carob = Carob::start(&["tools", "busybox"]);
    let mut ready = pod("ready", &[tools("main", &["http-server", "--ready-after", "2s"])]);
    ready["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1});
    let mut alive = pod("alive", &[tools("main", &["http-server", "--unhealthy-after", "2s"])]);
    alive["spec"]["restartPolicy"] = json!("Always");
    alive["spec"]["containers"][0]["livenessProbe"] =
        json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1});
    let mut exec = shell_pod("exec", "touch /tmp/up; sleep 3600");
    exec["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1});
    exec["spec"]["containers"][0]["startupProbe"] = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    let mut tcp = pod("tcp", &[tools("main", &["echo", "--port", "7"])]);
    tcp["spec"]["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 7}, "periodSeconds": 1});
    let mut once = shell_pod("once", "sleep 3600");
    once["spec"]["terminationGracePeriodSeconds"] = json!(0);
    once["spec"]["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["sleep", "5"]}, "periodSeconds": 1, "failureThreshold": 1});
    carob.apply(&list(&[ready, alive, exec, tcp, once]));
    carob.until(&["get", "pod", "ready"], |seen| seen.contains("0/1     Running"));
    carob.wait_event("ready", "Readiness probe failed: HTTP probe failed with statuscode: 503");
    for name in ["ready", "exec", "tcp"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    carob.kubectl(&["exec", "exec", "--", "rm", "/tmp/up"]);
    carob.wait("pod/exec", "condition=Ready=False");
    carob.until(&["get", "pod", "alive", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"], |seen| {
        seen != "0"
    });
    carob.wait_event("alive", "Liveness probe failed: HTTP probe failed with statuscode: 503");
    carob.wait_event("alive", "Container main failed liveness probe, will be restarted");
    carob.wait_phase("once", "Failed");
    carob.wait_event("once", "Liveness probe failed: command timed out: \"sleep 5\" timed out after 1s");
    carob.wait_event("once", "Container main failed liveness probe");
    let selected = "--field-selector=involvedObject.name=once,reason=Killing";
    let said = carob.kubectl(&["get", "events", selected, "-o", "jsonpath={.items[*].message}"]);
    assert_eq!(said, "Container main failed liveness probe", "nothing is started anew");
}

#[test]
fn a_pod_has_ended_once_its_sidecars_have() {
    let carob = Carob::start(&["busybox"]);
    let mut manifest = pod("served", &[shell("main", "true")]);
    let mut sidecar = shell(
        "side",
        "trap 'until [ -e /shared/leave ]; do sleep 0.1; done; exit 0' TERM; while :; do sleep 0.1; done",
    );
    sidecar["restartPolicy"] = json!("Always");
    sidecar["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
    manifest["spec"]["initContainers"] = json!([sidecar]);
    manifest["spec"]["volumes"] = json!([{"name": "shared", "emptyDir": {}}]);
    carob.apply(&manifest.to_string());
    carob.wait("pod/served", "jsonpath={.status.containerStatuses[0].state.terminated.reason}=Completed");
    // It is being stopped, and its status was written since.
    carob.wait_event("served", "Stopping container side");
    let status = carob.get(&["pod", "served"])["status"].clone();
    assert_eq!(status["phase"], "Running", "{status}");
    carob.kubectl(&["exec", "served", "-c", "side", "--", "touch", "/shared/leave"]);
    carob.wait_phase("served", "Succeeded");
    let status = carob.get(&["pod", "served"])["status"].clone();
    assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed", "{status}");
}

#[test]
fn init_containers_run_one_after_the_other_before_the_others() {
    let carob = Carob::start(&["busybox"]);
    let mut manifest = pod("ordered", &[shell("main", "cat /shared/steps; sleep 3600")]);
    let step = |name: &str, script: &str| {
        let mut container = shell(name, script);
        container["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
        container
    };
    manifest["spec"]["initContainers"] =
        json!([step("first", "echo first >> /shared/steps"), step("second", "echo second >> /shared/steps")]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
    manifest["spec"]["volumes"] = json!([{"name": "shared", "emptyDir": {}}]);
    let mut failing = pod("failing", &[idle("main")]);
    failing["spec"]["initContainers"] = json!([shell("only", "exit 9")]);
    carob.apply(&list(&[manifest, failing]));
    carob.wait("pod/ordered", "condition=Ready");
    assert_eq!(carob.kubectl(&["logs", "ordered", "-c", "main"]), "first\nsecond\n");
    let status = carob.get(&["pod", "ordered"])["status"]["initContainerStatuses"].clone();
    assert_eq!(status[0]["state"]["terminated"]["reason"], "Completed", "{status}");
    carob.wait_phase("failing", "Failed");
    assert!(carob.kubectl(&["get", "pod", "failing"]).contains("Init:Error"));
}
