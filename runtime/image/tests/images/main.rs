//! Images through the crate's public face: archives made by code, registries that misbehave, and a real one.

mod archive;
mod disk;
mod distribution;
mod hostile;
mod import;
mod keep;
mod pull;
mod registry;
