//! One side of a matrix: the orthonormal operator between its vectors and their coefficients.

use super::layout::{Block, Cut, Layout};
use super::scales::AxisScales;
use super::signs::{Side, Signs};
use super::transform::{Plan, Transform};
use std::sync::Arc;

/// `A = blockdiag(T, T, .., T_short) D`: scales and random signs `D` (or none), then the transform of each block.
///
/// With scales it is no longer orthonormal: back from the coefficient domain means its transpose here, which is what products and
/// the decoded matrix take.
#[derive(Clone, Debug)]
pub struct Axis {
    cut: Cut,
    transform: Transform,
    signs: Option<Signs>,
    scales: Option<Scaling>,
    /// The transform of a whole block, where there is one, and those of the shorter blocks.
    plans: Vec<Plan>,
    scratch_len: usize,
}

/// Scales as the payload has them, and as numbers with the signs.
#[derive(Clone, Debug)]
struct Scaling {
    stored: AxisScales,
    signed: Arc<[f32]>,
}

impl Axis {
    /// The operator on vectors that are cut into these blocks; `seed` draws the signs.
    pub fn new(transform: Transform, cut: Cut, side: Side, seed: Option<u64>) -> Self {
        let first = cut.whole_blocks().saturating_sub(1);
        let plans: Vec<_> =
            (first..cut.blocks()).map(|block| Plan::new(transform, cut.range(block).len())).collect();
        let scratch_len = plans.iter().map(Plan::scratch_len).max().unwrap_or(0);
        let signs = seed.map(|seed| Signs::new(seed, side));
        Self { cut, transform, signs, scales: None, plans, scratch_len }
    }

    /// The same with these scales in front of the signs.
    ///
    /// # Panics
    /// When there are not as many as elements.
    #[must_use]
    pub fn with_scales(mut self, scales: Option<AxisScales>) -> Self {
        self.scales = scales.map(|stored| {
            assert_eq!(stored.len(), self.len(), "scales of an axis of another length");
            let mut signed = stored.values();
            if let Some(signs) = self.signs {
                signs.flip(0, &mut signed);
            }
            Scaling { signed: signed.into(), stored }
        });
        self
    }

    /// The scales, where there are any.
    pub fn scales(&self) -> Option<&AxisScales> {
        self.scales.as_ref().map(|scales| &scales.stored)
    }

    /// The signs times the scales of a block, where there are scales.
    pub(crate) fn signed_scales(&self, block: usize) -> Option<&[f32]> {
        self.scales.as_ref().map(|scales| &scales.signed[self.cut.range(block)])
    }

    /// Elements of a vector.
    pub fn len(&self) -> usize {
        self.cut.elements()
    }

    /// Never true: an axis has at least one element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How vectors are cut into blocks.
    pub fn cut(&self) -> &Cut {
        &self.cut
    }

    /// The transform of the blocks.
    pub fn transform(&self) -> Transform {
        self.transform
    }

    /// Multiplies a block of a vector by `D`: its signs and scales, where there are any.
    pub(crate) fn weigh(&self, block: usize, x: &mut [f32]) {
        if let Some(signed) = self.signed_scales(block) {
            x.iter_mut().zip(signed).for_each(|(x, scale)| *x *= scale);
        } else if let Some(signs) = self.signs {
            signs.flip(self.cut.range(block).start, x);
        }
    }

    /// How many elements of scratch the operators need.
    pub fn scratch_len(&self) -> usize {
        self.scratch_len
    }

    /// The transform of a block.
    fn plan(&self, block: usize) -> &Plan {
        &self.plans[block.saturating_sub(self.cut.whole_blocks().saturating_sub(1))]
    }

    /// A block of a vector into the coefficient domain: `x <- T D x`.
    pub fn forward_block(&self, block: usize, x: &mut [f32], scratch: &mut [f32]) {
        self.weigh(block, x);
        self.plan(block).forward(x, scratch);
    }

    /// A block of a vector back from the coefficient domain: `x <- D T' x`.
    pub fn inverse_block(&self, block: usize, x: &mut [f32], scratch: &mut [f32]) {
        self.plan(block).inverse(x, scratch);
        self.weigh(block, x);
    }

