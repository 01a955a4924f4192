//! Segments of one length, one after another.

use super::EDGE;

/// What a kernel may read beyond the elements.
pub(in crate::cpu) const STRIP_OVERREAD: usize = 8;

/// As many segments as have [`EDGE`] elements together, each of which is transformed by itself, and the room that takes.
pub(in crate::cpu) struct Strip {
    pub elements: [f32; EDGE + STRIP_OVERREAD],
    pub scratch: [f32; EDGE + STRIP_OVERREAD],
}

impl Strip {
    pub(in crate::cpu) const ZERO: Self =
        Self { elements: [0.0; EDGE + STRIP_OVERREAD], scratch: [0.0; EDGE + STRIP_OVERREAD] };
}
