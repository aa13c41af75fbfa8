//! A cold pull of a large image from a registry on this machine, beside what it takes to download and gunzip the same.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::peer::{Program, until_it_serves};

/// Of the image.
pub const LAYERS: usize = 4;
const REPOSITORY: &str = "large";
/// Where the files come from: programs and libraries, as images have them.
const SOURCES: [&str; 2] = ["/usr/lib", "/usr/bin"];

/// An image in a registry of its own.
pub struct Source {
    registry: Child,
    address: String,
    layers: Vec<String>,
    /// Of all layers, compressed.
    pub bytes: u64,
}

impl Source {
    /// Makes an image whose layers have so many bytes each before they are compressed, and serves it.
    pub fn set_up(runtime: &Handle, home: &Path, layer_bytes: u64) -> Result<Self> {
        let program = Program::find(runtime, "docker-registry", home.join("stderr"))?;
        let storage = home.join("storage");
        let (layers, bytes) = Storage(storage.join("docker/registry/v2")).fill(home, layer_bytes)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = home.join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            storage.display()
        );
        fs::write(&config, text)?;
        let log = fs::File::create(home.join("log"))?;
        let registry = Command::new(program.path())
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        // From here on it is ended whatever happens.
        let source = Self { registry, address, layers, bytes };
        until_it_serves(runtime, || Ok(TcpStream::connect(&source.address).is_ok())).context("the registry")?;
        Ok(source)
    }

    /// The image's name.
    pub fn reference(&self) -> String {
        format!("{}/{REPOSITORY}:latest", self.address)
    }

    /// How long `curl | gzip -d` takes for one layer after the other.
    pub fn download_and_gunzip(&self) -> Result<Duration> {
        let begin = Instant::now();
        for digest in &self.layers {
            let url = format!("http://{}/v2/{REPOSITORY}/blobs/{digest}", self.address);
            let script = format!("curl --silent --show-error --fail {url} | gzip --decompress >/dev/null");
            run(Command::new("sh").args(["-c", &script]))?;
        }
        Ok(begin.elapsed())
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // Where it has ended, there is nothing to kill.
        let _ = self.registry.kill();
        let _ = self.registry.wait();
    }
}

/// A registry's files: <https://distribution.github.io/distribution/storage-drivers/filesystem/>.
struct Storage(PathBuf);

impl Storage {
    /// The layers' digests, and their bytes together.
    fn fill(&self, home: &Path, layer_bytes: u64) -> Result<(Vec<String>, u64)> {
        let mut files = SOURCES.iter().flat_map(|root| files_below(Path::new(root)));
        let (mut layers, mut diff_ids, mut total) = (Vec::new(), Vec::new(), 0);
        for number in 0..LAYERS {
            let (list, tar) = (home.join("files"), home.join(format!("{number}.tar")));
            fs::write(&list, take(&mut files, layer_bytes)?)?;
            let paths =
                ["--files-from", &*list.to_string_lossy(), "--file", &*tar.to_string_lossy()].map(str::to_owned);
            run(Command::new("tar").args(["--create", "--directory=/"]).args(paths).stderr(Stdio::null()))?;
            diff_ids.push(digest(&tar)?);
            run(Command::new("gzip").arg(&tar))?;
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            let layer = self.blob(&tar.with_extension("tar.gz"), media_type)?;
            total += layer["size"].as_u64().unwrap_or(0);
            layers.push(layer);
        }
        let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
        let document = json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs});
        let config = self.document(home, &document, "application/vnd.oci.image.config.v1+json")?;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        let manifest = self.document(home, &manifest, media_type)?;
        let manifest = text(&manifest["digest"]);
        let revision = manifest.replace(':', "/");
        for place in
            [format!("revisions/{revision}"), "tags/latest/current".into(), format!("tags/latest/index/{revision}")]
        {
            self.link(&format!("_manifests/{place}"), &manifest)?;
        }
        Ok((layers.iter().map(|layer| text(&layer["digest"])).collect(), total))
    }

    fn document(&self, home: &Path, document: &Value, media_type: &str) -> Result<Value> {
        let file = home.join("document");
        fs::write(&file, document.to_string())?;
        self.blob(&file, media_type)
    }

    /// Takes a file in and describes it.
    fn blob(&self, file: &Path, media_type: &str) -> Result<Value> {
        let digest = digest(file)?;
        let size = fs::metadata(file)?.len();
        let hex = digest.trim_start_matches("sha256:");
        let place = self.0.join("blobs/sha256").join(&hex[..2]).join(hex);
        fs::create_dir_all(&place)?;
        fs::rename(file, place.join("data"))?;
        self.link(&format!("_layers/{}", digest.replace(':', "/")), &digest)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": size}))
    }

    fn link(&self, place: &str, digest: &str) -> Result<()> {
        let place = self.0.join("repositories").join(REPOSITORY).join(place);
        fs::create_dir_all(&place)?;
        Ok(fs::write(place.join("link"), digest)?)
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Names of files that have at least so many bytes together.
fn take(files: &mut impl Iterator<Item = (PathBuf, u64)>, bytes: u64) -> Result<String> {
    let (mut names, mut sum) = (String::new(), 0);
    while sum < bytes {
        let (path, size) = files.next().context("this machine has too few files for the image")?;
        names.push_str(&format!("{}\n", path.display()).split_off(1));
        sum += size;
    }
    Ok(names)
}

/// Regular files and their sizes, in the order of their names.
fn files_below(directory: &Path) -> Vec<(PathBuf, u64)> {
    let mut entries: Vec<_> = fs::read_dir(directory).into_iter().flatten().flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => files_below(&entry.path()),
        Ok(metadata) if metadata.is_file() => vec![(entry.path(), metadata.len())],
        _ => Vec::new(),
    };
    entries.into_iter().flat_map(of).collect()
}

fn digest(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(file).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let hex = text.split_whitespace().next().context("sha256sum said nothing")?;
    Ok(format!("sha256:{hex}"))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if !status.success() {
        bail!("{}: {status}", command.get_program().display());
    }
    Ok(())
}
