//! Carob, through its HTTPS API as any client sees it.

use std::collections::HashMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use http::Request;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::peer::{COMMAND, PATIENCE, Peer, limits};
use crate::wire::Wire;

/// Where the pods are.
pub const NAMESPACE: &str = "bench";
const IMAGE: &str = "docker.io/library/busybox:latest";
/// The channel of `v5.channel.k8s.io` that carries the outcome.
const STATUS_CHANNEL: u8 = 3;

/// A gateway with its worker, and a client of it.
pub struct Carob {
    runtime: Handle,
    binary: PathBuf,
    home: PathBuf,
    gateway: Child,
    client: Client,
    config: Config,
    pods: Arc<Pods>,
}

/// Runs `carob up`; ends it and removes all that it made when dropped.
struct Up {
    binary: PathBuf,
    home: PathBuf,
    gateway: Option<Child>,
}

impl Carob {
    /// Starts a gateway that keeps all of its state in `home`, and waits until its node is ready.
    pub fn set_up(runtime: &Handle, binary: &Path, home: &Path, image: &Path) -> Result<Self> {
        let data_dir = home.join("data");
        let import = Command::new(binary)
            .args(["image", "import", "--data-dir"])
            .args([&data_dir, image])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        if !import.status.success() {
            bail!("carob image import: {}", String::from_utf8_lossy(&import.stderr).trim());
        }
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = fs::File::create(home.join("log"))?;
        let gateway = Command::new(binary)
            .args(["up", "--listen", &address.to_string(), "--data-dir"])
            .arg(&data_dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        // From here on it is ended whatever happens.
        let mut up = Up { binary: binary.to_owned(), home: home.to_owned(), gateway: Some(gateway) };
        let (client, config) = runtime.block_on(until_ready(&mut up, &data_dir.join("admin.kubeconfig")))?;
        let pods = Arc::new(Pods::default());
        runtime.block_on(Pods::watch(&pods, &client))?;
        let gateway = up.gateway.take().context("it was just started")?;
        Ok(Self {
            runtime: runtime.clone(),
            binary: binary.to_owned(),
            home: home.to_owned(),
            gateway,
            client,
            config,
            pods,
        })
    }

    /// A client with a connection of its own.
    pub fn connect(&self) -> Result<Client> {
        Ok(Client::try_from(self.config.clone())?)
    }

    /// A bare connection.
    pub async fn wire(&self) -> Result<Wire> {
        Wire::connect(&self.config).await
    }

    /// How a client of its own reaches it.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The gateway's process.
    pub fn gateway(&self) -> i32 {
        self.gateway.id().cast_signed()
    }

    /// Answer to a GET.
    pub fn get(&self, path: &str) -> Result<String> {
        self.runtime.block_on(async {
            let text = self.client.request_text(Request::get(path).body(Vec::new())?).await;
            text.with_context(|| format!("GET {path}"))
        })
    }

    /// The stages' histograms.
    pub fn metrics(&self) -> Result<String> {
        self.get("/metrics")
    }

    /// `carob image`, and how long it took.
    fn image(&self, command: &str, reference: &str) -> Result<Duration> {
        let begin = Instant::now();
        let output = Command::new(&self.binary)
            .args(["image", command, "--data-dir"])
            .arg(self.home.join("data"))
            .arg(reference)
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            bail!("carob image {command}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(begin.elapsed())
    }

    async fn start(&self, id: &str) -> Result<Duration> {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": id},
            "spec": {"containers": [{
                "name": "main",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": COMMAND,
                "resources": {
                    "requests": {"cpu": "1m", "memory": "8Mi"},
                    "limits": {"cpu": limits::CPUS.to_string(), "memory": limits::MEMORY.to_string()},
                },
            }]},
        });
        let request = Request::post(format!("/api/v1/namespaces/{NAMESPACE}/pods"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(&pod)?)?;
        let running = self.pods.expect(id, Event::Running);
        let begin = Instant::now();
        self.client.request_text(request).await.with_context(|| format!("creating {id}"))?;
        Ok(seen(running, "Running", id).await?.duration_since(begin))
    }

    async fn exec(&self, id: &str) -> Result<Duration> {
        let request =
            Request::get(format!("/api/v1/namespaces/{NAMESPACE}/pods/{id}/exec?command=true&stdout=true&stderr=true"))
                .header(http::header::CONNECTION, "Upgrade")
                .header(http::header::UPGRADE, "websocket")
                .header(http::header::SEC_WEBSOCKET_VERSION, "13")
                // The nonce only guards against caches.
                .header(http::header::SEC_WEBSOCKET_KEY, "Y2Fyb2ItYmVuY2htYXJrcw==")
                .header(http::header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io")
                .body(Body::empty())?;
        let begin = Instant::now();
        let response = self.client.send(request).await?;
        if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
            bail!("exec in {id}: {}", response.status());
        }
        let upgraded = TokioIo::new(hyper::upgrade::on(response).await?);
        let mut messages = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
        while let Some(message) = messages.try_next().await? {
            let Message::Binary(bytes) = message else { continue };
            let Some((&STATUS_CHANNEL, status)) = bytes.split_first() else { continue };
            let took = begin.elapsed();
            let status: Value = serde_json::from_slice(status)?;
            if status["status"] != "Success" {
                bail!("exec in {id}: {status}");
            }
            return Ok(took);
        }
        bail!("exec in {id} ended without an outcome")
    }

    async fn delete(&self, id: &str) -> Result<Duration> {
        let request = Request::delete(format!("/api/v1/namespaces/{NAMESPACE}/pods/{id}")).body(Vec::new())?;
        let gone = self.pods.expect(id, Event::Gone);
        let begin = Instant::now();
        self.client.request_text(request).await.with_context(|| format!("deleting {id}"))?;
        Ok(seen(gone, "gone", id).await?.duration_since(begin))
    }
}

impl Drop for Carob {
    fn drop(&mut self) {
        bring_down(&self.binary, &self.home, &mut self.gateway);
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if let Some(gateway) = &mut self.gateway {
            bring_down(&self.binary, &self.home, gateway);
        }
    }
}

fn bring_down(binary: &Path, home: &Path, gateway: &mut Child) {
    let output = Command::new(binary).args(["down", "--data-dir"]).arg(home.join("data")).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) => eprintln!("carob down: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => eprintln!("carob down: {error}"),
    }
    // Where `carob down` ended it, there is nothing to kill.
    let _ = gateway.kill();
    let _ = gateway.wait();
}

