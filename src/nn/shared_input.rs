//! Layers that see the same input.

use super::layer::in_f64;
use super::{Layer, Linear, RbeLinear};
use crate::clock::Instant;
use crate::ops;
use candle_core::{Result, Tensor};
use candle_nn::Module;

/// What each layer makes of one input: the same as its forward, in less time where layers are compressed and share the
/// transform of the input ([`ops::matmul_all`]), as those from one encoder do. Queries, keys and values of
/// [`RbeAttention`](super::RbeAttention) and both sides of a gate in [`RbeMlp`](super::RbeMlp) go through here.
///
/// ```
/// # use candle_core::{Device, Result, Tensor};
/// # use candle_nn::Module;
/// # use candle_rbe::{Encoder, EncoderConfig, Linear, RbeLinear, Rate, nn::forward_all};
/// # fn main() -> Result<()> {
/// # let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.2)))?;
/// # let layer = || -> Result<Linear> {
/// #     let weight = Tensor::randn(0f32, 0.1, (96, 64), &Device::Cpu)?;
/// #     Ok(RbeLinear::new(encoder.encode(&weight)?, None).into())
/// # };
/// let (q, k, v): (Linear, Linear, Linear) = (layer()?, layer()?, layer()?);
/// let x = Tensor::randn(0f32, 1., (3, 64), &Device::Cpu)?;
/// let [query, key, value] = forward_all([&q, &k, &v], &x)?;
/// assert_eq!(key.to_vec2::<f32>()?, k.forward(&x)?.to_vec2::<f32>()?);
/// # Ok(()) }
/// ```
///
/// # Errors
/// As the layers' forward.
pub fn forward_all<const N: usize>(layers: [&Linear; N], x: &Tensor) -> Result<[Tensor; N]> {
    let outputs = match together(layers, x) {
        Some(layers) => products(&layers, x)?,
        None => layers.iter().map(|layer| layer.forward(x)).collect::<Result<Vec<_>>>()?,
    };
    Ok(outputs.try_into().unwrap_or_else(|_| unreachable!("every layer has an output")))
}

/// The layers, where one operation can take them all.
fn together<'l, const N: usize>(layers: [&'l Linear; N], x: &Tensor) -> Option<Vec<&'l RbeLinear>> {
    let rbe = layers.iter().map(|linear| match linear.layer() {
        Layer::Rbe(_) if linear.has_hooks() || in_f64(x, linear.weight()) => None,
        Layer::Rbe(layer) => Some(layer).filter(|layer| layer.is_direct()),
        _ => None,
    });
    let rbe: Vec<&RbeLinear> = rbe.collect::<Option<_>>()?;
    rbe.windows(2).all(|pair| pair[0].config() == pair[1].config()).then_some(rbe)
}

/// The outputs; the time is counted in proportion to the weights' bytes.
fn products(layers: &[&RbeLinear], x: &Tensor) -> Result<Vec<Tensor>> {
    let Some(first) = layers.first() else { return Ok(Vec::new()) };
    let start = Instant::now();
    let weights: Vec<_> = layers.iter().map(|layer| (layer.weight(), layer.bias())).collect();
    let outputs = ops::matmul_all_with_biases(x, &weights, first.config().precision)?;
    let time = start.elapsed();
    let bytes: usize = weights.iter().map(|(weight, _)| weight.memory_in_bytes()).sum();
    for (layer, (weight, _)) in layers.iter().zip(&weights) {
        layer.count(x, time.mul_f64(weight.memory_in_bytes() as f64 / bytes.max(1) as f64));
    }
    Ok(outputs)
}
