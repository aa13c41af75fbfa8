//! Volumes as containers see them, and how they follow their sources.

use std::fs;
use std::path::Path;

use carob_tests::pods::{idle, list, pod, shell, shell_pod};
use carob_tests::terminal::Running;
use carob_tests::{Carob, eventually};
use serde_json::{Value, json};

fn mount(container: &mut Value, name: &str, path: &str) -> Value {
    let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
    let more = [mounts, vec![json!({"name": name, "mountPath": path})]].concat();
    container["volumeMounts"] = json!(more);
    container.clone()
}

#[test]
fn empty_dirs_are_shared_by_a_pods_containers_survive_restarts_and_go_with_the_pod() {
    let carob = Carob::start(&["busybox"]);
    let mut writer = shell(
        "writer",
        "echo \"attempt\" >> /data/attempts; mount | grep -E ' /(data|memory) '; [ $(wc -l < /data/attempts) = 2 ] && exec sleep 3600; exit 1",
    );
    mount(&mut writer, "data", "/data");
    mount(&mut writer, "memory", "/memory");
    let mut reader = shell("reader", "sleep 3600");
    mount(&mut reader, "data", "/elsewhere");
    reader["volumeMounts"][0]["readOnly"] = json!(true);
    let mut manifest = pod("shared", &[writer, reader]);
    manifest["spec"]["restartPolicy"] = json!("Always");
    manifest["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}}]);
    carob.start_pod(&manifest.to_string(), "shared");
    // The same directory, before and after the restart.
    let read = ["exec", "shared", "-c", "reader", "--", "cat", "/elsewhere/attempts"];
    carob.until(&read, |attempts| attempts == "attempt\nattempt\n");
    let refused = carob.kubectl_fails(&["exec", "shared", "-c", "reader", "--", "touch", "/elsewhere/x"]);
    assert!(refused.contains("Read-only file system"), "{refused}");
    let mounts = carob.kubectl(&["logs", "shared", "-c", "writer"]);
    assert!(mounts.contains("tmpfs on /memory type tmpfs") && mounts.contains("size=8192k"), "{mounts}");
    let full = carob.kubectl_fails(&[
        "exec",
        "shared",
        "-c",
        "writer",
        "--",
        "dd",
        "if=/dev/zero",
        "of=/memory/f",
        "bs=1M",
        "count=9",
    ]);
    assert!(full.contains("No space left on device"), "{full}");
    let mode = carob.kubectl(&["exec", "shared", "-c", "reader", "--", "stat", "-c", "%a %u:%g", "/elsewhere"]);
    assert_eq!(mode, "777 0:0\n");

    let uid = carob.jsonpath("pod/shared", ".metadata.uid");
    let directory = carob.data_dir().join("pods").join(&uid);
    assert!(directory.exists());
    carob.kubectl(&["delete", "pod", "shared", "--now"]);
    carob_tests::eventually("the pod's directory is gone", || !directory.exists());

    let mut grouped = shell_pod("grouped", "stat -c %a:%u:%g /data; touch /data/file; stat -c %u:%g /data/file");
    mount(&mut grouped["spec"]["containers"][0], "data", "/data");
    grouped["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    grouped["spec"]["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000});
    assert_eq!(carob.run_to_end(&grouped), "2777:0:2000\n1000:2000\n");
}

