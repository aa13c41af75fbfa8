//! Custom resources whose versions a webhook converts: what is stored in one version is brought into the one that a
//! request is about, many objects at once, and back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use carob_api::custom::Custom;
use carob_api::kind::KindRef;
use carob_api::status::Status;
use carob_store::{Entry, Event};
use serde_json::{Value, json};

use crate::call::Call;
use crate::callout::Callout;
use crate::{objects, random, response};

/// How long a webhook is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many clients are kept.
const KEPT: usize = 256;

/// Clients of conversion webhooks, by their configuration.
#[derive(Default)]
pub(crate) struct Converters {
    clients: Mutex<HashMap<String, Arc<Callout>>>,
}

impl Converters {
    fn get(&self, conversion: &Value) -> Arc<Callout> {
        let config = &conversion["webhook"]["clientConfig"];
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= KEPT {
            clients.clear();
        }
        Arc::clone(clients.entry(config.to_string()).or_insert_with(|| Arc::new(Callout::read(config))))
    }
}

/// The webhook of the call's kind, if it has one.
fn webhook(call: &Call) -> Option<(&Custom, &Value)> {
    let custom = call.kind.custom.as_deref()?;
    Some((custom, custom.conversion.as_deref()?))
}

/// Whether a webhook may have to be asked for the form of the call's kind.
pub(crate) fn may_convert(call: &Call) -> bool {
    webhook(call).is_some()
}

/// Stored entries as the call's version has them.
pub(crate) async fn entries(call: &Call, mut entries: Vec<Entry>) -> Result<Vec<Entry>, Status> {
    let Some((_, conversion)) = webhook(call) else { return Ok(entries) };
    let wanted = call.kind.api_version();
    let mut others = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let object = objects::decode(&entry.value)?;
        if object["apiVersion"] != wanted {
            others.push((index, object));
        }
    }
    if others.is_empty() {
        return Ok(entries);
    }
    let (places, objects): (Vec<usize>, Vec<Value>) = others.into_iter().unzip();
    let converted = convert(call, conversion, &wanted, objects).await?;
    for (place, object) in places.into_iter().zip(converted) {
        entries[place].value = response::to_json(&object);
    }
    Ok(entries)
}

/// A stored entry as the call's version has it.
pub(crate) async fn entry(call: &Call, entry: Entry) -> Result<Entry, Status> {
    if webhook(call).is_none() {
        return Ok(entry);
    }
    let entry = entries(call, vec![entry]).await?.pop();
    entry.ok_or_else(|| Status::internal("a conversion lost an object"))
}

/// What happened, as the call's version has it.
pub(crate) async fn events(call: &Call, happened: Arc<[Event]>) -> Result<Arc<[Event]>, Status> {
    if webhook(call).is_none() {
        return Ok(happened);
    }
    let mut converted = Vec::with_capacity(happened.len());
    for event in happened.iter() {
        converted.push(match event.clone() {
            Event::Put { entry, previous } => {
                let previous = match previous {
                    Some(previous) => Some(self::entry(call, previous).await?),
                    None => None,
                };
                Event::Put { entry: self::entry(call, entry).await?, previous }
            }
            Event::Delete { entry, previous } => {
                Event::Delete { entry: self::entry(call, entry).await?, previous: self::entry(call, previous).await? }
            }
        });
    }
    Ok(converted.into())
}

/// An object in the version in which it is stored.
pub(crate) async fn to_storage(call: &Call, object: Value) -> Result<Value, Status> {
    let Some((custom, conversion)) = webhook(call) else { return Ok(object) };
    let wanted = format!("{}/{}", call.kind.group, custom.storage_version);
    if object["apiVersion"] == wanted {
        return Ok(object);
    }
    let converted = convert(call, conversion, &wanted, vec![object]).await?.pop();
    converted.ok_or_else(|| Status::internal("a conversion lost an object"))
}

/// An object of the call's kind as another version of the same resource has it.
pub(crate) async fn as_version(call: &Call, mut object: Value, version: &KindRef) -> Result<Value, Status> {
    between(call, &mut object, &call.kind, version).await?;
    Ok(object)
}

