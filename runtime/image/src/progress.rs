//! How a pull or an import tells its watcher how far it is.

/// Receives the steps of one pull or import. Methods are called often and from several threads: return quickly.
pub trait Progress: Send + Sync {
    /// The manifest is known: these layers make the image, lowest first.
    fn resolved(&self, reference: &str, layers: &[LayerPart]) {
        let _ = (reference, layers);
    }
    /// A layer moved on.
    fn layer(&self, digest: &str, step: LayerStep) {
        let _ = (digest, step);
    }
}

/// A watcher that looks away.
impl Progress for () {}

/// One layer of the image that is being fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerPart {
    /// The digest of the layer as it is transported (usually compressed).
    pub digest: String,
    /// Its transported size in bytes.
    pub size: u64,
}

/// Where a layer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerStep {
    /// Bytes that have arrived and are unpacked, of [`LayerPart::size`].
    Bytes(u64),
    /// Was here before.
    Present,
    /// Verified and in place.
    Done,
}
