//! The promises of trellis coding on Gaussian coefficients: error, budget, bound.

use super::*;
use crate::codec::axis::Axes;
use crate::codec::{Layout, Transform};
use crate::encode::spectrum::energy;

/// A deterministic unit Gaussian, by Box and Muller.
fn gaussian_values(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let pair = || ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32;
    std::iter::repeat_with(pair).take(count).collect()
}

fn spectrum(rows: usize, cols: usize, edge: usize, values: &[f32]) -> Spectrum {
    Spectrum::new(values.to_vec(), Layout::new(rows, cols, edge).unwrap(), Transform::Dct, Some(1), false)
}

const QUANTIZER: TrellisQuantizer = TrellisQuantizer { state_bits: 12 };

fn task(spectrum: &Spectrum, target: Target) -> Task<'_> {
    Task { spectrum, feedback: None, target, other_bits: 0 }
}

fn encode(spectrum: &Spectrum, target: Target) -> Option<Quantized> {
    QUANTIZER.encode(&task(spectrum, target)).unwrap()
}

/// All scale groups with the same number of bits.
fn relative_error(spectrum: &Spectrum, state_bits: u8, bits: u8) -> f64 {
    let plan = Plan::new(&task(spectrum, Target::SquaredError(0.0)), state_bits);
    let mut scale_groups = vec![None; plan.scale_groups.len()];
    let bits = vec![bits; scale_groups.len()];
    let error = quantize(&plan, &Codebooks::new(state_bits), &bits, &mut scale_groups);
    (error / plan.energies.iter().sum::<f64>()).sqrt()
}

#[test]
fn a_gaussian_has_the_error_that_the_code_promises() {
    // So many that those beyond a code's reach are there in their proportion.
    let values = gaussian_values(256 * 1024);
    let spectrum = spectrum(256, 1024, 256, &values);
    let bounds = [0.523, 0.267, 0.136, 0.0692, 0.0361, 0.0186, 0.0096, 0.00495];
    for (bits, bound) in (1..).zip(bounds) {
        let error = relative_error(&spectrum, 12, bits);
        assert!(error <= bound, "{bits} bits: {error}");
        let model = gaussian(12, 256)[usize::from(bits)].sqrt();
        assert!((error / model - 1.0).abs() < 0.01, "{bits} bits: {error}, expected {model}");
    }
}

#[test]
fn coefficients_far_off_cost_what_the_model_says() {
    let layout = Layout::new(256, 128, 256).unwrap();
    let axes = Axes::new(layout, Transform::Dct, Some(1));
    for far in [5.0, 6.0, 8.0, 12.0, 20.0, 50.0] {
        let mut values = gaussian_values(layout.elements());
        for (n, sign) in [1.0, -1.0, 1.0, -1.0].into_iter().enumerate() {
            values[(17 + 71 * n) * 128 + 32 * n + 11] = sign * far;
        }
        axes.inverse_block(layout.block_at(0, 0), &mut values, &mut vec![0.0; axes.scratch_len()]);
        let spectrum = spectrum(256, 128, 256, &values);
        let plan = Plan::new(&task(&spectrum, Target::SquaredError(0.0)), 12);
        for bits in 1..=MOST_BITS {
            let error = relative_error(&spectrum, 12, bits).powi(2);
            let model = plan.estimate(&[bits; 4]).squared_error / energy(&values);
            assert!((0.8..1.12).contains(&(error / model)), "{far}, {bits} bits: {error}, expected {model}");
            // Where scales stay what suits a Gaussian, eight bits have 70 times its error beside coefficients of 8.
            let most = 1.1 * (1.0 + f64::from(far).powi(2) / if bits > 4 { 20.0 } else { 45.0 });
            let gaussian = gaussian(12, 256)[usize::from(bits)] * layout.elements() as f64 / energy(&values);
            assert!(error < most * gaussian, "{far}, {bits} bits: {} times a Gaussian's", error / gaussian);
        }
    }
}

#[test]
fn a_coefficient_alone_comes_back() {
    let layout = Layout::new(256, 64, 256).unwrap();
    let axes = Axes::new(layout, Transform::Dct, Some(1));
    let mut values = vec![0.0; layout.elements()];
    values[77 * 64 + 5] = 1.0;
    axes.inverse_block(layout.block_at(0, 0), &mut values, &mut vec![0.0; axes.scratch_len()]);
    let spectrum = spectrum(256, 64, 256, &values);
    // All of its energy was lost with every number of bits, where scales were a Gaussian's.
    for (bits, most) in [(4, 0.75), (6, 0.32), (8, 0.1)] {
        let error = relative_error(&spectrum, 12, bits);
        assert!(error < most, "{bits} bits: {error}");
    }
}

