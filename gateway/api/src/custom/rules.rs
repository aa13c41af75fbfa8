//! Validation rules of a schema (`x-kubernetes-validations`).

use serde_json::{Value, json};

use super::structural::{Additional, Structural};
use super::validate::{Place, correlated};
use crate::cel::{self, Budget, Error, Program, Scope};
use crate::field::{ErrorKind, ErrorList, FieldError};

/// A rule that is ready to be evaluated.
#[derive(Debug)]
pub(crate) struct Rule {
    text: String,
    program: Result<Program, String>,
    message: String,
    message_program: Option<Program>,
    reason: String,
    field_path: String,
    optional_old: bool,
    /// Whether it compares with the value before.
    pub transition: bool,
}

/// Rules of a schema and of what is below it.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    here: Vec<Rule>,
    fields: Vec<(String, Rules)>,
    element: Option<Box<Rules>>,
    additional: Option<Box<Rules>>,
}

impl Rule {
    pub fn read(rule: &Value) -> Self {
        let text = |name: &str| rule.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let names = ["self", "oldSelf"];
        let program = Program::compile(&text("rule"), &names);
        let message_expression = text("messageExpression");
        Self {
            transition: program.as_ref().is_ok_and(|program| program.uses("oldSelf")),
            program,
            text: text("rule"),
            message: text("message").trim().to_owned(),
            message_program: Program::compile(&message_expression, &names)
                .ok()
                .filter(|_| !message_expression.is_empty()),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old: rule.get("optionalOldSelf").and_then(Value::as_bool).unwrap_or(false),
        }
    }

    /// What is wrong with the rule itself.
    pub fn mistake(&self) -> Option<&str> {
        self.program.as_ref().err().map(String::as_str)
    }
}

impl Rules {
    /// The rules of a schema.
    pub fn of(schema: &Structural) -> Self {
        let rules = schema.rest.get("x-kubernetes-validations").and_then(Value::as_array);
        let below = |schema: &Structural| Some(Box::new(Self::of(schema))).filter(|rules| !rules.is_empty());
        Self {
            here: rules.into_iter().flatten().map(Rule::read).collect(),
            fields: schema
                .properties
                .iter()
                .map(|(name, field)| (name.clone(), Self::of(field)))
                .filter(|(_, rules)| !rules.is_empty())
                .collect(),
            element: schema.items.as_deref().and_then(below),
            additional: match &schema.additional {
                Some(Additional::Schema(schema)) => below(schema),
                _ => None,
            },
        }
    }

    pub fn is_empty(&self) -> bool {
        self.here.is_empty() && self.fields.is_empty() && self.element.is_none() && self.additional.is_none()
    }

    /// What the rules say of a value and of its change.
    pub(super) fn check(
        &self,
        schema: &Structural,
        value: &Value,
        old: Option<&Value>,
        at: &Place,
        budget: &mut Budget,
        errors: &mut ErrorList,
    ) {
        if budget.is_spent() || value.is_null() {
            return;
        }
        let unchanged = old == Some(value);
        if !self.here.is_empty() {
            let this = cel::typed(schema, value);
            let before = old.map(|old| cel::typed(schema, old));
            for rule in self.here.iter().filter(|rule| rule.transition || !unchanged) {
                if let Some(error) = rule.check(value, &this, before.as_ref(), at, budget) {
                    let spent = budget.is_spent();
                    errors.push(error);
                    if spent {
                        return;
                    }
                }
            }
        }
        match value {
            Value::Object(values) => {
                for (name, rules) in &self.fields {
                    if let (Some(field), Some(value)) = (schema.properties.get(name), values.get(name)) {
                        rules.check(field, value, old.and_then(|old| old.get(name)), &at.child(name), budget, errors);
                    }
                }
                if let (Some(rules), Some(Additional::Schema(field))) = (&self.additional, &schema.additional) {
                    for (name, value) in values.iter().filter(|(name, _)| !schema.properties.contains_key(*name)) {
                        let before = old.and_then(|old| old.get(name));
                        rules.check(field, value, before, &at.child(name), budget, errors);
                    }
                }
            }
            Value::Array(items) => {
                if let (Some(rules), Some(element)) = (&self.element, &schema.items) {
                    for (index, item) in items.iter().enumerate() {
                        let before = correlated(schema, item, old);
                        rules.check(element, item, before, &at.index(index), budget, errors);
                    }
                }
            }
            _ => {}
        }
    }
}

