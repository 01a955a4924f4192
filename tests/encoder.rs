//! The encoder on real trained weights and on smooth data: rates are kept, what it reports is true.
//! CI runs this at the best CPU level alone: encoding gives the same bits at all.

use candle_core::{DType, Device, Tensor};
use candle_nn::Module;
use candle_rbe::{
    Budget, Encoder, EncoderConfig, Error, Precision, Quality, Rate, RbeLinear, RbeTensor, TermChoice,
};
use std::collections::HashMap;

fn model(name: &str) -> HashMap<String, Tensor> {
    let path = format!("{}/models/{name}/model.safetensors", env!("CARGO_MANIFEST_DIR"));
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn projection() -> Tensor {
    model("llama-books")["model.layers.3.mlp.down_proj.weight"].clone()
}

fn encode(config: impl Into<EncoderConfig>, weight: &Tensor) -> candle_rbe::Result<RbeTensor> {
    Encoder::new(config.into())?.encode(weight)
}

/// `|W - W^| / |W|`, by decoding.
fn measured_error(weight: &Tensor, compressed: &RbeTensor) -> f64 {
    let weight = weight.to_dtype(DType::F64).unwrap();
    let decoded = compressed.dequantize().unwrap().to_dtype(DType::F64).unwrap();
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    norm(&(&weight - decoded).unwrap()) / norm(&weight)
}

/// `|a - b| / |b|`
fn measured_difference(a: &Tensor, b: &Tensor) -> f64 {
    let norm =
        |t: &Tensor| t.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>();
    (norm(&(a - b).unwrap()).unwrap() / norm(b).unwrap()).sqrt()
}

/// A smooth field: a wave, a ridge and a hill.
fn smooth(rows: usize, cols: usize) -> Tensor {
    let value = |n: usize| {
        let (y, x) = ((n / cols) as f32 / rows as f32, (n % cols) as f32 / cols as f32);
        (3.0 * y + 2.0 * x).sin()
            + 0.5 * (-20.0 * (y - x).powi(2)).exp()
            + (-8.0 * ((y - 0.3).powi(2) + (x - 0.6).powi(2))).exp()
    };
    let values: Vec<f32> = (0..rows * cols).map(value).collect();
    Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()
}

#[test]
fn bits_are_a_budget_and_the_error_is_as_theory_says() {
    let weight = projection();
    // The quantiser's error on a Gaussian at n bits; the signs make any projection one.
    // From 5 bits on that of planes, below that of trellis-coded quantisation.
    for (bits, gaussian) in [(2.05, 0.27), (3.05, 0.1345), (4.05, 0.071), (6.05, 0.0323), (8.05, 0.0094)] {
        let compressed = encode(Rate::BitsPerWeight(bits), &weight).unwrap();
        assert!(compressed.bits_per_weight() <= bits);
        assert!(compressed.relative_error() < gaussian * 1.05, "{bits}: {}", compressed.relative_error());
    }
}

/// Rows of queries' and keys' columns have something in common, of which single coefficients have much.
#[test]
fn the_encoders_own_choice_is_as_good_as_any_that_is_named() {
    let model = model("gpt2-books");
    for name in ["h.1.attn.c_attn", "h.2.attn.c_attn", "h.2.mlp.c_fc", "wpe"] {
        let weight = model[&format!("transformer.{name}.weight")].t().unwrap().contiguous().unwrap();
        for bits in [4.05, 6.05, 8.05] {
            let error = |term| {
                let config = EncoderConfig { term, ..Rate::BitsPerWeight(bits).into() };
                encode(config, &weight).unwrap().relative_error()
            };
            let own = error(TermChoice::Auto);
            for named in [TermChoice::Trellis, TermChoice::Planes].map(error) {
                assert!(own < 1.03 * named, "{name}, {bits} bits: {own}, could be {named}");
            }
        }
    }
}

#[test]
fn planes_for_files_are_a_quarter_of_a_bit_from_the_bound() {
    let weight = projection();
    for bits in [3.05, 4.05, 5.05, 6.05] {
        let planes = EncoderConfig { term: TermChoice::Planes, ..Rate::BitsPerWeight(bits).into() };
        let file = encode(planes.clone(), &weight).unwrap();
        assert!(file.bits_per_weight() <= bits && file.bits_per_weight() > bits - 0.01);
        // The entropy coded uniform quantiser's error on a Gaussian is sqrt(pi e / 6) 2^-R; some bits are side information.
        let gaussian = 1.193 * 2f64.powf(-bits);
        assert!(file.relative_error() < 1.06 * gaussian, "{bits}: {}", file.relative_error());

        let memory = encode(EncoderConfig { budget: Budget::Memory, ..planes }, &weight).unwrap();
        let plain = 8.0 * memory.plain_size_in_bytes() as f64 / weight.elem_count() as f64;
        assert!(plain <= bits && memory.bits_per_weight() < 0.95 * plain, "{}", memory.bits_per_weight());
        assert!(memory.memory_in_bytes() < file.memory_in_bytes());
        assert!(memory.relative_error() > 1.1 * file.relative_error());
    }
}

#[test]
fn a_budget_of_a_file_has_room_for_more_coefficients() {
    let field = smooth(512, 256);
    let config = EncoderConfig { term: TermChoice::Sparse, ..Rate::BitsPerWeight(0.1).into() };
    let file = encode(config.clone(), &field).unwrap();
    let memory = encode(EncoderConfig { budget: Budget::Memory, ..config }, &field).unwrap();
    assert!(file.bits_per_weight() <= 0.1 && memory.bits_per_weight() < 0.9 * file.bits_per_weight());
    assert!(file.relative_error() < 0.9 * memory.relative_error());
}

#[test]
fn an_error_bound_holds_and_the_report_is_what_decoding_gives() {
    let weight = projection();
    let deviation = {
        let square = weight.to_dtype(DType::F64).unwrap().sqr().unwrap().mean_all().unwrap();
        square.to_scalar::<f64>().unwrap().sqrt()
    };
    use TermChoice::{Auto, Planes, Sparse, Trellis};
    for term in [Auto, Planes, Sparse, Trellis] {
        for bound in [0.3, 0.1, 0.02] {
            for rate in [Rate::RelativeError(bound), Rate::Rmse(bound * deviation)] {
                let compressed = encode(EncoderConfig { term, ..rate.into() }, &weight).unwrap();
                let measured = measured_error(&weight, &compressed);
                assert!(measured <= bound * (1.0 + 1e-6), "{term:?} {rate:?}: {measured}");
                assert!(measured > 0.9 * bound, "{term:?} {rate:?}: {measured} wastes bytes");
                assert!((compressed.relative_error() / measured - 1.0).abs() < 1e-4);
                let again = RbeTensor::from_bytes(compressed.to_bytes().unwrap()).unwrap();
                assert_eq!(again.relative_error(), compressed.relative_error());
            }
        }
    }
}

#[test]
fn the_encoder_finds_out_what_a_matrix_is() {
    // A trained projection has no smooth structure; a smooth field is nothing else.
    let dense = encode(Rate::RelativeError(0.1), &projection()).unwrap();
    assert!(dense.summary().contains("trellis"), "{}", dense.summary());
    let field = encode(Rate::RelativeError(0.01), &smooth(512, 256)).unwrap();
    assert!(field.summary().contains("sparse"), "{}", field.summary());
    assert!(field.bits_per_weight() < 0.2, "{}", field.bits_per_weight());
}

#[test]
fn a_whole_number_of_bits_does_not_cost_a_large_matrix_its_large_blocks() {
    // A few scale groups have a bit less, for the scales. On the sample of it that is tried, one scale group is a 32nd of a bit.
    let model = model("llama-books");
    let matrices: Vec<&Tensor> =
        (0..4).map(|layer| &model[&format!("model.layers.{layer}.mlp.gate_proj.weight")]).collect();
    let compressed = encode(Rate::BitsPerWeight(3.0), &Tensor::cat(&matrices, 0).unwrap()).unwrap();
    assert!(compressed.bits_per_weight() <= 3.0 && compressed.bits_per_weight() > 2.98);
    assert!(compressed.summary().contains("dct 256"), "{}", compressed.summary());
}

#[test]
fn trying_all_is_never_worse_than_any_choice_by_more_than_the_margin_for_large_blocks() {
    let table = &model("gpt2-books")["transformer.wpe.weight"];
    // In memory: of a file's bits, coded planes can make more than a trellis, and auto leaves them for the memory they take.
    let config = EncoderConfig { budget: Budget::Memory, ..EncoderConfig::from(Rate::BitsPerWeight(3.1)) };
    let best = encode(config.clone(), table).unwrap().relative_error();
    for term in [TermChoice::Planes, TermChoice::Sparse, TermChoice::Trellis] {
        for block in [32, 64, 128, 256] {
            let choice = EncoderConfig { term, block: Some(block), ..config.clone() };
            let choice = encode(choice, table).unwrap();
            let error = choice.relative_error();
            assert!(best <= error * 1.011, "{term:?} {block}: {error}, and {best} where all are tried");
        }
    }
}

#[test]
fn coefficients_are_kept_as_asked() {
    let table = &model("gpt2-books")["transformer.wpe.weight"];
    let mut previous = 1.0;
    for k in [1, 16, 64, 200, 512] {
        let config = EncoderConfig { basis: Some(false), ..Rate::Coefficients(k).into() };
        let compressed = encode(config, table).unwrap();
        assert!(compressed.summary().contains(&format!("K {k},")), "{}", compressed.summary());
        assert!(compressed.relative_error() < previous);
        previous = compressed.relative_error();
    }
}

#[test]
fn better_quality_costs_more() {
    let weight = projection();
    let grades = [Quality::Fast, Quality::Balanced, Quality::High, Quality::UltraHigh];
    let encoded = grades.map(|quality| encode(quality, &weight).unwrap());
    for pair in encoded.windows(2) {
        assert!(pair[0].relative_error() > pair[1].relative_error());
        assert!(pair[0].size_in_bytes() < pair[1].size_in_bytes());
    }
}

#[test]
fn odd_inputs_are_encoded_all_the_same() {
    let device = &Device::Cpu;
    for shape in [(1usize, 1usize), (1, 257), (257, 1), (31, 33), (2, 1000)] {
        let zero = Tensor::zeros(shape, DType::F32, device).unwrap();
        let compressed = encode(Rate::RelativeError(0.1), &zero).unwrap();
        assert_eq!(compressed.relative_error(), 0.0);
        assert_eq!(measured_error(&Tensor::ones(shape, DType::F32, device).unwrap(), &compressed), 1.0);
        let constant = Tensor::full(1e-30f32, shape, device).unwrap();
        assert!(encode(Rate::RelativeError(0.1), &constant).unwrap().relative_error() <= 0.1);
        let huge = Tensor::full(1e30f32, shape, device).unwrap();
        assert!(encode(Rate::RelativeError(0.1), &huge).unwrap().relative_error() <= 0.1);
    }
    for dtype in [DType::F64, DType::F16, DType::BF16] {
        let vector = smooth(1, 500).flatten_all().unwrap().to_dtype(dtype).unwrap();
        let compressed = encode(Rate::RelativeError(0.02), &vector).unwrap();
        assert_eq!(compressed.shape().dims(), [500]);
        assert!(measured_error(&vector, &compressed) < 0.0201);
    }
}

/// `W` times `2^exponent`, in two steps since one factor alone may leave F32.
fn times(weight: &Tensor, exponent: i32) -> Tensor {
    let half = exponent / 2;
    let factor = |exponent: i32| 2f64.powi(exponent);
    ((weight * factor(half)).unwrap() * factor(exponent - half)).unwrap()
}

#[test]
fn weights_of_any_size_are_encoded_as_those_near_one() {
    let weight = projection().narrow(0, 0, 96).unwrap().to_dtype(DType::F32).unwrap();
    let of = |term, rate| EncoderConfig { term, basis: Some(true), ..EncoderConfig::from(rate) };
    let x = Tensor::randn(0f32, 1.0, (3, weight.dims()[1]), &Device::Cpu).unwrap();
    for (term, rate) in [
        (TermChoice::Auto, Rate::BitsPerWeight(4.3)),
        (TermChoice::Trellis, Rate::BitsPerWeight(8.2)),
        (TermChoice::Planes, Rate::BitsPerWeight(3.3)),
        (TermChoice::Planes, Rate::RelativeError(0.02)),
        (TermChoice::Sparse, Rate::Coefficients(300)),
        (TermChoice::Trellis, Rate::Rmse(0.004)),
    ] {
        let plain = encode(of(term, rate), &weight).unwrap();
        let decoded = plain.dequantize().unwrap();
        // The largest weight is a little below one, so it comes near both ends.
        for exponent in [-97, -60, -25, 25, 60, 98] {
            let rate = match rate {
                Rate::Rmse(rmse) => Rate::Rmse(rmse * 2f64.powi(exponent)),
                other => other,
            };
            let scaled = encode(of(term, rate), &times(&weight, exponent)).unwrap();
            assert_eq!(scaled.summary(), plain.summary(), "{rate} at 2^{exponent}");
            assert_eq!(scaled.size_in_bytes(), plain.size_in_bytes());
            assert_eq!(scaled.relative_error(), plain.relative_error());
            let scaled = RbeTensor::from_bytes(scaled.to_bytes().unwrap()).unwrap();
            let back = times(&scaled.dequantize().unwrap(), -exponent);
            assert_eq!(measured_difference(&back, &decoded), 0.0, "{rate} at 2^{exponent}");
            // And so are its products.
            let expected = x.matmul(&decoded.t().unwrap()).unwrap();
            let product = RbeLinear::new(scaled, None).with_precision(Precision::Exact).forward(&x).unwrap();
            let error = measured_difference(&times(&product, -exponent), &expected);
            assert!(error < 1e-5, "{rate} at 2^{exponent}: {error:e}");
        }
    }
}

#[test]
fn weights_that_f32_makes_zeros_of_are_refused() {
    for (dtype, value) in
        [(DType::F64, 1e-62), (DType::F64, 1e-310), (DType::F32, 1e-36), (DType::F32, 1e-44)]
    {
        let weight = Tensor::full(value, (64, 64), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let error = encode(EncoderConfig::default(), &weight).unwrap_err().to_string();
        assert!(error.contains("the largest weight is") && error.contains("below 1e-30"), "{error}");
    }
    let huge = Tensor::full(1e300f64, (64, 64), &Device::Cpu).unwrap();
    let error = encode(EncoderConfig::default(), &huge).unwrap_err().to_string();
    assert!(error.contains("a weight of 1e300"), "{error}");
    // Small weights among others are as good as zero.
    let mut values =
        smooth(64, 64).flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    values[77] = 1e-200;
    let mixed = Tensor::from_vec(values, (64, 64), &Device::Cpu).unwrap();
    assert!(measured_error(&mixed, &encode(Rate::RelativeError(0.02), &mixed).unwrap()) < 0.0201);
}

#[test]
fn what_cannot_be_done_is_an_error_that_says_what_to_do() {
    let refused = |config: EncoderConfig, weight: &Tensor| encode(config, weight).unwrap_err();
    let weight = projection();
    let error = refused(Rate::RelativeError(1e-6).into(), &weight);
    assert!(matches!(error, Error::Codec(candle_rbe::CodecError::UnreachableRate { .. })), "{error}");
    assert!(error.to_string().contains("a relative error of 0.000001"), "{error}");
    let error = refused(Rate::BitsPerWeight(0.0001).into(), &weight);
    assert!(error.to_string().contains("ask for more bits"), "{error}");
    for (rate, text) in [
        (Rate::BitsPerWeight(0.0), "must be positive"),
        (Rate::BitsPerWeight(f64::NAN), "must be positive"),
        (Rate::RelativeError(1.5), "between 0 and 1"),
        (Rate::Rmse(-1.0), "must be positive"),
        (Rate::Coefficients(0), "must be 1 to 65535"),
        (Rate::Coefficients(5000), "of a block that has 4096"),
    ] {
        let error = refused(rate.into(), &weight);
        assert!(error.to_string().contains(text), "{error}");
    }
    let planes = EncoderConfig { term: TermChoice::Planes, ..Rate::Coefficients(9).into() };
    assert!(refused(planes, &weight).to_string().contains("the term planes holds every coefficient"));
    let trellis = EncoderConfig { term: TermChoice::Trellis, ..Rate::Coefficients(9).into() };
    assert!(refused(trellis, &weight).to_string().contains("the term trellis holds every coefficient"));
    let states = EncoderConfig { trellis_state_bits: 17, ..EncoderConfig::default() };
    assert!(refused(states, &weight).to_string().contains("allowed are 12 to 16"));
    let block = EncoderConfig { block: Some(48), ..EncoderConfig::default() };
    assert!(refused(block, &weight).to_string().contains("allowed are 32, 64, 128 and 256"));
    for bad in [f32::NAN, f32::INFINITY] {
        let mut values = vec![1f32; 64 * 64];
        values[65] = bad;
        let weight = Tensor::from_vec(values, (64, 64), &Device::Cpu).unwrap();
        let error = refused(EncoderConfig::default(), &weight);
        assert!(
            matches!(error, Error::Codec(candle_rbe::CodecError::NonFinite { index: 65, .. })),
            "{error}"
        );
    }
    let huge = Tensor::full(1e31f32, (64, 64), &Device::Cpu).unwrap();
    assert!(refused(EncoderConfig::default(), &huge).to_string().contains("a weight of 1e31"));
    let cube = Tensor::zeros((2, 2, 2), DType::F32, &Device::Cpu).unwrap();
    assert!(refused(EncoderConfig::default(), &cube).to_string().contains("only vectors and matrices"));
    let empty = Tensor::zeros((0, 5), DType::F32, &Device::Cpu).unwrap();
    assert!(refused(EncoderConfig::default(), &empty).to_string().contains("no elements"));
}

#[test]
fn pruning_moves_what_it_can_into_the_basis() {
    use candle_rbe::encode::prune;
    let field = smooth(256, 256);
    let config = EncoderConfig { basis: Some(false), block: Some(64), ..Rate::Coefficients(100).into() };
    let compressed = encode(config, &field).unwrap();
    let matrix = &compressed.to_matrix().unwrap();
    let values = field.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let error = |weights: Vec<f32>| {
        let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
        weights.iter().zip(&values).map(square).sum::<f64>().sqrt()
    };
    let pruned = prune(matrix, 2.0).unwrap();
    assert!(pruned.size_in_bytes() < matrix.size_in_bytes());
    // The same coefficients dropped without absorption lose more.
    let dropped = {
        use candle_rbe::codec::term::{Sparse, Term};
        let Term::Sparse(sparse) = &matrix.terms()[0] else { panic!("one sparse term") };
        let kept: Vec<_> = matrix
            .layout()
            .iter()
            .map(|block| sparse.entries(block).into_iter().filter(|e| e.value.abs() >= 2.0).collect())
            .collect();
        let term = Term::Sparse(Sparse::pack(matrix.layout(), sparse.format(), &kept).unwrap());
        candle_rbe::codec::Matrix::new(matrix.layout(), matrix.transform(), matrix.seed(), vec![term], 0.0)
    };
    assert!(error(pruned.decode()) < 0.9 * error(dropped.decode()));
    assert!(
        prune(&encode(EncoderConfig::default(), &projection()).unwrap().to_matrix().unwrap(), 1.0).is_err()
    );
}

/// Of the Gaussian numbers.
const DEVIATION: f32 = 0.02;

/// Gaussian numbers, always the same: those of SplitMix64 by Box and Muller's transform.
fn gaussian(rows: usize, cols: usize) -> Tensor {
    let mut state = (rows * 1000 + cols) as u64;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 40) as f64 + 0.5) / f64::from(1u32 << 24)
    };
    let mut value =
        || f64::from(DEVIATION) * (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    let values: Vec<f32> = (0..rows * cols).map(|_| value() as f32).collect();
    Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()
}

