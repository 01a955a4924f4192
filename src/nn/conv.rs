//! Convolutions: those that are products of a matrix with patches run on compressed weights.

use super::{DecodeReason, Linear, Weight};
use candle_core::{Result, Tensor, bail};
use candle_nn::{BatchNorm, Conv1dConfig, Conv2dConfig, Module};

/// A convolution over one axis with all that `candle_nn::Conv1d` has, over a weight that is dense or compressed.
///
/// A compressed weight is the matrix `(out, in kernel)`. Where patches do not overlap (`kernel <= stride`, no groups, no
/// dilation), the convolution is that matrix' product with them and nothing is decoded: a kernel of one position, a patch
/// embedding. Any other is Candle's, on the weight decoded once ([`DecodeReason::Convolution`]).
#[derive(Clone, Debug)]
pub struct Conv1d {
    weight: Weight,
    bias: Option<Tensor>,
    config: Conv1dConfig,
    /// Where patches are multiplied with it.
    matrix: Option<Linear>,
}

/// A convolution over two axes with all that `candle_nn::Conv2d` has; see [`Conv1d`].
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use candle_nn::{Conv2dConfig, Module};
/// use candle_rbe::nn::{Conv2d, Weight};
/// use candle_rbe::{Encoder, EncoderConfig, Rate};
///
/// # fn main() -> Result<()> {
/// let kernel = Tensor::randn(0f32, 0.1, (96, 3, 8, 8), &Device::Cpu)?;
/// let matrix = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.2)))?.encode(&kernel.flatten_from(1)?)?;
/// let config = Conv2dConfig { stride: 8, ..Default::default() };
/// let layer = Conv2d::new(Weight::from(matrix).reshaped((96, 3, 8, 8))?, None, config);
/// let image = Tensor::randn(0f32, 1.0, (1, 3, 32, 32), &Device::Cpu)?;
/// assert_eq!(layer.forward(&image)?.dims(), [1, 96, 4, 4]); // a product with 16 patches
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Weight,
    bias: Option<Tensor>,
    config: Conv2dConfig,
    /// Where patches are multiplied with it.
    matrix: Option<Linear>,
}

/// How patches lie along an axis.
#[derive(Clone, Copy)]
struct Patches {
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl Patches {
    /// The one patch of an axis that is not there.
    const NONE: Self = Self { kernel: 1, stride: 1, padding: 0 };

    /// Cuts the axis `dim` of `x` into patches: `(.., patches, kernel, ..)`.
    fn cut(self, x: &Tensor, dim: usize) -> Result<Tensor> {
        let Self { kernel, stride, padding } = self;
        let x = x.pad_with_zeros(dim, padding, padding)?;
        let length = x.dim(dim)?;
        let Some(after) = length.checked_sub(kernel) else {
            bail!("a convolution with a kernel of {kernel} over an axis of {length}, padding counted")
        };
        let count = after / stride + 1;
        // Up to where the next patch would begin, which for the last one may be outside.
        let x = match (count * stride).checked_sub(length) {
            None | Some(0) => x.narrow(dim, 0, count * stride)?,
            Some(missing) => x.pad_with_zeros(dim, 0, missing)?,
        };
        let mut shape = x.dims().to_vec();
        shape.splice(dim..=dim, [count, stride]);
        x.reshape(shape)?.narrow(dim + 1, 0, kernel)
    }
}

/// `(batch, in, height, width)` to `(batch, out, rows, columns)` of patches.
fn product(matrix: &Linear, x: &Tensor, rows: Patches, columns: Patches) -> Result<Tensor> {
    let (batch, channels, _, _) = x.dims4()?;
    let cut = rows.cut(&columns.cut(x, 3)?, 2)?;
    let (height, width) = (cut.dim(2)?, cut.dim(4)?);
    let vectors = cut.permute((0, 2, 4, 1, 3, 5))?;
    let vectors = vectors.reshape((batch, height, width, channels * rows.kernel * columns.kernel))?;
    matrix.forward(&vectors)?.permute((0, 3, 1, 2))?.contiguous()
}

/// The layer that multiplies patches with a compressed weight.
fn matrix(weight: &Weight, bias: Option<&Tensor>) -> Option<Linear> {
    Some(Linear::new(weight.matrix()?, bias.cloned()))
}

impl Conv1d {
    /// A layer with a weight `(out, in / groups, kernel)`, a `Tensor` or a [`Weight`] of that shape, and a bias `(out)`, as
    /// `candle_nn::Conv1d::new`.
    pub fn new(weight: impl Into<Weight>, bias: Option<Tensor>, config: Conv1dConfig) -> Self {
        let weight = weight.into();
        let matrix = Self::has_product(&weight, &config).then(|| matrix(&weight, bias.as_ref())).flatten();
        Self { weight, bias, config, matrix }
    }

