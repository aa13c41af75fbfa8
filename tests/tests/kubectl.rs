//! kubectl's commands against the API, as a person at a terminal uses them.

use carob_tests::pods::{list, pod, shell_pod, tools};
use carob_tests::terminal::Running;
use carob_tests::{Carob, kubectl_of, text};
use serde_json::{Value, json};

fn config(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"tier": name}}, "data": data})
}

#[test]
fn objects_are_applied_created_read_in_every_form_and_deleted() {
    let carob = Carob::start(&["tools"]);
    let manifest = list(&[config("one", &json!({"k": "1"})), config("two", &json!({"k": "2"}))]);
    assert_eq!(carob.apply(&manifest), "configmap/one created\nconfigmap/two created\n");
    assert_eq!(carob.apply(&manifest), "configmap/one unchanged\nconfigmap/two unchanged\n");
    let changed = list(&[config("one", &json!({"k": "3"})), config("two", &json!({"k": "2"}))]);
    assert_eq!(carob.apply(&changed), "configmap/one configured\nconfigmap/two unchanged\n");
    assert_eq!(carob.jsonpath("configmap/one", ".data.k"), "3");

    carob.kubectl(&["create", "configmap", "three", "--from-literal=a=b"]);
    let again = carob.kubectl_fails(&["create", "configmap", "three"]);
    assert_eq!(again, "error: failed to create configmap: configmaps \"three\" already exists\n");
    carob.kubectl(&["create", "secret", "generic", "hidden", "--from-literal=password=x y"]);
    assert_eq!(carob.jsonpath("secret/hidden", ".data.password"), "eCB5");
    carob.kubectl(&["create", "serviceaccount", "robot"]);
    carob.kubectl(&["create", "namespace", "elsewhere"]);
    carob.kubectl(&["-n", "elsewhere", "create", "configmap", "three"]);

    carob.start_pod(&pod("web", &[tools("main", &["http-server"])]).to_string(), "web");
    let table = carob.kubectl(&["get", "pods"]);
    assert!(
        table.starts_with("NAME   READY   STATUS    RESTARTS   AGE\nweb    1/1     Running   0          "),
        "{table}"
    );
    let wide = carob.kubectl(&["get", "pods", "-o", "wide"]);
    assert_eq!(
        wide.lines().next().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).as_deref(),
        Some("NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES")
    );
    let address = carob.jsonpath("pod/web", ".status.podIP");
    assert!(wide.contains(&address), "{wide}");
    let labels = carob.kubectl(&["get", "pods", "--show-labels", "-L", "app"]);
    assert!(labels.contains("APP") && labels.contains("app=web"), "{labels}");

    let yaml = carob.kubectl(&["get", "configmap", "two", "-o", "yaml"]);
    assert!(yaml.starts_with("apiVersion: v1\ndata:\n  k: \"2\"\nkind: ConfigMap\nmetadata:\n"), "{yaml}");
    let json = carob.get(&["configmap", "two"]);
    assert_eq!(json["data"]["k"], "2");
    assert!(json["metadata"]["managedFields"].is_null(), "kubectl leaves managedFields out");
    let fields = carob.kubectl(&["get", "configmap", "two", "-o", "yaml", "--show-managed-fields"]);
    assert!(fields.contains("manager: kubectl-client-side-apply") && fields.contains("f:data:"), "{fields}");
    assert_eq!(carob.kubectl(&["get", "cm/two", "secret/hidden", "-o", "name"]), "configmap/two\nsecret/hidden\n");
    let columns = carob.kubectl(&[
        "get",
        "cm",
        "-l",
        "tier in (one,two)",
        "--sort-by=.data.k",
        "-o",
        "custom-columns=N:.metadata.name,K:.data.k",
    ]);
    assert_eq!(columns, "N     K\ntwo   2\none   3\n");
    assert_eq!(carob.kubectl(&["get", "cm", "-l", "tier=two", "-o", "name"]), "configmap/two\n");
    assert_eq!(carob.kubectl(&["get", "cm", "--field-selector=metadata.name=one", "-o", "name"]), "configmap/one\n");
    let everywhere = carob.kubectl(&["get", "cm", "-A", "--field-selector=metadata.name=three", "--no-headers"]);
    let namespaces: Vec<_> = everywhere.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(namespaces, ["default", "elsewhere"]);
    let limited = carob.kubectl(&["get", "cm", "--chunk-size=1", "-o", "name"]);
    assert_eq!(limited.lines().count(), 4, "pages of one, with kube-root-ca.crt: {limited}");

    assert_eq!(carob.kubectl(&["delete", "cm", "one", "two"]).lines().count(), 2);
    let gone = carob.kubectl_fails(&["get", "cm", "one"]);
    assert_eq!(gone, "Error from server (NotFound): configmaps \"one\" not found\n");
    assert_eq!(carob.kubectl(&["delete", "cm", "one", "--ignore-not-found"]), "");
    let deleted = carob.pipe(&["delete", "-f", "-"], &config("three", &json!({})).to_string());
    assert!(text(&deleted).contains("configmap \"three\" deleted"), "{}", text(&deleted));
    carob.kubectl(&["delete", "pod", "web", "--now"]);
    assert_eq!(carob.kubectl(&["get", "pods", "-o", "name"]), "");
}

