//! Which number is which field: the table of messages, read once.

use std::collections::HashMap;
use std::sync::OnceLock;

/// Messages and their fields; its head explains it.
const FIELDS: &str = include_str!("fields.txt");

/// API groups and what their messages' names begin with.
const GROUPS: [(&str, &str); 23] = [
    ("", "core"),
    ("admissionregistration.k8s.io", "admissionregistration"),
    ("apiextensions.k8s.io", "apiextensions"),
    ("apidiscovery.k8s.io", "apidiscovery"),
    ("apiregistration.k8s.io", "apiregistration"),
    ("apps", "apps"),
    ("authentication.k8s.io", "authentication"),
    ("authorization.k8s.io", "authorization"),
    ("autoscaling", "autoscaling"),
    ("batch", "batch"),
    ("certificates.k8s.io", "certificates"),
    ("coordination.k8s.io", "coordination"),
    ("discovery.k8s.io", "discovery"),
    ("events.k8s.io", "events"),
    ("flowcontrol.apiserver.k8s.io", "flowcontrol"),
    ("meta.k8s.io", "meta"),
    ("networking.k8s.io", "networking"),
    ("node.k8s.io", "node"),
    ("policy", "policy"),
    ("rbac.authorization.k8s.io", "rbac"),
    ("resource.k8s.io", "resource"),
    ("scheduling.k8s.io", "scheduling"),
    ("storage.k8s.io", "storage"),
];

/// A message and its fields.
#[derive(Default)]
pub(super) struct Message {
    pub name: &'static str,
    numbers: HashMap<u32, Field>,
    /// By the name in JSON, with the numbers of the messages that stand between (see [`Label::Inline`]).
    names: HashMap<&'static str, (Vec<u32>, Field)>,
}

impl Message {
    pub fn by_number(&self, number: u32) -> Option<&Field> {
        self.numbers.get(&number)
    }

    pub fn by_name(&self, name: &str) -> Option<(&[u32], &Field)> {
        self.names.get(name).map(|(path, field)| (path.as_slice(), field))
    }

    #[cfg(test)]
    pub fn fields(&self) -> impl Iterator<Item = &Field> {
        self.numbers.values()
    }
}

#[derive(Clone, Copy)]
pub(super) struct Field {
    pub number: u32,
    pub name: &'static str,
    pub label: Label,
    pub form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Label {
    Single,
    Repeated,
    Map,
    /// Its fields stand in the outer object.
    Inline,
}

#[derive(Clone, Copy)]
pub(super) enum Form {
    Text,
    Boolean,
    Integer,
    Double,
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// JSON inside bytes.
    Raw,
    /// A list of texts in a message of its own.
    Texts,
    /// A schema, or a list of them.
    Schemas,
    /// A schema, or a boolean.
    SchemaOrBoolean,
    /// A schema, or a list of texts.
    SchemaOrTexts,
    Message(Reference),
}

/// A message's place in the table.
#[derive(Clone, Copy)]
pub(super) struct Reference(usize);

impl Reference {
    pub fn get(self) -> &'static Message {
        &messages().all[self.0]
    }
}

/// What a custom resource's schema is written as.
pub(super) fn json_schema() -> &'static Message {
    static SCHEMA: OnceLock<&'static Message> = OnceLock::new();
    SCHEMA.get_or_init(|| named("apiextensions.v1.JSONSchemaProps").expect("the table has it"))
}

/// The message of a built-in type, or of one that all groups have (`Status`, `DeleteOptions`, …).
pub(super) fn message(api_version: &str, kind: &str) -> Option<&'static Message> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let (_, prefix) = GROUPS.iter().find(|(name, _)| *name == group)?;
    named(&format!("{prefix}.{version}.{kind}")).or_else(|| named(&format!("meta.v1.{kind}")))
}

fn named(name: &str) -> Option<&'static Message> {
    let messages = messages();
    messages.places.get(name).map(|place| &messages.all[*place])
}

