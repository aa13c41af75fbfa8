//! Makes tar archives, whole and broken, and OCI layouts around them.

use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// One header block; every field can be overwritten before it is summed.
pub struct Header(pub [u8; 512]);

impl Header {
    pub fn new(name: &str, kind: u8, size: u64) -> Self {
        let mut header = Self([0; 512]);
        header.text(0, 100, name.as_bytes()).octal(100, 8, 0o644).octal(108, 8, 0).octal(116, 8, 0);
        header.octal(124, 12, size).octal(136, 12, 1_600_000_000);
        header.0[156] = kind;
        header.0[257..265].copy_from_slice(b"ustar\x0000");
        header
    }

    pub fn text(&mut self, at: usize, length: usize, text: &[u8]) -> &mut Self {
        let text = &text[..text.len().min(length)];
        self.0[at..at + length].fill(0);
        self.0[at..at + text.len()].copy_from_slice(text);
        self
    }

    pub fn octal(&mut self, at: usize, length: usize, number: u64) -> &mut Self {
        self.text(at, length, format!("{number:0width$o}", width = length - 1).as_bytes())
    }

    pub fn mode(&mut self, mode: u64) -> &mut Self {
        self.octal(100, 8, mode)
    }

    pub fn owner(&mut self, uid: u64, gid: u64) -> &mut Self {
        self.octal(108, 8, uid).octal(116, 8, gid)
    }

    pub fn link(&mut self, target: &str) -> &mut Self {
        self.text(157, 100, target.as_bytes())
    }

    pub fn device(&mut self, major: u64, minor: u64) -> &mut Self {
        self.octal(329, 8, major).octal(337, 8, minor)
    }

    fn summed(&self) -> [u8; 512] {
        let mut block = self.0;
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// An archive in the making.
#[derive(Clone, Default)]
pub struct Tar(pub Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    /// A header and content as they are given, filled up to a block.
    pub fn raw(mut self, header: &Header, content: &[u8]) -> Self {
        self.0.extend_from_slice(&header.summed());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, content: &str) -> Self {
        self.raw(&Header::new(name, b'0', content.len() as u64), content.as_bytes())
    }

    pub fn dir(self, name: &str, mode: u64) -> Self {
        self.raw(Header::new(name, b'5', 0).mode(mode), b"")
    }

    pub fn link(self, kind: u8, name: &str, target: &str) -> Self {
        self.raw(Header::new(name, kind, 0).link(target), b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.link(b'2', name, target)
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(b'1', name, target)
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extension(b'x', &pax(records))
    }

    pub fn extension(self, kind: u8, content: &[u8]) -> Self {
        self.raw(&Header::new("extension", kind, content.len() as u64), content)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length += 1;
        }
        out.extend_from_slice(format!("{length} {key}=").as_bytes());
        out.extend_from_slice(value);
        out.push(b'\n');
    }
    out
}

/// An image as its blobs.
#[derive(Clone)]
pub struct Built {
    pub blobs: Vec<Vec<u8>>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    /// Transported layers, lowest first.
    pub layers: Vec<Vec<u8>>,
}

impl Built {
    /// Layers are compressed where `compress` makes them something else.
    pub fn new(tars: &[Vec<u8>], config: &Value, compress: impl Fn(&[u8]) -> Vec<u8>) -> Self {
        let layers: Vec<Vec<u8>> = tars.iter().map(|tar| compress(tar)).collect();
        let diff_ids: Vec<String> = tars.iter().map(|tar| digest(tar)).collect();
        let config = json!({
            "architecture": architecture(), "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let manifest = manifest(&config, &layers);
        let blobs = layers.iter().cloned().chain([config.clone(), manifest.clone()]).collect();
        Self { blobs, config, manifest, layers }
    }

    pub fn plain(tars: &[Vec<u8>]) -> Self {
        Self::new(tars, &json!({}), <[u8]>::to_vec)
    }

    /// Writes an OCI layout that names the image.
    pub fn write_layout(&self, dir: &Path, name: &str) {
        let entry = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&self.manifest), "size": self.manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": name},
        });
        write_layout(dir, &self.blobs, &json!({"schemaVersion": 2, "manifests": [entry]}));
    }
}

pub fn manifest(config: &[u8], layers: &[Vec<u8>]) -> Vec<u8> {
    let part = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
    let layers: Vec<Value> =
        layers.iter().map(|layer| part("application/vnd.oci.image.layer.v1.tar+gzip", layer)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": part("application/vnd.oci.image.config.v1+json", config), "layers": layers,
    });
    manifest.to_string().into_bytes()
}

pub fn write_layout(dir: &Path, blobs: &[Vec<u8>], index: &Value) {
    let folder = dir.join("blobs/sha256");
    std::fs::create_dir_all(&folder).unwrap();
    for blob in blobs {
        std::fs::write(folder.join(&digest(blob)["sha256:".len()..]), blob).unwrap();
    }
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