#[test]
fn a_budget_is_kept_and_spent_at_every_shape() {
    let rates = [2.1, 3.02, 4.02, 5.3, 6.05, 8.05];
    let mut shapes =
        vec![(262, 256, 4.02), (268, 256, 3.02), (260, 512, 4.02), (192, 576, 4.02), (257, 257, 2.1)];
    // Primes and what lies between.
    shapes.extend((0..40).map(|n| (64 + n * 7919 % 400, 61 + n * 6007 % 390, rates[n % rates.len()])));
    for (rows, cols, bits) in shapes {
        let compressed = encode(Rate::BitsPerWeight(bits), &gaussian(rows, cols)).unwrap();
        let (got, errors) = (compressed.bits_per_weight(), compressed.errors());
        let context = format!("{rows}x{cols} at {bits}: {got}, {errors:?}, {}", compressed.summary());
        assert!(got <= bits, "{context}");
        // Half a bit of what no code for a Gaussian can do better than, or a bit where few weights share the header.
        let lost = if rows * cols < 1 << 14 { 1.0 } else { 0.5 };
        assert!(f64::from(errors.relative) < 2f64.powf(lost - bits), "{context}");
        assert!(!errors.has_a_bad_row() && !errors.has_a_bad_block(), "{context}");
    }
}

