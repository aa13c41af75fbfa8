//! kube-rs: typed objects, reflectors, server-side apply, controllers with finalizers, streams, kinds made by derive.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use carob_tests::pods::{pod, shell_pod, tools};
use carob_tests::{Carob, PATIENCE};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{AttachParams, DeleteParams, EvictParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::controller::Action;
use kube::runtime::finalizer::{Event, finalizer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{Controller, WatchStreamExt, reflector, watcher};
use kube::{Api, Client, Config, CustomResource, CustomResourceExt, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn client(carob: &Carob) -> Client {
    let kubeconfig = Kubeconfig::read_from(carob.kubeconfig()).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("settings");
    Client::try_from(config).expect("a client")
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object of its kind")
}

/// Waits for what a future gives, but not for ever.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_rs_reads_writes_and_applies_typed_objects() {
    let carob = Carob::start_with(&carob_tests::Setup { arguments: &["--workers", "0"], ..Default::default() });
    let client = client(&carob).await;
    let configs: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let config = |name: &str, value: &str| {
        object::<ConfigMap>(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "labels": {"of": "kube-rs"}}, "data": {"k": value},
        }))
    };
    // A reflector by streaming lists: what is there, then what changes, in one request.
    let (store, writer) = reflector::store();
    let settings = watcher::Config::default().labels("of=kube-rs").streaming_lists();
    configs.create(&PostParams::default(), &config("early", "1")).await.expect("it is created");
    let stream = watcher(configs.clone(), settings).default_backoff().reflect(writer).applied_objects();
    let following = tokio::spawn(stream.try_for_each(|_| async { Ok(()) }));
    soon("the reflector is filled", store.wait_until_ready()).await.expect("its writer lives");
    assert_eq!(store.state().len(), 1);
    for step in 0..20 {
        let name = format!("c{step}");
        let params = PatchParams::apply("tests").force();
        configs.patch(&name, &params, &Patch::Apply(config(&name, "x"))).await.expect("it is applied");
    }
    soon("it follows", async {
        while store.state().len() < 21 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    following.abort();

    let other = PatchParams::apply("other");
    let conflict = configs.patch("c0", &other, &Patch::Apply(config("c0", "y"))).await;
    let Err(kube::Error::Api(status)) = conflict else { panic!("{conflict:?}") };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    let forced = configs.patch("c0", &other.force(), &Patch::Apply(config("c0", "y"))).await.expect("it is forced");
    assert_eq!(forced.data.as_ref().and_then(|data| data.get("k")).map(String::as_str), Some("y"));
    let managers: BTreeSet<_> = forced.managed_fields().iter().filter_map(|entry| entry.manager.clone()).collect();
    assert_eq!(managers, ["other", "tests"].map(str::to_owned).into());

    let page = configs.list(&ListParams::default().labels("of=kube-rs").limit(5)).await.expect("a page");
    assert_eq!((page.items.len(), page.metadata.remaining_item_count), (5, None));
    let token = page.metadata.continue_.expect("there is more");
    let rest =
        configs.list(&ListParams::default().labels("of=kube-rs").continue_token(&token)).await.expect("the rest");
    assert_eq!(rest.items.len(), 16);
    let metadata = configs.list_metadata(&ListParams::default().labels("of=kube-rs")).await.expect("metadata");
    assert_eq!(metadata.items.len(), 21);
    let mut stale = configs.get("early").await.expect("it is there");
    stale.metadata.resource_version = Some("1".to_owned());
    let conflict = configs.replace("early", &PostParams::default(), &stale).await;
    assert!(matches!(conflict, Err(kube::Error::Api(status)) if status.code == 409));
    configs
        .entry("early")
        .await
        .expect("an entry")
        .and_modify(|config| config.data.get_or_insert_default().extend([("more".to_owned(), "1".to_owned())]))
        .or_insert(|| panic!("it is there"))
        .commit(&PostParams::default())
        .await
        .expect("it is written");
    configs
        .delete_collection(&DeleteParams::default(), &ListParams::default().labels("of=kube-rs"))
        .await
        .expect("they are deleted");
    assert!(configs.get_opt("early").await.expect("an answer").is_none());

    // A lease is taken by who comes with the version it saw.
    let leases: Api<Lease> = Api::default_namespaced(client);
    let lease = object::<Lease>(json!({"metadata": {"name": "leader"}, "spec": {
        "holderIdentity": "a", "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.000001Z"}}));
    let held = leases.create(&PostParams::default(), &lease).await.expect("it is created");
    let mut renewed = held.clone();
    renewed.spec.get_or_insert_default().holder_identity = Some("b".to_owned());
    leases.replace("leader", &PostParams::default(), &renewed).await.expect("the first wins");
    assert!(leases.replace("leader", &PostParams::default(), &held).await.is_err(), "the second has an old version");
}

#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, JsonSchema)]
#[kube(group = "example.com", version = "v1", kind = "Garden", namespaced, status = "GardenStatus", shortname = "gd")]
#[kube(printcolumn = r#"{"name": "Plants", "type": "integer", "jsonPath": ".spec.plants"}"#)]
#[kube(scale(spec_replicas_path = ".spec.plants", status_replicas_path = ".status.planted"))]
struct GardenSpec {
    #[schemars(range(min = 1, max = 9))]
    plants: i32,
    #[serde(default)]
    note: Option<String>,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default, JsonSchema)]
