//! Segments of one length, one after another.

use super::EDGE;

/// What a kernel may read beyond the elements.
const OVERREAD: usize = 8;

/// As many segments as have [`EDGE`] elements together, each of which is transformed by itself, and the room that takes.
pub(in crate::cpu) struct Strip {
    pub elements: [f32; EDGE + OVERREAD],
    pub scratch: [f32; EDGE + OVERREAD],
}

impl Strip {
    pub(in crate::cpu) const ZERO: Self =
        Self { elements: [0.0; EDGE + OVERREAD], scratch: [0.0; EDGE + OVERREAD] };
}
