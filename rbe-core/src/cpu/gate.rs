//! The gate of a feed-forward layer.

use super::kernels::Kernels;
use super::pool::{Pool, Shared};

/// Elements that one item of work takes.
const AT_ONCE: usize = 4096;

/// Elements of which a function that is called for each takes as long as it takes a thread to begin.
const OF_A_FUNCTION: usize = 256;

/// `out = f(gate)`, or `f(gate) up` where there is an `up`, element by element.
///
/// # Panics
/// When a slice has another length.
pub fn gate_by(
    f: &(dyn Fn(f32) -> f32 + Sync),
    gate: &[f32],
    up: Option<&[f32]>,
    out: &mut [f32],
    pool: &dyn Pool,
) {
    let len = gate.len();
    assert!(up.is_none_or(|up| up.len() == len) && out.len() == len);
    let out = Shared::new(out);
    pool.run(len.div_ceil(OF_A_FUNCTION), &|items| {
        let range = items.start * OF_A_FUNCTION..(items.end * OF_A_FUNCTION).min(len);
        // SAFETY: each item's elements are its own.
        let out = unsafe { out.part(range.clone()) };
        out.iter_mut().zip(&gate[range.clone()]).for_each(|(out, gate)| *out = f(*gate));
        if let Some(up) = up {
            out.iter_mut().zip(&up[range]).for_each(|(out, up)| *out *= up);
        }
    });
}

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