#[test]
fn more_bits_in_a_state_make_the_error_smaller() {
    // So many that what one size of state happens to be luckier with is little beside what two bits more gain.
    let values = gaussian_values(256 * 512);
    let spectrum = spectrum(256, 512, 256, &values);
    for bits in [2, 4] {
        let errors: Vec<f64> =
            [12, 14, 16].into_iter().map(|state_bits| relative_error(&spectrum, state_bits, bits)).collect();
        assert!(errors.windows(2).all(|pair| pair[1] < 0.995 * pair[0]), "{bits} bits: {errors:?}");
    }
}

#[test]
fn the_model_knows_short_columns() {
    for rows in [1, 8, 16, 32, 64] {
        let values = gaussian_values(rows * 1024);
        let spectrum = spectrum(rows, 1024, 64, &values);
        for bits in 1..=MOST_BITS {
            let error = relative_error(&spectrum, 12, bits);
            let model = gaussian(12, rows)[usize::from(bits)].sqrt();
            assert!(error < 1.12 * model, "{rows} rows, {bits} bits: {error}, expected {model}");
        }
    }
}

#[test]
fn the_budget_is_kept_and_nearly_used() {
    let mut values = gaussian_values(200 * 300);
    // Two block rows: within a scale group the coefficients stay Gaussian.
    values.iter_mut().take(64 * 300).for_each(|value| *value *= 10.0);
    let spectrum = spectrum(200, 300, 32, &values);
    for bits in [30_000, 100_000, 233_333, 300_000, 444_444] {
        let encoded = encode(&spectrum, Target::Bits(bits)).unwrap();
        // Scale groups of 32 rows and columns take 1024 bits a step, those at the border less.
        let spent = 8 * encoded.terms.iter().map(Term::size_in_bytes).sum::<usize>();
        assert!(spent <= bits && spent + 1024 > bits, "{spent} of {bits}");
        let estimate = QUANTIZER.model(&task(&spectrum, Target::Bits(bits))).unwrap();
        assert_eq!(estimate.bits, spent);
        let ratio = encoded.squared_error / estimate.squared_error;
        assert!((0.8..1.1).contains(&ratio), "{bits} bits: {ratio} of the expected error");
    }
    assert!(encode(&spectrum, Target::Bits(1000)).is_none());
}

#[test]
fn an_error_bound_is_kept_without_waste() {
    let values = gaussian_values(256 * 384);
    let spectrum = spectrum(256, 384, 64, &values);
    let total = energy(&values);
    for relative in [0.6, 0.3, 0.1, 0.02f64] {
        let bound = relative * relative * total;
        let encoded = encode(&spectrum, Target::SquaredError(bound)).unwrap();
        let used = encoded.squared_error / bound;
        assert!(used <= 1.0 && used > 0.85, "{relative}: {used}");
        // Told by the term itself.
        let mut error = 0.0;
        for block in spectrum.layout.iter() {
            let mut decoded = vec![0.0; block.len()];
            encoded.terms.iter().for_each(|term| term.add_rows(block, 0..block.height, &mut decoded));
            let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
            error += spectrum.block(block).iter().zip(&decoded).map(square).sum::<f64>();
        }
        assert!((error / encoded.squared_error - 1.0).abs() < 1e-3, "{error} {}", encoded.squared_error);
    }
    assert!(encode(&spectrum, Target::SquaredError(0.004 * 0.004 * total)).is_none());
}

#[test]
fn zeros_take_no_bits_and_tiny_values_come_back() {
    let zeros = spectrum(64, 64, 64, &[0.0; 64 * 64]);
    let encoded = encode(&zeros, Target::Bits(64 * 64 * 3)).unwrap();
    assert_eq!(encoded.squared_error, 0.0);
    let values: Vec<f32> = gaussian_values(64 * 64).iter().map(|value| value * 1e-30).collect();
    let tiny = spectrum(64, 64, 64, &values);
    let encoded = encode(&tiny, Target::Bits(64 * 64 * 4)).unwrap();
    assert!(encoded.squared_error < 0.02 * energy(&values));
}
