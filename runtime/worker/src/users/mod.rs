//! Users of pods' own: who gets them, which of the machine's they are, and the namespaces that go with them.

mod policy;
mod ranges;
mod ready;

pub use policy::UserNamespacePolicy;
pub(crate) use policy::own;
pub(crate) use ranges::Ranges;
pub(crate) use ready::{Home, Homes, keep, possible};
