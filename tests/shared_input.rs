//! Layers that share an input's transform, and layers that write into a tensor: the same results as each layer's forward.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::Module;
use candle_rbe::nn::{DecodeMode, forward_all};
use candle_rbe::{Encoder, EncoderConfig, Linear, Precision, Rate, RbeLinear, TermChoice, ops};

fn wave(shape: &[usize], speed: f64) -> Result<Tensor> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|n| (n as f64 * speed).sin() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// Layers of one input: all terms, with and without bias, of which the first two and the last three share signs and block
/// edge.
fn layers() -> Result<Vec<RbeLinear>> {
    let planes = Rate::BitsPerWeight(5.1);
    let choices = [
        (TermChoice::Trellis, Rate::BitsPerWeight(4.1), 64, 1, 128),
        (TermChoice::Planes, planes, 64, 1, 72),
        (TermChoice::Planes, planes, 32, 1, 64),
        (TermChoice::Sparse, Rate::Coefficients(400), 64, 2, 100),
        (TermChoice::Planes, planes, 64, 2, 64),
        // Two terms.
        (TermChoice::Trellis, Rate::BitsPerWeight(6.2), 64, 2, 100),
    ];
    let mut layers = Vec::new();
    for (n, (term, rate, block, seed, out_features)) in choices.into_iter().enumerate() {
        let config =
            EncoderConfig { term, rate, block: Some(block), seed, signs: Some(true), ..Default::default() };
        let weight = wave(&[out_features, 160], 0.7 + n as f64)?;
        let bias = if n % 2 == 0 { Some(wave(&[out_features], 0.3)?) } else { None };
        layers.push(RbeLinear::new(Encoder::new(config)?.encode(&weight)?, bias));
    }
    Ok(layers)
}

#[test]
fn outputs_and_gradients_are_those_of_each_layer() -> Result<()> {
    let layers = layers()?;
    for shape in [vec![160], vec![3, 160], vec![2, 9, 160]] {
        for dtype in [DType::F32, DType::F16] {
            let x = Var::from_tensor(&wave(&shape, 0.11)?.to_dtype(dtype)?)?;
            let weights: Vec<_> = layers.iter().map(|layer| layer.weight()).collect();
            let (mut together, mut apart) = (Tensor::zeros((), dtype, x.device())?, Vec::new());
            let outputs = ops::matmul_all(&x, &weights, Precision::Exact)?;
            for (output, weight) in outputs.iter().zip(&weights) {
                let one = ops::matmul(&x, weight, Precision::Exact)?;
                assert_eq!((output.dims(), output.dtype()), (one.dims(), dtype));
                assert_eq!(bits(output)?, bits(&one)?);
                together = (together + (output.sqr()? * 0.5)?.sum_all()?)?;
                apart.push((one.sqr()? * 0.5)?.sum_all()?.backward()?);
            }
            let gradients = together.backward()?;
            let mut expected = vec![0f32; x.elem_count()];
            for gradients in apart {
                let share = values(gradients.get(&x).expect("the product depends on its input"))?;
                expected.iter_mut().zip(share).for_each(|(sum, share)| *sum += share);
            }
            let got = values(gradients.get(&x).expect("the products depend on their input"))?;
            let size = expected.iter().fold(0f32, |size, value| size.max(value.abs()));
            let bound = if dtype == DType::F32 { 1e-6 } else { 4e-3 };
            assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= bound * size));
        }
    }
    Ok(())
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
    Ok(values(tensor)?.into_iter().map(f32::to_bits).collect())
}

#[test]
fn every_kind_of_layer_may_be_among_them() -> Result<()> {
    let rbe = layers()?;
    let x = wave(&[4, 160], 0.13)?;
    let compressed = |n: usize| Linear::from(rbe[n].clone());
    let dense = Linear::new(wave(&[50, 160], 0.9)?, None);
    let decoded = rbe[4].clone().with_mode(DecodeMode::Full { cache_bytes: 1 << 20 })?;
    let first_planes = rbe[1].clone().with_mode(DecodeMode::Progressive { planes: 2 })?;
    let int8 = rbe[0].clone().with_precision(Precision::Int8);
    for layers in [
        [compressed(0), compressed(1), compressed(2)],
        [compressed(3), dense, compressed(4)],
        [decoded.into(), compressed(0), first_planes.into()],
        [int8.clone().into(), compressed(1), int8.into()],
    ] {
        for (output, layer) in forward_all([&layers[0], &layers[1], &layers[2]], &x)?.iter().zip(&layers) {
            // A cache's blocks are multiplied in another order every other time.
            let (output, alone) = (values(output)?, values(&layer.forward(&x)?)?);
            assert!(output.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-5 * (1.0 + b.abs())));
        }
    }
    // Counted by each call and as many tokens.
    let before = rbe[0].counts();
    forward_all([&compressed(0), &compressed(1)], &x)?;
    let after = rbe[0].counts();
    assert_eq!((after.calls - before.calls, after.tokens - before.tokens), (1, 4));
    let wrong =
        forward_all([&compressed(0), &compressed(1)], &wave(&[4, 100], 0.1)?).unwrap_err().to_string();
    assert!(wrong.contains("[4, 100]") && wrong.contains("(128, 160)"), "{wrong}");
    Ok(())
}

#[test]
fn an_output_is_written_where_it_is_asked_for() -> Result<()> {
    for layer in layers()? {
        let out_features = layer.weight().shape().dims2()?.0;
        for tokens in [1, 3, 20] {
            let x = wave(&[tokens, 160], 0.2)?;
            // A part of a larger tensor, whose other rows stay as they are.
            let room = wave(&[tokens + 2, out_features], 0.5)?;
            let around = [room.get(0)?, room.get(tokens + 1)?].map(|row| bits(&row));
            let y = room.narrow(0, 1, tokens)?;
            layer.forward_into(&x, &y)?;
            assert_eq!(bits(&y)?, bits(&layer.forward(&x)?)?);
            for (row, before) in [room.get(0)?, room.get(tokens + 1)?].iter().zip(around) {
                assert_eq!(bits(row)?, before?);
            }
        }
        let refused = |x: &[usize], y: &Tensor| -> Result<String> {
            Ok(layer.forward_into(&wave(x, 0.1)?, y).unwrap_err().to_string())
        };
        let y = Tensor::zeros((2, out_features), DType::F32, &Device::Cpu)?;
        assert!(refused(&[3, 160], &y)?.contains("output of shape [2"));
        assert!(refused(&[2, 161], &y)?.contains("[2, 161]"));
        assert!(refused(&[2, 160], &y.to_dtype(DType::F16)?)?.contains("F32"));
        let strided = Tensor::zeros((out_features, 2), DType::F32, &Device::Cpu)?.t()?;
        assert!(refused(&[2, 160], &strided)?.contains("contiguous"));
    }
    Ok(())
}
