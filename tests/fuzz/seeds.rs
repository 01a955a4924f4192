//! Valid payloads to begin with: every term, format and block edge, alone and together, entropy coded and plain.

use super::random::Random;
use candle_rbe::codec::matrix::Orientation;
use candle_rbe::codec::term::planes::{Planes, QuantizedBlock, ScaleGroup};
use candle_rbe::codec::term::sparse::{Entry, FORMATS, Format, Sparse};
use candle_rbe::codec::term::trellis::{QuantizedGroup, Trellis, scale_groups};
use candle_rbe::codec::term::{Basis, Term};
use candle_rbe::codec::{AxisScales, Layout, Matrix, Transform};
use half::f16;

/// A payload and what it holds.
pub(crate) struct Seed {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

const TRANSFORMS: [Transform; 3] = [Transform::Dct, Transform::Haar, Transform::Daubechies4];

/// Rows, columns, block edge: of one element, of one row, of border blocks, of every edge.
const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 32),
    (2, 3, 32),
    (1, 50, 32),
    (40, 35, 32),
    (96, 33, 32),
    (33, 70, 64),
    (64, 64, 64),
    (8, 264, 64),
    (130, 90, 128),
    (16, 17, 256),
    (257, 40, 256),
    (7, 300, 256),
];

/// One coefficient in `every`, none in each fifth block.
fn sparse(layout: Layout, format: Format, every: usize, random: &mut Random) -> Term {
    let blocks: Vec<Vec<Entry>> = layout
        .iter()
        .map(|block| {
            if block.index % 5 == 4 {
                return vec![];
            }
            let kept: Vec<usize> =
                (0..block.len()).filter(|_| random.below(every) == 0).take(65_535).collect();
            let entry = |n: usize| {
                let (row, col) = (n / block.width, n % block.width);
                Entry { row: row as u8, col: col as u8, value: random.gauss() }
            };
            kept.into_iter().map(entry).collect()
        })
        .collect();
    Term::Sparse(Sparse::pack(layout, format, &blocks).expect("entries in order"))
}

/// Up to `most` planes; `narrow` codes are the better to code.
fn planes(layout: Layout, group: ScaleGroup, most: u8, narrow: bool, random: &mut Random) -> Term {
    let blocks: Vec<_> = layout
        .iter()
        .map(|block| {
            let planes =
                if block.index % 7 == 6 { 0 } else { most - (block.index % usize::from(most)) as u8 };
            let half = f32::from(1u16 << planes) / 2.0;
            let spread = if narrow { half / 8.0 } else { half };
            let scales = if group == ScaleGroup::Row { block.height } else { 1 };
            let code = |_| (half + spread * random.gauss()).clamp(0.0, 2.0 * half - 1.0) as u8;
            let codes = (0..block.len()).map(code).collect();
            let scales = (0..scales).map(|n| f16::from_f32(0.1 + 0.01 * n as f32)).collect();
            QuantizedBlock { planes, scales, codes }
        })
        .collect();
    Term::Planes(Planes::pack(layout, group, 0.125, &blocks))
}

fn basis(layout: Layout, half: bool, random: &mut Random) -> Term {
    let theta: Vec<[f32; 8]> =
        (0..layout.blocks()).map(|_| std::array::from_fn(|_| random.gauss())).collect();
    Term::Basis(Basis::new(layout, &theta, half))
}

/// Scale groups of so many bits, or of 0 to 4 in turn.
fn trellis(layout: Layout, state_bits: u8, bits: Option<u8>, random: &mut Random) -> Term {
    let scale_group = |index: usize, len: usize| {
        let bits = bits.unwrap_or([3, 1, 4, 2, 0][index % 5]);
        let codes = if bits == 0 { 0 } else { len };
        let mask = ((1u16 << bits) - 1) as u8;
        let codes = (0..codes).map(|_| random.next() as u8 & mask).collect();
        QuantizedGroup { bits, scale: f16::from_f32(0.5), codes }
    };
    let mut scale_group = scale_group;
    let all: Vec<_> = scale_groups(layout).map(|place| scale_group(place.index, place.len())).collect();
    Term::Trellis(Trellis::pack(layout, state_bits, 0.007_812_5, &all))
}

