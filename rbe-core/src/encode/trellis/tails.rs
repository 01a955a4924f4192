//! Coefficients beyond a code's reach, and the scale that is best beside them.
//!
//! A code's values end at 3.4 deviations of what it suits best. What lies beyond is cut off, and the fewer errors there are besides,
//! the more that counts: of 8192 coefficients of unit Gaussian one of 8 makes the squared error of four bits 1.5 times as large, and
//! that of eight bits 70 times. A larger scale reaches farther and makes all other errors larger; where that is less, it is taken
//! (twice the scale, and 2.7 times the error, with eight bits there). Signs and transform leave few such coefficients: those of what
//! rows or columns have in common.

use super::gaussian::{GAUSSIAN, MOST_BITS, VALUE_DEVIATIONS, WIDER, halves};
use crate::codec::term::trellis::{Code, MAX_BITS};

/// How many deviations off a coefficient counts as far: of a Gaussian one in 47 thousand does.
const FAR: f64 = 4.25;
/// How many deviations off the farthest counts at most: the widest scale reaches there.
const FARTHEST: f64 = 200.0;
/// Octaves from scale to scale that are tried, and how many.
const STEP: f64 = 0.125;
const STEPS: usize = 48;
/// What a scale `1 + w` times the best makes of the squared error of a Gaussian, `1 + a w + b w^2`, by the bits: fitted to what scales
/// 1.1 to 8 times the best leave.
const GROWTH: [[f64; 2]; MOST_BITS as usize] = [
    [0.24, 0.12],
    [0.60, 0.23],
    [0.51, 0.38],
    [0.55, 0.45],
    [0.76, 0.65],
    [0.91, 0.73],
    [0.98, 0.76],
    [1.05, 0.79],
];

/// The coefficients of a scale group, told apart by how far off they are.
#[derive(Clone, Debug)]
pub(super) struct Tails {
    /// Sum of squares.
    pub energy: f64,
    /// That of those that are not far.
    pub near_energy: f64,
    /// Their root mean square.
    deviation: f64,
    /// How large the far ones are.
    far: Vec<f64>,
}

/// A scale, as a multiple of what suits a Gaussian of the near coefficients, and the squared error that is expected with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Widening {
    pub scale: f64,
    pub squared_error: f64,
}

impl Tails {
    pub(super) fn new(values: &[f32]) -> Self {
        let square = |value: &f32| f64::from(*value).powi(2);
        let energy: f64 = values.iter().map(square).sum();
        let bound = FAR * FAR * energy / values.len() as f64;
        let far = || values.iter().filter(|value| square(value) > bound);
        let largest = far().map(square).fold(0.0, f64::max);
        let near = (values.len() - far().count()) as f64;
        // Without any the sum stays what it is, to the last bit. Where next to nothing is left, scales go by what is far.
        let near_energy =
            (energy - far().map(square).sum::<f64>()).max(near * largest / (FARTHEST * FARTHEST));
        Self {
            energy,
            near_energy,
            deviation: (near_energy / near).sqrt(),
            far: far().map(|value| f64::from(value.abs())).collect(),
        }
    }

    /// The best scale with so many bits, which leave a Gaussian this relative squared error.
    pub(super) fn widening(&self, bits: u8, gaussian: f64) -> Widening {
        if self.far.is_empty() {
            return Widening { scale: 1.0, squared_error: self.energy * gaussian };
        }
        let reach = self.deviation * reach(bits);
        let [linear, square] = GROWTH[usize::from(bits) - 1];
        let widening = |scale: f64| {
            let wider = scale - 1.0;
            let near = self.near_energy * gaussian * (1.0 + linear * wider + square * wider * wider);
            // One that is reached has an error as the near ones.
            let own = near / self.near_energy * self.deviation.powi(2);
            let far: f64 = self.far.iter().map(|value| (value - scale * reach).max(0.0).powi(2) + own).sum();
            Widening { scale, squared_error: near + far }
        };
        let all = (0..STEPS).map(|n| widening((STEP * n as f64).exp2()));
        all.min_by(|a, b| a.squared_error.total_cmp(&b.squared_error)).expect("STEPS is not 0")
    }
}

/// How many deviations of a Gaussian values reach at the scales that suit it best.
fn reach(bits: u8) -> f64 {
    let reach = |bits: u8| {
        let code = Code::of_bits(bits.into());
        let largest = (0..code.indices()).map(|index| code.value_of_index(index as u8)).max();
        let kept = 1.0 - GAUSSIAN[0][usize::from(bits)];
        f64::from(largest.expect("a code has values")) / VALUE_DEVIATIONS[usize::from(bits) - 1] * kept.sqrt()
    };
    match halves(bits) {
        [first, 0] => reach(first),
        [first, second] => {
            let left = GAUSSIAN[0][usize::from(MAX_BITS)].sqrt();
            f64::from(WIDER[usize::from(second) - 1]) * reach(first) + left * reach(second)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gaussian_is_left_as_it_is() {
        let values: Vec<f32> = (0..4096).map(|n| (n % 17) as f32 - 8.0).collect();
        let energy: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
        for bits in 1..=MOST_BITS {
            let widening = Tails::new(&values).widening(bits, 0.01);
            assert_eq!(widening, Widening { scale: 1.0, squared_error: energy * 0.01 });
        }
    }

    #[test]
    fn reach_is_what_codes_have() {
        assert!((reach(4) - 3.42).abs() < 0.01, "{}", reach(4));
        assert!((reach(8) - 4.30).abs() < 0.02, "{}", reach(8));
        assert!((2..=4).all(|bits| reach(bits) > reach(bits - 1)));
    }

    #[test]
    fn the_more_bits_the_wider() {
        let mut values: Vec<f32> = (0..8192).map(|n| if n % 2 == 0 { 1.0 } else { -1.0 }).collect();
        values[1234] = -12.0;
        let tails = Tails::new(&values);
        assert_eq!((tails.near_energy, &tails.far[..]), (8191.0, &[12.0][..]));
        let scale = |bits: u8| tails.widening(bits, GAUSSIAN[0][usize::from(bits)]).scale;
        let scales: Vec<f64> = (1..=MOST_BITS).map(scale).collect();
        assert!(scales.is_sorted(), "{scales:?}");
        // Four bits stay below what would reach it, eight go there.
        assert!(
            scales[3] < 1.7 && (12.0 / reach(8) / 1.1..12.0 / reach(8) * 1.1).contains(&scales[7]),
            "{scales:?}"
        );
        // Of one alone a scale is found too.
        let mut lone = [0.0; 8192];
        lone[7] = 3.0;
        let tails = Tails::new(&lone);
        for bits in 1..=MOST_BITS {
            let Widening { scale, squared_error } = tails.widening(bits, 0.01);
            assert!(
                scale.is_finite() && squared_error > 0.0 && tails.near_energy > 0.0,
                "{bits} bits: {scale}"
            );
        }
    }
}