#[test]
fn a_watch_shows_each_change_in_order_and_wait_ends_on_conditions() {
    let carob = Carob::start(&["busybox"]);
    let watch = Running::start(carob.kubectl_command().args([
        "get",
        "cm",
        "-l",
        "tier=seen",
        "-w",
        "--output-watch-events",
        "-o",
        "custom-columns=E:.type,N:.object.metadata.name,K:.object.data.k",
    ]));
    carob.apply(&config("seen", &json!({"k": "v1"})).to_string());
    watch.expect("v1");
    for version in ["v2", "v3", "v4"] {
        carob.apply(&config("seen", &json!({"k": version})).to_string());
    }
    carob.kubectl(&["delete", "cm", "seen"]);
    watch.expect("DELETED");
    let seen: Vec<String> =
        watch.output().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        seen,
        ["E N K", "ADDED seen v1", "MODIFIED seen v2", "MODIFIED seen v3", "MODIFIED seen v4", "DELETED seen v4"]
    );

    // The words of each state of a pod, as a person watching reads them.
    let pods = Running::start(carob.kubectl_command().args(["get", "pods", "-w"]));
    let waiting = Running::start(carob.kubectl_command().args([
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "pod/short",
        "--timeout=60s",
    ]));
    carob.apply(&shell_pod("short", "sleep 0.5").to_string());
    pods.expect("Completed");
    let states = pods.output();
    let order: Vec<_> = ["Pending", "Running", "Completed"].map(|state| states.find(state)).into();
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{states}");
    drop(waiting);
    carob.wait("pod/short", "jsonpath={.status.phase}=Succeeded");
    // What waits for an object's end waits as long as a finalizer holds it, and no longer.
    let hold = |finalizers: Value| json!({"metadata": {"finalizers": finalizers}}).to_string();
    carob.kubectl(&["patch", "pod", "short", "--type=merge", "-p", &hold(json!(["example.com/hold"]))]);
    carob.kubectl(&["delete", "pod", "short", "--wait=false"]);
    let held = carob.kubectl_fails(&["wait", "--for=delete", "pod/short", "--timeout=1s"]);
    assert!(held.contains("timed out waiting for the condition"), "{held}");
    carob.kubectl(&["patch", "pod", "short", "--type=merge", "-p", &hold(Value::Null)]);
    carob.kubectl(&["wait", "--for=delete", "pod/short", "--timeout=60s"]);
    let never =
        carob.kubectl_fails(&["wait", "--for=condition=Ready", "node", "--all=true", "--timeout=0s", "-l", "a=b"]);
    assert!(never.contains("no matching resources found"), "{never}");
}

