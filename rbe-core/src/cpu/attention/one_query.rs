//! Attention of one query of each sequence: what a token that is written asks for.
//!
//! An item of work is a key head with a part of its keys, which all query heads that share it go through together, so that keys and
//! values are read once for them. What the parts of a head come to is put together in their order (flash-decoding; the formula is
//! that of [`attention`](super)).

use super::{Attention, Heads};
use crate::cpu::exec::Exec;
use crate::cpu::kernels::{KeyPart, PartialMix};
use crate::cpu::pool::Shared;
use std::cell::RefCell;
use std::ops::Range;

/// Items that keys are cut for where there are fewer key heads: as many as most numbers of threads can share evenly.
const ITEMS: usize = 12;
/// Keys of a part: at least so many where they are cut for the sake of threads, and at most.
const FEWEST: usize = 64;
const MOST: usize = 256;
/// Kernels score so many keys at once; a part but the last has a multiple.
const KEYS_AT_ONCE: usize = 4;
/// Multiply-adds below which one thread is done before the others have begun.
const WORTH_SHARING: usize = 1 << 16;

thread_local! {
    /// One call's parts.
    static PARTS: RefCell<Parts> = RefCell::default();
    /// One item's scores.
    static SCORES: RefCell<Vec<f32>> = RefCell::default();
}

/// [`attention`](super::attention) of one query; the sizes are checked, and none is 0 but that of the keys.
pub(super) fn run(exec: Exec, shape: &Attention, [q, k, v]: [Heads; 3], out: &mut [f32]) {
    let Attention { batch, heads, kv_heads, keys, width, scale, key_bias, .. } = *shape;
    let (rows, cut) = (heads / kv_heads, Cut::new(keys, batch * kv_heads));
    let (results, work) = (batch * heads * cut.parts, 2 * batch * heads * keys * width);
    // Taken, not borrowed: a pool may run another attention on this thread meanwhile.
    let mut parts = PARTS.take();
    parts.resize(results, width);
    let shared = parts.share();
    exec.shared_if(work, WORTH_SHARING).pool.run(batch * kv_heads * cut.parts, &|items| {
        let mut scores = SCORES.take();
        for item in items {
            let (b, kv) = (item / cut.parts / kv_heads, item / cut.parts % kv_heads);
            let own = cut.keys(item % cut.parts);
            let elements = own.start * width..own.end * width;
            let part = KeyPart {
                rows,
                width,
                q: &q.values[b * q.batch_stride + kv * rows * q.head_stride..],
                q_stride: q.head_stride,
                keys: own.len(),
                k: &k.head(b, kv, keys * width)[elements.clone()],
                v: &v.head(b, kv, keys * width)[elements],
                bias: if key_bias.is_empty() { &[] } else { &key_bias[b * keys..][own] },
                scale,
            };
            scores.resize(rows * part.scores(), 0.0);
            // SAFETY: each item has results of its own.
            exec.kernels
                .attend(part, &mut scores, unsafe { shared.of(item * rows..(item + 1) * rows, width) });
        }
        SCORES.set(scores);
    });
    let out = Shared::new(out);
    exec.shared_if(results * width, WORTH_SHARING).pool.run(batch * heads, &|items| {
        for head in items {
            let first = head / rows * cut.parts * rows + head % rows;
            // SAFETY: each head has an output of its own.
            let out = unsafe { out.part(head * width..(head + 1) * width) };
            parts.merge((0..cut.parts).map(|part| first + part * rows), out);
        }
    });
    PARTS.set(parts);
}

/// How the keys of each head are cut: by sizes alone, so that every pool gives the same bits.
#[derive(Clone, Copy)]
struct Cut {
    keys: usize,
    parts: usize,
    /// Keys of a part but the last.
    each: usize,
}

impl Cut {
    fn new(keys: usize, kv_heads: usize) -> Self {
        let parts = ITEMS.div_ceil(kv_heads).min(keys.div_ceil(FEWEST)).max(keys.div_ceil(MOST));
        let each = keys.div_ceil(parts.max(1)).next_multiple_of(KEYS_AT_ONCE);
        // Where parts have become larger there may be fewer.
        Self { keys, parts: keys.div_ceil(each.max(1)), each }
    }

    fn keys(self, part: usize) -> Range<usize> {
        part * self.each..((part + 1) * self.each).min(self.keys)
    }
}

/// What parts come to: those of an item's query heads one after another, item after item.
#[derive(Default)]
struct Parts {
    largest: Vec<f32>,
    sums: Vec<f32>,
    mixed: Vec<f32>,
}

/// [`Parts`], which several threads fill.
struct SharedParts<'a> {
    largest: Shared<'a, f32>,
    sums: Shared<'a, f32>,
    mixed: Shared<'a, f32>,
}

impl Parts {
    fn resize(&mut self, count: usize, width: usize) {
        self.largest.resize(count, 0.0);
        self.sums.resize(count, 0.0);
        self.mixed.resize(count * width, 0.0);
    }

    fn share(&mut self) -> SharedParts<'_> {
        SharedParts {
            largest: Shared::new(&mut self.largest),
            sums: Shared::new(&mut self.sums),
            mixed: Shared::new(&mut self.mixed),
        }
    }

    /// The output of a query head, whose parts have these places.
    fn merge(&self, places: impl Iterator<Item = usize> + Clone, out: &mut [f32]) {
        let larger = |a: f32, b: f32| if b > a { b } else { a };
        let largest = places.clone().map(|place| self.largest[place]).fold(f32::NEG_INFINITY, larger);
        let factor = |place: usize| {
            let own = self.largest[place];
            // Both may be infinite.
            if own == largest { 1.0 } else { (own - largest).exp() }
        };
        let sum: f32 = places.clone().map(|place| self.sums[place] * factor(place)).sum();
        let inverse = if sum > 0.0 { 1.0 / sum } else { sum * 0.0 };
        out.fill(0.0);
        for place in places {
            let factor = factor(place) * inverse;
            let mixed = &self.mixed[place * out.len()..][..out.len()];
            out.iter_mut().zip(mixed).for_each(|(out, mixed)| *out += factor * mixed);
        }
    }
}

impl SharedParts<'_> {
    /// Those with these places.
    ///
    /// # Safety
    /// No two that overlap are in use at one time.
    unsafe fn of(&self, places: Range<usize>, width: usize) -> PartialMix<'_> {
        // SAFETY: the caller's promise.
        unsafe {
            PartialMix {
                mixed: self.mixed.part(places.start * width..places.end * width),
                largest: self.largest.part(places.clone()),
                sums: self.sums.part(places),
            }
        }
    }
}