impl Rule {
    fn check(
        &self,
        value: &Value,
        this: &cel::Value,
        before: Option<&cel::Value>,
        at: &Place,
        budget: &mut Budget,
    ) -> Option<FieldError> {
        let program = self.program.as_ref().ok()?;
        let mut variables = vec![("self", this.clone())];
        match before {
            _ if self.optional_old => variables.push(("oldSelf", cel::optional(before.cloned()))),
            Some(before) => variables.push(("oldSelf", before.clone())),
            None if self.transition => return None,
            None => {}
        }
        let root = Scope::root();
        let scope = root.with_all(&variables);
        match program.evaluate(&scope, budget) {
            Ok(cel::Value::Bool(true)) => None,
            Ok(cel::Value::Bool(false)) => {
                let told = self.message_program.as_ref().and_then(|program| {
                    let text = program.evaluate(&scope, budget).ok().map(|value| cel::text_of(&value))?;
                    Some(text.trim().to_owned()).filter(|text| !text.is_empty() && !text.contains('\n'))
                });
                let detail = told.unwrap_or_else(|| match self.message.as_str() {
                    "" => format!("failed rule: {}", self.text.trim()),
                    message => message.to_owned(),
                });
                Some(self.error(value, at, detail))
            }
            Ok(_) => Some(self.failure(value, at, "rule evaluation did not return a boolean")),
            Err(error @ Error::Budget) => Some(at.error(ErrorKind::Invalid, shown_type(value), error.to_string())),
            Err(error) => Some(self.failure(value, at, &error.to_string())),
        }
    }

    fn failure(&self, value: &Value, at: &Place, why: &str) -> FieldError {
        let rule = if self.message.is_empty() { self.text.trim() } else { self.message.as_str() };
        at.error(ErrorKind::Invalid, shown_type(value), format!("{why} evaluating rule: {rule}"))
    }

    fn error(&self, value: &Value, at: &Place, detail: String) -> FieldError {
        let place = Place { field: format!("{}{}", at.field, self.field_path), name: String::new() };
        let place = Place { field: place.field.trim_start_matches('.').to_owned(), ..place };
        let whole = matches!(value, Value::Object(_) | Value::Array(_));
        let shown = value.clone();
        match self.reason.as_str() {
            "FieldValueForbidden" => place.error(ErrorKind::Forbidden, shown, detail),
            "FieldValueRequired" => place.error(ErrorKind::Required, shown, detail),
            "FieldValueDuplicate" => place.error(ErrorKind::Duplicate, shown, ""),
            _ if whole => place.error(ErrorKind::InvalidUnshown, shown, detail),
            _ => place.error(ErrorKind::Invalid, shown, detail),
        }
    }
}

fn shown_type(value: &Value) -> Value {
    json!(super::validate::type_of(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(schema: &Value, value: &Value, old: Option<&Value>) -> Vec<String> {
        let schema = Structural::read(schema);
        let mut errors = ErrorList::new();
        let mut budget = Budget::new(cel::PER_OBJECT);
        Rules::of(&schema).check(&schema, value, old, &Place::root(), &mut budget, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_speak_with_their_message_reason_and_path() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
                "a": {"type": "integer"}, "b": {"type": "integer"},
                "im": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "cannot change"}]}},
            "x-kubernetes-validations": [
                {"rule": "self.a <= self.b", "message": "a over b"},
                {"rule": "self.a != 5", "messageExpression": "self.a > 4 ? 'a is big' : 'a is small'",
                    "reason": "FieldValueForbidden", "fieldPath": ".a"},
                {"rule": "!has(self.im) || self.im.size() < 5"}]}}});
        let at = |spec: Value, old: Option<Value>| {
            errors(&schema, &json!({ "spec": spec }), old.map(|old| json!({ "spec": old })).as_ref())
        };
        assert_eq!(at(json!({"a": 2, "b": 1}), None), ["spec: Invalid value: a over b"]);
        assert_eq!(at(json!({"a": 5, "b": 9}), None), ["spec.a: Forbidden: a is big"]);
        assert_eq!(
            at(json!({"a": 1, "b": 1, "im": "toolong"}), None),
            ["spec: Invalid value: failed rule: !has(self.im) || self.im.size() < 5"]
        );
        assert_eq!(
            at(json!({"b": 1}), None)[0],
            "spec: Invalid value: \"object\": no such key: a evaluating rule: a over b"
        );
        let old = json!({"a": 1, "b": 1, "im": "x"});
        assert_eq!(
            at(json!({"a": 1, "b": 1, "im": "y"}), Some(old.clone())),
            ["spec.im: Invalid value: \"y\": cannot change"]
        );
        assert!(at(json!({"a": 1, "b": 1}), Some(old)).is_empty());
    }

    #[test]
    fn an_unchanged_value_is_not_judged_again() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "object", "properties": {"n": {"type": "integer"}},
                "x-kubernetes-validations": [{"rule": "self.n < 3"}]},
            "b": {"type": "string"}}});
        let old = json!({"a": {"n": 5}, "b": "x"});
        assert!(errors(&schema, &json!({"a": {"n": 5}, "b": "y"}), Some(&old)).is_empty());
        assert_eq!(errors(&schema, &json!({"a": {"n": 6}, "b": "y"}), Some(&old)).len(), 1);
    }
}
