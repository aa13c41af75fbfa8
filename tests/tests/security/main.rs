//! What a hostile pod, manifest, image or client would try, and that it comes to nothing.
//!
//! Each test starts one Carob and lets everything of one kind loose on it. Where an attack needs something on the machine
//! to reach for, it is a [`bait::Bait`] of the test's own: nothing here would do harm if it succeeded.

mod api_access;
mod api_input;
mod bait;
mod bundle;
mod escapes;
mod exhaustion;
mod images;
mod layout;
mod mounts;
mod neighbours;
mod services;
mod tls;
mod volumes;
