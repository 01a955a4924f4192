//! Gradients of compressed weights against Candle's autograd through the dense weight, and against differences.

mod samples;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Linear, Module, Optimizer, SGD, VarBuilder, VarMap};
use candle_rbe::codec::matrix::Orientation;
use candle_rbe::codec::term::Term;
use candle_rbe::codec::term::planes::ScaleGroup;
use candle_rbe::codec::term::sparse::{FORMATS, Sparse};
use candle_rbe::codec::{AxisScales, Block, Layout, Matrix, Transform};
use candle_rbe::{
    AdapterConfig, Encoder, EncoderConfig, Positions, Precision, Rate, RbeLinear, RbeTensor, SpectralAdapter,
    TermChoice, TrainableLinear, archive, ops,
};
use half::f16;
use samples::Rules;

const CPU: Device = Device::Cpu;

fn wave(shape: &[usize], speed: f64) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|n| (n as f64 * speed + 0.3).sin() as f32).collect();
    Tensor::from_vec(values, shape, &CPU)
}

fn basis(layout: Layout, half: bool) -> Term {
    let mut n = 0..;
    samples::basis(layout, half, || (n.next().unwrap_or(0) as f32 * 0.9).sin() * 0.2)
}

fn sparse(layout: Layout, format: usize) -> Term {
    let kept = |block: Block, n: usize| (n % 5 == block.index % 5).then(|| (n as f32 * 0.77).cos() * 0.3);
    samples::sparse(layout, FORMATS[format], kept).unwrap()
}

/// Codes without a pattern.
fn code(_: Block, n: usize) -> u8 {
    (n * 89 + n / 3) as u8
}

fn planes(layout: Layout, group: ScaleGroup) -> Term {
    let rules = Rules {
        unit: 1.0,
        bits: |block: Block| (block.index % 5) as u8,
        scale: |_, n| f16::from_f32(0.05 + (n % 7) as f32 / 90.0),
        code,
    };
    samples::planes(layout, group, rules)
}

fn trellis(layout: Layout) -> Term {
    let rules = Rules {
        unit: 0.25,
        bits: |place: Block| ((place.index + 1) % 5) as u8,
        scale: |place: Block, _| f16::from_f32(0.01 + (place.index % 7) as f32 / 900.0),
        code,
    };
    samples::trellis(layout, 12, rules)
}

/// Every term, alone and together.
fn terms(layout: Layout) -> Vec<Vec<Term>> {
    let mut all = vec![
        vec![basis(layout, false)],
        vec![basis(layout, true)],
        vec![planes(layout, ScaleGroup::Block)],
        vec![planes(layout, ScaleGroup::Row)],
        vec![trellis(layout)],
        vec![trellis(layout), trellis(layout)],
        vec![basis(layout, false), sparse(layout, 0), planes(layout, ScaleGroup::Row), trellis(layout)],
    ];
    all.extend((0..4).filter(|n| FORMATS[*n].allows(layout.block())).map(|n| vec![sparse(layout, n)]));
    all
}

const TRANSFORMS: [Transform; 3] = [Transform::Dct, Transform::Haar, Transform::Daubechies4];

/// `|a - b| / |b|`, and relative to `floor` where `b` cancels.
fn relative_error(a: &Tensor, b: &Tensor, floor: f64) -> Result<f64> {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
    let norm = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f64>();
    let difference = norm(&(a - &b)?)?.sqrt();
    Ok(if difference == 0.0 { 0.0 } else { difference / norm(&b)?.sqrt().max(floor) })
}

/// The gradients of `sum(sin(y) g)`, or of `sum(y g)`.
fn gradients(y: &Tensor, g: &Tensor, sin: bool, of: &[&Var]) -> Result<Vec<Tensor>> {
    let y = y.to_dtype(g.dtype())?;
    let loss = (if sin { y.sin()? } else { y } * g)?.sum_all()?;
    let store = loss.backward()?;
    Ok(of.iter().map(|var| store.get(var).expect("a gradient").clone()).collect())
}

