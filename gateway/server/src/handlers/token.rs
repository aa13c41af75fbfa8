//! `serviceaccounts/token`: a token for a ServiceAccount, bound to it and perhaps to a Pod.

use axum::response::Response;
use bytes::Bytes;
use carob_api::field::{ErrorList, Path};
use carob_api::kind::Kind;
use carob_api::status::{GroupResource, Status};
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{create, get};
use crate::admission;
use crate::authn::token::{Bound, Reference};
use crate::call::Call;
use crate::objects::{self, store_failure, text};
use crate::options::{WriteOptions, WriteVerb};
use crate::response;

const DEFAULT_SECONDS: i64 = 3600;
const SHORTEST_SECONDS: i64 = 600;
const LONGEST_SECONDS: i64 = 1 << 32;

/// POST
pub(crate) async fn issue(call: &Call, request_kind: &'static Kind, body: &Bytes) -> Result<Response, Status> {
    let options = WriteOptions::read(call, WriteVerb::Create)?;
    let entry = get::find(call).await?;
    let account = objects::decode(&entry.value)?;
    let mut decoding =
        Call::new(call.server.clone(), request_kind, call.identity.clone(), call.headers.clone(), call.accept);
    decoding.namespace.clone_from(&call.namespace);
    let request = create::decode_body(&decoding, body, &options)?;
    let mut review = admission::Request::create_part(call, "token", request, options.dry_run);
    admission::review(&mut review).await?;
    let request = review.object;

    let seconds = request.pointer("/spec/expirationSeconds").and_then(Value::as_i64).unwrap_or(DEFAULT_SECONDS);
    check(seconds)?;
    let mut audiences: Vec<String> = request
        .pointer("/spec/audiences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(ToOwned::to_owned)
        .collect();
    if audiences.is_empty() {
        audiences.push(call.server.authn.tokens.issuer().to_owned());
    }
    let reference = request.pointer("/spec/boundObjectRef").filter(|reference| !reference.is_null());
    let mut bound = Bound {
        namespace: call.namespace.clone().unwrap_or_default(),
        serviceaccount: Reference { name: call.name().to_owned(), uid: text(&account, "/metadata/uid").to_owned() },
        ..Bound::default()
    };
    if let Some(reference) = reference {
        bind(call, reference, &mut bound).await?;
    }
    let now = Timestamp::now();
    let token = call.server.authn.tokens.sign(bound, audiences.clone(), now.as_second(), seconds)?;
    let expires = now.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(now);
    let answer = json!({
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {
            "name": call.name(),
            "namespace": call.namespace,
            "uid": text(&account, "/metadata/uid"),
            "creationTimestamp": objects::timestamp(now),
        },
        "spec": { "audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": reference },
        "status": { "token": token, "expirationTimestamp": objects::timestamp(expires) },
    });
    Ok(response::json(StatusCode::CREATED, &answer))
}

fn check(seconds: i64) -> Result<(), Status> {
    let path = Path::new("spec").child("expirationSeconds");
    let mut errors = ErrorList::new();
    if seconds < SHORTEST_SECONDS {
        errors.push(path.invalid(seconds, "may not specify a duration less than 10 minutes"));
    }
    if seconds > LONGEST_SECONDS {
        errors.push(path.invalid(seconds, "may not specify a duration larger than 2^32 seconds"));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(("authentication.k8s.io", "TokenRequest"), "", errors))
}

/// Binds the token to an object, which must exist.
async fn bind(call: &Call, reference: &Value, bound: &mut Bound) -> Result<(), Status> {
    let (api_version, kind) = (text(reference, "/apiVersion"), text(reference, "/kind"));
    let (plural, namespaced) = match (api_version, kind) {
        ("v1", "Pod") => ("pods", true),
        ("v1", "Secret") => ("secrets", true),
        ("v1", "Node") => ("nodes", false),
        _ => {
            let slash = if api_version.contains('/') { "" } else { "/" };
            return Err(Status::bad_request(format!(
                "cannot bind token to object of type {slash}{api_version}, Kind={kind}"
            )));
        }
    };
    let name = text(reference, "/name");
    let resource = GroupResource::new("", plural);
    let key = objects::core_key(plural, call.namespace.as_deref().filter(|_| namespaced), name);
    let entry = call.server.store.get(&key).await.map_err(|error| store_failure(&error))?;
    let entry = entry.ok_or_else(|| Status::not_found(&resource, name))?;
    let object = objects::decode(&entry.value)?;
    let uid = text(&object, "/metadata/uid");
    let wanted = text(reference, "/uid");
    if !wanted.is_empty() && wanted != uid {
        return Err(Status::conflict(
            &resource,
            name,
            format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might \
                 have been deleted and then recreated"
            ),
        ));
    }
    let held = Some(Reference { name: name.to_owned(), uid: uid.to_owned() });
    match plural {
        "pods" => {
            let account = text(&object, "/spec/serviceAccountName");
            if account != call.name() {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    call.name()
                )));
            }
            bound.pod = held;
            let node = text(&object, "/spec/nodeName");
            if !node.is_empty() {
                let key = objects::core_key("nodes", None, node);
                let uid = match call.server.store.get(&key).await.map_err(|error| store_failure(&error))? {
                    Some(entry) => text(&objects::decode(&entry.value)?, "/metadata/uid").to_owned(),
                    None => String::new(),
                };
                bound.node = Some(Reference { name: node.to_owned(), uid });
            }
        }
        "secrets" => bound.secret = held,
        _ => bound.node = held,
    }
    Ok(())
}
