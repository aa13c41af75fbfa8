//! FlowSchema and PriorityLevelConfiguration: how requests are sorted and queued.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::{BASE, first_generation, name_of, object_at, set_default, update_spec_or_status};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{flag, get, int, items, str_at, texts};
use crate::validation::names;

/// What is peculiar to FlowSchemas.
pub const SCHEMA: Strategy = Strategy {
    default: |object| {
        let Some(spec) = object_at(object, "spec") else { return };
        if spec.get("matchingPrecedence").and_then(Value::as_i64).unwrap_or(0) == 0 {
            spec.insert("matchingPrecedence".to_owned(), 1000.into());
        }
    },
    validate: schema_errors,
    validate_update: |new, _, part| if part == Part::Status { condition_errors(new) } else { schema_errors(new) },
    ..COMMON
};

/// What is peculiar to PriorityLevelConfigurations.
pub const LEVEL: Strategy = Strategy {
    default: default_level,
    validate: level_errors,
    validate_update: |new, _, part| if part == Part::Status { condition_errors(new) } else { level_errors(new) },
    ..COMMON
};

const COMMON: Strategy = Strategy {
    prepare_create: |object| {
        object["status"] = json!({});
        first_generation(object);
    },
    prepare_update: update_spec_or_status,
    ..BASE
};

/// Without these two, a schema and a level of each name, requests could not be sorted: they are always what they were.
pub const MANDATORY: [&str; 2] = ["catch-all", "exempt"];

/// The objects of a fresh Kubernetes, names and specs, by list: `flowSchemas`, `priorityLevelConfigurations`.
static STANDARD: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../data/flowcontrol.json")).expect("a file of this repository")
});

/// One of the lists of what a fresh Kubernetes has, entries of name and spec.
pub fn standard(list: &str) -> &'static Value {
    &STANDARD[list]
}

/// A mandatory object is what it always was, in all but the fields named `free`.
fn fixed_errors(object: &Value, list: &str, free: &[&str]) -> ErrorList {
    let name = name_of(object);
    let mandatory = standard(list).as_array().into_iter().flatten().find(|entry| entry["name"] == name);
    let Some(entry) = mandatory.filter(|_| MANDATORY.contains(&name)) else { return ErrorList::new() };
    let without = |spec: &Value| {
        let mut spec = spec.clone();
        if let Some(fields) = spec.as_object_mut() {
            free.iter().for_each(|field| drop(fields.shift_remove(*field)));
        }
        spec
    };
    let spec = object.get("spec").unwrap_or(&Value::Null);
    if without(spec) == without(&entry["spec"]) {
        return ErrorList::new();
    }
    vec![Path::new("spec").invalid(spec.clone(), format!("spec of '{name}' must equal the fixed value"))]
}

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const LAST: i64 = 10_000;
const MOST_QUEUES: i64 = 10_000_000;
/// Bits of a hash from which a hand of queues is dealt.
const HASH_BITS: u32 = 60;

fn schema_errors(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    let (field, precedence) = (path.child("matchingPrecedence"), int(spec, "matchingPrecedence").unwrap_or(0));
    if precedence <= 0 {
        errors.push(field.invalid(precedence, "must be a positive value"));
    }
    if precedence > LAST {
        errors.push(field.invalid(precedence, format!("must not be greater than {LAST}")));
    }
    if precedence == 1 && name_of(object) != "exempt" {
        errors.push(field.invalid(precedence, "only the schema named 'exempt' may have matchingPrecedence 1"));
    }
    if let Some(method) = get(spec, "distinguisherMethod") {
        let methods = ["ByNamespace", "ByUser"];
        if !methods.contains(&str_at(method, "type")) {
            let shown = json!({"Type": str_at(method, "type")});
            errors.push(path.child("distinguisherMethod").child("type").not_supported(shown, &methods));
        }
    }
    let level = spec.get("priorityLevelConfiguration").map_or("", |reference| str_at(reference, "name"));
    let field = path.child("priorityLevelConfiguration").child("name");
    if level.is_empty() {
        errors.push(field.required("must reference a priority level"));
    } else {
        errors.extend(names::dns1123_subdomain(level).into_iter().map(|text| field.invalid(level, text)));
    }
    for (index, rule) in items(spec, "rules").iter().enumerate() {
        errors.extend(rule_errors(rule, &path.child("rules").index(index)));
    }
    errors.extend(fixed_errors(object, "flowSchemas", &[]));
    errors.extend(condition_errors(object));
    errors
}

