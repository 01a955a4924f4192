//! Who runs the work: the kernels take ranges and know no threads.

use std::mem::MaybeUninit;
use std::ops::Range;

/// Numbers below which one thread has written zeros before others have begun, and those of an item.
const ZEROS_WORTH_SHARING: usize = 1 << 16;
const ZEROS_AT_ONCE: usize = 1 << 14;

/// Runs independent items, on one thread or several.
///
/// # Safety
/// [`run`](Self::run) calls `f` with ranges of which no two overlap: two calls with one item would write to the same memory at
/// once, and nothing would say so. Together they are all items: memory of one that is left out would never be written.
pub unsafe trait Pool: Sync {
    /// Calls `f` with ranges that together are `0..items`, each item once, and returns when all are done.
    fn run(&self, items: usize, f: &(dyn Fn(Range<usize>) + Sync));
}

/// The calling thread alone.
#[derive(Clone, Copy, Debug)]
pub struct Serial;

// SAFETY: one range, of all items.
unsafe impl Pool for Serial {
    fn run(&self, items: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        f(0..items);
    }
}

/// Rayon's pool, for long work such as decoding and encoding.
#[derive(Clone, Copy, Debug)]
pub struct Rayon;

// SAFETY: a range an item, each item once.
unsafe impl Pool for Rayon {
    fn run(&self, items: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        use rayon::prelude::*;
        (0..items).into_par_iter().for_each(|item| f(item..item + 1));
    }
}

/// So many zeros. All threads write them where there are many: of memory that is new each takes the faults of its own pages.
pub fn zeros(len: usize, pool: &dyn Pool) -> Vec<f32> {
    if len < ZEROS_WORTH_SHARING {
        return vec![0.0; len];
    }
    let mut zeros = Vec::with_capacity(len);
    let room = Shared::new(&mut zeros.spare_capacity_mut()[..len]);
    pool.run(len.div_ceil(ZEROS_AT_ONCE), &|items| {
        let range = items.start * ZEROS_AT_ONCE..(items.end * ZEROS_AT_ONCE).min(len);
        // SAFETY: each item's numbers are its own.
        unsafe { room.part(range) }.fill(MaybeUninit::new(0.0));
    });
    // SAFETY: the pool has run all items, which have written as many.
    unsafe { zeros.set_len(len) };
    zeros
}

/// A mutable slice whose disjoint parts are written by several threads.
pub(super) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `part`, whose callers promise that parts in use at one time are disjoint, so a
// `Shared` hands out what `split_at_mut` could.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _borrow: std::marker::PhantomData }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// No two parts that overlap are in use at one time.
    ///
    /// # Panics
    /// When the range is outside the slice.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range is inside the borrowed slice, and the caller keeps parts apart.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_as_many_as_were_asked_for() {
        for len in [0, 1, ZEROS_WORTH_SHARING - 1, ZEROS_WORTH_SHARING, 3 * ZEROS_WORTH_SHARING + 5] {
            for pool in [&Serial as &dyn Pool, &Rayon] {
                let zeros = zeros(len, pool);
                assert!(zeros.len() == len && zeros.iter().all(|zero| zero.to_bits() == 0), "{len}");
            }
        }
    }
}
