//! Attention with memory linear in the sequence, on the CPU.

use super::{CandlePool, dtype_of, from_f32, to_f32, values_of};
use crate::Error;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};
use rbe_core::cpu::{self, Heads};
use std::borrow::Cow;

/// Which keys a query sees.
#[derive(Clone, Debug)]
pub enum AttentionMask {
    /// Those up to its own place; the last query stands where the last key does.
    Causal,
    /// All.
    Full,
    /// Those whose entry of this `(batch, keys)` tensor is not zero.
    Keys(Tensor),
}

/// `softmax(scale q k' + mask) v` (Vaswani et al., arXiv 1706.03762) for `q` `(batch, heads, seq, width)`, `k` and `v`
/// `(batch, kv_heads, keys, width)`, `heads` a multiple of `kv_heads` (GQA, arXiv 2305.13245). Returns `(batch, seq, heads * width)` of
/// `q`'s type. Differentiable in all three. A query that sees no key gives 0.
///
/// # Errors
/// When shapes do not fit each other, or a tensor is not F32, F16 or BF16 on the CPU.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, mask: &AttentionMask) -> Result<Tensor> {
    cpu::requested_level().map_err(Error::from)?;
    let (batch, _, _, _) = q.dims4()?;
    let (_, _, keys, _) = k.dims4()?;
    let key_bias = match mask {
        AttentionMask::Keys(mask) => {
            if mask.dims() != [batch, keys] {
                bail!("{NAME}: a mask of shape {:?} for {batch} sequences of {keys} keys", mask.shape());
            }
            let seen = mask.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            seen.into_iter().map(|seen| if seen == 0.0 { f32::NEG_INFINITY } else { 0.0 }).collect()
        }
        AttentionMask::Causal | AttentionMask::Full => vec![],
    };
    let causal = matches!(mask, AttentionMask::Causal);
    q.apply_op3(k, v, RbeAttention { scale: scale as f32, causal, key_bias })
}

struct RbeAttention {
    scale: f32,
    causal: bool,
    key_bias: Vec<f32>,
}

const NAME: &str = "rbe-attention";

/// A tensor's elements with each head's rows one after another: the storage itself where it lies so.
struct Rows<'a> {
    values: Cow<'a, [f32]>,
    batch_stride: usize,
    head_stride: usize,
}

impl<'a> Rows<'a> {
    fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (batch, heads, rows, width) = layout.shape().dims4()?;
        let own = |values| Self {
            values: Cow::Owned(values),
            batch_stride: heads * rows * width,
            head_stride: rows * width,
        };
        let &[batch_stride, head_stride, row_stride, 1] = layout.stride() else {
            return Ok(own(to_f32(storage, layout, NAME)?.into_owned()));
        };
        if row_stride != width {
            return Ok(own(to_f32(storage, layout, NAME)?.into_owned()));
        }
        // Each head's rows lie together, as a cache keeps them.
        let start = layout.start_offset();
        let heads_at = (0..batch * heads).map(|n| start + n / heads * batch_stride + n % heads * head_stride);
        let heads_at = heads_at.map(|at| at..at + rows * width);
        match storage {
            CpuStorage::F32(values) => {
                Ok(Self { values: Cow::Borrowed(&values[start..]), batch_stride, head_stride })
            }
            CpuStorage::F16(values) => {
                Ok(own(heads_at.flat_map(|range| values[range].iter().map(|value| value.to_f32())).collect()))
            }
            CpuStorage::BF16(values) => {
                Ok(own(heads_at.flat_map(|range| values[range].iter().map(|value| value.to_f32())).collect()))
            }
            _ => Ok(own(to_f32(storage, layout, NAME)?.into_owned())),
        }
    }

    fn heads(&self) -> Heads<'_> {
        Heads { values: &self.values, batch_stride: self.batch_stride, head_stride: self.head_stride }
    }
}

impl RbeAttention {
    fn shape(&self, q: &Layout, k: &Layout, v: &Layout) -> Result<cpu::Attention<'_>> {
        let ((batch, heads, queries, width), (_, kv_heads, keys, _)) =
            (q.shape().dims4()?, k.shape().dims4()?);
        let fits = k.dims() == [batch, kv_heads, keys, width]
            && v.dims() == k.dims()
            && kv_heads > 0
            && heads.is_multiple_of(kv_heads)
            && (!self.causal || keys >= queries);
        if !fits {
            let (q, k, v) = (q.shape(), k.shape(), v.shape());
            bail!("{NAME}: queries of shape {q:?} with keys of {k:?} and values of {v:?}");
        }
        let (scale, causal, key_bias) = (self.scale, self.causal, &self.key_bias);
        Ok(cpu::Attention { batch, heads, kv_heads, queries, keys, width, scale, causal, key_bias })
    }
}

impl CustomOp3 for RbeAttention {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = self.shape(lq, lk, lv)?;
        let dtype = dtype_of(q);
        let (q, k, v) = (Rows::new(q, lq)?, Rows::new(k, lk)?, Rows::new(v, lv)?);
        let mut out = cpu::zeros(shape.batch * shape.queries * shape.heads * shape.width, &CandlePool);
        cpu::attention(&shape, [q.heads(), k.heads(), v.heads()], &mut out, &CandlePool);
        let dims = (shape.batch, shape.queries, shape.heads * shape.width);
        Ok((from_f32(out, dtype, NAME)?, Shape::from(dims)))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (out, g) = (values_of(out, NAME)?, values_of(g, NAME)?);
        let gradients = {
            let ((sq, lq), (sk, lk), (sv, lv)) =
                (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
            let (Storage::Cpu(sq), Storage::Cpu(sk), Storage::Cpu(sv)) = (&*sq, &*sk, &*sv) else {
                bail!("{NAME} takes tensors on the CPU");
            };
            let shape = self.shape(lq, lk, lv)?;
            let (q, k, v) = (Rows::new(sq, lq)?, Rows::new(sk, lk)?, Rows::new(sv, lv)?);
            cpu::attention_gradients(&shape, [q.heads(), k.heads(), v.heads()], &out, &g, &CandlePool)
        };
        let [dq, dk, dv] = gradients;
        let tensor = |values: Vec<f32>, like: &Tensor| {
            Tensor::from_vec(values, like.shape(), like.device())?.to_dtype(like.dtype()).map(Some)
        };
        Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
    }
}
