//! Entropy coded terms: what goes in comes out, nothing grows, and damage of every field is refused for its own reason.

use super::*;
use crate::codec::term::planes::{Planes, QuantizedBlock, ScaleGroup};
use crate::codec::term::sparse::{Entry, FORMATS, Format, Sparse};
use half::f16;
use proptest::prelude::*;

/// Numbers in `0..1` that look random.
fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_add(1);
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    }
}

/// About one coefficient in `every`, with values near to Gaussian; block `n` has none where `n` is a multiple of 5.
fn sparse(layout: Layout, format: Format, every: usize, seed: u64) -> Term {
    let mut random = noise(seed);
    let blocks: Vec<Vec<Entry>> = layout
        .iter()
        .map(|block| {
            let mut value = || (0..6).map(|_| random()).sum::<f32>() - 3.0;
            let kept = (0..block.len())
                .filter(|n| (n * 2_654_435_761 % every) == 0 && !block.index.is_multiple_of(5));
            let entry = |n: usize| Entry {
                row: (n / block.width) as u8,
                col: (n % block.width) as u8,
                value: value(),
            };
            kept.map(entry).take(65535).collect()
        })
        .collect();
    Term::Sparse(Sparse::pack(layout, format, &blocks).unwrap())
}

/// Blocks of 0 to 8 planes, codes near to Gaussian and wider from block to block.
fn planes(layout: Layout, group: ScaleGroup, most: u8, seed: u64) -> Term {
    let mut random = noise(seed);
    let blocks: Vec<_> = layout
        .iter()
        .map(|block| {
            let planes = most - (block.index % 9).min(usize::from(most)) as u8;
            let half = f32::from(1u16 << planes) / 2.0;
            let spread = half / (6.0 + 2.0 * (block.index % 3) as f32);
            let mut code = || {
                let gaussian = (0..6).map(|_| random()).sum::<f32>() - 3.0;
                (half + spread * gaussian).clamp(0.0, 2.0 * half - 1.0) as u8
            };
            QuantizedBlock {
                planes,
                scales: vec![f16::from_f32(0.5); group.scales_in(block)],
                codes: (0..block.len()).map(|_| if planes == 0 { 0 } else { code() }).collect(),
            }
        })
        .collect();
    Term::Planes(Planes::pack(layout, group, 1.0, &blocks))
}

fn matrix(layout: Layout, term: Term) -> Matrix {
    Matrix::new(layout, Transform::Dct, None, vec![term], 0.25)
}

/// Both forms come back as they were, and the coded one is no larger; its size as a part of the other's.
#[track_caller]
fn round_trip(layout: Layout, term: Term) -> f64 {
    let matrix = matrix(layout, term);
    let (coded, plain) = (matrix.to_bytes(Orientation::Matrix), matrix.to_plain_bytes(Orientation::Matrix));
    assert_eq!((coded.len(), plain.len()), (matrix.size_in_bytes(), matrix.plain_size_in_bytes()));
    assert!(coded.len() <= plain.len());
    for bytes in [&coded, &plain] {
        let (back, _) = from_bytes(bytes).unwrap();
        assert_eq!(back.terms(), matrix.terms());
        assert_eq!(back.to_bytes(Orientation::Matrix), coded);
    }
    coded.len() as f64 / plain.len() as f64
}

#[test]
fn borders_and_chunks_come_back() {
    for (rows, cols) in [(1, 1), (1, 300), (31, 33), (64, 64), (257, 65), (300, 530)] {
        for edge in [32, 64, 128, 256] {
            let layout = Layout::new(rows, cols, edge).unwrap();
            for most in [1, 4, 8] {
                round_trip(layout, planes(layout, ScaleGroup::Block, most, 3));
                round_trip(layout, planes(layout, ScaleGroup::Row, most, 4));
            }
            for format in FORMATS.into_iter().filter(|format| format.allows(edge)) {
                for every in [1, 2, 20, 1000] {
                    round_trip(layout, sparse(layout, format, every, 5));
                }
            }
        }
    }
}

