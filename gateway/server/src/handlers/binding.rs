//! `pods/binding`: a scheduler puts a Pod on a node.

use axum::response::Response;
use bytes::Bytes;
use carob_api::field::{ErrorList, Path};
use carob_api::kind::Kind;
use carob_api::status::{GroupResource, Status};
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::create;
use super::update;
use crate::admission;
use crate::call::Call;
use crate::objects::{self, text};
use crate::options::{WriteOptions, WriteVerb};
use crate::response;

/// POST
pub(crate) async fn bind(call: &Call, binding_kind: &'static Kind, body: &Bytes) -> Result<Response, Status> {
    let options = WriteOptions::read(call, WriteVerb::Create)?;
    let mut decoding =
        Call::new(call.server.clone(), binding_kind, call.identity.clone(), call.headers.clone(), call.accept);
    decoding.namespace.clone_from(&call.namespace);
    let binding = create::decode_body(&decoding, body, &options)?;
    create::check_namespace(call, &binding)?;
    let name = text(&binding, "/metadata/name");
    if !name.is_empty() && name != call.name() {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    bind_to(call, binding, &options).await
}

/// POST to `bindings`, the older way: the pod is named by the binding.
pub(crate) async fn create(call: &Call, body: &Bytes) -> Result<Response, Status> {
    let options = WriteOptions::read(call, WriteVerb::Create)?;
    let binding = create::decode_body(call, body, &options)?;
    create::check_namespace(call, &binding)?;
    let pods = call.server.kind("", "v1", "pods").ok_or_else(|| Status::internal("pods are not served"))?;
    let mut about = Call::new(call.server.clone(), pods, call.identity.clone(), call.headers.clone(), call.accept);
    about.namespace.clone_from(&call.namespace);
    about.name = Some(text(&binding, "/metadata/name").to_owned());
    bind_to(&about, binding, &options).await
}

async fn bind_to(call: &Call, binding: Value, options: &WriteOptions) -> Result<Response, Status> {
    let mut request = admission::Request::create_part(call, "binding", binding, options.dry_run);
    admission::review(&mut request).await?;
    let binding = request.object;
    check(&binding)?;
    update::write_directly(call, options.dry_run, |pod| bound(call, pod, &binding)).await?;
    Ok(success())
}

/// 201 with a Status that says so.
pub(crate) fn success() -> Response {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
    response::json(StatusCode::CREATED, &status)
}

/// Kubernetes answers these mistakes with 500.
fn check(binding: &Value) -> Result<(), Status> {
    let mut errors = ErrorList::new();
    let target = Path::new("target");
    let kind = text(binding, "/target/kind");
    if !matches!(kind, "" | "Node") {
        errors.push(target.child("kind").not_supported(kind, &["Node", "<empty>"]));
    }
    if text(binding, "/target/name").is_empty() {
        errors.push(target.child("name").required(""));
    }
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    match texts.as_slice() {
        [] => Ok(()),
        [one] => Err(Status::generic(500, "", one.clone())),
        several => Err(Status::generic(500, "", format!("[{}]", several.join(", ")))),
    }
}

fn bound(call: &Call, pod: &Value, binding: &Value) -> Result<Value, Status> {
    let name = call.name();
    let refuse = |why: String| Status::conflict(&GroupResource::new("", "pods/binding"), name, why);
    for (field, shown) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
        let pointer = format!("/metadata/{field}");
        let (wanted, found) = (text(binding, &pointer), text(pod, &pointer));
        if !wanted.is_empty() && wanted != found {
            return Err(refuse(update::precondition_failed(call, shown, wanted, found)));
        }
    }
    if pod.pointer("/metadata/deletionTimestamp").is_some() {
        return Err(refuse(format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    let node = text(pod, "/spec/nodeName");
    if !node.is_empty() {
        return Err(refuse(format!("pod {name} is already assigned to node {node:?}")));
    }
    if pod.pointer("/spec/schedulingGates").and_then(Value::as_array).is_some_and(|gates| !gates.is_empty()) {
        return Err(refuse(format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = text(binding, "/target/name").into();
    for field in ["annotations", "labels"] {
        let Some(added) = binding.pointer(&format!("/metadata/{field}")).and_then(Value::as_object) else { continue };
        let metadata = objects::metadata_mut(&mut pod);
        let present = metadata.entry(field).or_insert_with(|| json!({}));
        for (key, value) in added {
            present[key] = value.clone();
        }
    }
    set_scheduled(&mut pod);
    Ok(pod)
}

fn set_scheduled(pod: &mut Value) {
    let now = objects::timestamp(Timestamp::now());
    let Some(fields) = pod.as_object_mut() else { return };
    let status = fields.entry("status").or_insert_with(|| json!({}));
    let condition =
        json!({ "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now });
    let Some(status) = status.as_object_mut() else { return };
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else { return };
    conditions.retain(|condition| condition["type"] != "PodScheduled");
    conditions.push(condition);
}