    /// A whole vector into the coefficient domain: `x <- A x`.
    ///
    /// # Panics
    /// When `x` is not [`len`](Self::len) long or `scratch` is shorter than [`scratch_len`](Self::scratch_len).
    pub fn forward(&self, x: &mut [f32], scratch: &mut [f32]) {
        assert_eq!(x.len(), self.len());
        for (block, range) in self.cut.iter().enumerate() {
            self.forward_block(block, &mut x[range], scratch);
        }
    }

    /// A whole vector back from the coefficient domain: `x <- A' x`.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn inverse(&self, x: &mut [f32], scratch: &mut [f32]) {
        assert_eq!(x.len(), self.len());
        for (block, range) in self.cut.iter().enumerate() {
            self.inverse_block(block, &mut x[range], scratch);
        }
    }
}

/// Both sides of a matrix: without scales `S = A_rows W A_cols'`, and with them too `W = A_rows' S A_cols`, block by block.
#[derive(Clone, Debug)]
pub struct Axes {
    /// The operator on vectors as long as a column (outputs).
    pub rows: Axis,
    /// The operator on vectors as long as a row (inputs).
    pub cols: Axis,
}

impl Axes {
    /// The operators of a layout; `seed` draws the signs.
    pub fn new(layout: Layout, transform: Transform, seed: Option<u64>) -> Self {
        Self {
            rows: Axis::new(transform, *layout.row_cut(), Side::Rows, seed),
            cols: Axis::new(transform, *layout.col_cut(), Side::Cols, seed),
        }
    }

    /// How many elements of scratch the tile operators need.
    pub fn scratch_len(&self) -> usize {
        self.rows.cut.longest() + self.rows.scratch_len().max(self.cols.scratch_len())
    }

    /// A block (`height x width`) through both operators: into the coefficient domain, where there are no scales.
    pub fn forward_block(&self, block: Block, tile: &mut [f32], scratch: &mut [f32]) {
        let (column, scratch) = scratch.split_at_mut(block.height);
        let (i, j) = (self.rows.cut.block_of(block.row), self.cols.cut.block_of(block.col));
        for row in tile.chunks_exact_mut(block.width) {
            self.cols.forward_block(j, row, scratch);
        }
        for_each_column(block, tile, column, |column| self.rows.forward_block(i, column, scratch));
    }

    /// A block of coefficients (`height x width`) back into weights.
    pub fn inverse_block(&self, block: Block, tile: &mut [f32], scratch: &mut [f32]) {
        let (column, scratch) = scratch.split_at_mut(block.height);
        let (i, j) = (self.rows.cut.block_of(block.row), self.cols.cut.block_of(block.col));
        for row in tile.chunks_exact_mut(block.width) {
            self.cols.inverse_block(j, row, scratch);
        }
        for_each_column(block, tile, column, |column| self.rows.inverse_block(i, column, scratch));
    }
}

/// Takes each column of a tile out, changes it, and puts it back.
fn for_each_column(block: Block, tile: &mut [f32], column: &mut [f32], mut f: impl FnMut(&mut [f32])) {
    for col in 0..block.width {
        for (element, row) in column.iter_mut().zip(tile.chunks_exact(block.width)) {
            *element = row[col];
        }
        f(column);
        for (element, row) in column.iter().zip(tile.chunks_exact_mut(block.width)) {
            row[col] = *element;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_length_and_comes_back() {
        for &transform in Transform::ALL {
            for (len, block) in [(1, 32), (31, 32), (32, 32), (33, 32), (257, 256), (172, 64), (576, 256)] {
                for seed in [None, Some(3)] {
                    let axis = Axis::new(transform, Cut::new(len, block), Side::Rows, seed);
                    let x: Vec<f32> = (0..len).map(|i| (i as f32 * 1.3).cos()).collect();
                    let (mut y, mut scratch) = (x.clone(), vec![0.0; axis.scratch_len()]);
                    axis.forward(&mut y, &mut scratch);
                    let energy = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>();
                    assert!((energy(&x) / energy(&y) - 1.0).abs() < 1e-5);
                    axis.inverse(&mut y, &mut scratch);
                    assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-5), "{transform:?} {len}");
                }
            }
        }
    }
}