#[test]
fn packed_codes_come_back() {
    // Large enough to be packed; no edge of it, and no block's at the border, is a multiple of eight.
    let layout = Layout::new(515, 517, 128).unwrap();
    for most in 1..=8 {
        let term = planes(layout, ScaleGroup::Block, most, 6);
        // Code, group, unit, plane counts and scales come before.
        let packing = TERMS + 6 + 3 * layout.blocks();
        assert!(most < 2 || coded(layout, term.clone())[packing] == 1);
        round_trip(layout, term);
    }
}

#[test]
fn what_has_a_shape_becomes_smaller() {
    let layout = Layout::new(320, 320, 64).unwrap();
    // Positions of one in 20 have 5.8 bits of 12 to 16, values of 6 bits and more some that nothing can take away.
    for (format, most) in FORMATS.into_iter().zip([0.66, 0.70, 0.65, 0.80]) {
        let part = round_trip(layout, sparse(layout, format, 20, 1));
        assert!(part < most, "{format:?}: {part}");
    }
    let part = round_trip(layout, planes(layout, ScaleGroup::Block, 8, 1));
    assert!(part < 0.9, "planes: {part}");
}

#[test]
fn what_has_none_stays_as_it_is() {
    let layout = Layout::new(256, 256, 64).unwrap();
    let mut random = noise(1);
    let mut block = |block: crate::codec::Block| QuantizedBlock {
        planes: 8,
        scales: vec![f16::ONE],
        codes: (0..block.len()).map(|_| (256.0 * random()) as u8).collect(),
    };
    let blocks: Vec<_> = layout.iter().map(&mut block).collect();
    let noise = Term::Planes(Planes::pack(layout, ScaleGroup::Block, 1.0, &blocks));
    assert_eq!(round_trip(layout, noise), 1.0);
    // Nothing but one code: a file so much smaller than what it makes would be refused.
    let block = |block: crate::codec::Block| QuantizedBlock {
        planes: 8,
        scales: vec![f16::ONE],
        codes: vec![77; block.len()],
    };
    let blocks: Vec<_> = layout.iter().map(block).collect();
    let constant = Term::Planes(Planes::pack(layout, ScaleGroup::Block, 1.0, &blocks));
    assert_eq!(round_trip(layout, constant), 1.0);
}

/// Where the first term begins.
const TERMS: usize = HEADER_BYTES;

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

/// Four blocks of four sizes, with one coefficient in six.
fn small_sparse(format: Format) -> Vec<u8> {
    let layout = Layout::new(72, 67, 32).unwrap();
    coded(layout, sparse(layout, format, 6, 1))
}

/// A block of eight planes and one of seven.
fn small_planes() -> Vec<u8> {
    let layout = Layout::new(64, 70, 64).unwrap();
    coded(layout, planes(layout, ScaleGroup::Block, 8, 1))
}

fn coded(layout: Layout, term: Term) -> Vec<u8> {
    let code = term.code();
    let bytes = matrix(layout, term).to_bytes(Orientation::Matrix);
    assert_eq!(bytes[TERMS], code | 0x80, "not coded");
    bytes
}

#[test]
fn truncations_and_trailing_bytes_are_refused() {
    for bytes in [small_sparse(Format::Word32), small_sparse(Format::RowMask), small_planes()] {
        for len in HEADER_BYTES + CHECKSUM_BYTES..bytes.len() {
            assert!(from_bytes(&sealed(bytes[..len].to_vec())).is_err(), "{len} bytes");
        }
        let mut longer = bytes;
        longer.push(0);
        refused(&sealed(longer), "1 bytes follow the last term");
    }
}

