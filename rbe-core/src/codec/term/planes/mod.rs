//! The planes term: every coefficient at `n` bits, stored as bit-planes, most significant first.
//!
//! ```text
//!     coefficient = scale * (2u + 1 - 2^n) / 2,    u in 0..2^n
//! ```
//!
//! Cells are nested: the first `p` planes hold `u >> (n - p)`, which is the `p`-bit quantiser with the step
//! `scale * 2^(n - p)` and the cell's centre as its value. So a matrix cut to its first planes is valid, and
//! its error falls with every plane. In memory a block's planes lie together; on disk plane 0 of all blocks
//! comes first, then plane 1, and so on.

pub(crate) mod coded;

use super::summand::{Compression, Summand, dot};
use crate::codec::bits;
use crate::codec::bytes::{Reader, Writer};
use crate::codec::layout::{Block, Layout};
use crate::codec::sizes::zeroed;
use crate::codec::units;
use crate::error::{Error, Result};
use half::f16;
use std::ops::Range;

/// The most planes a coefficient can have.
pub const MAX_PLANES: u8 = 8;

/// Which coefficients share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleGroup {
    /// A whole block.
    Block,
    /// A row of a block.
    Row,
}

impl ScaleGroup {
    /// Scales of one block.
    pub(crate) fn scales_in(self, block: Block) -> usize {
        match self {
            ScaleGroup::Block => 1,
            ScaleGroup::Row => block.height,
        }
    }
}

/// One block on its way into [`Planes::pack`].
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedBlock {
    /// Planes, up to [`MAX_PLANES`]; 0 makes every coefficient zero.
    pub planes: u8,
    /// The step of each group, in units.
    pub scales: Vec<f16>,
    /// `u` of each coefficient, row-major.
    pub codes: Vec<u8>,
}

/// Bit-planes of every block.
#[derive(Clone, Debug, PartialEq)]
pub struct Planes {
    layout: Layout,
    group: ScaleGroup,
    /// All scales are multiplied by this power of two.
    unit: f32,
    /// Planes of each block.
    planes: Vec<u8>,
    scales: Vec<f16>,
    /// Where each block's masks begin in `data`; one more than there are blocks.
    starts: Vec<usize>,
    /// For each block, plane and row: the row's bit mask.
    data: Vec<u8>,
}

impl Planes {
    /// Packs quantised blocks in row-major order of blocks. `unit` multiplies every scale.
    ///
    /// # Panics
    /// When there are not as many blocks, or in one not as many scales or codes, as the layout says; when a block has more
    /// than [`MAX_PLANES`]; when a scale is negative or not finite, or the unit no power of two from `2^-126` to `2^103`.
    pub fn pack(layout: Layout, group: ScaleGroup, unit: f32, blocks: &[QuantizedBlock]) -> Self {
        assert_eq!(blocks.len(), layout.blocks());
        let planes: Vec<u8> = blocks.iter().map(|block| block.planes).collect();
        let mut scales = Vec::new();
        for (block, quantized) in layout.iter().zip(blocks) {
            assert_eq!(quantized.codes.len(), block.len());
            assert_eq!(quantized.scales.len(), group.scales_in(block));
            scales.extend_from_slice(&quantized.scales);
        }
        units::expect_scales("planes", unit, scales.iter().copied());
        assert!(
            planes.iter().all(|planes| *planes <= MAX_PLANES),
            "a block has more than {MAX_PLANES} planes"
        );
        let starts = starts(layout, &planes);
        let mut data = vec![0; starts[planes.len()]];
        for block in layout.iter().filter(|block| planes[block.index] > 0) {
            let masks = &mut data[starts[block.index]..starts[block.index + 1]];
            write_masks(&blocks[block.index].codes, block, planes[block.index], masks);
        }
        Self { layout, group, unit, planes, scales, starts, data }
    }

    /// The layout of the matrix.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Which coefficients share a scale.
    pub fn group(&self) -> ScaleGroup {
        self.group
    }

