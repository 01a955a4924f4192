//! A compressed layer that is trained as it is stored: its scales, basis parameters, sparse coefficients and bias.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{AdamW, Module, Optimizer, VarBuilder, VarMap};
//! use candle_rbe::{Encoder, EncoderConfig, Rate, RbeLinear, TrainableLinear};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let weight = Tensor::randn(0f32, 0.1, (64, 96), &Device::Cpu)?;
//! let compressed = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(2.2)))?.encode(&weight)?;
//!
//! let variables = VarMap::new();
//! let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
//! let layer = TrainableLinear::new(RbeLinear::new(compressed, None), vb.pp("layer"))?;
//! let mut optimizer = AdamW::new_lr(variables.all_vars(), 1e-2)?;
//! let x = Tensor::randn(0f32, 1.0, (256, 96), &Device::Cpu)?;
//! let wanted = x.matmul(&weight.t()?)?;
//! let loss = |layer: &TrainableLinear| (layer.forward(&x)? - &wanted)?.sqr()?.mean_all();
//! let before = loss(&layer)?.to_scalar::<f32>()?;
//! for _ in 0..20 {
//!     optimizer.backward_step(&loss(&layer)?)?;
//! }
//! assert!(loss(&layer)?.to_scalar::<f32>()? < before);
//!
//! let trained: RbeLinear = layer.to_linear()?; // the same bytes with better numbers
//! # Ok(()) }
//! ```

use super::RbeLinear;
use super::adapter::{draw, sparse_matrix};
use crate::{Error, RbeTensor, ops};
use candle_core::{DType, Result, Tensor};
use candle_nn::{Init, Module, VarBuilder};
use rbe_core::codec::matrix::Orientation;
use rbe_core::codec::signs::split_mix_64;
use rbe_core::codec::{Layout, Matrix, ParameterGroup, ParameterKind, Transform};

/// A linear layer over a compressed weight whose numbers are variables.
///
/// A variable is the **change** of what it is named after, and zero at first: that of scales (`planes`, `trellis`, `residual_trellis`) is
/// relative, `scale (1 + v)`, that of `sparse` coefficients in units of their root mean square, that of `basis` parameters
/// (and of coefficients that are all zero) in units of the weight's, that of the `bias` plain. So learning rates of the same
/// order suit all, and what a `VarMap` saves is resumed by loading it.
#[derive(Clone, Debug)]
pub struct TrainableLinear {
    weight: RbeTensor,
    /// The numbers before training and the unit of each one's change, `(count)`.
    start: Tensor,
    unit: Tensor,
    /// The variables of each term, F32. Kept apart: what is made of a variable does not follow it.
    changes: Vec<Tensor>,
    /// The bias before training and its change.
    bias: Option<(Tensor, Tensor)>,
}

impl TrainableLinear {
    /// Takes the variables from `vb` under the terms' names (`basis`, `sparse`, `planes`, `trellis`, and for the
    /// second trellis of more than four bits `residual_trellis`) and `bias`; a `VarMap` makes those that it does not have.
    ///
    /// # Errors
    /// When the weight is a vector, or `vb` has a variable of another shape.
    pub fn new(linear: RbeLinear, vb: VarBuilder) -> Result<Self> {
        let weight = linear.weight().clone();
        let start = weight.parameters()?;
        let (mut units, mut changes, mut first) = (Vec::new(), Vec::new(), 0);
        for group in weight.parameter_groups().iter().filter(|group| group.count > 0) {
            let ParameterGroup { name, count, kind } = *group;
            let own = start.narrow(0, first, count)?;
            first += count;
            units.push(match kind {
                ParameterKind::Scales => own,
                ParameterKind::Coefficients | ParameterKind::Functions => {
                    // A basis fitted to what is not smooth is as good as zero, and no unit.
                    let own_rms = if kind == ParameterKind::Functions { 0.0 } else { rms(&own)? };
                    let unit = if own_rms > 0.0 { own_rms } else { rms(&weight.dequantize()?)? };
                    Tensor::full(if unit > 0.0 { unit } else { 1.0 }, count, own.device())?
                }
            });
            changes.push(zeros(&vb, count, name)?);
        }
        let bias = match linear.bias() {
            Some(bias) => Some((bias.to_dtype(DType::F32)?, zeros(&vb, bias.dim(0)?, "bias")?)),
            None => None,
        };
        Ok(Self { weight, start, unit: Tensor::cat(&units, 0)?, changes, bias })
    }

