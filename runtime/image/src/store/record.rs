//! Which references there are, and who holds layers.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Store, file_name, folder};
use crate::access::Access;
use crate::digest::Digest;
use crate::{Error, Reference};

/// An image under one of its names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Record {
    pub reference: String,
    /// What the reference resolved to: an index or the manifest.
    pub target: Digest,
    pub manifest: Digest,
    pub config: Digest,
    /// Names in `layers/` of what is mounted, lowest first.
    pub layers: Vec<String>,
    /// Those of the layers as the image lists them, which differ where a layer had to be fitted to those below it.
    pub sources: Vec<String>,
    pub size: u64,
    pub created_at: u64,
    /// Imported by hand: no registry would give it back.
    #[serde(default)]
    pub imported: bool,
    /// Who may use it.
    #[serde(default)]
    pub access: Access,
}

#[derive(Deserialize, Serialize)]
struct Hold {
    owner: String,
    layers: BTreeSet<String>,
}

impl Store {
    pub fn write_record(&self, record: &Record) -> Result<(), Error> {
        self.write_json(&self.root.join("records").join(file_name(&record.reference)), record)
    }

    pub fn records(&self) -> Result<Vec<Record>, Error> {
        let mut records: Vec<Record> = read_all(&self.root.join("records"))?;
        records.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(records)
    }

    /// The record of a reference: by its exact name, or by digest among all records of the same repository.
    pub fn record(&self, reference: &Reference) -> Result<Option<Record>, Error> {
        let name = reference.to_string();
        if let Some(record) = read_json::<Record>(&self.root.join("records").join(file_name(&name)))? {
            return Ok(Some(record).filter(|record| record.reference == name));
        }
        let Some(digest) = &reference.digest else { return Ok(None) };
        let prefix = reference.name();
        let in_repository = |record: &Record| {
            record
                .reference
                .strip_prefix(&prefix)
                .is_some_and(|rest| rest.starts_with([':', '@']) && !rest.contains('/'))
        };
        let is_it = |record: &Record| record.target.as_str() == digest || record.manifest.as_str() == digest;
        Ok(self.records()?.into_iter().find(|record| is_it(record) && in_repository(record)))
    }

    pub fn records_by_id(&self, id: &str) -> Result<Vec<Record>, Error> {
        let is_it = |digest: &Digest| digest.as_str() == id;
        let mut records = self.records()?;
        records.retain(|record| is_it(&record.config) || is_it(&record.manifest) || is_it(&record.target));
        Ok(records)
    }

    /// Tells whether there was one.
    pub fn delete_record(&self, reference: &str) -> Result<bool, Error> {
        remove_file(&self.root.join("records").join(file_name(reference)))
    }

    /// Lasts as long as the machine is up, as does the container that it is for: nobody waits for the disk.
    pub fn write_hold(&self, owner: &str, layers: BTreeSet<String>) -> Result<(), Error> {
        let path = self.root.join("holds").join(file_name(owner));
        let hold = Hold { owner: owner.to_owned(), layers };
        self.write_passing_file(&path, &encode(&hold, &path)?)
    }

    pub fn delete_hold(&self, owner: &str) -> Result<bool, Error> {
        remove_file(&self.root.join("holds").join(file_name(owner)))
    }

    pub fn holders(&self) -> Result<Vec<String>, Error> {
        Ok(self.holds()?.into_iter().map(|hold| hold.owner).collect())
    }

    /// How many holds are of such layers.
    pub fn count_holds(&self, of: impl Fn(&BTreeSet<String>) -> bool) -> Result<usize, Error> {
        Ok(self.holds()?.iter().filter(|hold| of(&hold.layers)).count())
    }

    pub(super) fn held_layers(&self) -> Result<BTreeSet<String>, Error> {
        Ok(self.holds()?.into_iter().flat_map(|hold| hold.layers).collect())
    }

    /// All holds. What a power failure left of one is nobody's.
    fn holds(&self) -> Result<Vec<Hold>, Error> {
        let mut holds = Vec::new();
        for path in folder(&self.root.join("holds"))? {
            match fs::metadata(&path) {
                Ok(metadata) if metadata.len() == 0 => {
                    remove_file(&path)?;
                }
                _ => holds.extend(read_json(&path)?),
            }
        }
        Ok(holds)
    }

    pub(super) fn write_json(&self, path: &Path, value: &impl Serialize) -> Result<(), Error> {
        self.write_file(path, &encode(value, path)?)
    }
}

fn encode(value: &impl Serialize, path: &Path) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::io("encode", path)(error.into()))
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| Error::io("read", path)(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

fn read_all<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, Error> {
    // A file may go between the listing and the reading.
    folder(path)?.iter().filter_map(|path| read_json(path).transpose()).collect()
}

fn remove_file(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("remove", path)(error)),
    }
}
