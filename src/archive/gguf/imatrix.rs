//! llama.cpp's importance matrices: the mean squares of what layers see, under GGUF's names. Of a layer that takes `n` inputs an
//! entry has `n` numbers, of stacked experts `n` each.
//!
//! Two forms are read, and the first is written:
//!
//! | form | an entry `NAME` |
//! |---|---|
//! | GGUF, `general.type` `imatrix` | tensors `NAME.in_sum2` `(experts, n)`, sums of squares, and `NAME.counts` `(experts, 1)`, tokens, in F32 |
//! | `.dat`, as before | little-endian: the length of the name in 4 bytes, the name, calls, the number of values, and the values in F32, means times calls; the number of entries stands in front of all |

use super::alignment;
use super::architecture::Architecture;
use super::tensors::{HEAD, TABLE};
use crate::archive::beside::{config, is_conv1d, model_type, ties_head};
use crate::archive::{Archive, Entry, Stage, is_gguf};
use crate::{Error, Result, file};
use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rbe_core::encode::LayerStatistics;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
/// The longest name that is believed.
const LONGEST_NAME: usize = 1 << 12;

/// How large the inputs of a model's layers are, as llama.cpp's `llama-imatrix` says it.
///
/// ```no_run
/// use candle_rbe::archive::{Archive, Imatrix};
/// use candle_rbe::nn::Calibration;
///
/// # fn main() -> candle_rbe::Result<()> {
/// let imatrix = Imatrix::read("imatrix.gguf")?;
/// // For `compress_calibrated`.
/// let calibration = Calibration::known(imatrix.statistics(&Archive::open("llama")?)?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Imatrix {
    path: PathBuf,
    entries: BTreeMap<String, Sums>,
}

/// Of one layer, or of the experts that are stacked in a tensor.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sums {
    /// Sums of squares, of one expert after another.
    squares: Vec<f32>,
    /// Tokens; of every expert, or of all together.
    counts: Vec<f32>,
}