fn rule_errors(rule: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if items(rule, "subjects").is_empty() {
        errors.push(path.child("subjects").required("subjects must contain at least one value"));
    }
    for (index, subject) in items(rule, "subjects").iter().enumerate() {
        errors.extend(subject_errors(subject, &path.child("subjects").index(index)));
    }
    let (resources, others) = (items(rule, "resourceRules"), items(rule, "nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        errors.push(path.required("at least one of resourceRules and nonResourceRules has to be non-empty"));
    }
    for (index, one) in resources.iter().enumerate() {
        errors.extend(resource_errors(one, &path.child("resourceRules").index(index)));
    }
    for (index, one) in others.iter().enumerate() {
        errors.extend(other_errors(one, &path.child("nonResourceRules").index(index)));
    }
    errors
}

/// Kinds of subjects, with the field that says more.
const SUBJECTS: [(&str, &str); 3] = [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];

fn subject_errors(subject: &Value, path: &Path) -> ErrorList {
    let kind = str_at(subject, "kind");
    let Some((_, own)) = SUBJECTS.iter().find(|(known, _)| *known == kind) else {
        return vec![path.child("kind").not_supported(kind, &SUBJECTS.map(|(known, _)| known))];
    };
    let mut errors = match get(subject, own) {
        None => vec![path.child(own).required(format!("{own} is required when subject kind is '{kind}'"))],
        Some(who) => named_errors(who, *own == "serviceAccount", &path.child(own)),
    };
    for (other, field) in SUBJECTS.iter().filter(|(_, field)| field != own && get(subject, field).is_some()) {
        errors.push(path.child(field).forbidden(format!("{field} is forbidden when subject kind is not '{other}'")));
    }
    errors
}

fn named_errors(who: &Value, is_account: bool, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let name = str_at(who, "name");
    if name.is_empty() {
        errors.push(path.child("name").required(""));
    }
    if !is_account {
        return errors;
    }
    if !name.is_empty() && name != "*" {
        errors.extend(names::dns1123_subdomain(name).into_iter().map(|text| path.child("name").invalid(name, text)));
    }
    let (field, namespace) = (path.child("namespace"), str_at(who, "namespace"));
    if namespace.is_empty() {
        errors.push(field.required("must specify namespace for service account"));
    } else {
        errors.extend(names::dns1123_label(namespace).into_iter().map(|text| field.invalid(namespace, text)));
    }
    errors
}

fn verb_errors(rule: &Value, path: &Path) -> ErrorList {
    let path = path.child("verbs");
    let verbs: Vec<&str> = texts(rule, "verbs").collect();
    let shown = || rule["verbs"].clone();
    if verbs.is_empty() {
        vec![path.required("verbs must contain at least one value")]
    } else if verbs.contains(&"*") {
        let alone = verbs.len() == 1;
        if alone { Vec::new() } else { vec![path.invalid(shown(), "if '*' is present, must not specify other verbs")] }
    } else if verbs.iter().all(|verb| VERBS.contains(verb)) {
        Vec::new()
    } else {
        vec![path.not_supported(shown(), &VERBS)]
    }
}

/// A list in which `*` stands alone. `what` names its entries, `missing` is said of an empty one.
fn list_errors(rule: &Value, field: &str, what: &str, missing: &str, path: &Path) -> ErrorList {
    let path = path.child(field);
    let entries: Vec<&str> = texts(rule, field).collect();
    if entries.is_empty() {
        return vec![path.required(missing)];
    }
    if entries.len() > 1 && entries.contains(&"*") {
        let why = format!("if '*' is present, must not specify other {what}");
        return vec![path.invalid(rule[field].clone(), why)];
    }
    ErrorList::new()
}

fn resource_errors(rule: &Value, path: &Path) -> ErrorList {
    let mut errors = verb_errors(rule, path);
    let missing = "resource rules must supply at least one api group";
    errors.extend(list_errors(rule, "apiGroups", "api groups", missing, path));
    let missing = "resource rules must supply at least one resource";
    errors.extend(list_errors(rule, "resources", "resources", missing, path));
    let namespaces: Vec<&str> = texts(rule, "namespaces").collect();
    if namespaces.contains(&"*") || namespaces.is_empty() {
        if !(namespaces.is_empty() && flag(rule, "clusterScope")) {
            let missing = "resource rules that are not cluster scoped must supply at least one namespace";
            errors.extend(list_errors(rule, "namespaces", "namespaces", missing, path));
        }
        return errors;
    }
    for (index, name) in namespaces.into_iter().enumerate() {
        let path = path.child("namespaces").index(index);
        let rule = "each member of this list must be '*' or a DNS-1123 label; ";
        errors.extend(names::dns1123_label(name).into_iter().map(|why| path.invalid(name, format!("{rule}{why}"))));
    }
    errors
}

fn other_errors(rule: &Value, path: &Path) -> ErrorList {
    let mut errors = verb_errors(rule, path);
    let missing = "nonResourceURLs must contain at least one value";
    errors.extend(list_errors(rule, "nonResourceURLs", "non-resource URLs", missing, path));
    let path = path.child("nonResourceURLs");
    for (index, url) in texts(rule, "nonResourceURLs").enumerate().filter(|(_, url)| *url != "*") {
        errors.extend(url_problem(url).map(|why| path.index(index).invalid(url, why)));
    }
    errors
}

fn url_problem(url: &str) -> Option<&'static str> {
    if url.is_empty() {
        return Some("must not be empty");
    }
    if url == "/" {
        return None;
    }
    if !url.starts_with('/') {
        return Some("must start with slash");
    }
    if url.contains(' ') {
        return Some("must not contain white-space");
    }
    if url.contains("//") {
        return Some("must not contain double slash");
    }
    let wild = url.strip_suffix('*').unwrap_or(url);
    if wild.contains('*') || (wild != url && !wild.ends_with('/')) {
        return Some("wildcard can only do suffix matching");
    }
    None
}

