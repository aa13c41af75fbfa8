//! Pods: their life, what may be changed of them while they run, and what their containers find.

mod debug;
mod devices;
mod fields;
mod huge_pages;
mod life;
mod panic;
mod pressure;
mod refused;
mod resize;
mod restart_all;
mod runtimes;
mod signals;
mod users;
mod whole;
