//! What a volume that comes from the API holds: files by path, with their bytes and modes. No I/O here.

use super::SourceError;
use crate::container::env::{Facts, field_value, find_container};
use crate::container::resources;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Secret};
use std::collections::BTreeMap;
use std::path::{Component, Path};

/// Files by their path in the volume.
pub(crate) type Payload = BTreeMap<String, File>;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub bytes: Vec<u8>,
    pub mode: u32,
    /// Owner, where it isn't root.
    pub uid: Option<u32>,
}

/// Mode of files where the spec gives none.
pub(crate) const DEFAULT_MODE: i32 = 0o644;

fn file(bytes: Vec<u8>, mode: i32) -> File {
    File { bytes, mode: mode.cast_unsigned() & 0o7777, uid: None }
}

/// A ConfigMap's `data` and `binaryData`; `items` chooses and renames.
pub(crate) fn config_map(
    map: Option<&ConfigMap>,
    items: &[KeyToPath],
    mode: i32,
    optional: bool,
) -> Result<Payload, SourceError> {
    let mut all: BTreeMap<&str, &[u8]> = BTreeMap::new();
    if let Some(map) = map {
        all.extend(map.data.iter().flatten().map(|(key, text)| (key.as_str(), text.as_bytes())));
        all.extend(map.binary_data.iter().flatten().map(|(key, bytes)| (key.as_str(), bytes.0.as_slice())));
    }
    choose(&all, items, mode, optional, || "configmap references non-existent config key".to_owned())
}

/// A Secret's `data`; `items` chooses and renames.
pub(crate) fn secret(
    secret: Option<&Secret>,
    items: &[KeyToPath],
    mode: i32,
    optional: bool,
) -> Result<Payload, SourceError> {
    let data = secret.and_then(|secret| secret.data.as_ref());
    let entry = |(key, bytes): (&'_ String, &'_ ByteString)| (key.clone(), bytes.0.clone());
    let owned: Vec<(String, Vec<u8>)> = data.into_iter().flatten().map(entry).collect();
    let all = owned.iter().map(|(key, bytes)| (key.as_str(), bytes.as_slice())).collect();
    choose(&all, items, mode, optional, || "references non-existent secret key".to_owned())
}

fn choose(
    all: &BTreeMap<&str, &[u8]>,
    items: &[KeyToPath],
    mode: i32,
    optional: bool,
    missing: impl Fn() -> String,
) -> Result<Payload, SourceError> {
    if items.is_empty() {
        return Ok(all.iter().map(|(key, bytes)| ((*key).to_owned(), file(bytes.to_vec(), mode))).collect());
    }
    let mut payload = Payload::new();
    for item in items {
        match all.get(item.key.as_str()) {
            Some(bytes) => {
                payload.insert(item.path.clone(), file(bytes.to_vec(), item.mode.unwrap_or(mode)));
            }
            None if optional => {}
            None => return Err(SourceError::Missing(format!("{}: {}", missing(), item.key))),
        }
    }
    Ok(payload)
}

/// Fields of the pod and of its containers' resources.
pub(crate) fn downward_api(
    items: &[DownwardAPIVolumeFile],
    facts: &Facts<'_>,
    mode: i32,
) -> Result<Payload, SourceError> {
    let mut payload = Payload::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            field_value(field, facts).map_err(|error| SourceError::Missing(error.0))?
        } else if let Some(field) = &item.resource_field_ref {
            let name = field.container_name.as_deref().unwrap_or_default();
            let container = find_container(facts.pod, name)
                .ok_or_else(|| SourceError::Missing(format!("container {name} not found")))?;
            resources::field(container, &field.resource, field.divisor.as_ref(), facts.unless_limited())
                .ok_or_else(|| SourceError::Missing(format!("unsupported container resource : {}", field.resource)))?
        } else {
            continue;
        };
        payload.insert(item.path.clone(), file(text.into_bytes(), item.mode.unwrap_or(mode)));
    }
    Ok(payload)
}

/// A service account token: readable by its pod's group or user alone where either is set.
pub(crate) fn token(path: &str, token: String, mode: i32, fs_user: Option<u32>, fs_group: Option<i64>) -> Payload {
    let private = fs_user.is_some() || fs_group.is_some();
    let mut file = file(token.into_bytes(), if private { 0o600 } else { mode });
    file.uid = fs_user;
    Payload::from([(path.to_owned(), file)])
}

/// A path that stays in the volume and doesn't touch the writer's own names (`..data`).
pub(crate) fn is_safe(path: &str) -> bool {
    let parts = || Path::new(path).components();
    parts().next().is_some()
        && parts().all(|part| matches!(part, Component::Normal(_)))
        && !parts().next().is_some_and(|first| first.as_os_str().to_string_lossy().starts_with(".."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map() -> ConfigMap {
        serde_json::from_value(json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="}})).unwrap()
    }

    fn item(key: &str, path: &str, mode: Option<i32>) -> KeyToPath {
        KeyToPath { key: key.into(), path: path.into(), mode }
    }

    #[test]
    fn all_keys_or_the_chosen_ones_with_their_modes() {
        let all = config_map(Some(&map()), &[], DEFAULT_MODE, false).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(all["c"].bytes, [0, 1]);
        let chosen =
            config_map(Some(&map()), &[item("a", "deep/x", Some(0o400)), item("b", "y", None)], 0o600, false).unwrap();
        assert_eq!((chosen["deep/x"].mode, chosen["y"].mode), (0o400, 0o600));
    }

    #[test]
    fn a_key_that_is_not_there_is_an_error_unless_optional() {
        let error = config_map(Some(&map()), &[item("z", "z", None)], DEFAULT_MODE, false).unwrap_err();
        assert_eq!(error.to_string(), "configmap references non-existent config key: z");
        assert!(config_map(Some(&map()), &[item("z", "z", None)], DEFAULT_MODE, true).unwrap().is_empty());
        assert!(secret(None, &[], DEFAULT_MODE, true).unwrap().is_empty());
    }

    #[test]
    fn tokens_are_private_where_a_user_or_group_can_own_them() {
        assert_eq!(token("token", "t".into(), 0o644, None, None)["token"].mode, 0o644);
        assert_eq!(token("token", "t".into(), 0o644, None, Some(5))["token"].mode, 0o600);
        assert_eq!(token("token", "t".into(), 0o644, Some(7), None)["token"].uid, Some(7));
    }

    #[test]
    fn paths_that_leave_the_volume_are_unsafe() {
        for (path, safe) in [
            ("a", true),
            ("a/b", true),
            ("..data", false),
            ("../x", false),
            ("/etc", false),
            ("a/../b", false),
            ("", false),
        ] {
            assert_eq!(is_safe(path), safe, "{path}");
        }
    }
}
