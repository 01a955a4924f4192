//! Attention whose memory is linear in the sequence: a tile of scores at a time, with the softmax kept up to date
//! (Milakov and Gimelshein, arXiv 1805.02867; Dao, arXiv 2307.08691, whose backward this is too).
//!
//! ```text
//!     for each tile of keys:   S = Q K' + bias;  m' = max(m, rows of S);  P = exp(S - m')
//!                              l = l exp(m - m') + rows of P;  O = O exp(m - m') + P V;  m = m'
//!     at the end               O / l
//! ```
//!
//! A query head takes a tile of [`QUERIES`] at a time, an item of work. The backward computes the scores again, tile by tile,
//! from `m + ln l`: an item is a key head with all query heads that share it, so that nobody else adds to its keys.
//! One query of each sequence, as of a token that is written, has a path of its own (`one_query`).

mod one_query;

use super::exec::Exec;
use super::gemm::{Strided, Write, multiply};
use super::kernels::Kernels;
use super::layout::LANES;
use super::pool::{Pool, Shared};
use crate::codec::sizes::{checked, elements, expect_len, strided};
use std::cell::RefCell;

/// Queries of a tile.
const QUERIES: usize = 32;
/// Keys of a tile.
const KEYS: usize = 128;

/// A tensor `(batch, heads, rows, width)` in a slice: each head's rows lie one after another.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// From the first element on.
    pub values: &'a [f32],
    /// Elements from one sequence of the batch to the next.
    pub batch_stride: usize,
    /// Elements from one head to the next.
    pub head_stride: usize,
}

impl<'a> Heads<'a> {
    fn head(self, batch: usize, head: usize, len: usize) -> &'a [f32] {
        &self.values[batch * self.batch_stride + head * self.head_stride..][..len]
    }
}

/// The sizes of an attention, and what it may look at.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Sequences.
    pub batch: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values, a divisor of `heads`: neighbouring query heads share one.
    pub kv_heads: usize,
    /// Queries of each sequence.
    pub queries: usize,
    /// Keys of each sequence; the last query stands where the last key does.
    pub keys: usize,
    /// Elements of a query.
    pub width: usize,
    /// What multiplies `q k'`.
    pub scale: f32,
    /// Whether a query sees only keys up to its own place.
    pub causal: bool,
    /// Added to the scores of each key, `batch x keys`, minus infinity for one that is hidden; or empty.
    pub key_bias: &'a [f32],
}

impl Attention<'_> {
    /// Refuses sizes that do not fit each other or the slices.
    fn check(&self, q: Heads, k: Heads, v: Heads) {
        let Self { batch, heads, kv_heads, queries, keys, width, .. } = *self;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "{heads} query heads share {kv_heads} key heads"
        );
        assert!(keys >= queries || !self.causal, "{queries} causal queries with {keys} keys");
        if !self.key_bias.is_empty() {
            expect_len("the bias of the keys", self.key_bias.len(), &[batch, keys]);
        }
        for (name, tensor, heads, rows) in
            [("queries", q, heads, queries), ("keys", k, kv_heads, keys), ("values", v, kv_heads, keys)]
        {
            let needed = checked(&[rows, width])
                .and_then(|head| strided(heads, tensor.head_stride, head))
                .and_then(|sequence| strided(batch, tensor.batch_stride, sequence));
            assert!(
                needed.is_some_and(|needed| needed <= tensor.values.len()),
                "{} elements do not hold the {name}: {batch} sequences {} apart of {heads} heads {} apart of {rows} x {width}",
                tensor.values.len(),
                tensor.batch_stride,
                tensor.head_stride
            );
        }
    }

    /// How many keys a query sees.
    fn seen(&self, query: usize) -> usize {
        if self.causal { self.keys - self.queries + query + 1 } else { self.keys }
    }
}

/// A tile of a head's queries, with the keys and values that it sees.
#[derive(Clone, Copy)]
struct Tile<'a> {
    kernels: &'a Kernels,
    shape: &'a Attention<'a>,
    /// The sequence in the batch.
    batch: usize,
    /// The head's queries, keys and values.
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    /// The tile's first query, and that after its last.
    queries: (usize, usize),
}

impl<'a> Tile<'a> {
    /// Queries of the tile.
    fn rows(&self) -> usize {
        self.queries.1 - self.queries.0
    }

    /// Its queries times the scale.
    fn scaled(&self) -> Vec<f32> {
        let width = self.shape.width;
        self.q[self.queries.0 * width..self.queries.1 * width].iter().map(|q| q * self.shape.scale).collect()
    }

    fn key_tiles(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let end = self.shape.seen(self.queries.1 - 1);
        (0..end).step_by(KEYS).map(move |first| (first, (first + KEYS).min(end)))
    }