#[test]
fn coded_sparse_fields_are_checked() {
    let bytes = || small_sparse(Format::Word32);
    // Code, format, unit and four counts come first.
    let symbols = TERMS + 6 + 2 * 4;
    refused(&altered(bytes(), TERMS + 1, &[4]), "unknown sparse format 4");
    refused(&altered(bytes(), symbols, &[8]), "sparse symbols of 8 bits; 5 to 7 are allowed");
    refused(&altered(bytes(), symbols, &[4]), "sparse symbols of 4 bits");
    refused(&altered(bytes(), symbols + 1, &[1, 0]), "sum to 0, not 4096");
    refused(&altered(bytes(), symbols + 3, &[0]), "begins or ends with none");
    // Shifted by 30, the gaps' table has symbols that no gap has.
    let (first, last) = (bytes()[symbols + 1], bytes()[symbols + 2]);
    refused(&altered(bytes(), symbols + 1, &[first + 30, last + 30]), "symbols that mean nothing");
    // More entries than the words say, and so many that the bytes could not be theirs.
    let one_more = bytes()[TERMS + 6 + 2] + 1;
    refused(&altered(bytes(), TERMS + 6 + 2, &[one_more]), "raw bits do not end where");
    let far = altered(bytes(), TERMS + 6, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    refused(&far, "coded terms are at most 64 times smaller");
}

#[test]
fn coded_planes_fields_are_checked() {
    let bytes = small_planes;
    let counts = TERMS + 6;
    let tables = counts + 2 + 2 * 2;
    refused(&altered(bytes(), TERMS + 1, &[2]), "unknown scale group 2");
    refused(&altered(bytes(), counts, &[9]), "a block with 9 planes");
    refused(&altered(bytes(), counts, &[3]), "is not for 3 planes");
    refused(&altered(bytes(), counts, &[0]), "for no planes");
    refused(&altered(bytes(), tables, &[2]), "unknown packing 2");
    refused(&altered(bytes(), tables + 1, &[0]), "is not for 8 planes");
    refused(&altered(bytes(), tables + 2, &[200, 100]), "sum to 0");
    let flip = |at: usize| {
        let bytes = bytes();
        let value = bytes[at] ^ 0x40;
        altered(bytes, at, &[value])
    };
    let last = bytes().len() - CHECKSUM_BYTES - 1;
    refused(&flip(last - 9), "do not end where their lane does");
    // Eight planes of 4096x4096 from some hundred bytes.
    let mut bomb = bytes()[..TERMS].to_vec();
    bomb[8..18].copy_from_slice(&[0, 16, 0, 0, 0, 16, 0, 0, 0, 1]);
    bomb.extend([0x83, 0, 0, 0, 0x80, 0x3f]);
    bomb.extend([8; 256]);
    bomb.extend([0; 512]);
    bomb.extend([0, 1, 7, 7, 0x80, 0x20]);
    bomb.extend([0; 256 + 4 * 256 + CHECKSUM_BYTES]);
    refused(&sealed(bomb), "coded terms are at most 64 times smaller");
}

proptest! {
    #[test]
    fn every_term_comes_back(
        rows in 1usize..150,
        cols in 1usize..150,
        edge in 0usize..4,
        format in 0usize..4,
        every in 1usize..300,
        most in 1u8..=8,
        seed in any::<u64>(),
    ) {
        let layout = Layout::new(rows, cols, [32, 64, 128, 256][edge]).unwrap();
        if FORMATS[format].allows(layout.block()) {
            round_trip(layout, sparse(layout, FORMATS[format], every, seed));
        }
        round_trip(layout, planes(layout, ScaleGroup::Row, most, seed));
    }

    #[test]
    fn no_damage_makes_it_panic(
        which in 0usize..5,
        at in 0usize..5000,
        new in proptest::collection::vec(any::<u8>(), 1..8),
    ) {
        let bytes = FORMATS.get(which).map_or_else(small_planes, |format| small_sparse(*format));
        let at = at % (bytes.len() - CHECKSUM_BYTES - new.len());
        // Whatever is accepted must also decode, multiply, and be written again.
        if let Ok((matrix, view)) = from_bytes(&altered(bytes, at, &new))
            && matrix.layout().elements() < 1 << 20
        {
            matrix.decode();
            matrix.product(&vec![1.0; matrix.layout().cols()]);
            let (again, _) = from_bytes(&matrix.to_bytes(view)).unwrap();
            prop_assert_eq!(again.terms(), matrix.terms());
        }
    }
}
