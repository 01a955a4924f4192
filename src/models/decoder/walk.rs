//! A decoder that is walked through layer by layer, many windows of text at once: of the weights only those of one layer are
//! in memory, and each layer is met as it is compressed.

use super::layer::{AnyNorm, Layer};
use super::names::dotted;
use super::{Config, FeedForwardConfig, Names, body, embed, load_layer, pass};
use crate::nn::{Embedding, RbeLinear, Recorder, Rope, embedding};
use crate::{Error, RbeTensor, Result};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::{Module, VarBuilder};
use rbe_core::encode::LayerStatistics;
use std::collections::BTreeMap;
use std::ops::Range;

/// Tokens whose products are summed up at once.
const BATCH: usize = 1024;

/// A walk through a dense model on two paths: one where every layer is as the file has it, and one where all that
/// [`put`](Self::put) replaced is compressed. What a layer sees on the second, and how far that is from the first, is what
/// [`LayerStatistics`] say; a layer that is encoded by them makes up for the errors of those before it.
///
/// In memory are the dense weights of one layer and, for every token, four vectors of the residual stream's width (or, at the
/// feed-forward's last layer, two and two of its inner width) in F32; the products of the inputs of one step at a time.
pub struct Walk {
    config: Config,
    /// The weights of the body, until the last of them are read: a map of a file counts as memory.
    inside: Option<VarBuilder<'static>>,
    body: &'static str,
    ropes: Vec<(Rope, usize)>,
    /// Token ids `(1, length)`.
    windows: Vec<Tensor>,
    paths: [Path; 2],
    place: Place,
    /// Tables that were put before the first step.
    tables: BTreeMap<String, RbeTensor>,
}

/// What a step shows: layers that see the same input, by the names of their weights.
pub type Seen = Vec<(String, LayerStatistics)>;

/// Where a walk is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Start,
    Layer { index: usize, step: usize },
    Head,
    End,
}

/// One of the two ways through the model.
#[derive(Default)]
struct Path {
    layer: Option<Layer>,
    /// The residual stream of each window.
    stream: Vec<Tensor>,
    /// What the next layers see.
    inputs: Vec<Tensor>,
}

/// The two of them.
const DENSE: usize = 0;
const COMPRESSED: usize = 1;

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Walk({} windows, {:?})", self.windows.len(), self.place)
    }
}

impl Walk {
    /// Through the model of this configuration, whose dense weights are in `vb`, with windows of token ids `(1, length)`. Nothing is
    /// read yet.
    ///
    /// # Errors
    /// The configuration contradicts itself; there is no window; a window is longer than the model's context, or has a token
    /// outside its vocabulary.
    pub fn new(config: Config, vb: VarBuilder<'static>, windows: Vec<Tensor>) -> Result<Self> {
        config.check()?;
        if windows.is_empty() {
            return Err(Error::config("calibration without samples; the text may be too short"));
        }
        for window in &windows {
            let (_, length) = pass::check_ids(window)?;
            let context = config.max_position_embeddings;
            if length > context {
                return Err(Error::Context { context, past: 0, new: length });
            }
            let largest = window.to_dtype(DType::U32)?.flatten_all()?.max(0)?.to_scalar::<u32>()?;
            if largest as usize >= config.vocab_size {
                return Err(Error::config(format!(
                    "token {largest} is not in the vocabulary of {}; the tokenizer is not this model's",
                    config.vocab_size
                )));
            }
        }
        let (body, inside) = body(&config.names, &vb);
        let config = config.stored_in(&inside);
        let (ropes, paths) = (config.ropes(), Default::default());
        let (place, tables) = (Place::Start, BTreeMap::new());
        Ok(Self { config, inside: Some(inside), body, ropes, windows, paths, place, tables })
    }

