//! Sparse products from entry to entry, and those of batches in lanes.

use crate::codec::Block;
use crate::cpu::kernels::isa::Isa;
use crate::cpu::layout::sparse::{CHUNK_ROWS, PackedSparse};
use crate::cpu::layout::{Input, LANES, LaneInput, Lanes, Place, SortedEntries};

/// Slots of a slice that are unpacked together.
const SLOTS_AT_ONCE: usize = 8;

/// `acc += S x` for one block, or `acc += S' g` when transposed: a few entries unpacked at a time, then vector by vector.
#[inline(always)]
pub(in crate::cpu) fn product<I: Isa, const TRANSPOSED: bool>(
    term: &PackedSparse,
    block: Block,
    input: Input,
    acc: &mut [f32],
) {
    let (in_len, out_len) =
        if TRANSPOSED { (block.height, block.width) } else { (block.width, block.height) };
    let (format, scale) = (term.format(), term.scale(block));
    let mut entries = [(Place { to: 0, from: 0 }, 0f32); SLOTS_AT_ONCE * CHUNK_ROWS];
    for chunk in term.chunks(block) {
        let (mut cols, mut fields) = (chunk.cols, chunk.fields);
        for masks in chunk.masks.chunks(SLOTS_AT_ONCE) {
            let mut count = 0;
            for mask in masks {
                let mut mask = *mask;
                while mask != 0 {
                    let row = chunk.row as u8 + mask.trailing_zeros() as u8;
                    let place = Place::new(row, cols[count], TRANSPOSED);
                    entries[count] = (place, format.value(fields[count], scale));
                    count += 1;
                    mask &= mask - 1;
                }
            }
            (cols, fields) = (&cols[count..], &fields[count..]);
            for (vector, acc) in acc.chunks_exact_mut(out_len).enumerate() {
                let x = input.vector(vector, in_len);
                for (Place { to, from }, value) in &entries[..count] {
                    let acc = &mut acc[usize::from(*to)];
                    *acc = I::multiply_add(*value, x[usize::from(*from)], *acc);
                }
            }
        }
    }
}

/// `acc[to] += sum of value * x[from]` over the entries that go there, in every lane; `acc` holds groups `stride` apart.
#[inline(always)]
pub(in crate::cpu) fn spmm<I: Isa>(entries: &SortedEntries, x: LaneInput, acc: &mut [Lanes], stride: usize) {
    let mut group = 0;
    while group < x.groups {
        let (x_lanes, acc) = (&x.lanes[group * x.stride..], &mut acc[group * stride..]);
        group += match x.groups - group {
            4.. => spmm_groups::<I, 4>(entries, x_lanes, x.stride, acc, stride),
            2.. => spmm_groups::<I, 2>(entries, x_lanes, x.stride, acc, stride),
            _ => spmm_groups::<I, 1>(entries, x_lanes, x.stride, acc, stride),
        };
    }
}

/// `COUNT` groups, whose sums stay in registers from one entry to the next; how many they were.
#[inline(always)]
fn spmm_groups<I: Isa, const COUNT: usize>(
    entries: &SortedEntries,
    x: &[Lanes],
    x_stride: usize,
    acc: &mut [Lanes],
    stride: usize,
) -> usize {
    for (to, entries) in entries.by_target() {
        let mut sums = [Lanes::ZERO; COUNT];
        for group in 0..COUNT {
            sums[group] = acc[group * stride + to];
        }
        for (from, value) in entries {
            for group in 0..COUNT {
                let x = &x[group * x_stride + *from as usize];
                for lane in 0..LANES {
                    sums[group].0[lane] = I::multiply_add(*value, x.0[lane], sums[group].0[lane]);
                }
            }
        }
        for group in 0..COUNT {
            acc[group * stride + to] = sums[group];
        }
    }
    COUNT
}

/// `sums[n] += sum over all lanes of a[to] * b[from]` for every place.
#[inline(always)]
pub(in crate::cpu) fn sddmm<I: Isa>(places: &[Place], a: LaneInput, b: LaneInput, sums: &mut [f32]) {
    for (place, sum) in places.iter().zip(sums) {
        let mut lanes = [0f32; LANES];
        for group in 0..a.groups {
            let a = &a.lanes[group * a.stride + usize::from(place.to)];
            let b = &b.lanes[group * b.stride + usize::from(place.from)];
            for (lane, (a, b)) in lanes.iter_mut().zip(a.0.iter().zip(&b.0)) {
                *lane = I::multiply_add(*a, *b, *lane);
            }
        }
        *sum += lanes.iter().sum::<f32>();
    }
}
