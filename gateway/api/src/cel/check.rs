//! Expressions against the schemas of their variables: a field that a schema doesn't have is a mistake that shows before
//! anything is evaluated.
//!
//! Only what is certain is told. Of what functions give, nothing is known here, and everything may be done with it.

use kube_cel::cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use kube_cel::cel::parser::Parser;

use super::value::escape;
use crate::custom::{Additional, Structural};

/// Types of schemas that have no fields, and their names in expressions.
const SIMPLE: [(&str, &str); 4] = [("boolean", "bool"), ("integer", "int"), ("number", "double"), ("string", "string")];

/// What is wrong with a rule about these variables, as cel-go words it. It must be one that compiles.
pub fn mistake(source: &str, variables: &[(&str, &Structural)]) -> Option<String> {
    let parsed = parse(source)?;
    let mut checker = Checker::of(source, variables);
    let outcome = checker.look(&parsed);
    let of_literal = matches!(&parsed.expr, Expr::Literal(literal) if !matches!(literal, LiteralValue::Boolean(_)));
    if let Some(first) = checker.mistakes.into_iter().next() {
        return Some(format!("compilation failed: {first}"));
    }
    let no_boolean = outcome.is_some_and(|schema| !matches!(schema.type_.as_str(), "" | "boolean"));
    (of_literal || no_boolean).then(|| "cel expression must evaluate to a bool".to_owned())
}

/// Where an expression reaches for fields that the schemas of its variables don't have, as cel-go words it.
pub fn undefined_fields(source: &str, variables: &[(&str, &Structural)]) -> Vec<String> {
    let mut checker = Checker::of(source, variables);
    if let Some(parsed) = parse(source) {
        checker.look(&parsed);
    }
    checker.mistakes
}

/// How many steps a rule takes at most, roughly: each loop goes through the longest list that its schema allows. Lists of which
/// nothing is known are as long as `unknown`.
pub fn steps(source: &str, variables: &[(&str, &Structural)], unknown: f64) -> f64 {
    let mut checker = Checker { unknown, ..Checker::of(source, variables) };
    if let Some(parsed) = parse(source) {
        checker.look(&parsed);
    }
    checker.steps
}

/// The largest request, in bytes: no list has more in it.
const REQUEST_SIZE: f64 = 3.0 * 1024.0 * 1024.0;

/// How many entries a list or map of a schema may have.
fn most_entries(of: &Structural) -> f64 {
    let limit = |name: &str| of.rest.get(name).and_then(serde_json::Value::as_f64);
    match (&of.items, &of.additional) {
        (Some(items), _) => limit("maxItems").unwrap_or_else(|| {
            // The fewest bytes that an entry takes, with a comma.
            REQUEST_SIZE
                / match items.type_.as_str() {
                    "boolean" => 5.0,
                    "string" | "object" | "array" => 3.0,
                    _ => 2.0,
                }
        }),
        (None, Some(_)) => limit("maxProperties").unwrap_or(REQUEST_SIZE / 8.0),
        (None, None) => 1.0,
    }
}

fn parse(source: &str) -> Option<IdedExpr> {
    Parser::default().enable_optional_syntax(true).parse(source).ok()
}

/// A schema; none where nothing is known.
type Known<'a> = Option<&'a Structural>;

struct Checker<'a> {
    source: &'a str,
    /// Names and what they stand for, the innermost last.
    known: Vec<(String, Known<'a>)>,
    mistakes: Vec<String>,
    /// How often what is looked at is evaluated, and the sum of all that was looked at.
    times: f64,
    steps: f64,
    /// How long a list is of which nothing is known.
    unknown: f64,
}

