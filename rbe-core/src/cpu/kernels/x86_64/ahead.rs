//! What makes a processor read ahead of a kernel.

use crate::cpu::kernels::generic::attention::LINE;
use crate::cpu::layout::planes::Line;
use std::arch::x86_64::*;

/// Bytes of a page, at whose end processors read ahead no further.
const PAGE: usize = 4096;

/// Reads a line, so that the processor, which sees that lines are read one after another, reads those behind it ahead; and with the
/// first of a page asks for the first of the next.
///
/// Asking for every line ahead takes longer than asking for none: such requests are dropped where many wait.
#[inline(always)]
pub(super) fn look_at(line: &[f32; LINE]) {
    // SAFETY: a number of the line; and what is asked for is not read.
    unsafe {
        line.as_ptr().read_volatile();
        if line.as_ptr().addr() % PAGE < size_of_val(line) {
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_byte_add(PAGE).cast());
        }
    }
}

/// Planes whose lines are asked for ahead, and how many lines ahead: with fewer planes the processor reads ahead by itself, with more,
/// which take more time to multiply, not far enough.
const FROM_PLANES: usize = 3;
const LINES_AHEAD: usize = 32;

/// Asks for what lies some way after line `n` of a tile of planes, where it has such a line and that helps.
#[inline(always)]
pub(super) fn ask_ahead<const PLANES: usize>(tile: &[Line; PLANES], n: usize) {
    if PLANES >= FROM_PLANES && n < PLANES {
        // SAFETY: what is asked for is not read.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(&tile[n]).wrapping_add(LINES_AHEAD).cast()) }
    }
}
