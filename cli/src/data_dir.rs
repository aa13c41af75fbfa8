//! The data directory: one Carob's state, used by one gateway at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use carob_network::{Ipv4Net, Ipv6Net};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// A directory that has one of these bits of its mode is meant for many, empty or not: sticky, or written by anybody.
const OTHERS_TOO: u32 = 0o1002;

/// A data directory's layout.
#[derive(Clone, Debug)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// Makes the directory, closed to all but its owner: Secrets are inside. One that is open to others is closed if it is a
    /// data directory or was made to become one; what has another purpose is left alone.
    pub fn create(path: &Path) -> Result<Self> {
        let make = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        make.with_context(|| format!("cannot create {}", path.display()))?;
        let dir = Self::open(path)?;
        let mode = fs::metadata(&dir.0)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            if !dir.instance_file().exists() && (mode & OTHERS_TOO != 0 || !is_empty(&dir.0)?) {
                bail!(
                    "{} (mode {mode:04o}) is open to others and in use for something else: name a directory that is only \
                     for this, or close it with chmod 700",
                    dir.0.display()
                );
            }
            fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o700))
                .with_context(|| format!("cannot close {} to others", dir.0.display()))?;
        }
        Ok(dir)
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

    fn lock_file(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Keeps everybody else out for as long as the lock is held.
    pub fn lock(&self, purpose: Purpose) -> Result<Lock> {
        let path = self.lock_file();
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
                file.write_all(Holder { pid: std::process::id().cast_signed(), purpose }.text().as_bytes())?;
                Ok(Lock { _file: file })
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                bail!(Locked(Holder::parse(&text)))
            }
            Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Whether the lock is still this one's, and so the process of this number still the one that has it: what the file says
    /// is of the last holder, which may be gone, and its number somebody else's.
    pub fn is_locked_by(&self, holder: Holder) -> Result<bool> {
        let path = self.lock_file();
        let lock = fs::metadata(&path)?;
        let descriptors = match fs::read_dir(format!("/proc/{}/fd", holder.pid)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            descriptors => descriptors?,
        };
        let open = descriptors
            .flatten()
            .filter_map(|descriptor| fs::metadata(descriptor.path()).ok())
            .any(|file| (file.dev(), file.ino()) == (lock.dev(), lock.ino()));
        Ok(open && Holder::parse(&fs::read_to_string(&path)?) == Some(holder))
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

    /// Has what was there before a start that came to nothing.
    pub fn put_instance(&self, before: Option<&Instance>) -> Result<()> {
        let Some(before) = before else {
            let path = self.instance_file();
            return fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()));
        };
        self.save_instance(before)
    }

    /// Keeps it for the next start.
    pub fn save_instance(&self, instance: &Instance) -> Result<()> {
        let path = self.instance_file();
        let text = serde_json::to_vec_pretty(instance)?;
        carob_store::file::put(&path, &text).with_context(|| format!("cannot write {}", path.display()))
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

/// Whether nothing is in a directory but what a new file system has.
fn is_empty(directory: &Path) -> Result<bool> {
    let read = || -> std::io::Result<bool> {
        for entry in fs::read_dir(directory)? {
            if entry?.file_name() != "lost+found" {
                return Ok(false);
            }
        }
        Ok(true)
    };
    read().with_context(|| format!("cannot read {}", directory.display()))
}

/// For what a data directory is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// By a gateway or a worker. `carob down` ends it.
    Serving,
    /// By `carob down`, which is let finish.
    Ending,
}

/// Who has the lock of a data directory, as its file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    pub pid: i32,
    pub purpose: Purpose,
}

impl Holder {
    fn text(self) -> String {
        match self.purpose {
            Purpose::Serving => self.pid.to_string(),
            Purpose::Ending => format!("{} ending", self.pid),
        }
    }

    /// Nothing where the text isn't written yet.
    fn parse(text: &str) -> Option<Self> {
        let (pid, purpose) = match text.strip_suffix(" ending") {
            Some(pid) => (pid, Purpose::Ending),
            None => (text, Purpose::Serving),
        };
        Some(Self { pid: pid.trim().parse().ok()?, purpose })
    }
}

/// Held by the gateway that uses a data directory; the kernel lets go of it when the process ends, however it ends.
pub struct Lock {
    _file: Flock<File>,
}