struct GardenStatus {
    planted: i32,
}

#[derive(Debug, thiserror::Error)]
#[error("the gardener failed")]
struct Failed(#[from] kube::Error);

/// Keeps a ConfigMap for each garden and says so in its status; removes it again when the garden goes.
async fn tend(garden: Arc<Garden>, client: Arc<Client>) -> Result<Action, kube::runtime::finalizer::Error<Failed>> {
    let namespace = garden.namespace().expect("it has one");
    let gardens: Api<Garden> = Api::namespaced((*client).clone(), &namespace);
    let configs: Api<ConfigMap> = Api::namespaced((*client).clone(), &namespace);
    finalizer(&gardens, "example.com/gardener", garden, |event| async {
        match event {
            Event::Apply(garden) => {
                let bed = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": garden.name_any()},
                    "data": {"plants": garden.spec.plants.to_string()}});
                configs.patch(&garden.name_any(), &PatchParams::apply("gardener"), &Patch::Apply(bed)).await?;
                let status = json!({"status": {"planted": garden.spec.plants}});
                gardens.patch_status(&garden.name_any(), &PatchParams::default(), &Patch::Merge(status)).await?;
            }
            Event::Cleanup(garden) => {
                configs.delete(&garden.name_any(), &DeleteParams::default()).await?;
            }
        }
        Ok(Action::await_change())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_rs_tends_objects_of_its_own_kind() {
    let carob = Carob::start_with(&carob_tests::Setup { arguments: &["--workers", "0"], ..Default::default() });
    let client = client(&carob).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply("tests");
    definitions.patch("gardens.example.com", &params, &Patch::Apply(Garden::crd())).await.expect("it is defined");
    let established = await_condition(definitions, "gardens.example.com", conditions::is_crd_established());
    soon("the kind is served", established).await.expect("a watch");

    let gardens: Api<Garden> = Api::default_namespaced(client.clone());
    let controller = Controller::new(gardens.clone(), watcher::Config::default())
        .owns(Api::<ConfigMap>::default_namespaced(client.clone()), watcher::Config::default())
        .run(tend, |_, _, _| Action::requeue(Duration::from_millis(100)), Arc::new(client.clone()))
        .for_each(|_| async {});
    let controller = tokio::spawn(controller);
    let garden = |plants| Garden::new("roses", GardenSpec { plants, note: None });
    let created = gardens.create(&PostParams::default(), &garden(3)).await.expect("it is created");
    assert_eq!(created.spec.note, None);
    let tended = |planted: i32| {
        await_condition(gardens.clone(), "roses", move |garden: Option<&Garden>| {
            garden.and_then(|garden| garden.status.as_ref()).is_some_and(|status| status.planted == planted)
        })
    };
    soon("it is tended", tended(3)).await.expect("a watch");
    let scale = Patch::Merge(json!({"spec": {"replicas": 5}}));
    gardens.patch_scale("roses", &PatchParams::default(), &scale).await.expect("it is scaled");
    soon("it is tended again", tended(5)).await.expect("a watch");
    assert_eq!(gardens.get_scale("roses").await.expect("a scale").status.expect("a status").replicas, 5);
    let refused = gardens.patch("roses", &PatchParams::default(), &Patch::Merge(json!({"spec": {"plants": 10}}))).await;
    let Err(kube::Error::Api(status)) = refused else { panic!("{refused:?}") };
    assert!(status.code == 422 && status.message.contains("spec.plants"), "{status:?}");
    assert!(carob.kubectl(&["get", "gd"]).contains("PLANTS"));

    let configs: Api<ConfigMap> = Api::default_namespaced(client);
    let bed = configs.get("roses").await.expect("its bed");
    assert_eq!(bed.data.expect("data")["plants"], "5");
    let uid = created.uid().expect("a uid");
    let gone = await_condition(gardens.clone(), "roses", conditions::is_deleted(&uid));
    gardens.delete("roses", &DeleteParams::default()).await.expect("it is deleted");
    soon("the finalizer has done its work", gone).await.expect("a watch");
    assert!(configs.get_opt("roses").await.expect("an answer").is_none());
    controller.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_rs_streams_to_pods_and_evicts_them() {
    let carob = Carob::start(&["busybox", "tools"]);
    let client = client(&carob).await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let mut reader = shell_pod("reader", "while read line; do echo got $line; done");
    reader["spec"]["containers"][0]["stdin"] = true.into();
    for manifest in [reader, pod("server", &[tools("main", &["http-server"])])] {
        let made = pods.create(&PostParams::default(), &object(manifest)).await.expect("it is created");
        let name = made.name_any();
        let running = await_condition(pods.clone(), &name, conditions::is_pod_running());
        Box::pin(soon("it runs", running)).await.expect("a watch");
    }

    let params = AttachParams::default().stdin(true).stderr(true);
    let script = "read word; echo $word; echo oops >&2; exit 3";
    let mut process = soon("a process", pods.exec("reader", ["sh", "-c", script], &params)).await.expect("it runs");
    let (mut stdout, mut stderr) = (process.stdout().expect("stdout"), process.stderr().expect("stderr"));
    let status = process.take_status().expect("a status");
    process.stdin().expect("stdin").write_all(b"hello\n").await.expect("it is taken");
    let (mut out, mut err) = (String::new(), String::new());
    soon("its output ends", async { tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err)) })
        .await
        .0
        .expect("text");
    assert_eq!((out.as_str(), err.as_str()), ("hello\n", "oops\n"));
    let status = soon("its end", status).await.expect("a status");
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"), "{status:?}");

    let mut attached = soon("attaching", pods.attach("reader", &params)).await.expect("it is attached to");
    attached.stdin().expect("stdin").write_all(b"words\n").await.expect("it is taken");
    let mut seen = [0; 10];
    soon("it answers", attached.stdout().expect("stdout").read_exact(&mut seen)).await.expect("bytes");
    assert_eq!(&seen, b"got words\n");
    drop(attached);
    let log = soon("its log", pods.logs("reader", &LogParams { tail_lines: Some(1), ..LogParams::default() }))
        .await
        .expect("a log");
    assert_eq!(log, "got words\n");

    // Running isn't listening yet.
    soon("the server answers", async {
        loop {
            let mut forward = pods.portforward("server", &[8080]).await.expect("it is forwarded");
            let mut stream = forward.take_stream(8080).expect("a stream");
            let asked = stream.write_all(b"GET /hello HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").await;
            let mut answer = String::new();
            if asked.is_ok() && stream.read_to_string(&mut answer).await.is_ok() && answer.contains("/hello") {
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                return;
            }
        }
    })
    .await;

    let uid = pods.get("server").await.expect("it is there").uid().expect("a uid");
    pods.evict("server", &EvictParams::default()).await.expect("it is evicted");
    Box::pin(soon("it is gone", await_condition(pods, "server", conditions::is_deleted(&uid)))).await.expect("a watch");

    let deployments: Api<Deployment> = Api::default_namespaced(client);
    let web = json!({"metadata": {"name": "web"}, "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "main", "image": "busybox"}]}}}});
    deployments.create(&PostParams::default(), &object(web)).await.expect("it is created");
    let restarted = deployments.restart("web").await.expect("it is restarted");
    assert!(restarted.spec.expect("a spec").template.metadata.expect("metadata").annotations.is_some());
}