impl<'a> Checker<'a> {
    fn of(source: &'a str, variables: &[(&str, &'a Structural)]) -> Self {
        let known = variables.iter().map(|(name, schema)| ((*name).to_owned(), Some(*schema))).collect();
        Self { source, known, mistakes: Vec::new(), times: 1.0, steps: 0.0, unknown: 1.0 }
    }

    fn look(&mut self, expr: &IdedExpr) -> Known<'a> {
        self.steps += self.times;
        match &expr.expr {
            Expr::Ident(name) => {
                self.known.iter().rev().find(|(known, _)| known == name).and_then(|(_, schema)| *schema)
            }
            Expr::Select(select) => {
                let of = self.look(&select.operand)?;
                let found = self.field(of, &select.field);
                found.filter(|_| !select.test)
            }
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                for item in &list.elements {
                    self.look(item);
                }
                None
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.look(&entry.key);
                        self.look(&entry.value);
                    }
                }
                None
            }
            Expr::Comprehension(fold) => {
                let range = self.look(&fold.iter_range);
                let (keys, values) = (range.and_then(|range| range.items.as_deref()), range.and_then(element));
                self.look(&fold.accu_init);
                let before = self.known.len();
                match &fold.iter_var2 {
                    None => self.known.push((fold.iter_var.clone(), keys)),
                    Some(second) => {
                        self.known.push((fold.iter_var.clone(), None));
                        self.known.push((second.clone(), values));
                    }
                }
                self.known.push((fold.accu_var.clone(), None));
                let outside = self.times;
                self.times *= range.map_or(self.unknown, most_entries);
                self.look(&fold.loop_cond);
                self.look(&fold.loop_step);
                self.times = outside;
                self.look(&fold.result);
                self.known.truncate(before);
                None
            }
            Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => None,
        }
    }

    fn call(&mut self, call: &CallExpr) -> Known<'a> {
        let is_bind = call.func_name == "bind"
            && matches!(call.target.as_deref(), Some(IdedExpr { expr: Expr::Ident(name), .. }) if name == "cel");
        if let (true, [IdedExpr { expr: Expr::Ident(name), .. }, init, body]) = (is_bind, call.args.as_slice()) {
            let bound = self.look(init);
            self.known.push((name.clone(), bound));
            let outcome = self.look(body);
            self.known.pop();
            return outcome;
        }
        if let Some(target) = &call.target {
            self.look(target);
        }
        // The second operand of an optional selection is a name.
        let operands = if call.func_name == operators::OPT_SELECT { 1 } else { call.args.len() };
        let known: Vec<Known<'a>> = call.args.iter().take(operands).map(|arg| self.look(arg)).collect();
        let of = known.first().copied().flatten();
        of.filter(|_| call.func_name == operators::INDEX).and_then(element)
    }

    /// The schema of a field. Says so if there is none.
    fn field(&mut self, of: &'a Structural, name: &str) -> Known<'a> {
        if of.int_or_string || of.rest.contains_key("format") {
            return None;
        }
        if let Some((_, simple)) = SIMPLE.iter().find(|(type_, _)| *type_ == of.type_) {
            self.tell(name, &format!("type '{simple}' does not support field selection"));
            return None;
        }
        let found = of.properties.iter().find(|(known, _)| escape(known).as_deref() == Some(name));
        match (found, &of.additional) {
            (Some((_, schema)), _) => Some(schema),
            (None, Some(Additional::Schema(schema))) => Some(schema),
            (None, None) if of.type_ == "object" && !of.properties.is_empty() && !of.preserve_unknown => {
                let of_every_object = of.embedded && matches!(name, "apiVersion" | "kind" | "metadata");
                if !of_every_object {
                    self.tell(name, &format!("undefined field '{name}'"));
                }
                None
            }
            _ => None,
        }
    }

    /// Notes a mistake where a field is selected.
    fn tell(&mut self, field: &str, what: &str) {
        let at = self.source.find(&format!(".{field}")).unwrap_or(0);
        let line = self.source[..at].matches('\n').count();
        let column = at - self.source[..at].rfind('\n').map_or(0, |end| end + 1);
        let shown = self.source.lines().nth(line).unwrap_or_default();
        let dots = ".".repeat(column);
        self.mistakes.push(format!("ERROR: <input>:{}:{}: {what}\n | {shown}\n | {dots}^", line + 1, column + 1));
    }
}

/// What a list or a map holds.
fn element(of: &Structural) -> Known<'_> {
    match (&of.items, &of.additional) {
        (Some(items), _) => Some(items),
        (None, Some(Additional::Schema(schema))) => Some(schema),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(source: &str) -> Option<String> {
        let schema = Structural::read(&json!({"type": "object", "properties": {
            "n": {"type": "integer"}, "s": {"type": "string"}, "a-b": {"type": "boolean"}, "any": {"type": "object",
                "x-kubernetes-preserve-unknown-fields": true}, "port": {"x-kubernetes-int-or-string": true},
            "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"k": {"type": "string"}}}},
            "l": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}}}}));
        mistake(source, &[("self", &schema), ("oldSelf", &schema)])
    }

    #[test]
    fn fields_that_there_are_may_be_used() {
        for right in [
            "self.n > 1 && self.s.startsWith('a') && self.a__dash__b",
            "self.l.all(x, x.name != '') && self.l[0].name == 'x'",
            "self.m.key.k == 'x' && self.m['key'].k == 'x' && self.m.all(key, self.m[key].k == '')",
            "self.any.thing.more == 1 || self.port == 'x' || oldSelf.n == self.n",
            "cel.bind(first, self.l[0], first.name == 'x')",
            "has(self.s) ? self.?s.orValue('') == '' : true",
            "self.l.map(x, x.name).exists(name, name.size() > 1)",
            "self.a__dash__b",
        ] {
            assert_eq!(told(right), None, "{right}");
        }
    }

    #[test]
    fn fields_that_there_are_not_are_told_where_they_stand() {
        assert_eq!(
            told("self.nope > 1").as_deref(),
            Some("compilation failed: ERROR: <input>:1:5: undefined field 'nope'\n | self.nope > 1\n | ....^")
        );
        for wrong in [
            "has(self.nope)",
            "self.l.all(x, x.nope == '')",
            "self.l[0].nope == ''",
            "self.m['a'].nope == ''",
            "cel.bind(first, self.l[0], first.nope == 'x')",
            "self.n == 1 || oldSelf.nope == 2",
        ] {
            assert!(told(wrong).is_some_and(|text| text.contains("undefined field 'nope'")), "{wrong}");
        }
        assert!(
            told("self.s.x == 1").is_some_and(|text| text.contains("type 'string' does not support field selection"))
        );
    }

    #[test]
    fn a_loop_costs_as_much_as_its_own_list_is_long() {
        let items = json!({"type": "object", "properties": {"name": {"type": "string"}}});
        let schema = Structural::read(&json!({"type": "object", "properties": {
            "short": {"type": "array", "maxItems": 64, "items": items}, "long": {"type": "array", "items": items}}}));
        let steps = |source: &str| steps(source, &[("self", &schema)], 1e6);
        let pairs = |list: &str| format!("self.{list}.all(a, self.{list}.exists_one(b, a.name == b.name))");
        let short = steps(&pairs("short"));
        assert!(short > 4096.0 && short < 200_000.0, "{short}");
        assert!(steps(&pairs("long")) > 1e12);
        assert!(steps("self.short.map(a, a.name).all(a, a == '')") > 1e6, "what functions give may be long");
    }

    #[test]
    fn a_rule_is_true_or_false() {
        for wrong in ["self.n", "1", "'x'", "self.l[0].name"] {
            assert_eq!(told(wrong).as_deref(), Some("cel expression must evaluate to a bool"), "{wrong}");
        }
    }
}
