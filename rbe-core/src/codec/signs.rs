//! Random signs: with them in front, an orthonormal transform makes coefficients close to independent
//! Gaussians without outliers, whatever the weights were (the "randomised" transform of QuIP#,
//! arXiv 2402.04396, section 3).

/// Which vectors the signs multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Vectors as long as a column (outputs).
    Rows,
    /// Vectors as long as a row (inputs).
    Cols,
}

/// The signs of `seed` on one side, as many as are asked for.
///
/// Sign `i` is bit `i % 64` of SplitMix64's output number `i / 64` (Steele, Lea and Flood 2014) from a
/// state that is `seed` for columns and its complement for rows. It depends on nothing else, so layers
/// with one seed that share an input share its transform too. Any word can be had without those before
/// it, so none is stored: an axis of any length takes no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signs {
    state: u64,
}

/// Signs of a word.
const WORD: usize = u64::BITS as usize;

/// The sign bits of four F32 numbers for each four signs.
static MASKS: [[u32; 4]; 16] = {
    let mut masks = [[0; 4]; 16];
    let mut bits = 0;
    while bits < 16 {
        let mut n = 0;
        while n < 4 {
            masks[bits][n] = ((bits >> n & 1) as u32) << 31;
            n += 1;
        }
        bits += 1;
    }
    masks
};

impl Signs {
    /// The signs of `seed` on `side`.
    pub fn new(seed: u64, side: Side) -> Self {
        let state = match side {
            Side::Cols => seed,
            Side::Rows => !seed,
        };
        Self { state }
    }

    /// Signs `64 index .. 64 index + 63`, a set bit for each that is negative.
    pub fn word(self, index: u64) -> u64 {
        split_mix_64(&mut self.state.wrapping_add(INCREMENT.wrapping_mul(index)))
    }

    /// Multiplies `x` by the signs from number `start` on.
    pub fn flip(self, start: usize, x: &mut [f32]) {
        let (first, rest) = x.split_at_mut(x.len().min((WORD - start % WORD) % WORD));
        if !first.is_empty() {
            flip_by(self.word((start / WORD) as u64) >> (start % WORD), first);
        }
        for (index, x) in (start.div_ceil(WORD) as u64..).zip(rest.chunks_mut(WORD)) {
            flip_by(self.word(index), x);
        }
    }
}

/// Multiplies up to a word's elements by its signs.
fn flip_by(mut word: u64, x: &mut [f32]) {
    let (fours, rest) = x.as_chunks_mut::<4>();
    for four in fours {
        let masks = &MASKS[(word & 15) as usize];
        *four = std::array::from_fn(|n| f32::from_bits(four[n].to_bits() ^ masks[n]));
        word >>= 4;
    }
    for (n, x) in rest.iter_mut().enumerate() {
        *x = f32::from_bits(x.to_bits() ^ ((word >> n & 1) as u32) << 31);
    }
}

/// The first `len` signs of `seed` on `side`, +1 or -1.
pub fn signs(seed: u64, side: Side, len: usize) -> Vec<f32> {
    let mut signs = vec![1.0; len];
    Signs::new(seed, side).flip(0, &mut signs);
    signs
}

/// What SplitMix64's state grows by from one output to the next.
const INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;

/// The next output of SplitMix64 (Steele, Lea and Flood 2014) with this state.
pub fn split_mix_64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(INCREMENT);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_mix_is_the_published_generator() {
        // The generator's published outputs for seed 1234567.
        let mut state = 1_234_567;
        let first: Vec<u64> = (0..3).map(|_| split_mix_64(&mut state)).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn a_sign_is_the_same_wherever_one_begins() {
        // As FORMAT.md says it: one output after another.
        for (seed, side) in [(7, Side::Cols), (u64::MAX, Side::Rows)] {
            let mut state = if side == Side::Cols { seed } else { !seed };
            let words: Vec<u64> = (0..6).map(|_| split_mix_64(&mut state)).collect();
            let sign = |n: usize| if words[n / 64] >> (n % 64) & 1 == 0 { 1.0 } else { -1.0 };
            for (start, len) in
                (0..130).flat_map(|start| [0, 1, 3, 4, 31, 64, 65, 200].map(|len| (start, len)))
            {
                let mut x: Vec<f32> = (0..len).map(|n| n as f32 + 0.5).collect();
                Signs::new(seed, side).flip(start, &mut x);
                let expected: Vec<f32> = (0..len).map(|n| sign(start + n) * (n as f32 + 0.5)).collect();
                assert_eq!(x, expected, "{len} from {start}");
            }
        }
    }

    #[test]
    fn signs_are_a_prefix_of_longer_signs_and_balanced() {
        let long = signs(7, Side::Cols, 4096);
        assert_eq!(signs(7, Side::Cols, 130), long[..130]);
        assert_ne!(signs(7, Side::Rows, 4096), long);
        assert!(long.iter().sum::<f32>().abs() < 4.0 * 64.0, "four standard deviations");
    }
}
