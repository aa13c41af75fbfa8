//! A chart with hooks goes through its whole life with Helm.

use std::fs;
use std::process::Command;

use carob_tests::{Carob, kubectl_of, text};
use serde_json::Value;

const CHART: &str = "apiVersion: v2\nname: shop\nversion: 0.1.0\nappVersion: '1'\n";

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'exec sleep 3600']
        envFrom: [{configMapRef: {name: {{ .Release.Name }}}}]
"#;

const SETTINGS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}}
data: {COLOUR: {{ .Values.colour }}}
"#;

/// A Job that leaves a ConfigMap's worth of proof: Helm waits for its end.
const HOOK: &str = r#"
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}-PHASE
  annotations: {helm.sh/hook: PHASE, helm.sh/hook-delete-policy: before-hook-creation}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: main, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo {{ .Values.colour }} {{ .Release.Revision }}']}
"#;

#[test]
fn a_chart_with_hooks_is_installed_upgraded_rolled_back_and_uninstalled() {
    let carob = Carob::start(&["busybox"]);
    let chart = carob.path("shop");
    fs::create_dir_all(chart.join("templates")).expect("a folder");
    let mut files = vec![
        ("Chart.yaml".to_owned(), CHART.to_owned()),
        ("values.yaml".to_owned(), "replicas: 1\ncolour: red\n".to_owned()),
        ("templates/deployment.yaml".to_owned(), DEPLOYMENT.to_owned()),
        ("templates/settings.yaml".to_owned(), SETTINGS.to_owned()),
    ];
    for phase in ["pre-install", "post-upgrade", "pre-rollback", "post-delete"] {
        files.push((format!("templates/{phase}.yaml"), HOOK.replace("PHASE", phase)));
    }
    for (name, content) in files {
        fs::write(chart.join(name), content).expect("a file");
    }
    let program = kubectl_of(35).with_file_name("helm");
    let chart = chart.to_string_lossy().into_owned();
    let helm = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.env("KUBECONFIG", carob.kubeconfig()).env("HOME", carob.path("home")).args(arguments);
        let output = command.output().expect("helm starts");
        assert!(output.status.success(), "helm {arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let colour = || carob.jsonpath("configmap/shop", ".data.COLOUR");
    let ready = || carob.jsonpath("deployment/shop", ".status.readyReplicas");

    helm(&["install", "shop", &chart, "--wait", "--timeout", "60s"]);
    assert_eq!((colour().as_str(), ready().as_str()), ("red", "1"));
    assert_eq!(carob.kubectl(&["logs", "job/shop-pre-install"]), "red 1\n");

    helm(&["upgrade", "shop", &chart, "--set", "colour=blue,replicas=2", "--wait", "--timeout", "60s"]);
    assert_eq!((colour().as_str(), ready().as_str()), ("blue", "2"));
    assert_eq!(carob.kubectl(&["logs", "job/shop-post-upgrade"]), "blue 2\n");

    helm(&["rollback", "shop", "1", "--wait", "--timeout", "60s"]);
    assert_eq!((colour().as_str(), ready().as_str()), ("red", "1"));
    assert_eq!(carob.kubectl(&["logs", "job/shop-pre-rollback"]), "red 1\n", "the hooks are the first revision's");

    let history: Value = serde_json::from_str(&helm(&["history", "shop", "-o", "json"])).expect("JSON");
    let states: Vec<_> = history.as_array().expect("a list").iter().map(|entry| entry["status"].as_str()).collect();
    assert_eq!(states, [Some("superseded"), Some("superseded"), Some("deployed")]);
    assert!(helm(&["status", "shop"]).contains("STATUS: deployed"));
    assert!(helm(&["get", "manifest", "shop"]).contains("kind: Deployment"));

    helm(&["uninstall", "shop", "--wait", "--timeout", "60s"]);
    assert!(carob.kubectl_fails(&["get", "deployment", "shop"]).contains("not found"));
    assert_eq!(carob.kubectl(&["logs", "job/shop-post-delete"]), "red 1\n", "the hooks are the first revision's");
    assert_eq!(helm(&["list", "-q"]), "");
}

/// What `helm test` runs: a pod that looks whether the settings have a value.
const TEST: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: {{ .Release.Name }}-test
  annotations: {helm.sh/hook: test, helm.sh/hook-delete-policy: before-hook-creation}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo testing $COLOUR; test "$COLOUR" != ugly'], envFrom: [{configMapRef: {name: {{ .Release.Name }}}}]}
"#;

#[test]
fn helm_3_tests_releases_and_takes_back_what_fails() {
    let carob = Carob::start(&["busybox"]);
    let chart = carob.path("shop");
    fs::create_dir_all(chart.join("templates")).expect("a folder");
    for (name, content) in [
        ("Chart.yaml", CHART.to_owned()),
        ("values.yaml", "replicas: 1\ncolour: red\nimage: busybox\n".to_owned()),
        ("templates/deployment.yaml", DEPLOYMENT.replace("image: busybox", "image: {{ .Values.image }}")),
        ("templates/settings.yaml", SETTINGS.to_owned()),
        ("templates/test.yaml", TEST.to_owned()),
        ("templates/pre-delete.yaml", HOOK.replace("PHASE", "pre-delete")),
    ] {
        fs::write(chart.join(name), content).expect("a file");
    }
    let program = kubectl_of(32).with_file_name("helm");
    let chart = chart.to_string_lossy().into_owned();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.env("KUBECONFIG", carob.kubeconfig()).env("HOME", carob.path("home")).args(arguments);
        command.output().expect("helm starts")
    };
    let helm = |arguments: &[&str]| {
        let output = run(arguments);
        assert!(output.status.success(), "helm {arguments:?}: {}", text(&output));
        text(&output)
    };
    assert!(helm(&["template", "shop", &chart, "--validate"]).contains("kind: Deployment"));
    helm(&[
        "upgrade",
        "--install",
        "shop",
        &chart,
        "--namespace",
        "mall",
        "--create-namespace",
        "--wait",
        "--timeout",
        "60s",
    ]);
    let tested = helm(&["test", "shop", "--namespace", "mall", "--logs", "--timeout", "60s"]);
    assert!(tested.contains("Phase:          Succeeded") && tested.contains("testing red"), "{tested}");

    // What can never be ready is taken back.
    let hopeless = [
        "upgrade",
        "shop",
        &chart,
        "-n",
        "mall",
        "--atomic",
        "--timeout",
        "10s",
        "--set",
        "colour=blue,image=localhost:1/nothing:1",
    ];
    let failed = text(&run(&hopeless));
    assert!(failed.contains("has been rolled back due to atomic being set"), "{failed}");
    assert_eq!(carob.kubectl(&["-n", "mall", "get", "cm", "shop", "-o", "jsonpath={.data.COLOUR}"]), "red");
    let history: Value = serde_json::from_str(&helm(&["history", "shop", "-n", "mall", "-o", "json"])).expect("JSON");
    let last = history.as_array().and_then(|all| all.last()).expect("a revision");
    let description = last["description"].as_str().unwrap_or_default();
    assert!(last["status"] == "deployed" && description.starts_with("Rollback to "), "{history}");

    let listed: Value = serde_json::from_str(&helm(&["list", "-A", "-o", "json"])).expect("JSON");
    assert_eq!(
        (&listed[0]["name"], &listed[0]["namespace"], &listed[0]["status"]),
        (&"shop".into(), &"mall".into(), &"deployed".into())
    );
    helm(&[
        "upgrade",
        "shop",
        &chart,
        "-n",
        "mall",
        "--set",
        "colour=green",
        "--reuse-values",
        "--wait",
        "--timeout",
        "60s",
    ]);
    assert!(helm(&["get", "values", "shop", "-n", "mall"]).contains("colour: green"));
    assert!(helm(&["get", "hooks", "shop", "-n", "mall"]).contains("kind: Job"));
    assert!(helm(&["get", "all", "shop", "-n", "mall"]).contains("COLOUR: green"));
    helm(&["uninstall", "shop", "-n", "mall", "--wait", "--timeout", "60s"]);
    assert_eq!(carob.kubectl(&["-n", "mall", "logs", "job/shop-pre-delete"]).split(' ').next(), Some("green"));
    assert_eq!(helm(&["list", "-A", "-q"]), "");
}
