//! Kubernetes' validation: what is wrong with an object, in the words and the order of its API server.
//!
//! Each module is one idea, and all work on the JSON of an object through the accessors of [`json`].

pub mod addresses;
pub mod amounts;
pub mod containers;
pub mod cron;
pub mod devices;
pub mod diff;
pub mod env;
pub mod expressions;
pub mod go;
pub mod json;
pub mod metadata;
pub mod names;
pub mod paths;
pub mod pod;
pub mod pod_resources;
pub mod pod_update;
pub mod pod_warnings;
pub mod probes;
pub mod resources;
pub mod scheduling;
pub mod security;
pub mod selectors;
pub mod service;
pub mod signals;
pub mod structural;
pub mod template;
pub mod volumes;
pub mod webhook;

pub use template::{binding, delete_options, eviction, scale};
