//! The kinds that are served at this moment, with the documents that describe them. Both change together when a
//! CustomResourceDefinition does; a request sees one state from its beginning to its end.

use std::sync::{Arc, PoisonError, RwLock};

use carob_api::kind::Kind;
use carob_api::kinds::Registry;

use crate::discovery::Documents;

/// One state.
pub(crate) struct Served {
    pub registry: Arc<Registry>,
    pub documents: Documents,
}

/// The present state.
pub(crate) struct Live {
    now: RwLock<Arc<Served>>,
}

impl Live {
    /// The built-in kinds and these.
    pub fn builtin(optional: &[&'static Kind]) -> Self {
        let registry = match optional {
            [] => Arc::clone(Registry::builtin()),
            optional => Arc::new(Registry::with(optional, [])),
        };
        Self { now: RwLock::new(Served::of(registry)) }
    }

    /// What is served now.
    pub fn now(&self) -> Arc<Served> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on what describes the same kinds is made anew.
    pub fn renew(&self) {
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        *now = Served::of(Arc::clone(&now.registry));
    }

    /// From now on these are served.
    pub fn set(&self, registry: Registry) {
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Served::of(Arc::new(registry));
    }
}

impl Served {
    fn of(registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(Self { registry, documents: Documents::default() })
    }
}
