//! Blocks of threads as the kernels have them, and how many a multiprocessor has at once.

use super::machine::Machine;

/// Threads of a block, and its warps, as the kernels have them.
pub(super) const THREADS: usize = 256;
pub(super) const WARPS: usize = 8;
pub(super) const WARP: usize = 32;
/// Elements that a warp transforms at once, the most of a block of the codec; floats of shared memory in which it does: `ELEMENTS` and
/// `ITEM_FLOATS` of `transform.cuh`.
pub(super) const ELEMENTS: usize = 256;
pub(super) const ITEM_FLOATS: usize = ELEMENTS + ELEMENTS / 4;
/// Floats of shared memory in which all warps of a block transform inputs and results: `BUFFERS` of `ends.cuh`.
pub(super) const BUFFERS: usize = WARPS * ITEM_FLOATS;
/// Shared memory that a device keeps of each block's.
const RESERVED_BYTES: usize = 1024;

/// Blocks of so many bytes of shared memory that a multiprocessor has at once, of those that its registers hold.
pub(super) fn blocks_at_once<M>(
    machine: &impl Machine<Memory = M>,
    bytes: usize,
    by_registers: usize,
) -> usize {
    ((machine.shared_bytes_limit() + RESERVED_BYTES) / (bytes + RESERVED_BYTES)).clamp(1, by_registers)
}

/// Bytes of shared memory for each of so many blocks of a multiprocessor.
pub(super) fn room<M>(machine: &impl Machine<Memory = M>, blocks: usize) -> usize {
    ((machine.shared_bytes_limit() + RESERVED_BYTES) / blocks).saturating_sub(RESERVED_BYTES)
}
