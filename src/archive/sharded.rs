//! Parts of a model's tensors, for models that run in several processes (tensor parallelism).

use super::{Archive, Entry, SUFFIX, element_count};
use crate::nn::decoded::{DecodeReason, note};
use crate::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::{Backend, Shard, VarBuilderArgs};
use std::ops::Range;
use std::path::Path;

/// What [`open_sharded`] reads from.
#[derive(Debug)]
pub struct ShardedArchive(Archive);

/// Opens a model, compressed or not, in the place of Candle's `ShardedSafeTensors::var_builder`.
///
/// A tensor that is asked for with a [`Shard`] of several is cut along side 0 or 1, as there. A compressed one is decoded, a
/// few rows at a time, along side 0 with its own blocks alone: each process holds its part. Payloads are not cut.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use candle_core::{DType, Device};
/// use candle_nn::var_builder::Shard;
/// use candle_rbe::archive;
///
/// let vb = archive::open_sharded("llama-rbe", DType::F32, &Device::Cpu)?;
/// let second_of_four = Shard { dim: 0, rank: 1, world_size: 4 };
/// let rows = vb.get_with_hints((1024, 4096), "model.layers.0.self_attn.q_proj.weight", second_of_four)?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// See [`Archive::open`].
pub fn open_sharded(
    path: impl AsRef<Path>,
    dtype: DType,
    device: &Device,
) -> Result<VarBuilderArgs<'static, ShardedArchive>> {
    Ok(VarBuilderArgs::new_with_args(ShardedArchive(Archive::open(path)?), dtype, device))
}

impl ShardedArchive {
    fn entry(&self, name: &str) -> Result<&Entry> {
        let payload = name.strip_suffix(SUFFIX).and_then(|name| self.0.get(name));
        if payload.is_some_and(|entry| entry.compressed) {
            let what = format!(
                "the payload {name:?} from a builder of shards; ask for the tensor by its plain name, or open the model by \
                 archive::open, whose layers run on whole payloads"
            );
            return Err(Error::unsupported(what));
        }
        self.0.entry(name)
    }

    /// The part of a tensor, of its stored type or F32 where it is compressed.
    fn part(&self, entry: &Entry, shard: Shard, device: &Device) -> Result<Tensor> {
        let Shard { dim, rank, world_size } = shard;
        if (rank, world_size) == (0, 1) {
            return self.whole(entry, device);
        }
        let side = entry.shape.get(dim).copied().filter(|_| dim < 2).unwrap_or(0);
        if rank >= world_size || side == 0 || !side.is_multiple_of(world_size) {
            let reason = format!(
                "tensor {:?} of shape {:?} has no part {rank} of {world_size} along side {dim}: sides 0 and 1 are cut, into \
                 parts of equal size; choose a number of processes that divides the side",
                entry.name, entry.shape
            );
            return Err(Error::shape(reason));
        }
        let part = side / world_size;
        let range = rank * part..(rank + 1) * part;
        if entry.compressed {
            return self.decode_part(entry, dim, range, device);
        }
        let tensor = self.0.tensor(entry, &Device::Cpu)?;
        Ok(tensor.narrow(dim, range.start, part)?.contiguous()?.to_device(device)?)
    }

    fn whole(&self, entry: &Entry, device: &Device) -> Result<Tensor> {
        let tensor = self.0.tensor(entry, device)?;
        if entry.compressed {
            note(&entry.name, &tensor, DecodeReason::AskedByName);
        }
        Ok(tensor)
    }

    /// Rows or columns of a compressed tensor.
    fn decode_part(&self, entry: &Entry, dim: usize, range: Range<usize>, device: &Device) -> Result<Tensor> {
        let mut shape = entry.shape.clone();
        let (height, width) = entry.matrix().unwrap_or((entry.elements(), 1));
        shape[dim] = range.len();
        // Of a kernel, what one number of the second side stands for.
        let inner = width / entry.shape.get(1).copied().unwrap_or(1).max(1);
        let (parts, rows, columns) = match (entry.stacked, dim) {
            (true, 0) => (range, 0..height, 0..width),
            (true, _) | (false, 0) => (0..entry.parts(), range, 0..width),
            (false, _) => (0..1, 0..height, range.start * inner..range.end * inner),
        };
        let mut values = Vec::with_capacity(element_count(&shape).unwrap_or_default());
        for part in parts {
            self.0.part(entry, part)?.decode_rows(rows.clone(), |first, band| {
                for (row, weights) in (first..).zip(band.chunks_exact(width)) {
                    if rows.contains(&row) {
                        values.extend_from_slice(&weights[columns.clone()]);
                    }
                }
                Ok(())
            })?;
        }
        let part = Tensor::from_vec(values, shape, device)?;
        note(&entry.name, &part, DecodeReason::Shard);
        Ok(part)
    }
}

impl Backend for ShardedArchive {
    type Hints = Shard;

    fn get(
        &self,
        shape: Shape,
        name: &str,
        shard: Shard,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let entry = self.entry(name)?;
        // As Candle's builder does, whose callers leave the shape of a part open.
        if shard.world_size == 1 && shape.dims() != entry.shape {
            let (msg, got) = (format!("shape mismatch for {name}"), Shape::from(entry.shape.as_slice()));
            return Err(candle_core::Error::UnexpectedShape { msg, expected: shape, got }.bt());
        }
        self.part(entry, shard, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.whole(self.entry(name)?, device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }
}
