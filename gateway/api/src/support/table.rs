//! The facts of `data/support`: what Carob carries out, by type and field. Every field of every type that is reached from
//! a served kind has a line there; a type stands in the file of the table of kinds that reaches it first.
//!
//! ```text
//! yes   FIELDS           carried out; types of such fields have lines of their own
//! all   FIELDS           carried out with everything in them
//! part  FIELD TEXT       carried out, but not fully: TEXT says what is missing
//! only  FIELD VALUES     these values are carried out, others aren't
//! kept  FIELDS           kept as it is for what one installs beside Carob, or for what refers to it: in Kubernetes too
//!                        nothing happens by the object itself (an Ingress without a controller, a CSIDriver)
//! no    FIELDS | TEXT    not carried out, and why
//! never FIELDS           refused by validation, in Kubernetes too
//! set   FIELDS           written by the system; what a client writes there isn't asked for
//! ```
//!
//! A type of `io.k8s.api` is named by the rest, any other by its whole name.

use std::collections::HashMap;
use std::sync::OnceLock;

const TEXTS: &[&str] = &[
    include_str!("../../data/support/core.txt"),
    include_str!("../../data/support/workloads.txt"),
    include_str!("../../data/support/cluster.txt"),
    include_str!("../../data/support/networking.txt"),
    include_str!("../../data/support/identity.txt"),
    include_str!("../../data/support/storage.txt"),
    include_str!("../../data/support/extension.txt"),
    include_str!("../../data/support/resource.txt"),
];

/// How far a field is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// It is, and so are the fields in it that have such a rule themselves.
    Yes,
    /// It is, with everything in it.
    All,
    /// It is, except for what the text says.
    Part(&'static str),
    /// These values are.
    Only(Vec<&'static str>),
    /// Others do it, if anybody.
    Kept,
    /// It isn't, for this reason.
    No(&'static str),
    /// An object that sets it is refused.
    Never,
    /// The system writes it.
    Set,
}

/// Rules by type and field.
pub(super) struct Table {
    rules: HashMap<String, HashMap<&'static str, Rule>>,
}

impl Table {
    pub fn get() -> &'static Self {
        static TABLE: OnceLock<Table> = OnceLock::new();
        TABLE.get_or_init(|| Self::parse(TEXTS))
    }

    /// The rule of a field; what isn't in the table isn't carried out.
    pub fn rule(&self, type_: &str, field: &str) -> &Rule {
        self.rules.get(type_).and_then(|fields| fields.get(field)).unwrap_or(&Rule::No(""))
    }

    fn parse(texts: &[&'static str]) -> Self {
        let mut rules: HashMap<String, HashMap<&'static str, Rule>> = HashMap::new();
        let mut type_ = String::new();
        for line in texts.iter().flat_map(|text| text.lines()).filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let Some(entry) = line.strip_prefix("  ") else {
                type_ = if line.starts_with("io.k8s.") { line.to_owned() } else { format!("io.k8s.api.{line}") };
                continue;
            };
            let (word, rest) = entry.split_once(' ').unwrap_or((entry, ""));
            let fields = rules.entry(type_.clone()).or_default();
            let (rest, reason) = rest.split_once(" | ").unwrap_or((rest, ""));
            let (first, tail) = rest.split_once(' ').unwrap_or((rest, ""));
            let of_one = match word {
                "part" => Some(Rule::Part(tail)),
                "only" => Some(Rule::Only(tail.split(' ').collect())),
                _ => None,
            };
            if let Some(rule) = of_one {
                fields.insert(first, rule);
                continue;
            }
            let rule = match word {
                "yes" => Rule::Yes,
                "all" => Rule::All,
                "set" => Rule::Set,
                "kept" => Rule::Kept,
                "never" => Rule::Never,
                _ => Rule::No(reason),
            };
            fields.extend(rest.split(' ').map(|field| (field, rule.clone())));
        }
        Self { rules }
    }

    #[cfg(test)]
    pub fn knows(&self, type_: &str, field: &str) -> bool {
        self.rules.get(type_).is_some_and(|fields| fields.contains_key(field))
    }

    #[cfg(test)]
    pub fn without_reason(&self) -> Vec<(&str, &'static str)> {
        let all =
            self.rules.iter().flat_map(|(type_, fields)| fields.iter().map(move |(field, rule)| (type_, field, rule)));
        all.filter(|(_, _, rule)| **rule == Rule::No("")).map(|(type_, field, _)| (type_.as_str(), *field)).collect()
    }

    #[cfg(test)]
    pub fn fields(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.rules.iter().flat_map(|(type_, fields)| fields.keys().map(move |field| (type_.as_str(), *field)))
    }
}