impl Imatrix {
    /// Reads a file of either form.
    ///
    /// # Errors
    /// It is neither, or damaged: with what it says of which entry.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let entries = if is_gguf(path) { read_gguf(path)? } else { read_dat(path)? };
        let all = |(name, sums): (&String, &Sums)| {
            let fits = !sums.counts.is_empty() && sums.squares.len().is_multiple_of(sums.counts.len());
            let usable = |value: &f32| value.is_finite() && *value >= 0.0;
            let are_numbers = sums.squares.iter().chain(&sums.counts).all(usable);
            if fits && are_numbers { Ok(()) } else { Err(about(path, name, "is damaged")) }
        };
        entries.iter().try_for_each(all)?;
        Ok(Self { path: path.to_owned(), entries })
    }

    /// The statistics of a model's layers, by the names that their weights have in its files. A weight that has no entry, or of whose
    /// input no token is counted, has none.
    ///
    /// # Errors
    /// GGUF has no names for a model of this kind; an entry is of another number of inputs than the weight; none is of the model.
    pub fn statistics(&self, model: &Archive) -> Result<BTreeMap<String, LayerStatistics>> {
        let names = Names::of(model)?;
        let mut known = BTreeMap::new();
        for entry in model.entries() {
            let Some((name, expert)) = names.tensor(&entry.name) else { continue };
            let Some(sums) = self.entries.get(&name) else { continue };
            let &[rows, cols] = &entry.shape[..] else { continue };
            let (outputs, inputs) = if names.is_transposed(entry) { (cols, rows) } else { (rows, cols) };
            let Some((squares, count)) = sums.of(expert, inputs) else {
                let reason = format!(
                    "has {} values, and the weight {:?} of {} takes {inputs}; it is of another model",
                    sums.squares.len(),
                    entry.name,
                    model.path().display()
                );
                return Err(about(&self.path, &name, reason));
            };
            if count >= 1.0 {
                let mut statistics = LayerStatistics::of_squares(outputs, inputs);
                statistics.add_squares(squares, count as u64)?;
                known.insert(entry.name.clone(), statistics);
            }
        }
        if known.is_empty() {
            let reason = format!("none of its entries is of a layer of {}", model.path().display());
            return Err(Error::file(&self.path, reason));
        }
        Ok(known)
    }

    /// Writes what is known of a model's layers as llama.cpp reads it, in GGUF; `dataset` names the text that the model read, in
    /// `chunks` windows of `(count, tokens)`. A weight that GGUF has no name for is left out.
    ///
    /// # Errors
    /// GGUF has no names for a model of this kind, or for none of the weights; the file cannot be written.
    pub fn write(
        stage: &Stage,
        model: &Archive,
        statistics: &BTreeMap<String, LayerStatistics>,
        dataset: &str,
        (chunks, tokens): (usize, usize),
    ) -> Result<()> {
        let names = Names::of(model)?;
        let mut entries: BTreeMap<String, BTreeMap<usize, &LayerStatistics>> = BTreeMap::new();
        for (weight, statistics) in statistics {
            if let Some((name, expert)) = names.tensor(weight) {
                entries.entry(name).or_default().insert(expert.unwrap_or(0), statistics);
            }
        }
        let path = stage.destination();
        let mut tensors = Vec::new();
        for (name, experts) in entries {
            let count = experts.keys().last().map_or(0, |last| last + 1);
            let width = experts.values().next().map_or(0, |any| any.shape().1);
            let (mut squares, mut counts) = (vec![0f32; count * width], vec![0f32; count]);
            for (expert, statistics) in experts {
                let tokens = statistics.count() as f64;
                counts[expert] = tokens as f32;
                let own = squares[expert * width..][..width].iter_mut();
                own.zip(statistics.input_moments()).for_each(|(sum, mean)| *sum = (mean * tokens) as f32);
            }
            for (end, values, width) in [(SUMS, squares, width), (COUNTS, counts, 1)] {
                let tensor = Tensor::from_vec(values, (count, width), &Device::Cpu)?;
                tensors.push((format!("{name}{end}"), QTensor::quantize(&tensor, GgmlDType::F32)?));
            }
        }
        if tensors.is_empty() {
            return Err(Error::file(model.path(), "GGUF has no name for any of the layers seen"));
        }
        let fields = [
            ("general.type", Value::String("imatrix".to_owned())),
            ("imatrix.datasets", Value::Array(vec![Value::String(dataset.to_owned())])),
            ("imatrix.chunk_count", Value::U32(chunks as u32)),
            ("imatrix.chunk_size", Value::U32(tokens as u32)),
        ];
        let fields: Vec<_> = fields.iter().map(|(key, value)| (*key, value)).collect();
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut file = stage.model()?;
        gguf_file::write(&mut file, &fields, &tensors).map_err(|e| Error::file(path, e))
    }
}

impl Sums {
    /// Those of an expert, or of all that a layer sees; `None` where they are of another number of inputs.
    fn of(&self, expert: Option<usize>, inputs: usize) -> Option<(&[f32], f32)> {
        let at = expert.unwrap_or(0);
        let experts = self.squares.len() / inputs.max(1);
        let fits = experts * inputs == self.squares.len() && (expert.is_some() || experts == 1);
        let squares = self.squares.get(at * inputs..(at + 1) * inputs).filter(|_| fits)?;
        // The older form counts all experts together.
        let count = if self.counts.len() == 1 { self.counts.first() } else { self.counts.get(at) };
        Some((squares, *count?))
    }
}

/// What the weights of a model are called in GGUF.
struct Names {
    architecture: &'static Architecture,
    tied: bool,
}

impl Names {
    fn of(model: &Archive) -> Result<Self> {
        let config = config(model)?;
        let kind = model_type(config.as_ref()).unwrap_or_default();
        let Some(architecture) = Architecture::of_kind(kind) else {
            let reason =
                format!("is a model of the kind {kind:?}, for whose weights GGUF's names are not known here");
            return Err(Error::file(model.path(), reason));
        };
        Ok(Self { architecture, tied: ties_head(config.as_ref()) })
    }

