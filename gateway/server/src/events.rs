//! Events have two forms, `v1` and `events.k8s.io/v1`, and are stored as the first.

use carob_api::kind::Kind;
use carob_api::strategy::event::{from_core, to_core};
use serde_json::Value;

/// Whether objects of this kind are stored in another form than they are shown in.
pub(crate) fn is_converted(kind: &Kind) -> bool {
    kind.stored_as.is_some()
}

/// Turns a stored object into the form of this kind.
pub(crate) fn from_stored(kind: &Kind, object: &mut Value) {
    if is_converted(kind) {
        *object = from_core(object);
    }
}

/// Turns an object of this kind into the form in which it is stored.
pub(crate) fn to_stored(kind: &Kind, object: &mut Value) {
    if is_converted(kind) {
        *object = to_core(object);
    }
}
