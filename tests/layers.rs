//! Compressed layers against Candle's own on the decoded weights: the same weights, two ways.

use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use candle_nn::{Embedding, Linear, Module, VarBuilder, VarMap};
use candle_rbe::nn::Weight;
use candle_rbe::{
    Encoder, EncoderConfig, Precision, Rate, RbeLinear, RbeTensor, TermChoice, Transform, linear, ops,
};

const TRANSFORMS: [Transform; 3] = [Transform::Dct, Transform::Haar, Transform::Daubechies4];
const EDGES: [usize; 4] = [32, 64, 128, 256];

/// The same numbers in `-1..1` at every run, so that a bound holds always or never.
fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn input(shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let mut noise = noise(shape.elem_count() as u64);
    let values: Vec<f32> = (0..shape.elem_count()).map(|_| noise()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// A matrix with a smooth part, noise and outliers, so that every term has something to do.
fn weight(rows: usize, cols: usize) -> Result<Tensor> {
    let mut noise = noise(12345);
    let values: Vec<f32> = (0..rows * cols)
        .map(|n| {
            let (r, c) = ((n / cols) as f32, (n % cols) as f32);
            let outlier = if n % 97 == 0 { 3.0 } else { 1.0 };
            0.05 * ((r * 0.05).sin() + (c * 0.03).cos()) + 0.04 * noise() * outlier
        })
        .collect();
    Tensor::from_vec(values, (rows, cols), &Device::Cpu)
}

fn relative_error(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
    let difference = (a - &b)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
    Ok((difference / b.sqr()?.sum_all()?.to_scalar::<f64>()?.max(1e-30)).sqrt())
}

fn encode(config: EncoderConfig, weight: &Tensor) -> RbeTensor {
    Encoder::new(config).unwrap().encode(weight).unwrap()
}

/// A layer whose products are compared with Candle's.
fn exact(weight: RbeTensor, bias: Option<Tensor>) -> RbeLinear {
    RbeLinear::new(weight, bias).with_precision(Precision::Exact)
}

/// Every kind of encoding at one block edge and transform.
fn encodings(block: usize, transform: Transform) -> Vec<EncoderConfig> {
    let base = EncoderConfig { block: Some(block), transform, ..EncoderConfig::default() };
    let mut all = Vec::new();
    for signs in [false, true] {
        for basis in [false, true] {
            let choice = EncoderConfig { signs: Some(signs), basis: Some(basis), ..base.clone() };
            let planes = Rate::BitsPerWeight(1e4);
            all.push(EncoderConfig { term: TermChoice::Planes, rate: planes, ..choice.clone() });
            let sparse = Rate::Coefficients(block * block / 10);
            all.push(EncoderConfig { term: TermChoice::Sparse, rate: sparse, ..choice });
        }
    }
    all
}

#[test]
fn linear_equals_candles_on_the_decoded_weight() -> Result<()> {
    let mut worst = 0f64;
    for (out_features, in_features) in [(172, 64), (100, 1), (1, 257), (1, 1), (300, 259)] {
        let weight = weight(out_features, in_features)?;
        let bias = input(out_features)?;
        let x = input((3, in_features))?;
        for block in EDGES {
            for transform in TRANSFORMS {
                for config in encodings(block, transform) {
                    let compressed = encode(config.clone(), &weight);
                    let dense = Linear::new(compressed.dequantize()?, Some(bias.clone())).forward(&x)?;
                    let ours = exact(compressed, Some(bias.clone())).forward(&x)?;
                    let error = relative_error(&ours, &dense)?;
                    assert!(error <= 1e-5, "{out_features}x{in_features} {config:?}: {error:e}");
                    worst = worst.max(error);
                }
            }
        }
    }
    println!("largest relative error {worst:.1e}");
    Ok(())
}

#[test]
fn a_large_layer_equals_candles_too() -> Result<()> {
    let weight = weight(4096, 4096)?;
    let x = input((2, 4096))?;
    for term in [TermChoice::Planes, TermChoice::Sparse] {
        let config = EncoderConfig { term, block: Some(256), ..Rate::BitsPerWeight(2.0).into() };
        let compressed = encode(config, &weight);
        let dense = Linear::new(compressed.dequantize()?, None).forward(&x)?;
        let error = relative_error(&exact(compressed, None).forward(&x)?, &dense)?;
        assert!(error <= 1e-5, "{term:?}: {error:e}");
    }
    Ok(())
}

/// As `|a - b| / |b|`: two bytes lose a thousandth at most, one at most what its derivation says, and the default adds no more than
/// 2.6 % to the weights' own error.
#[test]
fn every_precision_keeps_what_it_promises() -> Result<()> {
    let (weight, x) = (input((300, 512))?, input((16, 512))?);
    let original = Linear::new(weight.clone(), None).forward(&x)?;
    for (term, bits) in [
        (TermChoice::Trellis, 2.1),
        (TermChoice::Trellis, 4.1),
        (TermChoice::Trellis, 5.1),
        (TermChoice::Trellis, 7.1),
        (TermChoice::Planes, 3.1),
        (TermChoice::Planes, 8.1),
    ] {
        let config = EncoderConfig { term, signs: Some(true), ..Rate::BitsPerWeight(bits).into() };
        let compressed = encode(config, &weight);
        let own = compressed.relative_error();
        let layer = RbeLinear::new(compressed, None);
        assert_eq!(layer.config().precision, Precision::Auto);
        let at = |precision| layer.clone().with_precision(precision).forward(&x);
        let [auto, int8, int16, exact] =
            [Precision::Auto, Precision::Int8, Precision::Int16, Precision::Exact].map(at);
        let (auto, int8, int16, exact) = (auto?, int8?, int16?, exact?);
        let loss = |y: &Tensor| relative_error(y, &exact);
        let what = format!("{term:?} at {bits} bits");
        assert!(loss(&int16)? <= 1e-4, "{what}: {:e}", loss(&int16)?);
        assert!(loss(&int8)? > 1e-3 && loss(&int8)? <= 7.5e-3, "{what}: {:e}", loss(&int8)?);
        assert_eq!(loss(&auto)? == loss(&int8)?, own >= 0.03, "{what}, whose weights lose {own}");
        assert!(own >= 0.03 || loss(&auto)? == loss(&int16)?);
        // What a product loses in all, beside what it would lose by the weights alone.
        let growth = relative_error(&auto, &original)? / relative_error(&exact, &original)?;
        println!(
            "{what}: weights {own:.4}, int8 {:.5}, int16 {:.6}, growth {growth:.4}",
            loss(&int8)?,
            loss(&int16)?
        );
        assert!(growth < 1.026, "{what}: {growth}");
    }
    Ok(())
}

#[test]
fn the_default_takes_two_bytes_where_one_would_show() -> Result<()> {
    // One input is as large as all others together: without signs and DCT it sets the step that all are rounded to.
    let weight = input((300, 256))?;
    let mut x = vec![0.01f32; 256];
    x[77] = 100.0;
    let x = Tensor::from_vec(x, (1, 256), &Device::Cpu)?;
    let layer = |config: EncoderConfig| -> Result<(Tensor, Tensor)> {
        let layer = RbeLinear::new(encode(config, &weight), None);
        Ok((layer.forward(&x)?, layer.with_precision(Precision::Int16).forward(&x)?))
    };
    let config = |signs, transform| {
        let rate = Rate::BitsPerWeight(3.1);
        EncoderConfig { term: TermChoice::Trellis, signs: Some(signs), transform, ..rate.into() }
    };
    for (signs, transform) in [(false, Transform::Dct), (true, Transform::Haar), (false, Transform::Haar)] {
        let (default, two) = layer(config(signs, transform))?;
        assert_eq!(default.to_vec2::<f32>()?, two.to_vec2::<f32>()?, "{signs} {transform:?}");
    }
    let (default, two) = layer(config(true, Transform::Dct))?;
    assert_ne!(default.to_vec2::<f32>()?, two.to_vec2::<f32>()?);
    // The error of the first planes was never measured.
    let config = EncoderConfig { term: TermChoice::Planes, ..config(true, Transform::Dct) };
    let planes = encode(config, &weight).first_planes(2)?;
    let layer = RbeLinear::new(planes, None);
    let two = layer.clone().with_precision(Precision::Int16).forward(&x)?;
    assert_eq!(layer.forward(&x)?.to_vec2::<f32>()?, two.to_vec2::<f32>()?);
    Ok(())
}

#[test]
fn any_leading_shape_stride_offset_and_float_type() -> Result<()> {
    let weight = weight(70, 90)?;
    let layer = exact(encode(EncoderConfig::default(), &weight), None);
    let dense = Linear::new(layer.weight().dequantize()?, None);
    let x = input((4, 90, 5))?;
    let inputs = [
        x.transpose(1, 2)?,
        x.transpose(1, 2)?.narrow(0, 1, 2)?,
        x.transpose(1, 2)?.contiguous()?,
        x.get(2)?.t()?,
        x.get(2)?.t()?.contiguous()?.get(3)?.unsqueeze(0)?,
        x.transpose(1, 2)?.contiguous()?.reshape((2, 2, 5, 90))?,
        input((1, 90))?.broadcast_as((3, 90))?,
        Tensor::zeros((0, 90), DType::F32, &Device::Cpu)?,
    ];
    for x in inputs {
        let (ours, theirs) = (layer.forward(&x)?, dense.forward(&x.contiguous()?)?);
        assert_eq!(ours.dims(), theirs.dims());
        assert!(relative_error(&ours, &theirs)? <= 1e-5, "{:?}", x.layout());
    }
    let vector = input(90)?;
    assert_eq!(layer.forward(&vector)?.dims(), [70]);
    for (dtype, bound) in [(DType::F16, 1e-3), (DType::BF16, 8e-3)] {
        let x = input((6, 90))?;
        let y = layer.forward(&x.to_dtype(dtype)?)?;
        assert_eq!(y.dtype(), dtype);
        assert!(relative_error(&y, &dense.forward(&x)?)? <= bound);
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error_in_words() -> Result<()> {
    let compressed = encode(EncoderConfig::default(), &weight(70, 90)?);
    let layer = RbeLinear::new(compressed.clone(), None);
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu);
    let error = |result: Result<Tensor>| result.unwrap_err().to_string();
    assert!(
        error(layer.forward(&zeros(&[2, 91], DType::F32)?))
            .contains("[2, 91] with a weight of shape (70, 90)")
    );
    assert!(error(layer.forward(&zeros(&[2, 90], DType::F64)?)).contains("takes F32, F16 or BF16, not F64"));
    let ids = Tensor::new(&[3i64, 70], &Device::Cpu)?;
    assert!(error(ops::gather(&compressed, &ids, DType::F32)).contains("id 70 in a table of 70 rows"));
    let ids = Tensor::new(&[-1i64], &Device::Cpu)?;
    assert!(error(ops::gather(&compressed, &ids, DType::F32)).contains("id -1"));
    let vector = encode(EncoderConfig::default(), &Tensor::ones(300, DType::F32, &Device::Cpu)?);
    assert!(
        error(ops::matmul(&zeros(&[1, 300], DType::F32)?, &vector, Precision::Exact))
            .contains("needs a compressed matrix")
    );
    assert!(vector.t().is_err());
    let x = zeros(&[2, 90], DType::F32)?;
    for (shape, dtype) in [(&[1, 70][..], DType::F32), (&[1], DType::F32), (&[70], DType::F16)] {
        let bias = zeros(shape, dtype)?;
        let words = error(ops::matmul_with_bias(&x, &compressed, &bias, Precision::Exact));
        assert!(words.contains("a bias of shape") && words.contains("70 rows"), "{words}");
    }
    Ok(())
}

#[test]
fn a_bias_is_added_to_the_product_and_has_the_gradient_of_one() -> Result<()> {
    let compressed = encode(EncoderConfig::default(), &weight(70, 90)?);
    let (x, bias) = (Var::from_tensor(&input((2, 3, 90))?)?, Var::from_tensor(&input(70)?)?);
    let y = ops::matmul_with_bias(&x, &compressed, &bias, Precision::Exact)?;
    let product = ops::matmul(&x, &compressed, Precision::Exact)?;
    assert_eq!(
        y.flatten_all()?.to_vec1::<f32>()?,
        product.broadcast_add(&bias)?.flatten_all()?.to_vec1::<f32>()?
    );
    let grads = y.sqr()?.sum_all()?.backward()?;
    let expected = (2.0 * y.sum((0, 1))?)?;
    assert!(relative_error(grads.get(&bias).expect("a gradient of the bias"), &expected)? <= 1e-6);
    assert!(grads.get(&x).is_some());
    Ok(())
}

#[test]
fn gradients_of_the_input_are_autograds_through_the_decoded_weight() -> Result<()> {
    for (rows, cols) in [(70, 90), (257, 64)] {
        for config in [EncoderConfig::default(), Rate::Coefficients(300).into()] {
            let compressed = encode(config, &weight(rows, cols)?);
            for weight in [compressed.clone(), compressed.t()?] {
                let (out_features, in_features) = weight.shape().dims2()?;
                let x = Var::from_tensor(&input((2, 3, in_features))?)?;
                let g = input((2, 3, out_features))?;
                let dense = Linear::new(weight.dequantize()?, None);
                let gradient = |y: Tensor| -> Result<Tensor> {
                    let grads = (y.sin()? * &g)?.sum_all()?.backward()?;
                    Ok(grads.get(&x).expect("a gradient of x").clone())
                };
                let ours = gradient(RbeLinear::new(weight, None).forward(&x)?)?;
                let theirs = gradient(dense.forward(&x)?)?;
                let error = relative_error(&ours, &theirs)?;
                assert!(error <= 1e-4, "{out_features}x{in_features}: {error:e}");
            }
        }
    }
    Ok(())
}

#[test]
fn embedding_rows_equal_candles_on_the_decoded_table() -> Result<()> {
    let table = weight(300, 130)?;
    for config in [EncoderConfig::default(), Rate::RelativeError(0.3).into(), Rate::Coefficients(200).into()]
    {
        let compressed = encode(config, &table);
        let dense = Embedding::new(compressed.dequantize()?, 130);
        let ids = Tensor::new(&[[0u32, 299, 17], [32, 31, 17]], &Device::Cpu)?;
        for ids in [ids.clone(), ids.t()?, ids.to_dtype(DType::I64)?] {
            let ours = candle_rbe::Embedding::new(compressed.clone(), 130).forward(&ids)?;
            let theirs = dense.forward(&ids.contiguous()?)?;
            assert_eq!(ours.dims(), theirs.dims());
            assert!(relative_error(&ours, &theirs)? <= 1e-5);
        }
        let half =
            candle_rbe::Embedding::new(Weight::compressed(compressed, DType::BF16), 130).forward(&ids)?;
        assert_eq!(half.dtype(), DType::BF16);
    }
    Ok(())
}

#[test]
fn a_transposed_tensor_is_the_transpose_and_survives_its_bytes() -> Result<()> {
    let compressed = encode(EncoderConfig::default(), &weight(70, 90)?);
    let transposed = RbeTensor::from_bytes(compressed.t().unwrap().to_bytes().unwrap()).unwrap();
    assert_eq!(transposed.shape().dims(), [90, 70]);
    let (a, b) = (transposed.dequantize()?, compressed.dequantize()?.t()?.contiguous()?);
    assert_eq!(a.to_vec2::<f32>()?, b.to_vec2::<f32>()?);
    assert_eq!(transposed.t().unwrap().to_bytes().unwrap(), compressed.to_bytes().unwrap());
    Ok(())
}

#[test]
fn a_var_map_still_initialises_dense_layers() -> Result<()> {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let layer = linear(8, 4, vb.pp("layer"))?;
    assert_eq!(layer.forward(&Tensor::ones((1, 8), DType::F32, &Device::Cpu)?)?.dims(), [1, 4]);
    assert_eq!(map.all_vars().len(), 2);
    Ok(())
}

#[test]
fn a_payload_of_the_wrong_shape_or_damaged_names_its_tensor() -> Result<()> {
    let payload = encode(EncoderConfig::default(), &weight(70, 90)?).to_bytes().unwrap();
    let builder = |payload: &[u8]| -> Result<VarBuilder> {
        let tensor = Tensor::from_slice(payload, payload.len(), &Device::Cpu)?;
        let tensors = [("model.up.weight.rbe".to_string(), tensor)].into();
        Ok(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu))
    };
    let load = |vb: VarBuilder, in_dim| candle_rbe::linear_no_bias(in_dim, 70, vb.pp("model").pp("up"));
    assert!(load(builder(&payload)?, 90).is_ok());
    let error = load(builder(&payload)?, 91).unwrap_err().to_string();
    assert!(error.contains("model.up.weight") && error.contains("[70, 91]"), "{error}");
    let mut damaged = payload.clone();
    damaged[100] ^= 1;
    let error = load(builder(&damaged)?, 90).unwrap_err().to_string();
    assert!(error.contains("model.up.weight") && error.contains("checksum"), "{error}");
    Ok(())
}

/// What a layer of each type takes, as Candle's takes it: vectors and batches, views, no rows at all.
#[test]
fn inputs_of_every_kind_are_what_they_are_to_candles_layer() -> Result<()> {
    let (weight, bias) =
        (encode(EncoderConfig::from(Rate::BitsPerWeight(5.0)), &weight(72, 48)?), input(72)?);
    let decoded = weight.dequantize()?;
    // The types that the builder of a model may have, and how near two products in one come.
    for (dtype, near) in [(DType::F32, 1e-6), (DType::F64, 1e-12), (DType::F16, 2e-3), (DType::BF16, 1.5e-2)]
    {
        let bias = bias.to_dtype(dtype)?;
        let ours = candle_rbe::Linear::new(Weight::compressed(weight.clone(), dtype), Some(bias.clone()));
        let ours = match ours.into_layer() {
            candle_rbe::nn::Layer::Rbe(layer) if dtype != DType::F64 => {
                layer.with_precision(Precision::Exact).into()
            }
            _ => candle_rbe::Linear::new(Weight::compressed(weight.clone(), dtype), Some(bias.clone())),
        };
        let dense = candle_rbe::Linear::new(decoded.to_dtype(dtype)?, Some(bias.clone()));
        let theirs = Linear::new(decoded.to_dtype(dtype)?, Some(bias));
        let wide = input((4, 3, 96))?.to_dtype(dtype)?;
        let inputs = [
            ("a batch", input((2, 3, 48))?.to_dtype(dtype)?),
            ("a row", input((1, 48))?.to_dtype(dtype)?),
            ("four axes", input((2, 1, 3, 48))?.to_dtype(dtype)?),
            ("columns of a wider tensor", wide.narrow(2, 17, 48)?),
            ("every other row", wide.narrow(2, 0, 48)?.transpose(0, 1)?),
            ("a transpose", input((48, 5))?.to_dtype(dtype)?.t()?),
            ("a row for all", input((1, 48))?.to_dtype(dtype)?.broadcast_as((3, 48))?),
        ];
        for (what, x) in inputs {
            let expected = theirs.forward(&x.contiguous()?)?;
            for (which, layer) in [("compressed", &ours), ("dense", &dense)] {
                let (y, context) = (layer.forward(&x)?, format!("{which}, {dtype:?}, {what}"));
                assert_eq!((y.dims(), y.dtype()), (expected.dims(), dtype), "{context}");
                let error = relative_error(&y, &expected)?;
                assert!(error <= near, "{context}: {error:e}");
            }
        }
        // Candle's own layer, which has F64, refuses batches of no rows.
        let empty = [&[0, 48][..], &[2, 0, 48]];
        for shape in &empty[..if dtype == DType::F64 { 1 } else { 2 }] {
            let y = ours.forward(&Tensor::zeros(*shape, dtype, &Device::Cpu)?)?;
            assert_eq!((y.dims(), y.dtype()), (&[&shape[..shape.len() - 1], &[72]].concat()[..], dtype));
        }
        assert!(ours.forward(&Tensor::zeros((2, 47), dtype, &Device::Cpu)?).is_err());
        assert!(ours.forward(&Tensor::zeros((2, 48), DType::U32, &Device::Cpu)?).is_err());
    }
    Ok(())
}

#[test]
fn gradients_go_through_dense_layers_as_through_candles() -> Result<()> {
    let (weight, bias) = (weight(24, 40)?, input(24)?);
    let x = input((3, 40))?;
    let gradients = |forward: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>| -> Result<[Tensor; 2]> {
        let (weight, x) = (Var::from_tensor(&weight)?, Var::from_tensor(&x)?);
        let gradients = forward(&weight, &x)?.sqr()?.sum_all()?.backward()?;
        Ok([&weight, &x].map(|var| gradients.get(var).expect("a gradient").clone()))
    };
    let ours = gradients(&|w, x| candle_rbe::Linear::new(w.clone(), Some(bias.clone())).forward(x))?;
    let theirs = gradients(&|w, x| Linear::new(w.clone(), Some(bias.clone())).forward(x))?;
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!(relative_error(ours, theirs)? < 1e-6);
    }
    Ok(())
}
