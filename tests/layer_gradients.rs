//! Gradients through whole layers: against Candle's operations on the dense weights.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Module, ModuleT, Optimizer, VarBuilder, VarMap};
use candle_rbe::codec::ParameterGroup;
use candle_rbe::nn::{AttentionPass, KvCache, Projections};
use candle_rbe::{
    Encoder, EncoderConfig, Linear, Rate, RbeAttention, RbeDropout, RbeLinear, TermChoice, TrainableLinear,
    linear_conv1d,
};

const CPU: Device = Device::Cpu;

fn wave(shape: &[usize], speed: f64) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|n| (n as f64 * speed + 0.3).sin() as f32).collect();
    Tensor::from_vec(values, shape, &CPU)
}

/// `|a - b| / |b|`.
fn relative_error(a: &Tensor, b: &Tensor) -> Result<f32> {
    assert_eq!(a.dims(), b.dims());
    let norm = |x: &Tensor| x.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
    Ok(norm(&(a - b)?)? / norm(b)?)
}

const BATCH: usize = 2;
const HIDDEN: usize = 48;
const WIDTH: usize = 8;

/// Grouped-query attention of the last of `past + new` positions, out of Candle's operations. What is before them passes no
/// gradient on, as in a cache.
fn reference(x: &Tensor, past: usize, weights: &[Tensor], heads: usize, kv_heads: usize) -> Result<Tensor> {
    let all = x.dim(1)?;
    let old = x.narrow(1, 0, past)?.detach();
    let new = x.narrow(1, past, all - past)?;
    let split = |x: &Tensor, weight: &Tensor, heads: usize| {
        let y = x.broadcast_matmul(&weight.t()?)?;
        y.reshape((BATCH, x.dim(1)?, heads, WIDTH))?.transpose(1, 2)?.contiguous()
    };
    let keys = |weight: &Tensor| {
        let old = split(&old, &weight.detach(), kv_heads)?;
        let both = Tensor::cat(&[old, split(&new, weight, kv_heads)?], 2)?;
        // Query head `h` looks at key head `h / group`.
        let group = heads / kv_heads;
        let shape = (BATCH, kv_heads, group, all, WIDTH);
        both.unsqueeze(2)?.broadcast_as(shape)?.reshape((BATCH, heads, all, WIDTH))
    };
    let (q, k, v) = (split(&new, &weights[0], heads)?, keys(&weights[1])?, keys(&weights[2])?);
    let seen = |i: usize| (0..all).map(move |j| if j <= past + i { 0.0 } else { f32::NEG_INFINITY });
    let mask = Tensor::from_vec((0..all - past).flat_map(seen).collect::<Vec<_>>(), (all - past, all), &CPU)?;
    let scores = (q.matmul(&k.t()?)? / (WIDTH as f64).sqrt())?.broadcast_add(&mask)?;
    let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
    mixed.transpose(1, 2)?.flatten_from(2)?.broadcast_matmul(&weights[3].t()?)
}

#[test]
fn attention_with_shared_keys_and_a_cache_has_autograds_gradients() -> Result<()> {
    for (heads, kv_heads) in [(6, 6), (6, 2), (6, 1)] {
        for (past, new) in [(0, 7), (5, 3), (70, 1), (33, 40)] {
            let shapes = [heads, kv_heads, kv_heads].map(|heads| (heads * WIDTH, HIDDEN));
            let shapes = shapes.into_iter().chain([(HIDDEN, heads * WIDTH)]);
            let weights = shapes
                .enumerate()
                .map(|(n, (out, input))| Var::from_tensor(&(wave(&[out, input], 1.37 + n as f64)? * 0.3)?))
                .collect::<Result<Vec<Var>>>()?;
            let [q, k, v, out] =
                [0, 1, 2, 3].map(|n: usize| Linear::new(weights[n].as_tensor().clone(), None));
            let scale = 1.0 / (WIDTH as f64).sqrt();
            let layer = RbeAttention::new(Projections::Separate { q, k, v }, out, heads, kv_heads, scale);
            let x = Var::from_tensor(&wave(&[BATCH, past + new, HIDDEN], 0.37)?)?;
            let mut cache = KvCache::new(1, 128);
            let mut y = None;
            for (first, count) in [(0, past), (past, new)].into_iter().filter(|(_, count)| *count > 0) {
                let mut pass = AttentionPass::causal(count, Some(&mut cache));
                y = Some(layer.forward(&x.narrow(1, first, count)?, 0, &mut pass)?);
                pass.finish();
            }
            let (ours, theirs) = (
                y.expect("a pass"),
                reference(
                    &x,
                    past,
                    &weights.iter().map(|w| w.as_tensor().clone()).collect::<Vec<_>>(),
                    heads,
                    kv_heads,
                )?,
            );
            let case = format!("{heads} heads, {kv_heads} of keys, {new} after {past}");
            assert!(relative_error(&ours, &theirs)? < 1e-5, "{case}");
            let (ours, theirs) = (ours.sin()?.sum_all()?.backward()?, theirs.sin()?.sum_all()?.backward()?);
            for (n, var) in weights.iter().chain([&x]).enumerate() {
                let (ours, theirs) = (ours.get(var).expect("ours"), theirs.get(var).expect("theirs"));
                // One key alone has the softmax 1: queries and keys then have no gradient but rounding.
                let error = relative_error(ours, theirs)?;
                assert!(error < 1e-4, "{case}, gradient {n}: {error}");
            }
        }
    }
    Ok(())
}

