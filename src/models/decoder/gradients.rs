//! A decoder that is gone back through layer by layer: what errors of its weights do to its predictions.

use super::{Names, StreamedModel, embed, load_layer, pass};
use crate::models::CausalLm;
use crate::nn::{AttentionPass, Recorder};
use crate::{Error, Result};
use candle_core::{D, DType, Tensor, Var};
use candle_nn::Module;
use rbe_core::encode::LayerStatistics;
use std::collections::BTreeMap;

/// Positions whose logits are in memory at once.
const POSITIONS: usize = 64;

/// What is learnt of each layer at a time: statistics by the names of weights.
pub(super) type Guided = BTreeMap<String, LayerStatistics>;

impl StreamedModel {
    /// What the model's predictions on windows of token ids `(1, length)` say of its weights, layer by layer from the head to the
    /// tables: the statistics of a [`Calibration`](crate::nn::Calibration) of whole models, with the tables' beside them. `each` is
    /// told the steps done and all of them, and what one shows.
    ///
    /// In memory are the residual stream of all windows in front of every layer, in F32, and one layer with what its gradients take for
    /// one window.
    ///
    /// # Errors
    /// As [`CausalLm`] says of a forward; an input or a gradient is not finite; what `each` returns.
    pub(crate) fn guided(
        &self,
        windows: &[Tensor],
        mut each: impl FnMut(usize, usize, Guided) -> Result<()>,
    ) -> Result<()> {
        let layers = self.frame.config.layers.len();
        // One way forward, one back, the head and the tables.
        let steps = 2 * layers + 2;
        let mut streams = Vec::with_capacity(layers);
        let mut stream = windows.iter().map(|ids| Ok(self.begin(ids)?.0)).collect::<Result<Vec<Tensor>>>()?;
        for index in 0..layers {
            let layer = load_layer(&self.frame.config, index, &self.frame.ropes, &self.inside)?;
            let next = windows
                .iter()
                .zip(&stream)
                .map(|(ids, h)| Ok(layer.forward(h, index, &mut self.begin(ids)?.1)?.detach()));
            let next = next.collect::<Result<Vec<_>>>()?;
            streams.push(std::mem::replace(&mut stream, next));
            each(index + 1, steps, Guided::new())?;
        }
        let mut recorder = Recorder::default();
        let mut back =
            stream.iter().map(|h| self.back_from_logits(h, &mut recorder)).collect::<Result<Vec<_>>>()?;
        drop(stream);
        each(layers + 1, steps, recorder.into_statistics())?;
        for (index, stream) in streams.into_iter().enumerate().rev() {
            let mut recorder = Recorder::default();
            let mut layer = load_layer(&self.frame.config, index, &self.frame.ropes, &self.inside)?;
            let names = self.frame.config.linears_of(index, self.frame.body);
            names.iter().zip(layer.linears_mut()).for_each(|(name, linear)| recorder.watch(name, linear));
            for ((ids, h), gradient) in windows.iter().zip(&stream).zip(&mut back) {
                let h = Var::from_tensor(h)?;
                let after = layer.forward(h.as_tensor(), index, &mut self.begin(ids)?.1)?;
                *gradient = gradient_at(&h, &(after * &*gradient)?.sum_all()?, &mut recorder)?;
            }
            each(2 * layers + 1 - index, steps, recorder.into_statistics())?;
        }
        each(steps, steps, self.of_tables(&back)?)
    }

    /// The beginning of the residual stream, and a pass for it.
    fn begin(&self, ids: &Tensor) -> Result<(Tensor, AttentionPass<'static>)> {
        let frame = &self.frame;
        let mut pass = pass::begin(ids, None, 0, self.context_length())?;
        let h = embed(&frame.config, &frame.tokens, frame.positions.as_ref(), ids, &pass)?;
        for (rope, head_dim) in &frame.ropes {
            pass = pass.rotated(rope, *head_dim, h.dtype(), &frame.device)?;
        }
        Ok((h.detach(), pass))
    }