/// Somebody else has the lock of the data directory.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("another carob uses this data directory{}", .0.map(|holder| format!(" (process {})", holder.pid)).unwrap_or_default())]
pub struct Locked(pub Option<Holder>);

/// What tells the Carobs of one machine apart, and what must not change while pods run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Part of the names of everything that is made on the machine.
    pub id: String,
    /// The pods' addresses; chosen anew by the next start after `carob down`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_cidr: Option<Ipv4Net>,
    /// The pods' IPv6 addresses, in a dual-stack cluster. They stay after `carob down`, until others are chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_cidr6: Option<Ipv6Net>,
    /// The services' addresses.
    pub service_cidr: Ipv4Net,
    /// Those of IPv6, in a dual-stack cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_cidr6: Option<Ipv6Net>,
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
        let pid = i32::try_from(std::process::id()).unwrap();
        for purpose in [Purpose::Serving, Purpose::Ending] {
            let held = dir.lock(purpose).unwrap();
            let refused = dir.lock(Purpose::Serving).err().expect("a second lock").downcast::<Locked>().unwrap();
            assert_eq!(refused.0, Some(Holder { pid, purpose }));
            assert_eq!(refused.to_string(), format!("another carob uses this data directory (process {pid})"));
            assert!(dir.is_locked_by(Holder { pid, purpose }).unwrap());
            drop(held);
        }
        dir.lock(Purpose::Serving).unwrap();
    }

    #[test]
    fn who_has_the_number_of_a_holder_that_is_gone_is_not_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::create(folder.path()).unwrap();
        let _held = dir.lock(Purpose::Ending).unwrap();
        let of = |pid| Holder { pid, purpose: Purpose::Serving };
        let own = i32::try_from(std::process::id()).unwrap();
        // As its former holder left it, whose number a process has that never saw the file.
        fs::write(dir.lock_file(), "1").unwrap();
        assert!(!dir.is_locked_by(of(1)).unwrap());
        assert!(!dir.is_locked_by(of(own)).unwrap(), "the file names another");
        fs::write(dir.lock_file(), "").unwrap();
        assert!(!dir.is_locked_by(of(own)).unwrap(), "and here nobody");
        assert_eq!(dir.lock(Purpose::Ending).err().unwrap().downcast::<Locked>().unwrap().0, None);
    }

    #[test]
    fn only_what_is_or_becomes_a_data_directory_is_closed_to_others() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        let open = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        let refused = || DataDir::create(&path).unwrap_err().to_string();
        DataDir::create(&path).unwrap();
        assert_eq!(mode(), 0o700, "made anew");
        open(0o755);
        fs::create_dir(path.join("lost+found")).unwrap();
        DataDir::create(&path).unwrap();
        assert_eq!(mode(), 0o700, "a new file system");
        // Like /tmp.
        for shared in [0o1777, 0o777, 0o1755] {
            open(shared);
            assert!(refused().contains(&format!("(mode {shared:04o}) is open to others")), "{}", refused());
            assert_eq!(mode(), shared);
        }
        open(0o755);
        fs::write(path.join("notes.txt"), "").unwrap();
        assert!(refused().contains("(mode 0755)"), "{}", refused());
        assert_eq!(mode(), 0o755);
        fs::write(path.join("instance.json"), "{}").unwrap();
        DataDir::create(&path).unwrap();
        assert_eq!(mode(), 0o700, "a data directory");
        fs::remove_file(path.join("instance.json")).unwrap();
        DataDir::create(&path).unwrap();
        assert_eq!(mode(), 0o700, "closed already");
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
            pod_cidr6: Some("fd42::/64".parse().unwrap()),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            service_cidr6: Some("fd96::/112".parse().unwrap()),
        };
        dir.save_instance(&instance).unwrap();
        assert_eq!(dir.instance().unwrap(), Some(instance));
        fs::write(dir.instance_file(), r#"{"id": "0123abcd", "serviceCidr": "10.96.0.0/16"}"#).unwrap();
        let older = dir.instance().unwrap().unwrap();
        assert_eq!((older.pod_cidr6, older.service_cidr6), (None, None), "of a Carob that knew IPv4 alone");
    }
}
