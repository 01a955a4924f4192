//! Candle's own threads for the products: a second pool beside them would fight for the cores.
//!
//! Every thread has a share of the items that is its own, the same one each time, and goes through it from the front: what lies
//! together in memory is read by one thread from one end to the other, which is what the hardware's prefetchers are made for. (In
//! portions that whoever is free takes, a model's products took 1.3 times as long.) A thread that is done helps where most of a share
//! is left, from the back: on processors whose cores are not alike, or where something else has one, nobody waits long for the slowest.

use rbe_core::cpu::Pool;
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// The part of a share that must be left for others to help with it: one that is nearly done is sooner done alone.
const WORTH_HELPING: u64 = 8;

pub(crate) struct CandlePool;

thread_local! {
    /// The shares of all threads, kept from run to run so that none allocates.
    static SHARES: Cell<Vec<Share>> = const { Cell::new(Vec::new()) };
    /// Whether this thread is at work for a run.
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: shares part the items, and of a share each item is taken once, by an update of what is left.
#[allow(unsafe_code)]
unsafe impl Pool for CandlePool {
    fn run(&self, items: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        let pool = candle_core::utils::barrier_pool();
        let threads = pool.n_workers() + 1;
        // A run inside a run would wait for itself.
        if items <= 1 || threads == 1 || AT_WORK.get() || items > u32::MAX as usize {
            return f(0..items);
        }
        let mut kept = SHARES.take();
        if kept.len() < threads {
            kept.resize_with(threads, Share::default);
        }
        let shares = &mut kept[..threads];
        let start = |thread: usize| (items as u64 * thread as u64 / threads as u64) as u32;
        for (thread, share) in shares.iter_mut().enumerate() {
            *share = Share::new(start(thread), start(thread + 1));
        }
        let shares = &*shares;
        pool.execute(|thread| {
            let _at_work = AtWork::begin();
            while let Some(own) = shares[thread].take_front() {
                f(own);
            }
            for other in (1..threads).map(|distance| &shares[(thread + distance) % threads]) {
                while let Some(anothers) = other.take_back() {
                    f(anothers);
                }
            }
        });
        SHARES.set(kept);
    }
}

/// Says that a thread is at work, until it is dropped.
struct AtWork;

impl AtWork {
    fn begin() -> Self {
        AT_WORK.set(true);
        Self
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        AT_WORK.set(false);
    }
}

/// A thread's share of the items, on cache lines of its own: two, because they are fetched in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Share {
    /// Its first item that nobody has taken, times 2^32, and the end of those.
    left: AtomicU64,
    /// How many items it has.
    items: u64,
}

impl Share {
    fn new(first: u32, end: u32) -> Self {
        Self { left: AtomicU64::new(pack(first, end)), items: u64::from(end - first) }
    }

    /// The front half of what is left.
    fn take_front(&self) -> Option<Range<usize>> {
        self.take(|first, end| {
            let middle = first + (end - first).div_ceil(2);
            (end > first).then_some((first..middle, middle..end))
        })
    }

    /// The back half of what is left, where it is not little.
    fn take_back(&self) -> Option<Range<usize>> {
        self.take(|first, end| {
            let middle = first + (end - first) / 2;
            let worth = end > first && u64::from(end - first) * WORTH_HELPING >= self.items;
            worth.then_some((middle..end, first..middle))
        })
    }

    /// Takes a part of what is left: `part` says which, and what is left then.
    fn take(&self, part: impl Fn(u32, u32) -> Option<(Range<u32>, Range<u32>)>) -> Option<Range<usize>> {
        let rest = |left: u64| {
            let (_, rest) = part((left >> 32) as u32, left as u32)?;
            Some(pack(rest.start, rest.end))
        };
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).ok()?;
        let (taken, _) = part((before >> 32) as u32, before as u32)?;
        Some(taken.start as usize..taken.end as usize)
    }
}

fn pack(first: u32, end: u32) -> u64 {
    u64::from(first) << 32 | u64::from(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn every_item_is_taken_once() {
        for items in [0, 1, 2, 3, 7, 16, 1000] {
            let taken: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            CandlePool.run(items, &|range| {
                for item in range {
                    taken[item].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(taken.iter().all(|taken| taken.load(Ordering::Relaxed) == 1), "{items} items");
        }
    }

    #[test]
    fn a_share_is_gone_through_from_the_front_and_helped_with_from_the_back() {
        let share = Share::new(10, 26);
        assert_eq!(share.take_front(), Some(10..18));
        assert_eq!(share.take_back(), Some(22..26));
        assert_eq!(share.take_front(), Some(18..20));
        assert_eq!(share.take_back(), Some(21..22));
        // One of sixteen is not worth it.
        assert_eq!(share.take_back(), None);
        assert_eq!(share.take_front(), Some(20..21));
        assert_eq!(share.take_front(), None);
        // Few items are all worth it.
        let few = Share::new(0, 2);
        assert_eq!((few.take_back(), few.take_back(), few.take_back()), (Some(1..2), Some(0..1), None));
    }

    #[test]
    fn a_run_inside_a_run_is_done_where_it_is() {
        let sum = AtomicUsize::new(0);
        CandlePool.run(8, &|range| {
            for _ in range {
                CandlePool.run(4, &|inner| {
                    sum.fetch_add(inner.len(), Ordering::Relaxed);
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 32);
    }
}