    /// The gradient at the residual stream `(1, length, hidden)` behind the last layer.
    fn back_from_logits(&self, stream: &Tensor, recorder: &mut Recorder) -> Result<Tensor> {
        let length = stream.dim(1)?;
        let name = self.head_name();
        let parts = (0..length).step_by(POSITIONS).map(|start| {
            let h = Var::from_tensor(&stream.narrow(1, start, POSITIONS.min(length - start))?)?;
            let hidden = self.frame.norm.forward(h.as_tensor())?;
            // Noted where they are made: what is done to them later is part of what goes back.
            let logits = recorder.layer(&name, &hidden, self.frame.head.forward(&hidden)?)?;
            let sum = recorder.likelihood(&self.frame.shaped(logits)?)?;
            gradient_at(&h, &sum, recorder)
        });
        Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)?)
    }

    fn head_name(&self) -> String {
        let Names { head, .. } = self.frame.config.names;
        self.frame.tied_table().unwrap_or_else(|| format!("{head}.weight"))
    }

    /// Of tables of tokens and positions, one row of which every token takes. They are encoded without a look at what is taken, so
    /// all rows count the same, and of the gradients at their vectors the mean square. (A table that is the head too counts as that.)
    fn of_tables(&self, gradients: &[Tensor]) -> Result<Guided> {
        let frame = &self.frame;
        let (mut sum, mut count) = (0.0, 0);
        for gradient in gradients {
            let gradient = gradient.to_dtype(DType::F32)?;
            sum += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
            count += gradient.elem_count() / gradient.dim(D::Minus1)?;
        }
        let hidden = frame.config.hidden_size;
        let statistics = |rows: usize, factor: f64| -> Result<LayerStatistics> {
            let mut products = vec![0f32; hidden * hidden];
            let square = factor * factor * sum / hidden as f64;
            (0..hidden).for_each(|at| products[at * (hidden + 1)] = square as f32);
            let mut statistics = LayerStatistics::new(rows, hidden);
            let each = vec![count as f32 / rows as f32; rows];
            statistics.add(&products, count as f64, &each, count as u64)?;
            Ok(statistics)
        };
        let mut tables = Guided::new();
        let Names { tokens, positions, .. } = frame.config.names;
        if frame.tied_table().is_none() {
            let factor = frame.config.embedding_multiplier.unwrap_or(1.0);
            tables.insert(frame.table_name(tokens), statistics(frame.config.vocab_size, factor)?);
        }
        if let Some(positions) = positions {
            let rows = frame.config.max_position_embeddings;
            tables.insert(frame.table_name(positions), statistics(rows, 1.0)?);
        }
        Ok(tables)
    }
}

/// The gradient of a number at a part of the residual stream, which leads to it through all that the recorder has noted.
fn gradient_at(stream: &Var, sum: &Tensor, recorder: &mut Recorder) -> Result<Tensor> {
    let gradients = recorder.go_back(sum)?;
    let gradient =
        gradients.get(stream).ok_or_else(|| Error::config("a layer does not lead to the logits"))?;
    Ok(gradient.detach())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{Config, Model};
    use crate::nn::Calibration;
    use candle_core::Device;
    use candle_nn::VarBuilder;
    use std::path::Path;

    #[test]
    fn layer_by_layer_the_same_is_learnt_as_of_the_whole_model() -> Result<()> {
        for name in ["llama-books", "gpt2-books"] {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name);
            let tensors = candle_core::safetensors::load(directory.join("model.safetensors"), &Device::Cpu)?;
            let weights = || VarBuilder::from_tensors(tensors.clone(), DType::F32, &Device::Cpu);
            let model = Model::load(&directory, weights())?;
            let streamed = StreamedModel::new(Config::read(&directory)?, weights())?;
            let window = |n: u32| {
                Tensor::from_iter((0..POSITIONS as u32).map(|at| (at * at * 37 + n) % 4096), &Device::Cpu)
            };
            let windows: Vec<Tensor> =
                [5, 900].into_iter().map(|n| Ok(window(n)?.unsqueeze(0)?)).collect::<Result<_>>()?;
            let (mut found, mut told) = (Guided::new(), Vec::new());
            streamed.guided(&windows, |done, of, statistics| {
                told.push((done, of));
                found.extend(statistics);
                Ok(())
            })?;
            assert!(told.iter().enumerate().all(|(n, step)| *step == (n + 1, told.len())), "{told:?}");
            let mut calibration = Calibration::new(&model, windows);
            let mut tables = 0;
            let layers: Vec<&str> = found.keys().map(String::as_str).collect();
            for (at, (layer, own)) in found.iter().enumerate() {
                let Some(whole) = calibration.statistics(&layers[at..])? else {
                    // A table that is not the head: all of its rows count the same.
                    tables += 1;
                    assert!(
                        own.divergence(&vec![0.01; own.shape().0 * own.shape().1]) > 0.0,
                        "{name} {layer}"
                    );
                    continue;
                };
                assert_eq!((own.shape(), own.count()), (whole.shape(), whole.count()), "{name} {layer}");
                // An error that grows with rows and columns.
                let (rows, cols) = own.shape();
                let error: Vec<f32> = (0..rows * cols)
                    .map(|n| (1.0 + (n / cols) as f32 / rows as f32) * ((n % cols) as f32 * 0.7).sin())
                    .collect();
                let (own, whole) = (own.divergence(&error), whole.divergence(&error));
                assert!((own / whole - 1.0).abs() < 1e-3, "{name} {layer}: {own} {whole}");
            }
            // The table beside a head, and positions.
            assert_eq!(
                (found.len(), tables),
                if name == "llama-books" { (44, 1) } else { (26, 1) },
                "{name}"
            );
        }
        Ok(())
    }
}
