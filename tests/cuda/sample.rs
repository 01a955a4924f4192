//! Matrices of every term, format, transform and border, drawn at random.

use candle_rbe::Transform;
use candle_rbe::codec::term::planes::{QuantizedBlock, ScaleGroup};
use candle_rbe::codec::term::sparse::{Entry, FORMATS, Format};
use candle_rbe::codec::term::trellis::{QuantizedGroup, scale_groups};
use candle_rbe::codec::term::{Basis, Planes, Sparse, Term, Trellis};
use candle_rbe::codec::{AxisScales, Layout, Matrix};
use half::f16;

/// The same numbers at every run.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub(crate) fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// In `-1..1`.
    pub(crate) fn value(&mut self) -> f32 {
        (self.bits() >> 7) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }

    fn below(&mut self, end: u32) -> u32 {
        self.bits() % end
    }

    fn scale(&mut self) -> f16 {
        f16::from_f32(0.5 + 0.5 * self.value().abs())
    }
}

/// Which terms a matrix has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Terms {
    Planes(ScaleGroup),
    /// With so many bits of state.
    Trellis(u8),
    /// With a share of `1 / n` of the coefficients.
    Sparse(Format, usize),
    Basis,
    /// A basis, sparse and planes term.
    All,
    /// A sparse and a trellis term.
    Adapter,
}

pub(crate) const TRANSFORMS: [Transform; 3] = [Transform::Dct, Transform::Haar, Transform::Daubechies4];

/// Rows, columns, block edge: borders of all kinds, sides shorter than a block, columns of 1 to 9 pieces.
pub(crate) const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 32),
    (33, 70, 32),
    (64, 64, 32),
    (100, 259, 64),
    (172, 64, 64),
    (1, 300, 64),
    (300, 259, 128),
    (96, 130, 128),
    (257, 300, 256),
    (250, 96, 256),
    (512, 512, 256),
    (160, 31, 256),
];

pub(crate) fn all_terms() -> Vec<Terms> {
    let mut all = vec![Terms::Basis, Terms::All, Terms::Adapter];
    all.extend([ScaleGroup::Block, ScaleGroup::Row].map(Terms::Planes));
    all.extend([12, 13, 16].map(Terms::Trellis));
    all.extend(FORMATS.iter().flat_map(|format| [3, 40].map(|share| Terms::Sparse(*format, share))));
    all
}

/// `None` where a format does not allow the edge.
pub(crate) fn matrix(
    (rows, cols, edge): (usize, usize, usize),
    terms: Terms,
    transform: Transform,
    signs: bool,
) -> Option<Matrix> {
    let layout = Layout::new(rows, cols, edge).unwrap();
    let mut noise = Noise::new((rows * 1009 + cols * 31 + edge) as u64);
    let terms = match terms {
        Terms::Planes(group) => vec![planes(layout, group, &mut noise)],
        Terms::Trellis(states) => vec![any_trellis(layout, states, &mut noise)],
        Terms::Sparse(format, share) => vec![sparse(layout, format, share, &mut noise)?],
        Terms::Basis => vec![basis(layout, true, &mut noise)],
        Terms::All => vec![
            basis(layout, false, &mut noise),
            sparse(layout, Format::Word32, 9, &mut noise)?,
            planes(layout, ScaleGroup::Block, &mut noise),
        ],
        Terms::Adapter => {
            vec![
                sparse(layout, Format::RowMask, 5, &mut noise)?,
                any_trellis(layout, 12, &mut noise),
                any_trellis(layout, 14, &mut noise),
            ]
        }
    };
    let matrix = Matrix::new(layout, transform, signs.then_some(7), terms, 0.5);
    // Over two octaves, where there are signs and an even number of columns.
    let scales = |len: usize| {
        AxisScales::new(
            &(0..len).map(|n| (2.0 * (n * 5 % len) as f32 / len as f32).exp2()).collect::<Vec<_>>(),
        )
    };
    let scaled = signs && layout.cols().is_multiple_of(2);
    Some(if scaled { matrix.with_scales(scales(layout.rows()), scales(layout.cols())) } else { matrix })
}

/// Blocks of every number of planes.
fn planes(layout: Layout, group: ScaleGroup, noise: &mut Noise) -> Term {
    let first = noise.below(9);
    let blocks: Vec<_> = layout
        .iter()
        .map(|block| {
            let planes = ((block.index as u32 * 5 + first) % 9) as u8;
            let scales = if group == ScaleGroup::Row { block.height } else { 1 };
            QuantizedBlock {
                planes,
                scales: (0..scales).map(|_| noise.scale()).collect(),
                codes: (0..block.len()).map(|_| (noise.bits() & ((1 << planes) - 1)) as u8).collect(),
            }
        })
        .collect();
    Term::Planes(Planes::pack(layout, group, 0.25, &blocks))
}

/// Scale groups with each the bits that `bits` says of its number.
pub(crate) fn trellis(layout: Layout, states: u8, bits: impl Fn(usize) -> u8, noise: &mut Noise) -> Term {
    let scale_groups: Vec<_> = scale_groups(layout)
        .map(|scale_group| {
            let bits = bits(scale_group.index);
            let count = if bits == 0 { 0 } else { scale_group.len() };
            let codes = (0..count).map(|_| (noise.bits() & ((1 << bits) - 1)) as u8).collect();
            QuantizedGroup { bits, scale: noise.scale(), codes }
        })
        .collect();
    Term::Trellis(Trellis::pack(layout, states, 0.125, &scale_groups))
}

/// Scale groups of every number of bits.
fn any_trellis(layout: Layout, states: u8, noise: &mut Noise) -> Term {
    let first = noise.below(5);
    trellis(layout, states, |index| ((index as u32 * 3 + first) % 5) as u8, noise)
}

fn sparse(layout: Layout, format: Format, share: usize, noise: &mut Noise) -> Option<Term> {
    let blocks: Vec<_> = layout
        .iter()
        .map(|block| {
            let mut entries = Vec::new();
            for n in 0..block.len() {
                if (noise.below(share as u32) == 0 || n == 0) && entries.len() < 65535 {
                    let (row, col) = ((n / block.width) as u8, (n % block.width) as u8);
                    entries.push(Entry { row, col, value: noise.value() });
                }
            }
            // Now and then a block without any.
            if block.index % 4 == 3 { Vec::new() } else { entries }
        })
        .collect();
    Sparse::pack(layout, format, &blocks).ok().map(Term::Sparse)
}

fn basis(layout: Layout, half: bool, noise: &mut Noise) -> Term {
    let theta: Vec<_> = layout.iter().map(|_| std::array::from_fn(|_| noise.value())).collect();
    Term::Basis(Basis::new(layout, &theta, half))
}
