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

    /// Where further workers keep what is their own, each in a folder of its number.
    fn further(&self) -> PathBuf {
        self.0.join("workers")
    }

    /// What the worker of this number keeps to itself, from 1 on.
    pub fn worker(&self, number: u8) -> WorkerDir {
        let root = if number == 1 { self.0.clone() } else { self.further().join(number.to_string()) };
        WorkerDir { number, root }
    }

    /// The workers that there are or were, the first one first.
    pub fn workers(&self) -> Result<Vec<WorkerDir>> {
        let mut numbers = vec![1];
        match fs::read_dir(self.further()) {
            Ok(entries) => {
                for entry in entries {
                    numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u8>().ok()));
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.further().display())),
        }
        numbers.sort_unstable();
        Ok(numbers.into_iter().map(|number| self.worker(number)).collect())
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

/// What one of a machine's workers keeps to itself.
#[derive(Clone, Debug)]
pub struct WorkerDir {
    /// From 1 on.
    pub number: u8,
    root: PathBuf,
}

impl WorkerDir {
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// By what its cgroups are named.
    pub fn instance(&self, carob: &str) -> String {
        if self.number == 1 { carob.to_owned() } else { format!("{carob}w{}", self.number) }
    }

    /// The name of its node, of the first one's.
    pub fn node(&self, first: &str) -> String {
        if self.number == 1 { first.to_owned() } else { format!("{first}-{}", self.number) }
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
    fn further_workers_are_found_by_their_folders_and_named_after_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::create(folder.path()).unwrap();
        for number in [10, 2] {
            fs::create_dir_all(dir.worker(number).root()).unwrap();
        }
        let all = dir.workers().unwrap();
        assert_eq!(all.iter().map(|worker| worker.number).collect::<Vec<_>>(), [1, 2, 10]);
        assert_eq!(all[0].root(), dir.root());
        let names = |worker: &WorkerDir| (worker.node("farm"), worker.instance("0123abcd"));
        assert_eq!(names(&all[0]), ("farm".to_owned(), "0123abcd".to_owned()));
        assert_eq!(names(&all[2]), ("farm-10".to_owned(), "0123abcdw10".to_owned()));
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
