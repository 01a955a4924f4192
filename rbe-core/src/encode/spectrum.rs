//! A matrix in the coefficient domain, block by block, ready to be quantised.

use crate::codec::axis::Axes;
use crate::codec::term::basis::{Basis, FUNCTIONS, Fit};
use crate::codec::transform::Transform;
use crate::codec::{Block, Layout};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The coefficients of every block, after the basis term where there is one.
pub(super) struct Spectrum {
    pub layout: Layout,
    pub transform: Transform,
    pub seed: Option<u64>,
    /// The basis term that was subtracted.
    pub basis: Option<Basis>,
    coefficients: Vec<f32>,
}

impl Spectrum {
    /// Fits and subtracts the basis term where asked for, then transforms every block: `values` (row-major) in their place, as
    /// another copy of the largest matrix is what an encoder takes most memory for.
    pub(super) fn new(
        values: Vec<f32>,
        layout: Layout,
        transform: Transform,
        seed: Option<u64>,
        with_basis: bool,
    ) -> Self {
        let mut spectrum = Self { layout, transform, seed, basis: None, coefficients: values };
        spectrum.cut();
        if with_basis {
            spectrum.subtract_basis();
        }
        spectrum.transform();
        spectrum
    }

    /// Where a block's coefficients lie: block rows one after another, in them block after block.
    fn start(&self, block: Block) -> usize {
        block.row * self.layout.cols() + block.height * block.col
    }

    /// The coefficients of a block, row-major.
    pub(super) fn block(&self, block: Block) -> &[f32] {
        &self.coefficients[self.start(block)..][..block.len()]
    }

    /// The columns of a part of a block, one after another.
    pub(super) fn columns(&self, part: Block) -> Vec<f32> {
        let block = self.layout.block_with(part.row, part.col);
        let rows = self.block(block);
        let first = part.col - block.col;
        let column = |col: usize| rows.iter().skip(first + col).step_by(block.width).copied();
        (0..part.width).flat_map(column).collect()
    }

    /// All coefficients.
    pub(super) fn coefficients(&self) -> &[f32] {
        &self.coefficients
    }

    /// Calls `f` on every block row, by its number, and its coefficients, on all cores.
    fn for_each_band(&mut self, f: impl Fn(usize, &mut [f32]) + Sync) {
        let layout = self.layout;
        let mut rest = &mut self.coefficients[..];
        let bands: Vec<_> = layout
            .row_cut()
            .iter()
            .map(|rows| {
                let band;
                (band, rest) = std::mem::take(&mut rest).split_at_mut(rows.len() * layout.cols());
                band
            })
            .collect();
        bands.into_par_iter().enumerate().for_each(|(i, band)| f(i, band));
    }

    /// Calls `f` on every block and its coefficients, on all cores.
    fn for_each_block(&mut self, f: impl Fn(Block, &mut [f32]) + Sync) {
        let layout = self.layout;
        self.for_each_band(|i, mut band| {
            for j in 0..layout.block_cols() {
                let block = layout.block_at(i, j);
                let tile;
                (tile, band) = std::mem::take(&mut band).split_at_mut(block.len());
                f(block, tile);
            }
        });
    }

    /// Puts block after block what lies row after row.
    fn cut(&mut self) {
        let layout = self.layout;
        self.for_each_band(|i, band| {
            let rows = band.to_vec();
            let mut rest = band;
            for j in 0..layout.block_cols() {
                let block = layout.block_at(i, j);
                let tile;
                (tile, rest) = rest.split_at_mut(block.len());
                for (tile, row) in tile.chunks_exact_mut(block.width).zip(rows.chunks_exact(layout.cols())) {
                    tile.copy_from_slice(&row[block.col..][..block.width]);
                }
            }
        });
    }

    fn subtract_basis(&mut self) {
        let layout = self.layout;
        // One for each size: whole blocks, and the few shorter ones of either axis.
        let mut fits = BTreeMap::new();
        for Block { height, width, .. } in layout.iter() {
            fits.entry((height, width)).or_insert_with(|| Fit::new(height, width));
        }
        let fit = |block: Block| &fits[&(block.height, block.width)];
        let theta: Vec<[f32; FUNCTIONS]> = layout
            .iter()
            .collect::<Vec<_>>()
            .par_iter()
            .map(|block| fit(*block).solve(self.block(*block)))
            .collect();
        // What F16 loses of the parameters is left in the residual, so nothing is lost.
        let basis = Basis::new(layout, &theta, true);
        self.for_each_block(|block, tile| fit(block).subtract(&basis.theta(block), tile));
        self.basis = Some(basis);
    }

    fn transform(&mut self) {
        let axes = Axes::new(self.layout, self.transform, self.seed);
        self.for_each_block(|block, tile| {
            axes.forward_block(block, tile, &mut vec![0.0; axes.scratch_len()])
        });
    }
}

/// The sum of squares, in F64.
pub(super) fn energy(values: &[f32]) -> f64 {
    values
        .par_chunks(1 << 14)
        .map(|chunk| chunk.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>())
        .sum()
}
