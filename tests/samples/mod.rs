//! Terms made by hand, for tests that need one of a kind. What they hold a rule says, of a block or scale group and the number of
//! an element in it.
#![allow(dead_code)] // No test needs all of them.

use candle_rbe::codec::term::planes::{Planes, QuantizedBlock, ScaleGroup};
use candle_rbe::codec::term::sparse::{Entry, Format, Sparse};
use candle_rbe::codec::term::trellis::{QuantizedGroup, Trellis, scale_groups};
use candle_rbe::codec::term::{Basis, Term};
use candle_rbe::codec::{Block, Layout};
use half::f16;

/// A layout that is right.
pub(crate) fn layout(rows: usize, cols: usize, block: usize) -> Layout {
    Layout::new(rows, cols, block).unwrap()
}

/// Eight parameters a block, one after another.
pub(crate) fn basis(layout: Layout, half: bool, mut parameter: impl FnMut() -> f32) -> Term {
    let block = |_| std::array::from_fn(|_| parameter());
    Term::Basis(Basis::new(layout, &layout.iter().map(block).collect::<Vec<_>>(), half))
}

/// The elements that the rule gives a value, up to as many as a block may have; `None` where the format does not allow the blocks.
pub(crate) fn sparse(
    layout: Layout,
    format: Format,
    mut value: impl FnMut(Block, usize) -> Option<f32>,
) -> Option<Term> {
    let mut block = |block: Block| {
        let entry = |n: usize| {
            let (row, col) = ((n / block.width) as u8, (n % block.width) as u8);
            value(block, n).map(|value| Entry { row, col, value })
        };
        (0..block.len()).filter_map(entry).take(u16::MAX.into()).collect::<Vec<_>>()
    };
    let blocks: Vec<_> = layout.iter().map(&mut block).collect();
    Sparse::pack(layout, format, &blocks).ok().map(Term::Sparse)
}

/// What quantised numbers are made of: how many bits a place has, its scales, and each element's code, cut to those bits.
pub(crate) struct Rules<Bits, Scale, Code> {
    pub(crate) unit: f32,
    pub(crate) bits: Bits,
    /// Of each scale of a block, or the one of a scale group.
    pub(crate) scale: Scale,
    pub(crate) code: Code,
}

/// The lowest bits of a code.
fn cut(code: u8, bits: u8) -> u8 {
    code & ((1u16 << bits) - 1) as u8
}

/// Bit-planes by these rules.
pub(crate) fn planes(
    layout: Layout,
    group: ScaleGroup,
    mut rules: Rules<
        impl FnMut(Block) -> u8,
        impl FnMut(Block, usize) -> f16,
        impl FnMut(Block, usize) -> u8,
    >,
) -> Term {
    let mut block = |block: Block| {
        let planes = (rules.bits)(block);
        let scales = if group == ScaleGroup::Row { block.height } else { 1 };
        QuantizedBlock {
            planes,
            scales: (0..scales).map(|n| (rules.scale)(block, n)).collect(),
            codes: (0..block.len()).map(|n| cut((rules.code)(block, n), planes)).collect(),
        }
    };
    Term::Planes(Planes::pack(layout, group, rules.unit, &layout.iter().map(&mut block).collect::<Vec<_>>()))
}

/// A trellis by these rules.
pub(crate) fn trellis(
    layout: Layout,
    state_bits: u8,
    mut rules: Rules<
        impl FnMut(Block) -> u8,
        impl FnMut(Block, usize) -> f16,
        impl FnMut(Block, usize) -> u8,
    >,
) -> Term {
    let mut scale_group = |place: Block| {
        let bits = (rules.bits)(place);
        let count = if bits == 0 { 0 } else { place.len() };
        QuantizedGroup {
            bits,
            scale: (rules.scale)(place, 0),
            codes: (0..count).map(|n| cut((rules.code)(place, n), bits)).collect(),
        }
    };
    let all: Vec<_> = scale_groups(layout).map(&mut scale_group).collect();
    Term::Trellis(Trellis::pack(layout, state_bits, rules.unit, &all))
}
