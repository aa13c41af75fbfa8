//! `PodTemplate`: a template that somebody else makes pods of.

use serde_json::Value;

use super::{BASE, bump_generation, differs, first_generation, generation_differs, pod_spec};
use crate::field::Path;
use crate::kind::Strategy;
use crate::validation::{pod_warnings, template};

/// What is peculiar to `PodTemplate`s.
pub const STRATEGY: Strategy = Strategy {
    default: pod_spec::default_template,
    prepare_create: first_generation,
    prepare_update: |new, old, _| {
        let changed = differs(new, old, "/template");
        bump_generation(new, old, changed);
    },
    validate: |object| template::template(object, &Path::root()),
    validate_update: |new: &Value, _, _| template::template(new, &Path::root()),
    warns_again: generation_differs,
    warnings: |object| pod_warnings::template_at(object, &Path::root()),
    ..BASE
};
