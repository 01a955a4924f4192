//! Random numbers of a seed, the same on every machine.

/// Marsaglia's xorshift with a multiplication after it (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // The first few still look like the seed.
        (0..10).for_each(|_| _ = random.next());
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// One of `0..end`, and 0 where there is none.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end.max(1)
    }

    /// One of these.
    pub(crate) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Nearly a Gaussian: a sum of six.
    pub(crate) fn gauss(&mut self) -> f32 {
        let unit = |random: &mut Self| (random.next() >> 40) as f32 / (1u64 << 24) as f32;
        (0..6).map(|_| unit(self)).sum::<f32>() - 3.0
    }
}
