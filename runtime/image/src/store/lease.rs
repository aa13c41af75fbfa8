//! Layers that are in place, and the locks that keep them there while somebody uses them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::record::read_json;
use super::{Store, Temp};
use crate::Error;
use crate::digest::Digest;
use crate::layer::Written;

/// `layer.json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct LayerRecord {
    pub diff_id: Digest,
    pub entries: u64,
    pub bytes: u64,
    pub opaque_root: bool,
    /// Paths are of one archive and need not be UTF-8: hexadecimal would hide them, so they are bytes.
    pub implied: Vec<Vec<u8>>,
}

impl LayerRecord {
    pub fn new(diff_id: Digest, written: Written) -> Self {
        Self {
            diff_id,
            entries: written.entries,
            bytes: written.bytes,
            opaque_root: written.opaque_root,
            implied: written.implied.into_iter().collect(),
        }
    }
}

/// A layer that no collection of any process removes while this lives.
#[derive(Debug)]
pub(crate) struct LayerLease {
    /// Its name in `layers/`.
    pub name: String,
    /// The directory for overlay.
    pub path: PathBuf,
    pub record: LayerRecord,
    /// Unpacked by this process for an image that isn't recorded yet.
    fresh: AtomicBool,
    store: Weak<Store>,
    lock: Option<File>,
}

impl LayerLease {
    /// The layer stays when the lease ends: it is recorded, or worth having for the next attempt.
    pub fn keep(&self) {
        self.fresh.store(false, Ordering::Relaxed);
    }
}

impl Drop for LayerLease {
    /// A layer whose image came to nothing goes with its last lease.
    fn drop(&mut self) {
        let Some(store) = self.store.upgrade().filter(|_| self.fresh.load(Ordering::Relaxed)) else { return };
        self.lock = None;
        let tidy = move || {
            if let Err(error) = store.collect() {
                tracing::info!(error = error.describe(), "the layers of a failed image stay for the next collection");
            }
        };
        match Handle::try_current() {
            Ok(runtime) => _ = runtime.spawn_blocking(tidy),
            Err(_) => tidy(),
        }
    }
}

/// The leases of this process: one open file per layer, however many images share it.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<HashMap<String, Weak<LayerLease>>>);

impl Leases {
    fn get(&self, name: &str) -> Option<Arc<LayerLease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).and_then(Weak::upgrade)
    }

    /// Keeps the first of two that were made at once.
    fn insert(&self, lease: LayerLease) -> Arc<LayerLease> {
        let mut leases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        leases.retain(|_, lease| lease.strong_count() > 0);
        if let Some(present) = leases.get(&lease.name).and_then(Weak::upgrade) {
            lease.keep();
            return present;
        }
        let lease = Arc::new(lease);
        leases.insert(lease.name.clone(), Arc::downgrade(&lease));
        lease
    }
}

/// A layer's name on disk: half of its diff id.
pub(crate) fn layer_name(diff_id: &Digest) -> String {
    diff_id.hex()[..32].to_owned()
}

impl Store {
    /// Leases a layer if it is here and `transported` is known to be what it was unpacked from: what a manifest merely
    /// claims to be the same layer has to be downloaded and verified once.
    pub fn lease_layer(&self, diff_id: &Digest, transported: &Digest) -> Result<Option<Arc<LayerLease>>, Error> {
        let name = layer_name(diff_id);
        let _guard = self.shared()?;
        if !self.layer_dir(&name).join("from").join(transported.hex()).exists() {
            return Ok(None);
        }
        let lease = self.lease_named(&name)?;
        Ok(lease.filter(|lease| lease.record.diff_id == *diff_id))
    }

    /// Leases a layer by its name. To be called with the store's lock held.
    pub fn lease_named(&self, name: &str) -> Result<Option<Arc<LayerLease>>, Error> {
        if let Some(lease) = self.leases.get(name) {
            return Ok(Some(lease));
        }
        let dir = self.layer_dir(name);
        let lock = match File::open(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(Error::io("open", &dir))?,
        };
        lock.lock_shared().map_err(Error::io("lock", &dir))?;
        let Some(record) = read_json(&dir.join("layer.json"))? else { return Ok(None) };
        Ok(Some(self.leases.insert(self.lease_of(name, record, lock, false))))
    }

    /// Puts a layer that was unpacked into `temp`/fs in its place and leases it; if another process was faster, theirs
    /// is taken and ours dropped.
    pub fn commit_layer(
        &self,
        temp: &Temp,
        name: &str,
        record: LayerRecord,
        transported: Option<&Digest>,
    ) -> Result<Arc<LayerLease>, Error> {
        let made = temp.path().join("layer");
        let dir = self.layer_dir(name);
        let json = serde_json::to_vec(&record).map_err(|error| Error::io("encode", &made)(error.into()))?;
        fs::create_dir_all(made.join("from")).map_err(Error::io("create", &made))?;
        fs::write(made.join("layer.json"), json).map_err(Error::io("write", &made))?;
        let _guard = self.shared()?;
        // The lock is on the directory itself and stays through the rename: there is no moment without it.
        let lock = File::open(&made).map_err(Error::io("open", &made))?;
        lock.lock_shared().map_err(Error::io("lock", &made))?;
        let lease = match fs::rename(&made, &dir) {
            Ok(()) => self.leases.insert(self.lease_of(name, record, lock, true)),
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                let present = self.lease_named(name)?.filter(|present| present.record.diff_id == record.diff_id);
                present.ok_or_else(|| Error::io("use", &dir)(io::ErrorKind::InvalidData.into()))?
            }
            Err(error) => return Err(Error::io("rename", &dir)(error)),
        };
        if let Some(transported) = transported {
            let mark = dir.join("from").join(transported.hex());
            File::create(&mark).map_err(Error::io("create", mark))?;
        }
        Ok(lease)
    }

    fn lease_of(&self, name: &str, record: LayerRecord, lock: File, fresh: bool) -> LayerLease {
        LayerLease {
            name: name.to_owned(),
            path: self.layer_dir(name).join("fs"),
            record,
            fresh: AtomicBool::new(fresh),
            store: Weak::clone(&self.this),
            lock: Some(lock),
        }
    }

    /// Where a layer is unpacked to before it is committed.
    pub fn layer_in_making(temp: &Temp) -> Result<PathBuf, Error> {
        let path = temp.path().join("layer/fs");
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        Ok(path)
    }

    pub(super) fn layer_dir(&self, name: &str) -> PathBuf {
        Path::new(&self.root).join("layers").join(name)
    }
}
