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

/// The first `len` signs, +1 or -1, of `seed` on `side`.
///
/// Sign `i` is bit `i % 64` of SplitMix64's output number `i / 64` (Steele, Lea and Flood 2014) from a
/// state that is `seed` for columns and its complement for rows. It depends on nothing else, so layers
/// with one seed that share an input share its transform too.
pub fn signs(seed: u64, side: Side, len: usize) -> Vec<f32> {
    let mut state = match side {
        Side::Cols => seed,
        Side::Rows => !seed,
    };
    let mut signs = Vec::with_capacity(len);
    while signs.len() < len {
        let word = split_mix_64(&mut state);
        let take = (len - signs.len()).min(64);
        signs.extend((0..take).map(|bit| if word >> bit & 1 == 0 { 1.0 } else { -1.0 }));
    }
    signs
}

pub(crate) fn split_mix_64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
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
    fn signs_are_a_prefix_of_longer_signs_and_balanced() {
        let long = signs(7, Side::Cols, 4096);
        assert_eq!(signs(7, Side::Cols, 130), long[..130]);
        assert_ne!(signs(7, Side::Rows, 4096), long);
        assert!(long.iter().sum::<f32>().abs() < 4.0 * 64.0, "four standard deviations");
    }
}
