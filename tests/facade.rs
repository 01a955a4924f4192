//! The modules that stand in Candle's place: weights that stay compressed wherever a model passes them on, and the list of those
//! that were decoded all the same.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_rbe::nn::{DecodeReason, DecodedWeight, ForwardHook, Weight, decoded_weights, forward_all};
use candle_rbe::{
    Encoder, EncoderConfig, LayerConfig, Precision, Rate, RbeTensor, archive, candle_nn,
    set_default_layer_config, with_tracing,
};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

// The models of these tests are written for Candle: the line above swaps them.
use candle_nn::{Embedding, Linear, Module, VarBuilder, embedding, linear, linear_no_bias};

const CPU: Device = Device::Cpu;

/// Layers that are made from now on are compared with Candle's.
fn exactly() {
    set_default_layer_config(LayerConfig { precision: Precision::Exact, ..LayerConfig::default() });
}

fn encode(weight: &Tensor) -> RbeTensor {
    exactly();
    Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.5))).unwrap().encode(weight).unwrap()
}

fn random(shape: (usize, usize)) -> Tensor {
    Tensor::randn(0f32, 0.1, shape, &CPU).unwrap()
}

/// `|a - b| / |b|`
fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    let squares = |x: &Tensor| x.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>();
    let norm = |x: &Tensor| squares(x).unwrap().sqrt();
    norm(&(a.to_dtype(b.dtype()).unwrap() - b).unwrap()) / norm(b)
}

/// A compressed file in a directory that lives as long.
struct File {
    _room: tempfile::TempDir,
    path: PathBuf,
}

fn compressed_file(tensors: &[(&str, Tensor)]) -> File {
    let room = tempfile::tempdir().unwrap();
    exactly();
    let (dense, path) = (room.path().join("dense.safetensors"), room.path().join("rbe.safetensors"));
    candle_core::safetensors::save(&tensors.iter().cloned().collect::<HashMap<_, _>>(), &dense).unwrap();
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.5))).unwrap();
    let options = archive::CompressOptions::default();
    archive::compress(&dense, &path, &encoder, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    File { _room: room, path }
}

impl File {
    fn open(&self, dtype: DType) -> VarBuilder<'static> {
        archive::open(&self.path, dtype, &CPU).unwrap()
    }
}

/// What was decoded of names that begin so: the list is the process's, and tests run side by side.
fn decoded(prefix: &str) -> Vec<DecodedWeight> {
    decoded_weights().into_iter().filter(|weight| weight.name.starts_with(prefix)).collect()
}

#[test]
fn a_head_tied_the_candle_way_stays_compressed() -> Result<()> {
    let file = compressed_file(&[("tied.weight", random((96, 64)))]);
    let table = embedding(96, 64, file.open(DType::F32).pp("tied"))?;
    let traced = with_tracing::Embedding::from_weights(table.embeddings())?;
    let heads = [
        Linear::new(table.embeddings().clone(), None),
        Linear::from_weights(table.embeddings(), None),
        with_tracing::Linear::from_weights(traced.embeddings().clone(), None),
        table.as_linear(),
    ];
    let states = table.forward(&Tensor::new(&[3u32, 95], &CPU)?)?;
    assert_eq!((states.dims(), table.hidden_size()), (&[2, 64][..], 64));
    let logits = heads.iter().map(|head| head.forward(&states)).collect::<Result<Vec<_>>>()?;
    assert!(heads.iter().all(|head| head.weight().rbe().is_some()));
    // Shape, type and device are known without a look.
    let weight = heads[0].weight();
    assert_eq!((weight.dims2()?, weight.dim(D::Minus1)?, weight.rank()), ((96, 64), 64, 2));
    assert_eq!((weight.elem_count(), weight.dtype()), (96 * 64, DType::F32));
    assert!(weight.device().is_cpu() && decoded("tied").is_empty());
    let exact = states.matmul(&weight.rbe().unwrap().dequantize()?.t()?)?;
    assert!(logits.iter().all(|logits| relative_error(logits, &exact) < 1e-5));
    Ok(())
}

