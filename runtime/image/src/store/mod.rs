//! The directory of images on disk.
//!
//! ```text
//! lock                    shared while something is added or leased, exclusive while something is collected
//! blobs/sha256/HEX        manifests, indexes, image configurations
//! layers/HEX/fs           an unpacked layer, by the first half of its diff id (the whole is in layer.json), so that
//!                         many of them fit into a mount's options
//! layers/HEX/from/HEX     an empty file per transported digest that was verified to unpack to this layer
//! records/HEX.json        one per reference
//! holds/HEX.json          one per owner: layers kept for containers
//! tmp/…                   in the making; locked by its maker, and removed by whoever finds it unlocked
//! ```
//!
//! Nothing is ever changed in place: things are made in `tmp` and renamed. A process that dies at any moment leaves
//! whole things and rubbish in `tmp`. Locks are flock(2): they end with their holder.

mod collect;
mod lease;
mod record;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::Error;
use crate::digest::Digest;
use crate::layer::tree;

pub(crate) use lease::{LayerLease, LayerRecord, layer_name};
pub(crate) use record::Record;

const FOLDERS: [&str; 5] = ["blobs/sha256", "layers", "records", "holds", "tmp"];

#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    leases: lease::Leases,
    counter: AtomicU64,
    this: Weak<Store>,
}

/// The directory's lock, let go when dropped.
pub(crate) struct Guard {
    _file: File,
}

/// A folder in `tmp`, removed with all it holds when dropped.
#[derive(Debug)]
pub(crate) struct Temp {
    path: PathBuf,
    _lock: File,
}

impl Temp {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if let Err(error) = tree::remove_path(&self.path) {
            // The next collection tries again.
            tracing::debug!(path = %self.path.display(), %error, "a temporary folder stays");
        }
    }
}

impl Store {
    pub fn open(root: &Path) -> Result<Arc<Self>, Error> {
        for folder in FOLDERS {
            let path = root.join(folder);
            // Layers hold setuid programs: nobody but root may reach them here.
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(Error::io("create", &path))?;
        }
        let root = root.canonicalize().map_err(Error::io("open", root))?;
        let store = Arc::new_cyclic(|this| Self {
            root,
            leases: lease::Leases::default(),
            counter: AtomicU64::new(0),
            this: Weak::clone(this),
        });
        store.sweep()?;
        Ok(store)
    }

    /// Keeps collections out for a moment.
    pub fn shared(&self) -> Result<Guard, Error> {
        let file = self.lock_file()?;
        file.lock_shared().map_err(Error::io("lock", self.root.join("lock")))?;
        Ok(Guard { _file: file })
    }

    fn exclusive(&self) -> Result<Guard, Error> {
        let file = self.lock_file()?;
        file.lock().map_err(Error::io("lock", self.root.join("lock")))?;
        Ok(Guard { _file: file })
    }

    fn lock_file(&self) -> Result<File, Error> {
        let path = self.root.join("lock");
        File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io("open", path))
    }

    /// Makes a folder that is ours until it is dropped.
    pub fn temp(&self) -> Result<Temp, Error> {
        let _guard = self.shared()?;
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join("tmp").join(format!("{}-{time:x}-{number}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(Error::io("create", &path))?;
        let lock = File::open(&path).map_err(Error::io("open", &path))?;
        lock.lock().map_err(Error::io("lock", &path))?;
        Ok(Temp { path, _lock: lock })
    }

    /// Writes a manifest or configuration whose digest is known to be right.
    pub fn write_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        let path = self.blob_path(digest);
        if path.exists() { Ok(()) } else { self.write_file(&path, bytes) }
    }

    /// Reads a blob and verifies it; one that was damaged on disk counts as absent.
    pub fn read_blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, Error> {
        let path = self.blob_path(digest);
        match fs::read(&path) {
            Ok(bytes) if Digest::of(&bytes) == *digest => Ok(Some(bytes)),
            Ok(_) => {
                fs::remove_file(&path).map_err(Error::io("remove", path))?;
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", path)(error)),
        }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// A file appears whole and on disk, or not at all.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        self.place_file(path, bytes, File::sync_all)
    }

    /// The same, but after a power failure the file may be missing, or empty.
    fn write_passing_file(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        self.place_file(path, bytes, |_| Ok(()))
    }

    fn place_file(&self, path: &Path, bytes: &[u8], sync: fn(&File) -> io::Result<()>) -> Result<(), Error> {
        let temp = self.temp()?;
        let new = temp.path().join("file");
        let mut file = File::create(&new).map_err(Error::io("create", &new))?;
        file.write_all(bytes).and_then(|()| sync(&file)).map_err(Error::io("write", &new))?;
        fs::rename(&new, path).map_err(Error::io("rename", path))
    }

    /// Brings all unpacked files to disk, so that a record written afterwards never names a layer that a power failure
    /// emptied. Once per image rather than once per file.
    pub fn sync(&self) -> Result<(), Error> {
        let root = File::open(&self.root).map_err(Error::io("open", &self.root))?;
        nix::unistd::syncfs(&root).map_err(Error::io_errno("sync", &self.root))
    }
}

/// A file name for any text.
fn file_name(text: &str) -> String {
    format!("{}.json", &Digest::of(text.as_bytes()).hex()[..32])
}

fn folder(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(path).map_err(Error::io("read", path))?;
    entries.map(|entry| Ok(entry.map_err(Error::io("read", path))?.path())).collect()
}