#[test]
fn rows_added_to_a_vocabulary_are_as_good_as_the_others() {
    for more in 0..300 {
        let bits = [2.05, 3.05, 4.05, 8.1][more % 4];
        let weight = gaussian(512 + more, 32);
        let compressed = encode(Rate::BitsPerWeight(bits), &weight).unwrap();
        let errors = compressed.errors();
        let context = format!("512 + {more} rows at {bits}: {errors:?} {}", compressed.summary());
        assert!(compressed.summary().starts_with("trellis"), "{context}");
        assert!(!errors.has_a_bad_row() && !errors.has_a_bad_block(), "{context}");
    }
}

#[test]
fn a_second_trellis_is_not_begun_for_crumbs() {
    for (rows, cols) in [(192, 576), (576, 576), (576, 1536), (1536, 576)] {
        let compressed = encode(EncoderConfig::default(), &gaussian(rows, cols)).unwrap();
        assert!(compressed.summary().starts_with("trellis 4,"), "{rows}x{cols}: {}", compressed.summary());
    }
    let term = TermChoice::Trellis;
    let more = EncoderConfig { term, ..Rate::BitsPerWeight(4.5).into() };
    let more = encode(more, &gaussian(576, 576)).unwrap();
    assert_eq!(more.summary().matches("trellis").count(), 2, "{}", more.summary());
}