#[test]
fn a_weight_used_as_a_tensor_is_decoded_once_and_listed() -> Result<()> {
    let bias = Tensor::zeros(96, DType::F32, &CPU)?;
    let file = compressed_file(&[("looked.weight", random((96, 64))), ("looked.bias", bias)]);
    let layer = linear(64, 96, file.open(DType::F16).pp("looked"))?;
    let clone = layer.clone();
    assert_eq!(decoded("looked"), []);
    let norms = layer.weight().sqr()?.sum(D::Minus1)?;
    let again = clone.weight().to_dtype(DType::F32)?; // a clone has the same dense copy
    assert_eq!((norms.dims(), norms.dtype()), (&[96][..], DType::F16));
    let exact = layer.weight().rbe().unwrap().dequantize()?;
    assert!(relative_error(&again, &exact) < 1e-3, "as F16 has it");
    let list = decoded("looked");
    let wanted = DecodedWeight {
        name: "looked.weight".into(),
        reason: DecodeReason::LookedAt,
        shape: vec![96, 64],
        dtype: DType::F16,
        times: 1,
    };
    assert_eq!(list, [wanted]);
    assert_eq!(
        list[0].to_string(),
        "looked.weight [96, 64] decoded to 12288 bytes of F16, once: the model used its layer's weight as a tensor"
    );
    // A tensor by every way that Candle's functions take one.
    let tensor: Tensor = Weight::from(&clone.weight().clone()).into();
    let joined = Tensor::cat(&[layer.weight(), clone.weight()], 0)?;
    assert_eq!(joined.dims(), [192, 64]);
    assert_eq!(relative_error(&(tensor + layer.weight())?, &layer.weight().affine(2.0, 0.0)?), 0.0);
    assert_eq!(decoded("looked")[0].times, 1);
    Ok(())
}

#[test]
fn a_model_swapped_by_half_answers_rightly_and_shows() -> Result<()> {
    let file =
        compressed_file(&[("half.ours.weight", random((96, 64))), ("half.theirs.weight", random((64, 96)))]);
    let vb = file.open(DType::F32).pp("half");
    let ours = linear_no_bias(64, 96, vb.pp("ours"))?;
    let theirs = ::candle_nn::linear_no_bias(96, 64, vb.pp("theirs"))?;
    let list = decoded("half");
    assert_eq!((list.len(), &*list[0].name), (1, "half.theirs.weight"));
    assert_eq!((list[0].reason, list[0].bytes()), (DecodeReason::AskedByName, 64 * 96 * 4));
    assert!(list[0].to_string().ends_with("is the layer Candle's own, not swapped?"));
    let swapped = linear_no_bias(96, 64, vb.pp("theirs"))?;
    let x = ours.forward(&random((3, 64)))?;
    assert!(relative_error(&swapped.forward(&x)?, &theirs.forward(&x)?) < 1e-5);
    Ok(())
}

#[test]
fn dense_weights_are_candles_own() -> Result<()> {
    let (weight, bias) = (random((96, 64)), Tensor::randn(0f32, 1.0, 96, &CPU)?);
    let x = random((3, 64));
    for dtype in [DType::F32, DType::F64, DType::F16] {
        let (weight, bias, x) = (weight.to_dtype(dtype)?, bias.to_dtype(dtype)?, x.to_dtype(dtype)?);
        let ours = Linear::new(weight.clone(), Some(bias.clone()));
        let theirs = ::candle_nn::Linear::new(weight.clone(), Some(bias));
        // Sums of F32 are this crate's, in another order; products of other types are Candle's.
        let most = if dtype == DType::F32 { 1e-6 } else { 0.0 };
        assert!(relative_error(&ours.forward(&x)?, &theirs.forward(&x)?) <= most, "{dtype:?}");
        assert!(ours.weight().rbe().is_none() && ours.bias().is_some());
        assert_eq!(ours.weight().tensor().unwrap().id(), weight.id());
    }
    let ids = Tensor::new(&[[3u32, 95]], &CPU)?;
    let rows = Embedding::new(weight.clone(), 64).forward(&ids)?;
    assert_eq!(rows.dims(), [1, 2, 64]);
    assert_eq!(relative_error(&rows, &::candle_nn::Embedding::new(weight, 64).forward(&ids)?), 0.0);
    Ok(())
}

