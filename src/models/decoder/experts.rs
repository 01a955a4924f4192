//! A mixture of experts: each token goes through the few feed-forward layers that a router finds likeliest.

use super::config::{ExpertsConfig, MlpConfig};
use super::projections::mlp;
use crate::Error;
use crate::nn::{Linear, RBE_SUFFIX, RbeMlp, linear_no_bias};
use candle_core::{D, DType, Result, Tensor};
use candle_nn::{Module, VarBuilder, ops};

#[derive(Clone, Debug)]
pub(super) struct Experts {
    router: Linear,
    experts: Vec<RbeMlp>,
    chosen: usize,
    normalized: bool,
}

impl Experts {
    pub(super) fn new(config: &ExpertsConfig, hidden_size: usize, vb: &VarBuilder) -> Result<Self> {
        let &ExpertsConfig { router, count, chosen, normalized, ref expert } = config;
        refuse_stacks(expert, vb)?;
        let experts = vb.pp(expert.name);
        Ok(Self {
            router: linear_no_bias(hidden_size, count, vb.pp(router))?,
            experts: (0..count)
                .map(|index| mlp(expert, hidden_size, &experts.pp(index)))
                .collect::<Result<_>>()?,
            chosen,
            normalized,
        })
    }

    /// The router, then the layers of each expert.
    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let experts = self.experts.iter_mut().flat_map(RbeMlp::linears_mut);
        std::iter::once(&mut self.router).chain(experts).collect()
    }

    /// The experts of each token `(tokens, experts)`, the likeliest first, and of equals the first.
    fn choose(&self, probabilities: &Tensor) -> Result<Vec<Vec<u32>>> {
        let rows = probabilities.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let likeliest = |row: Vec<f64>| {
            let mut order: Vec<u32> = (0..row.len() as u32).collect();
            order.sort_by(|&i, &j| row[j as usize].total_cmp(&row[i as usize]));
            order.truncate(self.chosen);
            order
        };
        Ok(rows.into_iter().map(likeliest).collect())
    }
}

impl Module for Experts {
    /// `(batch, seq, hidden)` to the same: the weighted sum of the chosen experts' outputs. Of the others nothing is read.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let tokens = x.flatten_to(D::Minus2)?;
        let logits = self.router.forward(&tokens)?;
        let dtype = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let probabilities = ops::softmax(&logits.to_dtype(dtype)?, D::Minus1)?;
        let chosen = self.choose(&probabilities)?;
        let index = Tensor::new(chosen.concat(), x.device())?.reshape((chosen.len(), self.chosen))?;
        let shares = probabilities.gather(&index, 1)?;
        let shares = match self.normalized {
            true => shares.broadcast_div(&shares.sum_keepdim(1)?)?,
            false => shares,
        };
        let shares = shares.flatten_all()?.to_dtype(x.dtype())?;
        // Of each expert the tokens that chose it, and where their shares stand.
        let mut work = vec![(Vec::new(), Vec::new()); self.experts.len()];
        for (token, slot) in
            (0..chosen.len()).flat_map(|token| (0..self.chosen).map(move |slot| (token, slot)))
        {
            let (tokens, slots) = &mut work[chosen[token][slot] as usize];
            tokens.push(token as u32);
            slots.push((token * self.chosen + slot) as u32);
        }
        let mut y = tokens.zeros_like()?;
        for (expert, (rows, slots)) in self.experts.iter().zip(work) {
            if rows.is_empty() {
                continue;
            }
            let count = rows.len();
            let (rows, slots) = (Tensor::new(rows, x.device())?, Tensor::new(slots, x.device())?);
            let output = expert.forward(&tokens.index_select(&rows, 0)?)?;
            let share = shares.index_select(&slots, 0)?.reshape((count, 1))?;
            y = y.index_add(&rows, &output.broadcast_mul(&share)?, 0)?;
        }
        y.reshape(x.shape())
    }
}

/// Experts in one tensor of three dimensions, which some programs write, are not read.
fn refuse_stacks(expert: &MlpConfig, vb: &VarBuilder) -> Result<()> {
    let experts = vb.pp(expert.name);
    for stack in ["gate_up_proj", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"] {
        for name in [stack.to_owned(), format!("{stack}.weight"), format!("{stack}{RBE_SUFFIX}")] {
            if experts.contains_tensor(&name) {
                return Err(Error::unsupported(format!(
                    "tensor \"{}.{name}\", which stacks all experts; save the model with the tensors of each expert apart, \
                     as {}.0 and on",
                    experts.prefix(),
                    experts.prefix()
                ))
                .into());
            }
        }
    }
    Ok(())
}
