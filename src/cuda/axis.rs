//! One side of a matrix on the device: the signs and tables of its transform.

use super::blocks::{ELEMENTS, ITEM_FLOATS, WARP};
use super::machine::{Arg, Element, Launch, Machine, Module};
use super::operands::{Gather, Operand, Partial, Target};
use crate::error::Result;
use rbe_core::codec::axis::Axis;
use rbe_core::codec::layout::SHORTEST;
use rbe_core::codec::signs::{Side, Signs};
use rbe_core::codec::sizes;
use rbe_core::codec::transform::Plan;
use rbe_core::codec::{AxisScales, Cut, Transform};
use std::f64::consts::PI;

/// `TRANSFORM_WARPS` of `transform.cu`.
const WARPS: usize = 4;
/// Warps that a multiprocessor has at once: `TRANSFORM_BLOCKS` of `transform.cu`.
const WARPS_EACH: usize = 5 * WARPS;
/// Shared memory in which a warp transforms.
const SHARED_BYTES: usize = ITEM_FLOATS * size_of::<f32>();

/// The matrices of the whole blocks, or of the shorter ones one after another, for each direction.
struct Matrices<M> {
    analysis: M,
    synthesis: M,
}

impl<M> Matrices<M> {
    fn of(&self, inverse: bool) -> &M {
        if inverse { &self.synthesis } else { &self.analysis }
    }
}

/// What each element is multiplied by, as devices have it.
struct Factors {
    signs: Option<Vec<u8>>,
    scales: Option<Vec<u8>>,
}

/// What an axis is made of.
#[derive(PartialEq)]
struct Operator {
    transform: Transform,
    cut: Cut,
    side: Side,
    seed: Option<u64>,
    scales: Option<AxisScales>,
}

/// `A = blockdiag(T, .., T_short) D` of one side.
pub(super) struct DeviceAxis<M> {
    pub len: usize,
    pub cut: Cut,
    /// None of it is another's where it was put together.
    operator: Option<Operator>,
    signs: Option<M>,
    /// A number an element.
    scales: Option<M>,
    /// For the fast DCT of powers of two.
    rotations: Option<M>,
    /// For whole blocks of other transforms.
    whole: Option<Matrices<M>>,
    /// For shorter blocks without a fast transform.
    shorter: Option<Matrices<M>>,
}

/// Which part of an axis' rows a launch sees: `len` elements from block boundary `first` on. It is cut as an axis of its own
/// is, so it is some of the whole blocks, or what follows some of them.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub first: usize,
    pub len: usize,
}

/// Where rows in the coefficient domain go.
pub(super) struct Spectrum<'a, M> {
    pub operand: Operand<'a, M>,
    /// Elements from a row to the next; the last of them, beyond the axis, are zero.
    pub stride: usize,
    /// What the transform is multiplied by.
    pub scale: f32,
    /// Where what is farthest from zero of each row in each item goes, `(batch, items)`, if it is asked for.
    pub largest: Option<Partial<'a, M>>,
}

/// The input of an inverse transform.
pub(super) struct Sum<'a, M> {
    pub parts: Option<&'a M>,
    /// Elements before the first.
    pub offset: usize,
    pub element: Element,
    pub splits: usize,
    /// From a row to the next.
    pub stride: usize,
    /// What the transform is multiplied by.
    pub scale: f32,
}

impl<'a, M> Sum<'a, M> {
    /// So many parts in F32, as they are.
    pub(super) fn of(parts: Option<&'a M>, splits: usize, stride: usize) -> Self {
        Self { parts, offset: 0, element: Element::F32, splits, stride, scale: 1.0 }
    }
}

impl<M> DeviceAxis<M> {
    pub(super) fn new(
        machine: &impl Machine<Memory = M>,
        axis: &Axis,
        side: Side,
        seed: Option<u64>,
    ) -> Result<Self> {
        let (transform, cut) = (axis.transform(), *axis.cut());
        let factors = Factors {
            signs: seed.map(|seed| sign_bits(Signs::new(seed, side), cut.elements())),
            scales: axis.scales().map(|scales| floats(scales.values())),
        };
        let operator = Operator { transform, cut, side, seed, scales: axis.scales().cloned() };
        Ok(Self { operator: Some(operator), ..Self::of(machine, transform, cut, &factors)? })
    }

