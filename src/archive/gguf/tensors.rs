//! The tensors of a GGUF file as Hugging Face's models have them.

use super::architecture::Place;
use super::source::Source;
use crate::Result;
use crate::archive::{Dtype, element_count};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::TensorInfo;
use candle_core::{DType, Device, Tensor};
use safetensors::View;

/// Weights that are in memory at a time, a head's or a row's at least.
const AT_ONCE: usize = 1 << 22;

/// Tables of what rotary embedding does, which the configuration says.
const OF_ROTATION: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// A tensor of the directory to be.
pub(super) struct Part {
    /// Hugging Face's name.
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// GGUF's name.
    tensor: String,
    /// Where in the file's data it begins.
    offset: u64,
    stored: GgmlDType,
    undo: Undo,
}

/// What GGUF's writer did.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Undo {
    Nothing,
    /// Put the numbers side by side that are rotated together, in heads of this width.
    Interleaving(usize),
    /// Added one.
    AddedOne,
    /// Turned `(in, out)` into `(out, in)`.
    Transposition,
}

/// All tensors of the directory.
pub(super) fn plan(source: &Source) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let tied = repeats_table(source)?;
    for (tensor, (info, _)) in &source.tensors {
        if OF_ROTATION.contains(&tensor.as_str()) || (tied && tensor == HEAD) {
            continue;
        }
        let Some(place) = source.architecture.place(tensor) else {
            let kind = source.architecture.model_type;
            return Err(source.about(tensor, format!("a model of the kind {kind} has no such tensor")));
        };
        parts.extend(Part::of(source, tensor, info, &place)?);
    }
    Ok(parts)
}

pub(super) const TABLE: &str = "token_embd.weight";
pub(super) const HEAD: &str = "output.weight";

/// Whether the file holds the token table a second time as the head.
pub(super) fn repeats_table(source: &Source) -> Result<bool> {
    let (Some(table), Some(head)) = (source.info(TABLE), source.info(HEAD)) else { return Ok(false) };
    if table.ggml_dtype != head.ggml_dtype || table.shape != head.shape {
        return Ok(false);
    }
    let read = |tensor: &str, info: &TensorInfo| {
        let read = source.read(tensor, info);
        let bytes = read.and_then(|read| Ok(read.data()?.into_owned()));
        bytes.map_err(|e| source.about(tensor, first_line(&e)))
    };
    Ok(read(TABLE, table)? == read(HEAD, head)?)
}

/// Candle's error without what it was called by.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

impl Part {
    /// A tensor, or of stacked experts one for each.
    fn of(source: &Source, tensor: &str, info: &TensorInfo, place: &Place) -> Result<Vec<Self>> {
        let (dims, stored) = (info.shape.dims(), info.ggml_dtype);
        let stacked = place.name.contains("{}");
        let expected = if stacked { 3..=3 } else { 1..=2 };
        let block = stored.block_size();
        let width = dims.last().copied().unwrap_or(0);
        if !expected.contains(&dims.len()) || element_count(dims).is_none_or(|count| count == 0) {
            return Err(
                source.about(tensor, format!("has the shape {dims:?}, which is none of such a tensor"))
            );
        }
        if !width.is_multiple_of(block) {
            let reason = format!("rows of {width} weights do not fill blocks of {block}, as {stored:?} has");
            return Err(source.about(tensor, reason));
        }
        let undo = undo(source, place, dims)?;
        let shape = |dims: &[usize]| match undo {
            Undo::Transposition => dims.iter().rev().copied().collect(),
            _ => dims.to_vec(),
        };
        let part = |name: String, dims: &[usize], offset: u64| Self {
            name,
            dtype: dtype(stored),
            shape: shape(dims),
            tensor: tensor.to_owned(),
            offset,
            stored,
            undo,
        };
        if !stacked {
            return Ok(vec![part(place.name.clone(), dims, info.offset)]);
        }
        let bytes = (dims[1] * dims[2] / block * stored.type_size()) as u64;
        let offset = |expert: usize| info.offset.checked_add(expert as u64 * bytes);
        (0..dims[0])
            .map(|expert| {
                let name = place.name.replace("{}", &expert.to_string());
                let offset = offset(expert).ok_or_else(|| source.about(tensor, "lies outside the file"))?;
                Ok(part(name, &dims[1..], offset))
            })
            .collect()
    }

