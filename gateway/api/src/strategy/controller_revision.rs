//! `ControllerRevision`: a state that a controller may go back to.

use serde_json::Value;

use super::BASE;
use crate::field::{ErrorList, Path};
use crate::kind::Strategy;
use crate::validation::json::get;
use crate::validation::metadata::{immutable, non_negative};

/// What is peculiar to `ControllerRevision`s.
pub const STRATEGY: Strategy = Strategy {
    validate,
    validate_update: |new, old, _| {
        let mut errors = validate(new);
        errors.extend(immutable(get(new, "data"), get(old, "data"), &Path::new("data")));
        errors
    },
    ..BASE
};

fn validate(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    if get(object, "data").is_none() {
        errors.push(Path::new("data").required("data is mandatory"));
    }
    errors.extend(non_negative(object, "revision", &Path::root()));
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kind::Part;

    #[test]
    fn its_data_is_there_and_stays() {
        let texts = |errors: ErrorList| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            texts(validate(&json!({"revision": -1}))),
            [
                "data: Required value: data is mandatory",
                "revision: Invalid value: -1: must be greater than or equal to 0"
            ]
        );
        let (new, old) = (json!({"data": {"a": 2}, "revision": 2}), json!({"data": {"a": 1}, "revision": 1}));
        assert_eq!(
            texts((STRATEGY.validate_update)(&new, &old, Part::Main)),
            ["data: Invalid value: {\"a\":2}: field is immutable"]
        );
    }
}
