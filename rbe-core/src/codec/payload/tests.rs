//! Every field of a payload, damaged: each is refused for its own reason, and nothing panics.

use super::*;
use crate::codec::term::basis::Basis;
use crate::codec::term::planes::{Planes, QuantizedBlock, ScaleGroup};
use crate::codec::term::sparse::{Entry, FORMATS, Format, Sparse};
use crate::codec::term::trellis::{QuantizedGroup, Trellis, scale_groups};
use half::f16;
use proptest::prelude::*;

fn sparse(layout: Layout, format: Format) -> Term {
    let blocks: Vec<Vec<Entry>> = layout
        .iter()
        .map(|block| {
            let entry = |n: usize| Entry {
                row: (n / block.width) as u8,
                col: (n % block.width) as u8,
                value: 1.0 + n as f32,
            };
            (1..block.len()).step_by(7).map(entry).collect()
        })
        .collect();
    Term::Sparse(Sparse::pack(layout, format, &blocks).unwrap())
}

fn planes(layout: Layout, group: ScaleGroup) -> Term {
    let blocks: Vec<_> = layout
        .iter()
        .map(|block| QuantizedBlock {
            planes: 3,
            scales: vec![f16::from_f32(0.5); group.scales_in(block)],
            codes: (0..block.len()).map(|n| (n % 8) as u8).collect(),
        })
        .collect();
    Term::Planes(Planes::pack(layout, group, 1.0, &blocks))
}

fn basis(layout: Layout, half: bool) -> Term {
    Term::Basis(Basis::new(layout, &vec![[0.25; 8]; layout.blocks()], half))
}

/// Scale groups with 3, 1, 4 and 2 bits.
fn trellis(layout: Layout) -> Term {
    let scale_groups: Vec<_> = scale_groups(layout)
        .map(|scale_group| {
            let bits = [3, 1, 4, 2][scale_group.index % 4];
            let code = |n: usize| (n * n / 3) as u8 & ((1 << bits) - 1);
            QuantizedGroup {
                bits,
                scale: f16::from_f32(0.5),
                codes: (0..scale_group.len()).map(code).collect(),
            }
        })
        .collect();
    Term::Trellis(Trellis::pack(layout, 13, 1.0, &scale_groups))
}

/// Blocks of 32 and 40 rows by 32 and 35 columns: all four sizes, and widths that leave padding bits.
fn layout() -> Layout {
    Layout::new(72, 67, 32).unwrap()
}

fn matrix(terms: Vec<Term>) -> Matrix {
    Matrix::new(layout(), Transform::Haar, Some(9), terms, 0.125)
}

fn payload(terms: Vec<Term>) -> Vec<u8> {
    matrix(terms).to_plain_bytes(Orientation::Matrix)
}

/// Where the first term begins.
const TERMS: usize = HEADER_BYTES;