/// The inverse of [`as_version`].
pub(crate) async fn from_version(call: &Call, mut object: Value, version: &KindRef) -> Result<Value, Status> {
    between(call, &mut object, version, &call.kind).await?;
    Ok(object)
}

async fn between(call: &Call, object: &mut Value, from: &KindRef, to: &KindRef) -> Result<(), Status> {
    if !object.is_object() {
        return Ok(());
    }
    if let Some((_, conversion)) = webhook(call) {
        let converted = convert(call, conversion, &to.api_version(), vec![object.take()]).await?.pop();
        *object = converted.ok_or_else(|| Status::internal("a conversion lost an object"))?;
    } else if to.custom.is_some() {
        object["apiVersion"] = to.api_version().into();
    } else {
        from.to_stored(object);
        to.from_stored(object);
    }
    Ok(())
}

async fn convert(call: &Call, conversion: &Value, wanted: &str, objects: Vec<Value>) -> Result<Vec<Value>, Status> {
    let from = objects.first().map_or("", |object| objects::text(object, "/apiVersion")).to_owned();
    let failed = |why: String| {
        let text = format!("conversion webhook for {from}, Kind={} failed: {why}", call.kind.kind);
        Status::generic(500, "", text)
    };
    let uid = random::uuid();
    let review = json!({
        "kind": "ConversionReview",
        "apiVersion": "apiextensions.k8s.io/v1",
        "request": { "uid": uid, "desiredAPIVersion": wanted, "objects": objects },
    });
    let client = call.server.converters.get(conversion);
    let mut answer = client.ask(&call.server, &review, PATIENCE).await.map_err(&failed)?;
    let response = answer["response"].take();
    if response["uid"] != uid {
        return Err(failed(format!("expected response.uid={uid:?}, got {}", response["uid"])));
    }
    if response["result"]["status"] != "Success" {
        let told = objects::text(&response, "/result/message");
        return Err(failed(if told.is_empty() { "no message provided in result".to_owned() } else { told.to_owned() }));
    }
    let Some(converted) = response["convertedObjects"].as_array().filter(|list| list.len() == objects.len()) else {
        return Err(failed(format!("webhook returned a wrong number of objects, expected {}", objects.len())));
    };
    let pairs = objects.iter().zip(converted).enumerate();
    pairs
        .map(|(index, (before, after))| {
            checked(before, after, wanted)
                .map_err(|why| failed(format!("invalid converted object at index {index}: {why}")))
        })
        .collect()
}

/// A converted object is the same one: of its metadata only labels and annotations may differ.
fn checked(before: &Value, after: &Value, wanted: &str) -> Result<Value, String> {
    if after["apiVersion"] != wanted {
        return Err(format!("invalid apiVersion: expected {wanted}, got {}", after["apiVersion"]));
    }
    if after["kind"] != before["kind"] {
        return Err(format!("invalid kind: expected {}, got {}", before["kind"], after["kind"]));
    }
    for field in ["name", "namespace", "uid"] {
        if after["metadata"][field] != before["metadata"][field] {
            return Err(format!("invalid metadata.{field}: must be unchanged"));
        }
    }
    let mut object = after.clone();
    let mut metadata = before["metadata"].clone();
    for field in ["labels", "annotations"] {
        match after["metadata"].get(field) {
            Some(value) => metadata[field] = value.clone(),
            None => drop(metadata.as_object_mut().and_then(|metadata| metadata.shift_remove(field))),
        }
    }
    object["metadata"] = metadata;
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_metadata_only_labels_and_annotations_may_change() {
        let before =
            json!({"apiVersion": "a/v1", "kind": "X", "metadata": {"name": "x", "uid": "u", "labels": {"a": "1"}}});
        let after = json!({"apiVersion": "a/v2", "kind": "X", "metadata": {"name": "x", "uid": "u", "labels": {"a": "2"},
            "finalizers": ["f"]}, "spec": 1});
        let object = checked(&before, &after, "a/v2").expect("fine");
        assert_eq!(object["metadata"], json!({"name": "x", "uid": "u", "labels": {"a": "2"}}));
        assert!(
            checked(
                &before,
                &json!({"apiVersion": "a/v2", "kind": "X", "metadata": {"name": "y", "uid": "u"}}),
                "a/v2"
            )
            .is_err()
        );
    }
}
