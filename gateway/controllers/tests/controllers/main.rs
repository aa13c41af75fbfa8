//! The controllers against a real API server in the same process; the tests play the nodes.

mod certificates;
mod cluster;
mod deployment;
mod event_expiry;
mod flow_schemas;
mod garbage;
mod ip_addresses;
mod job;
mod namespace;
mod scheduler;
mod volumes;
mod workloads;