    /// Tokens of all windows.
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(Tensor::elem_count).sum()
    }

    /// The tokens of each window.
    pub(crate) fn tokens_of_windows(&self) -> Result<Vec<Vec<u32>>> {
        let tokens = |ids: &Tensor| Ok(ids.to_dtype(DType::U32)?.flatten_all()?.to_vec1()?);
        self.windows.iter().map(tokens).collect()
    }

    /// All that decides what is seen but weights and tokens.
    pub(crate) fn settings(&self) -> String {
        let dtype = self.inside.as_ref().map(|inside| inside.dtype());
        format!("{:?} {dtype:?} batches of {BATCH}", self.config)
    }

    /// The weights of all layers that the walk comes to: linear layers, and the head or the table that is the head too.
    pub fn names(&self) -> Vec<String> {
        let layers = (0..self.config.layers.len()).flat_map(|index| self.names_in(index));
        layers.chain([self.head_name()]).collect()
    }

    /// Those of a layer, in the order of its linears.
    fn names_in(&self, index: usize) -> Vec<String> {
        self.config.linears_of(index, self.body)
    }

    fn head_name(&self) -> String {
        let Names { tokens, head, .. } = self.config.names;
        match self.config.tie_word_embeddings {
            true => format!("{}{tokens}.weight", dotted(self.body)),
            false => format!("{head}.weight"),
        }
    }

    /// Has a weight compressed from here on: of a layer that the last step showed, or, before the first, a table of tokens or
    /// positions. `tensor` is `(out, in)`. One that the walk does not use is passed over.
    ///
    /// # Errors
    /// The tensor has another shape than the weight.
    pub fn put(&mut self, name: &str, tensor: &RbeTensor) -> Result<()> {
        if self.place == Place::Start {
            let Names { tokens, positions, .. } = self.config.names;
            let is = |table: &str| name == format!("{}{table}.weight", dotted(self.body));
            if is(tokens) || positions.is_some_and(is) {
                self.tables.insert(name.to_owned(), tensor.clone());
            }
            return Ok(());
        }
        let Place::Layer { index, .. } = self.place else { return Ok(()) };
        let Some(at) = self.names_in(index).iter().position(|own| own == name) else { return Ok(()) };
        let linears = self.paths[COMPRESSED].layer.as_mut().map(Layer::linears_mut).unwrap_or_default();
        let Some(linear) = linears.into_iter().nth(at) else { return Ok(()) };
        if linear.weight().dims() != tensor.shape().dims() {
            let reason = format!("{:?} in place of {:?}", tensor.shape().dims(), linear.weight().dims());
            return Err(Error::shape(reason).in_tensor(name));
        }
        *linear = RbeLinear::new(tensor.clone(), linear.bias().cloned()).into();
        Ok(())
    }

    /// Goes on to the next step that shows a layer whose weight is `wanted`, and says what its layers see; `None` at the end. An expert
    /// that no token came to is left out.
    ///
    /// # Errors
    /// A tensor is missing or has another shape than the configuration says; an input is not finite; Candle's.
    pub fn step(&mut self, wanted: impl Fn(&str) -> bool) -> Result<Option<Seen>> {
        while let Some(names) = self.go_on()? {
            if names.iter().any(|name| wanted(name)) {
                return self.seen().map(Some);
            }
        }
        Ok(None)
    }

    /// Goes on to the next step, whatever it shows: the names of its layers' weights, `None` at the end. What they see,
    /// [`seen`](Self::seen) says.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn go_on(&mut self) -> Result<Option<Vec<String>>> {
        self.place = self.next_place();
        match self.place {
            Place::Layer { index, step } => {
                self.enter(index, step)?;
                let range = self.config.layers[index].steps()[step].clone();
                Ok(Some(self.names_in(index)[range].to_vec()))
            }
            Place::Head => {
                self.finish_layer()?;
                Ok(Some(vec![self.head_name()]))
            }
            Place::Start | Place::End => {
                (self.paths, self.inside) = (Default::default(), None);
                Ok(None)
            }
        }
    }

    /// What the layers of the step that the walk is at see; of the head it says that once, since after it the model is not needed.
    /// An expert that no token came to is left out.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn seen(&mut self) -> Result<Seen> {
        match self.place {
            Place::Layer { index, step } => {
                let range = self.config.layers[index].steps()[step].clone();
                let names = &self.names_in(index)[range.clone()];
                self.seen_in(index, names, range)
            }
            Place::Head => self.seen_by_head(),
            Place::Start | Place::End => Ok(Vec::new()),
        }
    }

    fn seen_by_head(&mut self) -> Result<Seen> {
        let Some(inside) = self.inside.take() else { return Ok(Vec::new()) };
        let Config { norm, hidden_size, vocab_size, tie_word_embeddings, ref names, .. } = self.config;
        let norm = AnyNorm::new(norm, hidden_size, inside.pp(names.norm))?;
        self.each(|path, _, window| {
            path.inputs[window] = norm.forward(&path.stream[window])?;
            Ok(())
        })?;
        drop(inside);
        let mut seen = self.products(vocab_size)?;
        if tie_word_embeddings {
            // What it makes up for as the head it would do to the vectors of tokens too.
            seen = seen.without_drift();
        }
        self.paths = Default::default();
        Ok(vec![(self.head_name(), seen)])
    }

    fn weights(&self) -> Result<&VarBuilder<'static>> {
        self.inside.as_ref().ok_or_else(|| Error::config("the walk is over"))
    }

    fn next_place(&self) -> Place {
        let layers = self.config.layers.len();
        match self.place {
            Place::Start if layers > 0 => Place::Layer { index: 0, step: 0 },
            Place::Layer { index, step } if step + 1 < self.config.layers[index].steps().len() => {
                Place::Layer { index, step: step + 1 }
            }
            Place::Layer { index, .. } if index + 1 < layers => Place::Layer { index: index + 1, step: 0 },
            Place::Start | Place::Layer { .. } => Place::Head,
            Place::Head | Place::End => Place::End,
        }
    }

    /// Calls `f` with each path, its layer and each window.
    fn each(&mut self, f: impl Fn(&mut Path, &Tensor, usize) -> Result<()>) -> Result<()> {
        for path in &mut self.paths {
            for (window, ids) in self.windows.iter().enumerate() {
                f(path, ids, window)?;
            }
        }
        Ok(())
    }

    /// Finds what the layers of a step see.
    fn enter(&mut self, index: usize, step: usize) -> Result<()> {
        if step == 0 {
            if index == 0 {
                self.embed()?;
            }
            self.finish_layer()?;
            let layer = load_layer(&self.config, index, &self.ropes, self.weights()?)?;
            self.paths[COMPRESSED].layer = Some(layer.clone());
            self.paths[DENSE].layer = Some(layer);
        }
        let dtype = self.paths[DENSE].stream.first().map_or(DType::F32, Tensor::dtype);
        let ropes = self.ropes.clone();
        self.each(|path, ids, window| {
            let Path { layer: Some(layer), stream, inputs } = path else { return Ok(()) };
            let (h, x) = (&mut stream[window], &mut inputs[window]);
            *x = match step {
                0 => layer.attention_input(h)?,
                1 => {
                    let mut pass = pass::begin(ids, None, 0, usize::MAX)?;
                    for (rope, head_dim) in &ropes {
                        pass = pass.rotated(rope, *head_dim, dtype, ids.device())?;
                    }
                    layer.heads(x, index, &mut pass)?
                }
                2 => {
                    *h = layer.after_attention(h, x)?;
                    layer.feed_forward_input(h)?
                }
                _ => match layer.inner(x)? {
                    Some(inner) => inner,
                    None => x.clone(),
                },
            };
            Ok(())
        })
    }

    /// The beginning of both streams.
    fn embed(&mut self) -> Result<()> {
        let Names { tokens, positions, .. } = self.config.names;
        let hidden = self.config.hidden_size;
        let table = |rows: usize, name: &str| -> Result<[Embedding; 2]> {
            let dense = embedding(rows, hidden, self.weights()?.pp(name))?;
            let compressed = self.tables.get(&format!("{}{name}.weight", dotted(self.body)));
            let compressed = compressed.map(|table| Embedding::new(table.clone(), hidden));
            Ok([dense.clone(), compressed.unwrap_or(dense)])
        };
        let tokens = table(self.config.vocab_size, tokens)?;
        let positions = positions.map(|name| table(self.config.max_position_embeddings, name)).transpose()?;
        for (at, path) in self.paths.iter_mut().enumerate() {
            for ids in &self.windows {
                let pass = pass::begin(ids, None, 0, usize::MAX)?;
                let positions = positions.as_ref().map(|tables| &tables[at]);
                let h = embed(&self.config, &tokens[at], positions, ids, &pass)?;
                path.inputs.push(h.clone());
                path.stream.push(h);
            }
        }
        self.tables.clear();
        Ok(())
    }

    /// Leaves the layer that the walk is in, if any.
    fn finish_layer(&mut self) -> Result<()> {
        self.each(|path, _, window| {
            if let Some(layer) = &path.layer {
                path.stream[window] = layer.after_feed_forward(&path.stream[window], &path.inputs[window])?;
            }
            Ok(())
        })?;
        self.paths.iter_mut().for_each(|path| path.layer = None);
        Ok(())
    }

    /// What the layers of a step see on the compressed path.
    fn seen_in(&mut self, index: usize, names: &[String], range: Range<usize>) -> Result<Seen> {
        let Some(layer) = &mut self.paths[COMPRESSED].layer else { return Ok(Vec::new()) };
        let linears = layer.linears_mut().into_iter().skip(range.start).take(range.len());
        let outputs: Vec<usize> = linears.map(|linear| linear.weight().dims()[0]).collect();
        let is_experts = matches!(self.config.layers[index].feed_forward, FeedForwardConfig::Experts(_));
        if is_experts && range.end == self.names_in(index).len() {
            return self.seen_by_experts(names, range);
        }
        let Some(first) = outputs.first() else { return Ok(Vec::new()) };
        let statistics = self.products(*first).map_err(|error| error.in_tensor(&names[0]))?;
        let each = names.iter().zip(outputs);
        Ok(each.map(|(name, outputs)| (name.clone(), statistics.of_outputs(outputs))).collect())
    }

    /// Each expert sees the tokens that its router sends it: their own products, without what the dense path sends elsewhere.
    fn seen_by_experts(&self, names: &[String], range: Range<usize>) -> Result<Seen> {
        let Path { layer: Some(layer), inputs, .. } = &self.paths[COMPRESSED] else { return Ok(Vec::new()) };
        let recorder = Recorder::of_products();
        let mut watched = layer.clone();
        let linears = watched.linears_mut().into_iter().skip(range.start);
        for (name, linear) in names.iter().zip(linears) {
            recorder.watch(name, linear);
        }
        for x in inputs {
            watched.feed_forward_output(x)?;
        }
        let mut statistics = recorder.into_statistics();
        Ok(names.iter().filter_map(|name| statistics.remove_entry(name)).collect())
    }

    /// Products of the inputs of a layer with so many outputs.
    fn products(&self, outputs: usize) -> Result<LayerStatistics> {
        let [dense, compressed] = &self.paths;
        let width = |inputs: &[Tensor]| inputs.first().map_or(Ok(0), |x| x.dim(D::Minus1));
        let mut statistics = LayerStatistics::new(outputs, width(&compressed.inputs)?);
        let longest = self.windows.iter().map(Tensor::elem_count).max().unwrap_or(1);
        let together = (BATCH / longest).max(1);
        let rows = |inputs: &[Tensor]| -> Result<Tensor> {
            let rows = inputs.iter().map(|x| x.reshape(((), x.dim(D::Minus1)?))?.to_dtype(DType::F32));
            Ok(Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?.to_device(&Device::Cpu)?)
        };
        for (own, dense) in compressed.inputs.chunks(together).zip(dense.inputs.chunks(together)) {
            let (own, dense) = (rows(own)?, rows(dense)?);
            let products =
                |x: &Tensor| -> Result<Vec<f32>> { Ok(x.t()?.matmul(&own)?.flatten_all()?.to_vec1()?) };
            let (drift, count) = (products(&(dense - &own)?)?, own.dim(0)? as u64);
            statistics.add_drifted(&products(&own)?, &drift, count)?;
        }
        Ok(statistics)
    }
}