async fn until_ready(up: &mut Up, kubeconfig: &Path) -> Result<(Client, Config)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let obstacle = match ready(kubeconfig).await {
            Ok(connected) => return Ok(connected),
            Err(error) => error,
        };
        let gateway = up.gateway.as_mut().context("it was just started")?;
        if let Some(status) = gateway.try_wait()? {
            let log = fs::read_to_string(up.home.join("log")).unwrap_or_default();
            up.gateway = None;
            bail!("carob up ended with {status}: {}", log.lines().next_back().unwrap_or_default());
        }
        if Instant::now() > deadline {
            return Err(obstacle.context(format!("carob up is not ready within {} s", PATIENCE.as_secs())));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Succeeds once the node is ready and the namespace for the pods is complete.
async fn ready(kubeconfig: &Path) -> Result<(Client, Config)> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config.clone())?;
    let nodes: Value = client.request(Request::get("/api/v1/nodes").body(Vec::new())?).await?;
    let conditions = nodes["items"][0]["status"]["conditions"].as_array().context("there is no node yet")?;
    if !conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True") {
        bail!("the node is not ready yet");
    }
    create_namespace(&client, NAMESPACE).await?;
    Ok((client, config))
}

/// Makes a namespace unless it is there, and succeeds once it has its service account.
pub async fn create_namespace(client: &Client, name: &str) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let request = Request::post("/api/v1/namespaces")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(&namespace)?)?;
    match client.request_text(request).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error.into()),
    }
    let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
    client.request_text(Request::get(account).body(Vec::new())?).await?;
    Ok(())
}