#[test]
fn every_term_type_orientation_and_border_has_autograds_gradients() -> Result<()> {
    let mut worst = [[0f64; 2]; 3];
    for (n, (rows, cols, edge)) in
        [(1, 1, 32), (33, 70, 32), (100, 65, 64), (1, 257, 256), (172, 31, 128), (300, 259, 256)]
            .iter()
            .enumerate()
    {
        let layout = Layout::new(*rows, *cols, *edge).unwrap();
        for terms in terms(layout) {
            let seed = (n % 2 == 0).then_some(9);
            let mut matrix = Matrix::new(layout, TRANSFORMS[n % 3], seed, terms, 0.0);
            if n % 3 == 2 {
                matrix = matrix.with_scales(scales(*rows), scales(*cols));
            }
            for view in [Orientation::Matrix, Orientation::Transposed] {
                let weight = RbeTensor::from_matrix(&matrix, view).unwrap();
                let (out, input) = weight.shape().dims2()?;
                for (kind, dtype) in [DType::F32, DType::F16, DType::BF16].into_iter().enumerate() {
                    let x = wave(&[2, 5, input], 0.37)?.to_dtype(dtype)?;
                    let g = wave(&[2, 5, out], 0.73)?.to_dtype(dtype)?.to_dtype(DType::F32)?;
                    let (x, p) = (Var::from_tensor(&x)?, Var::from_tensor(&weight.parameters().unwrap())?);
                    let y = ops::parametric_matmul(&x, &p, &weight)?;
                    assert_eq!((y.dims(), y.dtype()), (&[2, 5, out][..], dtype));
                    // A half type's outputs are rounded: there the loss is linear, so that gradients are not.
                    let sin = dtype == DType::F32;
                    let ours = gradients(&y, &g, sin, &[&x, &p])?;
                    assert_eq!(ours[0].dtype(), dtype);

                    let dense = Var::from_tensor(&weight.dequantize().unwrap())?;
                    let exact = Var::from_tensor(&x.to_dtype(DType::F32)?)?;
                    let y = Linear::new(dense.as_tensor().clone(), None).forward(&exact)?;
                    let theirs = gradients(&y, &g, sin, &[&exact, &dense])?;
                    let stored =
                        if view == Orientation::Transposed { theirs[1].t()? } else { theirs[1].clone() };
                    let stored = stored.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
                    let dp = matrix.parameter_gradient(&stored);
                    let dp = Tensor::from_vec(dp, p.dims(), &CPU)?;
                    let norm = |x: &Tensor| x.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
                    let floor = f64::from(norm(&dense)?) / 20.0;
                    let errors =
                        [relative_error(&ours[0], &theirs[0], floor)?, relative_error(&ours[1], &dp, 1e-2)?];
                    // Parameters are F32 whatever the input is; the input's gradient is rounded to its type.
                    let bounds = [[1e-4, 1e-3, 8e-3][kind], 1e-4];
                    for ((what, error), bound) in ["x", "parameters"].iter().zip(errors).zip(bounds) {
                        assert!(
                            error <= bound,
                            "{out}x{input} {} {dtype:?} {what}: {error:e}",
                            weight.summary()
                        );
                    }
                    worst[kind].iter_mut().zip(errors).for_each(|(worst, error)| *worst = worst.max(error));
                }
            }
        }
    }
    println!("largest relative errors of dx and dp in F32, F16, BF16: {worst:?}");
    Ok(())
}

/// Scales over two octaves.
fn scales(len: usize) -> Option<AxisScales> {
    AxisScales::new(&(0..len).map(|n| (2.0 * (n * 5 % len) as f32 / len as f32).exp2()).collect::<Vec<_>>())
}