    /// A layer `(out_dim, in_dim)` without bias that has never been dense, to be trained from the beginning: a sparse term of
    /// `coefficients` positions of the DCT with random signs, drawn from `seed`, four bytes each where it is kept.
    ///
    /// Its first values are drawn too, evenly, so that the weight's elements have the variance of Candle's
    /// `DEFAULT_KAIMING_NORMAL` (He et al., arXiv 1502.01852), `2 / in_dim`.
    ///
    /// # Errors
    /// When there is no coefficient or more than there are elements, or more than 65,535 in a block of 256; as [`new`](Self::new).
    pub fn from_scratch(
        in_dim: usize,
        out_dim: usize,
        coefficients: usize,
        seed: u64,
        vb: VarBuilder,
    ) -> Result<Self> {
        let layout = Layout::new(out_dim, in_dim, 256).map_err(Error::from)?;
        if coefficients == 0 || coefficients > layout.elements() {
            let reason = format!("{coefficients} coefficients of a {out_dim}x{in_dim} matrix");
            return Err(Error::config(reason).into());
        }
        let chosen = draw(seed, coefficients, layout.elements());
        // The transform is orthonormal: energy in is energy out. An even distribution of half width a has variance a^2 / 3.
        let variance = 2.0 / in_dim as f64 * layout.elements() as f64 / coefficients as f64;
        let (half_width, mut state) = ((3.0 * variance).sqrt(), !seed);
        let value = || {
            let unit = (split_mix_64(&mut state) >> 11) as f64 / (1u64 << 53) as f64;
            (half_width * (2.0 * unit - 1.0)) as f32
        };
        let axes = Matrix::new(layout, Transform::Dct, Some(seed), vec![], 1.0);
        let matrix = sparse_matrix(&axes, chosen, value)?;
        let weight = RbeTensor::from_matrix(&matrix, Orientation::Matrix)?;
        Self::new(RbeLinear::new(weight, None), vb)
    }

    /// The compressed weight before training.
    pub fn weight(&self) -> &RbeTensor {
        &self.weight
    }

    pub(super) fn start_bias(&self) -> Option<&Tensor> {
        self.bias.as_ref().map(|(start, _)| start)
    }

    /// The weight's numbers now, as [`RbeTensor::parameters`] orders them; differentiable.
    ///
    /// # Errors
    /// Candle's.
    pub fn parameters(&self) -> Result<Tensor> {
        &self.start + (&self.unit * Tensor::cat(&self.changes, 0)?)?
    }

    /// The bias now, F32, `(out)`; differentiable.
    ///
    /// # Errors
    /// Candle's.
    pub fn bias(&self) -> Result<Option<Tensor>> {
        self.bias.as_ref().map(|(start, change)| start + change).transpose()
    }

    /// The layer for inference, with the numbers as they are now, rounded as [`RbeTensor::with_parameters`] says.
    ///
    /// # Errors
    /// When a number is not finite or a scale has become negative.
    pub fn to_linear(&self) -> Result<RbeLinear> {
        let weight = self.weight.with_parameters(&self.parameters()?.detach())?;
        Ok(RbeLinear::new(weight, self.bias()?.map(|bias| bias.detach())))
    }
}

fn rms(values: &Tensor) -> Result<f32> {
    values.sqr()?.mean_all()?.sqrt()?.to_scalar()
}

fn zeros(vb: &VarBuilder, count: usize, name: &str) -> Result<Tensor> {
    vb.get_with_hints_dtype(count, name, Init::Const(0.0), DType::F32)
}

impl Module for TrainableLinear {
    /// `(.., in)` to `(.., out)`, of the input's type.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = ops::parametric_matmul(x, &self.parameters()?, &self.weight)?;
        match self.bias()? {
            Some(bias) => y.broadcast_add(&bias.to_dtype(y.dtype())?),
            None => Ok(y),
        }
    }
}
