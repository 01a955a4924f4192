//! The product with a matrix that is not compressed, by the threads that multiply the compressed ones.

use super::exec::Exec;
use super::gemm::{Strided, Write, multiply};
use super::pool::{Pool, Shared};
use super::rows::Rows;
use crate::codec::sizes::expect_len;
use std::cell::RefCell;

/// Vectors up to which a row's dot products with all of them take less time than the library's product, which lays the matrix out
/// anew.
const DOT_MAX_BATCH: usize = 6;
/// Multiply-adds below which one thread is done before the others have begun.
const WORTH_SHARING: usize = 1 << 18;
/// Multiply-adds of an item, at least.
const ITEM_WORK: usize = 1 << 17;
/// Rows of an item for many vectors: enough for the library's micro-kernels.
const ITEM_ROWS: usize = 64;

thread_local! {
    /// An item's products, between calls.
    static PRODUCTS: RefCell<Vec<f32>> = RefCell::default();
}

/// `y = x W'` in F32 with a dense `W`, `out x in` in row-major order, where `x` has `batch` rows of `in` and `y` as many of `out`.
///
/// # Panics
/// When a slice has another length.
pub fn dense_matmul(weight: &[f32], x: Rows, y: &mut [f32], pool: &dyn Pool) {
    run(Exec::new(pool), weight, x, y);
}

/// [`dense_matmul`] with these kernels.
pub(super) fn run(exec: Exec, weight: &[f32], x: Rows, y: &mut [f32]) {
    if x.batch == 0 || y.is_empty() {
        return expect_len("the output", y.len(), &[x.batch, y.len()]);
    }
    let (rows, cols) = (y.len() / x.batch, x.len);
    expect_len("the output", y.len(), &[x.batch, rows]);
    expect_len("the weight", weight.len(), &[rows, cols]);
    let exec = exec.shared_if(x.batch * rows * cols, WORTH_SHARING);
    let few = x.batch <= DOT_MAX_BATCH;
    let item_rows = ITEM_WORK.div_ceil(x.batch * cols.max(1));
    let item_rows = if few { item_rows } else { item_rows.next_multiple_of(ITEM_ROWS) };
    let out = Shared::new(y);
    exec.pool.run(rows.div_ceil(item_rows), &|items| {
        for item in items {
            let own = item * item_rows..rows.min((item + 1) * item_rows);
            let weight = &weight[own.start * cols..own.end * cols];
            let mut products = PRODUCTS.take();
            products.resize(x.batch * own.len(), 0.0);
            if few {
                for n in 0..own.len() {
                    let weight = &weight[n * cols..][..cols];
                    for vector in 0..x.batch {
                        let x = &x.values[vector * cols..][..cols];
                        products[vector * own.len() + n] = exec.kernels.dot(x, weight);
                    }
                }
            } else {
                let (x, weight) = (
                    Strided::new(x.values, x.batch, cols, cols),
                    Strided::new(weight, own.len(), cols, cols),
                );
                multiply(&mut products, own.len(), x, weight.t(), Write::Over);
            }
            for (vector, products) in products.chunks_exact(own.len()).enumerate() {
                // SAFETY: an item's rows are its own.
                let out = unsafe { out.part(vector * rows + own.start..vector * rows + own.end) };
                out.copy_from_slice(products);
            }
            PRODUCTS.set(products);
        }
    });
}
