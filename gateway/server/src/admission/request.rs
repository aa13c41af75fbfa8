//! A request as admission plugins see it.

use carob_api::kind::KindRef;
use serde_json::Value;

use crate::call::Call;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As webhooks and policies name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// One request. The resource is the call's kind, the user its identity.
pub(crate) struct Request<'a> {
    pub call: &'a Call,
    pub operation: Operation,
    /// `status`, `scale`, `binding`, …; empty for the object itself.
    pub subresource: &'a str,
    /// The name of the object; empty as long as none is generated.
    pub name: String,
    /// What was sent, as it is by now: an object of the call's kind, or what the subresource takes; null for a delete.
    pub object: Value,
    /// What there is already: for updates and deletes.
    pub old: Option<&'a Value>,
    /// Whether nothing will be kept: whoever has effects elsewhere must not have them.
    pub dry_run: bool,
    /// The kind that the request was sent for, if it is looked at as one for another version of the same resource.
    pub sent_for: Option<&'a KindRef>,
    /// The options of the request as an object: `CreateOptions`, `DeleteOptions`, …; null if there are none to show.
    pub options: Value,
}

impl<'a> Request<'a> {
    /// A new object.
    pub fn create(call: &'a Call, object: Value, dry_run: bool) -> Self {
        let name = crate::objects::text(&object, "/metadata/name").to_owned();
        Self { name, object, ..Self::of(call, Operation::Create, dry_run) }
    }

    /// A changed object.
    pub fn update(call: &'a Call, subresource: &'a str, object: Value, old: &'a Value, dry_run: bool) -> Self {
        Self { subresource, object, old: Some(old), ..Self::of(call, Operation::Update, dry_run) }
    }

    /// The end of an object of this name.
    pub fn delete(call: &'a Call, name: &str, old: &'a Value, dry_run: bool) -> Self {
        Self { name: name.to_owned(), old: Some(old), ..Self::of(call, Operation::Delete, dry_run) }
    }

    /// Something made of an object by a subresource: a binding, an eviction, a token.
    pub fn create_part(call: &'a Call, subresource: &'a str, object: Value, dry_run: bool) -> Self {
        Self { subresource, object, ..Self::of(call, Operation::Create, dry_run) }
    }

    /// A connection to something through an object: `exec`, `attach`, `portforward`, `proxy`.
    pub fn connect(call: &'a Call, subresource: &'a str, options: Value) -> Self {
        Self { subresource, object: options, ..Self::of(call, Operation::Connect, false) }
    }

    fn of(call: &'a Call, operation: Operation, dry_run: bool) -> Self {
        Self {
            call,
            operation,
            subresource: "",
            name: call.name().to_owned(),
            object: Value::Null,
            old: None,
            dry_run,
            sent_for: None,
            options: Value::Null,
        }
    }
}
