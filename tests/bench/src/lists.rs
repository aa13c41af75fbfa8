//! A list of ten thousand pods, in every form that clients take.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use http::Request;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kube::Client;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::carob::{Carob, create_namespace};
use crate::processes;
use crate::readers::{Door, Shape};

/// Where the pods are.
const NAMESPACE: &str = "bench-lists";
/// Creates that are under way at once.
const AT_ONCE: usize = 16;

/// The forms: what they are called, `Accept`, and `Accept-Encoding`.
const FORMS: [(&str, &str, &str); 6] = [
    ("JSON", "application/json", "identity"),
    ("JSON, gzip", "application/json", "gzip"),
    ("protobuf", "application/vnd.kubernetes.protobuf", "identity"),
    ("Table", "application/json;as=Table;v=v1;g=meta.k8s.io", "identity"),
    ("metadata only, JSON", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", "identity"),
    (
        "metadata only, protobuf",
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
        "identity",
    ),
];

/// One form's lists.
pub struct Listed {
    /// What the form is called.
    pub form: &'static str,
    /// From the request to the last byte of the answer, over TLS; nothing is parsed.
    pub latencies: Vec<Duration>,
    /// Of an answer.
    pub bytes: usize,
    /// What one list takes of a core in the gateway.
    pub gateway_cpu: Duration,
}

/// Lists of the same pods.
pub struct Lists {
    /// How many there are. No scheduler takes them.
    pub pods: usize,
    /// In every form.
    pub forms: Vec<Listed>,
    /// The gateway's resident memory before the lists, and the most that it had until their end, in bytes.
    pub memory: (u64, u64),
}

/// Measures [`Lists`].
pub fn lists(runtime: &Handle, carob: &Carob, pods: usize, times: usize) -> Result<Lists> {
    runtime.block_on(async {
        let client = carob.connect()?;
        fill(&client, pods).await?;
        let before = processes::of(carob.gateway())?.rss;
        let mut forms = Vec::new();
        for (form, accept, encoding) in FORMS {
            forms.push(list(carob, form, accept, encoding, pods, times).await.with_context(|| form.to_owned())?);
        }
        Ok(Lists { pods, forms, memory: (before, processes::most_resident(carob.gateway())?) })
    })
}

async fn list(
    carob: &Carob,
    form: &'static str,
    accept: &str,
    encoding: &str,
    pods: usize,
    times: usize,
) -> Result<Listed> {
    let stream = Door::new(carob.config(), Shape::Connections)?.connect().await?;
    let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(driver);
    let mut listed = Listed { form, latencies: Vec::new(), bytes: 0, gateway_cpu: Duration::ZERO };
    let before = processes::of(carob.gateway())?.cpu;
    for _ in 0..times {
        let request = Request::get(format!("/api/v1/namespaces/{NAMESPACE}/pods"))
            .header("host", "gateway")
            .header(ACCEPT, accept)
            .header(ACCEPT_ENCODING, encoding)
            .body(Empty::<Bytes>::new())?;
        sender.ready().await?;
        let begin = Instant::now();
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            bail!("the list failed: {}", response.status());
        }
        let mut body = response.into_body();
        listed.bytes = 0;
        while let Some(frame) = body.frame().await {
            listed.bytes += frame?.data_ref().map_or(0, Bytes::len);
        }
        listed.latencies.push(begin.elapsed());
    }
    let used = processes::of(carob.gateway())?.cpu.saturating_sub(before);
    listed.gateway_cpu = used / u32::try_from(times.max(1))?;
    if listed.bytes < pods * 10 {
        bail!("{} bytes are no list of {pods} pods", listed.bytes);
    }
    Ok(listed)
}

async fn fill(client: &Client, pods: usize) -> Result<()> {
    let mut outcome = Ok(());
    for _ in 0..100 {
        outcome = create_namespace(client, NAMESPACE).await;
        if outcome.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    outcome?;
    let creates = futures::stream::iter(0..pods).map(|number| async move {
        let request = Request::post(format!("/api/v1/namespaces/{NAMESPACE}/pods"))
            .header(CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(&pod(number))?)?;
        client.request_text(request).await?;
        anyhow::Ok(())
    });
    creates.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    Ok(())
}

/// A pod as a Deployment of a web server would have it. Its scheduler doesn't exist.
fn pod(number: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("web-7c5ddbdf54-{number:05}"),
            "labels": {"app": "web", "tier": "frontend", "pod-template-hash": "7c5ddbdf54"},
            "annotations": {"example.com/revision": "17", "example.com/owner": "team-frontend"},
        },
        "spec": {
            "schedulerName": "nobody",
            "containers": [{
                "name": "web",
                "image": "registry.example.com/web:1.2.3",
                "ports": [{"name": "http", "containerPort": 8080}],
                "env": [
                    {"name": "LOG_LEVEL", "value": "info"},
                    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 5},
                "volumeMounts": [{"name": "config", "mountPath": "/etc/web"}],
            }],
            "volumes": [{"name": "config", "configMap": {"name": "web"}}],
        },
    })
}