    /// The power of two that multiplies every scale.
    pub fn unit(&self) -> f32 {
        self.unit
    }

    /// The scales of all blocks one after another.
    pub fn scales(&self) -> &[f16] {
        &self.scales
    }

    /// The same codes with other scales, one for each group, block after block.
    ///
    /// # Errors
    /// When one is negative, not finite or too large.
    ///
    /// # Panics
    /// When there are not as many as before.
    pub fn with_scales(&self, scales: &[f32]) -> Result<Self> {
        assert_eq!(scales.len(), self.scales.len());
        let (unit, scales) = units::scales_in_units(scales, "planes scale")?;
        Ok(Self { unit, scales, ..self.clone() })
    }

    /// `u` of each coefficient of a block, row-major.
    pub fn codes(&self, block: Block, codes: &mut [u8]) {
        if self.planes(block) == 0 {
            return codes.fill(0);
        }
        let (mask_bytes, plane_bytes) = (block.mask_bytes(), block.height * block.mask_bytes());
        let masks = &self.data[self.starts[block.index]..self.starts[block.index + 1]];
        for (row, codes) in codes.chunks_exact_mut(block.width).enumerate() {
            let eight = |byte: usize| {
                let masks = masks[row * mask_bytes + byte..].iter().step_by(plane_bytes);
                masks.fold(0, |codes, mask| codes << 1 | bits::spread(*mask)).to_le_bytes()
            };
            let (eights, rest) = codes.as_chunks_mut();
            eights.iter_mut().enumerate().for_each(|(byte, codes)| *codes = eight(byte));
            if !rest.is_empty() {
                rest.copy_from_slice(&eight(mask_bytes - 1)[..rest.len()]);
            }
        }
    }

    /// Planes of a block.
    pub fn planes(&self, block: Block) -> u8 {
        self.planes[block.index]
    }

    /// The step of row `row` of a block: twice the distance of the innermost values from zero.
    pub fn scale(&self, block: Block, row: usize) -> f32 {
        let index = match self.group {
            ScaleGroup::Block => block.index,
            // Blocks above and to the left have as many scales as they have rows.
            ScaleGroup::Row => {
                let above = block.row * self.layout.block_cols();
                above + self.layout.place(block).1 * block.height + row
            }
        };
        self.scales[index].to_f32() * self.unit
    }

    /// Writes the odd integers `2u + 1 - 2^p` of one row, from its first `p` planes, and returns the factor
    /// that makes coefficients of them; zero for a block without planes.
    pub fn levels(&self, block: Block, row: usize, limit: u8, levels: &mut [f32]) -> f32 {
        let stored = self.planes(block);
        let used = stored.min(limit);
        if used == 0 {
            levels.fill(0.0);
            return 0.0;
        }
        let mask_bytes = block.mask_bytes();
        let plane_bytes = block.height * mask_bytes;
        let first = self.starts[block.index] + row * mask_bytes;
        let offset = 1.0 - f32::from(1u16 << used);
        for (byte, levels) in levels.chunks_mut(8).enumerate() {
            let mut codes = 0;
            for plane in 0..usize::from(used) {
                codes = codes << 1 | bits::spread(self.data[first + plane * plane_bytes + byte]);
            }
            for (level, code) in levels.iter_mut().zip(codes.to_le_bytes()) {
                *level = f32::from(code) * 2.0 + offset;
            }
        }
        self.scale(block, row) * 0.5 * f32::from(1u16 << (stored - used))
    }

