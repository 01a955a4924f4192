//! The gate of a feed-forward layer.

use super::kernels::Kernels;
use super::pool::{Pool, Shared};

/// Elements that one item of work takes.
const AT_ONCE: usize = 4096;

/// `out = silu(gate) up` with `silu(x) = x / (1 + exp(-x))`, element by element.
///
/// # Panics
/// When a slice has another length.
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32], pool: &dyn Pool) {
    let (kernels, len) = (Kernels::get(), gate.len());
    assert!(up.len() == len && out.len() == len);
    let out = Shared::new(out);
    pool.run(len.div_ceil(AT_ONCE), &|items| {
        let range = items.start * AT_ONCE..(items.end * AT_ONCE).min(len);
        // SAFETY: each item's elements are its own.
        let out = unsafe { out.part(range.clone()) };
        kernels.silu_mul(&gate[range.clone()], &up[range], out);
    });
}
