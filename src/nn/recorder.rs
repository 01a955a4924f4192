//! What a model's layers see while it reads a text: the statistics that [`Encoder::encode_calibrated`] takes.
//!
//! ```
//! use candle_core::{D, Device, Result, Tensor};
//! use candle_nn::Module;
//! use candle_rbe::nn::{Calibrate, Calibration, Recorder};
//! use candle_rbe::{Encoder, EncoderConfig, Linear, Rate};
//!
//! struct Mlp { up: Linear, down: Linear }
//!
//! impl Calibrate for Mlp {
//!     fn record(&self, x: &Tensor, recorder: &mut Recorder) -> Result<Tensor> {
//!         let y = recorder.layer("up.weight", x, self.up.forward(x)?)?.relu()?;
//!         recorder.layer("down.weight", &y, self.down.forward(&y)?) // logits
//!     }
//! }
//!
//! # fn main() -> candle_rbe::Result<()> {
//! let device = &Device::Cpu;
//! let up = Tensor::randn(0f32, 0.1, (96, 64), device)?;
//! let down = Tensor::randn(0f32, 0.1, (64, 96), device)?;
//! let model = Mlp { up: Linear::new(up.clone(), None), down: Linear::new(down, None) };
//! let samples = vec![Tensor::randn(0f32, 1.0, (500, 64), device)?];
//! let mut calibration = Calibration::new(&model, samples);
//! let statistics = calibration.statistics(&["up.weight"])?.expect("the model has such a layer");
//! let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.2)))?;
//! let compressed = encoder.encode_calibrated(&up, statistics)?;
//! # Ok(()) }
//! ```
//!
//! [`Encoder::encode_calibrated`]: crate::Encoder::encode_calibrated

use super::inputs::Inputs;
use super::{ForwardHook, Linear};
use crate::{Error, Result};
use candle_core::{D, DType, Device, Tensor, Var};
use rbe_core::codec::signs::{Side, signs};
use rbe_core::encode::LayerStatistics;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A model that can be calibrated: it predicts something by logits and says what its layers see.
pub trait Calibrate {
    /// Runs the model on one sample and returns the logits `(.., classes)`. Every output of a layer whose weight is to
    /// be calibrated goes through [`Recorder::layer`], or [`Recorder::watch`] sees to it.
    ///
    /// # Errors
    /// As the model's forward.
    fn record(&self, sample: &Tensor, recorder: &mut Recorder) -> candle_core::Result<Tensor>;
}

/// What a [`Calibration`] gathers of each layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathered {
    /// Squares of inputs.
    Squares,
    /// Products of inputs with each other.
    Products,
    /// Products, tokens weighed by the gradient of the likelihood at the layer's outputs, and the squares of that gradient.
    Guided,
}

/// Statistics of a model's layers over samples, in bounded memory: where they do not fit at once, the samples are read
/// again.
pub struct Calibration<'m> {
    /// What is run; without, all is known.
    model: Option<&'m dyn Calibrate>,
    samples: Vec<Tensor>,
    memory: u64,
    gathered: Gathered,
    recorder: Option<Recorder>,
    progress: Box<dyn FnMut(usize, usize) + 'm>,
}

impl<'m> Calibration<'m> {
    /// Samples are what [`Calibrate::record`] takes, such as token ids `(1, 256)`.
    pub fn new(model: &'m dyn Calibrate, samples: Vec<Tensor>) -> Self {
        Self {
            model: Some(model),
            samples,
            memory: 4 << 30,
            gathered: Gathered::Guided,
            recorder: None,
            progress: Box::new(|_, _| {}),
        }
    }

    /// Of squares of inputs that are known already ([`LayerStatistics::of_squares`]), by the names of the layers' weights; nothing is
    /// run.
    pub fn known(statistics: BTreeMap<String, LayerStatistics>) -> Self {
        let recorder = Some(Recorder { layers: statistics, ..Recorder::default() });
        Self {
            model: None,
            samples: Vec::new(),
            memory: 0,
            gathered: Gathered::Squares,
            recorder,
            progress: Box::new(|_, _| {}),
        }
    }

    /// The same with another bound, in bytes, on the statistics held at once (4 GiB by default; a layer of `n` inputs
    /// takes `4 n^2`). One layer is held in any case.
    pub fn with_memory(self, memory: u64) -> Self {
        Self { memory, ..self }
    }

    /// The same with the squares of inputs alone ([`LayerStatistics::of_squares`]), of all layers in one forward of each sample:
    /// seconds for a thousand tokens, and a few numbers for each input and output in memory.
    pub fn of_squares(self) -> Self {
        Self { gathered: Gathered::Squares, ..self }
    }

    /// The same with products of inputs from forwards alone, every token and every output weighing the same: in a part of the time
    /// and of the memory, since nothing goes back and layers of one input have one set.
    pub fn of_products(self) -> Self {
        Self { gathered: Gathered::Products, ..self }
    }

    /// What is gathered.
    pub fn gathered(&self) -> Gathered {
        self.gathered
    }