    pub(super) fn elements(&self) -> usize {
        // Checked in `of`, of which this is a part.
        self.shape.iter().product()
    }

    pub(super) fn bytes(&self) -> usize {
        self.elements() * self.dtype.bitsize() / 8
    }

    pub(super) fn stored_bytes(&self) -> usize {
        self.elements() / self.stored.block_size() * self.stored.type_size()
    }

    pub(super) fn is_quantized(&self) -> bool {
        self.stored.block_size() > 1
    }

    /// Reads the tensor, a few rows at a time, and hands on its bytes as they are to be.
    pub(super) fn read(&self, source: &Source, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let stored_shape = match self.undo {
            Undo::Transposition => vec![self.shape[1], self.shape[0]],
            _ => self.shape.clone(),
        };
        let (rows, width) = match stored_shape[..] {
            [rows, width] => (rows, width),
            _ => (1, self.elements()),
        };
        let at_once = match self.undo {
            Undo::Transposition => rows,
            Undo::Interleaving(head) => (AT_ONCE / width / head).max(1) * head,
            _ => (AT_ONCE / width).max(1),
        };
        let row_bytes = (width / self.stored.block_size() * self.stored.type_size()) as u64;
        let mut row = 0;
        while row < rows {
            let count = at_once.min(rows - row);
            let offset = (row as u64).checked_mul(row_bytes).and_then(|bytes| bytes.checked_add(self.offset));
            let offset = offset.ok_or_else(|| source.about(&self.tensor, "lies outside the file"))?;
            let shape = if stored_shape.len() == 2 { vec![count, width] } else { stored_shape.clone() };
            let info = TensorInfo { ggml_dtype: self.stored, shape: shape.into(), offset };
            let piece = self.decode(source, &info).map_err(|e| source.about(&self.tensor, first_line(&e)))?;
            write(&View::data(&piece))?;
            row += count;
        }
        Ok(())
    }

    fn decode(&self, source: &Source, info: &TensorInfo) -> candle_core::Result<Tensor> {
        let stored = source.read(&self.tensor, info)?.dequantize(&Device::Cpu)?;
        let undone = match self.undo {
            Undo::Nothing => stored,
            Undo::AddedOne => (stored - 1.0)?,
            Undo::Transposition => stored.t()?.contiguous()?,
            Undo::Interleaving(head) => {
                let pairs = stored.reshape(((), head / 2, 2, *info.shape.dims().get(1).unwrap_or(&1)))?;
                pairs.transpose(1, 2)?.contiguous()?.reshape(info.shape.dims())?
            }
        };
        undone.to_dtype(DType::try_from(self.dtype)?)
    }
}

/// The type of a tensor in the directory.
fn dtype(stored: GgmlDType) -> Dtype {
    match stored {
        GgmlDType::F16 => Dtype::F16,
        GgmlDType::BF16 => Dtype::BF16,
        _ => Dtype::F32,
    }
}

fn undo(source: &Source, place: &Place, dims: &[usize]) -> Result<Undo> {
    let (architecture, metadata) = (source.architecture, &source.metadata);
    let heads = match place.stem.as_str() {
        "attn_q" => metadata.need_size(".attention.head_count")?,
        "attn_k" => match metadata.size(".attention.head_count_kv")? {
            Some(heads) => heads,
            None => metadata.need_size(".attention.head_count")?,
        },
        _ if architecture.norms_around_one && place.name.ends_with("norm.weight") => {
            return Ok(Undo::AddedOne);
        }
        _ if architecture.conv1d && dims.len() == 2 && crate::models::is_gpt2_conv1d(&place.name) => {
            return Ok(Undo::Transposition);
        }
        _ => return Ok(Undo::Nothing),
    };
    if !architecture.interleaved {
        return Ok(Undo::Nothing);
    }
    let rows = dims[0];
    if heads == 0 || !rows.is_multiple_of(2 * heads) {
        let stem = &place.stem;
        let reason = format!("says {heads} heads for {stem:?}, of whose {rows} rows none has an even number");
        return Err(metadata.error(".attention.head_count", reason));
    }
    Ok(Undo::Interleaving(rows / heads))
}