#[test]
fn config_maps_secrets_and_the_downward_api_become_files_with_modes_and_follow_changes() {
    let carob = Carob::start(&["busybox"]);
    let map = |colour: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"},
            "data": {"colour": colour, "size": "large"}, "binaryData": {"bytes": "AAEC"},
        })
    };
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hidden"}, "stringData": {"password": "x", "user": "me"}});
    let mut container = shell("main", "sleep 3600");
    for (name, path) in [
        ("all", "/all"),
        ("some", "/some"),
        ("secret", "/secret"),
        ("pod", "/pod"),
        ("mixed", "/mixed"),
        ("maybe", "/maybe"),
    ] {
        mount(&mut container, name, path);
    }
    container["volumeMounts"]
        .as_array_mut()
        .expect("mounts")
        .push(json!({"name": "all", "mountPath": "/etc/colour", "subPath": "colour"}));
    container["resources"] = json!({"limits": {"memory": "32Mi"}});
    let mut manifest = pod("files", &[container]);
    manifest["metadata"]["annotations"] = json!({"note": "first"});
    manifest["spec"]["volumes"] = json!([
        {"name": "all", "configMap": {"name": "settings"}},
        {"name": "some", "configMap": {"name": "settings", "defaultMode": 0o640, "items": [
            {"key": "colour", "path": "deep/colour", "mode": 0o400}, {"key": "size", "path": "size"}]}},
        {"name": "secret", "secret": {"secretName": "hidden", "defaultMode": 0o400}},
        {"name": "pod", "downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "note", "fieldRef": {"fieldPath": "metadata.annotations['note']"}},
            {"path": "memory", "resourceFieldRef": {"containerName": "main", "resource": "limits.memory", "divisor": "1Mi"}}]}},
        {"name": "mixed", "projected": {"sources": [
            {"configMap": {"name": "settings", "items": [{"key": "size", "path": "size"}]}},
            {"secret": {"name": "hidden", "items": [{"key": "user", "path": "who/user"}]}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}},
        {"name": "maybe", "configMap": {"name": "nobody", "optional": true}},
    ]);
    carob.apply(&list(&[map("red"), secret, manifest]));
    carob.wait("pod/files", "condition=Ready");
    let inside = |script: &str| carob.kubectl(&["exec", "files", "--", "sh", "-c", script]);
    assert_eq!(
        inside("ls /all; cat /all/colour; hexdump -e '3/1 \"%d \"' /all/bytes"),
        "bytes\ncolour\nsize\nred0 1 2"
    );
    assert_eq!(
        inside("cd /some; find -L . -type f -not -path './..*' | sort; stat -L -c %a deep/colour size"),
        "./deep/colour\n./size\n400\n640\n"
    );
    assert_eq!(inside("cat /secret/password /secret/user; stat -L -c %a /secret/password"), "xme400\n");
    assert_eq!(inside("cat /pod/labels; echo; cat /pod/note; echo; cat /pod/memory"), "app=\"files\"\nfirst\n32");
    assert_eq!(inside("cat /mixed/size /mixed/who/user /mixed/name; ls /maybe"), "largemefiles");
    assert!(carob.kubectl_fails(&["exec", "files", "--", "touch", "/all/x"]).contains("Read-only file system"));

    carob.apply(&map("blue").to_string());
    carob.kubectl(&["annotate", "pod", "files", "note=second", "--overwrite"]);
    carob.kubectl(&["label", "pod", "files", "more=yes"]);
    carob.until(&["exec", "files", "--", "sh", "-c", "cat /all/colour /some/deep/colour /pod/note"], |seen| {
        seen == "bluebluesecond"
    });
    carob.until(&["exec", "files", "--", "cat", "/pod/labels"], |seen| seen.contains("more=\"yes\""));
    assert_eq!(inside("cat /etc/colour"), "red", "a subPath keeps what it was mounted with, as in Kubernetes");

    let mut waiting = shell_pod("waiting", "cat /late/key");
    mount(&mut waiting["spec"]["containers"][0], "late", "/late");
    waiting["spec"]["volumes"] = json!([{"name": "late", "configMap": {"name": "late"}}]);
    carob.apply(&waiting.to_string());
    carob.wait_event("waiting", "MountVolume.SetUp failed for volume \"late\" : configmap \"late\" not found");
    assert!(carob.kubectl(&["get", "pod", "waiting"]).contains("ContainerCreating"));
    carob.kubectl(&["create", "configmap", "late", "--from-literal=key=now"]);
    carob.wait_phase("waiting", "Succeeded");
    assert_eq!(carob.kubectl(&["logs", "waiting"]), "now");
}

