//! Frames of kernels on cache lines.

use crate::cpu::layout::planes::Line;
use std::hint::black_box;
use std::mem::MaybeUninit;

/// Has the frame of the function that this stands in begin on a cache line.
///
/// A kernel spills registers. The compiler decides how a frame is aligned before it knows what is spilled, and where nothing else
/// wants more, to 16 bytes: spilled registers of 32 or 64 bytes then lie across two cache lines, in some calls and not in others,
/// and a kernel takes up to twice its time. A line of its own, which somebody may look at, is what wants more.
#[inline(always)]
pub(super) fn align_frame() {
    let mut line = MaybeUninit::<Line>::uninit();
    black_box(line.as_mut_ptr());
}
