//! An Ingress that names no class gets the one that is marked as the default.

use std::cmp::Reverse;
use std::sync::Arc;

use carob_api::status::Status;
use carob_store::KeyRange;
use serde_json::Value;

use crate::call::Call;
use crate::objects::{store_failure, text};

const CLASSES: &str = "/networking.k8s.io/ingressclasses/";
/// How a class was named before there was a field for it.
const OLD_CLASS: &str = "/metadata/annotations/kubernetes.io~1ingress.class";
const DEFAULT: &str = "/metadata/annotations/ingressclass.kubernetes.io~1is-default-class";

/// Sets `ingressClassName`: that of the newest default class, should there be several.
pub(super) async fn admit(call: &Call, ingress: &mut Value) -> Result<(), Status> {
    let named = ingress.pointer("/spec/ingressClassName").is_some_and(|name| !name.is_null());
    if named || ingress.pointer(OLD_CLASS).is_some() {
        return Ok(());
    }
    let page = call.server.store.range(&KeyRange::prefix(CLASSES), None, None).await;
    let page = page.map_err(|error| store_failure(&error))?;
    let classes: Vec<Arc<Value>> =
        page.entries.iter().map(|entry| call.server.decoded.get(entry)).collect::<Result<_, _>>()?;
    let defaults = classes.iter().filter(|class| text(class, DEFAULT) == "true");
    let age = |class: &&Arc<Value>| {
        (Reverse(text(class, "/metadata/creationTimestamp").to_owned()), text(class, "/metadata/name").to_owned())
    };
    if let Some(class) = defaults.min_by_key(age)
        && let Some(spec) = ingress.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.insert("ingressClassName".to_owned(), text(class, "/metadata/name").into());
    }
    Ok(())
}
