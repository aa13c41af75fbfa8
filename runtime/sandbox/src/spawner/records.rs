//! What the spawner keeps on disk, so that nothing depends on its memory: `pods/{uid}/pod.json`,
//! `pods/{uid}/{container}/container.json` and `exit.json`.

use crate::config::{ContainerConfig, ContainerId, PodConfig};
use crate::state::Exit;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A pod as it was asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct PodRecord {
    /// Its config.
    pub config: PodConfig,
    /// Whether it had a network namespace of its own.
    pub own_network: bool,
}

/// The directory of all records.
#[derive(Debug, Clone)]
pub struct Records {
    root: PathBuf,
}

impl Records {
    /// Below the spawner's directory.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let root = directory.join("pods");
        make_private(&root)?;
        Ok(Self { root })
    }

    /// Directory of a pod.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.root.join(uid)
    }

    fn container(&self, uid: &str, id: &ContainerId) -> PathBuf {
        self.pod(uid).join(id.as_str())
    }

    /// Records a pod.
    pub fn write_pod(&self, record: &PodRecord) -> io::Result<()> {
        let directory = self.pod(&record.config.uid);
        make_private(&directory)?;
        write(&directory.join("pod.json"), record)
    }

    /// Records a container before it is started. Its environment and arguments stay in memory: Secrets come to containers
    /// through them, and what is recorded is on a disk.
    pub fn write_container(&self, config: &mut ContainerConfig) -> io::Result<()> {
        let directory = self.container(&config.pod_uid, &config.id);
        make_private(&directory)?;
        let (argv, env) = (std::mem::take(&mut config.argv), std::mem::take(&mut config.env));
        let written = write(&directory.join("container.json"), config);
        (config.argv, config.env) = (argv, env);
        written
    }

    /// A container's config, without environment and arguments.
    pub fn read_container(&self, uid: &str, id: &ContainerId) -> io::Result<ContainerConfig> {
        read(&self.container(uid, id).join("container.json"))
    }

    /// A pod's record.
    pub fn read_pod(&self, uid: &str) -> io::Result<PodRecord> {
        read(&self.pod(uid).join("pod.json"))
    }

    /// Records a container's end: there whole or not at all.
    pub fn write_exit(&self, exit: &Exit) -> io::Result<()> {
        let directory = self.container(&exit.pod_uid, &exit.container);
        let draft = directory.join("exit.json.new");
        write(&draft, exit)?;
        fs::rename(draft, directory.join("exit.json"))
    }

    /// A container's end, if it has ended.
    pub fn read_exit(&self, uid: &str, id: &ContainerId) -> Option<Exit> {
        read(&self.container(uid, id).join("exit.json")).ok()
    }

    /// When a container was recorded, which is just before its start.
    pub fn recorded_at(&self, uid: &str, id: &ContainerId) -> Option<Timestamp> {
        let metadata = fs::metadata(self.container(uid, id).join("container.json")).ok()?;
        metadata.modified().ok()?.try_into().ok()
    }

    /// Forgets a container.
    pub fn remove_container(&self, uid: &str, id: &ContainerId) -> io::Result<()> {
        gone(fs::remove_dir_all(self.container(uid, id)))
    }

    /// Forgets a pod and its containers.
    pub fn remove_pod(&self, uid: &str) -> io::Result<()> {
        gone(fs::remove_dir_all(self.pod(uid)))
    }

    /// All recorded pods, by uid.
    pub fn pods(&self) -> Vec<String> {
        names(&self.root)
    }

    /// The recorded containers of a pod.
    pub fn containers(&self, uid: &str) -> Vec<ContainerId> {
        names(&self.pod(uid)).iter().filter_map(|name| ContainerId::parse(name).ok()).collect()
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A directory that only we can read.
pub fn make_private(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut writer = io::BufWriter::new(file);
    serde_json::to_writer(&mut writer, value)?;
    io::Write::flush(&mut writer)
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}
