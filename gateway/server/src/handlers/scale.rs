//! The `scale` subresource: replicas of any kind that has them at `spec.replicas`.

use axum::response::Response;
use bytes::Bytes;
use carob_api::apply::{Manager, Operation, Scaled, apply_scale};
use carob_api::field::Path;
use carob_api::kind::{Kind, Part, ScalePaths};
use carob_api::selector::LabelSelector;
use carob_api::status::{GroupResource, Status};
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::create::{self, Tracking};
use super::get;
use super::patch::{self, PatchType, patched};
use super::update::{self, Change, Shown};
use crate::call::Call;
use crate::objects::{self, text};
use crate::options::{WriteOptions, WriteVerb};
use crate::response;

/// GET
pub(crate) async fn get(call: &Call, scale: &'static Kind) -> Result<Response, Status> {
    let entry = get::find(call).await?;
    answer(call, scale, &entry.value)
}

/// PUT
pub(crate) async fn update(call: &Call, scale: &'static Kind, body: &Bytes) -> Result<Response, Status> {
    let options = WriteOptions::read(call, WriteVerb::Update)?;
    let wanted = create::decode_body(&about(call, scale), body, &options)?;
    update::check_name(call, &wanted)?;
    create::check_namespace(call, &wanted)?;
    change(call, scale, &options, |_| Ok(wanted.clone())).await
}

/// PATCH
pub(crate) async fn patch(call: &Call, scale: &'static Kind, body: &Bytes) -> Result<Response, Status> {
    let form = PatchType::of(call)?;
    if form == PatchType::Apply {
        return apply_patch(call, scale, body).await;
    }
    let options = WriteOptions::read(call, WriteVerb::Patch)?;
    change(call, scale, &options, |old| {
        let wanted = patched(scale, old, form, body, options.validation, |warning| call.warn(warning))?;
        update::check_name(call, &wanted)?;
        Ok(wanted)
    })
    .await
}

/// Server-side apply of the number: the object's managers know it by its path there.
async fn apply_patch(call: &Call, scale: &'static Kind, body: &Bytes) -> Result<Response, Status> {
    let options = WriteOptions::read(call, WriteVerb::Apply)?;
    let mut config = patch::read_yaml(body)?;
    patch::check_config(&about(call, scale), &mut config)?;
    let time = objects::timestamp(Timestamp::now());
    let manager = Manager { name: &options.manager, operation: Operation::Apply, subresource: "scale", time: &time };
    let of = |object: &Value| scale_of(object, call.kind.scale_paths());
    let take = |old: &Value, wanted: &Value, new: &mut Value| set_wanted(call, scale, old, wanted, new);
    let shown = Some(Shown { of: &of, take: &take });
    let how = Change { subresource: "scale", tracking: Tracking::Done, shown, ..Change::new(Part::Main, &options) };
    let changed = update::change(call, &how, |old| {
        let paths = call.kind.scale_paths();
        let before = scale_of(old, paths);
        let scaled = Scaled { kind: &call.kind, object: old, replicas: paths.spec_replicas, scale: &before };
        let (wanted, mut new) = apply_scale(scale, scaled, &config, &manager, options.force)?;
        set_wanted(call, scale, old, &wanted, &mut new)?;
        Ok(new)
    })
    .await?;
    match changed {
        Some(bytes) => answer(call, scale, &bytes),
        None => Err(call.not_found()),
    }
}

async fn change(
    call: &Call,
    scale: &'static Kind,
    options: &WriteOptions,
    mut make: impl FnMut(&Value) -> Result<Value, Status>,
) -> Result<Response, Status> {
    let of = |object: &Value| scale_of(object, call.kind.scale_paths());
    let take = |old: &Value, wanted: &Value, new: &mut Value| set_wanted(call, scale, old, wanted, new);
    let shown = Some(Shown { of: &of, take: &take });
    let how = Change { subresource: "scale", shown, ..Change::new(Part::Main, options) };
    let changed = update::change(call, &how, |old| {
        let wanted = make(&of(old))?;
        let mut new = old.clone();
        take(old, &wanted, &mut new)?;
        Ok(new)
    })
    .await?;
    match changed {
        Some(bytes) => answer(call, scale, &bytes),
        None => Err(call.not_found()),
    }
}

