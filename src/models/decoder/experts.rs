//! A mixture of experts: each token goes through the few feed-forward layers that a router finds likeliest.

use super::config::{ExpertsConfig, MlpInputs};
use super::projections::mlp;
use crate::Error;
use crate::nn::{Linear, RbeMlp, Stack, linear_no_bias};
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
        let &ExpertsConfig { router, count, chosen, normalized, ref expert, stacked: end } = config;
        let inside = vb.pp(expert.name);
        Ok(Self {
            router: linear_no_bias(hidden_size, count, vb.pp(router))?,
            experts: match end {
                Some(end) => stacked(config, hidden_size, end, &inside)?,
                None => {
                    let apart = (0..count).map(|index| mlp(expert, hidden_size, &inside.pp(index)));
                    apart.collect::<Result<_>>()?
                }
            },
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

/// What Hugging Face calls the tensors of all experts, and what they may end with.
const JOINED: [&str; 2] = ["gate_up_proj", "down_proj"];
const ENDS: [&str; 2] = ["", ".weight"];
/// Where transformers 5 has experts and their router, whatever the family's files call them.
const FIFTH: [&str; 2] = ["mlp.experts", "mlp.gate"];

impl ExpertsConfig {
    /// The experts as a file has them in a layer: apart, or in stacks.
    pub(super) fn stored_in(&self, vb: &VarBuilder) -> Self {
        let own = self.expert.linears();
        let places = [[self.expert.name, self.router], FIFTH];
        for ([name, router], end) in places.into_iter().flat_map(|place| ENDS.map(|end| (place, end))) {
            let has = |linear: &str| Stack::is_in(&vb.pp(name), &format!("{linear}{end}"));
            let mut found = Self { router, stacked: Some(end), ..self.clone() };
            found.expert.name = name;
            if has(JOINED[0]) {
                found.expert.inputs = MlpInputs::Joined(JOINED[0]);
                found.expert.output = JOINED[1];
                return found;
            }
            if has(own[0]) {
                return found;
            }
        }
        self.clone()
    }
}

/// All experts of stacks whose names end so.
fn stacked(config: &ExpertsConfig, hidden: usize, end: &str, vb: &VarBuilder) -> Result<Vec<RbeMlp>> {
    let &ExpertsConfig { count, ref expert, .. } = config;
    let (inner, activation) = (expert.intermediate_size, expert.activation);
    if expert.bias {
        return Err(
            Error::unsupported(format!("biases of experts in stacks, under {:?}", vb.prefix())).into()
        );
    }
    let both = if matches!(expert.inputs, MlpInputs::Joined(_)) { 2 * inner } else { inner };
    let names = expert.linears();
    let stacks =
        names.iter().map(|name| Stack::read(vb, &format!("{name}{end}"))).collect::<Result<Vec<_>>>()?;
    // The last one is the output's.
    let sides = |at: usize| if at + 1 < names.len() { (both, hidden) } else { (hidden, inner) };
    let lie = |in_out: bool| {
        let mut all = stacks.iter().enumerate();
        all.find(|(at, stack)| {
            let (out, input) = sides(*at);
            stack.shape() != if in_out { [count, input, out] } else { [count, out, input] }
        })
    };
    let in_out = match (lie(false), lie(true)) {
        (None, _) => false,
        (_, None) => true,
        (Some((at, stack)), _) => {
            let (out, input) = sides(at);
            return Err(stack.error(format!(
                "expected [{count}, {out}, {input}], or [{count}, {input}, {out}] as all of the layer's stacks, the file holds {:?}",
                stack.shape()
            )));
        }
    };
    let linears = stacks.into_iter().map(|stack| Ok(stack.linears(in_out)?.into_iter()));
    let mut linears = linears.collect::<Result<Vec<_>>>()?;
    let missing = || Error::config("a stack with fewer matrices than experts");
    let expert = |_| {
        let mut next = linears.iter_mut().map(|layers| layers.next().ok_or_else(missing));
        let (first, second, third) = (next.next(), next.next(), next.next());
        Ok(match (expert.inputs, first, second, third) {
            (MlpInputs::Gated { .. }, Some(gate), Some(up), Some(down)) => {
                RbeMlp::gated(gate?, up?, down?, activation)
            }
            (MlpInputs::Joined(_), Some(both), Some(down), None) => {
                RbeMlp::gated_by_joined(both?, down?, activation)
            }
            (_, Some(up), Some(down), _) => RbeMlp::new(up?, down?, activation),
            _ => return Err(missing().into()),
        })
    };
    (0..count).map(expert).collect()
}
