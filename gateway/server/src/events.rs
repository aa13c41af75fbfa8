//! Events have two forms, `v1` and `events.k8s.io/v1`, and are stored as the first.

use carob_api::kind::Kind;
pub(crate) use carob_api::kinds::event::{from_stored, to_stored};

/// Whether objects of this kind are stored in another form than they are shown in.
pub(crate) fn is_converted(kind: &Kind) -> bool {
    kind.stored_as.is_some()
}
