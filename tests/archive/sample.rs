//! Small models in a temporary directory.

use candle_core::{DType, Device, Tensor};
use candle_rbe::archive::{self, CompressOptions, CompressReport, Selection};
use candle_rbe::{Encoder, EncoderConfig, Rate, Result};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub(crate) type Tensors = Vec<(String, Tensor)>;

/// A matrix of reproducible, roughly normal numbers with a standard deviation of 0.02.
pub(crate) fn matrix(rows: usize, cols: usize, dtype: DType) -> Tensor {
    let mut state = (rows * 7919 + cols) as u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let values: Vec<f32> = (0..rows * cols).map(|_| 0.04 * (uniform() + uniform() + uniform())).collect();
    Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

pub(crate) fn vector(length: usize, dtype: DType) -> Tensor {
    matrix(1, length, dtype).squeeze(0).unwrap()
}

/// Matrices to compress, and one of everything that stays as it is.
pub(crate) fn tensors(dtype: DType) -> Tensors {
    let named = |name: &str, tensor| (name.to_owned(), tensor);
    vec![
        named("embed.weight", matrix(96, 64, dtype)),
        named("layers.0.up_proj.weight", matrix(80, 64, dtype)),
        named("layers.0.down_proj.weight", matrix(64, 80, dtype)),
        named("layers.0.norm.weight", vector(64, dtype)),
        named("layers.0.up_proj.bias", vector(80, dtype)),
        named("types.weight", matrix(2, 64, dtype)),
        named("steps", Tensor::new(&[3i64, 5], &Device::Cpu).unwrap()),
        named("scale", Tensor::new(0.5f64, &Device::Cpu).unwrap()),
    ]
}

pub(crate) const MATRICES: [&str; 3] =
    ["embed.weight", "layers.0.down_proj.weight", "layers.0.up_proj.weight"];

pub(crate) fn write(path: &Path, tensors: &Tensors) {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let tensors = tensors.iter().map(|(name, tensor)| (name, tensor));
    safetensors::serialize_to_file(tensors, Some(metadata), path).unwrap();
}

/// A temporary directory with a model directory `dense` in it.
pub(crate) struct Room {
    room: TempDir,
}

impl Room {
    pub(crate) fn new(tensors: &Tensors) -> Self {
        let room = Self { room: tempfile::tempdir().unwrap() };
        std::fs::create_dir(room.path("dense")).unwrap();
        write(&room.path("dense/model.safetensors"), tensors);
        std::fs::write(room.path("dense/config.json"), r#"{"model_type": "llama"}"#).unwrap();
        std::fs::write(room.path("dense/notes.txt"), "not part of the model").unwrap();
        room
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        names(self.room.path())
    }

    /// Compresses `input` into `output` at four and a half bits.
    pub(crate) fn compress(&self, input: &str, output: &str) -> Result<CompressReport> {
        let options = CompressOptions::default();
        archive::compress(self.path(input), self.path(output), &encoder(), &options, &mut |_| go())
    }

    /// A model with `rbe/model.safetensors` made from `dense`.
    pub(crate) fn compressed(tensors: &Tensors) -> Self {
        let room = Self::new(tensors);
        room.compress("dense", "rbe").unwrap();
        room
    }
}

/// Every matrix at the same bits.
pub(crate) fn encoder() -> Encoder {
    let config = EncoderConfig { rate: Rate::BitsPerWeight(4.5), mix: false, ..EncoderConfig::default() };
    Encoder::new(config).unwrap()
}

pub(crate) fn selecting(include: &str) -> CompressOptions {
    CompressOptions { selection: Selection::new(Some(include), None).unwrap(), ..CompressOptions::default() }
}

pub(crate) fn go() -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// `|a - b| / |a|`
pub(crate) fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    let values =
        |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (a, b) = (values(a), values(b));
    assert_eq!(a.len(), b.len());
    let squares = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    (squares / a.iter().map(|a| a * a).sum::<f64>()).sqrt()
}
