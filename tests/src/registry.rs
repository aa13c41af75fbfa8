//! Debian's `docker-registry` on loopback, with images of `target/images` in it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::{eventually, free_port, image_layout};

/// A running registry with its own storage.
pub struct Registry {
    process: Child,
    port: u16,
    password: bool,
    dir: tempfile::TempDir,
}

/// The only user of a registry that asks for a password.
pub const USER: &str = "reader";
/// Their password.
pub const PASSWORD: &str = "sesame";
/// `reader:sesame` as htpasswd has it (bcrypt), and as HTTP's basic authentication sends it.
const HTPASSWD: &str = "reader:$2b$05$abcdefghijklmnopqrstuuKcS.CYWVYVaLiiCKrrc0A5s3mGesJ9O\n";
const BASIC: &str = "Basic cmVhZGVyOnNlc2FtZQ==";

impl Registry {
    /// Starts one that is open to everybody.
    pub fn start() -> Self {
        Self::start_with(false)
    }

    /// Starts one that knows only [`USER`].
    pub fn start_with_password() -> Self {
        Self::start_with(true)
    }

    fn start_with(password: bool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let port = free_port();
        let config = dir.path().join("config.yml");
        let storage = dir.path().join("storage");
        let mut text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n",
            storage.display()
        );
        if password {
            let users = dir.path().join("htpasswd");
            std::fs::write(&users, HTPASSWD).expect("the users are written");
            text += "auth:\n  htpasswd:\n    realm: test\n    path: ";
            text += &users.to_string_lossy();
            text += "\n";
        }
        std::fs::write(&config, text).expect("the configuration is written");
        let process = serve(&config, &dir.path().join("access.log"));
        let registry = Self { process, port, password, dir };
        eventually("the registry answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        registry
    }

    /// The same storage and users a second time, over TLS at this address; it ends when the registry that is given is dropped.
    #[must_use]
    pub fn over_tls(&self, address: &str, port: u16, certificate: &Path, key: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let text = std::fs::read_to_string(self.dir.path().join("config.yml")).expect("the configuration");
        let text = text.replace(
            &format!("  addr: 127.0.0.1:{}\n", self.port),
            &format!(
                "  addr: {address}:{port}\n  tls:\n    certificate: {}\n    key: {}\n",
                certificate.display(),
                key.display()
            ),
        );
        let config = dir.path().join("config.yml");
        std::fs::write(&config, text).expect("the configuration is written");
        let process = serve(&config, &dir.path().join("access.log"));
        eventually("the registry answers", || TcpStream::connect((address, port)).is_ok());
        Self { process, port, password: self.password, dir }
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Pushes an image of `target/images` as `repository:tag`; its manifest's digest.
    pub fn push(&self, image: &str, repository: &str, tag: &str) -> String {
        let layout = image_layout(image);
        let index: Value = json(&layout.join("index.json"));
        let digest = index["manifests"][0]["digest"].as_str().expect("a digest").to_owned();
        let manifest = json(&blob(&layout, &digest));
        let blobs = manifest["layers"].as_array().expect("layers").iter().chain([&manifest["config"]]);
        for descriptor in blobs {
            let digest = descriptor["digest"].as_str().expect("a digest");
            self.push_blob(repository, digest, &std::fs::read(blob(&layout, digest)).expect("a blob"));
        }
        let body = std::fs::read(blob(&layout, &digest)).expect("a manifest");
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let (status, _) = self.request("PUT", &format!("/v2/{repository}/manifests/{tag}"), media_type, &body);
        assert_eq!(status, 201, "the manifest is taken");
        digest
    }

    /// The digests of an image's layers.
    pub fn layers(image: &str) -> Vec<String> {
        let layout = image_layout(image);
        let index: Value = json(&layout.join("index.json"));
        let manifest = json(&blob(&layout, index["manifests"][0]["digest"].as_str().expect("a digest")));
        let layers = manifest["layers"].as_array().expect("layers");
        layers.iter().map(|layer| layer["digest"].as_str().expect("a digest").to_owned()).collect()
    }

    /// Replaces a blob's bytes behind the registry's back.
    pub fn spoil(&self, digest: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let hex = digest.trim_start_matches("sha256:");
        let path = self.dir.path().join(format!("storage/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
        let mut bytes = std::fs::read(&path).expect("the blob is in the storage");
        change(&mut bytes);
        std::fs::write(&path, bytes).expect("the blob is written");
    }

    /// How often something whose path ends so was fetched.
    pub fn fetched(&self, path: &str) -> usize {
        let log = std::fs::read_to_string(self.dir.path().join("access.log")).expect("the log");
        log.lines().filter(|line| line.contains("\"GET ") && line.contains(&format!("{path} HTTP/"))).count()
    }

    fn push_blob(&self, repository: &str, digest: &str, bytes: &[u8]) {
        let (status, headers) = self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "text/plain", &[]);
        assert_eq!(status, 202, "an upload begins");
        let location = headers
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase().starts_with("location:").then(|| line["location:".len()..].trim().to_owned())
            })
            .expect("a location");
        let path = location.split_once(&self.host()).map_or(location.as_str(), |(_, path)| path);
        let separator = if path.contains('?') { '&' } else { '?' };
        let target = format!("{path}{separator}digest={digest}");
        let (status, _) = self.request("PUT", &target, "application/octet-stream", bytes);
        assert_eq!(status, 201, "the blob is taken");
    }

    fn request(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the registry answers");
        let credential = if self.password { format!("authorization: {BASIC}\r\n") } else { String::new() };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: {media_type}\r\n{credential}content-length: {}\r\nconnection: close\r\n\r\n",
            self.host(),
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("the request is sent");
        stream.write_all(body).expect("the body is sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split_whitespace().nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        (status, answer)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn serve(config: &Path, log: &Path) -> Child {
    let log = std::fs::File::create(log).expect("a log file");
    Command::new("docker-registry")
        .arg("serve")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("the log file"))
        .stderr(log)
        .spawn()
        .expect("docker-registry (package docker-registry)")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

fn blob(layout: &Path, digest: &str) -> std::path::PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}