#[test]
fn a_projected_token_is_accepted_by_the_api() {
    let carob = Carob::start(&["python"]);
    carob.kubectl(&["create", "serviceaccount", "robot"]);
    let script = r#"
import json, ssl, urllib.request, urllib.error, os, time
base = "/var/run/secrets/kubernetes.io/serviceaccount/"
def ask(path, token, body=None):
    url = "https://%s:%s%s" % (os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"], path)
    request = urllib.request.Request(url, data=body and json.dumps(body).encode(), headers={"Authorization": "Bearer " + token, "Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=base + "ca.crt"), timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
token = open(base + "token").read()
status, answer = ask("/apis/authentication.k8s.io/v1/selfsubjectreviews", token, review)
print(status, answer["status"]["userInfo"]["username"], answer["status"]["userInfo"]["extra"]["authentication.kubernetes.io/pod-name"])
print(ask("/api/v1/namespaces/default/secrets", token)[1]["message"])
print(ask("/apis/authentication.k8s.io/v1/selfsubjectreviews", token + "x", review)[0])
other = open("/other/token").read()
status, answer = ask("/apis/authentication.k8s.io/v1/selfsubjectreviews", other, review)
print(status)
print(open(base + "namespace").read())
"#;
    let mut manifest = pod(
        "caller",
        &[
            json!({"name": "main", "image": "python", "imagePullPolicy": "IfNotPresent", "command": ["python3", "-c", script],
                 "volumeMounts": [{"name": "other", "mountPath": "/other"}]}),
        ],
    );
    manifest["spec"]["serviceAccountName"] = json!("robot");
    manifest["spec"]["volumes"] = json!([{"name": "other", "projected": {"sources": [
        {"serviceAccountToken": {"path": "token", "audience": "someone-else", "expirationSeconds": 600}}]}}]);
    let printed = carob.run_to_end(&manifest);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(
        lines,
        [
            "201 system:serviceaccount:default:robot ['caller']",
            "secrets is forbidden: User \"system:serviceaccount:default:robot\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\"",
            "401",
            "401",
            "default",
        ],
        "the token is known, allowed little, and neither a forged one nor one for others is taken"
    );
    let mut without = shell_pod("without", "true");
    without["spec"]["containers"][0]["image"] = json!("python");
    without["spec"]["containers"][0]["command"] = json!(["sh", "-c", "ls /var/run/secrets 2>&1; true"]);
    without["spec"]["automountServiceAccountToken"] = json!(false);
    assert!(carob.run_to_end(&without).contains("No such file or directory"));
    let token = carob.kubectl(&["create", "token", "robot"]);
    let whoami = carob.kubectl(&["--token", token.trim(), "auth", "whoami"]);
    assert!(!whoami.is_empty());
}

#[test]
fn host_paths_and_sub_paths_stay_inside_what_was_mounted() {
    let carob = Carob::start(&["busybox"]);
    let host = carob.path("host");
    fs::create_dir_all(host.join("below")).expect("a folder");
    fs::write(host.join("below/file"), "of the machine").expect("a file");
    std::os::unix::fs::symlink("/etc", host.join("escape")).expect("a link");
    let host = host.to_string_lossy().into_owned();

    let mut usual = shell_pod(
        "usual",
        "cat /host/below/file; echo back > /host/written; cat /sub/file; cat /one; [ -d /made ] && echo made",
    );
    usual["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "host", "mountPath": "/host"},
        {"name": "host", "mountPath": "/sub", "subPath": "below", "readOnly": true},
        {"name": "host", "mountPath": "/one", "subPath": "below/file"},
        {"name": "made", "mountPath": "/made"},
    ]);
    usual["spec"]["volumes"] = json!([
        {"name": "host", "hostPath": {"path": host, "type": "Directory"}},
        {"name": "made", "hostPath": {"path": format!("{host}/made"), "type": "DirectoryOrCreate"}},
    ]);
    // What nobody checks is made, as by container runtimes.
    usual["spec"]["containers"][0]["volumeMounts"]
        .as_array_mut()
        .expect("mounts")
        .push(json!({"name": "unchecked", "mountPath": "/unchecked"}));
    usual["spec"]["volumes"]
        .as_array_mut()
        .expect("volumes")
        .push(json!({"name": "unchecked", "hostPath": {"path": format!("{host}/un/checked")}}));
    assert_eq!(carob.run_to_end(&usual), "of the machineof the machineof the machinemade\n");
    assert_eq!(fs::read_to_string(format!("{host}/written")).expect("the pod wrote it"), "back\n");
    for made in ["made", "un/checked"] {
        assert!(fs::metadata(format!("{host}/{made}")).is_ok_and(|made| made.is_dir()), "{made}");
    }

    let mut wrong = shell_pod("wrong", "true");
    mount(&mut wrong["spec"]["containers"][0], "host", "/host");
    wrong["spec"]["volumes"] =
        json!([{"name": "host", "hostPath": {"path": format!("{host}/nothing"), "type": "Directory"}}]);
    let mut escaping = shell_pod("escaping", "cat /sub/passwd; ls /sub");
    escaping["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "host", "mountPath": "/sub", "subPath": "escape"}]);
    escaping["spec"]["volumes"] = json!([{"name": "host", "hostPath": {"path": host}}]);
    // What the first container puts into a shared volume doesn't lead the second one out of it.
    let mut planted = pod("planted", &[shell("main", "ls /sub; cat /sub/shadow")]);
    let mut first = shell("planter", "ln -s /etc /data/link");
    mount(&mut first, "data", "/data");
    planted["spec"]["initContainers"] = json!([first]);
    planted["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "data", "mountPath": "/sub", "subPath": "link"}]);
    planted["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    carob.apply(&list(&[wrong, escaping, planted]));
    carob.wait_event("wrong", "hostPath type check failed");
    for name in ["escaping", "planted"] {
        carob.wait_event(name, "failed to prepare subPath for volumeMount");
        assert!(carob.kubectl(&["get", "pod", name]).contains("CreateContainerConfigError"));
    }
    let refused = carob.pipe(&["create", "-f", "-"], &{
        let mut dots = shell_pod("dots", "true");
        dots["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "data", "mountPath": "/d", "subPath": "a/../../b"}]);
        dots["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        dots.to_string()
    });
    assert!(
        carob_tests::text(&refused)
            .contains("spec.containers[0].volumeMounts.subPath: Invalid value: \"a/../../b\": must not contain '..'")
    );
}

#[test]
fn whoever_may_write_a_volume_may_write_the_sub_paths_made_in_it() {
    let carob = Carob::start(&["busybox"]);
    let mut manifest = shell_pod("writer", "touch /disk/file /memory/file && stat -c '%a %g' /disk /memory");
    manifest["spec"]["securityContext"] = json!({"runAsUser": 1000, "fsGroup": 2000});
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "disk", "mountPath": "/disk", "subPath": "deep/down"},
        {"name": "memory", "mountPath": "/memory", "subPath": "down"},
    ]);
    manifest["spec"]["volumes"] =
        json!([{"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}}]);
    let seen = carob.run_to_end(&manifest);
    let modes: Vec<&str> = seen.lines().collect();
    assert_eq!(modes, ["2777 2000", "3777 2000"]);
}

/// Whether a file below the directory holds these bytes.
fn on_disk(directory: &Path, bytes: &[u8]) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| {
        let kind = entry.file_type().expect("a kind");
        if kind.is_dir() {
            return on_disk(&entry.path(), bytes);
        }
        kind.is_file() && fs::read(entry.path()).is_ok_and(|found| found.windows(bytes.len()).any(|part| part == bytes))
    })
}

/// Who the bearer of a token is, without the administrator's certificate.
fn whoami(carob: &Carob, token: &str) -> String {
    let authority = carob.data_dir().join("pki/ca.crt");
    let server = format!("https://127.0.0.1:{}", carob.port());
    carob.kubectl(&[
        "--kubeconfig=/dev/null",
        "--server",
        &server,
        "--certificate-authority",
        &authority.to_string_lossy(),
        "--token",
        token,
        "auth",
        "whoami",
    ])
}

#[test]
fn secrets_and_tokens_are_in_memory_only_follow_changes_and_outlive_the_gateway() {
    let mut carob = Carob::start(&["busybox"]);
    let secret = |password: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hidden"},
            "stringData": {"password": password, "user": password}})
    };
    let mut container = shell("main", "sleep 3600");
    mount(&mut container, "plain", "/plain");
    mount(&mut container, "mixed", "/mixed");
    container["volumeMounts"]
        .as_array_mut()
        .expect("mounts")
        .push(json!({"name": "plain", "mountPath": "/one", "subPath": "password"}));
    container["env"] =
        json!([{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "password"}}}]);
    let mut manifest = pod("keeper", &[container]);
    manifest["spec"]["volumes"] = json!([
        {"name": "plain", "secret": {"secretName": "hidden", "defaultMode": 0o400}},
        {"name": "mixed", "projected": {"sources": [
            {"secret": {"name": "hidden", "items": [{"key": "user", "path": "who"}]}},
            {"downwardAPI": {"items": [{"path": "note", "fieldRef": {"fieldPath": "metadata.annotations['note']"}}]}},
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]}},
    ]);
    manifest["metadata"]["annotations"] = json!({"note": "first"});
    carob.apply(&list(&[secret("hunter2-first"), manifest]));
    carob.wait("pod/keeper", "condition=Ready");
    let inside = |carob: &Carob, script: &str| carob.kubectl(&["exec", "keeper", "--", "sh", "-c", script]);
    assert_eq!(inside(&carob, "cat /plain/password /mixed/who /one; echo $PASSWORD"), "hunter2-first".repeat(4) + "\n");
    let mounts = inside(&carob, "grep -E ' (/plain|/mixed|/one|/run/secrets/.*|/var/run/secrets/.*) ' /proc/mounts");
    assert!(mounts.lines().count() == 4 && mounts.lines().all(|line| line.starts_with("tmpfs ")), "{mounts}");
    let token = inside(&carob, "cat /mixed/token");
    let nowhere = |carob: &Carob, bytes: &str| {
        for directory in ["pods", "sandboxes", "logs", "images"] {
            assert!(!on_disk(&carob.data_dir().join(directory), bytes.as_bytes()), "{bytes} is in {directory}");
        }
    };
    nowhere(&carob, "hunter2-first");
    nowhere(&carob, &token);
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    assert!(!table.contains(&*carob.data_dir().to_string_lossy()), "{table}");

    // Readers see one version as a whole, at every moment.
    let watching = "while :; do d=$(readlink -f /plain/..data); a=$(cat $d/password $d/user 2>/dev/null) || continue; case $a in
        hunter2-firsthunter2-first) ;; hunter2-otherhunter2-other) echo whole; exit;; *) echo torn $a; exit;; esac; done";
    let mut exec = carob.kubectl_command();
    let mut watcher = Running::start(exec.args(["exec", "keeper", "--", "sh", "-c", watching]));
    carob.apply(&secret("hunter2-other").to_string());
    watcher.end();
    assert_eq!(watcher.output(), "whole\n");
    assert_eq!(inside(&carob, "cat /one"), "hunter2-first", "a subPath stays what it was");

    // A refresh, here for another reason than age, brings another token, and both are good.
    carob.kubectl(&["annotate", "pod", "keeper", "note=second", "--overwrite"]);
    carob.until(&["exec", "keeper", "--", "cat", "/mixed/note"], |seen| seen == "second");
    let newer = inside(&carob, "cat /mixed/token");
    for token in [&token, &newer] {
        let whoami = whoami(&carob, token);
        assert!(whoami.contains("system:serviceaccount:default:default"), "{whoami}");
    }

    carob.kill();
    carob.up(&[]);
    assert_eq!(inside(&carob, "cat /plain/password /mixed/who"), "hunter2-other".repeat(2));
    carob.apply(&secret("hunter2-later").to_string());
    carob.until(&["exec", "keeper", "--", "cat", "/plain/password", "/mixed/who"], |seen| {
        seen == "hunter2-later".repeat(2)
    });
    assert_eq!(carob.jsonpath("pod/keeper", ".status.containerStatuses[0].restartCount"), "0");
    nowhere(&carob, "hunter2-later");
}

