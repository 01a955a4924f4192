//! What the codes leave of Gaussian coefficients, and the scales that suit those.

use crate::codec::term::trellis::{MAX_BITS, STATE_BITS};

/// The most bits of a scale group, in both terms together.
pub(super) const MOST_BITS: u8 = 2 * MAX_BITS;
/// Mean squared errors of a scale group with 0 to [`MOST_BITS`] bits.
pub(super) type Curve = [f64; MOST_BITS as usize + 1];

/// Those of a unit Gaussian in columns of 256 rows, for the fewest and the most bits of a state (measured by a test); in between they are
/// nearly linear in the state's bits.
pub(super) const GAUSSIAN: [Curve; 2] = [
    [1.0, 0.2715, 0.0706, 0.01828, 0.00470, 0.001285, 0.0003388, 0.0000893, 0.0000232],
    [1.0, 0.2659, 0.0684, 0.01756, 0.00454, 0.001227, 0.0003226, 0.0000834, 0.0000218],
];
/// Scales of the first of two terms as multiples of those that suit it alone: a code's values end at three deviations, and what lies
/// beyond is more than the second term reaches. By the bits of both, from 5 on (the best of a grid on a Gaussian; without, the
/// error at 8 bits is half as large again).
pub(super) const WIDER: [f32; 4] = [1.07, 1.11, 1.15, 1.19];

/// The bits of a scale group in the first term and in the second. The code of four bits reaches farthest, and has the first.
pub(super) fn halves(bits: u8) -> [u8; 2] {
    [bits.min(MAX_BITS), bits.saturating_sub(MAX_BITS)]
}

/// The deviations of Gaussian coefficients that the codes' integers suit best, by their bits: a search with larger or smaller ones
/// leaves more.
pub(super) const VALUE_DEVIATIONS: [f64; 4] = [20.0, 19.3, 19.3, 18.4];

/// The mean squared errors of a unit Gaussian in columns of `rows`, at least-squares scales.
///
/// A short cycle has few sequences to choose from. The factor is fitted to columns of 8 to 64 rows and states of 12
/// and 14 bits, and within a fifth of the excess measured there; a second term has about twice as much.
pub(super) fn gaussian(state_bits: u8, rows: usize) -> Curve {
    let share = f64::from(state_bits - STATE_BITS.start()) / f64::from(STATE_BITS.end() - STATE_BITS.start());
    let shortness = 2.5 * (f64::from(state_bits) / rows as f64).powf(2.5);
    std::array::from_fn(|bits| {
        let long = GAUSSIAN[0][bits] * (1.0 - share) + GAUSSIAN[1][bits] * share;
        let [first, second] = halves(bits as u8).map(f64::from);
        let short = |bits: f64, shortness: f64| if bits > 0.0 { 1.0 + shortness / bits } else { 1.0 };
        (long * short(first, shortness) * short(second, 2.0 * shortness)).min(1.0)
    })
}