#[test]
fn layers_of_with_tracing_have_its_constructors() -> Result<()> {
    let file = compressed_file(&[
        ("traced.embed.weight", random((96, 64))),
        ("traced.norm.weight", Tensor::ones(64, DType::F32, &CPU)?),
    ]);
    let vb = file.open(DType::F32).pp("traced");
    let table = with_tracing::Embedding::new(96, 64, vb.pp("embed"))?;
    let norm = with_tracing::RmsNorm::new(64, 1e-5, vb.pp("norm"))?;
    let x = norm.forward(&table.forward(&Tensor::new(&[3u32, 95], &CPU)?)?)?;
    let size = x.sqr()?.mean(D::Minus1)?.to_vec1::<f32>()?;
    assert!(size.iter().all(|size| (size - 1.0).abs() < 0.05), "{size:?}");
    assert!(relative_error(&norm.forward_diff(&x)?, &norm.forward(&x)?) < 1e-5);
    assert!(with_tracing::Embedding::from_weights(Tensor::zeros(3, DType::F32, &CPU)?).is_err());
    assert_eq!(decoded("traced"), []);
    Ok(())
}

#[test]
fn models_in_f64_run_in_f64() -> Result<()> {
    let bias = Tensor::randn(0f32, 1.0, 96, &CPU)?;
    let file = compressed_file(&[
        ("double.up.weight", random((96, 64))),
        ("double.up.bias", bias),
        ("double.embed.weight", random((70, 64))),
    ]);
    let vb = file.open(DType::F64).pp("double");
    let up = linear(64, 96, vb.pp("up"))?;
    let x = embedding(70, 64, vb.pp("embed"))?.forward(&Tensor::new(&[[3u32, 69]], &CPU)?)?;
    assert_eq!((x.dtype(), x.dims()), (DType::F64, &[1, 2, 64][..]));
    assert_eq!(decoded("double"), [], "rows are not counted");
    let exact = ::candle_nn::linear(64, 96, vb.pp("up"))?.forward(&x)?;
    let [y, again] = forward_all([&up, &up], &x)?;
    assert_eq!(relative_error(&y, &exact), 0.0);
    assert_eq!(relative_error(&again, &exact), 0.0);
    let reasons: Vec<_> = decoded("double").iter().map(|weight| (weight.reason, weight.times)).collect();
    assert_eq!(reasons, [(DecodeReason::AskedByName, 1), (DecodeReason::DoublePrecision, 1)]);
    // A weight of another type than the input is an error, as it is with Candle's layer.
    let single = linear(64, 96, file.open(DType::F32).pp("double").pp("up"))?;
    assert!(single.forward(&x).is_err());
    Ok(())
}

/// Multiplies a layer's output.
#[derive(Debug)]
struct Times(f64);

impl ForwardHook for Times {
    fn after(&self, _: &Tensor, y: Tensor) -> Result<Tensor> {
        y.affine(self.0, 1.0)
    }
}

#[test]
fn hooks_see_every_forward_in_the_order_they_came() -> Result<()> {
    let layer = Linear::new(encode(&random((96, 64))), None);
    let mut watched = layer.clone();
    watched.add_forward_hook(Arc::new(Times(2.0)));
    watched.add_forward_hook(Arc::new(Times(3.0)));
    let x = random((2, 64));
    let y = layer.forward(&x)?.affine(6.0, 4.0)?; // (2 y + 1) * 3 + 1
    assert!(relative_error(&watched.forward(&x)?, &y) < 1e-6);
    let [one, other] = forward_all([&watched, &layer], &x)?;
    assert!(relative_error(&one, &y) < 1e-6, "layers that share an input's transform have hooks too");
    assert!(relative_error(&other, &layer.forward(&x)?) < 1e-6);
    Ok(())
}

