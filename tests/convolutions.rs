//! Convolutions over compressed weights against Candle's on the decoded ones, and their kernels in files.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_rbe::nn::{Conv1d, Conv2d, DecodeReason, Weight, decoded_weights};
use candle_rbe::{
    Encoder, EncoderConfig, LayerConfig, Precision, Rate, archive, candle_nn, set_default_layer_config,
};
use std::collections::HashMap;
use std::ops::ControlFlow;

use candle_nn::{Conv1dConfig, Conv2dConfig, Module};

const CPU: Device = Device::Cpu;

/// Numbers that look random and are the same in every run.
fn numbers(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product();
    let value = |n: usize| (((n + 1) as f64 * 12.9898 + seed as f64 * 78.233).sin() * 43758.5453 % 1.) as f32;
    Tensor::from_vec((0..count).map(value).collect::<Vec<_>>(), shape, &CPU).unwrap()
}

/// A compressed kernel.
fn compressed(shape: &[usize]) -> Weight {
    set_default_layer_config(LayerConfig { precision: Precision::Exact, ..LayerConfig::default() });
    let matrix = numbers(shape, 1).flatten_from(1).unwrap();
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(5.0))).unwrap();
    Weight::from(encoder.encode(&matrix).unwrap()).reshaped(shape).unwrap()
}

/// `|a - b| / |b|`
fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |x: &Tensor| x.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>();
    assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()));
    (norm(&(a - b).unwrap()).unwrap() / norm(b).unwrap()).sqrt()
}

/// Kernel, stride, padding, dilation, groups; and whether patches lie apart.
const CASES: [([usize; 5], bool); 10] = [
    ([1, 1, 0, 1, 1], true),
    ([1, 2, 0, 1, 1], true),
    ([1, 1, 1, 3, 1], true),
    ([1, 3, 2, 1, 1], true),
    ([4, 4, 0, 1, 1], true),
    ([4, 4, 3, 1, 1], true),
    ([2, 5, 1, 1, 1], true),
    ([3, 1, 1, 1, 1], false),
    ([2, 2, 0, 2, 1], false),
    ([2, 2, 0, 1, 2], false),
];

#[test]
fn convolutions_equal_candles_on_the_decoded_weight() -> Result<()> {
    let (inputs, outputs, bias) = (34, 70, numbers(&[70], 2));
    for ([kernel, stride, padding, dilation, groups], apart) in CASES {
        let case = format!(
            "kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}, groups {groups}"
        );
        let weight = compressed(&[outputs, inputs / groups, kernel, kernel]);
        let config = Conv2dConfig { padding, stride, dilation, groups, ..Default::default() };
        let ours = Conv2d::new(weight.clone(), Some(bias.clone()), config);
        let exact = weight.rbe().expect("compressed").dequantize()?.reshape(weight.dims())?;
        let theirs = ::candle_nn::Conv2d::new(exact, Some(bias.clone()), config);
        // Every other column of what is twice as wide: an input that is not contiguous; and a batch of none.
        let wide = numbers(&[2, inputs, 17, 26], 3);
        let x = wide.narrow(3, 0, 13)?;
        let (y, expected) = (ours.forward(&x)?, theirs.forward(&x.contiguous()?)?);
        assert!(relative_error(&y, &expected) < 1e-5, "{case}");
        assert_eq!(relative_error(&y, &expected) > 0.0, apart, "{case}: did it run on the payload?");
        if apart {
            assert_eq!(ours.forward(&x.narrow(0, 0, 0)?)?.dims()[0], 0);
        }

        let weight = compressed(&[outputs, inputs / groups, kernel]);
        let config = Conv1dConfig { padding, stride, dilation, groups, ..Default::default() };
        let ours = Conv1d::new(weight.clone(), None, config);
        let exact = weight.rbe().expect("compressed").dequantize()?.reshape(weight.dims())?;
        let theirs = ::candle_nn::Conv1d::new(exact, None, config);
        let x = x.narrow(2, 5, 1)?.squeeze(2)?;
        let (y, expected) = (ours.forward(&x)?, theirs.forward(&x.contiguous()?)?);
        assert!(relative_error(&y, &expected) < 1e-5, "{case}");
        assert_eq!(relative_error(&y, &expected) > 0.0, apart, "{case}: did it run on the payload?");
    }
    Ok(())
}