    /// The entry of a weight, and the number of an expert.
    fn tensor(&self, weight: &str) -> Option<(String, Option<usize>)> {
        let (name, expert) = self.architecture.tensor(weight)?;
        // Of a table what it does as the head is known.
        let is_head = self.tied && name == TABLE;
        Some((if is_head { HEAD.to_owned() } else { name }, expert))
    }

    fn is_transposed(&self, entry: &Entry) -> bool {
        self.architecture.conv1d && is_conv1d(&entry.name)
    }
}

fn about(path: &Path, entry: &str, reason: impl std::fmt::Display) -> Error {
    Error::file(path, format!("the entry {entry:?} {reason}"))
}

fn read_gguf(path: &Path) -> Result<BTreeMap<String, Sums>> {
    let file = file::open(path)?;
    let failed = |e: candle_core::Error| {
        Error::file(path, format!("is not a GGUF file that can be read: {}", first_line(&e)))
    };
    if alignment::is_zero(&file) {
        return Err(Error::file(path, "general.alignment is 0; the file is damaged"));
    }
    (&file).rewind().map_err(|e| Error::io(path, e))?;
    let content = Content::read(&mut BufReader::new(&file)).map_err(failed)?;
    let is_imatrix =
        matches!(content.metadata.get("general.type"), Some(Value::String(kind)) if kind == "imatrix");
    if !is_imatrix {
        return Err(Error::file(path, "is no importance matrix: its general.type is not \"imatrix\""));
    }
    let mut entries: BTreeMap<String, Sums> = BTreeMap::new();
    for (tensor, info) in &content.tensor_infos {
        let values = || -> Result<Vec<f32>> {
            let read = info.read(&mut &file, content.tensor_data_offset, &Device::Cpu).map_err(failed)?;
            Ok(read.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?)
        };
        if let Some(name) = tensor.strip_suffix(SUMS) {
            entries.entry(name.to_owned()).or_default().squares = values()?;
        } else if let Some(name) = tensor.strip_suffix(COUNTS) {
            entries.entry(name.to_owned()).or_default().counts = values()?;
        }
    }
    Ok(entries)
}

fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

fn read_dat(path: &Path) -> Result<BTreeMap<String, Sums>> {
    let file = file::open(path)?;
    let bytes = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let mut reader = Dat { reader: BufReader::new(file), left: bytes };
    let read = reader.entries();
    read.ok_or_else(|| {
        let reason = "is no importance matrix: neither GGUF nor llama.cpp's older form, or it is cut off";
        Error::file(path, reason)
    })
}

/// What is left of a file of the older form.
struct Dat {
    reader: BufReader<File>,
    left: u64,
}

impl Dat {
    fn entries(&mut self) -> Option<BTreeMap<String, Sums>> {
        let count = self.number()?;
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let length = self.number().filter(|length| *length <= LONGEST_NAME)?;
            let name = String::from_utf8(self.bytes(length)?).ok()?;
            let calls = self.number()?;
            let values = self.number()?;
            let values = self.bytes(values.checked_mul(4)?)?;
            let number = |bytes: &[u8]| Some(f32::from_le_bytes(bytes.try_into().ok()?));
            let squares = values.chunks_exact(4).map(number).collect::<Option<Vec<f32>>>()?;
            // What was never called holds ones.
            entries.insert(name, Sums { squares, counts: vec![calls.max(1) as f32] });
        }
        (count > 0).then_some(entries)
    }

    fn number(&mut self) -> Option<usize> {
        let bytes = self.bytes(4)?.try_into().ok()?;
        usize::try_from(i32::from_le_bytes(bytes)).ok()
    }

    /// No more than the file holds.
    fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        self.left = self.left.checked_sub(count as u64)?;
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }
}
