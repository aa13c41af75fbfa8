//! OCI layouts and tar archives as nobody's tools would make them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use carob_tests::{Carob, image_layout, text};
use serde_json::{Value, json};

/// An archive, entry by entry, with any names at all.
#[derive(Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn dir(self, name: &str) -> Self {
        self.entry(name, b'5', 0o755, "", b"")
    }

    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(name, b'0', 0o755, "", content)
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(name, b'2', 0o777, target, b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(name, b'1', 0o644, target, b"")
    }

    /// A ustar header and its content (POSIX.1-1988).
    fn entry(mut self, name: &str, kind: u8, mode: u32, link: &str, content: &[u8]) -> Self {
        let mut header = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        assert!(name.len() <= 100 && link.len() <= 100, "a short header has no room for {name} -> {link}");
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}\0{:07o}\0{:07o}\0{:011o}\0{:011o}\0        ", 0, 0, content.len(), 0).as_bytes());
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A layout with one image: these layers over busybox's, under this name.
pub fn over_busybox(carob: &Carob, name: &str, layers: Vec<Tar>, config: &Value) -> PathBuf {
    let base = image_layout("busybox");
    let document = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).expect("a blob")).expect("JSON") };
    let blob = |digest: &Value| base.join("blobs").join(digest.as_str().expect("a digest").replace(':', "/"));
    let index = document(base.join("index.json"));
    let manifest = document(blob(&index["manifests"][0]["digest"]));
    let mut image = document(blob(&manifest["config"]["digest"]));
    let mut descriptors = manifest["layers"].as_array().expect("layers").clone();

    let root = carob.path(&format!("layout-{name}"));
    fs::create_dir_all(root.join("blobs/sha256")).expect("a directory");
    for layer in &descriptors {
        let source = blob(&layer["digest"]);
        fs::copy(&source, root.join("blobs/sha256").join(source.file_name().expect("a name"))).expect("a copy");
    }
    for layer in layers {
        let bytes = layer.finish();
        let descriptor = store(&root, &bytes, "application/vnd.oci.image.layer.v1.tar");
        image["rootfs"]["diff_ids"].as_array_mut().expect("a list").push(descriptor["digest"].clone());
        descriptors.push(descriptor);
    }
    image.as_object_mut().expect("an object").remove("history");
    for (key, value) in config.as_object().expect("an object") {
        image["config"][key] = value.clone();
    }
    let image = store(&root, image.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": image, "layers": descriptors});
    let mut manifest = store(&root, manifest.to_string().as_bytes(), media_type);
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": format!("docker.io/library/{name}:latest")});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(root.join("index.json"), index.to_string()).expect("the index");
    fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("the version");
    root
}

/// `carob image import`: whether it was taken, and what was said.
pub fn import(carob: &Carob, path: &Path) -> (bool, String) {
    let (data, path) = (carob.data_dir(), path.to_string_lossy().into_owned());
    let output = carob.carob(&["image", "import", "--data-dir", &data.to_string_lossy(), &path]);
    (output.status.success(), text(&output))
}

fn store(root: &Path, bytes: &[u8], media_type: &str) -> Value {
    let temporary = root.join("blobs/new");
    fs::write(&temporary, bytes).expect("a blob");
    let output = Command::new("sha256sum").arg(&temporary).output().expect("sha256sum (coreutils)");
    let digest = String::from_utf8_lossy(&output.stdout)[..64].to_owned();
    fs::rename(&temporary, root.join("blobs/sha256").join(&digest)).expect("it is ours");
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
}
