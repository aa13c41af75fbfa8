//! Which objects are meant: label selectors and field selectors, as texts and as objects.

mod fields;
mod labels;
mod lexer;

pub use fields::FieldSelector;
pub use labels::{LabelSelector, Operator, Requirement};
