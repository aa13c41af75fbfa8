//! What the fuzz targets (`tests/fuzz`) reach of this crate, and what nobody else should use.

use crate::container::build::{ContainerPaths, Inputs, build};
use crate::container::env::{Facts, Objects};
use crate::container::resources::PodAmounts;
use crate::context::ClusterInfo;
use crate::files::PodFiles;
use crate::http::spdy::Connection;
use crate::pod::config;
use crate::volumes::MountedVolume;
use carob_image::Image;
use carob_sandbox::{ContainerConfig, ContainerId, PodConfig};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Feeds bytes to the server's side of SPDY, reads the streams that come of it, and gives the number of bytes that it
/// answered.
pub fn spdy(bytes: &[u8]) -> usize {
    /// Bytes that are on their way in either direction.
    const PIPE: usize = 64 << 10;
    /// So long a connection may stand still: a test for hangs, not for speed.
    const PATIENCE: Duration = Duration::from_secs(20);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (near, far) = tokio::io::duplex(PIPE);
        let mut connection = Connection::serve(near);
        let (mut from, mut to) = tokio::io::split(far);
        let feed = async {
            // The other side may hang up early.
            let _ = to.write_all(bytes).await;
            let _ = to.shutdown().await;
        };
        let streams = async {
            let mut readers = tokio::task::JoinSet::new();
            while let Some(mut stream) = connection.accept().await {
                readers.spawn(async move { while let Ok(Some(_)) = stream.reader.read().await {} });
            }
            connection.close().await;
            readers.abort_all();
        };
        let answers = async {
            let mut answered = Vec::new();
            let _ = from.read_to_end(&mut answered).await;
            answered.len()
        };
        let all = async { tokio::join!(feed, streams, answers).2 };
        tokio::time::timeout(PATIENCE, all).await.expect("the connection ends with its client")
    })
}

/// A container's configuration, or why it waits.
pub type Made = Result<ContainerConfig, String>;

/// What a pod's containers are made of, each with its name, or why it would wait: from the same functions as in earnest,
/// without a cluster, a network or images. Its files, and volumes that aren't the machine's, are below `directory`.
///
/// # Errors
/// What isn't a Pod.
pub fn containers(
    pod: &serde_json::Value,
    directory: &Path,
    image: &Image,
) -> Result<(PodConfig, Vec<(String, Made)>), String> {
    let pod: Pod = serde_json::from_value(pod.clone()).map_err(|error| error.to_string())?;
    let spec = pod.spec.clone().unwrap_or_default();
    let null = || std::fs::File::open("/dev/null").map_err(|error| error.to_string());
    let network = if spec.host_network == Some(true) { None } else { Some(null()?.into()) };
    let sandbox = config("uid", &spec, "host", network);
    let mut volumes = HashMap::new();
    for volume in spec.volumes.iter().flatten() {
        let path = match &volume.host_path {
            Some(source) => source.path.clone().into(),
            None => directory.join("volumes").join(&volume.name),
        };
        if volume.host_path.is_none() {
            std::fs::create_dir_all(&path).map_err(|error| error.to_string())?;
        }
        volumes.insert(volume.name.clone(), MountedVolume { path, read_only: false, memory: None });
    }
    let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    let cluster = ClusterInfo {
        api_service_ip: address,
        api_port: 443,
        ca_pem: String::new(),
        cluster_domain: "cluster.local".to_owned(),
        dns_servers: Vec::new(),
        upstream_dns: Vec::new(),
        load_balancers: Vec::new(),
    };
    let facts = || Facts {
        pod: &pod,
        pod_ips: Some(address.into()),
        host_ips: address.into(),
        node: "node",
        allocatable: PodAmounts { cpu_millis: 4000, memory_bytes: 8 << 30, ..PodAmounts::default() },
    };
    let (objects, images) = (Objects::default(), HashMap::new());
    let files = PodFiles::existing(directory);
    let mut made = Vec::new();
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let place = directory.join("containers").join(&container.name);
        let paths = ContainerPaths {
            termination_log: place.join("termination-log"),
            log: directory.join("logs").join(&container.name),
            directory: place,
        };
        let inputs = Inputs {
            id: ContainerId::parse(&"0".repeat(64)).map_err(|error| error.to_string())?,
            facts: facts(),
            container,
            pid_of: None,
            image,
            image_volumes: &images,
            objects: &objects,
            volumes: &volumes,
            files: &files,
            hostname: "host",
            annotations: BTreeMap::new(),
        };
        let profiles = directory.join("seccomp");
        made.push((container.name.clone(), build(&cluster, &profiles, inputs, &paths).map_err(|error| error.0)));
    }
    Ok((sandbox, made))
}
