//! Pods: their life, what may be changed of them while they run, and what their containers find.

mod debug;
mod fields;
mod life;
mod pressure;
mod resize;
mod runtimes;
mod users;
