//! Scales of rows and of columns, in front of the rotation: rows and columns that differ in size share blocks.
//!
//! A rotation spreads a quantiser's noise evenly over the rows and columns of a block. Where they differ in size, those that
//! are small drown in what the large ones cost. With `W = D_r N D_c` the matrix `N` that is coded can be even:
//!
//! ```text
//!     W_ij = r_i c_j N_ij        r_i = 2^(step (code_i - 8) / 64)        code_i = 0 .. 15
//! ```
//!
//! The best scales are the square roots of the rows' and columns' root mean squares: noise of one size in all of `N` costs
//! `sum_i r_i^2 * sum_i |w_i|^2 / r_i^2` in `W`, which is least at `r_i^2 ~ |w_i|` (Cauchy and Schwarz). A product pays nothing but
//! a multiplication of its input and its output; exllamav3 and QuIP# scale both sides likewise.
//!
//! Four bits are enough: at a step of a quarter octave a scale is 9 % off at most, which costs less than a hundredth of what
//! scales gain.

/// The code of the scale 1.
const ONE: u8 = 8;
/// The largest code.
const LARGEST: u8 = 15;
/// Parts of an octave that a step is counted in.
const PARTS: f32 = 64.0;
/// The largest step: an octave a code.
pub(crate) const MAX_STEP: u8 = 64;

/// A scale for each row, or for each column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AxisScales {
    step: u8,
    len: usize,
    /// Two codes a byte, the first in the lower half.
    codes: Vec<u8>,
}

impl AxisScales {
    /// The scales nearest to `wanted`, up to a common factor; `None` where no two of them would differ.
    ///
    /// Those that are 0 or not finite, as of rows of zeros, become 1; those too far from the middle become the nearest
    /// there is.
    pub fn new(wanted: &[f32]) -> Option<Self> {
        let usable = |scale: &f32| scale.is_normal() && *scale > 0.0;
        let octaves: Vec<Option<f32>> =
            wanted.iter().map(|scale| Some(scale.log2()).filter(|_| usable(scale))).collect();
        let known = || octaves.iter().flatten().copied();
        let (least, most) =
            known().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, m), x| (l.min(x), m.max(x)));
        let steps = (PARTS * (most - least) / f32::from(LARGEST)).ceil();
        if !steps.is_finite() || steps < 1.0 {
            return None;
        }
        let step = steps.min(f32::from(MAX_STEP)) as u8;
        // The middle of the range where it fits, else that of the scales: a few that are far off must not move all.
        let middle = match steps <= f32::from(MAX_STEP) {
            true => (least + most) / 2.0 + 0.5 * f32::from(step) / PARTS,
            false => known().sum::<f32>() / known().count() as f32,
        };
        let code = |octave: &Option<f32>| {
            let steps = octave.map_or(0.0, |octave| ((octave - middle) * PARTS / f32::from(step)).round());
            (steps + f32::from(ONE)).clamp(0.0, f32::from(LARGEST)) as u8
        };
        let mut codes = vec![0; wanted.len().div_ceil(2)];
        for (n, octave) in octaves.iter().enumerate() {
            codes[n / 2] |= code(octave) << (n % 2 * 4);
        }
        Some(Self { step, len: wanted.len(), codes })
    }

    /// Scales as a payload has them; `None` where the step is 0 or too large, or the half byte after the last is not 0.
    pub(super) fn from_codes(step: u8, len: usize, codes: Vec<u8>) -> Option<Self> {
        let is_full = len.is_multiple_of(2) || codes.last().is_none_or(|last| last >> 4 == 0);
        ((1..=MAX_STEP).contains(&step) && codes.len() == len.div_ceil(2) && is_full).then_some(Self {
            step,
            len,
            codes,
        })
    }

    /// Rows or columns.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What a code is worth, in 64ths of an octave.
    pub(super) fn step(&self) -> u8 {
        self.step
    }

    pub(super) fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Bytes in a payload.
    pub fn size_in_bytes(&self) -> usize {
        1 + self.codes.len()
    }

    /// The scales.
    pub fn values(&self) -> Vec<f32> {
        let table: [f32; 16] = std::array::from_fn(|code| {
            (f32::from(self.step) * (code as f32 - f32::from(ONE)) / PARTS).exp2()
        });
        (0..self.len).map(|n| table[usize::from(self.codes[n / 2] >> (n % 2 * 4) & 15)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_the_nearest_up_to_a_common_factor() {
        for spread in [0.1f32, 1.0, 3.9, 14.9] {
            let wanted: Vec<f32> =
                (0..101).map(|n| (spread * (n * 37 % 101) as f32 / 100.0 + 5.0).exp2()).collect();
            let scales = AxisScales::new(&wanted).unwrap();
            let factors: Vec<f32> =
                wanted.iter().zip(scales.values()).map(|(wanted, got)| (wanted / got).log2()).collect();
            let (least, most) =
                factors.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, m), x| (l.min(*x), m.max(*x)));
            // Half a step to either side.
            assert!(most - least <= f32::from(scales.step) / PARTS * 1.001, "{spread}: {least} {most}");
            assert!(f32::from(scales.step) / PARTS <= spread / 15.0 + 1.0 / PARTS);
            let again = AxisScales::from_codes(scales.step, 101, scales.codes.clone()).unwrap();
            assert_eq!((again, scales.size_in_bytes()), (scales, 52));
        }
    }

    #[test]
    fn what_cannot_be_a_scale_is_one() {
        assert_eq!(AxisScales::new(&[]), None);
        assert_eq!(AxisScales::new(&[3.0; 9]), None);
        assert_eq!(AxisScales::new(&[0.0, f32::NAN, f32::INFINITY, -1.0]), None);
        let scales = AxisScales::new(&[0.0, 1.0, 16.0, f32::NAN]).unwrap().values();
        assert_eq!((scales[0], scales[3]), (1.0, 1.0));
        assert!((scales[2] / scales[1] / 16.0).log2().abs() < 0.3);
        // Forty octaves: the ends are cut off, what lies between keeps its place.
        let far: Vec<f32> = (0..41).map(|n| (n as f32 - 20.0).exp2()).collect();
        let scales = AxisScales::new(&far).unwrap().values();
        assert_eq!((scales[0], scales[20], scales[40]), (2f32.powi(-8), 1.0, 2f32.powi(7)));
    }

    #[test]
    fn codes_that_mean_nothing_are_refused() {
        assert!(AxisScales::from_codes(0, 2, vec![0]).is_none());
        assert!(AxisScales::from_codes(65, 2, vec![0]).is_none());
        assert!(AxisScales::from_codes(1, 3, vec![0, 0x10]).is_none());
        assert!(AxisScales::from_codes(1, 3, vec![0]).is_none());
        assert!(AxisScales::from_codes(64, 3, vec![0xff, 0x0f]).is_some());
    }
}