    /// A layer with a compressed weight that [has a product](Self::has_product), which is that of `matrix`.
    pub(super) fn of(weight: Weight, matrix: Linear, config: Conv1dConfig) -> Self {
        Self { weight, bias: matrix.bias().cloned(), config, matrix: Some(matrix) }
    }

    /// Whether patches do not overlap.
    pub(super) fn has_product(weight: &Weight, config: &Conv1dConfig) -> bool {
        let &Conv1dConfig { stride, groups, dilation, .. } = config;
        let kernel = weight.dims().get(2).copied();
        groups == 1 && kernel.is_some_and(|kernel| kernel <= stride && (dilation == 1 || kernel == 1))
    }

    /// Padding, stride, dilation, groups.
    pub fn config(&self) -> &Conv1dConfig {
        &self.config
    }

    /// The weight, `(out, in / groups, kernel)`.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The bias, `(out)`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for Conv1d {
    /// `(batch, in, length)` to `(batch, out, patches)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Some(matrix) = &self.matrix else {
            let weight = self.weight.tensor_for(DecodeReason::Convolution)?.clone();
            return candle_nn::Conv1d::new(weight, self.bias.clone(), self.config).forward(x);
        };
        let &Conv1dConfig { padding, stride, .. } = &self.config;
        let columns = Patches { kernel: self.weight.dim(2)?, stride, padding };
        product(matrix, &x.unsqueeze(2)?, Patches::NONE, columns)?.squeeze(2)
    }
}

impl From<candle_nn::Conv1d> for Conv1d {
    fn from(conv: candle_nn::Conv1d) -> Self {
        Self::new(conv.weight().clone(), conv.bias().cloned(), *conv.config())
    }
}

impl Conv2d {
    /// A layer with a weight `(out, in / groups, kernel, kernel)`, a `Tensor` or a [`Weight`] of that shape, and a bias `(out)`, as
    /// `candle_nn::Conv2d::new`.
    pub fn new(weight: impl Into<Weight>, bias: Option<Tensor>, config: Conv2dConfig) -> Self {
        let weight = weight.into();
        let matrix = Self::has_product(&weight, &config).then(|| matrix(&weight, bias.as_ref())).flatten();
        Self { weight, bias, config, matrix }
    }

    /// A layer with a compressed weight that [has a product](Self::has_product), which is that of `matrix`.
    pub(super) fn of(weight: Weight, matrix: Linear, config: Conv2dConfig) -> Self {
        Self { weight, bias: matrix.bias().cloned(), config, matrix: Some(matrix) }
    }

    /// Whether patches do not overlap.
    pub(super) fn has_product(weight: &Weight, config: &Conv2dConfig) -> bool {
        let &Conv2dConfig { stride, groups, dilation, .. } = config;
        let [_, _, height, width] = *weight.dims() else { return false };
        let kernel = height.max(width);
        groups == 1 && kernel <= stride && (dilation == 1 || kernel == 1)
    }

    /// Padding, stride, dilation, groups.
    pub fn config(&self) -> &Conv2dConfig {
        &self.config
    }

    /// The weight, `(out, in / groups, kernel, kernel)`.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The bias, `(out)`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The convolution and the norm after it in one, which is dense.
    ///
    /// # Errors
    /// When the norm has no weight; Candle's.
    pub fn absorb_bn(&self, norm: &BatchNorm) -> Result<Self> {
        let weight = self.weight.tensor()?.clone();
        Ok(candle_nn::Conv2d::new(weight, self.bias.clone(), self.config).absorb_bn(norm)?.into())
    }
}

impl Module for Conv2d {
    /// `(batch, in, height, width)` to `(batch, out, rows, columns)` of patches.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Some(matrix) = &self.matrix else {
            let weight = self.weight.tensor_for(DecodeReason::Convolution)?.clone();
            return candle_nn::Conv2d::new(weight, self.bias.clone(), self.config).forward(x);
        };
        let &Conv2dConfig { padding, stride, .. } = &self.config;
        let side =
            |dim| Ok::<_, candle_core::Error>(Patches { kernel: self.weight.dim(dim)?, stride, padding });
        product(matrix, x, side(2)?, side(3)?)
    }
}

impl From<candle_nn::Conv2d> for Conv2d {
    fn from(conv: candle_nn::Conv2d) -> Self {
        Self::new(conv.weight().clone(), conv.bias().cloned(), *conv.config())
    }
}
