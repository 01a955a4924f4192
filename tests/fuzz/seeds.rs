//! Valid payloads to begin with: every term, format and block edge, alone and together, entropy coded and plain.

use super::random::Random;
use super::samples::{self, Rules};
use candle_rbe::codec::matrix::Orientation;
use candle_rbe::codec::term::Term;
use candle_rbe::codec::term::planes::ScaleGroup;
use candle_rbe::codec::term::sparse::{FORMATS, Format};
use candle_rbe::codec::{AxisScales, Block, Layout, Matrix, Transform};
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
    let kept = |block: Block, _| (block.index % 5 != 4 && random.below(every) == 0).then(|| random.gauss());
    samples::sparse(layout, format, kept).expect("a format that allows the blocks")
}

/// Up to `most` planes; `narrow` codes are the better to code.
fn planes(layout: Layout, group: ScaleGroup, most: u8, narrow: bool, random: &mut Random) -> Term {
    let bits = |block: Block| match block.index % 7 {
        6 => 0,
        _ => most - (block.index % usize::from(most)) as u8,
    };
    let code = |block: Block, _| {
        let half = f32::from(1u16 << bits(block)) / 2.0;
        let spread = if narrow { half / 8.0 } else { half };
        (half + spread * random.gauss()).clamp(0.0, 2.0 * half - 1.0) as u8
    };
    let rules = Rules { unit: 0.125, bits, scale: |_, n| f16::from_f32(0.1 + 0.01 * n as f32), code };
    samples::planes(layout, group, rules)
}

/// Scale groups of so many bits, or of 0 to 4 in turn.
fn trellis(layout: Layout, state_bits: u8, bits: Option<u8>, random: &mut Random) -> Term {
    let rules = Rules {
        unit: 0.007_812_5,
        bits: |place: Block| bits.unwrap_or([3, 1, 4, 2, 0][place.index % 5]),
        scale: |_, _| f16::from_f32(0.5),
        code: |_, _| random.next() as u8,
    };
    samples::trellis(layout, state_bits, rules)
}

/// The sums of terms that a matrix of this layout is made of.
fn sums(layout: Layout, random: &mut Random) -> Vec<(String, Vec<Term>)> {
    let mut sums = vec![];
    for format in FORMATS.into_iter().filter(|format| format.allows(layout.block())) {
        sums.push((format!("sparse {format:?}"), vec![sparse(layout, format, 6, random)]));
        let few = sparse(layout, format, 20, random);
        sums.push((
            format!("basis + sparse {format:?}"),
            vec![samples::basis(layout, true, || random.gauss()), few],
        ));
    }
    for group in [ScaleGroup::Block, ScaleGroup::Row] {
        for (most, narrow) in [(1, true), (3, true), (8, true), (4, false)] {
            sums.push((format!("planes {group:?}"), vec![planes(layout, group, most, narrow, random)]));
        }
    }
    for half in [true, false] {
        sums.push(("basis".into(), vec![samples::basis(layout, half, || random.gauss())]));
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
        samples::basis(layout, false, || random.gauss()),
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