    /// Axes one after another as one: of so many elements, cut as each of them is. `None` where they are of other transforms or edges, were put
    /// together themselves, or one that another follows does not end with a whole block.
    pub(super) fn stacked(machine: &impl Machine<Memory = M>, parts: &[&Self]) -> Result<Option<Self>> {
        let operators: Option<Vec<_>> = parts.iter().map(|part| part.operator.as_ref()).collect();
        let Some((last, before)) = operators.as_deref().and_then(|operators| operators.split_last()) else {
            return Ok(None);
        };
        let (transform, edge) = (last.transform, last.cut.edge());
        let goes_before = |part: &&Operator| {
            (part.transform, part.cut.edge()) == (transform, edge) && part.cut.elements().is_multiple_of(edge)
        };
        if !before.iter().all(goes_before) {
            return Ok(None);
        }
        let has_signs = before.iter().chain([last]).any(|part| part.seed.is_some());
        let has_scales = before.iter().chain([last]).any(|part| part.scales.is_some());
        let (mut signs, mut scales, mut len) = (Vec::new(), Vec::new(), 0);
        for part in before.iter().chain([last]) {
            let own = part.cut.elements();
            // Instead of what follows the last of an axis, the next one.
            signs.truncate(len / 8);
            signs.extend(match part.seed {
                Some(seed) => sign_bits(Signs::new(seed, part.side), own),
                None => vec![0; sign_bytes(own)],
            });
            scales.extend(part.scales.as_ref().map_or_else(|| vec![1.0; own], AxisScales::values));
            len += own;
        }
        let factors =
            Factors { signs: has_signs.then_some(signs), scales: has_scales.then(|| floats(scales)) };
        Self::of(machine, transform, Cut::new(len, edge), &factors).map(Some)
    }

    fn of(
        machine: &impl Machine<Memory = M>,
        transform: Transform,
        cut: Cut,
        factors: &Factors,
    ) -> Result<Self> {
        let fast = transform == Transform::Dct;
        let matrices = |blocks: std::ops::Range<usize>| -> Result<_> {
            let lengths = blocks.map(|block| cut.range(block).len());
            let lengths: Vec<_> = lengths.filter(|len| !(fast && is_fast(*len))).collect();
            if lengths.is_empty() { Ok(None) } else { matrices(machine, transform, &lengths).map(Some) }
        };
        let len = cut.elements();
        Ok(Self {
            len,
            cut,
            operator: None,
            signs: factors.signs.as_deref().map(|signs| machine.upload(signs)).transpose()?,
            scales: factors.scales.as_deref().map(|scales| machine.upload(scales)).transpose()?,
            rotations: if fast { Some(machine.upload(&floats(rotations()))?) } else { None },
            whole: matrices(0..cut.whole_blocks().min(1))?,
            shorter: matrices(cut.whole_blocks()..cut.blocks())?,
        })
    }