fn condition_errors(object: &Value) -> ErrorList {
    let path = Path::new("status").child("conditions");
    let all = items(object.get("status").unwrap_or(&Value::Null), "conditions");
    let mut errors = ErrorList::new();
    for (index, condition) in all.iter().enumerate() {
        let (path, kind) = (path.index(index).child("type"), str_at(condition, "type"));
        if all[..index].iter().any(|one| str_at(one, "type") == kind) {
            errors.push(path.duplicate(kind));
        }
        if kind.is_empty() {
            errors.push(path.required("must not be empty"));
        }
    }
    errors
}

fn default_level(object: &mut Value) {
    let Some(spec) = object_at(object, "spec") else { return };
    if spec.get("type").and_then(Value::as_str) == Some("Exempt") {
        set_default(spec, "exempt", json!({}));
    }
    if let Some(exempt) = spec.get_mut("exempt").and_then(Value::as_object_mut) {
        set_default(exempt, "nominalConcurrencyShares", 0);
        set_default(exempt, "lendablePercent", 0);
    }
    let Some(limited) = spec.get_mut("limited").and_then(Value::as_object_mut) else { return };
    set_default(limited, "nominalConcurrencyShares", 30);
    set_default(limited, "lendablePercent", 0);
    let queuing = limited.get_mut("limitResponse").and_then(|response| response.get_mut("queuing"));
    if let Some(queuing) = queuing.and_then(Value::as_object_mut) {
        for (field, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
            if queuing.get(field).and_then(Value::as_i64).unwrap_or(0) == 0 {
                queuing.insert(field.to_owned(), value.into());
            }
        }
    }
}

