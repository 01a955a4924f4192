//! The basis term on the device: its parameters, and the functions' parts that belong to one row or one column.

use super::axis::floats;
use super::blocks::{THREADS, WARPS};
use super::groups::BATCH_TILE;
use super::machine::{Arg, Launch, Machine, Module};
use super::operands::{Gather, Operand, Partial, Product};
use crate::error::Result;
use rbe_core::codec::sizes;
use rbe_core::codec::term::Basis;
use rbe_core::codec::term::basis::coordinate;
use rbe_core::codec::{Layout, Sides};
use std::f64::consts::PI;

pub(super) struct DeviceBasis<M> {
    layout: Layout,
    theta: M,
    /// `(coordinate, cos(pi c), cos(2 pi c), 0)` of each row and column.
    row_grid: M,
    col_grid: M,
}

impl<M> DeviceBasis<M> {
    pub(super) fn new(machine: &impl Machine<Memory = M>, layout: Layout, term: &Basis) -> Result<Self> {
        let theta = layout.iter().flat_map(|block| term.theta(block));
        let rows = (0..layout.block_rows()).flat_map(|i| grid(layout.row_range(i).len()));
        let cols = (0..layout.block_cols()).flat_map(|j| grid(layout.col_range(j).len()));
        Ok(Self {
            layout,
            theta: machine.upload(&floats(theta))?,
            row_grid: machine.upload(&floats(rows))?,
            col_grid: machine.upload(&floats(cols))?,
        })
    }

    fn launch<'a>(kernel: String, grid: [usize; 3], args: Vec<Arg<'a, M>>) -> Launch<'a, M> {
        Launch { module: Module::Basis, kernel, grid, threads: THREADS, shared_bytes: 0, waits: false, args }
    }

    /// The term's product, `(batch, out)` in F32.
    pub(super) fn product(
        &self,
        machine: &impl Machine<Memory = M>,
        product: &Product,
        x: &Operand<'_, M>,
        sums: &Partial<'_, M>,
    ) -> Result<()> {
        let Product { batch, transposed, .. } = *product;
        let sides = Sides::new(self.layout, transposed);
        let (inputs, outs) = (sides.input().elements(), sides.output().elements());
        let (in_grid, out_grid) = sides.of(&self.row_grid, &self.col_grid);
        let (in_stride, out_stride) = sides.of(self.layout.block_cols(), 1);
        let mut args = Vec::from([&self.theta, out_grid, in_grid].map(|memory| Arg::Memory(memory, 0)));
        args.extend([outs, inputs, self.layout.block(), out_stride, in_stride].map(Arg::Int));
        args.extend([Arg::Int(usize::from(transposed)), x.arg()]);
        args.extend([sums.arg(), Arg::Int(batch)]);
        let at_once = if batch == 1 { 1 } else { BATCH_TILE };
        let kernel = format!("basis_product_{}_{at_once}", x.element.suffix());
        let grid = [outs.div_ceil(WARPS), 1, batch.div_ceil(at_once)];
        machine.launch(Self::launch(kernel, grid, args))
    }

    /// The term's weights in some rows, or in the first `count`, `(count, cols)` in F32.
    pub(super) fn rows(
        &self,
        machine: &impl Machine<Memory = M>,
        rows: Option<&Gather<'_, M>>,
        count: usize,
    ) -> Result<M> {
        let cols = self.layout.cols();
        let out = machine.allocate(sizes::elements(&[count, cols, size_of::<f32>()]))?;
        let mut args =
            Vec::from([&self.theta, &self.row_grid, &self.col_grid].map(|memory| Arg::Memory(memory, 0)));
        args.extend([self.layout.rows(), cols, self.layout.block()].map(Arg::Int));
        args.push(rows.map_or(Arg::Null, Gather::arg));
        args.push(Arg::Memory(&out, 0));
        machine.launch(Self::launch("basis_rows".to_owned(), [count, cols.div_ceil(THREADS), 1], args))?;
        Ok(out)
    }
}

/// One block's part of a grid.
fn grid(len: usize) -> impl Iterator<Item = f32> {
    (0..len).flat_map(move |n| {
        let c = coordinate(n, len);
        [c as f32, (PI * c).cos() as f32, (2.0 * PI * c).cos() as f32, 0.0]
    })
}