    /// The first `limit` planes as a term of their own: the `limit`-bit quantiser of the same coefficients.
    ///
    /// Their scales are larger. Where F16 numbers times the old unit do not reach so far, the unit is as much larger as it
    /// takes.
    ///
    /// # Errors
    /// When no unit that a payload may have makes a scale large enough.
    pub fn truncate(&self, limit: u8) -> Result<Self> {
        let planes: Vec<u8> = self.planes.iter().map(|&planes| planes.min(limit)).collect();
        let starts = starts(self.layout, &planes);
        let mut data = Vec::with_capacity(starts[planes.len()]);
        // In units; a product of an F16 number and a power of two up to 2^8 is exact.
        let mut scales: Vec<f32> = Vec::with_capacity(self.scales.len());
        for block in self.layout.iter() {
            let kept = starts[block.index + 1] - starts[block.index];
            data.extend_from_slice(&self.data[self.starts[block.index]..][..kept]);
            let coarser = f32::from(1u16 << (self.planes[block.index] - planes[block.index]));
            let count = self.group.scales_in(block);
            let own = &self.scales[scales.len()..][..count];
            scales.extend(own.iter().map(|scale| scale.to_f32() * coarser));
        }
        let mut growth = 1.0;
        while scales.iter().any(|scale| !f16::from_f32(scale / growth).is_finite()) {
            growth *= 2.0;
        }
        let unit = self.unit * growth;
        if unit > units::LARGEST_UNIT {
            let largest = scales.iter().fold(0f32, |largest, scale| largest.max(*scale)) * self.unit;
            return Err(units::too_large(&format!("a scale of the first {limit} planes"), largest));
        }
        let scales = scales.iter().map(|scale| f16::from_f32(scale / growth)).collect();
        Ok(Self { layout: self.layout, group: self.group, unit, planes, scales, starts, data })
    }

    /// What comes first, whether or not the planes that follow are coded.
    fn write_head(&self, writer: &mut Writer) {
        writer.u8(u8::from(self.group == ScaleGroup::Row));
        writer.f32(self.unit);
        writer.bytes(&self.planes);
        writer.f16s(&self.scales);
    }

    /// A term without its planes, which follow.
    fn read_head(reader: &mut Reader, layout: Layout) -> Result<Self> {
        let group = match reader.u8("scale group")? {
            0 => ScaleGroup::Block,
            1 => ScaleGroup::Row,
            other => return Err(Error::payload(format!("unknown scale group {other}"))),
        };
        let unit = units::read_unit(reader, "planes unit")?;
        let planes = reader.take(layout.blocks(), "plane counts")?.to_vec();
        if let Some(count) = planes.iter().find(|count| **count > MAX_PLANES) {
            return Err(Error::payload(format!(
                "a block with {count} planes; at most {MAX_PLANES} are allowed"
            )));
        }
        let scale_count = match group {
            ScaleGroup::Block => layout.blocks(),
            ScaleGroup::Row => layout.rows() * layout.block_cols(),
        };
        let scales = reader.scales(scale_count, "plane scales")?;
        let starts = starts(layout, &planes);
        Ok(Self { layout, group, unit, planes, scales, starts, data: Vec::new() })
    }

    fn read_planes(mut self, reader: &mut Reader) -> Result<Self> {
        let total = self.starts[self.planes.len()];
        let bytes = reader.take(total, "bit-planes")?;
        let mut data = zeroed(&[total], "bit-planes")?;
        let mut at = 0;
        for plane in 0..MAX_PLANES {
            for block in self.layout.iter().filter(|block| self.planes(*block) > plane) {
                let len = block.height * block.mask_bytes();
                let masks = &bytes[at..at + len];
                let outside = (0xff00u16 >> ((8 - block.width % 8) % 8)) as u8;
                if masks.chunks_exact(block.mask_bytes()).any(|row| row[row.len() - 1] & outside != 0) {
                    return Err(Error::payload(format!(
                        "planes block {}: padding bits are set",
                        block.index
                    )));
                }
                data[self.starts[block.index] + usize::from(plane) * len..][..len].copy_from_slice(masks);
                at += len;
            }
        }
        self.data = data;
        Ok(self)
    }
}

impl Summand for Planes {
    const CAN_BE_CODED: bool = true;

