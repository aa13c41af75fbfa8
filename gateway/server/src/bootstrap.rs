//! The objects that every cluster has from its first start.

use std::sync::Arc;

use carob_api::decode::FieldValidation;
use carob_api::status::Status;
use http::HeaderMap;
use serde_json::json;

use crate::Server;
use crate::authn::{Identity, MASTERS};
use crate::call::Call;
use crate::handlers::create::{self, Tracking};
use crate::negotiate::Accept;
use crate::options::WriteOptions;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what isn't there yet.
pub(crate) async fn first_objects(server: &Arc<Server>) -> Result<(), Status> {
    let Some(kind) = server.kind("", "v1", "namespaces") else {
        return Err(Status::internal("there is no kind Namespace"));
    };
    let identity = Identity::authenticated("system:apiserver", [MASTERS.to_owned()]);
    for name in NAMESPACES {
        let call = Call::new(Arc::clone(server), kind, identity.clone(), HeaderMap::new(), Accept::JSON);
        let namespace = json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": { "name": name } });
        let options = WriteOptions {
            dry_run: false,
            manager: "carob".to_owned(),
            validation: FieldValidation::Strict,
            force: false,
        };
        match create::create_object(&call, namespace, &options, Tracking::Update).await {
            Ok(_) => {}
            Err(status) if status.reason() == "AlreadyExists" => {}
            Err(status) => return Err(status),
        }
    }
    Ok(())
}