#[test]
fn parts_of_a_volume_in_memory_are_mounted_and_its_group_is_the_pods() {
    let carob = Carob::start(&["busybox"]);
    let mut manifest =
        shell_pod("parts", "echo x > /deep/f; cat /whole/a/b/f; stat -c %a:%g /whole; stat -c %g /deep/f");
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "memory", "mountPath": "/whole"}, {"name": "memory", "mountPath": "/deep", "subPath": "a/b"}]);
    manifest["spec"]["volumes"] = json!([{"name": "memory", "emptyDir": {"medium": "Memory"}}]);
    manifest["spec"]["securityContext"] = json!({"fsGroup": 2000});
    assert_eq!(carob.run_to_end(&manifest), "x\n3777:2000\n2000\n");
}

#[test]
fn a_stateful_sets_claims_are_directories_that_outlive_its_pods() {
    let carob = Carob::start(&["busybox"]);
    carob.apply(
        r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: diary}
spec:
  serviceName: diary
  replicas: 2
  selector: {matchLabels: {app: diary}}
  template:
    metadata: {labels: {app: diary}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'hostname >> /data/who; sleep 3600']
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
"#,
    );
    carob.kubectl(&["rollout", "status", "statefulset/diary", "--timeout=60s"]);
    let before = carob.jsonpath("pod/diary-1", ".metadata.uid");
    carob.kubectl(&["delete", "pod", "diary-1"]);
    eventually("another pod bears the name", || {
        let uid = carob.kubectl(&["get", "pod", "diary-1", "--ignore-not-found", "-o", "jsonpath={.metadata.uid}"]);
        !uid.is_empty() && uid != before
    });
    carob.wait("pod/diary-1", "condition=Ready");
    assert_eq!(carob.kubectl(&["exec", "diary-1", "--", "cat", "/data/who"]), "diary-1\ndiary-1\n");
    assert_eq!(carob.kubectl(&["exec", "diary-0", "--", "cat", "/data/who"]), "diary-0\n", "each has its own");
    assert_eq!(carob.jsonpath("pvc/data-diary-1", ".status.phase"), "Bound");
}

