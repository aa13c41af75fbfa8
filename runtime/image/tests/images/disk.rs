//! An image directory for one test, and what is left in it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use carob_image::{Error, Image, Images, Limits, RegistryConfig};
use tempfile::TempDir;

use crate::archive::Built;

pub struct Disk {
    pub temp: TempDir,
    pub images: Images,
}

impl Disk {
    pub fn new() -> Self {
        Self::with(RegistryConfig::default())
    }

    pub fn with(config: RegistryConfig) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let images = Images::open(&temp.path().join("images"), config).unwrap();
        Self { temp, images }
    }

    pub fn limited(limits: Limits) -> Self {
        Self::with(RegistryConfig { limits, ..RegistryConfig::default() })
    }

    /// Imports an image made of these archives.
    pub async fn import(&self, tars: &[Vec<u8>]) -> Result<Image, Error> {
        self.import_built(&Built::plain(tars), "test").await
    }

    pub async fn import_built(&self, built: &Built, name: &str) -> Result<Image, Error> {
        let layout = tempfile::tempdir().unwrap();
        built.write_layout(layout.path(), name);
        self.images.import(layout.path(), Some(name)).await.map(|mut images| images.remove(0))
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.temp.path().join("images").join(below)
    }

    /// The names in a folder of the image directory.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub fn assert_nothing_left(&self) {
        for folder in ["tmp", "layers", "records", "blobs/sha256"] {
            assert_eq!(self.names(folder), Vec::<String>::new(), "{folder}");
        }
    }

    /// Unpacking threads notice that they were abandoned a moment later.
    pub async fn nothing_left_soon(&self) {
        let start = Instant::now();
        loop {
            let left: Vec<String> =
                ["tmp", "layers", "records", "blobs/sha256"].iter().flat_map(|folder| self.names(folder)).collect();
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "left: {left:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Mounts an image's layers with the kernel's overlay for as long as it lives, to compare what we say with what it does.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn new(image: &Image, at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let mut lower: Vec<String> = image.layers.iter().map(|path| path.display().to_string()).collect();
        if lower.len() == 1 {
            // Overlay without an upper layer wants two.
            let empty = at.with_extension("empty");
            std::fs::create_dir_all(&empty).unwrap();
            lower.push(empty.display().to_string());
        }
        let options = format!("lowerdir={}", lower.join(":"));
        nix::mount::mount(Some("overlay"), at, Some("overlay"), nix::mount::MsFlags::MS_RDONLY, Some(options.as_str()))
            .unwrap_or_else(|error| panic!("mount overlay {options}: {error} (these tests need root)"));
        Self(at.to_owned())
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.0.join(below)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}
