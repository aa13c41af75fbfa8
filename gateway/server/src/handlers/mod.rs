//! What the verbs do, written once for all kinds.

pub(crate) mod binding;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod disruption;
pub(crate) mod eviction;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod namespace;
mod owners;
pub(crate) mod patch;
pub(crate) mod scale;
pub(crate) mod selection;
pub(crate) mod token;
pub(crate) mod update;
pub(crate) mod views;
pub(crate) mod watch;
