//! An Ingress or a claim of storage that names no class gets the one that is marked as the default.

use std::cmp::Reverse;
use std::sync::Arc;

use carob_api::status::Status;
use carob_store::KeyRange;
use serde_json::Value;

use crate::call::Call;
use crate::objects::{store_failure, text};

/// How one kind names its class.
pub(super) struct Class {
    /// Under which classes are stored.
    prefix: &'static str,
    /// The field below `spec`.
    field: &'static str,
    /// The annotation that was there before the field.
    before: &'static str,
    /// Annotations that with the value `true` make a class the default.
    marks: &'static [&'static str],
}

/// An Ingress's.
pub(super) const OF_INGRESSES: Class = Class {
    prefix: "/networking.k8s.io/ingressclasses/",
    field: "ingressClassName",
    before: "kubernetes.io/ingress.class",
    marks: &["ingressclass.kubernetes.io/is-default-class"],
};

/// A PersistentVolumeClaim's.
pub(super) const OF_CLAIMS: Class = Class {
    prefix: "/storage.k8s.io/storageclasses/",
    field: "storageClassName",
    before: "volume.beta.kubernetes.io/storage-class",
    marks: &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"],
};

impl Class {
    /// Names the class of a new object: the newest default one, should there be several.
    pub async fn admit(&self, call: &Call, object: &mut Value) -> Result<(), Status> {
        if self.is_named(object) {
            return Ok(());
        }
        let page = call.server.store.range(&KeyRange::prefix(self.prefix), None, None).await;
        let page = page.map_err(|error| store_failure(&error))?;
        let classes: Vec<Arc<Value>> =
            page.entries.iter().map(|entry| call.server.decoded.get(entry)).collect::<Result<_, _>>()?;
        let default = classes.iter().filter(|class| self.is_default(class)).min_by_key(|class| {
            (Reverse(text(class, "/metadata/creationTimestamp").to_owned()), text(class, "/metadata/name").to_owned())
        });
        if let Some(class) = default
            && let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
        {
            spec.insert(self.field.to_owned(), text(class, "/metadata/name").into());
        }
        Ok(())
    }

    /// A claim of no class says so with an empty name.
    fn is_named(&self, object: &Value) -> bool {
        let there = |place: &Value, key: &str| place.get(key).is_some_and(|value| !value.is_null());
        there(&object["spec"], self.field) || there(&object["metadata"]["annotations"], self.before)
    }

    fn is_default(&self, class: &Value) -> bool {
        let annotations = &class["metadata"]["annotations"];
        self.marks.iter().any(|mark| annotations[*mark] == "true")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_empty_name_is_a_name() {
        assert!(OF_CLAIMS.is_named(&json!({"spec": {"storageClassName": ""}})));
        assert!(OF_INGRESSES.is_named(&json!({"metadata": {"annotations": {"kubernetes.io/ingress.class": "x"}}})));
        assert!(!OF_INGRESSES.is_named(&json!({"spec": {}})));
    }

    #[test]
    fn a_class_is_marked_as_the_default() {
        let class = |mark: &str, value: &str| json!({"metadata": {"annotations": {mark: value}}});
        assert!(OF_CLAIMS.is_default(&class("storageclass.beta.kubernetes.io/is-default-class", "true")));
        assert!(!OF_INGRESSES.is_default(&class("ingressclass.kubernetes.io/is-default-class", "false")));
    }
}
