//! The workers of one image store: none of them removes what another one's pods use.

use super::{images_of, weights};
use crate::context::Context;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// All workers that have the same images. Clones are one.
#[derive(Debug, Clone)]
pub struct Tenants {
    count: u32,
    there: Arc<Mutex<Vec<Weak<Context>>>>,
}

impl Tenants {
    /// So many there will be.
    pub fn new(count: u32) -> Self {
        Self { count, there: Arc::default() }
    }

    pub(super) fn join(&self, ctx: &Arc<Context>) {
        self.there.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(ctx));
    }

    /// The names of the images that their pods use; `None` before all are there.
    pub(super) async fn used(&self) -> Option<HashSet<String>> {
        let there: Vec<Arc<Context>> = {
            let there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
            there.iter().filter_map(Weak::upgrade).collect()
        };
        if u32::try_from(there.len()).is_ok_and(|count| count < self.count) {
            return None;
        }
        let mut used = HashSet::new();
        for ctx in there {
            used.extend(images_of(&weights(&ctx).await));
        }
        Some(used)
    }
}