fn level_errors(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    let kind = str_at(spec, "type");
    if (name_of(object) == "exempt") != (kind == "Exempt") {
        let why = "type must be 'Exempt' if and only if name is 'exempt'";
        errors.push(path.child("type").invalid(kind, why));
    }
    let (limited, exempt) = (get(spec, "limited"), get(spec, "exempt"));
    match kind {
        "Exempt" => {
            if limited.is_some() {
                errors.push(path.child("limited").forbidden("must be nil if the type is not Limited"));
            }
            if let Some(exempt) = exempt {
                errors.extend(share_errors(exempt, &path.child("exempt")));
            }
        }
        "Limited" => {
            if exempt.is_some() {
                errors.push(path.child("exempt").forbidden("must be nil if the type is Limited"));
            }
            match limited {
                None => errors.push(path.child("limited").required("must not be empty when type is Limited")),
                Some(limited) => errors.extend(limited_errors(limited, &path.child("limited"))),
            }
        }
        other => errors.push(path.child("type").not_supported(other, &["Exempt", "Limited"])),
    }
    errors.extend(fixed_errors(object, "priorityLevelConfigurations", &["exempt"]));
    errors.extend(condition_errors(object));
    errors
}

fn share_errors(level: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if let Some(shares) = int(level, "nominalConcurrencyShares").filter(|shares| *shares < 0) {
        errors.push(path.child("nominalConcurrencyShares").invalid(shares, "must be a non-negative integer"));
    }
    if let Some(percent) = int(level, "lendablePercent").filter(|percent| !(0..=100).contains(percent)) {
        errors.push(path.child("lendablePercent").invalid(percent, "must be between 0 and 100, inclusive"));
    }
    errors
}

fn limited_errors(limited: &Value, path: &Path) -> ErrorList {
    let mut errors = share_errors(limited, path);
    if let Some(percent) = int(limited, "borrowingLimitPercent").filter(|percent| *percent < 0) {
        let why = "if specified, must be a non-negative integer";
        errors.push(path.child("borrowingLimitPercent").invalid(percent, why));
    }
    let path = path.child("limitResponse");
    let response = limited.get("limitResponse").unwrap_or(&Value::Null);
    let queuing = get(response, "queuing");
    match str_at(response, "type") {
        "Reject" => {
            if queuing.is_some() {
                let why = "must be nil if limited.limitResponse.type is not Limited";
                errors.push(path.child("queuing").forbidden(why));
            }
        }
        "Queue" => match queuing {
            None => {
                let why = "must not be empty if limited.limitResponse.type is Limited";
                errors.push(path.child("queuing").required(why));
            }
            Some(queuing) => errors.extend(queuing_errors(queuing, &path.child("queuing"))),
        },
        other => errors.push(path.child("type").not_supported(other, &["Queue", "Reject"])),
    }
    errors
}

fn queuing_errors(queuing: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let [length, hand, queues] =
        ["queueLengthLimit", "handSize", "queues"].map(|field| int(queuing, field).unwrap_or(0));
    if length <= 0 {
        errors.push(path.child("queueLengthLimit").invalid(length, "must be positive"));
    }
    let field = path.child("handSize");
    if hand <= 0 {
        errors.push(field.invalid(hand, "must be positive"));
    } else if hand > queues {
        errors.push(field.invalid(hand, format!("should not be greater than queues ({queues})")));
    } else if entropy_bits(queues, hand) > HASH_BITS {
        errors.push(field.invalid(
            hand,
            format!(
                "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
            ),
        ));
    }
    let field = path.child("queues");
    if queues <= 0 {
        errors.push(field.invalid(queues, "must be positive"));
    } else if queues > MOST_QUEUES {
        errors.push(field.invalid(queues, format!("must not be greater than {MOST_QUEUES}")));
    }
    errors
}

