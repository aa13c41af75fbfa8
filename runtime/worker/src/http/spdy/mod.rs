//! The server's side of SPDY/3.1, as much of it as Kubernetes' streams use: kubectl before 1.31 upgrades to it, and later
//! ones send it through a WebSocket for port-forward.
//!
//! What is bounded: the length of headers, the number of streams, and per stream what waits to be read. When a stream's
//! room is used up the connection isn't read on, as with the kubelet: the other side's windows are no measure, since
//! kubectl's library neither heeds nor sends window updates. This side sends them for those who do.

mod connection;
mod frame;
mod headers;

pub(crate) use connection::{Connection, Stream, StreamReader, StreamWriter};

/// The other side doesn't keep to the protocol; the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ProtocolError(&'static str);
