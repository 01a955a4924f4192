//! Fine-tuning a frozen layer by a few coefficients of a transform.
//!
//! ```text
//!     y  =  W x + b  +  A_out' S A_in x        W, b frozen; S zero but at K fixed positions
//! ```
//!
//! The idea is FourierFT's (Gao et al., arXiv 2405.03003): a change of weights needs far fewer numbers in the frequency
//! domain than LoRA's two factors. Here the transform is the one of the compressed weights, block by block, and the
//! adapter **is** a compressed tensor with a sparse term alone: its file, its product and its gradient are theirs, and it
//! can be added to the weight that it was trained on ([`SpectralAdapter::merge`]).
//!
//! `archive::save_adapters` and `archive::load_adapters` keep them in a file of their own.

use super::{Layer, Linear, RbeLinear};
use crate::{Error, RbeTensor, ops};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Init, Module, VarBuilder};
use rbe_core::codec::matrix::Orientation;
use rbe_core::codec::term::sparse::{Entry, Format, Sparse};
use rbe_core::codec::{AxisScales, Layout, Matrix, ParameterGroup, ParameterKind, Transform};

/// Which coefficients are trained.
#[derive(Clone, Copy, Debug)]
pub enum Positions<'a> {
    /// Drawn evenly from all, the same ones for a seed.
    Random {
        /// What they are drawn from.
        seed: u64,
    },
    /// Where this `(out, in)` matrix has its largest coefficients: the gradient of the weight on a few examples, or, for
    /// the coefficients of most energy, the weight itself.
    Largest(&'a Tensor),
}

/// The coefficients of an adapter.
#[derive(Clone, Copy, Debug)]
pub struct AdapterConfig<'a> {
    /// How many of them are trained in the layer.
    pub coefficients: usize,
    /// Which.
    pub positions: Positions<'a>,
    /// The transform and the block edge; `None` takes those of the weight and its signs, so that the two can be merged
    /// (of a dense weight: the DCT, on blocks of 256).
    pub axes: Option<(Transform, usize)>,
}

impl AdapterConfig<'_> {
    /// `coefficients` of a layer, drawn from `seed`.
    pub fn random(coefficients: usize, seed: u64) -> Self {
        Self { coefficients, positions: Positions::Random { seed }, axes: None }
    }
}

/// A frozen layer and a trainable sparse term beside it.
#[derive(Clone, Debug)]
pub struct SpectralAdapter {
    base: Box<Linear>,
    /// The positions; `(out, in)`.
    positions: RbeTensor,
    /// The coefficients, F32, `(K)`.
    values: Tensor,
}

impl SpectralAdapter {
    /// An adapter of zeros, or of what `vb` has as `values`, `(K)`; a `VarMap` makes the variable. In the unit of the
    /// weights: `K` coefficients of size `c` change the weight by `c sqrt(K)` in the Frobenius norm.
    ///
    /// # Errors
    /// When the layer has fewer coefficients than asked for, or a block more than 65,535 of them; when `Largest` has
    /// another shape than the weight.
    pub fn new(base: Linear, config: AdapterConfig, vb: VarBuilder) -> Result<Self> {
        let positions = positions(&base, config)?;
        let values = vb.get_with_hints_dtype(config.coefficients, "values", Init::Const(0.0), DType::F32)?;
        Ok(Self { base: base.into(), positions, values })
    }

    /// An adapter that was trained before, as [`to_tensor`](Self::to_tensor) gave it.
    ///
    /// # Errors
    /// When it has another shape than the layer, or other terms than a sparse one.
    pub fn from_tensor(base: Linear, adapter: RbeTensor) -> Result<Self> {
        let expected = base.weight().dims2()?;
        if adapter.shape().dims() != [expected.0, expected.1] {
            let reason = format!("an adapter of shape {:?} for a layer of {expected:?}", adapter.shape());
            return Err(Error::shape(reason).into());
        }
        if !matches!(adapter.parameter_groups(), [ParameterGroup { kind: ParameterKind::Coefficients, .. }]) {
            let reason = format!("an adapter has a sparse term alone, not {}", adapter.summary());
            return Err(Error::config(reason).into());
        }
        let values = adapter.parameters()?;
        Ok(Self { base: base.into(), positions: adapter, values })
    }

