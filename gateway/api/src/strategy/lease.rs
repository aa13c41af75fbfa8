//! (first version)

use super::BASE;
use crate::kind::Strategy;

/// What is peculiar to this kind.
pub const STRATEGY: Strategy = Strategy { ..BASE };