    /// The same, telling the number of samples read and of all each time one is.
    pub fn with_progress(self, progress: impl FnMut(usize, usize) + 'm) -> Self {
        Self { progress: Box::new(progress), ..self }
    }

    /// The statistics of the first of `names`, or `None` where the model has no such layer. The others are what will be
    /// asked for next: they are recorded along as far as memory allows.
    ///
    /// # Errors
    /// There is no name or no sample; the model fails; a layer does not lead to the logits; an input or a gradient is not finite.
    pub fn statistics(&mut self, names: &[&str]) -> Result<Option<&LayerStatistics>> {
        let [name, ..] = names else { return Err(Error::config("statistics of no layer")) };
        let held = self.recorder.as_ref().is_some_and(|held| !held.has_refused(name));
        if !held {
            // What is held goes first: there is room for one set only.
            self.recorder = None;
            self.recorder = Some(self.read(names)?);
        }
        Ok(self.recorder.as_ref().and_then(|recorder| recorder.statistics(name)))
    }

    fn read(&mut self, names: &[&str]) -> Result<Recorder> {
        let Some(model) = self.model.filter(|_| !self.samples.is_empty()) else {
            return Err(Error::config("calibration without samples; the text may be too short"));
        };
        let wanted = names.iter().map(|name| (*name).to_owned()).collect();
        let mut recorder = Recorder::new(Some((names[0].to_owned(), wanted)), self.memory);
        lock(&recorder.ledger).inputs = match self.gathered {
            Gathered::Guided => None,
            gathered => Some(Inputs::new(gathered == Gathered::Products)),
        };
        for (n, sample) in self.samples.iter().enumerate() {
            let logits = model.record(sample, &mut recorder)?;
            recorder.learn(&logits)?;
            (self.progress)(n + 1, self.samples.len());
        }
        recorder.take_inputs();
        Ok(recorder)
    }
}

/// Gathers statistics of layers, by the names of their weights.
#[derive(Debug)]
pub struct Recorder {
    layers: BTreeMap<String, LayerStatistics>,
    ledger: Arc<Mutex<Ledger>>,
    /// Samples learnt from: the random signs of each are others.
    samples: u64,
}

/// What a recorder shares with the layers that it watches.
#[derive(Debug)]
struct Ledger {
    /// The name that must be recorded, and all that may be; without them, everything is.
    wanted: Option<(String, BTreeSet<String>)>,
    /// Whether a layer that was noted is recorded or had no room.
    admitted: BTreeMap<String, bool>,
    /// Bytes that further statistics may take.
    memory: u64,
    /// Of the forward that is going on.
    taps: Vec<Tap>,
    /// Moments of inputs, where they are all that is wanted.
    inputs: Option<Inputs>,
}

/// A layer's input, and a zero added to its output, whose gradient is the output's.
#[derive(Debug)]
struct Tap {
    name: String,
    x: Tensor,
    zero: Var,
}

impl Ledger {
    fn note(&mut self, name: &str, x: &Tensor, y: Tensor) -> candle_core::Result<Tensor> {
        let shared = self.inputs.as_ref().is_some_and(|inputs| inputs.is_shared(x));
        if !self.admits(name, x.dim(D::Minus1)?, shared) {
            return Ok(y);
        }
        if let Some(inputs) = &mut self.inputs {
            inputs.add(name, x, y.dim(D::Minus1)?)?;
            return Ok(y);
        }
        let zero = Var::zeros(y.shape(), y.dtype(), y.device())?;
        let y = (y + zero.as_tensor())?;
        self.taps.push(Tap { name: name.to_owned(), x: x.detach(), zero });
        Ok(y)
    }

    fn admits(&mut self, name: &str, inputs: usize, shared: bool) -> bool {
        if let Some(admitted) = self.admitted.get(name) {
            return *admitted;
        }
        let bytes = match &self.inputs {
            _ if shared => 0,
            Some(moments) => moments.bytes(inputs),
            None => 4 * (inputs as u64).pow(2),
        };
        let admitted = match &self.wanted {
            None => true,
            Some((_, wanted)) if !wanted.contains(name) => return false,
            Some((first, _)) => name == first || bytes <= self.memory,
        };
        if admitted {
            self.memory = self.memory.saturating_sub(bytes);
        }
        self.admitted.insert(name.to_owned(), admitted);
        admitted
    }
}

/// Notes every forward of a layer in a recorder's ledger.
#[derive(Debug)]
struct Watch {
    name: String,
    ledger: Arc<Mutex<Ledger>>,
}

impl ForwardHook for Watch {
    fn after(&self, x: &Tensor, y: Tensor) -> candle_core::Result<Tensor> {
        lock(&self.ledger).note(&self.name, x, y)
    }
}

/// A panic elsewhere leaves a list of tensors as good as it was.
fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Recorder {
    /// Records every layer.
    fn default() -> Self {
        Self::new(None, u64::MAX)
    }
}