/// What a watcher waits to see of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Event {
    Running,
    Gone,
}

type Sighting = std::result::Result<Instant, String>;

/// What the watch has shown, to those who wait for it.
#[derive(Default)]
struct Pods {
    waiting: Mutex<HashMap<(String, Event), oneshot::Sender<Sighting>>>,
}

#[derive(Deserialize)]
struct WatchEvent {
    r#type: String,
    object: Observed,
}

#[derive(Deserialize)]
struct Observed {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    phase: String,
    #[serde(default)]
    message: String,
}

impl Pods {
    /// Opens the watch and follows it from a task of its own.
    async fn watch(pods: &Arc<Self>, client: &Client) -> Result<()> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods?watch=true&timeoutSeconds=3600");
        let stream = client.request_stream(Request::get(path).body(Vec::new())?).await?;
        let pods = Arc::clone(pods);
        tokio::spawn(async move {
            let mut lines = Box::pin(stream.lines());
            while let Some(Ok(line)) = lines.next().await {
                let now = Instant::now();
                if let Ok(event) = serde_json::from_str::<WatchEvent>(&line) {
                    pods.show(event, now);
                }
            }
            // Those who wait learn it by the senders' end.
            pods.waiting().clear();
        });
        Ok(())
    }

    fn expect(&self, id: &str, event: Event) -> oneshot::Receiver<Sighting> {
        let (sender, receiver) = oneshot::channel();
        self.waiting().insert((id.to_owned(), event), sender);
        receiver
    }

    fn show(&self, event: WatchEvent, now: Instant) {
        let Observed { metadata: Metadata { name }, status } = event.object;
        let (seen, sighting) = match (event.r#type.as_str(), status.phase.as_str()) {
            ("DELETED", _) => (Event::Gone, Ok(now)),
            (_, "Running") => (Event::Running, Ok(now)),
            (_, "Failed" | "Succeeded") => (Event::Running, Err(format!("{} {}", status.phase, status.message))),
            _ => return,
        };
        if let Some(sender) = self.waiting().remove(&(name, seen)) {
            // Whoever asked may have given up.
            let _ = sender.send(sighting);
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<(String, Event), oneshot::Sender<Sighting>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn seen(sighting: oneshot::Receiver<Sighting>, what: &str, id: &str) -> Result<Instant> {
    match tokio::time::timeout(PATIENCE, sighting).await {
        Ok(Ok(Ok(instant))) => Ok(instant),
        Ok(Ok(Err(instead))) => bail!("{id} is {instead}, not {what}"),
        Ok(Err(_)) => bail!("the watch ended before {id} was {what}"),
        Err(_) => bail!("{id} was not {what} within {} s", PATIENCE.as_secs()),
    }
}

impl Peer for Carob {
    fn name(&self) -> &'static str {
        "Carob"
    }

    fn comprises(&self) -> &'static str {
        "POST of a pod over HTTPS until a watcher of the API has the event that says Running: stored durably, scheduled, a \
         service account's token mounted, an address on a bridge with a route out, the image's overlay, log files, usage \
         on the bill; deleted as a user does it: SIGTERM, the container's end, the last reading durable in the ledger, \
         object gone"
    }

    fn version(&self) -> String {
        let output = Command::new(&self.binary).arg("--version").output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    }

    fn home(&self) -> &Path {
        &self.home
    }

    fn start(&self, id: &str) -> Result<Duration> {
        self.runtime.block_on(self.start(id))
    }

    fn exec(&self, id: &str) -> Result<Duration> {
        self.runtime.block_on(self.exec(id))
    }

    fn delete(&self, id: &str) -> Result<Duration> {
        self.runtime.block_on(self.delete(id))
    }

    fn pull(&self, reference: &str) -> Result<Option<Duration>> {
        self.image("pull", reference).map(Some)
    }

    fn forget(&self, reference: &str) -> Result<()> {
        self.image("rm", reference).map(drop)
    }
}