#[test]
fn rows_are_decoded_with_their_blocks_alone() -> Result<()> {
    let config = EncoderConfig { block: Some(32), ..EncoderConfig::from(Rate::BitsPerWeight(4.5)) };
    let tensor = Encoder::new(config).unwrap().encode(&random((300, 160))).unwrap();
    for tensor in [tensor.clone(), tensor.t().unwrap()] {
        let whole = tensor.dequantize()?;
        for (wanted, given) in
            [(40..70, 32..96), (64..96, 64..96), (0..1, 0..32), (5..5, 0..0), (159..500, 128..300)]
        {
            let (mut rows, mut next) = (Vec::new(), None);
            let read = tensor.decode_rows(wanted.clone(), |first, band| {
                assert_eq!(*next.get_or_insert(first), first);
                next = Some(first + band.len() / whole.dim(1)?);
                rows.extend_from_slice(band);
                Ok(())
            });
            read.unwrap();
            let given = given.start..given.end.min(whole.dim(0)?);
            assert_eq!(rows.len(), given.len() * whole.dim(1)?, "{wanted:?}");
            let expected = whole.narrow(0, given.start, given.len())?.flatten_all()?.to_vec1::<f32>()?;
            assert!(rows == expected, "{wanted:?}");
        }
    }
    Ok(())
}

#[test]
fn shards_are_parts_of_the_decoded_tensor_or_refused_with_a_cure() -> Result<()> {
    use ::candle_nn::var_builder::Shard;
    let vector = Tensor::arange(0f32, 64., &CPU)?;
    let file = compressed_file(&[
        ("shard.weight", random((96, 64))),
        ("shard.bias", vector),
        ("one", Tensor::new(1f32, &CPU)?),
    ]);
    let whole = file.open(DType::F32).get((96, 64), "shard.weight")?;
    let vb = archive::open_sharded(&file.path, DType::F32, &CPU).unwrap();
    for (dim, world_size) in [(0, 2), (0, 96), (1, 4), (1, 1), (0, 3)] {
        let side = whole.dim(dim)? / world_size;
        for rank in [0, world_size - 1] {
            let shard = Shard { dim, rank, world_size };
            let part = vb.get_with_hints((96, 64), "shard.weight", shard)?;
            assert_eq!(relative_error(&part, &whole.narrow(dim, rank * side, side)?), 0.0, "{shard:?}");
        }
    }
    let second = Shard { dim: 0, rank: 1, world_size: 2 };
    let part = vb.get_with_hints(32, "shard.bias", second)?.to_vec1::<f32>()?;
    assert_eq!(part, (32..64).map(|n| n as f32).collect::<Vec<_>>());
    assert_eq!(vb.get((), "one")?.to_scalar::<f32>()?, 1.0);
    let listed: Vec<_> = decoded("shard").into_iter().map(|weight| weight.reason).collect();
    assert!(listed.contains(&DecodeReason::Shard), "{listed:?}");

    let refusal = |name: &str, shard| vb.get_with_hints((96, 64), name, shard).unwrap_err().to_string();
    for (shard, word) in [
        (Shard { dim: 0, rank: 0, world_size: 5 }, "that divides the side"),
        (Shard { dim: 2, rank: 0, world_size: 2 }, "sides 0 and 1 are cut"),
        (Shard { dim: 0, rank: 2, world_size: 2 }, "no part 2 of 2"),
    ] {
        assert!(refusal("shard.weight", shard).contains(word), "{}", refusal("shard.weight", shard));
    }
    assert!(refusal("shard.weight.rbe", second).contains("ask for the tensor by its plain name"));
    assert!(vb.get((64, 96), "shard.weight").is_err(), "another shape");
    assert!(refusal("none", second).contains("none"));
    Ok(())
}
