//! Pods: their life, what may be changed of them while they run, and what their containers find.

mod debug;
mod fields;
mod life;
mod pressure;
mod refused;
mod resize;
mod restart_all;
mod runtimes;
mod signals;
mod users;