    /// Whether vectors have the same coefficients along this axis as along another of the same side.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.operator.is_some() && self.operator == other.operator
    }

    /// All of the axis.
    pub(super) fn whole(&self) -> Part {
        Part { first: 0, len: self.len }
    }

    /// Warps' items of a vector.
    pub(super) fn all_items(&self) -> usize {
        self.items(self.len)
    }

    /// Warps' items in so many elements.
    fn items(&self, len: usize) -> usize {
        let cut = Cut::new(len, self.cut.edge());
        let together = if self.rotations.is_some() { ELEMENTS / cut.edge() } else { 1 };
        cut.whole_blocks().div_ceil(together) + cut.blocks() - cut.whole_blocks()
    }

    /// What a warp takes through the transform, one after another, for one vector; `None` where that takes a matrix.
    pub(super) fn fast_items(&self) -> Option<usize> {
        self.rotations.as_ref().map(|_| self.items(self.len))
    }

    /// The tables of the transform, or of its inverse.
    pub(super) fn tables(&self, first: usize, inverse: bool) -> [Arg<'_, M>; 5] {
        // A bit an element, and block boundaries are whole words.
        let sign_bytes = first / 8;
        [
            Arg::optional(self.signs.as_ref(), sign_bytes),
            Arg::optional(self.scales.as_ref(), first * size_of::<f32>()),
            Arg::optional(self.rotations.as_ref(), 0),
            Arg::optional(self.whole.as_ref().map(|matrices| matrices.of(inverse)), 0),
            Arg::optional(self.shorter.as_ref().map(|matrices| matrices.of(inverse)), 0),
        ]
    }

    fn args(&self, part: Part, inverse: bool) -> Vec<Arg<'_, M>> {
        let mut args = Vec::from(self.tables(part.first, inverse));
        args.extend([part.len, self.cut.edge()].map(Arg::Int));
        args
    }

    /// A launch for `batch` vectors, of which a warp takes as many, one after another, that none waits for another's end.
    fn launch<'a>(
        &self,
        machine: &impl Machine<Memory = M>,
        kernel: String,
        batch: usize,
        len: usize,
        mut args: Vec<Arg<'a, M>>,
    ) -> Launch<'a, M> {
        let items = self.items(len);
        let each = (items.next_multiple_of(WARPS) * batch).div_ceil(WARPS_EACH * machine.multiprocessors());
        args.extend([batch, each, items].map(Arg::Int));
        Launch {
            module: Module::Transform,
            kernel,
            grid: [batch.div_ceil(each), items.div_ceil(WARPS), 1],
            threads: WARPS * WARP,
            shared_bytes: WARPS * SHARED_BYTES,
            waits: false,
            args,
        }
    }

    /// `scale A x` of `batch` rows.
    pub(super) fn forward(
        &self,
        machine: &impl Machine<Memory = M>,
        x: &Operand<'_, M>,
        batch: usize,
        to: Spectrum<'_, M>,
    ) -> Result<()> {
        let Spectrum { operand, stride, scale, largest } = to;
        let mut args = self.args(self.whole(), false);
        args.extend([x.arg(), operand.arg(), Arg::Int(stride), Arg::Float(scale)]);
        args.push(largest.map_or(Arg::Null, |largest| largest.arg()));
        let kernel = format!("analyze_{}_{}", x.element.suffix(), operand.element.suffix());
        machine.launch(self.launch(machine, kernel, batch, self.len, args))
    }

    /// `A e_id` within the id's block, `(ids, longest block)` in F32.
    pub(super) fn forward_units(
        &self,
        machine: &impl Machine<Memory = M>,
        rows: &Gather<'_, M>,
    ) -> Result<M> {
        let count = rows.count;
        let longest = self.cut.edge().max(2 * SHORTEST);
        let out = machine.allocate(sizes::elements(&[count, longest, size_of::<f32>()]))?;
        let mut args = self.args(self.whole(), false);
        args.extend([rows.arg(), Arg::Memory(&out, 0)]);
        machine.launch(Launch {
            module: Module::Transform,
            kernel: "analyze_unit".to_owned(),
            grid: [count, 1, 1],
            threads: WARP,
            shared_bytes: SHARED_BYTES,
            waits: false,
            args,
        })?;
        Ok(out)
    }

    /// `y = scale A' sum + addend + bias` in a part of the axis.
    pub(super) fn inverse(
        &self,
        machine: &impl Machine<Memory = M>,
        part: Part,
        sum: &Sum<'_, M>,
        batch: usize,
        to: &Target<'_, M>,
    ) -> Result<()> {
        let mut args = self.args(part, true);
        let offset = sum.offset * sum.element.bytes();
        args.extend([Arg::optional(sum.parts, offset), Arg::Int(sum.splits), Arg::Int(sum.stride)]);
        args.extend(to.args(part.first));
        args.extend([Arg::Int(self.len), Arg::Float(sum.scale)]);
        let kernel = format!("synthesize_{}_{}", sum.element.suffix(), to.y.element.suffix());
        machine.launch(self.launch(machine, kernel, batch, part.len, args))
    }
}

/// `(cols, rows)` from `(rows, stride)`, of which `cols` count, in F32.
pub(super) fn transpose<M>(
    machine: &impl Machine<Memory = M>,
    from: &M,
    rows: usize,
    cols: usize,
    stride: usize,
) -> Result<M> {
    let out = machine.allocate(sizes::elements(&[rows, cols, size_of::<f32>()]))?;
    machine.launch(Launch {
        module: Module::Transform,
        kernel: "transpose_f32".to_owned(),
        grid: [rows.div_ceil(WARP), cols.div_ceil(WARP), 1],
        threads: WARP,
        shared_bytes: WARP * (WARP + 1) * size_of::<f32>(),
        waits: false,
        args: vec![
            Arg::Memory(from, 0),
            Arg::Memory(&out, 0),
            Arg::Int(rows),
            Arg::Int(cols),
            Arg::Int(stride),
        ],
    })?;
    Ok(out)
}

