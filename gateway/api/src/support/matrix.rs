//! The support matrix as a document.

use std::fmt::Write as _;

use super::table::{Rule, Table};
use crate::kinds;
use crate::schema::{self, Schema, Type};

const INTRODUCTION: &str = "\
# What Carob carries out

Generated from `gateway/api/data/support`; don't edit it by hand. An object that sets a field that isn't carried out
is taken, kept and answered with a `Warning` header that names the field. Fields within a field that is carried out
entirely or not at all are not listed. *Kept for others* means what Kubernetes itself doesn't carry out either: it is
there for a controller or driver that one installs, or for other objects that refer to it.

";

/// The type that several kinds hold; it is described once, in Pod.
const POD_SPEC: &str = "io.k8s.api.core.v1.PodSpec";

/// The support matrix of all served kinds in Markdown: `docs/support-matrix.md`.
pub fn matrix_markdown() -> String {
    let mut text = INTRODUCTION.to_owned();
    for kind in kinds::builtin().chain(kinds::optional()) {
        // Writing to a String doesn't fail.
        let _ = writeln!(text, "## {} ({})\n", kind.kind, kind.api_version());
        text.push_str("| field | carried out |\n|---|---|\n");
        rows(schema::schema_of(kind), "", kind.kind == "Pod", &mut text);
        let subresources: Vec<String> = kind.subresources.iter().map(|part| format!("`{}`", part.name)).collect();
        if !subresources.is_empty() {
            let _ = writeln!(text, "\nSubresources: {}.", subresources.join(", "));
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    gateway_api(&mut text);
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// The Gateway API's kinds, which are no built-in ones: a field and a word on it per line.
fn gateway_api(text: &mut String) {
    for line in include_str!("../../data/support/gateway-api.txt").lines().filter(|line| !line.starts_with('#')) {
        let Some(entry) = line.strip_prefix("  ") else {
            let _ = writeln!(text, "\n## {line}\n\n| field | carried out |\n|---|---|");
            continue;
        };
        let mut words = entry.splitn(3, ' ');
        let (word, field) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let more = words.next().map(|more| format!(": {more}")).unwrap_or_default();
        let answer = match word {
            "yes" => "yes".to_owned(),
            "part" => format!("in part{more}"),
            "set" => "written by Carob".to_owned(),
            _ => format!("**no**{more}"),
        };
        let _ = writeln!(text, "| `{field}` | {answer} |");
    }
}

fn rows(schema: &Schema, path: &str, is_pod: bool, text: &mut String) {
    let Some(name) = schema.name() else { return };
    for (field, inner) in schema.properties() {
        let path = if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
        let (element, suffix) = element(inner);
        let answer = match Table::get().rule(name, field) {
            Rule::Yes if element.name() == Some(POD_SPEC) && !is_pod => "as in Pod".to_owned(),
            Rule::Yes if element.type_() == Type::Object => {
                rows(element, &format!("{path}{suffix}"), is_pod, text);
                continue;
            }
            Rule::Yes | Rule::All => "yes".to_owned(),
            Rule::Part(missing) => format!("in part: {missing}"),
            Rule::Only(values) => format!("only `{}`", values.join("`, `")),
            Rule::Kept => "kept for others".to_owned(),
            Rule::No(reason) => format!("**no**: {reason}"),
            Rule::Never => "refused, as by Kubernetes".to_owned(),
            Rule::Set => "written by Carob".to_owned(),
        };
        let _ = writeln!(text, "| `{path}` | {answer} |");
    }
}

/// What a list or map holds, and how that is written in a path.
fn element(schema: &Schema) -> (&Schema, &'static str) {
    match (schema.items(), schema.additional()) {
        (Some(items), _) => (items, "[*]"),
        (None, Some(values)) => (values, "[*]"),
        (None, None) => (schema, ""),
    }
}
