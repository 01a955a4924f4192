//! x86-64.

use super::{LevelSpec, scalar};

mod avx2;
mod avx512;

/// Lowest first.
pub(super) const LEVELS: &[&LevelSpec] = &[&scalar::LEVEL, &avx2::LEVEL, &avx512::LEVEL];