/// Checks a Scale, and sets what it wants of the object.
fn set_wanted(call: &Call, scale: &'static Kind, old: &Value, wanted: &Value, new: &mut Value) -> Result<(), Status> {
    let replicas = wanted.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    // Custom resources are judged by their own rules, in which the path has another name.
    if replicas < 0 && call.kind.custom.is_none() {
        let path = Path::new("spec").child("replicas");
        let error = path.invalid(replicas, "must be greater than or equal to 0");
        return Err(Status::invalid((scale.group, scale.kind), call.name(), vec![error]));
    }
    let (uid, old_uid) = (text(wanted, "/metadata/uid"), text(old, "/metadata/uid"));
    if !uid.is_empty() && uid != old_uid {
        let resource = GroupResource::new(call.kind.group, format!("{}/scale", call.kind.plural));
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}");
        return Err(Status::conflict(&resource, call.name(), why));
    }
    let version = text(wanted, "/metadata/resourceVersion");
    if !version.is_empty() {
        objects::set_metadata(new, "resourceVersion", version);
    }
    set(new, call.kind.scale_paths().spec_replicas, replicas.into());
    Ok(())
}

fn answer(call: &Call, scale: &'static Kind, object: &Bytes) -> Result<Response, Status> {
    let scaled = scale_of(&call.shown(object)?, call.kind.scale_paths());
    about(call, scale).answer(StatusCode::OK, response::to_json(&scaled))
}

/// The same call, about the Scale.
fn about(call: &Call, scale: &'static Kind) -> Call {
    let mut other = Call::new(call.server.clone(), scale, call.identity.clone(), call.headers.clone(), call.accept);
    other.namespace.clone_from(&call.namespace);
    other.name.clone_from(&call.name);
    other.query = call.query.clone();
    other
}

/// Sets what a JSON pointer leads to; objects on the way are made.
fn set(object: &mut Value, pointer: &str, value: Value) {
    let mut at = object;
    for step in pointer.split('/').skip(1) {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[step.replace("~1", "/").replace("~0", "~")];
    }
    *at = value;
}

/// The Scale of an object.
fn scale_of(object: &Value, paths: ScalePaths<'_>) -> Value {
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.pointer(&format!("/metadata/{field}")) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let wanted = number(paths.spec_replicas);
    let spec = if wanted == 0 { json!({}) } else { json!({ "replicas": wanted }) };
    let mut status = json!({ "replicas": number(paths.status_replicas) });
    match paths.selector.and_then(|path| object.pointer(path)) {
        // The oldest kind has labels in the place of a selector.
        Some(labels @ Value::Object(_)) if object["kind"] == "ReplicationController" => {
            if let Ok(selector) = LabelSelector::from_object(&json!({ "matchLabels": labels })) {
                status["selector"] = selector.to_string().into();
            }
        }
        Some(Value::String(text)) if !text.is_empty() => status["selector"] = text.as_str().into(),
        Some(selector @ Value::Object(fields)) => {
            // ReplicationControllers select by a plain map of labels.
            let plain = fields.values().all(Value::is_string);
            let labels = json!({ "matchLabels": selector });
            if let Ok(selector) = LabelSelector::from_object(if plain { &labels } else { selector }) {
                status["selector"] = selector.to_string().into();
            }
        }
        _ => {}
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": spec,
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_replicas_and_the_selector_as_text() {
        let paths = ScalePaths {
            spec_replicas: "/spec/replicas",
            status_replicas: "/status/replicas",
            selector: Some("/spec/selector"),
        };
        let scale = scale_of(
            &json!({"metadata": {"name": "x", "labels": {"a": "b"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "a"}}}, "status": {"replicas": 1}}),
            paths,
        );
        assert_eq!(
            scale,
            json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "x"},
                "spec": {"replicas": 2}, "status": {"replicas": 1, "selector": "app=a"}})
        );
    }
}