/// The sums of terms that a matrix of this layout is made of.
fn sums(layout: Layout, random: &mut Random) -> Vec<(String, Vec<Term>)> {
    let mut sums = vec![];
    for format in FORMATS.into_iter().filter(|format| format.allows(layout.block())) {
        sums.push((format!("sparse {format:?}"), vec![sparse(layout, format, 6, random)]));
        let few = sparse(layout, format, 20, random);
        sums.push((format!("basis + sparse {format:?}"), vec![basis(layout, true, random), few]));
    }
    for group in [ScaleGroup::Block, ScaleGroup::Row] {
        for (most, narrow) in [(1, true), (3, true), (8, true), (4, false)] {
            sums.push((format!("planes {group:?}"), vec![planes(layout, group, most, narrow, random)]));
        }
    }
    for half in [true, false] {
        sums.push(("basis".into(), vec![basis(layout, half, random)]));
    }
    for state_bits in 12..=16 {
        sums.push(("trellis".into(), vec![trellis(layout, state_bits, None, random)]));
    }
    for bits in 1..=4 {
        sums.push(("trellis".into(), vec![trellis(layout, 12 + bits, Some(bits), random)]));
    }
    let two = [(12, 4), (14, 1)].map(|(states, bits)| trellis(layout, states, Some(bits), random));
    sums.push(("two trellises".into(), two.to_vec()));
    let all = vec![
        basis(layout, false, random),
        sparse(layout, Format::Word32, 30, random),
        planes(layout, ScaleGroup::Row, 3, true, random),
        trellis(layout, 13, None, random),
        trellis(layout, 16, None, random),
    ];
    sums.push(("all".into(), all));
    sums
}

/// Scales over up to six octaves.
fn scales(len: usize, random: &mut Random) -> Option<AxisScales> {
    AxisScales::new(&(0..len).map(|_| (random.below(7) as f32).exp2()).collect::<Vec<_>>())
}

/// Payloads of at most `most` bytes, and two that are large enough for several chunks and packed codes.
pub(crate) fn seeds(random: &mut Random, most: usize) -> Vec<Seed> {
    let mut seeds = vec![];
    let mut n = 0;
    for (rows, cols, edge) in SHAPES {
        let layout = Layout::new(rows, cols, edge).expect("a valid shape");
        for (name, terms) in sums(layout, random) {
            n += 1;
            let view = match n % 3 {
                0 => Orientation::Transposed,
                _ if rows == 1 && n % 2 == 0 => Orientation::Vector,
                _ => Orientation::Matrix,
            };
            let signs = (n % 2 == 0).then_some(0x1234_5678_9abc_def0 + n as u64);
            let mut matrix = Matrix::new(layout, TRANSFORMS[n % 3], signs, terms, 0.125);
            if n % 4 < 2 {
                matrix =
                    matrix.with_scales(scales(rows, random), scales(cols, random).filter(|_| n % 4 == 1));
            }
            let (coded, plain) = (matrix.to_bytes(view), matrix.to_plain_bytes(view));
            let own = |form: &str| format!("{name}, {rows}x{cols} by {edge}, {form}");
            if coded != plain && coded.len() <= most {
                seeds.push(Seed { name: own("coded"), bytes: coded });
            }
            if plain.len() <= most {
                seeds.push(Seed { name: own("plain"), bytes: plain });
            }
        }
    }
    for (rows, cols, edge, most) in [(515, 517, 128, 1), (512, 513, 256, 2)] {
        let layout = Layout::new(rows, cols, edge).expect("a valid shape");
        for term in [
            planes(layout, ScaleGroup::Block, most, true, random),
            sparse(layout, Format::Word32, 10, random),
        ] {
            let name = format!("{} in chunks", term.name());
            let matrix = Matrix::new(layout, Transform::Dct, Some(3), vec![term], 0.125);
            seeds.push(Seed { name, bytes: matrix.to_bytes(Orientation::Matrix) });
        }
    }
    seeds
}
