//! Images: registries, a content store, layers unpacked for overlay, and what an image says about how to run it.
//!
//! [`Images`] is a directory of unpacked layers and image records that several processes may have open at once.
//! [`Images::pull`] and [`Images::import`] fill it, [`Images::get`] answers what is there, [`Images::collect_garbage`]
//! removes what nothing names and nobody uses. An [`Image`] in hand keeps its own layers from being collected.

mod access;
mod config;
mod credential;
mod digest;
mod document;
mod error;
mod flight;
#[doc(hidden)]
pub mod fuzzing;
mod image;
mod images;
mod import;
mod layer;
mod merged;
mod progress;
mod pull;
mod reference;
mod registry;
mod store;
mod user;

pub use config::{Limits, Registry, RegistryConfig};
pub use credential::{Credential, covers, docker_config_json};
pub use error::Error;
pub use image::{Image, ImageConfig, ImageSummary, ImageUser, Lease};
pub use images::{Collected, Images};
pub use progress::{LayerPart, LayerStep, Progress};
pub use reference::Reference;
