//! Workers on other machines: how they join (`join.rs`), who they are (`identity.rs`), how the gateway reaches them
//! (`dial.rs`, `serve.rs`), and how their bill gets to its ledger (`deliver.rs`).

pub mod deliver;
pub mod dial;
pub mod facts;
pub mod identity;
pub mod serve;
mod tls;
pub mod token;
pub mod worker;
