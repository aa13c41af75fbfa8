//! A rule of a role (`rbac.authorization.k8s.io/v1` PolicyRule): what it allows, and whether one covers another.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Deserializer};

use super::Attributes;

/// Some verbs on some resources or paths. `*` stands for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Rule {
    #[serde(deserialize_with = "list")]
    pub verbs: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub api_groups: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub resources: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub resource_names: Vec<String>,
    #[serde(deserialize_with = "list", rename = "nonResourceURLs")]
    pub paths: Vec<String>,
}

/// A list that may be null.
fn list<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    Option::<Vec<String>>::deserialize(input).map(Option::unwrap_or_default)
}

impl Rule {
    /// Everything on all objects, and everything on all paths.
    pub fn full_authority() -> [Self; 2] {
        let all = || vec!["*".to_owned()];
        [
            Self { verbs: all(), api_groups: all(), resources: all(), ..Self::default() },
            Self { verbs: all(), paths: all(), ..Self::default() },
        ]
    }

    /// Whether it allows this.
    pub fn allows(&self, wanted: &Attributes) -> bool {
        if !has(&self.verbs, &wanted.verb) {
            return false;
        }
        if !wanted.path.is_empty() {
            return self.paths.iter().any(|pattern| path_matches(pattern, &wanted.path));
        }
        has(&self.api_groups, &wanted.group)
            && self.resources.iter().any(|resource| resource_matches(resource, wanted))
            && (self.resource_names.is_empty() || self.resource_names.contains(&wanted.name))
    }

    /// Whether whoever has this rule may do all that `other` allows. `other` comes from [`Rule::atoms`].
    fn covers(&self, other: &Self) -> bool {
        let all = |mine: &[String], theirs: &[String]| {
            mine.iter().any(|one| one == "*") || theirs.iter().all(|one| mine.contains(one))
        };
        let names = match other.resource_names.as_slice() {
            [] => self.resource_names.is_empty(),
            names => self.resource_names.is_empty() || names.iter().all(|name| self.resource_names.contains(name)),
        };
        let resource = |wanted: &String| {
            let part = wanted.split_once('/').map(|(_, part)| format!("*/{part}"));
            self.resources.iter().any(|mine| mine == "*" || mine == wanted || Some(mine) == part.as_ref())
        };
        let path = |wanted: &String| self.paths.iter().any(|mine| path_matches(mine, wanted));
        all(&self.verbs, &other.verbs)
            && all(&self.api_groups, &other.api_groups)
            && other.resources.iter().all(resource)
            && other.paths.iter().all(path)
            && names
    }

    /// How many pieces it has.
    pub(crate) fn weight(&self) -> usize {
        let of_resources = [&self.api_groups, &self.resources, &self.verbs].map(Vec::len).into_iter();
        let of_resources = of_resources.fold(self.resource_names.len().max(1), usize::saturating_mul);
        of_resources.saturating_add(self.paths.len().saturating_mul(self.verbs.len()))
    }

    /// The same in pieces: one verb on one resource (and one name), or on one path.
    fn atoms(&self) -> Vec<Self> {
        let one = |text: &String| vec![text.clone()];
        let mut atoms = Vec::new();
        for group in &self.api_groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let atom =
                        Self { verbs: one(verb), api_groups: one(group), resources: one(resource), ..Self::default() };
                    if self.resource_names.is_empty() {
                        atoms.push(atom.clone());
                    }
                    for name in &self.resource_names {
                        atoms.push(Self { resource_names: one(name), ..atom.clone() });
                    }
                }
            }
        }
        for path in &self.paths {
            for verb in &self.verbs {
                atoms.push(Self { verbs: one(verb), paths: one(path), ..Self::default() });
            }
        }
        atoms
    }

    /// As refusals of an escalation name it: `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get" "list"]}`.
    fn compact(&self) -> String {
        let parts = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.paths),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let parts = parts.iter().filter(|(_, values)| !values.is_empty());
        let parts: Vec<String> = parts.map(|(name, values)| format!("{name}:{}", quoted(values))).collect();
        format!("{{{}}}", parts.join(", "))
    }
}

/// A list of texts as Go's `%q` prints it.
pub(crate) fn quoted(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
    format!("[{}]", texts.join(" "))
}

/// What of `wanted` isn't covered by `held`: each a line of a refusal, sorted.
pub(crate) fn missing(held: &[Rule], wanted: &[Rule]) -> BTreeSet<String> {
    let atoms = wanted.iter().flat_map(Rule::atoms).filter(|atom| !held.iter().any(|rule| rule.covers(atom)));
    let mut merged: Vec<Rule> = Vec::new();
    // By group, resource and name.
    let mut places: HashMap<[Vec<String>; 3], usize> = HashMap::new();
    for atom in atoms {
        if !atom.paths.is_empty() {
            merged.push(atom);
            continue;
        }
        let key = [atom.api_groups.clone(), atom.resources.clone(), atom.resource_names.clone()];
        if let Some(place) = places.get(&key) {
            merged[*place].verbs.extend(atom.verbs);
        } else {
            places.insert(key, merged.len());
            merged.push(atom);
        }
    }
    merged.iter().map(Rule::compact).collect()
}

