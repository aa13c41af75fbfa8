//! One layer: from a stream of compressed bytes to a directory that overlay can use.

pub(crate) mod archive;
mod sparse;
mod stream;
pub(crate) mod tree;
mod unpack;
pub(crate) mod variant;

pub(crate) use stream::{Decoder, Expected, unpack_stream};
pub(crate) use unpack::Written;
