//! Custom resources: what a kind has that was made of a CustomResourceDefinition.

mod structural;

use serde_json::Value;

use crate::field::ErrorList;
use crate::kind::{Part, ScalePaths};
use crate::schema::{self, Schema};
use crate::strategy;
pub use structural::{Additional, Structural};

/// One version of a custom resource.
#[derive(Debug)]
pub struct Custom {
    /// All served versions.
    pub versions: Vec<String>,
    /// The version in which objects are stored.
    pub storage_version: String,
    /// Whether there is a status subresource.
    pub has_status: bool,
    /// Where the scale subresource finds its numbers, as JSON pointers.
    pub scale: Option<Scale>,
    /// The schema as validation, pruning and defaulting see it.
    pub structural: Structural,
    /// The schema as patches and field ownership see it.
    schema: Schema,
    /// What clients are told of a version that goes away.
    pub deprecation: Option<String>,
}

/// JSON pointers of the scale subresource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Of the wanted number.
    pub spec_replicas: String,
    /// Of the number there is.
    pub status_replicas: String,
    /// Of the selector as a text.
    pub selector: Option<String>,
}

impl Custom {
    /// A version with this schema, and nothing else.
    pub fn new(version: &str, structural: Structural) -> Self {
        Self {
            versions: vec![version.to_owned()],
            storage_version: version.to_owned(),
            has_status: false,
            scale: None,
            schema: schema::custom::of(&structural),
            structural,
            deprecation: None,
        }
    }

    /// The schema as patches and field ownership see it.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    pub(crate) fn default(&self, _object: &mut Value) {}

    pub(crate) fn prepare_create(&self, object: &mut Value) {
        if let Some(fields) = object.as_object_mut().filter(|_| self.has_status) {
            fields.shift_remove("status");
        }
        strategy::first_generation(object);
    }

    pub(crate) fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        if part == Part::Status {
            strategy::keep_all_but_status(new, old, &["managedFields"]);
            return;
        }
        if self.has_status {
            strategy::keep_field(new, old, "status");
        }
        let content = |object: &Value| {
            let mut object = object.clone();
            if let Some(fields) = object.as_object_mut() {
                fields.shift_remove("metadata");
            }
            object
        };
        let changed = content(new) != content(old);
        strategy::bump_generation(new, old, changed);
    }

    pub(crate) fn validate(&self, _object: &Value) -> ErrorList {
        ErrorList::new()
    }

    pub(crate) fn validate_update(&self, _new: &Value, _old: &Value, _: Part) -> ErrorList {
        ErrorList::new()
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        self.deprecation.iter().cloned().collect()
    }

    pub(crate) fn field(&self, object: &Value, field: &str) -> Option<String> {
        strategy::metadata_field(object, field)
    }

    pub(crate) fn scale_paths(&self) -> ScalePaths<'_> {
        self.scale.as_ref().map_or(ScalePaths { spec_replicas: "", status_replicas: "", selector: None }, |scale| {
            ScalePaths {
                spec_replicas: &scale.spec_replicas,
                status_replicas: &scale.status_replicas,
                selector: scale.selector.as_deref(),
            }
        })
    }
}