    /// Some keys' part of keys or values.
    fn of_keys(&self, values: &'a [f32], keys: (usize, usize)) -> Strided<'a> {
        let width = self.shape.width;
        Strided::new(&values[keys.0 * width..], keys.1 - keys.0, width, width)
    }

    /// Scores of the (scaled) queries, row by row, with what is hidden at minus infinity.
    fn scores(&self, q: &[f32], keys: (usize, usize), out: &mut [f32]) {
        let (shape, width, cols) = (self.shape, self.shape.width, keys.1 - keys.0);
        let q = Strided::new(q, self.rows(), width, width);
        multiply(out, cols, q, self.of_keys(self.k, keys).t(), Write::Over);
        for (row, out) in out.chunks_exact_mut(cols).enumerate() {
            if !shape.key_bias.is_empty() {
                let bias = &shape.key_bias[self.batch * shape.keys + keys.0..][..cols];
                out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
            }
            let seen = shape.seen(self.queries.0 + row);
            if seen < keys.1 {
                out[seen.saturating_sub(keys.0)..].fill(f32::NEG_INFINITY);
            }
        }
    }
}

/// `softmax(scale q k' + bias) v` of queries, keys and values, written to `out` as `(batch, queries, heads * width)`.
///
/// A query that may see no key at all has the output 0.
///
/// # Panics
/// When a slice is too short for its sizes.
pub fn attention(shape: &Attention, qkv: [Heads; 3], out: &mut [f32], pool: &dyn Pool) {
    run(Exec::new(pool), shape, qkv, out);
}

/// [`attention`] with these kernels.
pub(super) fn run(exec: Exec, shape: &Attention, [q, k, v]: [Heads; 3], out: &mut [f32]) {
    let Attention { batch, heads, kv_heads, queries, width, .. } = *shape;
    expect_len("the output", out.len(), &[batch, queries, heads, width]);
    shape.check(q, k, v);
    if out.is_empty() {
        return;
    }
    if queries == 1 {
        return one_query::run(exec, shape, [q, k, v], out);
    }
    let Exec { kernels, pool } = exec;
    let tiles = queries.div_ceil(QUERIES);
    let out = Shared::new(out);
    pool.run(batch * heads * tiles, &|items| {
        let mut workspace = WORKSPACE.take();
        for item in items {
            let (b, h, tile) = (item / tiles / heads, item / tiles % heads, item % tiles);
            let kv = h / (heads / kv_heads);
            let range = (tile * QUERIES, ((tile + 1) * QUERIES).min(queries));
            let (k, v) = (k.head(b, kv, shape.keys * width), v.head(b, kv, shape.keys * width));
            let q = q.head(b, h, queries * width);
            workspace.attend(&Tile { kernels, shape, batch: b, q, k, v, queries: range });
            for (row, (mixed, sum)) in workspace.mixed.chunks_exact(width).zip(&workspace.sums).enumerate() {
                let start = ((b * queries + range.0 + row) * heads + h) * width;
                let inverse = if *sum > 0.0 { 1.0 / sum } else { sum * 0.0 };
                // SAFETY: each query of a head is one item's.
                let out = unsafe { out.part(start..start + width) };
                out.iter_mut().zip(mixed).for_each(|(out, mixed)| *out = mixed * inverse);
            }
        }
        WORKSPACE.set(workspace);
    });
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// One thread's tiles.
#[derive(Default)]
struct Workspace {
    scores: Vec<f32>,
    /// The largest score of each query, the sum of its exponentials, and the values mixed by them.
    largest: Vec<f32>,
    sums: Vec<f32>,
    mixed: Vec<f32>,
}

impl Workspace {
    fn attend(&mut self, tile: &Tile) {
        let (rows, width) = (tile.rows(), tile.shape.width);
        let q = tile.scaled();
        for (values, len, start) in [
            (&mut self.largest, rows, f32::NEG_INFINITY),
            (&mut self.sums, rows, 0.0),
            (&mut self.mixed, rows * width, 0.0),
        ] {
            values.clear();
            values.resize(len, start);
        }
        for keys in tile.key_tiles() {
            let cols = keys.1 - keys.0;
            self.scores.resize(rows * cols, 0.0);
            let scores = &mut self.scores[..rows * cols];
            tile.scores(&q, keys, scores);
            for (row, scores) in scores.chunks_exact_mut(cols).enumerate() {
                let old = self.largest[row];
                let new = largest(scores, old);
                if new == f32::NEG_INFINITY {
                    scores.fill(0.0);
                    continue;
                }
                let factor = (old - new).exp();
                self.largest[row] = new;
                self.sums[row] = self.sums[row] * factor + tile.kernels.exp(scores, new);
                if factor != 1.0 {
                    self.mixed[row * width..(row + 1) * width].iter_mut().for_each(|mixed| *mixed *= factor);
                }
            }
            let (scores, v) = (Strided::new(scores, rows, cols, cols), tile.of_keys(tile.v, keys));
            multiply(&mut self.mixed, width, scores, v, Write::Add);
        }
    }
}

/// The largest of some scores and that of those before.
fn largest(scores: &[f32], before: f32) -> f32 {
    let larger = |largest: f32, score: f32| if score < largest { largest } else { score };
    let (lanes, rest) = scores.as_chunks::<LANES>();
    let mut largest = [before; LANES];
    for scores in lanes {
        for (largest, score) in largest.iter_mut().zip(scores) {
            *largest = larger(*largest, *score);
        }
    }
    largest.iter().chain(rest).copied().fold(before, larger)
}

/// The gradients of `<g, attention>`; `out` is what [`attention`] gave, `g` lies as it does. Those of queries, keys and values
/// are returned, each contiguous.
///
/// # Panics
/// When a slice is too short for its sizes.
pub fn attention_gradients(
    shape: &Attention,
    [q, k, v]: [Heads; 3],
    out: &[f32],
    g: &[f32],
    pool: &dyn Pool,
) -> [Vec<f32>; 3] {
    let Attention { batch, heads, kv_heads, queries, keys, width, .. } = *shape;
    expect_len("the output", out.len(), &[batch, queries, heads, width]);
    expect_len("the output's gradient", g.len(), &[batch, queries, heads, width]);
    shape.check(q, k, v);
    let mut gradients = [(heads, queries), (kv_heads, keys), (kv_heads, keys)]
        .map(|(h, n)| vec![0.0; elements(&[batch, h, n, width])]);
    if out.is_empty() {
        return gradients;
    }
    let kernels = Kernels::get();
    let [dq, dk, dv] = &mut gradients;
    let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
    let group = heads / kv_heads;
    pool.run(batch * kv_heads, &|items| {
        let mut workspace = Workspace::default();
        for item in items {
            let (b, kv) = (item / kv_heads, item % kv_heads);
            let (k, v) = (k.head(b, kv, keys * width), v.head(b, kv, keys * width));
            let own = item * keys * width..(item + 1) * keys * width;
            // SAFETY: a key head is one item, and so are the query heads that share it.
            let (dk, dv) = unsafe { (dk.part(own.clone()), dv.part(own)) };
            for h in kv * group..(kv + 1) * group {
                let q = q.head(b, h, queries * width);
                let start = (b * heads + h) * queries * width;
                // SAFETY: as above.
                let dq = unsafe { dq.part(start..start + queries * width) };
                for first in (0..queries).step_by(QUERIES) {
                    let range = (first, (first + QUERIES).min(queries));
                    let tile = Tile { kernels, shape, batch: b, q, k, v, queries: range };
                    workspace.attend(&tile);
                    let of_row = |row: usize| {
                        let at = ((b * queries + range.0 + row) * heads + h) * width;
                        (&out[at..at + width], &g[at..at + width])
                    };
                    let dq = &mut dq[range.0 * width..range.1 * width];
                    tile_gradients(&tile, &mut workspace, of_row, [dq, dk, dv]);
                }
            }
        }
    });
    gradients
}

/// The share of a tile of queries. With `P` the softmax, `D = rows of (g . out)`: `dV += P' g`,
/// `dS = P (g V' - D)`, `dQ = scale dS K`, `dK += dS' (scale Q)`.
fn tile_gradients<'g>(
    tile: &Tile,
    workspace: &mut Workspace,
    of_row: impl Fn(usize) -> (&'g [f32], &'g [f32]),
    [dq, dk, dv]: [&mut [f32]; 3],
) {
    let (rows, width) = (tile.rows(), tile.shape.width);
    let q = tile.scaled();
    let g: Vec<f32> = (0..rows).flat_map(|row| of_row(row).1).copied().collect();
    let dots: Vec<f32> =
        (0..rows).map(|row| of_row(row).0.iter().zip(of_row(row).1).map(|(out, g)| out * g).sum()).collect();
    let (q, g) = (Strided::new(&q, rows, width, width), Strided::new(&g, rows, width, width));
    let mut products = Vec::new();
    for keys in tile.key_tiles() {
        let cols = keys.1 - keys.0;
        workspace.scores.resize(rows * cols, 0.0);
        let scores = &mut workspace.scores[..rows * cols];
        tile.scores(q.values, keys, scores);
        for (row, scores) in scores.chunks_exact_mut(cols).enumerate() {
            if workspace.sums[row] > 0.0 {
                tile.kernels.exp(scores, workspace.largest[row]);
                let inverse = 1.0 / workspace.sums[row];
                scores.iter_mut().for_each(|score| *score *= inverse);
            } else {
                scores.fill(0.0);
            }
        }
        let part = keys.0 * width..keys.1 * width;
        multiply(&mut dv[part.clone()], width, Strided::new(scores, rows, cols, cols).t(), g, Write::Add);
        products.resize(rows * cols, 0.0);
        multiply(&mut products, cols, g, tile.of_keys(tile.v, keys).t(), Write::Over);
        for ((scores, products), dot) in
            scores.chunks_exact_mut(cols).zip(products.chunks_exact(cols)).zip(&dots)
        {
            scores.iter_mut().zip(products).for_each(|(score, product)| *score *= product - dot);
        }
        let ds = Strided::new(scores, rows, cols, cols);
        multiply(dq, width, ds, tile.of_keys(tile.k, keys), Write::Add);
        multiply(&mut dk[part], width, ds.t(), q, Write::Add);
    }
    dq.iter_mut().for_each(|dq| *dq *= tile.shape.scale);
}
