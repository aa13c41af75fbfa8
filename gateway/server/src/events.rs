//! Kinds whose objects are stored in the form of another: Events of `events.k8s.io`, older versions of a kind.

use carob_api::kind::Kind;
use serde_json::Value;

/// Whether objects of this kind are stored in another form than they are shown in.
pub(crate) fn is_converted(kind: &Kind) -> bool {
    kind.stored_as.is_some() || kind.custom.is_some()
}

/// Turns a stored object into the form of this kind.
pub(crate) fn from_stored(kind: &Kind, object: &mut Value) {
    kind.from_stored(object);
}

/// Turns an object of this kind into the form in which it is stored.
pub(crate) fn to_stored(kind: &Kind, object: &mut Value) {
    kind.to_stored(object);
}