    /// The frozen layer.
    pub fn base(&self) -> &Linear {
        &self.base
    }

    /// The coefficients, F32, `(K)`.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// The adapter alone as a compressed tensor, with its values rounded to F16: four bytes a coefficient, less in a file.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn to_tensor(&self) -> Result<RbeTensor> {
        Ok(self.positions.with_parameters(&self.values.detach())?)
    }

    /// One layer that computes the same: the change is added to a dense weight, or to the sparse term of a compressed one.
    ///
    /// # Errors
    /// When the base is compressed with other blocks, another transform or other signs than the adapter
    /// ([`AdapterConfig::axes`]), or is itself being trained.
    pub fn merge(self) -> Result<Linear> {
        let adapter = self.to_tensor()?;
        match self.base.into_layer() {
            Layer::Dense(base) => {
                let change = adapter.dequantize()?.to_dtype(base.weight().dtype())?;
                Ok(Linear::new((base.weight() + change)?, base.bias().cloned()))
            }
            Layer::Rbe(base) => {
                let weight = add_sparse(base.weight(), &adapter)?;
                let bias = base.bias().cloned();
                Ok(RbeLinear::new(weight, bias).with_precision(base.config().precision).into())
            }
            Layer::Trainable(_) | Layer::Adapted(_) => {
                let reason = "an adapter is merged into a dense or a compressed layer; merge or convert its base first";
                Err(Error::config(reason).into())
            }
        }
    }
}

impl Module for SpectralAdapter {
    /// `(.., in)` to `(.., out)`, of the input's type.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.base.forward(x)? + ops::parametric_matmul(x, &self.values, &self.positions)?
    }
}

/// Where a layer's adapter has its coefficients, all of them zero.
fn positions(base: &Linear, config: AdapterConfig) -> Result<RbeTensor> {
    let (out, input) = base.weight().dims2()?;
    let compressed = match base.layer() {
        Layer::Rbe(_) | Layer::Trainable(_) => base.weight().rbe(),
        Layer::Dense(_) | Layer::Adapted(_) => None,
    };
    // A matrix of zeros on the axes that the adapter's coefficients belong to.
    let (axes, view) = match (config.axes, compressed) {
        (None, Some(weight)) => (weight.to_matrix()?.with_terms(vec![], 1.0), weight.orientation()),
        (axes, _) => {
            let (transform, block) = axes.unwrap_or((Transform::Dct, 256));
            (
                Matrix::new(
                    Layout::new(out, input, block).map_err(Error::from)?,
                    transform,
                    None,
                    vec![],
                    1.0,
                ),
                Orientation::Matrix,
            )
        }
    };
    let layout = axes.layout();
    let chosen = match config.positions {
        _ if config.coefficients > layout.elements() => {
            let reason = format!("{} coefficients of a {out}x{input} matrix", config.coefficients);
            return Err(Error::config(reason).into());
        }
        Positions::Random { seed } => draw(seed, config.coefficients, layout.elements()),
        Positions::Largest(matrix) => {
            if matrix.dims() != [out, input] {
                let reason =
                    format!("a matrix of {:?} to choose from for a weight of {out}x{input}", matrix.shape());
                return Err(Error::shape(reason).into());
            }
            let stored = if view == Orientation::Transposed { matrix.t()? } else { matrix.clone() };
            let stored =
                stored.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            largest(&axes, &stored, config.coefficients)
        }
    };
    let matrix = sparse_matrix(&axes, chosen, || 0.0)?;
    Ok(RbeTensor::from_matrix(&matrix, view)?)
}