#[test]
fn objects_are_edited_patched_labelled_and_annotated() {
    let carob = Carob::start(&[]);
    carob.apply(&config("subject", &json!({"a": "1", "b": "2"})).to_string());

    let editor = |script: &str| {
        let mut command = carob.kubectl_command();
        command.env("KUBE_EDITOR", format!("sed -i {script}")).args(["edit", "configmap", "subject"]);
        command.output().expect("kubectl starts")
    };
    let edited = editor("'s/a: \"1\"/a: edited/'");
    assert_eq!(text(&edited), "configmap/subject edited\n");
    assert_eq!(carob.jsonpath("cm/subject", ".data.a"), "edited");
    assert_eq!(text(&editor("'s/x/x/'")), "Edit cancelled, no changes made.\n");

    let patch = |kind: &str, patch: &str| carob.run(&["patch", "cm", "subject", "--type", kind, "-p", patch]);
    assert!(patch("strategic", r#"{"data": {"a": "strategic"}}"#).status.success());
    assert!(patch("merge", r#"{"data": {"b": null, "c": "merged"}}"#).status.success());
    assert!(patch("json", r#"[{"op": "test", "path": "/data/a", "value": "strategic"}, {"op": "copy", "from": "/data/c", "path": "/data/d"}]"#).status.success());
    let data = carob.get(&["cm", "subject"])["data"].clone();
    assert_eq!(data, json!({"a": "strategic", "c": "merged", "d": "merged"}));
    let failed = text(&patch("json", r#"[{"op": "test", "path": "/data/a", "value": "other"}]"#));
    assert!(
        failed.contains("the server rejected our request due to an error in our request") || failed.contains("test"),
        "{failed}"
    );
    let unchanged = text(&patch("merge", r#"{"data": {"c": "merged"}}"#));
    assert_eq!(unchanged, "configmap/subject patched (no change)\n");

    // A strategic patch merges lists by their keys.
    carob.apply(
        &json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "lists"},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "one", "image": "i"}, {"name": "two", "image": "i"}]}}},
        })
        .to_string(),
    );
    carob.kubectl(&[
        "patch", "deployment", "lists", "-p",
        r#"{"spec": {"template": {"spec": {"containers": [{"name": "two", "image": "new"}, {"name": "one", "$patch": "delete"}]}}}}"#,
    ]);
    assert_eq!(carob.jsonpath("deployment/lists", ".spec.template.spec.containers[*].name"), "two");
    assert_eq!(carob.jsonpath("deployment/lists", ".spec.template.spec.containers[*].image"), "new");
    carob.kubectl(&["set", "image", "deployment/lists", "two=newer"]);
    carob.kubectl(&["set", "env", "deployment/lists", "COLOUR=red"]);
    assert_eq!(carob.jsonpath("deployment/lists", ".spec.template.spec.containers[0].env[0].value"), "red");

    carob.kubectl(&["label", "cm", "subject", "colour=green"]);
    let refused = carob.kubectl_fails(&["label", "cm", "subject", "colour=red"]);
    assert!(refused.contains("already has a value (green)"), "{refused}");
    carob.kubectl(&["label", "cm", "subject", "colour=red", "--overwrite"]);
    assert_eq!(carob.kubectl(&["get", "cm", "-l", "colour=red", "-o", "name"]), "configmap/subject\n");
    carob.kubectl(&["label", "cm", "subject", "colour-"]);
    assert_eq!(carob.kubectl(&["get", "cm", "-l", "colour", "-o", "name"]), "");
    let invalid = carob.kubectl_fails(&["annotate", "cm", "subject", "a b=c"]);
    assert!(invalid.contains("name part must consist of alphanumeric characters"), "{invalid}");
    carob.kubectl(&["annotate", "cm", "subject", "note=some words"]);
    assert_eq!(carob.jsonpath("cm/subject", ".metadata.annotations.note"), "some words");

    // replace: with a stale resourceVersion it is a conflict.
    let mut stale = carob.get(&["cm", "subject"]);
    carob.kubectl(&["annotate", "cm", "subject", "note-"]);
    stale["data"]["a"] = json!("stale");
    let conflict = carob.pipe(&["replace", "-f", "-"], &stale.to_string());
    assert!(
        text(&conflict).contains("the object has been modified; please apply your changes to the latest version"),
        "{}",
        text(&conflict)
    );
}

#[test]
fn server_side_apply_keeps_owners_apart_and_dry_runs_change_nothing() {
    let carob = Carob::start(&[]);
    let apply = |manager: &str, data: &Value, more: &[&str]| {
        let manager = format!("--field-manager={manager}");
        let mut arguments = vec!["apply", "--server-side", &manager, "-f", "-"];
        arguments.extend(more);
        carob.pipe(&arguments, &config("shared", data).to_string())
    };
    assert_eq!(text(&apply("first", &json!({"a": "1", "b": "1"}), &[])), "configmap/shared serverside-applied\n");
    let conflict = text(&apply("second", &json!({"a": "2"}), &[]));
    assert!(conflict.contains("Apply failed with 1 conflict: conflict with \"first\": .data.a"), "{conflict}");
    assert!(apply("second", &json!({"a": "2"}), &["--force-conflicts"]).status.success());
    assert!(apply("first", &json!({"c": "1"}), &[]).status.success());
    assert_eq!(
        carob.get(&["cm", "shared"])["data"],
        json!({"a": "2", "c": "1"}),
        "b went with its owner, a now belongs to the second"
    );

    let manifest = config("shared", &json!({"a": "dry"})).to_string();
    let dry = carob.pipe(&["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"], &manifest);
    assert_eq!(text(&dry), "configmap/shared serverside-applied (server dry run)\n");
    assert_eq!(carob.jsonpath("cm/shared", ".data.a"), "2");
    carob.kubectl(&["create", "cm", "dry", "--dry-run=server"]);
    carob.kubectl_fails(&["get", "cm", "dry"]);
    let difference = carob.pipe(&["diff", "--server-side", "--force-conflicts", "-f", "-"], &manifest);
    assert_eq!(difference.status.code(), Some(1), "{}", text(&difference));
    assert!(text(&difference).contains("+  a: dry"), "{}", text(&difference));
}

#[test]
fn describe_shows_objects_with_their_events() {
    let carob = Carob::start(&["tools"]);
    let mut manifest = pod("web", &[tools("main", &["http-server"])]);
    manifest["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": "100m", "memory": "16Mi"}, "limits": {"memory": "32Mi"}});
    manifest["spec"]["containers"][0]["env"] = json!([{"name": "COLOUR", "value": "red"}]);
    carob.start_pod(&manifest.to_string(), "web");
    carob.until(&["describe", "pod", "web"], |seen| {
        ["Scheduled", "Pulled", "Created", "Started"].iter().all(|reason| seen.contains(reason))
    });
    let described = carob.kubectl(&["describe", "pod", "web"]);
    for expected in [
        "Status:           Running",
        "COLOUR:  red",
        "QoS Class:                   Burstable",
        "Successfully assigned default/web to",
        "Container image \"tools\" already present on machine and can be accessed by the pod",
        "Container created",
        "Container started",
        "/var/run/secrets/kubernetes.io/serviceaccount from kube-api-access-",
    ] {
        assert!(described.contains(expected), "{expected:?} is missing:\n{described}");
    }
    let node = carob.kubectl(&["describe", "nodes"]);
    for expected in ["Ready            True", "Allocatable:", "default                     web", "100m ("] {
        assert!(node.contains(expected), "{expected:?} is missing:\n{node}");
    }
    let events = carob.kubectl(&["get", "events", "--field-selector", "reason=Started"]);
    assert!(events.contains("pod/web"), "{events}");
    let events = carob.kubectl(&["events", "--for", "pod/web"]);
    assert!(events.contains("Scheduled"), "{events}");
    for object in ["namespace/default", "serviceaccount/default", "configmap/kube-root-ca.crt"] {
        assert!(carob.kubectl(&["describe", object]).starts_with("Name:"), "{object}");
    }
}

