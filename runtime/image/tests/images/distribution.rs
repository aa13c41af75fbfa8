//! A pull from a real registry: Debian's `docker-registry`.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::archive::{Built, Tar, digest, gzip};
use crate::disk::Disk;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(dir: &Path) -> (Server, String) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: {address}}}\n",
        dir.join("data").display()
    );
    fs::write(dir.join("config.yml"), config).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(dir.join("config.yml"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("docker-registry: {error}. Install the package docker-registry."));
    (Server(child), address)
}

async fn request(address: &str, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (answer.split_whitespace().nth(1).unwrap().parse().unwrap(), answer)
}

async fn push(address: &str, repository: &str, tag: &str, built: &Built) {
    for blob in built.layers.iter().chain([&built.config]) {
        let (status, answer) = request(address, "POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"").await;
        assert_eq!(status, 202, "{answer}");
        let location = answer.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap().trim();
        let path = location.strip_prefix(&format!("http://{address}")).unwrap_or(location);
        let path = format!("{path}&digest={}", digest(blob));
        let (status, answer) = request(address, "PUT", &path, "application/octet-stream", blob).await;
        assert_eq!(status, 201, "{answer}");
    }
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let path = format!("/v2/{repository}/manifests/{tag}");
    let (status, answer) = request(address, "PUT", &path, kind, &built.manifest).await;
    assert_eq!(status, 201, "{answer}");
}

#[tokio::test]
async fn images_come_from_a_real_registry() {
    let temp = tempfile::tempdir().unwrap();
    let (_server, address) = start(temp.path());
    let begun = Instant::now();
    while TcpStream::connect(&address).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "docker-registry doesn't answer on {address}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let layers = [Tar::new().file("one", &"x".repeat(100_000)).end(), Tar::new().file("two", "2").end()];
    let built = Built::new(&layers, &json!({"Cmd": ["two"]}), gzip);
    push(&address, "team/app", "v1", &built).await;
    let disk = Disk::new();
    for reference in ["team/app:v1".to_owned(), format!("team/app@{}", digest(&built.manifest))] {
        let image = disk.images.pull(&format!("{address}/{reference}"), &[], &()).await.unwrap();
        assert_eq!(image.digest, digest(&built.manifest));
        assert_eq!(fs::read_to_string(image.layers[0].join("two")).unwrap(), "2");
    }
    let error = disk.images.pull(&format!("{address}/team/app:v2"), &[], &()).await.unwrap_err();
    assert!(error.describe().ends_with(&format!("{address}/team/app:v2: not found")), "{}", error.describe());
}