/// The change of a scale is relative, that of a bias plain: the variables' gradients are the dense weight's, times the scale.
#[test]
fn variables_of_a_trainable_layer_have_the_chain_rules_gradients() -> Result<()> {
    for (out, input, block, term) in [
        (70, 90, 32, TermChoice::Trellis),
        (33, 257, 128, TermChoice::Trellis),
        (300, 64, 256, TermChoice::Trellis),
        (70, 90, 64, TermChoice::Planes),
        (70, 90, 32, TermChoice::Sparse),
    ] {
        for basis in [false, true] {
            let config = EncoderConfig {
                term,
                block: Some(block),
                basis: Some(basis),
                ..Rate::BitsPerWeight(4.3).into()
            };
            let weight = Encoder::new(config).unwrap().encode(&wave(&[out, input], 1.37)?).unwrap();
            let bias = wave(&[out], 0.2)?;
            let variables = VarMap::new();
            let vb = VarBuilder::from_varmap(&variables, DType::F32, &CPU);
            let layer = TrainableLinear::new(RbeLinear::new(weight.clone(), Some(bias.clone())), vb)?;
            let (x, g) = (wave(&[9, input], 0.37)?, wave(&[9, out], 0.73)?);
            let ours = (layer.forward(&x)? * &g)?.sum_all()?.backward()?;

            let dense = Var::from_tensor(&weight.dequantize().unwrap())?;
            let theirs = (x.matmul(&dense.t()?)? * &g)?.sum_all()?.backward()?;
            let dense_gradient = theirs.get(&dense).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
            let of_numbers = weight.to_matrix().unwrap().parameter_gradient(&dense_gradient);
            let numbers = weight.parameters().unwrap().to_vec1::<f32>()?;
            let rms =
                |values: &[f32]| (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
            let whole = rms(&dense.flatten_all()?.to_vec1::<f32>()?);
            let data = variables.data().lock().unwrap();
            let mut first = 0;
            for group in weight.parameter_groups().iter().filter(|group| group.count > 0) {
                let ParameterGroup { name, count, .. } = *group;
                let own = first..first + count;
                let expected: Vec<f32> = own
                    .clone()
                    .map(|n| match name {
                        "planes" | "trellis" | "residual_trellis" => of_numbers[n] * numbers[n],
                        "sparse" => of_numbers[n] * rms(&numbers[own.clone()]),
                        _ => of_numbers[n] * whole,
                    })
                    .collect();
                first += count;
                let ours = ours.get(&data[name]).expect("a gradient");
                let error = relative_error(ours, &Tensor::new(expected, &CPU)?)?;
                assert!(error < 1e-4, "{} {name}: {error}", weight.summary());
            }
            assert!(relative_error(ours.get(&data["bias"]).expect("a gradient"), &g.sum(0)?)? < 1e-5);
        }
    }
    Ok(())
}

#[test]
fn dropout_passes_on_the_gradient_of_what_it_kept() -> Result<()> {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let x = Var::from_tensor(&Tensor::ones((30, 70), dtype, &CPU)?)?;
        let g = wave(&[30, 70], 0.73)?.to_dtype(dtype)?;
        let y = RbeDropout::new(0.4, 11)?.forward_t(&x, true)?;
        // Of ones, the output is the mask itself.
        let expected = (&y * &g)?.to_dtype(DType::F32)?;
        let gradient = (y * &g)?.sum_all()?.backward()?.get(&x).expect("a gradient").to_dtype(DType::F32)?;
        let dropped = expected.eq(0.0)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()? / 2100.0;
        assert!((0.3..0.5).contains(&dropped), "{dropped}");
        assert_eq!(relative_error(&gradient, &expected)?, 0.0, "{dtype:?}");
    }
    Ok(())
}

