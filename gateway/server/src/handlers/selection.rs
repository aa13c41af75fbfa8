//! Which objects a list or a watch is about: label and field selectors, decided with as little decoding as possible.

use carob_api::kind::KindRef;
use carob_api::selector::{FieldSelector, LabelSelector};
use carob_api::status::Status;
use carob_store::Entry;
use serde_json::Value;

use crate::{Server, events, objects, stored};

/// Label and field selectors of one request.
pub(crate) struct Selection {
    kind: KindRef,
    labels: LabelSelector,
    fields: FieldSelector,
    /// Whether name and namespace, which are in the key, decide.
    key_decides: bool,
    /// Whether the labels do beside them.
    labels_decide: bool,
    everything: bool,
}

impl Selection {
    pub fn new(kind: &KindRef, labels: LabelSelector, fields: FieldSelector) -> Self {
        let labels_decide = fields.requirements().iter().all(|(field, _, _)| key_field(field).is_some());
        let key_decides = labels_decide && labels.is_everything();
        let everything = labels.is_everything() && fields.requirements().is_empty();
        Self { kind: kind.clone(), labels, fields, key_decides, labels_decide, everything }
    }

    /// Whether every object is meant.
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// The one name that objects must have, if the selector says so: then a single key need be looked at.
    pub fn name(&self) -> Option<&str> {
        self.fields.exact("metadata.name")
    }

    /// Whether a stored object is meant, for watchers, of whom many look at the same few objects.
    pub fn matches(&self, server: &Server, entry: &Entry) -> Result<bool, Status> {
        match self.matches_undecoded(entry) {
            Some(matches) => Ok(matches),
            None => Ok(self.matches_object(&*server.decoded.get(entry)?)),
        }
    }

    /// Whether a stored object is meant, for whoever goes through all of them: that would only push out of the cache
    /// what watchers need.
    pub fn matches_once(&self, entry: &Entry) -> Result<bool, Status> {
        if let Some(matches) = self.matches_undecoded(entry) {
            return Ok(matches);
        }
        if self.labels_decide
            && let Some(labels) = stored::labels(&entry.value)
        {
            return Ok(self.labels.matches(Some(&labels)));
        }
        Ok(self.matches_object(&objects::decode(&entry.value)?))
    }

    /// What the key alone decides.
    fn matches_undecoded(&self, entry: &Entry) -> Option<bool> {
        if self.everything {
            return Some(true);
        }
        if !self.matches_key(&entry.key) {
            return Some(false);
        }
        self.key_decides.then_some(true)
    }

    fn matches_key(&self, key: &str) -> bool {
        let (namespace, name) = objects::split_key(&self.kind, key);
        self.fields.requirements().iter().all(|(field, equals, wanted)| match key_field(field) {
            Some(KeyField::Name) => (name == wanted) == *equals,
            Some(KeyField::Namespace) => (namespace.unwrap_or_default() == wanted) == *equals,
            None => true,
        })
    }

    fn matches_object(&self, object: &Value) -> bool {
        if !self.labels.matches(object.pointer("/metadata/labels")) {
            return false;
        }
        let converted;
        let object = if events::is_converted(&self.kind) {
            let mut form = object.clone();
            events::from_stored(&self.kind, &mut form);
            converted = form;
            &converted
        } else {
            object
        };
        self.fields.requirements().iter().filter(|(field, _, _)| key_field(field).is_none()).all(
            |(field, equals, wanted)| {
                let value = self.kind.field(object, field).unwrap_or_default();
                (value == *wanted) == *equals
            },
        )
    }
}

enum KeyField {
    Name,
    Namespace,
}

fn key_field(field: &str) -> Option<KeyField> {
    match field {
        "metadata.name" => Some(KeyField::Name),
        "metadata.namespace" => Some(KeyField::Namespace),
        _ => None,
    }
}
