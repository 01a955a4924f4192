//! The ways in which a layer may use its compressed weight, and what it counts.

use candle_core::{Device, Result, Shape, Tensor, Var};
use candle_nn::{Module, VarBuilder};
use candle_rbe::nn::{layer_counts, reset_layer_counts};
use candle_rbe::{
    DecodeMode, Encoder, EncoderConfig, Precision, Quality, Rate, RbeLinear, RbeTensor, TermChoice,
    linear_no_bias,
};
use std::collections::HashMap;

/// Nearly Gaussian numbers of mean 0 and this deviation, the same at every run, so that a bound holds always or never.
fn noise(deviation: f32, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let mut state = 12345u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    // Twelve of variance 1/12.
    let mut gaussian = || deviation * ((0..12).map(|_| uniform()).sum::<f32>() - 6.0);
    Tensor::from_vec((0..shape.elem_count()).map(|_| gaussian()).collect::<Vec<_>>(), shape, &Device::Cpu)
}

fn encode(term: TermChoice, shape: (usize, usize), bits: f64) -> anyhow::Result<RbeTensor> {
    let weight = noise(0.1, shape)?;
    let config = EncoderConfig { term, block: Some(64), ..Rate::BitsPerWeight(bits).into() };
    Ok(Encoder::new(config)?.encode(&weight)?)
}

/// `|a - b| / |b|`.
fn error(a: &Tensor, b: &Tensor) -> Result<f32> {
    let norm = |x: Tensor| x.to_dtype(candle_core::DType::F32)?.sqr()?.sum_all()?.to_scalar::<f32>();
    Ok((norm((a - b)?)? / norm(b.clone())?).sqrt())
}

const BLOCK_BYTES: usize = 64 * 64 * 4;

#[test]
fn decoded_blocks_give_the_same_product() -> anyhow::Result<()> {
    for term in [TermChoice::Trellis, TermChoice::Planes, TermChoice::Sparse] {
        let weight = encode(term, (150, 200), 4.2)?;
        for weight in [weight.clone(), weight.t()?] {
            let (out, input) = weight.shape().dims2()?;
            let bias = noise(1.0, out)?;
            let direct = RbeLinear::new(weight.clone(), Some(bias)).with_precision(Precision::Exact);
            let x = noise(1.0, (2, 3, input))?;
            for blocks in [1, 5, 100] {
                let full =
                    direct.clone().with_mode(DecodeMode::Full { cache_bytes: blocks * BLOCK_BYTES })?;
                for _ in 0..3 {
                    let (a, b) = (full.forward(&x)?, direct.forward(&x)?);
                    assert_eq!(a.shape(), b.shape());
                    assert!(error(&a, &b)? < 1e-5, "{term:?}, {blocks} blocks: {}", error(&a, &b)?);
                }
            }
            let half = x.to_dtype(candle_core::DType::F16)?;
            let full =
                RbeLinear::new(weight.clone(), None).with_mode(DecodeMode::full(Quality::Fast, &weight))?;
            assert_eq!(full.forward(&half)?.dtype(), half.dtype());
            assert!(full.forward(&x.narrow(2, 0, 10)?).is_err());
        }
    }
    Ok(())
}

#[test]
fn decoded_blocks_give_the_same_bits_whatever_is_cached() -> anyhow::Result<()> {
    let weight = encode(TermChoice::Planes, (150, 330), 4.2)?;
    for weight in [weight.clone(), weight.t()?] {
        let (_, input) = weight.shape().dims2()?;
        let x = noise(1.0, (3, input))?;
        let mut outputs = vec![];
        for blocks in [1, 2, 5, 7, 100] {
            let mode = DecodeMode::Full { cache_bytes: blocks * BLOCK_BYTES };
            let layer = RbeLinear::new(weight.clone(), None).with_mode(mode)?;
            for _ in 0..4 {
                outputs.push(layer.forward(&x)?.flatten_all()?.to_vec1::<f32>()?);
            }
        }
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert!(outputs.iter().all(|other| bits(other) == bits(&outputs[0])));
    }
    Ok(())
}