impl Recorder {
    /// Records the products of every layer's inputs, every token and every output weighing the same: what forwards show, with
    /// nothing to [`learn`](Self::learn).
    pub fn of_products() -> Self {
        let recorder = Self::default();
        lock(&recorder.ledger).inputs = Some(Inputs::new(true));
        recorder
    }

    /// The same of the squares of inputs alone ([`LayerStatistics::of_squares`]).
    pub fn of_squares() -> Self {
        let recorder = Self::default();
        lock(&recorder.ledger).inputs = Some(Inputs::new(false));
        recorder
    }

    /// The statistics of every layer, by the names of their weights.
    pub fn into_statistics(mut self) -> BTreeMap<String, LayerStatistics> {
        self.take_inputs();
        self.layers
    }

    /// Moments of inputs become statistics of their layers.
    fn take_inputs(&mut self) {
        let inputs = lock(&self.ledger).inputs.take();
        self.layers.extend(inputs.map(Inputs::into_layers).unwrap_or_default());
    }

    fn new(wanted: Option<(String, BTreeSet<String>)>, memory: u64) -> Self {
        let ledger = Ledger { wanted, admitted: BTreeMap::new(), memory, taps: Vec::new(), inputs: None };
        let ledger = Arc::new(Mutex::new(ledger));
        Self { layers: BTreeMap::new(), ledger, samples: 0 }
    }

    /// Takes note of a layer with the weight `name`, its input `x` `(.., in)` and its output `y` `(.., out)`, and returns
    /// `y` to go on with.
    ///
    /// # Errors
    /// Candle's.
    pub fn layer(&mut self, name: &str, x: &Tensor, y: Tensor) -> candle_core::Result<Tensor> {
        lock(&self.ledger).note(name, x, y)
    }

    /// Takes note of every forward of a layer, as [`layer`](Self::layer) does.
    pub fn watch(&self, name: &str, linear: &mut Linear) {
        linear.add_forward_hook(Arc::new(Watch { name: name.to_owned(), ledger: self.ledger.clone() }));
    }

    /// Learns from one forward and its `logits` `(.., classes)`: goes back from them to every layer noted.
    ///
    /// The gradient is that of the likelihood of a random outcome, in its covariance: of `z' (sqrt(p) s - p (sqrt(p)' s))`
    /// with logits `z`, predictions `p = softmax(z)` and random signs `s`. Its second moment is `diag(p) - p p'`, as that
    /// of an outcome drawn from `p`, and it varies less.
    ///
    /// # Errors
    /// A layer does not lead to the logits, an input or a gradient is not finite; Candle's.
    pub fn learn(&mut self, logits: &Tensor) -> Result<()> {
        let taps = std::mem::take(&mut lock(&self.ledger).taps);
        if taps.is_empty() {
            // Nothing that is wanted is a layer of the model.
            return Ok(());
        }
        let logits = logits.flatten_to(D::Minus2)?;
        let p = candle_nn::ops::softmax(&logits.detach().to_dtype(DType::F32)?, D::Minus1)?;
        let signs = signs(self.samples, Side::Cols, p.elem_count());
        self.samples += 1;
        let root = (p.sqrt()? * Tensor::from_vec(signs, p.shape(), p.device())?)?;
        let along = (p.sqrt()? * &root)?.sum_keepdim(1)?;
        let outcome = (root - p.broadcast_mul(&along)?)?.to_dtype(logits.dtype())?;
        let gradients = (logits * outcome)?.sum_all()?.backward()?;
        for tap in taps {
            let gradient = gradients.get(&tap.zero).ok_or_else(|| {
                Error::config("its output does not lead to the logits").in_tensor(tap.name.clone())
            })?;
            self.add(&tap, gradient).map_err(|error| error.in_tensor(tap.name.clone()))?;
        }
        Ok(())
    }

    fn add(&mut self, tap: &Tap, gradient: &Tensor) -> Result<()> {
        let rows = |tensor: &Tensor| -> candle_core::Result<Tensor> {
            let width = tensor.dim(D::Minus1)?;
            tensor.reshape(((), width))?.to_device(&Device::Cpu)?.to_dtype(DType::F32)
        };
        let (x, squares) = (rows(&tap.x)?, rows(gradient)?.sqr()?);
        let weights = squares.sum_keepdim(1)?;
        let moments = x.t()?.matmul(&x.broadcast_mul(&weights)?)?.flatten_all()?.to_vec1()?;
        let weight = f64::from(weights.sum_all()?.to_scalar::<f32>()?);
        let shape = (squares.dim(1)?, x.dim(1)?);
        let new = || LayerStatistics::new(shape.0, shape.1);
        let layer = self.layers.entry(tap.name.clone()).or_insert_with(new);
        Ok(layer.add(&moments, weight, &squares.sum(0)?.to_vec1()?, x.dim(0)? as u64)?)
    }

    /// Whether memory had no room for the layer.
    fn has_refused(&self, name: &str) -> bool {
        lock(&self.ledger).admitted.get(name) == Some(&false)
    }

    /// The statistics of the layer with the weight `name`.
    pub fn statistics(&self, name: &str) -> Option<&LayerStatistics> {
        self.layers.get(name)
    }
}
