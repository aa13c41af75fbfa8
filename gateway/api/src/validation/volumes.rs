//! Volumes: one source each, of many kinds. What a source requires is a table; what is peculiar follows.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::validation::containers::{PULL_POLICIES, label};
use crate::validation::env::{FILE_FIELDS, field_ref, resource_ref};
use crate::validation::json::{dig, get, int, items, str_at, text_or_null, texts};
use crate::validation::names;
use crate::validation::paths::{descending, descending_unreserved, no_backsteps};
use crate::validation::resources::quantity;

/// The kinds of sources in the order in which they are looked at, and the texts or lists that each requires.
const SOURCES: [(&str, &[&str]); 30] = [
    ("emptyDir", &[]),
    ("hostPath", &["path"]),
    ("gitRepo", &["repository"]),
    ("gcePersistentDisk", &["pdName"]),
    ("awsElasticBlockStore", &["volumeID"]),
    ("secret", &["secretName"]),
    ("nfs", &["server", "path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("glusterfs", &["endpoints", "path"]),
    ("flocker", &[]),
    ("persistentVolumeClaim", &["claimName"]),
    ("rbd", &["monitors", "image"]),
    ("cinder", &["volumeID"]),
    ("cephfs", &["monitors"]),
    ("quobyte", &["registry", "volume"]),
    ("downwardAPI", &[]),
    ("fc", &[]),
    ("flexVolume", &["driver"]),
    ("configMap", &["name"]),
    ("azureFile", &["secretName", "shareName"]),
    ("vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("storageos", &[]),
    ("projected", &[]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("csi", &["driver"]),
    ("ephemeral", &["volumeClaimTemplate"]),
    ("image", &["reference"]),
];

/// Types of host paths.
const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

const MODE_RULE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// What is wrong with the volumes of a pod, and which of them are right: only these can be mounted.
pub fn volumes<'a>(spec: &'a Value, path: &Path) -> (Vec<&'a Value>, ErrorList) {
    let mut good: Vec<&Value> = Vec::new();
    let mut names = BTreeSet::new();
    let mut errors = ErrorList::new();
    for (index, volume) in items(spec, "volumes").iter().enumerate() {
        let path = path.index(index);
        let name = str_at(volume, "name");
        let mut own = source(volume, &path);
        if name.is_empty() {
            own.push(path.child("name").required(""));
        } else {
            own.extend(label(name, &path.child("name")));
        }
        if names.contains(name) {
            own.push(path.child("name").duplicate(name));
        }
        if own.is_empty() {
            good.push(volume);
            names.insert(name);
        }
        errors.extend(own);
    }
    (good, errors)
}

fn source(volume: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut sources = 0;
    for (kind, required) in SOURCES {
        let Some(source) = get(volume, kind) else { continue };
        let path = path.child(kind);
        sources += 1;
        if sources > 1 {
            errors.push(path.forbidden("may not specify more than 1 volume type"));
            continue;
        }
        for field in required {
            let missing = match get(source, field) {
                None => true,
                Some(Value::String(text)) => text.is_empty(),
                Some(Value::Array(list)) => list.is_empty(),
                Some(_) => false,
            };
            if missing {
                errors.push(path.child(field).required(""));
            }
        }
        errors.extend(peculiar(kind, source, &path));
    }
    if sources == 0 {
        errors.push(path.required("must specify a volume type"));
    }
    errors
}

/// Sources that a volume of the cluster has, beyond those that pods have too.
const LOCAL: (&str, &[&str]) = ("local", &["path"]);
/// Sources that only pods have.
const OF_PODS: [&str; 9] = [
    "emptyDir",
    "gitRepo",
    "secret",
    "persistentVolumeClaim",
    "downwardAPI",
    "configMap",
    "projected",
    "ephemeral",
    "image",
];

/// Whether a field of a `PersistentVolume`'s spec is a source.
pub fn is_persistent(field: &str) -> bool {
    field == LOCAL.0 || SOURCES.iter().any(|(kind, _)| *kind == field && !OF_PODS.contains(kind))
}

/// What is wrong with the source of a `PersistentVolume`.
pub fn persistent(spec: &Value, path: &Path) -> ErrorList {
    let mut of_volume = Value::Object(serde_json::Map::new());
    for (field, value) in spec.as_object().into_iter().flatten().filter(|(field, _)| is_persistent(field)) {
        of_volume[field] = value.clone();
    }
    let mut errors = match get(spec, LOCAL.0) {
        None => source(&of_volume, path),
        Some(local) => {
            let path = path.child(LOCAL.0);
            let others = of_volume.as_object().map_or(0, serde_json::Map::len) > 1;
            if others {
                vec![path.forbidden("may not specify more than 1 volume type")]
            } else if str_at(local, "path").is_empty() {
                vec![path.child("path").required("")]
            } else {
                no_backsteps(str_at(local, "path"), &path.child("path"))
            }
        }
    };
    if let Some(csi) = get(spec, "csi").filter(|csi| str_at(csi, "volumeHandle").is_empty()) {
        debug_assert!(csi.is_object(), "decoded as one");
        errors.push(path.child("csi").child("volumeHandle").required(""));
    }
    errors
}

/// What is wrong with a source beyond what it misses.
fn peculiar(kind: &str, source: &Value, path: &Path) -> ErrorList {
    match kind {
        "emptyDir" => empty_dir(source, path),
        "hostPath" => host_path(source, path),
        "gitRepo" => text(source, "directory", path, descending),
        "gcePersistentDisk" | "awsElasticBlockStore" => number_in(source, "partition", 0, 255, path),
        "secret" | "configMap" => {
            let mut errors = mode(source, "defaultMode", path);
            errors.extend(key_paths(source, &path.child("items")));
            errors
        }
        "downwardAPI" => {
            let mut errors = mode(source, "defaultMode", path);
            errors.extend(downward_files(source, path));
            errors
        }
        "projected" => {
            let mut errors = mode(source, "defaultMode", path);
            errors.extend(projections(source, path));
            errors
        }
        "nfs" => {
            let place = str_at(source, "path");
            if place.is_empty() || place.starts_with('/') {
                ErrorList::new()
            } else {
                vec![path.child("path").invalid(place, "must be an absolute path")]
            }
        }
        "iscsi" => iscsi(source, path),
        "flocker" => one_of_two(source, "datasetName", "datasetUUID", path),
        "fc" => fibre_channel(source, path),
        "azureDisk" => {
            let mut errors = one_of(source, "cachingMode", &["None", "ReadOnly", "ReadWrite"], path);
            errors.extend(one_of(source, "kind", &["Dedicated", "Managed", "Shared"], path));
            errors
        }
        "csi" => csi(source, path),
        "image" => one_of(source, "pullPolicy", &PULL_POLICIES, path),
        "ephemeral" => claim_template(source, path),
        _ => ErrorList::new(),
    }
}

fn empty_dir(source: &Value, path: &Path) -> ErrorList {
    match get(source, "sizeLimit").and_then(quantity) {
        Some(limit) if limit.is_negative() => {
            vec![path.child("sizeLimit").forbidden("SizeLimit field must be a valid resource quantity")]
        }
        _ => ErrorList::new(),
    }
}

fn host_path(source: &Value, path: &Path) -> ErrorList {
    let place = str_at(source, "path");
    if place.is_empty() {
        return ErrorList::new();
    }
    let mut errors = no_backsteps(place, &path.child("path"));
    errors.extend(one_of(source, "type", &HOST_PATH_TYPES, path));
    errors
}

fn iscsi(source: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let iqn = str_at(source, "iqn");
    if !iqn.is_empty() && !["iqn", "eui", "naa"].iter().any(|prefix| iqn.starts_with(prefix)) {
        errors.push(path.child("iqn").invalid(iqn, "must be valid format starting with iqn, eui, or naa"));
    }
    errors.extend(number_in(source, "lun", 0, 255, path));
    let authenticated = ["chapAuthDiscovery", "chapAuthSession"]
        .iter()
        .any(|field| get(source, field).and_then(Value::as_bool) == Some(true));
    if authenticated && get(source, "secretRef").is_none() {
        errors.push(path.child("secretRef").required(""));
    }
    errors
}

fn fibre_channel(source: &Value, path: &Path) -> ErrorList {
    let (targets, wide) = (items(source, "targetWWNs"), items(source, "wwids"));
    if targets.is_empty() && wide.is_empty() {
        return vec![path.child("targetWWNs").required("must specify either targetWWNs or wwids, but not both")];
    }
    if !targets.is_empty() && !wide.is_empty() {
        return vec![
            path.child("targetWWNs")
                .invalid(source["targetWWNs"].clone(), "targetWWNs and wwids can not be specified simultaneously"),
        ];
    }
    if targets.is_empty() {
        return ErrorList::new();
    }
    if get(source, "lun").is_none() {
        return vec![path.child("lun").required("lun is required if targetWWNs is specified")];
    }
    number_in(source, "lun", 0, 255, path)
}

fn csi(source: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let driver = str_at(source, "driver");
    let field = path.child("driver");
    if driver.len() > 63 {
        errors.push(field.too_long(63));
    }
    if !driver.is_empty() {
        errors.extend(
            names::dns1123_subdomain(&driver.to_ascii_lowercase()).into_iter().map(|text| field.invalid(driver, text)),
        );
    }
    if get(source, "nodePublishSecretRef").is_some_and(|secret| str_at(secret, "name").is_empty()) {
        errors.push(path.child("nodePublishSecretRef").child("name").required(""));
    }
    errors
}

/// The claim that an ephemeral volume makes asks for something.
fn claim_template(source: &Value, path: &Path) -> ErrorList {
    let Some(template) = get(source, "volumeClaimTemplate") else { return ErrorList::new() };
    let path = path.child("volumeClaimTemplate").child("spec");
    let spec = template.get("spec").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    if items(spec, "accessModes").is_empty() {
        errors.push(path.child("accessModes").required("at least 1 access mode is required"));
    }
    for (index, mode) in texts(spec, "accessModes").enumerate() {
        const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
        if !MODES.contains(&mode) {
            errors.push(path.child("accessModes").index(index).not_supported(mode, &MODES));
        }
    }
    if dig(spec, &["resources", "requests", "storage"]).is_none() {
        errors.push(path.child("resources").key("storage").required(""));
    }
    errors
}

/// What is wrong with the files that a secret or config map becomes.
fn key_paths(source: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (index, item) in items(source, "items").iter().enumerate() {
        let path = path.index(index);
        for field in ["key", "path"] {
            if str_at(item, field).is_empty() {
                errors.push(path.child(field).required(""));
            }
        }
        errors.extend(descending_unreserved(str_at(item, "path"), &path.child("path")));
        errors.extend(mode(item, "mode", &path));
    }
    errors
}

/// The path is that of the source: errors don't say in which of its items.
fn downward_files(source: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for file in items(source, "items") {
        let place = str_at(file, "path");
        if place.is_empty() {
            errors.push(path.child("path").required(""));
        }
        errors.extend(descending_unreserved(place, &path.child("path")));
        match (get(file, "fieldRef"), get(file, "resourceFieldRef")) {
            (Some(field), other) => {
                errors.extend(field_ref(field, &FILE_FIELDS, &path.child("fieldRef")));
                if other.is_some() {
                    errors.push(
                        path.invalid("resource", "fieldRef and resourceFieldRef can not be specified simultaneously"),
                    );
                }
            }
            (None, Some(resource)) => errors.extend(resource_ref(resource, true, &path.child("resourceFieldRef"))),
            (None, None) => errors.push(path.required("one of fieldRef and resourceFieldRef is required")),
        }
        errors.extend(mode(file, "mode", path));
    }
    errors
}

/// What is wrong with the sources of a projected volume, whose files may not collide.
fn projections(volume: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut paths = BTreeSet::new();
    for (index, source) in items(volume, "sources").iter().enumerate() {
        let place = path.child("sources").index(index);
        let mut kinds = 0;
        for kind in
            ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"]
        {
            let Some(projection) = get(source, kind) else { continue };
            let place = place.child(kind);
            kinds += 1;
            if kinds > 1 {
                errors.push(place.forbidden("may not specify more than 1 volume type per source"));
                continue;
            }
            errors.extend(projection_errors(kind, projection, &place));
            let files = items(projection, "items");
            let own = files.iter().map(|file| str_at(file, "path")).chain([str_at(projection, "path")]);
            for file in own.filter(|file| !file.is_empty()) {
                if !paths.insert(file) {
                    let named = if kind == "downwardAPI" || kind == "serviceAccountToken" {
                        file
                    } else {
                        str_at(projection, "name")
                    };
                    errors.push(path.invalid(named, "conflicting duplicate paths"));
                }
            }
        }
    }
    errors
}

fn projection_errors(kind: &str, projection: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    match kind {
        "secret" | "configMap" => {
            if str_at(projection, "name").is_empty() {
                errors.push(path.child("name").required(""));
            }
            errors.extend(key_paths(projection, &path.child("items")));
        }
        "downwardAPI" => errors.extend(downward_files(projection, path)),
        "serviceAccountToken" => {
            let field = path.child("expirationSeconds");
            match int(projection, "expirationSeconds") {
                Some(seconds) if seconds < 600 => {
                    errors.push(field.invalid(seconds, "may not specify a duration less than 10 minutes"));
                }
                Some(seconds) if seconds > 1 << 32 => {
                    errors.push(field.invalid(seconds, "may not specify a duration larger than 2^32 seconds"));
                }
                _ => {}
            }
            let place = str_at(projection, "path");
            if place.is_empty() {
                errors.push(path.child("path").required(""));
            } else {
                errors.extend(descending_unreserved(place, path));
            }
        }
        "clusterTrustBundle" => {
            let (name, signer) = (str_at(projection, "name"), str_at(projection, "signerName"));
            if name.is_empty() && signer.is_empty() {
                errors.push(path.required("either name or signerName must be specified"));
            } else if !name.is_empty() && !signer.is_empty() {
                errors.push(path.invalid_unshown("only one of name and signerName may be used"));
            }
            if str_at(projection, "path").is_empty() {
                errors.push(path.child("path").required(""));
            }
        }
        _ => {
            for field in ["signerName", "keyType"] {
                if str_at(projection, field).is_empty() {
                    errors.push(path.child(field).required(""));
                }
            }
        }
    }
    errors
}

fn mode(value: &Value, field: &str, path: &Path) -> ErrorList {
    match int(value, field) {
        Some(mode) if !(0..=0o777).contains(&mode) => vec![path.child(field).invalid(mode, MODE_RULE)],
        _ => ErrorList::new(),
    }
}

fn number_in(value: &Value, field: &str, low: i64, high: i64, path: &Path) -> ErrorList {
    match int(value, field) {
        Some(number) if !(low..=high).contains(&number) => {
            vec![path.child(field).invalid(number, names::in_range(low, high))]
        }
        _ => ErrorList::new(),
    }
}

fn one_of(value: &Value, field: &str, allowed: &[&str], path: &Path) -> ErrorList {
    match get(value, field) {
        Some(given) if !allowed.contains(&text_or_null(Some(given)).as_str()) => {
            vec![path.child(field).not_supported(given.clone(), allowed)]
        }
        _ => ErrorList::new(),
    }
}

fn one_of_two(value: &Value, first: &str, second: &str, path: &Path) -> ErrorList {
    match (str_at(value, first), str_at(value, second)) {
        ("", "") => vec![path.required(format!("one of {first} and {second} is required"))],
        ("", _) | (_, "") => ErrorList::new(),
        _ => vec![path.invalid("resource", format!("{first} and {second} can not be specified simultaneously"))],
    }
}

fn text(value: &Value, field: &str, path: &Path, rule: fn(&str, &Path) -> ErrorList) -> ErrorList {
    rule(str_at(value, field), &path.child(field))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(list: &Value) -> Vec<String> {
        volumes(&json!({"volumes": list}), &Path::new("v")).1.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_volume_has_one_source() {
        assert_eq!(
            causes(&json!([{"name": "c", "emptyDir": {}, "hostPath": {"path": "/"}}])),
            ["v[0].hostPath: Forbidden: may not specify more than 1 volume type"]
        );
        assert_eq!(causes(&json!([{"name": "c"}])), ["v[0]: Required value: must specify a volume type"]);
    }

    #[test]
    fn sources_name_what_they_are_of() {
        assert_eq!(
            causes(&json!([{"name": "d", "secret": {}}, {"name": "d", "configMap": {}},
                           {"name": "p", "persistentVolumeClaim": {"claimName": ""}}])),
            [
                "v[0].secret.secretName: Required value",
                "v[1].configMap.name: Required value",
                "v[2].persistentVolumeClaim.claimName: Required value"
            ]
        );
    }

    #[test]
    fn only_right_volumes_count() {
        let spec = json!({"volumes": [{"name": "a", "emptyDir": {}}, {"name": "a", "emptyDir": {}}, {"name": "b"}]});
        let (good, errors) = volumes(&spec, &Path::new("v"));
        assert_eq!(good.len(), 1);
        assert_eq!(errors[0].to_string(), "v[1].name: Duplicate value: \"a\"");
    }

    #[test]
    fn host_paths_are_of_a_type_and_go_down() {
        assert_eq!(
            causes(&json!([{"name": "h", "hostPath": {"path": "../x", "type": "Nope"}}])),
            [
                "v[0].hostPath.path: Invalid value: \"../x\": must not contain '..'",
                "v[0].hostPath.type: Unsupported value: \"Nope\": supported values: \"\", \"BlockDevice\", \
                 \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\""
            ]
        );
    }

    #[test]
    fn modes_and_sizes_have_limits() {
        assert_eq!(
            causes(&json!([{"name": "p", "projected": {"sources": [{}], "defaultMode": 9999}}])),
            [format!("v[0].projected.defaultMode: Invalid value: 9999: {MODE_RULE}")]
        );
        assert_eq!(
            causes(&json!([{"name": "e", "emptyDir": {"sizeLimit": "-1"}}])),
            ["v[0].emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity"]
        );
    }

    #[test]
    fn projected_files_do_not_collide() {
        let list = json!([{"name": "p", "projected": {"sources": [
            {"configMap": {"name": "c", "items": [{"key": "k", "path": "x"}]}},
            {"serviceAccountToken": {"path": "x", "expirationSeconds": 60}}]}}]);
        assert_eq!(
            causes(&list),
            [
                "v[0].projected.sources[1].serviceAccountToken.expirationSeconds: Invalid value: 60: may not specify a \
                 duration less than 10 minutes",
                "v[0].projected: Invalid value: \"x\": conflicting duplicate paths"
            ]
        );
    }
}
