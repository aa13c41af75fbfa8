//! Kubernetes' validation: what is wrong with an object, in the words and the order of its API server.
//!
//! Each module is one idea, and all work on the JSON of an object through the accessors of [`json`].

pub mod json;
pub mod names;
