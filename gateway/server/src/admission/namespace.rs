//! A new object's namespace must exist and stay: objects made in a namespace that goes away would never be found again.

use carob_api::status::{Cause, Details, Status};
use carob_store::{Expect, Revision};
use serde_json::Value;

use crate::call::Call;
use crate::objects::{self, store_failure, text};

/// Where a new object goes: a namespace as it was when it was looked at, or nowhere in particular.
pub(crate) struct Place {
    namespace: Option<(String, Revision)>,
}

impl Place {
    /// 404 if the namespace isn't there, 403 if it is going away.
    pub async fn of_new_object(call: &Call, object: &Value) -> Result<Self, Status> {
        let Some(namespace) = call.namespace.as_deref() else { return Ok(Self { namespace: None }) };
        let key = objects::core_key("namespaces", None, namespace);
        let entry = call.server.store.get(&key).await.map_err(|error| store_failure(&error))?;
        let Some(entry) = entry else {
            let resource = carob_api::status::GroupResource::new("", "namespaces");
            return Err(Status::not_found(&resource, namespace));
        };
        let found = call.server.decoded.get(&entry)?;
        if found.pointer("/metadata/deletionTimestamp").is_some() {
            return Err(terminating(call, namespace, text(object, "/metadata/name")));
        }
        Ok(Self { namespace: Some((key, entry.revision)) })
    }

    /// What must still hold of the namespace when the object is stored.
    pub fn expectation(&self) -> Option<(String, Expect)> {
        self.namespace.as_ref().map(|(key, revision)| (key.clone(), Expect::At(*revision)))
    }
}

fn terminating(call: &Call, namespace: &str, name: &str) -> Status {
    let resource = call.resource();
    let text = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let cause = Cause {
        reason: "NamespaceTerminating".to_owned(),
        message: format!("namespace {namespace} is being terminated"),
        field: "metadata.namespace".to_owned(),
    };
    Status::forbidden(&resource, name, text).with_details(Details {
        name: name.to_owned(),
        group: resource.group,
        kind: resource.resource,
        causes: vec![cause],
        ..Details::default()
    })
}
