//! How a pull or an import tells its watcher how far it is.

use crate::pull::Steps;

/// Receives the steps of one pull or import. Methods are called often and must return quickly.
pub trait Progress: Send + Sync {
    /// The manifest is known: these layers make the image, lowest first. An import of several images calls it for each.
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
    /// Bytes that have arrived and are being unpacked, of [`LayerPart::size`].
    Bytes(u64),
    /// Was here before.
    Present,
    /// Verified and in place.
    Done,
}

/// Turns states into the calls that a watcher has not had yet.
pub(crate) struct Reporter<'a> {
    progress: &'a dyn Progress,
    reference: &'a str,
    shown: Steps,
}

impl<'a> Reporter<'a> {
    pub fn new(progress: &'a dyn Progress, reference: &'a str) -> Self {
        Self { progress, reference, shown: Steps::new() }
    }

    pub fn show(&mut self, steps: &Steps) {
        let same_layers = steps.iter().map(|(part, _)| part).eq(self.shown.iter().map(|(part, _)| part));
        if !same_layers {
            let parts: Vec<LayerPart> = steps.iter().map(|(part, _)| part.clone()).collect();
            self.progress.resolved(self.reference, &parts);
            self.shown = parts.into_iter().map(|part| (part, None)).collect();
        }
        for ((part, step), (_, shown)) in steps.iter().zip(&mut self.shown) {
            if step != shown
                && let Some(step) = step
            {
                self.progress.layer(&part.digest, *step);
                *shown = Some(*step);
            }
        }
    }
}
