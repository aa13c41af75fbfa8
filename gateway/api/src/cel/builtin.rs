//! Built-in kinds as expressions see them: their schemas in the form that those of custom resources have.

use crate::custom::{Additional, Structural};
use crate::kind::Kind;
use crate::schema::{Schema, Type, schema_of};

/// Deeper than any field that an expression is likely to reach for; types may contain themselves.
const DEEPEST: usize = 12;

/// The schema of a kind's objects.
pub fn structural_of(kind: &Kind) -> Structural {
    let mut object = convert(schema_of(kind), 0);
    for name in ["apiVersion", "kind"] {
        object.properties.entry(name.to_owned()).or_insert_with(|| simple("string"));
    }
    object
}

fn simple(type_: &str) -> Structural {
    Structural { type_: type_.to_owned(), ..Structural::default() }
}

fn convert(schema: &Schema, depth: usize) -> Structural {
    if depth > DEEPEST {
        return Structural::default();
    }
    let below = |schema: &Schema| Box::new(convert(schema, depth + 1));
    match schema.type_() {
        Type::Object => Structural {
            properties: schema.properties().map(|(name, field)| (name.to_owned(), *below(field))).collect(),
            ..simple("object")
        },
        Type::Map => {
            Structural { additional: schema.additional().map(|of| Additional::Schema(below(of))), ..simple("object") }
        }
        Type::Array => Structural { items: schema.items().map(below), ..simple("array") },
        Type::String => simple("string"),
        Type::Boolean => simple("boolean"),
        Type::Int32 | Type::Int64 => simple("integer"),
        Type::Double => simple("number"),
        // Times, quantities and bytes have types of their own in expressions.
        Type::IntOrString | Type::Quantity | Type::Time | Type::MicroTime | Type::Bytes | Type::Any => {
            Structural { int_or_string: true, ..Structural::default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::undefined_fields;
    use super::*;
    use crate::kinds::Registry;

    #[test]
    fn fields_of_built_in_kinds_are_known() {
        let kind = Registry::builtin().by_gvk("apps", "v1", "Deployment").unwrap();
        let object = structural_of(kind);
        let told = |source: &str| undefined_fields(source, &[("object", &object)]);
        for right in [
            "object.spec.replicas > 1 && object.metadata.labels['a'] == 'b' && object.kind == 'Deployment'",
            "object.spec.template.spec.containers.all(c, c.resources.limits.cpu == '1')",
        ] {
            assert!(told(right).is_empty(), "{right}: {:?}", told(right));
        }
        assert_eq!(
            told("object.spec.template.spec.containers.all(c, c.picture != '')"),
            ["ERROR: <input>:1:46: undefined field 'picture'\n | object.spec.template.spec.containers.all(c, \
              c.picture != '')\n | .............................................^"]
        );
    }
}