/// How many bits it takes to deal a hand: those of a number of a hand's arrangements.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small and positive"
)]
fn entropy_bits(deck: i64, hand: i64) -> u32 {
    // Beyond this it is too much whatever the deck.
    if hand > i64::from(HASH_BITS) {
        return u32::MAX;
    }
    (0..hand).map(|dealt| ((deck - dealt) as f64).log2()).sum::<f64>().ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts_of(errors: &ErrorList) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_level_is_completed() {
        let mut level =
            json!({"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}});
        default_level(&mut level);
        assert_eq!(
            level["spec"]["limited"],
            json!({"limitResponse": {"type": "Queue", "queuing": {"handSize": 8, "queues": 64, "queueLengthLimit": 50}},
                "nominalConcurrencyShares": 30, "lendablePercent": 0})
        );
        level["metadata"] = json!({"name": "a"});
        assert!(level_errors(&level).is_empty());
    }

    #[test]
    fn what_is_needed_stays_what_it_is() {
        for (list, errors) in
            [("flowSchemas", schema_errors as fn(&Value) -> ErrorList), ("priorityLevelConfigurations", level_errors)]
        {
            for entry in standard(list).as_array().unwrap() {
                let object = json!({"metadata": {"name": entry["name"]}, "spec": entry["spec"]});
                assert!(errors(&object).is_empty(), "{}", entry["name"]);
            }
        }
        let catch_all = json!({"metadata": {"name": "catch-all"}, "spec": {"priorityLevelConfiguration": {"name": "exempt"},
            "matchingPrecedence": 10000}});
        assert_eq!(schema_errors(&catch_all)[0].detail, "spec of 'catch-all' must equal the fixed value");
        let exempt = json!({"metadata": {"name": "exempt"}, "spec": {"type": "Exempt", "exempt": {"nominalConcurrencyShares": 5}}});
        assert!(level_errors(&exempt).is_empty());
    }

    #[test]
    fn a_hand_can_be_dealt_from_a_hash() {
        assert_eq!(entropy_bits(64, 8), 48);
        let of = |queues: i64, hand: i64| {
            queuing_errors(&json!({"queueLengthLimit": 1, "queues": queues, "handSize": hand}), &Path::new("q")).len()
        };
        assert_eq!((of(64, 8), of(4, 5), of(512, 8), of(0, 0)), (0, 1, 1, 2));
    }

    #[test]
    fn subjects_say_who_they_are_and_no_more() {
        let subject = json!({"kind": "User", "user": {"name": ""}, "group": {"name": "g"}});
        assert_eq!(
            texts_of(&subject_errors(&subject, &Path::new("s"))),
            ["s.user.name: Required value", "s.group: Forbidden: group is forbidden when subject kind is not 'Group'"]
        );
        assert_eq!(
            texts_of(&subject_errors(&json!({"kind": "X"}), &Path::new("s"))),
            ["s.kind: Unsupported value: \"X\": supported values: \"Group\", \"ServiceAccount\", \"User\""]
        );
    }

    #[test]
    fn rules_are_for_something() {
        let rule = json!({"subjects": [{"kind": "Group", "group": {"name": "g"}}], "resourceRules": [
            {"verbs": ["*", "get"], "apiGroups": [""], "resources": ["pods"]}], "nonResourceRules": [
            {"verbs": ["fly"], "nonResourceURLs": ["x"]}]});
        assert_eq!(rule_errors(&rule, &Path::new("r")).len(), 4);
    }
}
