//! Names of custom resources: who comes first has them.

use carob_api::kinds;
use serde_json::{Value, json};

use super::set_condition;

/// Names that are taken: group, `Kind` or `Resource`, name.
#[derive(Default)]
struct Taken {
    kinds: Vec<(String, String)>,
    resources: Vec<(String, String)>,
}

impl Taken {
    fn has_kind(&self, group: &str, name: &str) -> bool {
        self.kinds.iter().any(|(known, kind)| known == group && kind == name)
    }

    fn has_resource(&self, group: &str, name: &str) -> bool {
        self.resources.iter().any(|(known, resource)| known == group && resource == name)
    }

    fn take(&mut self, group: &str, names: &Value) {
        let text = |field: &str| names[field].as_str().filter(|name| !name.is_empty());
        self.kinds.extend(
            [text("kind"), text("listKind")].into_iter().flatten().map(|name| (group.to_owned(), name.to_owned())),
        );
        let short = names["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let resources = [text("plural"), text("singular")].into_iter().flatten().chain(short);
        self.resources.extend(resources.map(|name| (group.to_owned(), name.to_owned())));
    }
}

/// The definitions with their names settled, in the order of their creation, in which they are given.
pub(super) fn settle(definitions: &[Value]) -> Vec<Value> {
    let mut taken = Taken::default();
    for kind in kinds::builtin() {
        let names = json!({ "plural": kind.plural, "singular": kind.singular, "shortNames": kind.short_names, "kind": kind.kind });
        taken.take(kind.group, &names);
    }
    // Names that were accepted stay their owner's.
    let mut settled = Vec::with_capacity(definitions.len());
    for (index, definition) in definitions.iter().enumerate() {
        let mut others = Taken { kinds: taken.kinds.clone(), resources: taken.resources.clone() };
        for (other, _) in definitions.iter().zip(0..).filter(|(_, at)| *at > index) {
            others.take(group(other), &other["status"]["acceptedNames"]);
        }
        let new = settle_one(definition, &others);
        taken.take(group(&new), &new["status"]["acceptedNames"]);
        settled.push(new);
    }
    settled
}

fn group(definition: &Value) -> &str {
    definition["spec"]["group"].as_str().unwrap_or_default()
}

fn settle_one(definition: &Value, others: &Taken) -> Value {
    let group = group(definition);
    let wanted = &definition["spec"]["names"];
    let mut accepted = definition["status"]["acceptedNames"].clone();
    if !accepted.is_object() {
        accepted = json!({});
    }
    let mut conflict = None;
    let mut settle = |field: &str, reason: &str, is_taken: &dyn Fn(&str) -> bool| {
        let names: Vec<&str> = match &wanted[field] {
            Value::String(name) => vec![name],
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let taken: Vec<String> =
            names.iter().filter(|name| is_taken(name)).map(|name| format!("{name:?} is already in use")).collect();
        if taken.is_empty() {
            match wanted.get(field) {
                Some(value) => accepted[field] = value.clone(),
                None => drop(accepted.as_object_mut().and_then(|accepted| accepted.shift_remove(field))),
            }
        } else {
            let text = if taken.len() == 1 { taken[0].clone() } else { format!("[{}]", taken.join(", ")) };
            conflict.get_or_insert((reason.to_owned(), text));
        }
    };
    settle("plural", "PluralConflict", &|name| others.has_resource(group, name));
    settle("singular", "SingularConflict", &|name| others.has_resource(group, name));
    settle("shortNames", "ShortNamesConflict", &|name| others.has_resource(group, name));
    settle("kind", "KindConflict", &|name| others.has_kind(group, name));
    settle("listKind", "ListKindConflict", &|name| others.has_kind(group, name));
    settle("categories", "", &|_| false);
    let mut new = definition.clone();
    new["status"]["acceptedNames"] = accepted;
    match conflict {
        None => {
            set_condition(&mut new, "NamesAccepted", true, "NoConflicts", "no conflicts found");
            set_condition(
                &mut new,
                "Established",
                true,
                "InitialNamesAccepted",
                "the initial names have been accepted",
            );
        }
        Some((reason, message)) => {
            set_condition(&mut new, "NamesAccepted", false, &reason, &message);
            // What was established once stays so, with the names that it had.
            if !super::is_true(definition, "Established") {
                set_condition(&mut new, "Established", false, "NotAccepted", "not all names are accepted");
            }
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(name: &str, kind: &str, short: &[&str]) -> Value {
        json!({"spec": {"group": "e.x", "names": {"plural": name, "singular": kind.to_lowercase(), "kind": kind,
            "listKind": format!("{kind}List"), "shortNames": short}}})
    }

    #[test]
    fn who_comes_first_has_the_name() {
        let settled = settle(&[definition("xs", "X", &["x1"]), definition("ys", "Y", &["x1"])]);
        assert_eq!(settled[0]["status"]["conditions"][1]["status"], "True");
        assert_eq!(settled[0]["status"]["acceptedNames"]["shortNames"], json!(["x1"]));
        let conditions = &settled[1]["status"]["conditions"];
        assert_eq!(conditions[0]["reason"], "ShortNamesConflict");
        assert_eq!(conditions[0]["message"], "\"x1\" is already in use");
        assert_eq!(conditions[1]["status"], "False");
        assert_eq!(settle(&settled), settled, "settled is settled");
    }
}
