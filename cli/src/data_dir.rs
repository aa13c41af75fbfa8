//! The data directory: one Carob's state, used by one gateway at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use carob_network::Ipv4Net;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// A data directory's layout.
#[derive(Clone, Debug)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// Makes the directory. It is closed to all but its owner, also where somebody made it before: Secrets are inside.
    pub fn create(path: &Path) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700)))
            .with_context(|| format!("cannot create {}", path.display()))?;
        Self::open(path)
    }

    /// An existing directory.
    pub fn open(path: &Path) -> Result<Self> {
        let path = path.canonicalize().with_context(|| format!("no data directory {}", path.display()))?;
        Ok(Self(path))
    }

    pub fn root(&self) -> &Path {
        &self.0
    }

    pub fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.0.join("admin.kubeconfig")
    }

    pub fn store(&self) -> PathBuf {
        self.0.join("store.redb")
    }

    pub fn ledger(&self) -> PathBuf {
        self.0.join("ledger")
    }

    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// Directories of volumes that claims are given.
    pub fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }

    pub fn sandboxes(&self) -> PathBuf {
        self.0.join("sandboxes")
    }

    fn instance_file(&self) -> PathBuf {
        self.0.join("instance.json")
    }

    /// Keeps every other gateway out for as long as the lock is held.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.0.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0)?;
                write!(file, "{}", std::process::id())?;
                Ok(Lock { _file: file })
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => bail!(Locked { pid: holder(&mut file)? }),
            Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// What makes this Carob different from others on the machine, if it was ever started.
    pub fn instance(&self) -> Result<Option<Instance>> {
        let path = self.instance_file();
        match fs::read(&path) {
            Ok(text) => {
                Ok(Some(serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Keeps it for the next start.
    pub fn save_instance(&self, instance: &Instance) -> Result<()> {
        let path = self.instance_file();
        let partial = path.with_extension("json.new");
        let mut file = File::create(&partial)?;
        serde_json::to_writer_pretty(&mut file, instance)?;
        file.sync_all()?;
        fs::rename(&partial, &path).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn holder(file: &mut File) -> Result<i32> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_string(&mut text)?;
    text.trim().parse().context("the lock file holds no process id")
}

/// Held by the gateway that uses a data directory; the kernel lets go of it when the process ends, however it ends.
pub struct Lock {
    _file: Flock<File>,
}

/// A gateway is running on the data directory.
#[derive(Debug, thiserror::Error)]
#[error("another carob uses this data directory (process {pid})")]
pub struct Locked {
    pub pid: i32,
}

/// What tells the Carobs of one machine apart, and what must not change while pods run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Part of the names of everything that is made on the machine.
    pub id: String,
    /// The pods' addresses; chosen anew by the next start after `carob down`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_cidr: Option<Ipv4Net>,
    /// The services' addresses.
    pub service_cidr: Ipv4Net,
}

/// Eight hexadecimal digits from the kernel.
pub fn random_id() -> Result<String> {
    let mut bytes = [0_u8; 4];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:08x}", u32::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_and_names_the_holder() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::create(folder.path()).unwrap();
        let held = dir.lock().unwrap();
        let refused = dir.lock().err().expect("a second lock");
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(refused.downcast_ref::<Locked>().unwrap().pid, pid);
        drop(held);
        dir.lock().unwrap();
    }

    #[test]
    fn a_directory_that_was_open_to_others_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        DataDir::create(folder.path()).unwrap();
        assert_eq!(fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn an_instance_is_read_back_as_it_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::create(folder.path()).unwrap();
        assert_eq!(dir.instance().unwrap(), None);
        let instance = Instance {
            id: random_id().unwrap(),
            pod_cidr: Some("10.42.0.0/16".parse().unwrap()),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
        };
        dir.save_instance(&instance).unwrap();
        assert_eq!(dir.instance().unwrap(), Some(instance));
    }
}