#[test]
fn an_ephemeral_volume_is_a_claim_that_grows_and_goes_with_its_pod() {
    let carob = Carob::start(&["busybox"]);
    let mut container = shell("main", "echo kept > /data/file; sleep 3600");
    mount(&mut container, "data", "/data");
    let mut manifest = pod("own", &[container]);
    let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    manifest["spec"]["volumes"] = json!([{"name": "data", "ephemeral": {"volumeClaimTemplate": {"spec": spec}}}]);
    carob.start_pod(&manifest.to_string(), "own");
    let wrote = |seen: &str| seen == "kept\n";
    carob.until(&["exec", "own", "--", "sh", "-c", "cat /data/file || true"], wrote);
    assert_eq!(carob.jsonpath("pvc/own-data", ".metadata.ownerReferences[0].name"), "own");
    let more = r#"{"spec": {"resources": {"requests": {"storage": "3Gi"}}}}"#;
    carob.kubectl(&["patch", "pvc", "own-data", "-p", more]);
    carob.until(&["get", "pvc", "own-data", "-o", "jsonpath={.status.capacity.storage}"], |size| size == "3Gi");
    carob.kubectl(&["delete", "pod", "own", "--now"]);
    carob.until(&["get", "pvc,pv", "-o", "name"], str::is_empty);
}