/// Differences in F64 of a loss whose weight is `sum p_n M_n`, made of the decoded `M_n`.
#[test]
fn parameter_gradients_are_finite_differences() -> Result<()> {
    let (rows, cols) = (35, 38);
    let layout = Layout::new(rows, cols, 32).unwrap();
    let mut worst = [0f64; 2];
    for (n, terms) in terms(layout).into_iter().enumerate() {
        // A sparse term with fewer positions: there is one decoded matrix for each.
        let terms = terms.into_iter().map(|term| match term {
            Term::Sparse(sparse) => {
                let blocks: Vec<_> =
                    layout.iter().map(|b| sparse.entries(b).into_iter().step_by(23).collect()).collect();
                Term::Sparse(Sparse::pack(layout, sparse.format(), &blocks).unwrap())
            }
            other => other,
        });
        let mut matrix = Matrix::new(layout, TRANSFORMS[n % 3], Some(4), terms.collect(), 0.0);
        if n % 2 == 1 {
            matrix = matrix.with_scales(scales(rows), scales(cols));
        }
        let start = matrix.parameters();
        let directions = (0..start.len()).map(|n| {
            let mut unit = vec![0.0; start.len()];
            unit[n] = 1.0;
            let values = matrix.with_parameters(&unit).unwrap().decode();
            Tensor::from_vec(values, rows * cols, &CPU)?.to_dtype(DType::F64)
        });
        let directions = Tensor::stack(&directions.collect::<Result<Vec<_>>>()?, 0)?;
        for view in [Orientation::Matrix, Orientation::Transposed] {
            let weight = RbeTensor::from_matrix(&matrix, view).unwrap();
            let (out, input) = weight.shape().dims2()?;
            let (x, g) = (wave(&[7, input], 0.37)?, wave(&[7, out], 0.73)?);
            let loss = |p: &Tensor, x: &Tensor| -> Result<f64> {
                let dense = p.unsqueeze(0)?.matmul(&directions)?.reshape((rows, cols))?;
                // (out, in) is the stored matrix or its transpose, and the product needs (in, out).
                let dense = if view == Orientation::Transposed { dense } else { dense.t()?.contiguous()? };
                (x.matmul(&dense)?.sin()? * g.to_dtype(DType::F64)?)?.sum_all()?.to_scalar()
            };
            let (p, x64) =
                (Tensor::new(start.as_slice(), &CPU)?.to_dtype(DType::F64)?, x.to_dtype(DType::F64)?);
            let (vx, vp) = (Var::from_tensor(&x)?, Var::from_tensor(&weight.parameters().unwrap())?);
            let ours = gradients(&ops::parametric_matmul(&vx, &vp, &weight)?, &g, true, &[&vx, &vp])?;
            let step = 1e-5;
            let moved = |values: &Tensor, n: usize, by: f64| -> Result<Tensor> {
                let mut moved = values.flatten_all()?.to_vec1::<f64>()?;
                moved[n] += by;
                Tensor::from_vec(moved, values.shape(), &CPU)
            };
            let difference = |values: &Tensor, n, loss: &dyn Fn(&Tensor) -> Result<f64>| {
                Ok((loss(&moved(values, n, step)?)? - loss(&moved(values, n, -step)?)?) / (2.0 * step))
            };
            let dp: Vec<f64> =
                (0..start.len()).map(|n| difference(&p, n, &|p| loss(p, &x64))).collect::<Result<_>>()?;
            let dx: Vec<f64> =
                (0..7 * input).map(|n| difference(&x64, n, &|x| loss(&p, x))).collect::<Result<_>>()?;
            let errors = [
                relative_error(&ours[0], &Tensor::from_vec(dx, (7, input), &CPU)?, 0.0)?,
                relative_error(&ours[1], &Tensor::from_vec(dp, start.len(), &CPU)?, 0.0)?,
            ];
            assert!(errors.iter().all(|e| *e <= 1e-4), "{} {view:?}: {errors:?}", weight.summary());
            worst.iter_mut().zip(errors).for_each(|(worst, error)| *worst = worst.max(error));
        }
    }
    println!("largest relative errors of dx and dp against differences: {worst:?}");
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error_in_words() -> Result<()> {
    let layout = Layout::new(40, 50, 32).unwrap();
    let matrix = Matrix::new(layout, Transform::Dct, None, vec![trellis(layout)], 0.0);
    let weight = RbeTensor::from_matrix(&matrix, Orientation::Matrix).unwrap();
    let (x, p) = (wave(&[2, 50], 0.3)?, weight.parameters().unwrap());
    let error = |result: Result<Tensor>| result.unwrap_err().to_string();
    let short = p.narrow(0, 1, p.dim(0)? - 1)?;
    assert!(error(ops::parametric_matmul(&x, &short, &weight)).contains("the weight has (2)"));
    assert!(error(ops::parametric_matmul(&x, &p.to_dtype(DType::F16)?, &weight)).contains("in F32"));
    assert!(error(ops::parametric_matmul(&x.t()?, &p, &weight)).contains("weight of shape (40, 50)"));
    assert!(error(ops::parametric_matmul(&x.to_dtype(DType::F64)?, &p, &weight)).contains("not F64"));
    let layer = |name: &str| -> Result<SpectralAdapter> {
        let vb = VarBuilder::zeros(DType::F32, &CPU).pp(name);
        SpectralAdapter::new(RbeLinear::new(weight.clone(), None).into(), AdapterConfig::random(2001, 1), vb)
    };
    assert!(layer("a").unwrap_err().to_string().contains("2001 coefficients of a 40x50 matrix"));
    let other = RbeTensor::from_matrix(&matrix, Orientation::Transposed).unwrap();
    let base = || RbeLinear::new(weight.clone(), None).into();
    assert!(SpectralAdapter::from_tensor(base(), other).unwrap_err().to_string().contains("[50, 40]"));
    let same = SpectralAdapter::from_tensor(base(), weight.clone()).unwrap_err().to_string();
    assert!(same.contains("a sparse term alone"), "{same}");
    Ok(())
}

/// A layer at 2 bits learns to give the outputs of the original, by the optimisers of Candle.
#[test]
fn training_brings_a_compressed_layer_closer_to_its_original() -> Result<()> {
    let original = wave(&[96, 64], 1.37)?;
    let bias = wave(&[96], 0.2)?;
    let config =
        EncoderConfig { term: TermChoice::Planes, block: Some(32), ..Rate::BitsPerWeight(2.3).into() };
    let compressed = Encoder::new(config).unwrap().encode(&original).unwrap();
    // Inputs with a few strong directions, as activations have them: there the best scales are not the encoder's.
    let strength = Tensor::arange(0f32, 64.0, &CPU)?.affine(-0.1, 0.0)?.exp()?;
    let x = wave(&[400, 64], 12.9898)?.broadcast_mul(&strength)?;
    let wanted = Linear::new(original, Some(bias.clone())).forward(&x)?;
    for use_sgd in [false, true] {
        let variables = VarMap::new();
        let vb = VarBuilder::from_varmap(&variables, DType::F32, &CPU);
        let layer = RbeLinear::new(compressed.clone(), Some((bias.clone() * 0.5)?));
        let layer = TrainableLinear::new(layer, vb.pp("layer"))?;
        let loss = |layer: &dyn Module| (layer.forward(&x)? - &wanted)?.sqr()?.mean_all();
        let before = loss(&layer)?.to_scalar::<f32>()?;
        if use_sgd {
            let mut sgd = SGD::new(variables.all_vars(), 2.0)?;
            (0..60).try_for_each(|_| sgd.backward_step(&loss(&layer)?))?;
        } else {
            let mut adam = AdamW::new_lr(variables.all_vars(), 0.02)?;
            (0..60).try_for_each(|_| adam.backward_step(&loss(&layer)?))?;
        }
        let after = loss(&layer)?.to_scalar::<f32>()?;
        assert!(after < 0.6 * before, "{before} {after}");
        // What is kept is what was trained, up to the rounding of F16.
        let kept = layer.to_linear()?;
        assert_eq!(kept.weight().plain_size_in_bytes(), compressed.plain_size_in_bytes());
        let kept = RbeTensor::from_bytes(kept.weight().to_bytes().unwrap())
            .map(|w| RbeLinear::new(w, kept.bias().cloned()));
        let kept = loss(&kept.unwrap())?.to_scalar::<f32>()?;
        assert!((kept - after).abs() <= 0.02 * after, "{kept} {after}");
    }
    Ok(())
}

#[test]
fn an_adapter_learns_is_kept_and_merges_on_every_base() -> Result<()> {
    let original = wave(&[70, 90], 1.37)?;
    let change = (wave(&[70, 1], 0.05)?.matmul(&wave(&[1, 90], 0.04)?)? * 0.3)?;
    let x = wave(&[300, 90], 12.9898)?;
    let compressed = |block, signs| {
        let config =
            EncoderConfig { block: Some(block), signs: Some(signs), ..Rate::BitsPerWeight(4.3).into() };
        Encoder::new(config).unwrap().encode(&original).unwrap()
    };
    let sparse = Encoder::new(Rate::Coefficients(300).into()).unwrap().encode(&original).unwrap();
    // An adapter has the scales of its base.
    let scaled = compressed(64, true).to_matrix().unwrap().with_scales(scales(70), scales(90));
    let scaled = RbeTensor::from_matrix(&scaled, Orientation::Matrix).unwrap();
    // One whose sparse term has changed has an error that nobody measured, and would take its inputs in more bytes.
    let exact = |weight, bias| RbeLinear::new(weight, bias).with_precision(Precision::Exact);
    let bases: Vec<candle_rbe::Linear> = vec![
        candle_rbe::Linear::new(original.clone(), None),
        exact(compressed(64, true), None).into(),
        exact(compressed(64, false), Some(wave(&[70], 1.0)?)).into(),
        exact(sparse, None).into(),
        exact(scaled, None).into(),
        exact(compressed(64, false).t().unwrap().t().unwrap(), None).into(),
    ];
    for base in bases {
        let wanted = (base.forward(&x)? + x.matmul(&change.t()?)?)?;
        let positions = [Positions::Largest(&change), Positions::Random { seed: 5 }];
        for (positions, gain) in positions.into_iter().zip([0.35, 0.995]) {
            let variables = VarMap::new();
            let vb = VarBuilder::from_varmap(&variables, DType::F32, &CPU);
            let config = AdapterConfig { coefficients: 400, positions, axes: None };
            let adapter = SpectralAdapter::new(base.clone(), config, vb.pp("layer"))?;
            // Zero at first: nothing changes.
            assert!(relative_error(&adapter.forward(&x)?, &base.forward(&x)?, 0.0)? == 0.0);
            let loss = |layer: &dyn Module| (layer.forward(&x)? - &wanted)?.sqr()?.mean_all();
            let before = loss(&adapter)?.to_scalar::<f32>()?;
            let mut adam = AdamW::new_lr(variables.all_vars(), 0.05)?;
            for _ in 0..60 {
                adam.backward_step(&loss(&adapter)?)?;
            }
            let after = loss(&adapter)?.to_scalar::<f32>()?;
            assert!(after < gain * before, "{before} {after}");

            let file = adapter.to_tensor()?.to_bytes().unwrap();
            assert!(file.len() < 4 * 400 + 64 + (70 + 90) / 2 + 2, "{} bytes", file.len());
            let again = SpectralAdapter::from_tensor(base.clone(), RbeTensor::from_bytes(&file).unwrap())?;
            assert!(relative_error(&again.forward(&x)?, &adapter.forward(&x)?, 0.0)? < 1e-3);
            let merged = again.clone().merge()?;
            assert!(relative_error(&merged.forward(&x)?, &again.forward(&x)?, 0.0)? < 1e-3);
        }
    }
    // All of a model's in a file of their own.
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("adapters.safetensors");
    let layer: candle_rbe::Linear = RbeLinear::new(compressed(64, false), None).into();
    let zeros = VarBuilder::zeros(DType::F32, &CPU);
    let adapter = SpectralAdapter::new(layer.clone(), AdapterConfig::random(100, 1), zeros)?;
    let named = |names: &[&str]| names.iter().map(|name| (name.to_string(), &adapter)).collect::<Vec<_>>();
    let bytes = archive::save_adapters(&path, named(&["b.weight", "a.weight"]), false).unwrap();
    assert!(bytes < 2 * (4 * 100 + 64));
    let loaded = archive::load_adapters(&path).unwrap();
    assert_eq!(loaded.keys().collect::<Vec<_>>(), ["a.weight", "b.weight"]);
    for tensor in loaded.into_values() {
        assert_eq!(SpectralAdapter::from_tensor(layer.clone(), tensor)?.values().dims(), [100]);
    }
    let error = |result: candle_rbe::Result<usize>| result.unwrap_err().to_string();
    assert!(error(archive::save_adapters(&path, named(&["a"]), false)).contains("already exists"));
    assert!(error(archive::save_adapters(&path, named(&["a", "a"]), true)).contains("two adapters"));
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/llama-books");
    assert!(archive::load_adapters(model).unwrap_err().to_string().contains("not a file of adapters"));

    let other = AdapterConfig { axes: Some((Transform::Haar, 32)), ..AdapterConfig::random(10, 3) };
    let base = RbeLinear::new(compressed(64, true), None);
    let adapter = SpectralAdapter::new(base.into(), other, VarBuilder::zeros(DType::F32, &CPU))?;
    assert!(adapter.merge().unwrap_err().to_string().contains("other axes"));
    Ok(())
}