    fn name(&self) -> &'static str {
        "planes"
    }

    fn layout(&self) -> Layout {
        self.layout
    }

    fn add_rows(&self, block: Block, rows: Range<usize>, out: &mut [f32]) {
        let mut levels = vec![0.0; block.width];
        for (row, out) in rows.zip(out.chunks_exact_mut(block.width)) {
            let factor = self.levels(block, row, MAX_PLANES, &mut levels);
            out.iter_mut().zip(&levels).for_each(|(out, level)| *out += factor * level);
        }
    }

    fn parameters(&self) -> Vec<f32> {
        self.scales.iter().map(|scale| scale.to_f32() * self.unit).collect()
    }

    fn parameters_in(&self, block: Block) -> usize {
        self.group.scales_in(block)
    }

    fn with_parameters(&self, parameters: &[f32]) -> Result<Self> {
        self.with_scales(parameters)
    }

    fn add_gradient(&self, block: Block, g: &[f32], gradient: &mut [f32]) {
        let per_scale = block.height / gradient.len();
        let mut levels = vec![0.0; block.width];
        for (row, g) in g.chunks_exact(block.width).enumerate() {
            self.levels(block, row, MAX_PLANES, &mut levels);
            gradient[row / per_scale] += 0.5 * dot(g, &levels) as f32;
        }
    }

    fn times_power_of_two(&self, exponent: i32) -> Result<Self> {
        Ok(Self { unit: units::scaled_unit(self.unit, exponent)?, ..self.clone() })
    }

    fn first_planes(&self, limit: u8) -> Option<Result<Self>> {
        Some(self.truncate(limit))
    }

    fn read(reader: &mut Reader, layout: Layout, compression: Compression) -> Result<Self> {
        let head = Self::read_head(reader, layout)?;
        match compression {
            Compression::Entropy => head.read_coded(reader),
            Compression::None => head.read_planes(reader),
        }
    }

    fn size_in_bytes(&self) -> usize {
        1 + 4 + self.planes.len() + size_of_val(&self.scales[..]) + self.data.len()
    }

    fn summary(&self) -> String {
        let (Some(min), Some(max)) = (self.planes.iter().min(), self.planes.iter().max()) else {
            return "planes".to_owned();
        };
        let group = if self.group == ScaleGroup::Row { ", scale per row" } else { "" };
        if min == max { format!("planes {min}{group}") } else { format!("planes {min}..{max}{group}") }
    }

    fn write(&self, writer: &mut Writer) {
        self.write_head(writer);
        for plane in 0..MAX_PLANES {
            for block in self.layout.iter().filter(|block| self.planes(*block) > plane) {
                let len = block.height * block.mask_bytes();
                writer.bytes(&self.data[self.starts[block.index] + usize::from(plane) * len..][..len]);
            }
        }
    }

    fn coded(&self) -> Option<Writer> {
        Planes::coded(self)
    }
}

/// Where each block's masks begin, and where the last end.
fn starts(layout: Layout, planes: &[u8]) -> Vec<usize> {
    let mut end = 0;
    let mut starts = Vec::with_capacity(planes.len() + 1);
    starts.push(0);
    for (block, planes) in layout.iter().zip(planes) {
        end += usize::from(*planes) * block.height * block.mask_bytes();
        starts.push(end);
    }
    starts
}

/// The bit-planes of a block's codes.
fn write_masks(codes: &[u8], block: Block, planes: u8, masks: &mut [u8]) {
    if planes == 0 {
        return;
    }
    let of_plane = masks.chunks_exact_mut(block.height * block.mask_bytes());
    for (masks, bit) in of_plane.zip((0..planes).rev()) {
        let rows = masks.chunks_exact_mut(block.mask_bytes()).zip(codes.chunks_exact(block.width));
        for (masks, codes) in rows {
            let (eights, rest) = codes.as_chunks();
            for (mask, eight) in masks.iter_mut().zip(eights) {
                *mask = bits::collect(u64::from_le_bytes(*eight) >> bit);
            }
            if let [.., last] = masks
                && !rest.is_empty()
            {
                let mut eight = [0; 8];
                eight[..rest.len()].copy_from_slice(rest);
                *last = bits::collect(u64::from_le_bytes(eight) >> bit);
            }
        }
    }
}

#[cfg(test)]
mod tests;