#[test]
fn planes_take_the_place_of_two_trellises_where_files_are_nearly_as_good() {
    let weight = projection();
    let trellis = |rate: Rate, budget| {
        encode(EncoderConfig { term: TermChoice::Trellis, budget, ..rate.into() }, &weight).unwrap()
    };
    let own = |rate: Rate, budget| encode(EncoderConfig { budget, ..rate.into() }, &weight).unwrap();
    for rate in [4.5, 5.8, 6.4].map(Rate::BitsPerWeight) {
        let (planes, two) = (own(rate, Budget::File), trellis(rate, Budget::File));
        assert!(planes.summary().starts_with("planes"), "{rate:?}: {}", planes.summary());
        assert!(planes.relative_error() < 1.03 * two.relative_error(), "{rate:?}");
    }
    for rate in [0.018, 0.01].map(Rate::RelativeError) {
        let (own, two) = (own(rate, Budget::File), trellis(rate, Budget::File));
        assert_eq!(two.summary().matches("trellis").count(), 2, "{rate:?}: {}", two.summary());
        assert!(own.summary().starts_with("planes"), "{rate:?}: {}", own.summary());
        assert!(own.bits_per_weight() < 1.01 * two.bits_per_weight(), "{rate:?}");
    }
    // One trellis is as fast; nor do planes have eight bits of a file, or fewer bits in memory.
    for (bits, budget) in [(4.02, Budget::File), (8.05, Budget::File), (5.8, Budget::Memory)] {
        let own = own(Rate::BitsPerWeight(bits), budget);
        assert!(own.summary().starts_with("trellis"), "{bits} bits: {}", own.summary());
    }
}

