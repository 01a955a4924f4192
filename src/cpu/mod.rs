//! The fast products on the CPU: what `codec` defines, for many vectors at once and on all cores.
//!
//! [`product`] and [`transposed_product`] are the doors. Both follow the same three steps, with rows and
//! columns exchanged:
//!
//! 1. every input vector goes into the coefficient domain once ([`Axis::analyze`]);
//! 2. each block row accumulates its terms' shares over all blocks of the row, for all tokens;
//! 3. each block row comes back from the coefficient domain once ([`Axis::synthesize_block`]).
//!
//! The inner loops of step 2 are [`kernels::Kernels`], a table chosen for the running processor; they work
//! on one block and know no threads. Block rows are spread over rayon's pool when there is enough work.

mod basis;
mod features;
mod kernels;
mod product;

pub use features::{Level, level, levels};
pub use product::{decode, gather, product, transposed_product};

#[cfg(test)]
mod tests;