/// A matrix on these axes of a sparse term alone, with `value` at some positions in rising order: they count block after block, in each
/// row by row.
pub(super) fn sparse_matrix(
    axes: &Matrix,
    chosen: Vec<usize>,
    mut value: impl FnMut() -> f32,
) -> Result<Matrix> {
    let layout = axes.layout();
    let mut chosen = chosen.into_iter().peekable();
    let mut first = 0;
    let mut blocks = Vec::new();
    for block in layout.iter() {
        let mut entries = Vec::new();
        while let Some(n) = chosen.next_if(|n| *n < first + block.len()) {
            let (row, col) = ((n - first) / block.width, (n - first) % block.width);
            entries.push(Entry { row: row as u8, col: col as u8, value: value() });
        }
        first += block.len();
        blocks.push(entries);
    }
    let term = Sparse::pack(layout, Format::Word32, &blocks).map_err(Error::from)?.into();
    Ok(axes.with_terms(vec![term], 1.0))
}

/// `count` different numbers below `end` in rising order (Floyd's algorithm).
pub(super) fn draw(seed: u64, count: usize, end: usize) -> Vec<usize> {
    let mut state = seed;
    let mut chosen = std::collections::BTreeSet::new();
    for bound in end - count..end {
        let word = rbe_core::codec::signs::split_mix_64(&mut state);
        // The high half of a 128-bit product is the number's share of the range.
        let n = ((u128::from(word) * (bound as u128 + 1)) >> 64) as usize;
        if !chosen.insert(n) {
            chosen.insert(bound);
        }
    }
    chosen.into_iter().collect()
}

/// Where a matrix has its largest coefficients, in rising order.
fn largest(axes: &Matrix, values: &[f32], count: usize) -> Vec<usize> {
    let layout = axes.layout();
    let mut coefficients = Vec::with_capacity(layout.elements());
    let mut scratch = vec![0.0; axes.axes().scratch_len()];
    // The operators multiply by the scales; coefficients of a matrix are those of what they were divided by.
    let squares = [&axes.axes().rows, &axes.axes().cols].map(|axis| {
        let scales = axis.scales().map_or_else(|| vec![1.0; axis.len()], AxisScales::values);
        scales.iter().map(|scale| scale * scale).collect::<Vec<f32>>()
    });
    for block in layout.iter() {
        let value = |n: usize| {
            let (row, col) = (block.row + n / block.width, block.col + n % block.width);
            values[row * layout.cols() + col] / (squares[0][row] * squares[1][col])
        };
        let mut tile: Vec<f32> = (0..block.len()).map(value).collect();
        axes.axes().forward_block(block, &mut tile, &mut scratch);
        coefficients.extend(tile);
    }
    let mut order: Vec<usize> = (0..coefficients.len()).collect();
    if count < order.len() {
        let by_size = |a: &usize, b: &usize| coefficients[*b].abs().total_cmp(&coefficients[*a].abs());
        order.select_nth_unstable_by(count, by_size);
        order.truncate(count);
    }
    order.sort_unstable();
    order
}

/// A compressed weight with an adapter's coefficients in its sparse term.
fn add_sparse(weight: &RbeTensor, adapter: &RbeTensor) -> Result<RbeTensor> {
    let (base, change) = (weight.to_matrix()?, adapter.to_matrix()?);
    let axes = |matrix: &Matrix| {
        let scales = [&matrix.axes().rows, &matrix.axes().cols].map(|axis| axis.scales().cloned());
        (matrix.layout(), matrix.transform(), matrix.seed(), scales)
    };
    if axes(&base) != axes(&change) || weight.orientation() != adapter.orientation() {
        let reason =
            format!("the adapter ({}) has other axes than the weight ({})", change.summary(), base.summary());
        return Err(Error::config(reason).into());
    }
    let terms = [base.term::<Sparse>(), change.term::<Sparse>()];
    let blocks: Vec<Vec<Entry>> = base
        .layout()
        .iter()
        .map(|block| {
            let mut sums = std::collections::BTreeMap::new();
            for entry in terms.into_iter().flatten().flat_map(|sparse| sparse.entries(block)) {
                *sums.entry((entry.row, entry.col)).or_insert(0.0) += entry.value;
            }
            sums.into_iter().map(|((row, col), value)| Entry { row, col, value }).collect()
        })
        .collect();
    // A sum of formats is held by the general one.
    let merged = Sparse::pack(base.layout(), Format::Word32, &blocks).map_err(Error::from)?;
    Ok(RbeTensor::from_matrix(&base.with_term(merged, 1.0), weight.orientation())?)
}