#[test]
fn planes_that_reach_an_error_on_a_sample_alone_are_not_taken() {
    // The sample are the blocks of 256 on the diagonal; every other block has coefficients that eight planes with a fine step do not reach.
    let (edge, side) = (256, 1024);
    let other = gaussian_with_an_outlier(edge, edge, edge, 60.0);
    let blocks = |row: usize| {
        let block = |col: usize| if row == col { gaussian(edge, edge) } else { other.clone() };
        Tensor::cat(&(0..side / edge).map(block).collect::<Vec<_>>(), 1).unwrap()
    };
    let weight = Tensor::cat(&(0..side / edge).map(blocks).collect::<Vec<_>>(), 0).unwrap();
    for bound in [0.018, 0.012, 0.01, 0.0092] {
        let compressed = encode(Rate::RelativeError(bound), &weight).unwrap();
        assert!(measured_error(&weight, &compressed) <= bound * (1.0 + 1e-6), "{}", compressed.summary());
    }
}

/// Gaussian numbers, to which a block is added of which the transform makes one coefficient, so many deviations large.
fn gaussian_with_an_outlier(rows: usize, cols: usize, edge: usize, deviations: f32) -> Tensor {
    use candle_rbe::codec::term::sparse::{Entry, Format, Sparse};
    use candle_rbe::codec::{Layout, Matrix, Transform};
    let layout = Layout::new(rows, cols, edge).unwrap();
    let mut blocks = vec![vec![]; layout.blocks()];
    blocks[layout.blocks() / 2].push(Entry { row: 3, col: 5, value: deviations * DEVIATION });
    let term = Sparse::pack(layout, Format::Word32, &blocks).unwrap();
    let seed = Some(EncoderConfig::default().seed);
    let block = Matrix::new(layout, Transform::Dct, seed, vec![term.into()], 0.0).decode();
    (gaussian(rows, cols) + Tensor::from_vec(block, (rows, cols), &Device::Cpu).unwrap()).unwrap()
}