/// Little-endian bytes, as devices have them.
pub(super) fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// Little-endian bytes, as devices have them.
pub(super) fn words(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// A set bit for each negative sign; those of a warp's elements follow the last, which kernels read with it.
fn sign_bits(signs: Signs, len: usize) -> Vec<u8> {
    (0..sign_bytes(len) as u64 / 8).flat_map(|index| signs.word(index).to_le_bytes()).collect()
}

/// Bytes of the signs of so many elements, and of those that follow them.
fn sign_bytes(len: usize) -> usize {
    (len + ELEMENTS).div_ceil(64) * 8
}

/// Whether the DCT of so many elements goes without a matrix.
fn is_fast(len: usize) -> bool {
    len.is_power_of_two() && len >= SHORTEST
}

/// What `FastDct` of `transform.cuh` turns by, real and imaginary parts: of each length the numbers of all lanes side by side.
fn rotations() -> impl Iterator<Item = f32> {
    fn unit(turns: f64) -> [f64; 2] {
        let (im, re) = (-2.0 * PI * turns).sin_cos();
        [re, im]
    }
    let numbers_of = |len: usize| {
        let (points, lanes, quarter) = (len / 2, len / 8, len / 4);
        let norm = (0.5 / len as f64).sqrt();
        let mut numbers = Vec::new();
        // A step of four points turns output `q` of point `m` by `m q`; one of just four points turns nothing.
        let sizes = std::iter::successors(Some(points), |size| Some(size / 4)).take_while(|size| *size > 4);
        for size in sizes {
            let turn = |lane: usize, q: usize| unit((lane % (size / 4) * q) as f64 / size as f64);
            numbers.extend((1..4).flat_map(|q| (0..lanes).map(move |lane| turn(lane, q))));
        }
        // `w_k` and `u_k` of a lane's pairs; lane 0 has in the first's place the turn of the point that is its own partner, and the
        // factor of the two that are real.
        let scaled = |[re, im]: [f64; 2], by: f64| [re * by, im * by];
        let pair = |k: usize, fives: f64| scaled(unit(fives * k as f64 / (4 * len) as f64), norm);
        let alone = [scaled(unit(-1.0 / 16.0), 2.0 * norm), [2.0 * norm * 0.5f64.sqrt(), 0.0]];
        for (fives, alone) in [1.0, 5.0].into_iter().zip(alone) {
            numbers.extend((0..lanes).map(|lane| if lane == 0 { alone } else { pair(lane, fives) }));
        }
        for fives in [1.0, 5.0] {
            let second = |lane| if lane == 0 { quarter / 2 } else { quarter - lane };
            numbers.extend((0..lanes).map(|lane| pair(second(lane), fives)));
        }
        numbers
    };
    let lengths =
        std::iter::successors(Some(SHORTEST), |len| Some(2 * len)).take_while(|len| *len <= ELEMENTS);
    lengths.flat_map(numbers_of).flatten().map(|number| number as f32)
}

/// `m(i, o)` of both directions for each length, from the codec's own transform.
fn matrices<M>(
    machine: &impl Machine<Memory = M>,
    transform: Transform,
    lengths: &[usize],
) -> Result<Matrices<M>> {
    let (mut analysis, mut synthesis) = (Vec::new(), Vec::new());
    for &len in lengths {
        let plan = Plan::new(transform, len);
        let mut scratch = vec![0.0; plan.scratch_len()];
        let mut rows = vec![0.0; len * len];
        for (k, row) in rows.chunks_exact_mut(len).enumerate() {
            row[k] = 1.0;
            plan.inverse(row, &mut scratch); // row k of T is T' e_k
        }
        analysis.extend((0..len * len).map(|n| rows[n % len * len + n / len]));
        synthesis.extend(rows);
    }
    Ok(Matrices {
        analysis: machine.upload(&floats(analysis))?,
        synthesis: machine.upload(&floats(synthesis))?,
    })
}
