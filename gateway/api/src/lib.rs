//! Kubernetes resources as data: kinds, schemas, defaults, validation, patches.
//!
//! A built-in resource is one row of one table ([`kinds`]); the machinery here works on JSON values driven by that row
//! and its schema, so that nothing is written once per kind that could be written once.

pub mod apply;
pub mod cel;
pub mod custom;
pub mod decode;
pub mod discovery;
pub mod field;
pub mod host_port;
pub mod intern;
pub mod kind;
pub mod kinds;
pub mod managed_fields;
pub mod openapi;
pub mod patch;
pub mod placement;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod strategy;
pub mod support;
pub mod table;
pub mod validation;
