//! Products of many vectors with the terms of a matrix added up: blocks are decoded, laid out in
//! [strips](crate::cpu::kernels::IntegerStrip) and multiplied.
//!
//! What several terms, or several digits of the activations, would each take from every vector is so taken once. Block rows go one
//! after another, as many together as [`PANEL`] holds: all threads decode their blocks, then all multiply, each some strips with some
//! vectors.

use crate::codec::{Block, Layout};
use crate::cpu::exec::Exec;
use crate::cpu::kernels::{IntegerStrip, IntegerVectors};
use crate::cpu::layout::planes::TILE_ROWS;
use crate::cpu::layout::{EDGE, LANES, Lanes, RowSums};
use crate::cpu::packed::PackedTerm;
use crate::cpu::pool::Shared;
use crate::cpu::rows::Rows;
use std::cell::RefCell;
use std::ops::Range;

/// Registers of weights that are laid out before they are multiplied, but of one block row at least: 4 MiB.
const PANEL: usize = 1 << 16;
/// Strips and vectors of an item: a strip's part of a block, the vectors' and their sums stay in the first cache.
const STRIPS: usize = 4;
const VECTORS: usize = 48;

/// As what weights and activations are multiplied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Numbers {
    /// F32.
    Floats,
    /// Of 16 bits, times a step.
    Integers,
}

thread_local! {
    /// Kept between products.
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
    /// A block's values.
    static BLOCK: RefCell<Vec<f32>> = RefCell::default();
}

/// What is multiplied.
#[derive(Default)]
struct Workspace {
    decoded: Decoded,
    x: Vectors,
}

/// The weights of block rows.
#[derive(Default)]
struct Decoded {
    /// Strip by strip, each over the whole width.
    weights: Vec<Lanes>,
    /// For each strip and block the steps of its outputs.
    steps: Vec<Lanes>,
}

/// The input, block by block, in each of them vector by vector.
#[derive(Default)]
struct Vectors {
    floats: Vec<f32>,
    integers: Vec<i16>,
    /// For each block and vector.
    steps: Vec<f32>,
}

/// Adds the shares of all `terms` to `out` (`batch x rows`), all in the coefficient domain.
pub(super) fn add_product(
    exec: Exec,
    terms: &[&dyn PackedTerm],
    layout: Layout,
    numbers: Numbers,
    x: Rows,
    out: &mut [f32],
) {
    let places = &Places::new(layout, numbers);
    let Workspace { mut decoded, x: mut vectors } = WORKSPACE.take();
    vectors.fill(exec, places, x);
    let tallest = places.strips_of(0..1).len() * places.row();
    let at_once = (PANEL / tallest.max(1)).max(1);
    let out = Shared::new(out);
    for first in (0..layout.block_rows()).step_by(at_once) {
        let block_rows = first..(first + at_once).min(layout.block_rows());
        let panel = Panel::new(exec, terms, places, block_rows, &mut decoded);
        panel.multiply(exec, &vectors, x.batch, &out);
    }
    WORKSPACE.set(Workspace { decoded, x: vectors });
}

/// Where things lie.
struct Places {
    layout: Layout,
    numbers: Numbers,
    /// Where each block's registers begin in a strip; one more than there are blocks across.
    starts: Vec<usize>,
}

impl Places {
    fn new(layout: Layout, numbers: Numbers) -> Self {
        let mut starts = vec![0];
        for j in 0..layout.block_cols() {
            let inputs = layout.col_range(j).len();
            let registers = if numbers == Numbers::Integers { inputs.div_ceil(2) } else { inputs };
            starts.push(starts[j] + registers);
        }
        Self { layout, numbers, starts }
    }

    /// Registers of a strip over the whole width.
    fn row(&self) -> usize {
        self.starts[self.layout.block_cols()]
    }

    /// Those of a strip in block column `j`.
    fn registers(&self, j: usize) -> Range<usize> {
        self.starts[j]..self.starts[j + 1]
    }

    /// Numbers of a vector in block column `j`, and how many there are in those before it.
    fn inputs(&self, j: usize) -> (usize, usize) {
        let each = if self.numbers == Numbers::Integers { 2 } else { 1 };
        (each * self.registers(j).len(), each * self.starts[j])
    }

    /// The strips of some block rows. (Every block begins at a multiple of a strip's rows.)
    fn strips_of(&self, block_rows: Range<usize>) -> Range<usize> {
        let first = self.layout.row_range(block_rows.start).start / TILE_ROWS;
        first..self.layout.row_range(block_rows.end - 1).end.div_ceil(TILE_ROWS)
    }
}