#[test]
fn gradients_reach_the_image() -> Result<()> {
    let weight = compressed(&[40, 3, 8, 8]);
    let config = Conv2dConfig { stride: 8, ..Default::default() };
    let ours = Conv2d::new(weight.clone(), None, config);
    let exact = weight.rbe().expect("compressed").dequantize()?.reshape(weight.dims())?;
    let theirs = ::candle_nn::Conv2d::new(exact, None, config);
    let x = Var::from_tensor(&numbers(&[1, 3, 19, 19], 4))?;
    let of = |y: Tensor| -> Result<Tensor> {
        let gradients = y.sqr()?.sum_all()?.backward()?;
        Ok(gradients.get(&x).expect("a gradient").clone())
    };
    assert!(relative_error(&of(ours.forward(&x)?)?, &of(theirs.forward(&x)?)?) < 1e-5);
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let weight = compressed(&[40, 34, 4, 4]);
    let ours = Conv2d::new(weight.clone(), None, Conv2dConfig { stride: 4, ..Default::default() });
    let error = |shape: &[usize]| ours.forward(&numbers(shape, 5)).unwrap_err().to_string();
    assert!(error(&[1, 34, 3, 8]).contains("a kernel of 4 over an axis of 3"));
    assert!(error(&[1, 33, 8, 8]).contains("(40, 544)"), "{}", error(&[1, 33, 8, 8]));
    assert!(ours.forward(&numbers(&[34, 8, 8], 5)).is_err());
    assert!(weight.reshaped((34, 40, 4, 4)).is_err() && weight.reshaped((40, 543)).is_err());
    Ok(())
}

/// Kernels that are matrices are compressed, and come back in their shape; others stay.
#[test]
fn kernels_in_a_file() -> anyhow::Result<()> {
    let room = tempfile::tempdir()?;
    let [dense, small, back] = ["dense", "small", "back"].map(|name| room.path().join(name));
    let tensors = HashMap::from([
        ("patch_embed.proj.weight", numbers(&[48, 3, 8, 8], 6)),
        ("patch_embed.proj.bias", numbers(&[48], 7)),
        ("point.weight", numbers(&[64, 48, 1], 8)),
        ("wide.weight", numbers(&[64, 48, 3], 9)),
        ("depth.weight", numbers(&[64, 1, 1, 1], 10)),
    ]);
    candle_core::safetensors::save(&tensors, &dense)?;
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(5.0)))?;
    let options = archive::CompressOptions::default();
    let report = archive::compress(&dense, &small, &encoder, &options, &mut |_| ControlFlow::Continue(()))?;
    let names: Vec<_> =
        report.tensors.iter().filter(|line| line.compressed).map(|line| &*line.name).collect();
    assert_eq!(names, ["patch_embed.proj.weight", "point.weight"]);
    let checked = archive::verify(&small, &dense)?;
    assert_eq!((checked.problems, checked.tensors.len()), (0, 5));
    archive::decode(&small, &back, &Default::default(), &mut |_| ControlFlow::Continue(()))?;
    let back = candle_core::safetensors::load(&back, &CPU)?;
    assert!(tensors.iter().all(|(name, tensor)| back[*name].dims() == tensor.dims()));
    assert!(relative_error(&back["point.weight"], &tensors["point.weight"]) < 0.1);

    set_default_layer_config(LayerConfig { precision: Precision::Exact, ..LayerConfig::default() });
    let vb = archive::open(&small, DType::F32, &CPU)?;
    let patches = Conv2dConfig { stride: 8, ..Default::default() };
    let ours = candle_nn::conv2d(3, 48, 8, patches, vb.pp("patch_embed.proj"))?;
    let point = candle_nn::conv1d_no_bias(48, 64, 1, Default::default(), vb.pp("point"))?;
    let image = numbers(&[1, 3, 32, 24], 11);
    let cells = ours.forward(&image)?;
    let y = point.forward(&cells.flatten_from(2)?)?;
    let is_point = |weight: &candle_rbe::nn::DecodedWeight| weight.name.starts_with("p");
    assert!(!decoded_weights().iter().any(is_point), "nothing was decoded");
    let theirs = ::candle_nn::conv2d(3, 48, 8, patches, vb.pp("patch_embed.proj"))?;
    assert!(relative_error(&cells, &theirs.forward(&image)?) < 1e-5);
    let theirs = ::candle_nn::conv1d_no_bias(48, 64, 1, Default::default(), vb.pp("point"))?;
    assert!(relative_error(&y, &theirs.forward(&cells.flatten_from(2)?)?) < 1e-5);
    // Patches that overlap: decoded, and said so. Parts of a kernel are those of the decoded.
    let overlapping = candle_nn::conv2d_no_bias(
        3,
        48,
        8,
        Conv2dConfig { stride: 4, ..patches },
        vb.pp("patch_embed.proj"),
    )?;
    overlapping.forward(&image)?;
    let reasons = decoded_weights().into_iter().filter(is_point).map(|weight| weight.reason);
    assert!(reasons.into_iter().any(|reason| reason == DecodeReason::Convolution));
    let sharded = archive::open_sharded(&small, DType::F32, &CPU)?;
    let whole = vb.get((48, 3, 8, 8), "patch_embed.proj.weight")?;
    for (dim, size) in [(0, 4), (1, 3)] {
        let shard = ::candle_nn::var_builder::Shard { dim, rank: 1, world_size: size };
        let part = sharded.get_with_hints((), "patch_embed.proj.weight", shard)?;
        let length = whole.dim(dim)? / size;
        assert_eq!(relative_error(&part, &whole.narrow(dim, length, length)?), 0.0);
    }
    Ok(())
}