struct Messages {
    all: Vec<Message>,
    places: HashMap<&'static str, usize>,
}

fn messages() -> &'static Messages {
    static MESSAGES: OnceLock<Messages> = OnceLock::new();
    MESSAGES.get_or_init(|| {
        let lines = || FIELDS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let names = lines().filter(|line| !line.contains(' '));
        let places: HashMap<&'static str, usize> = names.enumerate().map(|(place, name)| (name, place)).collect();
        let mut all: Vec<Message> = Vec::with_capacity(places.len());
        for line in lines() {
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next()) {
                (Some(name), None, _) => all.push(Message { name, ..Message::default() }),
                (Some(number), Some(name), Some(form)) => {
                    let (label, form) = parse(form, &places);
                    let message = all.last_mut().expect("a field stands below its message");
                    let number = number.parse().expect("a field begins with its number");
                    message.numbers.insert(number, Field { number, name, label, form });
                }
                _ => {}
            }
        }
        for place in 0..all.len() {
            all[place].names = names_of(&all, place, &[]);
        }
        Messages { all, places }
    })
}

/// The fields of an object in JSON, those of inlined messages included.
fn names_of(all: &[Message], place: usize, path: &[u32]) -> HashMap<&'static str, (Vec<u32>, Field)> {
    let mut names = HashMap::new();
    for field in all[place].numbers.values() {
        match (field.label, field.form) {
            (Label::Inline, Form::Message(Reference(inner))) => {
                names.extend(names_of(all, inner, &[path, &[field.number]].concat()));
            }
            _ => {
                names.insert(field.name, (path.to_vec(), *field));
            }
        }
    }
    names
}

fn parse(text: &'static str, places: &HashMap<&'static str, usize>) -> (Label, Form) {
    let (label, text) = match text.as_bytes() {
        [b'[', ..] => (Label::Repeated, &text[1..]),
        [b'{', ..] => (Label::Map, &text[1..]),
        [b'^', ..] => (Label::Inline, &text[1..]),
        _ => (Label::Single, text),
    };
    let form = match text {
        "s" => Form::Text,
        "b" => Form::Boolean,
        "i" => Form::Integer,
        "d" => Form::Double,
        "y" => Form::Bytes,
        "@time" => Form::Time,
        "@microtime" => Form::MicroTime,
        "@quantity" => Form::Quantity,
        "@intstr" => Form::IntOrString,
        "@raw" => Form::Raw,
        "@strings" => Form::Texts,
        "@schemas" => Form::Schemas,
        "@schemaorbool" => Form::SchemaOrBoolean,
        "@schemaorstrings" => Form::SchemaOrTexts,
        message => Form::Message(Reference(*places.get(message).unwrap_or_else(|| panic!("no message {message}")))),
    };
    (label, form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_somebody_else_with_a_similar_name_has_no_messages() {
        assert_eq!(message("apps/v1", "Deployment").map(|message| message.name), Some("apps.v1.Deployment"));
        assert_eq!(message("v1", "Status").map(|message| message.name), Some("meta.v1.Status"));
        assert!(message("apps.example.com/v1", "Deployment").is_none());
        assert!(message("batch/v2", "Job").is_none());
    }

    #[test]
    fn inlined_fields_are_found_by_their_names() {
        let volume = message("v1", "Pod").and(named("core.v1.Volume")).expect("in the table");
        let (path, field) = volume.by_name("emptyDir").expect("a source");
        assert_eq!((path, field.number), (&[2][..], 2));
        let rule = named("admissionregistration.v1.NamedRuleWithOperations").expect("in the table");
        assert_eq!(rule.by_name("apiGroups").expect("a field of a rule").0.len(), 2);
        for message in &messages().all {
            assert!(message.fields().count() <= message.names.len() + 1, "{} names a field twice", message.name);
        }
    }
}