impl Vectors {
    /// Lays the input out.
    fn fill(&mut self, exec: Exec, places: &Places, x: Rows) {
        let (blocks, each) = (places.layout.block_cols(), places.inputs(places.layout.block_cols() - 1));
        let len = x.batch * (each.0 + each.1);
        let Self { floats, integers, steps } = self;
        match places.numbers {
            Numbers::Floats => floats.resize(len.max(floats.len()), 0.0),
            Numbers::Integers => {
                integers.resize(len.max(integers.len()), 0);
                steps.resize((x.batch * blocks).max(steps.len()), 0.0);
            }
        }
        let (floats, integers, steps) = (Shared::new(floats), Shared::new(integers), Shared::new(steps));
        exec.pool.run(x.batch, &|vectors| {
            for vector in vectors {
                for j in 0..blocks {
                    let cols = places.layout.col_range(j);
                    let block = &x.values[vector * x.len + cols.start..vector * x.len + cols.end];
                    let (len, before) = places.inputs(j);
                    let start = x.batch * before + vector * len;
                    // SAFETY: each vector has places of its own, and is one item.
                    unsafe {
                        match places.numbers {
                            Numbers::Floats => floats.part(start..start + len).copy_from_slice(block),
                            Numbers::Integers => {
                                let own = integers.part(start..start + len);
                                let at = j * x.batch + vector;
                                steps.part(at..at + 1)[0] = exec.kernels.round_vector(block, own);
                            }
                        }
                    }
                }
            }
        });
    }
}

/// Block rows, decoded.
struct Panel<'a> {
    places: &'a Places,
    strips: Range<usize>,
    weights: &'a [Lanes],
    steps: &'a [Lanes],
}

impl<'a> Panel<'a> {
    /// Decodes the blocks of all terms and lays them out, on all threads.
    fn new(
        exec: Exec,
        terms: &[&dyn PackedTerm],
        places: &'a Places,
        block_rows: Range<usize>,
        Decoded { weights, steps }: &'a mut Decoded,
    ) -> Self {
        let (layout, strips) = (places.layout, places.strips_of(block_rows.clone()));
        let blocks = layout.block_cols();
        weights.resize((strips.len() * places.row()).max(weights.len()), Lanes::ZERO);
        steps.resize((strips.len() * blocks).max(steps.len()), Lanes::ZERO);
        let (shared, shared_steps) = (Shared::new(weights), Shared::new(steps));
        exec.pool.run(block_rows.len() * blocks, &|items| {
            let mut values = BLOCK.take();
            for item in items {
                let (i, j) = (block_rows.start + item / blocks, item % blocks);
                let block = layout.block_at(i, j);
                values.clear();
                values.resize(block.len(), 0.0);
                terms.iter().for_each(|term| term.add_block(exec.kernels, block, &mut values));
                for (n, strip) in places.strips_of(i..i + 1).enumerate() {
                    let place = strip - strips.start;
                    let (start, own) = (place * places.row(), places.registers(j));
                    // SAFETY: each strip's part of a block has a place of its own, and is in one item.
                    let (weights, steps) = unsafe {
                        let weights = shared.part(start + own.start..start + own.end);
                        (weights, &mut shared_steps.part(place * blocks + j..place * blocks + j + 1)[0])
                    };
                    lay_out(
                        exec,
                        places.numbers,
                        block,
                        &values[n * TILE_ROWS * block.width..],
                        weights,
                        steps,
                    );
                }
            }
            BLOCK.set(values);
        });
        Self { places, strips, weights, steps }
    }

    /// Adds the products with all vectors to the strips' outputs.
    fn multiply(&self, exec: Exec, x: &Vectors, batch: usize, out: &Shared<f32>) {
        let Self { places, strips, .. } = self;
        let rows = places.layout.rows();
        let (groups, parts) = (strips.len().div_ceil(STRIPS), batch.div_ceil(VECTORS));
        exec.pool.run(groups * parts, &|items| {
            for item in items {
                let strips = item / parts * STRIPS..((item / parts + 1) * STRIPS).min(strips.len());
                let vectors = item % parts * VECTORS..((item % parts + 1) * VECTORS).min(batch);
                let mut sums = [[RowSums::ZERO; VECTORS]; STRIPS];
                for j in 0..places.layout.block_cols() {
                    for (sums, strip) in sums.iter_mut().zip(strips.clone()) {
                        self.multiply_strip(
                            exec,
                            (strip, j),
                            x,
                            batch,
                            vectors.clone(),
                            &mut sums[..vectors.len()],
                        );
                    }
                }
                for (sums, strip) in sums.iter().zip(strips) {
                    let first = (self.strips.start + strip) * TILE_ROWS;
                    let outputs = first..(first + TILE_ROWS).min(rows);
                    for (sums, vector) in sums.iter().zip(vectors.clone()) {
                        // SAFETY: a strip's outputs of a vector are in one item.
                        let out =
                            unsafe { out.part(vector * rows + outputs.start..vector * rows + outputs.end) };
                        out.iter_mut().zip(&sums.0).for_each(|(out, sum)| *out += sum);
                    }
                }
            }
        });
    }

