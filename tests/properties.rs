//! For random shapes, rates and settings: what the encoder reports is what decoding shows.

use candle_core::{Device, Tensor};
use candle_rbe::{Budget, Encoder, EncoderConfig, Error, Rate, RbeTensor, TermChoice, Transform};
use proptest::prelude::*;

/// Weights of several kinds: noise, noise with outliers, a smooth field, few numbers among zeros, one constant.
fn weights(kind: usize, rows: usize, cols: usize, scale: f32, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    let mut unit = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..rows * cols)
        .map(|n| {
            let noise = (0..6).map(|_| unit()).sum::<f32>() - 3.0;
            let (y, x) = ((n / cols) as f32 / rows as f32, (n % cols) as f32 / cols as f32);
            scale
                * match kind {
                    0 => noise,
                    1 if unit() < 0.01 => 40.0 * noise,
                    1 => noise,
                    2 => (5.0 * y + 3.0 * x).sin() + 0.01 * noise,
                    3 if unit() < 0.02 => noise,
                    3 => 0.0,
                    _ => 1.0,
                }
        })
        .collect()
}

fn rates() -> impl Strategy<Value = Rate> {
    prop_oneof![
        (1.2f64..9.0).prop_map(Rate::BitsPerWeight),
        (0.005f64..0.6).prop_map(Rate::RelativeError),
        (1usize..60).prop_map(Rate::Coefficients),
    ]
}

fn settings() -> impl Strategy<Value = EncoderConfig> {
    let terms = [TermChoice::Auto, TermChoice::Sparse, TermChoice::Planes, TermChoice::Trellis];
    let transforms = [Transform::Dct, Transform::Haar, Transform::Daubechies4];
    let edges = [None, Some(32), Some(64), Some(128), Some(256)];
    let own = proptest::sample::select::<Option<bool>>;
    (
        rates(),
        proptest::sample::select(terms.to_vec()),
        proptest::sample::select(transforms.to_vec()),
        proptest::sample::select(edges.to_vec()),
        own(vec![None, Some(true), Some(false)]),
        own(vec![None, Some(true), Some(false)]),
        any::<bool>(),
    )
        .prop_map(|(rate, term, transform, block, signs, basis, memory)| EncoderConfig {
            term,
            transform,
            block,
            signs,
            basis,
            budget: if memory { Budget::Memory } else { Budget::File },
            ..rate.into()
        })
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// `|W - W^| / |W|`, 0 of zeros that came back.
fn measured(weights: &[f32], decoded: &[f32]) -> f64 {
    let square = |pairs: &mut dyn Iterator<Item = (f32, f32)>| -> f64 {
        pairs.map(|(a, b)| (f64::from(a) - f64::from(b)).powi(2)).sum::<f64>().sqrt()
    };
    let missed = square(&mut weights.iter().copied().zip(decoded.iter().copied()));
    if missed == 0.0 { 0.0 } else { missed / square(&mut weights.iter().map(|weight| (*weight, 0.0))) }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn the_encoder_reports_what_decoding_shows(
        (rows, cols) in (1usize..150, 1usize..150),
        as_vector in any::<bool>(),
        kind in 0usize..5,
        exponent in -12i32..12,
        seed in any::<u64>(),
        config in settings(),
    ) {
        let rows = if as_vector { 1 } else { rows };
        let weights = weights(kind, rows, cols, 10f32.powi(exponent), seed);
        let tensor = Tensor::from_vec(weights.clone(), (rows, cols), &Device::Cpu).unwrap();
        let tensor = if as_vector { tensor.flatten_all().unwrap() } else { tensor };
        let Ok(encoder) = Encoder::new(config) else { return Ok(()) };
        let compressed = match encoder.encode(&tensor) {
            Ok(compressed) => compressed,
            Err(Error::Codec(candle_rbe::CodecError::UnreachableRate { .. }) | Error::Codec(candle_rbe::CodecError::InvalidConfig { .. })) => return Ok(()),
            Err(error) => panic!("{error}"),
        };
        prop_assert_eq!(compressed.shape(), tensor.shape());
        let decoded = values(&compressed.dequantize().unwrap());
        let (reported, measured) = (compressed.relative_error(), measured(&weights, &decoded));
        prop_assert!(
            (reported - measured).abs() <= 1e-3 * measured + 1e-6,
            "{} reports {reported}, decoding shows {measured}", compressed.summary()
        );
        if let Rate::RelativeError(bound) = encoder.config().rate {
            prop_assert!(measured <= bound * (1.0 + 1e-3) + 1e-6, "{measured} of {bound} asked");
        }
        let bytes = compressed.to_bytes().unwrap();
        prop_assert_eq!(bytes.len(), compressed.size_in_bytes());
        let bits = 8.0 * bytes.len() as f64 / weights.len() as f64;
        prop_assert!((compressed.bits_per_weight() - bits).abs() < 1e-9);
        prop_assert_eq!(compressed.to_plain_bytes().unwrap().len(), compressed.plain_size_in_bytes());
        let again = RbeTensor::from_bytes(&bytes).unwrap();
        prop_assert_eq!(again.relative_error(), reported);
        prop_assert_eq!(values(&again.dequantize().unwrap()), decoded);
    }
}
