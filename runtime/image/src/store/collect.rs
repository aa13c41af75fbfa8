//! Garbage: layers and blobs that no record names, nobody leases and no hold keeps; and what dead processes left.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::record::read_json;
use super::{LayerRecord, Store, Temp, folder};
use crate::layer::tree;
use crate::{Collected, Error};

impl Store {
    /// Removes garbage. The directory is locked only while things are moved aside, not while they are deleted.
    pub fn collect(&self) -> Result<Collected, Error> {
        let aside = self.temp()?;
        let collected = self.move_aside(&aside)?;
        drop(aside);
        self.sweep()?;
        Ok(collected)
    }

    fn move_aside(&self, aside: &Temp) -> Result<Collected, Error> {
        let _guard = self.exclusive()?;
        let records = self.records()?;
        let mut layers = self.held_layers()?;
        layers.extend(records.iter().flat_map(|record| record.layers.iter().chain(&record.sources).cloned()));
        let blobs: BTreeSet<&str> = records
            .iter()
            .flat_map(|record| [record.target.hex(), record.manifest.hex(), record.config.hex()])
            .collect();
        let mut collected = Collected::default();
        for path in folder(&self.root.join("layers"))? {
            let name = name_of(&path);
            if layers.contains(&name) || lock(&path).is_none() {
                continue;
            }
            let record: Option<LayerRecord> = read_json(&path.join("layer.json"))?;
            collected.layers += 1;
            collected.bytes += record.map_or(0, |record| record.bytes);
            fs::rename(&path, aside.path().join(name)).map_err(Error::io("rename", path))?;
        }
        for path in folder(&self.root.join("blobs/sha256"))? {
            if !blobs.contains(name_of(&path).as_str()) {
                fs::remove_file(&path).map_err(Error::io("remove", path))?;
            }
        }
        Ok(collected)
    }

    /// Removes what dead processes left in `tmp`.
    pub(super) fn sweep(&self) -> Result<(), Error> {
        let dead: Vec<(PathBuf, File)> = {
            // Nobody is between making a folder and locking it.
            let _guard = self.exclusive()?;
            let folders = folder(&self.root.join("tmp"))?;
            folders.into_iter().filter_map(|path| lock(&path).map(|lock| (path, lock))).collect()
        };
        for (path, _lock) in dead {
            tree::remove_path(&path).map_err(Error::io("remove", path))?;
        }
        Ok(())
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Locks a folder that nobody has locked, in no process.
fn lock(path: &Path) -> Option<File> {
    File::open(path).ok().filter(|folder| folder.try_lock().is_ok())
}
