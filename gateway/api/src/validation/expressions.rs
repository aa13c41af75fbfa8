//! Expressions in objects: whether they compile, and what comes out of those that need nothing to be evaluated.

use crate::cel::{Budget, PER_CALL, Program, Scope, Value};
use crate::field::{ErrorList, Path};

/// What expressions about requests may use.
pub const OF_REQUESTS: &[&str] = &["object", "oldObject", "request", "authorizer"];
/// What those of admission policies may use besides.
pub const OF_POLICIES: &[&str] =
    &["object", "oldObject", "request", "authorizer", "params", "namespaceObject", "variables"];

/// What is wrong with an expression that is to give one of these types. Only what comes out of a constant is known.
pub fn errors(source: &str, variables: &[&str], types: &[&str], path: &Path) -> ErrorList {
    let program = match Program::compile(source, variables) {
        Ok(program) => program,
        Err(mistake) => return vec![path.invalid(source, format!("compilation failed: {mistake}"))],
    };
    if types.is_empty() || variables.iter().any(|name| program.uses(name)) {
        return ErrorList::new();
    }
    let Ok(value) = program.evaluate(&Scope::root(), &mut Budget::new(PER_CALL)) else { return ErrorList::new() };
    match type_of(&value) {
        Some(got) if !types.contains(&got) => {
            let wanted = if let [one] = types { (*one).to_owned() } else { format!("one of [{}]", types.join(" ")) };
            vec![path.invalid(source, format!("must evaluate to {wanted} but got {got}"))]
        }
        _ => ErrorList::new(),
    }
}

/// The name of a plain value's type.
fn type_of(value: &Value) -> Option<&'static str> {
    Some(match value {
        Value::Bool(_) => "bool",
        Value::Int(_) => "int",
        Value::UInt(_) => "uint",
        Value::Float(_) => "double",
        Value::String(_) => "string",
        Value::Bytes(_) => "bytes",
        Value::Null => "null_type",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details(source: &str, types: &[&str]) -> Vec<String> {
        errors(source, OF_REQUESTS, types, &Path::new("e")).into_iter().map(|error| error.detail).collect()
    }

    #[test]
    fn a_condition_is_true_or_false() {
        assert!(details("object.metadata.name == 'a'", &["bool"]).is_empty());
        assert!(details("true", &["bool"]).is_empty());
        assert_eq!(details("1", &["bool"]), ["must evaluate to bool but got int"]);
        assert_eq!(details("1", &["string", "null_type"]), ["must evaluate to one of [string null_type] but got int"]);
    }

    #[test]
    fn what_does_not_compile_is_refused() {
        assert!(details("nope == 1", &["bool"])[0].starts_with("compilation failed: ERROR: <input>:1:1: undeclared"));
        assert!(details("1 +", &["bool"])[0].starts_with("compilation failed: "));
    }
}