#[test]
fn a_layer_that_was_never_dense_begins_like_one_learns_and_is_resumed() -> Result<()> {
    for (input, out, coefficients) in [(64, 96, 768), (300, 200, 1875), (40, 1, 10)] {
        let variables = VarMap::new();
        let vb = || VarBuilder::from_varmap(&variables, DType::F32, &CPU).pp("layer");
        let layer = TrainableLinear::from_scratch(input, out, coefficients, 5, vb())?;
        let groups = layer.weight().parameter_groups();
        assert_eq!((groups.len(), groups[0].name, groups[0].count), (1, "sparse", coefficients));
        assert!(layer.weight().size_in_bytes() < 4 * coefficients + 128);
        let energy = layer.weight().dequantize().unwrap().sqr()?.mean_all()?.to_scalar::<f32>()?;
        let variance = 2.0 / input as f32;
        // The energy of `n` draws, each with a relative deviation of 0.9, within four deviations.
        let allowed = 4.0 * 0.9 / (coefficients as f32).sqrt();
        assert!((energy / variance - 1.0).abs() < allowed, "{energy} for {variance}");

        let x = wave(&[200, input], 12.9898)?;
        let wanted =
            TrainableLinear::from_scratch(input, out, coefficients, 5, VarBuilder::zeros(DType::F32, &CPU))?;
        let wanted = (wanted.forward(&x)? * 1.5)?;
        let loss = |layer: &TrainableLinear| (layer.forward(&x)? - &wanted)?.sqr()?.mean_all();
        let before = loss(&layer)?.to_scalar::<f32>()?;
        let mut adam = AdamW::new_lr(variables.all_vars(), 0.02)?;
        (0..60).try_for_each(|_| adam.backward_step(&loss(&layer)?))?;
        let after = loss(&layer)?.to_scalar::<f32>()?;
        assert!(after < 0.1 * before, "{before} {after}");
        // The same seed and the map: the same layer.
        let again = TrainableLinear::from_scratch(input, out, coefficients, 5, vb())?;
        assert_eq!(loss(&again)?.to_scalar::<f32>()?, after);
    }
    let error = TrainableLinear::from_scratch(4, 5, 21, 1, VarBuilder::zeros(DType::F32, &CPU)).unwrap_err();
    assert!(error.to_string().contains("21 coefficients of a 5x4 matrix"));
    Ok(())
}

#[test]
fn a_conv1d_begins_as_gpt2_does_and_follows_its_variables() -> Result<()> {
    let variables = VarMap::new();
    let layer = linear_conv1d(90, 110, VarBuilder::from_varmap(&variables, DType::F32, &CPU))?;
    assert!(layer.weight().rbe().is_none(), "no file, and yet compressed");
    let deviation = layer.weight().sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?;
    // Of 9,900 draws, within five deviations.
    assert!((deviation / 0.02 - 1.0).abs() < 5.0 / (2.0 * 9900f32).sqrt(), "{deviation}");
    assert_eq!(layer.bias().unwrap().to_vec1::<f32>()?, [0.0; 110]);
    let x = wave(&[30, 90], 0.37)?;
    let loss = || layer.forward(&x)?.affine(1.0, -1.0)?.sqr()?.mean_all();
    let before = loss()?.to_scalar::<f32>()?;
    let mut adam = AdamW::new_lr(variables.all_vars(), 0.01)?;
    (0..30).try_for_each(|_| adam.backward_step(&loss()?))?;
    let after = loss()?.to_scalar::<f32>()?;
    assert!(after < 0.5 * before, "{before} {after}");
    let weight = variables.data().lock().unwrap()["weight"].as_tensor().clone();
    assert_eq!(relative_error(layer.weight(), &weight.t()?.contiguous()?)?, 0.0);
    Ok(())
}
