//! The end of a definition: first its objects go, by the rules of any deletion, then it.

use std::sync::Arc;

use carob_api::strategy::custom_resource_definition::FINALIZER;
use carob_store::{Entry, Error, Expect, KeyRange, Txn, Write};
use http::HeaderMap;
use serde_json::Value;

use crate::Server;
use crate::call::Call;
use crate::handlers::delete;
use crate::negotiate::Accept;
use crate::objects::{self, text};
use crate::options::DeleteOptions;

/// Deletes the objects of a definition, and when there are none, lets the definition go. Says whether to come again.
pub(super) async fn clean_up(server: &Arc<Server>, entry: &Entry, definition: &Value) -> Result<bool, Error> {
    let mut finalizers = objects::finalizers(definition);
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(false);
    }
    let (group, plural) = (text(definition, "/spec/group"), text(definition, "/spec/names/plural"));
    let prefix = format!("/{group}/{plural}/");
    let page = server.store.range(&KeyRange::prefix(prefix.as_str()), None, None).await?;
    let kind = server.registry().iter().find(|kind| kind.group == group && kind.plural == plural).cloned();
    if let Some(kind) = kind.filter(|_| !page.entries.is_empty()) {
        for object in &page.entries {
            let (namespace, name) = objects::split_key(&kind, &object.key);
            let mut call = Call::new(Arc::clone(server), &kind, super::identity(), HeaderMap::new(), Accept::JSON);
            call.namespace = namespace.map(str::to_owned);
            call.name = Some(name.to_owned());
            if let Err(status) = delete::delete_object(&call, name, &DeleteOptions::default()).await
                && status.code() != 404
            {
                tracing::warn!(%status, key = &*object.key, "an object of a definition that goes away could not be deleted");
            }
        }
        return Ok(true);
    }
    finalizers.retain(|finalizer| finalizer != FINALIZER);
    let key = entry.key.to_string();
    let write = if finalizers.is_empty() {
        Write::Delete(key.clone())
    } else {
        let mut new = definition.clone();
        objects::set_metadata(&mut new, "finalizers", finalizers);
        let message = "removed all instances";
        super::set_condition(&mut new, "Terminating", false, "InstanceDeletionCompleted", message);
        Write::Put(key.clone(), objects::encode(&new))
    };
    server.store.txn(Txn { expect: vec![(key, Expect::At(entry.revision))], writes: vec![write] }).await?;
    Ok(false)
}
