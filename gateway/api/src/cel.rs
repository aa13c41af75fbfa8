//! CEL: the expressions of validation rules, policies and match conditions.
//!
//! `kube-cel` parses, and brings Kubernetes' functions. Programs are evaluated here, because an expression comes from a
//! client: each step costs, and an evaluation whose cost goes over its budget ends.

mod builtin;
mod check;
mod compile;
mod eval;
mod value;

use std::fmt;

pub use builtin::structural_of;
pub use check::{mistake, steps, undefined_fields};
pub use compile::Program;
pub use eval::{Access, Budget, Scope, wrap as optional};
pub use kube_cel::cel::Value;
pub use value::{from_json, object, text_of, to_json, typed};

/// What one evaluation may cost, in steps.
pub const PER_CALL: u64 = 1_000_000;
/// What all evaluations for one object may cost together.
pub const PER_OBJECT: u64 = 10_000_000;

/// Why an evaluation gave no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// As cel-go words it: `no such key: a`.
    Failed(String),
    /// This evaluation went over what one may cost.
    CallCost,
    /// All evaluations together went over what they may cost.
    Budget,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(text) => f.write_str(text),
            Self::CallCost => f.write_str("operation cancelled: actual cost limit exceeded"),
            Self::Budget => f.write_str(
                "validation failed due to running out of cost budget, no further validation rules will be run",
            ),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn run(source: &str, variables: &Json) -> Result<Json, String> {
        let names: Vec<&str> = variables.as_object().unwrap().keys().map(String::as_str).collect();
        let program = Program::compile(source, &names)?;
        let root = Scope::root();
        let values: Vec<(&str, Value)> =
            variables.as_object().unwrap().iter().map(|(name, value)| (name.as_str(), from_json(value))).collect();
        let scope = root.with_all(&values);
        let mut budget = Budget::new(PER_OBJECT);
        program.evaluate(&scope, &mut budget).map(|value| to_json(&value)).map_err(|error| error.to_string())
    }

    #[test]
    fn expressions_have_kubernetes_functions_and_words() {
        let variables = json!({"self": {"a": 5, "s": "abc", "l": [1, 2, 3], "m": {"k": "v"}, "n": null, "__if__": 1}});
        for (source, expected) in [
            ("self.a > 4 ? 'big' : 'small'", json!("big")),
            ("self.l.all(x, x > 0) && self.l.exists(x, x == 3) && self.l.exists_one(x, x == 2)", json!(true)),
            ("self.l.map(x, x * 2)", json!([2, 4, 6])),
            ("self.l.filter(x, x != 2).size()", json!(2)),
            ("self.m.all(k, k == 'k')", json!(true)),
            ("'k' in self.m && !('z' in self.m) && 2 in self.l", json!(true)),
            ("has(self.a) && !has(self.zz) && self.s.startsWith('a')", json!(true)),
            ("size(self.s) + self.l[1]", json!(5)),
            ("string(self.a) + 'x'", json!("5x")),
            ("self.zz == 1 || true", json!(true)),
            ("quantity('1Gi').isGreaterThan(quantity('500M'))", json!(true)),
            ("self.s.matches('^a.c$') && self.s.find('b+') == 'b'", json!(true)),
            ("math.greatest(1, 3)", json!(3)),
            ("duration('1h') < duration('90m')", json!(true)),
            ("type(self.a) == int && type(self.s) == string", json!(true)),
            ("self.?zz.orValue(7)", json!(7)),
            ("self.?m.?k.orValue('none')", json!("v")),
            ("cel.bind(x, self.a * 2, x + x)", json!(20)),
            ("self.a == 5.0 && dyn(self.a) == 5u", json!(true)),
            ("{'a': 1}.a == 1 && [1] + [2] == [1, 2]", json!(true)),
            ("[1, 2].isSorted() && 'a,b'.split(',').join('-') == 'a-b'", json!(true)),
            ("self.n == null && self.__if__ == 1", json!(true)),
            ("-self.a + 7 % 4", json!(-2)),
        ] {
            assert_eq!(run(source, &variables), Ok(expected), "{source}");
        }
    }

    #[test]
    fn what_goes_wrong_is_told_as_by_cel_go() {
        let variables = json!({"self": {"a": 5, "l": [1]}});
        for (source, error) in [
            ("self.zz == 1", "no such key: zz"),
            ("self['x']", "no such key: x"),
            ("self.l[3]", "index out of bounds: 3"),
            ("self.a / 0", "division by zero"),
            ("self.a % 0", "modulus by zero"),
            ("self.a + 'x'", "no such overload"),
            ("9223372036854775807 + 1", "integer overflow"),
        ] {
            assert_eq!(run(source, &variables), Err(error.to_owned()), "{source}");
        }
        let text = run("other.x", &variables).unwrap_err();
        assert!(text.contains("undeclared reference to 'other'"), "{text}");
        assert!(run("self.a.nope()", &variables).unwrap_err().contains("undeclared reference to 'nope'"));
        assert!(run("self.", &variables).unwrap_err().contains("Syntax error"));
        assert!(run("Foo{a: 1}", &variables).is_err());
    }

    #[test]
    fn costly_expressions_end() {
        let list: Vec<i64> = (0..200).collect();
        let variables = json!({ "l": list });
        let source = "l.all(a, l.all(b, l.all(c, l.all(d, a + b + c + d >= 0))))";
        assert_eq!(run(source, &variables), Err(Error::CallCost.to_string()));
        let nested = format!("{}1{}", "(".repeat(5000), ")".repeat(5000));
        assert!(run(&nested, &json!({})).is_err());
        assert!(run(&"1+".repeat(100_000), &json!({})).is_err());
    }
}