#[test]
fn the_api_describes_itself() {
    let carob = Carob::start(&[]);
    let resources = carob.kubectl(&["api-resources"]);
    for expected in [
        "namespaces ns v1 false Namespace",
        "pods po v1 true Pod",
        "deployments deploy apps/v1 true Deployment",
        "replicasets rs apps/v1 true ReplicaSet",
        "jobs batch/v1 true Job",
        "configmaps cm v1 true ConfigMap",
        "secrets v1 true Secret",
        "serviceaccounts sa v1 true ServiceAccount",
        "nodes no v1 false Node",
        "events ev v1 true Event",
        "leases coordination.k8s.io/v1 true Lease",
    ] {
        let found = resources.lines().any(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") == expected);
        assert!(found, "{expected:?} is missing:\n{resources}");
    }
    assert!(carob.kubectl(&["api-versions"]).lines().any(|line| line == "apps/v1"));
    let field = carob.kubectl(&["explain", "pod.spec.containers.resources.limits"]);
    assert!(
        field.contains("FIELD: limits <map[string]Quantity>") && field.contains("maximum amount of compute"),
        "{field}"
    );
    let tree = carob.kubectl(&["explain", "deployment", "--recursive"]);
    assert!(tree.contains("GROUP:      apps") && tree.contains("maxSurge\t<IntOrString>"), "{tree}");
    assert!(carob.kubectl_fails(&["explain", "pod.spec.nonsense"]).contains("field \"nonsense\" does not exist"));

    let version = carob.kubectl(&["version", "-o", "json"]);
    let version: Value = serde_json::from_str(&version).expect("JSON");
    assert_eq!(version["serverVersion"]["major"], "1");
    let raw: Value = serde_json::from_str(&carob.kubectl(&["get", "--raw", "/version"])).expect("JSON");
    assert_eq!(raw["gitVersion"], version["serverVersion"]["gitVersion"]);
    assert_eq!(carob.kubectl(&["get", "--raw", "/readyz"]), "ok");
    let v2: Value = serde_json::from_str(&carob.kubectl(&["get", "--raw", "/openapi/v2"])).expect("JSON");
    assert_eq!(v2["swagger"], "2.0");
    let v3: Value = serde_json::from_str(&carob.kubectl(&["get", "--raw", "/openapi/v3"])).expect("JSON");
    let apps = v3["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("a path");
    assert!(carob.kubectl(&["get", "--raw", apps]).contains("io.k8s.api.apps.v1.Deployment"));

    assert_eq!(carob.kubectl(&["auth", "can-i", "delete", "nodes"]).trim(), "yes");
    let whoami = carob.kubectl(&["auth", "whoami"]);
    assert!(whoami.contains("kubernetes-admin") && whoami.contains("system:masters"), "{whoami}");
    let unknown = carob.kubectl_fails(&["get", "unicorns"]);
    assert_eq!(unknown, "error: the server doesn't have a resource type \"unicorns\"\n");
}

#[test]
fn kubectl_1_33_to_1_35_work_as_well() {
    let mut carob = Carob::start(&["busybox"]);
    for minor in [33, 34, 35] {
        carob.use_kubectl(kubectl_of(minor));
        main_commands(&carob, minor);
    }
}

fn main_commands(carob: &Carob, minor: u32) {
    let version: Value = serde_json::from_str(&carob.kubectl(&["version", "-o", "json"])).expect("JSON");
    assert_eq!(version["clientVersion"]["minor"], minor.to_string());
    carob.apply(
        &json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{
                    "name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", "echo begun; trap 'exit 0' TERM; while :; do sleep 0.1; done"]}]}}},
        })
        .to_string(),
    );
    carob.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    carob.kubectl(&["scale", "deployment/web", "--replicas=2"]);
    carob.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let logs =
        carob.until(&["logs", "deployment/web", "--all-pods", "--prefix"], |seen| seen.matches("begun").count() == 2);
    assert!(logs.contains("[pod/web-"), "{logs}");
    assert_eq!(carob.kubectl(&["exec", "deployment/web", "--", "echo", "hello"]), "hello\n");
    assert_eq!(text(&carob.pipe(&["exec", "-i", "deployment/web", "--", "cat"], "through")), "through");
    let pod = carob.jsonpath("pods", ".items[0].metadata.name");
    std::fs::write(carob.path("file"), "content").expect("a file");
    carob.kubectl(&["cp", &carob.path("file").to_string_lossy(), &format!("{pod}:/tmp/file")]);
    assert_eq!(carob.kubectl(&["exec", &pod, "--", "cat", "/tmp/file"]), "content");
    carob.kubectl(&["label", "deployment/web", "a=b"]);
    carob.kubectl(&["patch", "deployment/web", "--type=merge", "-p", r#"{"metadata": {"annotations": {"c": "d"}}}"#]);
    carob.kubectl(&["describe", "deployment/web"]);
    assert!(carob.kubectl(&["explain", "job.spec.completions"]).contains("FIELD: completions <integer>"));
    assert!(carob.kubectl(&["get", "deployments"]).contains("web    2/2     2            2"));
    carob.kubectl(&["delete", "deployment/web", "--wait"]);
    carob.until(&["get", "pods", "-o", "name"], str::is_empty);
}

#[test]
fn several_objects_are_taken_as_one_list_as_get_prints_them() {
    let carob = Carob::start(&[]);
    carob.apply(&list(&[config("one", &json!({"k": "1"})), config("two", &json!({"k": "2"}))]));
    let printed = carob.kubectl(&["get", "configmap", "one", "two", "-o", "yaml"]);
    assert!(printed.contains("kind: List"), "{printed}");
    carob.kubectl(&["delete", "configmap", "one", "two"]);
    assert_eq!(carob.apply(&printed), "configmap/one created\nconfigmap/two created\n");
}

#[test]
fn cluster_info_names_the_address_of_the_api() {
    let carob = Carob::start(&[]);
    let info = carob.kubectl(&["cluster-info"]);
    assert!(
        info.contains("Kubernetes control plane") && info.contains(&format!("https://127.0.0.1:{}", carob.port())),
        "{info}"
    );
}

/// A key of nobody, and a request for a certificate that it signed: of `ann` in `team-a` and `team-b`.
const KEY: &str = "\
-----BEGIN PRIVATE KEY-----\n\
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgpyyuSMQXkFnvKy4Y\n\
RMX/NiZBijrK4wMmyXQq+c6KUIyhRANCAASls7CYnCMNZmb8aCB3tagpTfgqObT2\n\
Pbf/7FR8J9RVCLd/no9MdpjeO/evZKkGkUgX5RSvboS2VIgNObx2WhYk\n\
-----END PRIVATE KEY-----\n";
const REQUEST: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIcU1JR1NBZ0VBTURBeER6QU5CZ05WQkFvTUJuUmxZVzB0WVRFUE1BMEdBMVVFQ2d3R2RHVmhiUzFpTVF3dwpDZ1lEVlFRRERBTmhibTR3V1RBVEJnY3Foa2pPUFFJQkJnZ3Foa2pPUFFNQkJ3TkNBQVNsczdDWW5DTU5abWI4CmFDQjN0YWdwVGZncU9iVDJQYmYvN0ZSOEo5UlZDTGQvbm85TWRwamVPL2V2WktrR2tVZ1g1UlN2Ym9TMlZJZ04KT2J4MldoWWtvQUF3Q2dZSUtvWkl6ajBFQXdJRFJ3QXdSQUlnY3FCWWdFTnhYSVlJSE1rWms1TEsvVE9VSS81UQoxTzdLVXlwdEdaRnhuaHNDSUhHTHFWa1pFOG0vaVpBcGQrdmUwUHhTSHYxaVE4TTd5elE1ODFDUFBYdWkKLS0tLS1FTkQgQ0VSVElGSUNBVEUgUkVRVUVTVC0tLS0tCg==";

#[test]
fn a_certificate_is_asked_for_approved_and_used() {
    let carob = Carob::start(&[]);
    let request = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": "ann"}, "spec": {"request": REQUEST, "usages": ["client auth"],
        "signerName": "kubernetes.io/kube-apiserver-client", "expirationSeconds": 86400}});
    carob.apply(&request.to_string());
    assert!(carob.kubectl(&["get", "csr", "ann"]).contains("Pending"));
    let approved = carob.kubectl(&["certificate", "approve", "ann"]);
    assert_eq!(approved, "certificatesigningrequest.certificates.k8s.io/ann approved\n");
    let template = "go-template={{if .status.certificate}}{{.status.certificate | base64decode}}{{end}}";
    let certificate = carob.until(&["get", "csr", "ann", "-o", template], |pem| pem.contains("END CERTIFICATE"));
    assert!(carob.kubectl(&["get", "csr", "ann"]).contains("Approved,Issued"));
    let (certificate_path, key_path, config_path) = (carob.path("ann.crt"), carob.path("ann.key"), carob.path("ann"));
    std::fs::write(&certificate_path, certificate).expect("a file");
    std::fs::write(&key_path, KEY).expect("a file");
    let mut config: Value =
        serde_json::from_str(&carob.kubectl(&["config", "view", "--raw", "-o", "json"])).expect("JSON");
    config["users"][0]["user"] = json!({"client-certificate": certificate_path, "client-key": key_path});
    std::fs::write(&config_path, config.to_string()).expect("a file");
    let own = config_path.to_string_lossy().into_owned();
    let me: Value =
        serde_json::from_str(&carob.kubectl(&["--kubeconfig", &own, "auth", "whoami", "-o", "json"])).expect("JSON");
    assert_eq!(me["status"]["userInfo"]["username"], "ann");
    assert_eq!(me["status"]["userInfo"]["groups"], json!(["team-a", "team-b", "system:authenticated"]));
}