#[test]
fn who_must_be_alone_with_a_claim_waits_also_where_no_scheduler_saw_it() {
    let mut carob = Carob::start(&["tools"]);
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "own"},
        "spec": {"accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "1Mi"}}}});
    let node = carob.jsonpath("nodes", ".items[0].metadata.name");
    let using = |name: &str| {
        let mut manifest = pod(name, &[idle("main")]);
        manifest["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "own"}}]);
        mount(&mut manifest["spec"]["containers"][0], "data", "/data");
        manifest
    };
    carob.apply(&list(&[claim, using("first")]));
    carob.wait("pod/first", "condition=Ready");
    // The next process knows whose it is.
    carob.kill();
    carob.up(&[]);
    let mut second = using("second");
    second["spec"]["nodeName"] = json!(node);
    carob.apply(&second.to_string());
    carob.wait_event("second", "volume uses the ReadWriteOncePod access mode and is already in use by another pod");
    carob.kubectl(&["delete", "pod", "first", "--now"]);
    carob.wait("pod/second", "condition=Ready");
}

#[test]
fn a_claims_files_are_given_to_the_pods_group_as_its_policy_says() {
    let carob = Carob::start(&["busybox"]);
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "kept"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}});
    carob.apply(&claim.to_string());
    let run = |name: &str, script: &str, context: Value| {
        let mut manifest = shell_pod(name, script);
        manifest["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "kept"}}]);
        mount(&mut manifest["spec"]["containers"][0], "data", "/data");
        manifest["spec"]["securityContext"] = context;
        carob.run_to_end(&manifest)
    };
    let looking = "stat -c '%n %a %g' /data /data/inner";
    // By root, as it comes.
    run("first", "mkdir -p /data/inner && chmod 700 /data/inner", json!({}));
    let grouped = |policy: &str| json!({"runAsUser": 1000, "fsGroup": 2000, "fsGroupChangePolicy": policy});
    assert_eq!(run("always", looking, grouped("Always")), "/data 2777 2000\n/data/inner 2770 2000\n");
    run("second", "chgrp 7 /data/inner", json!({}));
    assert_eq!(run("matching", looking, grouped("OnRootMismatch")), "/data 2777 2000\n/data/inner 2770 7\n");
    assert_eq!(run("again", looking, grouped("Always")), "/data 2777 2000\n/data/inner 2770 2000\n");
}