/// Sets bytes and makes the checksum right again, so that the field itself is judged.
fn altered(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
    bytes[at..at + new.len()].copy_from_slice(new);
    sealed(bytes)
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = bytes.len() - CHECKSUM_BYTES;
    let checksum = crc32fast::hash(&bytes[..body]);
    bytes[body..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[track_caller]
fn refused(bytes: &[u8], reason: &str) {
    match from_bytes(bytes) {
        Ok(_) => panic!("accepted; expected {reason:?}"),
        Err(error) => assert!(error.to_string().contains(reason), "{error} does not say {reason:?}"),
    }
}

#[test]
fn every_term_comes_back_as_it_was() {
    let layout = layout();
    let mut all: Vec<Vec<Term>> = FORMATS.iter().map(|format| vec![sparse(layout, *format)]).collect();
    all.push(vec![basis(layout, true), planes(layout, ScaleGroup::Row)]);
    all.push(vec![basis(layout, false), sparse(layout, Format::Word32), planes(layout, ScaleGroup::Block)]);
    all.push(vec![trellis(layout)]);
    all.push(vec![trellis(layout), trellis(layout)]);
    all.push(vec![sparse(layout, Format::RowMask), planes(layout, ScaleGroup::Row), trellis(layout)]);
    let scales = |len: usize| AxisScales::new(&(1..=len).map(|n| n as f32).collect::<Vec<_>>());
    for (n, terms) in all.into_iter().enumerate() {
        for (seed, view) in [(None, Orientation::Matrix), (Some(7), Orientation::Transposed)] {
            let matrix = Matrix::new(layout, Transform::Daubechies4, seed, terms.clone(), 0.5).with_scales(
                scales(layout.rows()).filter(|_| n % 4 > 1),
                scales(layout.cols()).filter(|_| n % 2 == 1),
            );
            let (coded, plain) = (matrix.to_bytes(view), matrix.to_plain_bytes(view));
            assert_eq!((coded.len(), plain.len()), (matrix.size_in_bytes(), matrix.plain_size_in_bytes()));
            assert!(coded.len() <= plain.len());
            for bytes in [&coded, &plain] {
                let (back, back_view) = from_bytes(bytes).unwrap();
                assert_eq!(back.terms(), terms);
                assert_eq!(
                    (back.layout(), back.transform(), back.seed()),
                    (layout, Transform::Daubechies4, seed)
                );
                assert_eq!((back.relative_error(), back_view), (0.5, view));
                assert_eq!(back.decode(), matrix.decode());
                assert_eq!((back.to_bytes(view), back.to_plain_bytes(view)), (coded.clone(), plain.clone()));
            }
        }
    }
}

#[test]
fn the_bytes_of_version_2_do_not_change() {
    // Files are forever: a change of these sums is a change of the format and needs a new version.
    let layout = layout();
    let sums = [
        (vec![basis(layout, true), sparse(layout, Format::Word32)], 798_652_151),
        (vec![sparse(layout, Format::Word24)], 3_202_218_996),
        (vec![sparse(layout, Format::Word24Mu)], 1_199_838_874),
        (vec![sparse(layout, Format::RowMask)], 3_547_468_809),
        (vec![basis(layout, false), planes(layout, ScaleGroup::Row)], 3_560_530_313),
        (vec![trellis(layout)], 3_159_662_192),
    ];
    let found = sums.clone().map(|(terms, _)| {
        let bytes = payload(terms);
        crc32fast::hash(&bytes[..bytes.len() - CHECKSUM_BYTES])
    });
    assert_eq!(found, sums.map(|(_, sum)| sum));
}

#[test]
fn planes_cut_short_are_a_prefix_of_the_whole() {
    // On disk plane 0 of all blocks comes first: the first planes are the first bytes.
    let layout = Layout::new(64, 64, 32).unwrap();
    let matrix = Matrix::new(layout, Transform::Dct, Some(1), vec![planes(layout, ScaleGroup::Block)], 0.0);
    let whole = matrix.to_plain_bytes(Orientation::Matrix);
    let cut = matrix.truncate_planes(2).unwrap().to_plain_bytes(Orientation::Matrix);
    let data = TERMS + 1 + 1 + 4 + layout.blocks() + 2 * layout.blocks();
    let plane_bytes = layout.elements() / 8;
    assert_eq!(whole.len(), data + 3 * plane_bytes + CHECKSUM_BYTES);
    assert_eq!(cut.len(), data + 2 * plane_bytes + CHECKSUM_BYTES);
    assert_eq!(whole[data..data + 2 * plane_bytes], cut[data..data + 2 * plane_bytes]);
}

#[test]
fn every_truncation_is_refused() {
    let bytes = payload(vec![basis(layout(), true), sparse(layout(), Format::RowMask)]);
    for len in 0..bytes.len() {
        assert!(from_bytes(&bytes[..len]).is_err(), "{len} bytes");
    }
    // Also with a checksum that fits.
    for len in HEADER_BYTES + CHECKSUM_BYTES..bytes.len() {
        refused(&sealed(bytes[..len].to_vec()), "are left");
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    let bytes = payload(vec![sparse(layout(), Format::Word24)]);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            assert!(from_bytes(&damaged).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn header_fields_are_checked() {
    let bytes = || payload(vec![sparse(layout(), Format::Word32)]);
    refused(&altered(bytes(), 0, b"GGUF"), "does not begin with RBET");
    refused(&altered(bytes(), 4, &[1, 0]), "version 1; this build reads version 2");
    refused(&altered(bytes(), 4, &[3, 0]), "version 3; this build reads version 2");
    refused(&altered(bytes(), 6, &[3]), "unknown orientation 3");
    refused(&altered(bytes(), 6, &[0]), "a vector with 72 rows");
    refused(&altered(bytes(), 7, &[9]), "unknown transform 9");
    refused(&altered(bytes(), 8, &[0; 4]), "no elements");
    refused(&altered(bytes(), 8, &[0xff; 8]), "too large");
    refused(&altered(bytes(), 16, &[48, 0]), "block edge 48");
    refused(&altered(bytes(), 18, &[9]), "unknown flags 0x09");
    refused(&altered(bytes(), 18, &[0]), "a seed without random signs");
    refused(&altered(bytes(), 19, &[2]), "term code need 1 bytes");
    refused(&altered(bytes(), 19, &[0]), "no terms");
    refused(&altered(bytes(), 28, &f32::NAN.to_le_bytes()), "relative error NaN");
    refused(&altered(bytes(), 28, &(-1f32).to_le_bytes()), "relative error -1");
    refused(&altered(bytes(), 32, &f32::INFINITY.to_le_bytes()), "worst row's error inf");
    refused(&altered(bytes(), 36, &(-1f32).to_le_bytes()), "worst block's error -1");
}

#[test]
fn scales_are_checked() {
    let scales = |len: usize| AxisScales::new(&(1..=len).map(|n| n as f32).collect::<Vec<_>>());
    let bytes = || {
        let matrix = matrix(vec![sparse(layout(), Format::Word32)]).with_scales(scales(72), scales(67));
        matrix.to_plain_bytes(Orientation::Matrix)
    };
    assert_eq!(bytes()[18], SIGNS | ROW_SCALES | COL_SCALES);
    // A step and 36 bytes for 72 rows, a step and 34 for 67 columns: the last half byte belongs to none.
    refused(&altered(bytes(), 40, &[0]), "row scales of step 0, which must be 1 to 64");
    refused(&altered(bytes(), 40, &[65]), "row scales of step 65");
    refused(&altered(bytes(), 40 + 37, &[0]), "column scales of step 0");
    let last = 40 + 37 + 34;
    refused(&altered(bytes(), last, &[bytes()[last] | 0x10]), "with a code after the last");
    refused(&altered(bytes(), 18, &[8]), "unknown flags 0x08");
    let (back, _) = from_bytes(&bytes()).unwrap();
    assert_eq!(
        (back.axes().rows.scales(), back.axes().cols.scales()),
        (scales(72).as_ref(), scales(67).as_ref())
    );
}

#[test]
fn a_huge_matrix_needs_the_bytes_to_back_it() {
    // Four billion rows declared over a few hundred bytes: refused before anything is allocated for them.
    for term in [sparse(layout(), Format::Word32), planes(layout(), ScaleGroup::Row), trellis(layout())] {
        let bytes = payload(vec![term]);
        let with_rows = |rows: u32| altered(bytes.clone(), 8, &[rows.to_le_bytes(), [1, 0, 0, 0]].concat());
        refused(&with_rows(u32::MAX), "8192 more for each byte");
        refused(&with_rows(1 << 24), "are left");
    }
}

#[test]
fn terms_are_checked() {
    let term = |code: u8| altered(payload(vec![sparse(layout(), Format::Word32)]), TERMS, &[code]);
    refused(&term(77), "unknown term 77");
    let mut trailing = payload(vec![sparse(layout(), Format::Word32)]);
    trailing.push(0);
    refused(&sealed(trailing), "1 bytes follow the last term");
    let sparse = || sparse(layout(), Format::Word32);
    refused(&glued(&[sparse(), sparse()]), "terms repeat or are out of order");
    let trellises = |count| glued(&vec![trellis(layout()); count]);
    assert!(Matrix::from_bytes(&trellises(2)).is_ok());
    refused(&trellises(3), "terms repeat or are out of order");
    refused(&glued(&[trellis(layout()), sparse()]), "out of order");
}

/// A payload of these terms one after another, as no [`Matrix`] may hold them.
fn glued(terms: &[Term]) -> Vec<u8> {
    let one = |term: &Term| payload(vec![term.clone()]);
    let mut bytes = one(&terms[0])[..TERMS].to_vec();
    bytes[19] = terms.len() as u8;
    terms.iter().map(one).for_each(|one| bytes.extend(&one[TERMS..one.len() - CHECKSUM_BYTES]));
    bytes.extend([0; CHECKSUM_BYTES]);
    sealed(bytes)
}

#[test]
fn basis_fields_are_checked() {
    let bytes = |half| payload(vec![basis(layout(), half)]);
    refused(&altered(bytes(true), TERMS + 1, &[2]), "unknown basis precision 2");
    refused(&altered(bytes(true), TERMS + 2, &3f32.to_le_bytes()), "basis unit is 3, not a power of two");
    refused(&altered(bytes(true), TERMS + 2, &2f32.powi(120).to_le_bytes()), "would overflow");
    refused(&altered(bytes(true), TERMS + 6, &f16::NAN.to_le_bytes()), "basis parameters hold NaN");
    refused(&altered(bytes(false), TERMS + 2, &f32::INFINITY.to_le_bytes()), "basis parameters hold inf");
}

#[test]
fn sparse_fields_are_checked() {
    let blocks = layout().blocks();
    let bytes = |format| payload(vec![sparse(layout(), format)]);
    let words = TERMS + 6 + 2 * blocks;
    refused(&altered(bytes(Format::Word32), TERMS + 1, &[4]), "unknown sparse format 4");
    refused(&altered(bytes(Format::Word32), TERMS + 2, &0f32.to_le_bytes()), "sparse unit is 0");
    refused(&altered(bytes(Format::Word32), TERMS + 6, &[0xff, 0xff]), "are left");
    refused(&altered(bytes(Format::Word32), words + 2, &[32]), "position outside");
    refused(&altered(bytes(Format::Word32), words + 3, &[40]), "position outside");
    refused(&altered(bytes(Format::Word32), words + 6, &[1, 0]), "repeat or are out of order");
    refused(&altered(bytes(Format::Word32), words, &f16::NAN.to_le_bytes()), "not finite");
    refused(&altered(bytes(Format::Word24), words, &f16::NEG_ONE.to_le_bytes()), "sparse scales hold -1");
    refused(&altered(bytes(Format::Word24), words + 2 * blocks, &[3]), "padding bits");
    let masks = words;
    refused(&altered(bytes(Format::RowMask), masks, &[0xff]), "as many bits");
    // Block 1 is 35 wide and its first row keeps column 29 last: move that bit outside. The block's masks follow block
    // 0's masks and values.
    let last_masks = masks + 32 * 4 + 2 * 1023usize.div_ceil(7) + 3;
    assert_eq!(bytes(Format::RowMask)[last_masks..][..2], [0b10_0000, 0]);
    refused(&altered(bytes(Format::RowMask), last_masks, &[0, 0b1000]), "position outside");
    let wide = Layout::new(40, 35, 128).unwrap();
    let wide = Matrix::new(wide, Transform::Dct, None, vec![sparse(wide, Format::Word32)], 0.0);
    refused(
        &altered(wide.to_plain_bytes(Orientation::Matrix), TERMS + 1, &[1]),
        "word24 with block edge 128",
    );
}

#[test]
fn planes_fields_are_checked() {
    let blocks = layout().blocks();
    let bytes = || payload(vec![planes(layout(), ScaleGroup::Block)]);
    refused(&altered(bytes(), TERMS + 1, &[2]), "unknown scale group 2");
    refused(&altered(bytes(), TERMS + 2, &f32::NAN.to_le_bytes()), "planes unit is NaN");
    refused(&altered(bytes(), TERMS + 2, &2f32.powi(104).to_le_bytes()), "would overflow");
    refused(&altered(bytes(), TERMS + 6, &[9]), "a block with 9 planes");
    refused(&altered(bytes(), TERMS + 6, &[8]), "are left");
    refused(&altered(bytes(), TERMS + 6 + blocks - 1, &[2]), "200 bytes follow the last term");
    refused(&altered(bytes(), TERMS + 6 + blocks, &f16::INFINITY.to_le_bytes()), "plane scales hold inf");
    // The second block is 35 wide; plane 0 of the first takes 32 rows of 4 bytes.
    refused(&altered(bytes(), TERMS + 6 + 3 * blocks + 128 + 4, &[0x08]), "padding bits are set");
}

#[test]
fn trellis_fields_are_checked() {
    let bytes = || payload(vec![trellis(layout())]);
    let (bits, scales, columns) = (TERMS + 6, TERMS + 6 + 6, TERMS + 6 + 6 + 12);
    refused(&altered(bytes(), TERMS + 1, &[11]), "trellis states of 11 bits; 12 to 16 are allowed");
    refused(&altered(bytes(), TERMS + 1, &[17]), "trellis states of 17 bits");
    refused(&altered(bytes(), TERMS + 2, &3f32.to_le_bytes()), "trellis unit is 3, not a power of two");
    refused(&altered(bytes(), bits, &[5]), "a trellis of 5 bits; at most 4 are allowed");
    refused(&altered(bytes(), bits, &[4]), "are left");
    refused(&altered(bytes(), bits + 1, &[0]), "128 bytes follow the last term");
    refused(&altered(bytes(), scales, &f16::NAN.to_le_bytes()), "trellis scales hold NaN");
    refused(&altered(bytes(), scales, &f16::NEG_ONE.to_le_bytes()), "trellis scales hold -1");
    // Columns of 32 rows, then of 40: no byte has padding; three rows do.
    let (above, below) = (32 * 12 + 32 * 4 + 3 * 16, 32 * 10 + 32 * 15 + 3 * 5);
    assert_eq!(bytes().len(), columns + above + below + CHECKSUM_BYTES);
    let low = Layout::new(3, 1, 32).unwrap();
    let low = Matrix::new(low, Transform::Dct, None, vec![trellis(low)], 0.0).to_bytes(Orientation::Matrix);
    let column = TERMS + 6 + 1 + 2;
    refused(
        &altered(low.clone(), column + 1, &[low[column + 1] | 2]),
        "trellis scale group 0: padding bits are set",
    );
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = from_bytes(&bytes);
    }

    #[test]
    fn no_damage_makes_it_panic(
        which in 0usize..7,
        at in 0usize..1000,
        new in proptest::collection::vec(any::<u8>(), 1..8),
    ) {
        let layout = layout();
        let bytes = match which {
            0..4 => payload(vec![basis(layout, true), sparse(layout, FORMATS[which])]),
            4 => payload(vec![planes(layout, ScaleGroup::Row)]),
            5 => payload(vec![trellis(layout)]),
            _ => payload(vec![basis(layout, false), planes(layout, ScaleGroup::Block)]),
        };
        let at = at % (bytes.len() - CHECKSUM_BYTES - new.len());
        // Whatever is accepted must also decode and multiply.
        if let Ok((matrix, _)) = from_bytes(&altered(bytes, at, &new))
            && matrix.layout().elements() < 1 << 20
        {
            matrix.decode();
            matrix.product(&vec![1.0; matrix.layout().cols()]);
        }
    }
}

#[test]
fn another_view_changes_the_view_alone() {
    let matrix = matrix(vec![basis(layout(), false), planes(layout(), ScaleGroup::Row)]);
    let bytes = matrix.to_bytes(Orientation::Matrix);
    let turned = seen_through(bytes.clone(), Orientation::Transposed).unwrap();
    assert_eq!(turned, matrix.to_bytes(Orientation::Transposed));
    assert_eq!(seen_through(turned, Orientation::Matrix).unwrap(), bytes);
    assert_eq!(seen_through(bytes.clone(), Orientation::Matrix).unwrap(), bytes);
    assert!(seen_through(bytes.clone(), Orientation::Vector).is_err());
    // A damaged payload is not given a checksum that is right.
    let mut damaged = bytes;
    damaged[60] ^= 1;
    let error = seen_through(damaged, Orientation::Transposed).unwrap_err().to_string();
    assert!(error.contains("the checksum does not match"), "{error}");
}
