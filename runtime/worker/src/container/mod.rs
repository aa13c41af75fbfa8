//! From a container of a pod's spec to the sandbox's configuration.

pub(crate) mod build;
pub(crate) mod command;
pub(crate) mod devices;
pub(crate) mod env;
pub(crate) mod env_file;
pub(crate) mod expand;
pub(crate) mod huge_pages;
pub(crate) mod mounts;
pub(crate) mod resources;
pub(crate) mod security;
pub(crate) mod service_env;
pub(crate) mod signal;
pub(crate) mod sysctls;
pub(crate) mod system;
pub(crate) mod user;

/// A configuration that cannot be carried out; the text is the container's `CreateContainerConfigError` message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ConfigError(pub String);
