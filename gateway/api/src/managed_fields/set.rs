//! Sets of fields: `FieldsV1` as a trie, and what is done with such sets.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::element::Element;

/// A set of paths. That a path is in it says nothing of the paths above or below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    members: BTreeSet<Element>,
    /// Never holds an empty set.
    children: BTreeMap<Element, Set>,
}

impl Set {
    /// The set of these paths of fields.
    pub fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            set.insert(&path.iter().map(|name| Element::field(name)).collect::<Vec<_>>());
        }
        set
    }

    /// Adds a path. The empty one, the whole object, is owned by nobody.
    pub fn insert(&mut self, path: &[Element]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            // Most paths lead to where others have led before.
            [first, rest @ ..] => match self.children.get_mut(first) {
                Some(child) => child.insert(rest),
                None => self.children.entry(first.clone()).or_default().insert(rest),
            },
        }
    }

    /// Whether there is no path in it.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.is_empty()
    }

    /// Whether this path is in it.
    pub fn has(&self, path: &[Element]) -> bool {
        match path {
            [] => false,
            [last] => self.members.contains(last),
            [first, rest @ ..] => self.children.get(first).is_some_and(|child| child.has(rest)),
        }
    }

    /// The steps that are paths of their own.
    pub fn members(&self) -> &BTreeSet<Element> {
        &self.members
    }

    /// The steps that lead further.
    pub fn children(&self) -> &BTreeMap<Element, Set> {
        &self.children
    }

    /// What is below a step.
    pub fn child(&self, element: &Element) -> Option<&Set> {
        self.children.get(element)
    }

    /// Paths in either.
    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        if other.is_empty() {
            return self;
        }
        if self.is_empty() {
            return other.clone();
        }
        self.members.extend(other.members.iter().cloned());
        for (element, theirs) in &other.children {
            match self.children.get_mut(element) {
                Some(ours) => *ours = std::mem::take(ours).union(theirs),
                None => {
                    self.children.insert(element.clone(), theirs.clone());
                }
            }
        }
        self
    }

    /// Paths in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        if self.is_empty() || other.is_empty() {
            return Self::default();
        }
        Self::build(
            self.members.intersection(&other.members).cloned(),
            self.children
                .iter()
                .filter_map(|(element, ours)| Some((element.clone(), ours.intersection(other.children.get(element)?)))),
        )
    }

    /// Paths that aren't in the other; what is below those stays.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.subtract(other);
        rest
    }

    /// Takes out the paths of the other; what is below those stays.
    pub fn subtract(&mut self, other: &Self) {
        for member in &other.members {
            self.members.remove(member);
        }
        self.subtract_below(other, Self::subtract);
    }

    /// Takes out the paths of the other and what is below those.
    pub fn subtract_recursively(&mut self, other: &Self) {
        for member in &other.members {
            self.members.remove(member);
            self.children.remove(member);
        }
        self.subtract_below(other, Self::subtract_recursively);
    }

    fn subtract_below(&mut self, other: &Self, subtract: fn(&mut Self, &Self)) {
        for (element, theirs) in &other.children {
            if let Some(ours) = self.children.get_mut(element) {
                subtract(ours, theirs);
                if ours.is_empty() {
                    self.children.remove(element);
                }
            }
        }
    }

    /// Adds a step: as a path of its own if it is a `member`, and with what is `below` it.
    pub(super) fn put(&mut self, element: Element, member: bool, below: Self) {
        match (member, below.is_empty()) {
            (true, true) => drop(self.members.insert(element)),
            (true, false) => {
                self.members.insert(element.clone());
                self.children.insert(element, below);
            }
            (false, false) => drop(self.children.insert(element, below)),
            (false, true) => {}
        }
    }

    /// Builds a set of parts; empty children are left out.
    pub(super) fn build(
        members: impl Iterator<Item = Element>,
        children: impl Iterator<Item = (Element, Self)>,
    ) -> Self {
        Self { members: members.collect(), children: children.filter(|(_, child)| !child.is_empty()).collect() }
    }

    /// All paths, those of a level before those below it.
    pub fn paths(&self) -> Vec<Vec<Element>> {
        fn collect(set: &Set, prefix: &mut Vec<Element>, paths: &mut Vec<Vec<Element>>) {
            for member in &set.members {
                prefix.push(member.clone());
                paths.push(prefix.clone());
                prefix.pop();
            }
            for (element, child) in &set.children {
                prefix.push(element.clone());
                collect(child, prefix, paths);
                prefix.pop();
            }
        }
        let mut paths = Vec::new();
        collect(self, &mut Vec::new(), &mut paths);
        paths
    }

    /// Reads `fieldsV1`.
    pub fn from_json(fields: &Value) -> Result<Self, String> {
        let Value::Object(fields) = fields else { return Err("fieldsV1 must be an object".to_owned()) };
        Ok(Self::read(fields)?.0.unwrap_or_default())
    }

    /// What is below, and whether the object itself is in the set.
    fn read(fields: &Map<String, Value>) -> Result<(Option<Self>, bool), String> {
        let (mut set, mut is_member) = (Self::default(), false);
        for (key, below) in fields {
            if key == "." {
                is_member = true;
                continue;
            }
            let Some(element) = Element::parse(key)? else { continue };
            let Value::Object(below) = below else { return Err(format!("{key} must be an object")) };
            let (child, child_is_member) = Self::read(below)?;
            if child_is_member {
                set.members.insert(element.clone());
            }
            if let Some(child) = child {
                set.children.insert(element, child);
            }
        }
        if set.is_empty() { Ok((None, true)) } else { Ok((Some(set), is_member)) }
    }

    /// Writes `fieldsV1`.
    pub fn to_json(&self) -> Value {
        let mut fields = Map::new();
        let steps: BTreeSet<&Element> = self.members.iter().chain(self.children.keys()).collect();
        for element in steps {
            let value = match (self.children.get(element), self.members.contains(element)) {
                (None, _) => json!({}),
                (Some(child), false) => child.to_json(),
                (Some(child), true) => {
                    let mut with_self = Map::new();
                    with_self.insert(".".to_owned(), json!({}));
                    if let Value::Object(below) = child.to_json() {
                        with_self.extend(below);
                    }
                    Value::Object(with_self)
                }
            };
            fields.insert(element.serialize(), value);
        }
        Value::Object(fields)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(json: &Value) -> Set {
        Set::from_json(json).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    #[test]
    fn fields_v1_reads_and_writes_back_sorted() {
        let json = json!({"f:spec": {"f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}},
            "f:metadata": {"f:finalizers": {"v:\"e.x/a\"": {}}}, "f:data": {}, "x:future": {}});
        let written = set(&json).to_json();
        assert_eq!(
            written.to_string(),
            "{\"f:data\":{},\"f:metadata\":{\"f:finalizers\":{\"v:\\\"e.x/a\\\"\":{}}},\
            \"f:spec\":{\"f:ports\":{\".\":{},\"k:{\\\"port\\\":80,\\\"protocol\\\":\\\"TCP\\\"}\":{\".\":{},\"f:port\":{}}}}}"
        );
        for wrong in [json!(1), json!({"nocolon": {}}), json!({"k:1": {}}), json!({"v:x": {}}), json!({"i:x": {}})] {
            assert!(Set::from_json(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn difference_keeps_what_is_below_and_the_recursive_one_does_not() {
        let all = set(&json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let a = set(&json!({"f:a": {}}));
        assert_eq!(all.difference(&a).to_json(), json!({"f:a": {"f:b": {}}, "f:c": {}}));
        let mut rest = all.clone();
        rest.subtract_recursively(&a);
        assert_eq!(rest.to_json(), json!({"f:c": {}}));
        assert_eq!(all.intersection(&a), a);
        assert_eq!(all.difference(&all), Set::default());
    }

    fn any_set() -> impl Strategy<Value = Set> {
        prop::collection::vec(prop::collection::vec("[a-c]", 1..4), 0..6).prop_map(|paths| {
            let mut set = Set::default();
            for path in paths {
                set.insert(&path.into_iter().map(Element::Field).collect::<Vec<_>>());
            }
            set
        })
    }

    proptest! {
        #[test]
        fn sets_obey_the_laws(a in any_set(), b in any_set()) {
            prop_assert_eq!(&a.difference(&b).union(&a.intersection(&b)), &a);
            prop_assert_eq!(a.clone().union(&b), b.clone().union(&a));
            prop_assert_eq!(a.intersection(&b), b.intersection(&a));
            prop_assert!(a.difference(&b).intersection(&b).is_empty());
            prop_assert_eq!(&set(&a.to_json()), &a);
            prop_assert!(a.paths().iter().all(|path| a.has(path)));
        }
    }
}
