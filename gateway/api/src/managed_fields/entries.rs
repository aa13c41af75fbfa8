//! `metadata.managedFields` read and written: who owns which fields since when.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Operation;
use super::set::Set;

/// Update managers beyond this number are collapsed, the oldest first.
const MAX_UPDATE_MANAGERS: usize = 10;
/// Whom the fields of collapsed managers belong to.
const ANCIENT_CHANGES: &str = "ancient-changes";

/// What tells managers apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ManagerId {
    pub(crate) name: String,
    pub(crate) operation: Operation,
    /// Empty for appliers: they are the same in every version.
    pub(crate) api_version: String,
    pub(crate) subresource: String,
}

/// What one manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owned {
    pub(crate) fields: Set,
    pub(crate) api_version: String,
    /// RFC 3339; none for one who applied what was there already.
    pub(crate) time: Option<String>,
}

/// All managers of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Managed(BTreeMap<ManagerId, Owned>);

impl Managed {
    /// Reads the entries of an object; without any, nobody manages it.
    pub(crate) fn read(object: &Value) -> Result<Self, String> {
        let mut managed = BTreeMap::new();
        let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
        for (index, entry) in entries.into_iter().flatten().enumerate() {
            let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return Err("operation must be `Apply` or `Update`".to_owned()),
            };
            if text("apiVersion").is_empty() {
                return Err("apiVersion must not be empty".to_owned());
            }
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(format!("missing fieldsType in managed fields entry {index}")),
                other => return Err(format!("invalid fieldsType \"{other}\" in managed fields entry {index}")),
            }
            let fields = match entry.get("fieldsV1") {
                None | Some(Value::Null) => Set::default(),
                Some(fields) => Set::from_json(fields).map_err(|error| format!("error decoding set: {error}"))?,
            };
            let api_version = text("apiVersion").to_owned();
            let id = ManagerId::new(text("manager"), operation, &api_version, text("subresource"));
            let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
            managed.insert(id, Owned { fields, api_version, time });
        }
        Ok(Self(managed))
    }

    /// Writes the entries into an object, sorted as Kubernetes does.
    pub(crate) fn write(&self, object: &mut Value) {
        remove(object);
        if self.0.is_empty() {
            return;
        }
        let mut entries: Vec<_> = self.0.iter().collect();
        entries.sort_by_key(|(id, owned)| (id.operation, seconds(owned.time.as_deref()), (*id).clone()));
        let entries: Vec<Value> = entries.into_iter().map(|(id, owned)| entry(id, owned)).collect();
        if let Some(object) = object.as_object_mut()
            && let Some(metadata) = object.entry("metadata").or_insert_with(|| json!({})).as_object_mut()
        {
            metadata.insert("managedFields".to_owned(), entries.into());
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ManagerId, &Owned)> {
        self.0.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&ManagerId, &mut Owned)> {
        self.0.iter_mut()
    }

    pub(crate) fn insert(&mut self, id: ManagerId, owned: Owned) {
        self.0.insert(id, owned);
    }

    pub(crate) fn remove(&mut self, id: &ManagerId) -> Option<Owned> {
        self.0.remove(id)
    }

    /// Keeps only these managers.
    pub(crate) fn retain(&mut self, keep: impl Fn(&ManagerId, &Owned) -> bool) {
        self.0.retain(|id, owned| keep(id, owned));
    }

    /// Drops those who own nothing.
    pub(crate) fn drop_empty(&mut self) {
        self.0.retain(|_, owned| !owned.fields.is_empty());
    }

    /// Collapses the oldest updaters of a version into one while there are too many.
    pub(crate) fn cap_updaters(&mut self) {
        if self.0.len() <= MAX_UPDATE_MANAGERS {
            return;
        }
        let mut updaters: Vec<(i64, ManagerId)> = self
            .0
            .iter()
            .filter(|(id, _)| id.operation == Operation::Update)
            .map(|(id, owned)| (seconds(owned.time.as_deref()), id.clone()))
            .collect();
        updaters.sort();
        let mut count = updaters.len();
        let mut first_of_version: BTreeMap<String, ManagerId> = BTreeMap::new();
        for (_, id) in updaters {
            if count <= MAX_UPDATE_MANAGERS {
                break;
            }
            let Some(owned) = self.0.get(&id).cloned() else { continue };
            let Some(first) = first_of_version.get(&owned.api_version).cloned() else {
                first_of_version.insert(owned.api_version, id);
                continue;
            };
            let bucket = ManagerId::new(ANCIENT_CHANGES, Operation::Update, &owned.api_version, "");
            if id == bucket {
                continue;
            }
            let collected = self.0.remove(&bucket).or_else(|| self.0.remove(&first));
            let fields = collected.map(|collected| collected.fields).unwrap_or_default().union(&owned.fields);
            self.0.remove(&id);
            self.0.insert(bucket, Owned { fields, ..owned });
            count -= 1;
        }
    }
}

impl ManagerId {
    /// The id of who did this operation.
    pub(crate) fn new(name: &str, operation: Operation, api_version: &str, subresource: &str) -> Self {
        let api_version = if operation == Operation::Apply { "" } else { api_version };
        Self {
            name: name.to_owned(),
            operation,
            api_version: api_version.to_owned(),
            subresource: subresource.to_owned(),
        }
    }
}

/// Takes `managedFields` out of an object.
pub(crate) fn remove(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
}

fn entry(id: &ManagerId, owned: &Owned) -> Value {
    let mut entry = Map::new();
    let mut put = |name: &str, text: &str| {
        if !text.is_empty() {
            entry.insert(name.to_owned(), text.into());
        }
    };
    put("manager", &id.name);
    put("operation", id.operation.as_str());
    put("apiVersion", &owned.api_version);
    put("time", owned.time.as_deref().unwrap_or_default());
    put("fieldsType", "FieldsV1");
    entry.insert("fieldsV1".to_owned(), owned.fields.to_json());
    if !id.subresource.is_empty() {
        entry.insert("subresource".to_owned(), id.subresource.as_str().into());
    }
    Value::Object(entry)
}

fn seconds(time: Option<&str>) -> i64 {
    time.and_then(|time| time.parse::<jiff::Timestamp>().ok()).map_or(0, jiff::Timestamp::as_second)
}