/// Those of `wanted` that `held` doesn't cover wholly, in pieces.
pub(crate) fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted.iter().flat_map(Rule::atoms).filter(|atom| !held.iter().any(|rule| rule.covers(atom))).collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == "*" || one == wanted)
}

/// `*`, `pods`, `pods/log`, `*/scale`
fn resource_matches(pattern: &str, wanted: &Attributes) -> bool {
    if pattern == "*" {
        return true;
    }
    match pattern.split_once('/') {
        None => wanted.subresource.is_empty() && pattern == wanted.resource,
        Some((resource, part)) => {
            !wanted.subresource.is_empty()
                && part == wanted.subresource
                && (resource == "*" || resource == wanted.resource)
        }
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(_) => path.starts_with(pattern.trim_end_matches('*')),
        None => pattern == path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(value: serde_json::Value) -> Rule {
        serde_json::from_value(value).expect("a rule")
    }

    fn wants(verb: &str, group: &str, resource: &str, name: &str) -> Attributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn the_weight_of_a_rule_is_the_number_of_its_pieces() {
        for value in [
            json!({"verbs": ["get", "list"], "apiGroups": ["", "apps"], "resources": ["a", "b", "c"]}),
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["a"], "resourceNames": ["x", "y"]}),
            json!({"verbs": ["get", "head"], "nonResourceURLs": ["/a", "/b"]}),
        ] {
            let rule = rule(value);
            assert_eq!(rule.weight(), rule.atoms().len());
        }
        let many: Vec<String> = (0..300).map(|number| number.to_string()).collect();
        let huge = json!({"verbs": many, "apiGroups": many, "resources": many, "resourceNames": many});
        assert_eq!(rule(huge).weight(), 300_usize.pow(4));
    }

    #[test]
    fn a_resource_is_not_its_subresources() {
        let pods = rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}));
        assert!(pods.allows(&wants("get", "", "pods", "p")));
        assert!(!pods.allows(&wants("get", "", "pods/log", "p")));
        assert!(!pods.allows(&wants("list", "", "pods", "")));
        assert!(!pods.allows(&wants("get", "apps", "pods", "p")));
        let scale = rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*/scale"]}));
        assert!(scale.allows(&wants("update", "apps", "deployments/scale", "d")));
        assert!(!scale.allows(&wants("update", "apps", "deployments", "d")));
        let all = rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        assert!(all.allows(&wants("get", "", "pods/log", "p")));
    }

    #[test]
    fn a_rule_with_names_allows_nothing_without_a_name() {
        let one = rule(json!({"verbs": ["*"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["one"]}));
        assert!(one.allows(&wants("get", "", "secrets", "one")));
        assert!(!one.allows(&wants("get", "", "secrets", "two")));
        assert!(!one.allows(&wants("list", "", "secrets", "")));
        assert!(!one.allows(&wants("create", "", "secrets", "")));
    }

    #[test]
    fn paths_and_objects_are_different_worlds() {
        let everything = rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        let path = |path: &str| Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() };
        assert!(!everything.allows(&path("/metrics")));
        let api = rule(json!({"verbs": ["get"], "nonResourceURLs": ["/api/*", "/version"]}));
        assert!(api.allows(&path("/api/v1")) && api.allows(&path("/version")));
        assert!(!api.allows(&path("/api")) && !api.allows(&path("/version/")) && !api.allows(&path("/metrics")));
    }

    #[test]
    fn what_is_missing_is_listed_per_resource() {
        let held = [rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "*/status"]}))];
        let wanted = [
            rule(json!({"verbs": ["get", "list", "delete"], "apiGroups": [""], "resources": ["pods", "pods/status"]})),
            rule(json!({"verbs": ["get"], "nonResourceURLs": ["/metrics"]})),
        ];
        let found: Vec<_> = missing(&held, &wanted).into_iter().collect();
        assert_eq!(
            found,
            [
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["list" "delete"]}"#,
                r#"{APIGroups:[""], Resources:["pods/status"], Verbs:["list" "delete"]}"#,
                r#"{NonResourceURLs:["/metrics"], Verbs:["get"]}"#,
            ]
        );
        assert!(missing(&Rule::full_authority(), &wanted).is_empty());
    }

    #[test]
    fn a_rule_for_names_does_not_cover_one_for_all() {
        let named = [rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]}))];
        let all = [rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}))];
        assert_eq!(missing(&named, &all).len(), 1);
        assert!(missing(&all, &named).is_empty());
        let star = [rule(json!({"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]}))];
        assert_eq!(missing(&all, &star).len(), 1, "a star covers what is still to come");
    }
}
