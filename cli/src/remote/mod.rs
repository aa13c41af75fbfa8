//! Workers on other machines: how they join (`token.rs`), who they are (`identity.rs`), how the gateway reaches them
//! (`dial.rs`, `serve.rs`), how their bill gets to its ledger (`deliver.rs`), and what may be on it (`bindings.rs`).

pub mod bindings;
pub mod deliver;
pub mod dial;
pub mod facts;
pub mod identity;
pub mod serve;
mod tls;
pub mod token;
pub mod worker;