    /// Adds the products of a strip's part of block column `j`.
    fn multiply_strip(
        &self,
        exec: Exec,
        (strip, j): (usize, usize),
        x: &Vectors,
        batch: usize,
        vectors: Range<usize>,
        sums: &mut [RowSums],
    ) {
        let places = self.places;
        let weights = &self.weights[strip * places.row()..][places.registers(j)];
        let (len, before) = places.inputs(j);
        let x_of = batch * before + vectors.start * len..batch * before + vectors.end * len;
        match places.numbers {
            Numbers::Floats => exec.kernels.panel_floats(weights, &x.floats[x_of], sums),
            Numbers::Integers => {
                let steps = &self.steps[strip * places.layout.block_cols() + j];
                let x_steps = &x.steps[j * batch..][vectors];
                let x = IntegerVectors { values: &x.integers[x_of], steps: x_steps };
                exec.kernels.panel_integers(IntegerStrip { weights, steps }, x, sums);
            }
        }
    }
}

/// Lays sixteen rows of a block, of which `values` begins with the first, out as a strip; rows below the block are zeros.
fn lay_out(
    exec: Exec,
    numbers: Numbers,
    block: Block,
    values: &[f32],
    weights: &mut [Lanes],
    steps: &mut Lanes,
) {
    let mut floats = [Lanes::ZERO; EDGE];
    let floats = &mut floats[..block.width];
    rows_to_lanes(exec, block, values, floats);
    match numbers {
        Numbers::Floats => weights.copy_from_slice(floats),
        Numbers::Integers => *steps = exec.kernels.round_strip(floats, weights),
    }
}