#[test]
fn a_small_cache_still_finds_what_it_holds() -> anyhow::Result<()> {
    // Twelve blocks. The second call begins with the five that the first left.
    let weight = encode(TermChoice::Planes, (192, 256), 4.2)?;
    let layer =
        RbeLinear::new(weight, None).with_mode(DecodeMode::Full { cache_bytes: 5 * BLOCK_BYTES + 100 })?;
    let x = noise(1.0, (4, 256))?;
    layer.forward(&x)?;
    assert_eq!((layer.counts().cache_hits, layer.counts().cache_misses), (0, 12));
    layer.forward(&x)?;
    let counts = layer.counts();
    assert_eq!((counts.cache_hits, counts.cache_misses), (5, 19));
    assert_eq!((counts.calls, counts.tokens, counts.multiply_adds), (2, 8, 8 * 192 * 256));
    assert_eq!(counts.unpacked, 19 * 64 * 64);
    assert!((counts.hit_rate().unwrap() - 5.0 / 24.0).abs() < 1e-12 && counts.time().as_nanos() > 0);
    Ok(())
}

#[test]
fn first_planes_are_the_nested_quantiser() -> anyhow::Result<()> {
    let weight = encode(TermChoice::Planes, (150, 200), 8.2)?;
    let x = noise(1.0, (3, 200))?;
    let all = RbeLinear::new(weight.clone(), None).with_precision(Precision::Exact);
    let mut last = f32::INFINITY;
    for planes in 1..=8 {
        let layer = all.clone().with_mode(DecodeMode::Progressive { planes })?;
        let coarse = weight.first_planes(planes)?;
        let dense = candle_nn::Linear::new(coarse.dequantize()?, None).forward(&x)?;
        let y = layer.forward(&x)?;
        assert!(error(&y, &dense)? < 1e-5);
        let loss = error(&y, &all.forward(&x)?)?;
        assert!(loss < last, "{planes} planes lose {loss}, one less {last}");
        last = loss;
        // Bytes in proportion, and the scales.
        assert!(coarse.memory_in_bytes() * 8 < weight.memory_in_bytes() * usize::from(planes) + 8 * 1000);
        // The gradient is that of all planes.
        let input = Var::from_tensor(&x)?;
        let gradient = |layer: &RbeLinear| -> Result<Tensor> {
            Ok(layer.forward(input.as_tensor())?.sum_all()?.backward()?.get(&input).unwrap().clone())
        };
        assert!(error(&gradient(&layer)?, &gradient(&all)?)? < 1e-6);
    }
    assert!(last < 1e-6);
    Ok(())
}

#[test]
fn what_cannot_be_done_is_refused() -> anyhow::Result<()> {
    let (trellis, planes) =
        (encode(TermChoice::Trellis, (64, 64), 4.2)?, encode(TermChoice::Planes, (64, 64), 4.2)?);
    let refusal = |weight: &RbeTensor, mode| {
        RbeLinear::new(weight.clone(), None).with_mode(mode).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refusal(&trellis, DecodeMode::Progressive { planes: 2 }).contains("tensor without any"));
    assert!(refusal(&planes, DecodeMode::Progressive { planes: 0 }).contains("there are 1 to 8"));
    assert!(refusal(&planes, DecodeMode::Progressive { planes: 9 }).contains("there are 1 to 8"));
    assert!(refusal(&planes, DecodeMode::Full { cache_bytes: BLOCK_BYTES - 1 }).contains("not one fits"));
    Ok(())
}

#[test]
fn layers_from_a_file_are_counted_under_their_names() -> anyhow::Result<()> {
    let payload = encode(TermChoice::Planes, (96, 64), 4.2)?.to_bytes().unwrap();
    let payload = Tensor::from_vec(payload.clone(), payload.len(), &Device::Cpu)?;
    let tensors = HashMap::from([("named.up.weight.rbe".to_string(), payload)]);
    let vb = VarBuilder::from_tensors(tensors, candle_core::DType::F32, &Device::Cpu);
    let layer = linear_no_bias(64, 96, vb.pp("named").pp("up"))?;
    assert!(layer.weight().rbe().is_some());
    let find = || layer_counts().into_iter().find(|counts| counts.layer == "named.up");
    layer.forward(&Tensor::ones((5, 64), candle_core::DType::F32, &Device::Cpu)?)?;
    let counts = find().unwrap().counts;
    assert_eq!((counts.calls, counts.tokens, counts.unpacked), (1, 5, 96 * 64));
    reset_layer_counts();
    assert_eq!(find().unwrap().counts, Default::default());
    drop(layer);
    assert_eq!(find(), None);
    Ok(())
}
