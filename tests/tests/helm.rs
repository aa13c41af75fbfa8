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
