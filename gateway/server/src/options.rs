//! What a client asks for beside the object: the options of lists, writes and deletes, read and checked.

use bytes::Bytes;
use carob_api::decode::FieldValidation;
use carob_api::field::{ErrorKind, ErrorList, FieldError, Path};
use carob_api::selector::{FieldSelector, LabelSelector};
use carob_api::status::Status;
use serde_json::Value;

use crate::call::Call;
use crate::negotiate::body_value;

/// Options of create, update and patch.
pub(crate) struct WriteOptions {
    pub dry_run: bool,
    /// Who changes fields.
    pub manager: String,
    pub validation: FieldValidation,
    /// Takes fields from other managers (only for apply).
    pub force: bool,
}

/// Which verb's options: they are checked alike, but named and complained about differently.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteVerb {
    Create,
    Update,
    Patch,
    Apply,
}

impl WriteVerb {
    fn options_kind(self) -> &'static str {
        match self {
            Self::Create => "CreateOptions",
            Self::Update => "UpdateOptions",
            Self::Patch | Self::Apply => "PatchOptions",
        }
    }
}

const MANAGER_LIMIT: usize = 128;

impl WriteOptions {
    /// Reads them from the query.
    pub fn read(call: &Call, verb: WriteVerb) -> Result<Self, Status> {
        let query = &call.query;
        let mut errors = ErrorList::new();
        let force = query.flag("force");
        let manager = query.text("fieldManager").unwrap_or_default();
        if verb == WriteVerb::Apply {
            if manager.is_empty() {
                errors.push(Path::new("fieldManager").required("is required for apply patch"));
            }
        } else if verb == WriteVerb::Patch && force.is_some() {
            errors.push(Path::new("force").forbidden("may not be specified for non-apply patch"));
        }
        errors.extend(manager_errors(manager));
        let dry_run = dry_run(&query.all("dryRun"), &mut errors);
        let validation = match query.text("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                errors.push(Path::new("fieldValidation").not_supported(other, &["", "Ignore", "Strict", "Warn"]));
                FieldValidation::Warn
            }
        };
        if !errors.is_empty() {
            return Err(Status::invalid(("meta.k8s.io", verb.options_kind()), "", errors));
        }
        let manager = if manager.is_empty() { call.default_manager() } else { manager.to_owned() };
        Ok(Self { dry_run, manager, validation, force: force.unwrap_or(false) })
    }
}

fn manager_errors(manager: &str) -> ErrorList {
    let path = Path::new("fieldManager");
    if manager.len() > MANAGER_LIMIT {
        return vec![path.too_long(MANAGER_LIMIT)];
    }
    manager
        .chars()
        .enumerate()
        .filter(|(_, c)| c.is_control() || (c.is_whitespace() && *c != ' '))
        .map(|(position, c)| {
            path.invalid(manager, format!("invalid character U+{:04X} (at position {position})", u32::from(c)))
        })
        .collect()
}

fn dry_run(values: &[&str], errors: &mut ErrorList) -> bool {
    if values.iter().any(|value| *value != "All") {
        errors.push(FieldError {
            kind: ErrorKind::NotSupported,
            path: "dryRun".to_owned(),
            value: values.iter().map(|value| Value::from(*value)).collect(),
            detail: "supported values: \"All\"".to_owned(),
        });
    }
    !values.is_empty()
}

/// How far a list may be from the newest state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// The newest state, or any.
    Newest,
    /// At least this revision.
    NotOlderThan(u64),
    /// Exactly this revision.
    Exactly(u64),
}

/// Options of list, watch and deletecollection.
pub(crate) struct ListOptions {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    pub freshness: Freshness,
    /// The revision to watch from; none or 0 for the state as it is now.
    pub watch_after: Option<u64>,
    pub limit: Option<usize>,
    pub continuation: Option<String>,
    pub timeout_seconds: Option<u64>,
    pub bookmarks: bool,
    /// Whether a watch begins with the state as it is now, and says when that is done.
    pub initial_events: Option<bool>,
}

