//! The controllers against a real API server in the same process; the tests play the nodes.

mod cluster;
mod deployment;
mod event_expiry;
mod garbage;
mod job;
mod namespace;
mod scheduler;
mod volumes;
mod workloads;
