//! Thin typed wrappers over system calls that neither std nor nix offers.

pub mod mount;
pub mod process;