impl ListOptions {
    /// Reads them from the query, for a watch or for a list.
    pub fn read(call: &Call, watch: bool) -> Result<Self, Status> {
        let query = &call.query;
        let timeout_seconds = query.integer("timeoutSeconds")?.and_then(|seconds| u64::try_from(seconds).ok());
        let limit = query.integer("limit")?;
        let labels =
            LabelSelector::parse(query.get("labelSelector").unwrap_or_default()).map_err(Status::bad_request)?;
        let fields =
            FieldSelector::parse(query.get("fieldSelector").unwrap_or_default()).map_err(Status::bad_request)?;
        check_fields(call, &fields)?;
        let initial_events = query.flag("sendInitialEvents");
        let version = query.text("resourceVersion");
        let matching = query.text("resourceVersionMatch");
        let errors = version_errors(watch, initial_events, version, matching, query.text("continue").is_some());
        if !errors.is_empty() {
            return Err(Status::invalid(("meta.k8s.io", "ListOptions"), "", errors));
        }
        let continuation = query.text("continue").map(ToOwned::to_owned);
        let revision = version.map(|text| parse_version(text, watch)).transpose()?;
        if continuation.is_some() && revision.is_some_and(|revision| revision > 0) {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0);
        let freshness = match (revision, matching) {
            (None | Some(0), _) => Freshness::Newest,
            (Some(revision), Some("Exact")) => Freshness::Exactly(revision),
            // Without a match, a page of a past state is meant exactly (as before there was resourceVersionMatch).
            (Some(revision), None) if limit.is_some() => Freshness::Exactly(revision),
            (Some(revision), _) => Freshness::NotOlderThan(revision),
        };
        Ok(Self {
            labels,
            fields,
            freshness,
            watch_after: revision,
            limit,
            continuation,
            timeout_seconds,
            bookmarks: query.is_set("allowWatchBookmarks"),
            initial_events,
        })
    }
}