/// Sixteen rows of a block to lanes.
fn rows_to_lanes(exec: Exec, block: Block, values: &[f32], lanes: &mut [Lanes]) {
    let width = block.width;
    if values.len() >= TILE_ROWS * width && width.is_multiple_of(LANES) {
        for (n, lanes) in lanes.as_chunks_mut().0.iter_mut().enumerate() {
            exec.kernels.tile_to_lanes(&values[n * LANES..], width, lanes);
        }
        return;
    }
    lanes.fill(Lanes::ZERO);
    for (lane, row) in values.chunks_exact(width).take(TILE_ROWS).enumerate() {
        row.iter().zip(&mut *lanes).for_each(|(value, lanes)| lanes.0[lane] = *value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::term::Domain;
    use crate::cpu::PackedMatrix;
    use crate::cpu::features::levels;
    use crate::cpu::kernels::Kernels;
    use crate::cpu::pool::{Pool, Rayon, Serial};
    use crate::cpu::tests::matrices;

    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let value =
            |n: usize| (n as u32 ^ seed).wrapping_mul(0x9e37_79b9).cast_signed() as f32 / 2f32.powi(31);
        (0..count).map(value).collect()
    }

    fn norm(values: impl Iterator<Item = f64>) -> f64 {
        values.map(|value| value * value).sum::<f64>().sqrt()
    }

    /// As floats within what their rounding may come to, as integers within what is said in `kernels::generic::panels` at most: on every
    /// level, for every kind of term, every border and number of vectors.
    #[test]
    fn terms_are_added_up_and_multiplied_once() {
        for matrix in matrices() {
            let (packed, layout) = (PackedMatrix::new(&matrix), matrix.layout());
            let of_domain = packed.terms().iter().map(|term| &**term);
            let terms: Vec<_> = of_domain.filter(|term| term.domain() == Domain::Coefficients).collect();
            let (rows, cols) = (layout.rows(), layout.cols());
            let mut weights = vec![0f32; rows * cols];
            for block in layout.iter() {
                let mut values = vec![0.0; block.len()];
                terms.iter().for_each(|term| term.add_block(Kernels::get(), block, &mut values));
                for (row, values) in values.chunks_exact(block.width).enumerate() {
                    weights[(block.row + row) * cols + block.col..][..block.width].copy_from_slice(values);
                }
            }
            let all_x = noise(61 * cols, 7);
            let products = |x: &[f32]| {
                let products =
                    |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
                weights.chunks_exact(cols).map(products).collect::<Vec<f64>>()
            };
            let expected: Vec<f64> = all_x.chunks_exact(cols).flat_map(products).collect();
            for level in levels() {
                let kernels = Kernels::new(level).unwrap();
                for (numbers, bound) in [(Numbers::Floats, 2e-6), (Numbers::Integers, 2.4e-4)] {
                    if numbers == Numbers::Integers && !kernels.has_panel_integers() {
                        continue;
                    }
                    let run = |batch: usize, pool: &dyn Pool| {
                        let mut out = vec![0.5; batch * rows];
                        let x = Rows::new(&all_x[..batch * cols], batch, cols);
                        add_product(Exec { kernels: &kernels, pool }, &terms, layout, numbers, x, &mut out);
                        out
                    };
                    let all = run(61, &Rayon);
                    let of = |out: &[f32]| out.iter().map(|out| f64::from(*out) - 0.5).collect::<Vec<f64>>();
                    let lost = norm(of(&all).iter().zip(&expected).map(|(y, expected)| y - expected));
                    let context = format!("{level:?} {numbers:?} {rows}x{cols} {}", matrix.summary());
                    let size = norm(expected.iter().copied()).max(1e-3);
                    assert!(lost <= bound * size + 1e-5, "{context}: {}", lost / size);
                    // Each vector by itself, however many there are and whoever multiplies.
                    for (batch, pool) in [(1, &Serial as &dyn Pool), (13, &Rayon), (50, &Serial)] {
                        assert_eq!(run(batch, pool), all[..batch * rows], "{context}, {batch} vectors");
                    }
                }
            }
        }
    }

    /// The sum of a chunk's products is as large as its norms allow where they are multiples of one another.
    #[test]
    fn no_weights_and_vectors_leave_32_bits() {
        let kinds: [fn(usize) -> f32; 7] = [
            |_| 1.0,
            |_| -1e25,
            |n| if n % 2 == 0 { 3e-30 } else { -3e-30 },
            |n| if n == 77 { 1.0 } else { 0.0 },
            |n| if n / 64 == 2 { 0.37 } else { 1e-3 },
            |n| (n as f32 * 0.7).sin(),
            |n| 1.0 / (1 + n) as f32,
        ];
        for level in levels() {
            let kernels = Kernels::new(level).unwrap();
            if !kernels.has_panel_integers() {
                continue;
            }
            for of_weights in kinds {
                for of_x in kinds {
                    for len in [1, 63, 200, 256] {
                        let floats: Vec<Lanes> = (0..len).map(|n| Lanes([of_weights(n); LANES])).collect();
                        let mut weights = vec![Lanes::ZERO; len.div_ceil(2)];
                        let steps = &kernels.round_strip(&floats, &mut weights);
                        let mut values = vec![0; 2 * len.div_ceil(2)];
                        let x: Vec<f32> = (0..len).map(of_x).collect();
                        let x_step = kernels.round_vector(&x, &mut values);
                        let mut sums = [RowSums::ZERO];
                        let x_of = IntegerVectors { values: &values, steps: &[x_step] };
                        kernels.panel_integers(IntegerStrip { weights: &weights, steps }, x_of, &mut sums);
                        let of = |f: fn(usize) -> f32| (0..len).map(move |n| f64::from(f(n)));
                        let expected: f64 = of(of_weights).zip(of(of_x)).map(|(w, x)| w * x).sum();
                        let size = norm(of(of_weights)) * norm(of(of_x));
                        if size > f64::from(f32::MAX) {
                            continue;
                        }
                        for sum in sums[0].0 {
                            let error = (f64::from(sum) - expected).abs();
                            // (Products below F32's range are nothing.)
                            assert!(error <= 3e-4 * size + 1e-36, "{level:?}, {len}: {sum} for {expected}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_shows() {
        for level in levels() {
            let kernels = Kernels::new(level).unwrap();
            for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = noise(100, 3);
                x[37] = wrong;
                assert!(kernels.round_vector(&x, &mut [0; 100]).is_nan(), "{level:?}");
            }
            for x in [[0.0; 5], [f32::MIN_POSITIVE / 16.0; 5]] {
                let mut integers = [9; 6];
                assert!(kernels.round_vector(&x, &mut integers).is_finite() && integers[5] == 0, "{level:?}");
            }
        }
    }
}