#[test]
fn a_block_with_one_large_coefficient_is_nearly_as_exact_as_the_others() {
    for (edge, deviations) in [(64, 16.0), (64, 25.0), (64, 36.0), (32, 20.0)] {
        let weight = gaussian_with_an_outlier(512, 576, edge, deviations);
        for (bits, budget) in [(4.1, Budget::File), (5.8, Budget::File), (6.1, Budget::Memory)] {
            let rate = Rate::BitsPerWeight(bits);
            let config = EncoderConfig { budget, term: TermChoice::Planes, block: Some(edge), ..rate.into() };
            let errors = encode(config, &weight).unwrap().errors();
            assert!(!errors.has_a_bad_row(), "{edge}, {deviations} deviations, {bits} bits: {errors:?}");
        }
    }
}

#[test]
fn scales_even_out_rows_and_columns_that_differ() {
    // Rows over three octaves, columns over four.
    let (rows, cols) = (576, 320);
    let octaves = |n: usize, of: f32, len: usize| (of * (n * 37 % len) as f32 / len as f32).exp2();
    let size: Vec<f32> =
        (0..rows * cols).map(|n| octaves(n / cols, 3.0, rows) * octaves(n % cols, 4.0, cols)).collect();
    let even = gaussian(rows, cols);
    let weight = (&even * Tensor::from_vec(size, (rows, cols), &Device::Cpu).unwrap()).unwrap();
    for bits in [3.1, 4.1, 6.1] {
        let with = |scales: bool, weight: &Tensor| {
            encode(EncoderConfig { scales, ..Rate::BitsPerWeight(bits).into() }, weight).unwrap()
        };
        let (plain, scaled) = (with(false, &weight), with(true, &weight));
        assert!(scaled.summary().ends_with("scales of rows and columns"), "{}", scaled.summary());
        assert!(scaled.bits_per_weight() <= bits);
        assert!(scaled.relative_error() < 0.75 * plain.relative_error(), "{plain:?} {scaled:?}");
        assert!((scaled.relative_error() - measured_error(&weight, &scaled)).abs() < 1e-5);
        // Small rows have half the share of the noise that they had.
        let [plain_row, row] = [&plain, &scaled].map(|t| t.errors().worst_row);
        assert!(row < 0.7 * plain_row, "{plain_row} {row}");
        let again = RbeTensor::from_bytes(scaled.to_bytes().unwrap()).unwrap();
        assert_eq!(again.to_bytes().unwrap(), scaled.to_bytes().unwrap());
        // Where all are alike they cost more than they save.
        assert_eq!(with(true, &even).to_bytes().unwrap(), with(false, &even).to_bytes().unwrap());
    }
    // Neither errors nor sparse terms ask for them.
    for config in [
        Rate::RelativeError(0.1).into(),
        EncoderConfig { term: TermChoice::Sparse, ..Rate::BitsPerWeight(1.0).into() },
    ] {
        let scaled = encode(EncoderConfig { scales: true, ..config }, &weight).unwrap();
        assert!(!scaled.summary().contains("scales"), "{}", scaled.summary());
    }
}