fn version_errors(
    watch: bool,
    initial_events: Option<bool>,
    version: Option<&str>,
    matching: Option<&str>,
    continued: bool,
) -> ErrorList {
    let path = Path::new("resourceVersionMatch");
    let mut errors = ErrorList::new();
    if watch {
        match (initial_events, matching) {
            (Some(_), Some("NotOlderThan")) | (None, None) => {}
            (Some(_), _) => {
                errors.push(path.forbidden("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
            }
            (None, Some(_)) => {
                errors.push(
                    path.forbidden("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"),
                );
            }
        }
        if let Some(other) = matching.filter(|matching| *matching != "NotOlderThan") {
            errors.push(path.not_supported(other, &["NotOlderThan"]));
        }
        return errors;
    }
    if initial_events.is_some() {
        errors.push(Path::new("sendInitialEvents").forbidden("sendInitialEvents is forbidden for list"));
    }
    let Some(matching) = matching else { return errors };
    if version.is_none() {
        errors.push(path.forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided"));
    }
    if continued {
        errors.push(path.forbidden("resourceVersionMatch is forbidden when continue is provided"));
    }
    match matching {
        "Exact" if version == Some("0") => {
            errors.push(path.forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""));
        }
        "Exact" | "NotOlderThan" => {}
        other => errors.push(path.not_supported(other, &["Exact", "NotOlderThan", ""])),
    }
    errors
}

fn parse_version(text: &str, watch: bool) -> Result<u64, Status> {
    text.parse().map_err(|error: std::num::ParseIntError| {
        let why = match error.kind() {
            std::num::IntErrorKind::PosOverflow => "value out of range",
            _ => "invalid syntax",
        };
        let error = format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: {why}");
        if watch {
            Status::generic(500, "", error)
        } else {
            Status::bad_request(format!("invalid resource version: {error}"))
        }
    })
}

/// 400 for a field that this kind's selectors don't know.
fn check_fields(call: &Call, fields: &FieldSelector) -> Result<(), Status> {
    let nothing = Value::Object(serde_json::Map::new());
    for (field, _, _) in fields.requirements() {
        if matches!(field.as_str(), "metadata.name" | "metadata.namespace") {
            continue;
        }
        if call.kind.field(&nothing, field).is_none() {
            let only_metadata = call.kind.custom.is_none() && !has_own_fields(call);
            return Err(Status::bad_request(if only_metadata {
                format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
            } else {
                format!("field label not supported: {field}")
            }));
        }
    }
    Ok(())
}

/// Kinds that select by more than name and namespace word their refusal differently.
fn has_own_fields(call: &Call) -> bool {
    const WITH_FIELDS: [(&str, &str); 7] = [
        ("", "pods"),
        ("", "nodes"),
        ("", "events"),
        ("events.k8s.io", "events"),
        ("", "namespaces"),
        ("", "secrets"),
        ("apps", "replicasets"),
    ];
    WITH_FIELDS.contains(&(call.kind.group, call.kind.plural))
        || (call.kind.group, call.kind.plural) == ("batch", "jobs")
}

/// What happens to what an object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// Options of delete and deletecollection: in the body, or in the query.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    pub dry_run: bool,
    pub grace_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// Reads them from the body if there is one, else from the query.
    pub fn read(call: &Call, body: &Bytes) -> Result<Self, Status> {
        if body.iter().any(|byte| !byte.is_ascii_whitespace()) {
            let value = body_value(&call.headers, body)?;
            return Self::of_value(&value);
        }
        let query = &call.query;
        let mut options = serde_json::Map::new();
        if let Some(seconds) = query.integer("gracePeriodSeconds")? {
            options.insert("gracePeriodSeconds".to_owned(), seconds.into());
        }
        if let Some(policy) = query.text("propagationPolicy") {
            options.insert("propagationPolicy".to_owned(), policy.into());
        }
        if let Some(orphan) = query.flag("orphanDependents") {
            options.insert("orphanDependents".to_owned(), orphan.into());
        }
        let dry_run = query.all("dryRun");
        if !dry_run.is_empty() {
            options.insert("dryRun".to_owned(), dry_run.into());
        }
        Self::of_value(&Value::Object(options))
    }

    /// Reads `DeleteOptions`.
    pub fn of_value(value: &Value) -> Result<Self, Status> {
        let Some(object) = value.as_object() else {
            return Err(Status::bad_request("DeleteOptions must be an object"));
        };
        if let Some(kind) = object.get("kind").and_then(Value::as_str)
            && kind != "DeleteOptions"
        {
            return Err(Status::bad_request(format!("expected DeleteOptions, got {kind}")));
        }
        let mut errors = ErrorList::new();
        let asked: Vec<&str> =
            object.get("dryRun").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let dry_run = dry_run(&asked, &mut errors);
        let policy = object.get("propagationPolicy").and_then(Value::as_str);
        let orphan = object.get("orphanDependents").and_then(Value::as_bool);
        if policy.is_some() && orphan.is_some() {
            let path = Path::new("propagationPolicy");
            errors.push(path.invalid(policy, "orphanDependents and deletionPropagation cannot be both set"));
        }
        let propagation = match (policy, orphan) {
            (None, None) => None,
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some(other), _) => {
                let path = Path::new("propagationPolicy");
                errors.push(path.not_supported(other, &["Background", "Foreground", "Orphan"]));
                None
            }
        };
        if !errors.is_empty() {
            return Err(Status::invalid(("meta.k8s.io", "DeleteOptions"), "", errors));
        }
        let precondition = |name: &str| {
            value.pointer(&format!("/preconditions/{name}")).and_then(Value::as_str).map(ToOwned::to_owned)
        };
        Ok(Self {
            dry_run,
            grace_seconds: object.get("gracePeriodSeconds").and_then(Value::as_i64),
            propagation,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn delete_options_are_checked() {
        let options = DeleteOptions::of_value(&json!({"propagationPolicy": "Foreground", "gracePeriodSeconds": 3,
            "preconditions": {"uid": "u"}}))
        .expect("good");
        assert_eq!(options.propagation, Some(Propagation::Foreground));
        assert_eq!((options.grace_seconds, options.uid.as_deref()), (Some(3), Some("u")));
        let status = DeleteOptions::of_value(&json!({"dryRun": ["X"]})).expect_err("refused");
        assert_eq!(
            status.message(),
            "DeleteOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"X\"]: supported values: \"All\""
        );
    }

    #[test]
    fn the_versions_that_may_be_asked_for_depend_on_list_or_watch() {
        let texts = |errors: ErrorList| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(version_errors(false, None, Some("5"), Some("Exact"), false).is_empty());
        assert!(version_errors(true, Some(true), None, Some("NotOlderThan"), false).is_empty());
        assert_eq!(
            texts(version_errors(true, None, Some("5"), Some("Exact"), false)),
            [
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents \
                 is provided",
                "resourceVersionMatch: Unsupported value: \"Exact\": supported values: \"NotOlderThan\"",
            ]
        );
    }

    #[test]
    fn a_manager_must_be_printable_and_short() {
        assert!(manager_errors("kubectl apply").is_empty());
        assert_eq!(
            manager_errors("bad\nname")[0].to_string(),
            "fieldManager: Invalid value: \"bad\\nname\": invalid character U+000A (at position 3)"
        );
        assert_eq!(manager_errors(&"x".repeat(129)).len(), 1);
    }
}
