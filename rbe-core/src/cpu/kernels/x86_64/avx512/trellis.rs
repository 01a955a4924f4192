//! The trellis code on AVX-512 with VBMI and GFNI: 64 values in five instructions, in seven from 3 bits on.
//!
//! The bytes that 64 states lie in are two or three lines (see [`trellis`](crate::cpu::layout::trellis)), and what each of them
//! contributes to the indices is its product with a matrix over the integers modulo 2. One instruction looks 64 indices of
//! seven bits up. From 3 bits on there are eight: the matrices turn the lower seven over where the eighth is set, and the value is
//! the negative of theirs.

use super::isa::Avx512Vbmi;
use crate::codec::Block;
use crate::codec::term::trellis::{Code, GROUP_COLS};
use crate::cpu::kernels::generic::decode::PerCode;
use crate::cpu::kernels::generic::trellis::{
    self as generic, Decode, DecodedStrips, GroupSlices, MultiplyTile,
};
use crate::cpu::kernels::unroll::{dispatch_batch, dispatch_code, each, per_code};
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::planes::{Line, QUAD, QUADS};
use crate::cpu::layout::trellis::{
    BIAS, Bundle, FOLLOWING, GroupCodes, PERIOD, PackedGroup, PackedTrellis, Packing,
};
use crate::cpu::layout::{Input, QuantizedRows, RowSums};
use std::arch::x86_64::*;
use std::ops::Range;

/// With few digits a scale group is multiplied as it is decoded, without a way through memory.
#[target_feature(enable = "avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni,popcnt")]
pub(super) fn product(
    term: &PackedTrellis,
    i: usize,
    groups: Range<usize>,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    if adds_groups(Packing::new(term.layout().row_range(i).len()), x) {
        add_groups(term, i, groups, x, sums);
    } else {
        generic::product(Avx512Vbmi::with_vbmi(), term, i, groups, x, sums);
    }
}

#[target_feature(enable = "avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni,popcnt")]
pub(super) fn transposed(term: &PackedTrellis, block: Block, g: Input, acc: &mut [f32]) {
    align_frame();
    generic::transposed(Avx512Vbmi::with_vbmi(), term, block, g, acc);
}

#[target_feature(enable = "avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni,popcnt")]
pub(super) fn group_codes(scale_group: &PackedGroup, codes: &mut GroupCodes) {
    generic::decode_group(Avx512Vbmi::with_vbmi(), scale_group, codes);
}

impl Decode for Avx512Vbmi {
    #[inline(always)]
    fn decode_bundle(self, bundle: Bundle, codes: &mut [Line], stride: usize) {
        // SAFETY: the token proves the instructions.
        unsafe { decode_bundle(bundle, codes, stride) }
    }
}

impl MultiplyTile for Avx512Vbmi {
    const CODE_BIAS: i32 = BIAS;

    #[inline(always)]
    fn multiply_tile(self, scale_groups: &DecodedStrips, tile: usize, sums: &mut [RowSums], stride: usize) {
        // SAFETY: as above.
        unsafe { multiply_tile(scale_groups, tile, sums, stride) }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 aligned bytes.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

/// For a state that begins with bit `o` of a byte, what that byte and the next two contribute to its index: `[o][byte]` is a
/// matrix of 8 by 8 bits as `gf2p8affineqb` multiplies by it, the row of the result's lowest bit in the highest byte.
type ByteMatrices = [[u64; 3]; 8];
static BYTE_MATRICES: PerCode<ByteMatrices> = per_code!(byte_matrices, [[0; 3]; 8]);

const fn byte_matrices(code: Code) -> ByteMatrices {
    let mut matrices = [[0; 3]; 8];
    let mut o = 0;
    while o < 8 {
        let mut bit = o;
        while bit < o + code.state_bits() as usize {
            let mut index = code.index(1 << (bit - o));
            if index >> 7 == 1 {
                index ^= 0x7f;
            }
            let mut row = 0;
            while row < 8 {
                if index >> row & 1 == 1 {
                    matrices[o][bit / 8] |= 1 << (8 * (7 - row) + bit % 8);
                }
                row += 1;
            }
            bit += 1;
        }
        o += 1;
    }
    matrices
}

/// The codes of the first 128 indices.
static CODES: PerCode<[Line; 2]> = per_code!(codes, [Line([0; 64]); 2]);

const fn codes(code: Code) -> [Line; 2] {
    let mut lines = [Line([0; 64]); 2];
    let mut index = 0;
    while index < 128 {
        lines[index / 64].0[index % 64] = (code.value_of_index(index as u8) as i32 + BIAS) as u8;
        index += 1;
    }
    lines
}

/// Whether codes of so many bits have more than 128 indices.
const fn has_signs(bits: usize) -> bool {
    Code::of_bits(bits).indices() > 128
}

/// Bytes that a state of `state` bits lies in which begins with bit `o` of the first.
const fn pieces(o: usize, state: usize) -> usize {
    (o + state).div_ceil(8)
}

/// What makes codes of bytes: matrices, and the codes of 128 indices.
#[derive(Clone, Copy)]
struct Decoder<const BITS: usize, const STATE: usize> {
    matrices: &'static ByteMatrices,
    codes: [__m512i; 2],
}

impl<const BITS: usize, const STATE: usize> Decoder<BITS, STATE> {
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn new(code: Code) -> Self {
        let codes = CODES.of(code);
        Self { matrices: BYTE_MATRICES.of(code), codes: [load(&codes[0]), load(&codes[1])] }
    }

    /// The codes of 16 rows by 4 columns whose states begin with bit `o` of the first of these bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,gfni")]
    #[inline]
    fn codes(self, bytes: [__m512i; 3], o: usize) -> __m512i {
        let matrices = &self.matrices[o];
        let product = |n: usize| {
            _mm512_gf2p8affine_epi64_epi8::<0>(bytes[n], _mm512_set1_epi64(matrices[n].cast_signed()))
        };
        let mut index = _mm512_xor_si512(product(0), product(1));
        if pieces(o, STATE) > 2 {
            index = _mm512_xor_si512(index, product(2));
        }
        // The look-up sees the low seven bits of each byte.
        let code = _mm512_permutex2var_epi8(self.codes[0], index, self.codes[1]);
        if const { !has_signs(BITS) } {
            return code;
        }
        // `-value + 64 = 128 - (value + 64)`.
        _mm512_mask_sub_epi8(code, _mm512_movepi8_mask(index), _mm512_set1_epi8(-128), code)
    }
}

/// Bytes `n`, `n + 1` and `n + 2` of the periods of a register's groups, of which the lines hold all or, where the columns
/// fill their lanes, all but those after a period's own.
#[target_feature(enable = "avx512f")]
#[inline]
fn bytes<const BITS: usize>(lines: &[Line], next_lane: Option<__m512i>, n: usize) -> [__m512i; 3] {
    let mut bytes = [_mm512_setzero_si512(); 3];
    for (byte, n) in bytes.iter_mut().zip(n..) {
        *byte = match next_lane {
            Some(next_lane) if n >= 2 * BITS => {
                _mm512_permutexvar_epi32(next_lane, load(&lines[n - 2 * BITS]))
            }
            _ => load(&lines[n]),
        };
    }
    bytes
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,gfni")]
fn decode_bundle(bundle: Bundle, codes: &mut [Line], stride: usize) {
    dispatch_code!(bundle.code, decode(bundle, codes, stride))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,gfni")]
fn decode<const BITS: usize, const STATE: usize>(bundle: Bundle, codes: &mut [Line], stride: usize) {
    align_frame();
    let Bundle { lines, code, packing } = bundle;
    let decoder = Decoder::<BITS, STATE>::new(code);
    let next_lane = packing.is_full().then(|| next_lane(packing.tiles()));
    assert!(lines.len() >= 2 * BITS + if packing.is_full() { 0 } else { FOLLOWING });
    each!(S in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
        let at = BITS * S;
        let values = decoder.codes(bytes::<BITS>(lines, next_lane, at / 8), at % 8);
        // SAFETY: a line is 64 aligned bytes.
        unsafe { _mm512_store_si512(codes[S * stride].0.as_mut_ptr().cast(), values) };
    });
}

/// The most digits that a scale group is multiplied with as it is decoded.
const FUSED_MAX_DIGITS: usize = 4;

/// Whether [`add_groups`] can be had for these vectors: columns of 256, 128 or 64 rows.
fn adds_groups(packing: Packing, x: QuantizedRows) -> bool {
    x.slices() <= FUSED_MAX_DIGITS && packing.is_full() && packing.groups() <= 4
}

/// Few digits: a scale group's products are made as it is decoded.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,gfni")]
fn add_groups(term: &PackedTrellis, i: usize, groups: Range<usize>, x: QuantizedRows, sums: &mut [RowSums]) {
    align_frame();
    for (j, scale_groups) in term.blocks_across(i, groups) {
        for (first, scale_group) in scale_groups {
            let digits = GroupSlices::new(x, j, first, scale_group.scale, BIAS);
            add_group(&scale_group, x, &digits, sums);
        }
    }
}

/// Adds the products of a scale group with one to [`FUSED_MAX_DIGITS`] digits to the sums of each vector's tiles, decoded in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,gfni")]
fn add_group(
    scale_group: &PackedGroup,
    x: QuantizedRows,
    digits: &GroupSlices<FUSED_MAX_DIGITS>,
    sums: &mut [RowSums],
) {
    align_frame();
    assert!(x.slices() > 0 && adds_groups(scale_group.packing, x));
    assert!(digits.values.len() >= (x.slices() - 1) * x.stride() + GROUP_COLS);
    assert!(sums.len() >= x.batch() * scale_group.packing.tiles());
    dispatch_code!(scale_group.code, add_code(scale_group, x, digits, sums))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,gfni")]
fn add_code<const BITS: usize, const STATE: usize>(
    scale_group: &PackedGroup,
    x: QuantizedRows,
    digits: &GroupSlices<FUSED_MAX_DIGITS>,
    sums: &mut [RowSums],
) {
    align_frame();
    match (scale_group.packing.groups(), x.slices()) {
        (1, 1) => add::<BITS, STATE, true, 1>(scale_group, x, digits, sums),
        (1, 2) => add::<BITS, STATE, true, 2>(scale_group, x, digits, sums),
        (1, 3) => add::<BITS, STATE, true, 3>(scale_group, x, digits, sums),
        (1, _) => add::<BITS, STATE, true, 4>(scale_group, x, digits, sums),
        _ => add_side_by_side::<BITS, STATE>(scale_group, x, digits, sums),
    }
}

/// As [`add_code`] for columns of less than 256 rows, apart from it: together they are too much for the optimiser.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,gfni")]
fn add_side_by_side<const BITS: usize, const STATE: usize>(
    scale_group: &PackedGroup,
    x: QuantizedRows,
    digits: &GroupSlices<FUSED_MAX_DIGITS>,
    sums: &mut [RowSums],
) {
    align_frame();
    match x.slices() {
        1 => add::<BITS, STATE, false, 1>(scale_group, x, digits, sums),
        2 => add::<BITS, STATE, false, 2>(scale_group, x, digits, sums),
        3 => add::<BITS, STATE, false, 3>(scale_group, x, digits, sums),
        _ => add::<BITS, STATE, false, 4>(scale_group, x, digits, sums),
    }
}

/// `ALONE`: a register has one group.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,gfni")]
fn add<const BITS: usize, const STATE: usize, const ALONE: bool, const DIGITS: usize>(
    scale_group: &PackedGroup,
    x: QuantizedRows,
    digits: &GroupSlices<FUSED_MAX_DIGITS>,
    sums: &mut [RowSums],
) {
    let (groups, tiles) =
        if ALONE { (1, PERIOD) } else { (scale_group.packing.groups(), scale_group.packing.tiles()) };
    let decoder = Decoder::<BITS, STATE>::new(scale_group.code);
    let (next_lane, group_of_lane) = (Some(next_lane(tiles)), group_of_lane(tiles));
    // Sums over groups that lie side by side are made last; what is taken away is so once.
    let (of_groups, of_first_group) = (mask16(groups), mask16(tiles));
    // Four rows of each period at a time: their dot products stay in registers.
    each!(QUARTER in [0 1 2 3] {
        let mut dots = [[_mm512_setzero_si512(); DIGITS]; PERIOD / 4];
        for dots in &mut dots {
            for (dot, bias) in dots.iter_mut().zip(digits.biases) {
                let bias = _mm512_set1_epi32(-bias);
                *dot = if ALONE { bias } else { _mm512_maskz_mov_epi32(of_first_group, bias) };
            }
        }
        for (n, Bundle { lines, .. }) in scale_group.bundles().enumerate() {
            assert!(lines.len() >= 2 * BITS);
            if QUARTER == 0 {
                // All lines once in their order, which the hardware knows how to go on from.
                for line in lines {
                    _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).cast());
                }
            }
            let mut fours = [_mm512_setzero_si512(); DIGITS];
            for (digit, fours) in fours.iter_mut().enumerate() {
                let at = digit * x.stride() + n * groups * QUAD;
                // SAFETY: four bytes for each group inside `values`, by the caller's assertion: a scale group has eight at most.
                *fours = unsafe {
                    let four = digits.values.as_ptr().add(at).cast::<i32>();
                    if ALONE {
                        _mm512_set1_epi32(four.read_unaligned())
                    } else {
                        _mm512_permutexvar_epi32(group_of_lane, _mm512_maskz_loadu_epi32(of_groups, four))
                    }
                };
            }
            each!(S in [0 1 2 3] {
                let at = BITS * (4 * QUARTER + S);
                let codes = decoder.codes(bytes::<BITS>(lines, next_lane, at / 8), at % 8);
                for (dot, fours) in dots[S].iter_mut().zip(fours) {
                    *dot = _mm512_dpbusd_epi32(*dot, codes, fours);
                }
            });
        }
        if ALONE {
            for (s, dots) in dots.into_iter().enumerate() {
                for (digit, dot) in dots.into_iter().enumerate() {
                    let tile = digit / x.slices_per_row() * tiles + 4 * QUARTER + s;
                    add_share(&mut sums[tile], dot, digits.factors[digit]);
                }
            }
        } else {
            for (digit, factor) in digits.factors[..DIGITS].iter().enumerate() {
                let first = digit / x.slices_per_row() * tiles + 4 / groups * QUARTER;
                let dots = sum_groups(groups, [dots[0][digit], dots[1][digit], dots[2][digit], dots[3][digit]]);
                for (sums, dot) in sums[first..][..4 / groups].iter_mut().zip(dots) {
                    add_share(sums, dot, *factor);
                }
            }
        }
    });
}

/// `sums += dots * factor`.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_share(sums: &mut RowSums, dots: __m512i, factor: f32) {
    let share = _mm512_mul_ps(_mm512_cvtepi32_ps(dots), _mm512_set1_ps(factor));
    // SAFETY: sixteen sums are 64 aligned bytes.
    unsafe {
        let sums = sums.0.as_mut_ptr();
        _mm512_store_ps(sums, _mm512_add_ps(_mm512_load_ps(sums), share));
    }
}

/// The lowest bits.
fn mask16(count: usize) -> u16 {
    ((1u32 << count) - 1) as u16
}

/// Sums over the groups that lie side by side, of four rows of each period: the first one, two or four are
/// [tiles](Packing::row), the rest nothing.
#[target_feature(enable = "avx512f")]
#[inline]
fn sum_groups(groups: usize, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    // Of two rows the sums of their halves, side by side.
    let halves = |a, b| {
        let (low, high) = (_mm512_shuffle_i64x2::<0x44>(a, b), _mm512_shuffle_i64x2::<0xee>(a, b));
        _mm512_add_epi32(low, high)
    };
    match groups {
        1 => [a, b, c, d],
        2 => [halves(a, b), halves(c, d), a, a],
        _ => {
            let (ab, cd) = (halves(a, b), halves(c, d));
            let (even, odd) = (_mm512_shuffle_i64x2::<0x88>(ab, cd), _mm512_shuffle_i64x2::<0xdd>(ab, cd));
            [_mm512_add_epi32(even, odd), a, a, a]
        }
    }
}

/// Adds the products of one tile of decoded scale groups with all their digits to the vectors' sums, `stride` apart.
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply_tile(scale_groups: &DecodedStrips, tile: usize, sums: &mut [RowSums], stride: usize) {
    let (all, per_row) = (scale_groups.x.slices(), scale_groups.x.slices_per_row());
    let mut taken = 0;
    while taken < all {
        let left = all - taken;
        let sums = &mut sums[taken / per_row * stride..];
        taken += match per_row {
            1 => dispatch_batch!(
                1,
                left,
                multiply(scale_groups, tile, taken, sums, stride),
                [8, 6, 4, 3, 2, 1]
            ),
            2 => dispatch_batch!(2, left, multiply(scale_groups, tile, taken, sums, stride), [8, 6, 4, 2]),
            3 => dispatch_batch!(3, left, multiply(scale_groups, tile, taken, sums, stride), [9, 6, 3]),
            digits => unreachable!("{digits} digits of a vector"),
        };
    }
}

/// `COUNT` digits from `first` on, `PER_VECTOR` of them of each vector; dot products and sums stay in registers.
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply<const PER_VECTOR: usize, const COUNT: usize>(
    scale_groups: &DecodedStrips,
    tile: usize,
    first: usize,
    sums: &mut [RowSums],
    stride: usize,
) -> usize {
    let mut held = [_mm512_setzero_ps(); COUNT];
    for (vector, held) in held.iter_mut().enumerate().take(COUNT / PER_VECTOR) {
        // SAFETY: sixteen sums are 64 aligned bytes.
        *held = unsafe { _mm512_load_ps(sums[vector * stride + tile].0.as_ptr()) };
    }
    let x_stride = scale_groups.x.stride();
    for (codes, digits) in scale_groups.codes.iter().zip(&scale_groups.digits) {
        let (biases, factors) = (&digits.biases[first..][..COUNT], &digits.factors[first..][..COUNT]);
        let values = &digits.values[first * x_stride..];
        assert!(values.len() >= (COUNT - 1) * x_stride + GROUP_COLS);
        let mut dots = [_mm512_setzero_si512(); COUNT];
        for (dots, bias) in dots.iter_mut().zip(biases) {
            *dots = _mm512_set1_epi32(-bias);
        }
        for (group, line) in codes[tile * QUADS..][..QUADS].iter().enumerate() {
            let codes = load(line);
            for (digit, dots) in dots.iter_mut().enumerate() {
                let at = digit * x_stride + group * QUAD;
                // SAFETY: four bytes inside `values`, by the assertion above.
                let x = unsafe { values.as_ptr().add(at).cast::<i32>().read_unaligned() };
                *dots = _mm512_dpbusd_epi32(*dots, codes, _mm512_set1_epi32(x));
            }
        }
        for (digit, (dots, factor)) in dots.iter().zip(factors).enumerate() {
            let share = _mm512_mul_ps(_mm512_cvtepi32_ps(*dots), _mm512_set1_ps(*factor));
            held[digit / PER_VECTOR] = _mm512_add_ps(held[digit / PER_VECTOR], share);
        }
    }
    for (vector, held) in held.iter().enumerate().take(COUNT / PER_VECTOR) {
        // SAFETY: as above.
        unsafe { _mm512_store_ps(sums[vector * stride + tile].0.as_mut_ptr(), *held) };
    }
    COUNT
}

/// [`Packing::next_lane`] of every lane.
#[target_feature(enable = "avx512f")]
#[inline]
fn next_lane(tiles: usize) -> __m512i {
    let (lane, last) = (lanes(), _mm512_set1_epi32((tiles as u32 - 1).cast_signed()));
    let next = _mm512_and_si512(_mm512_add_epi32(lane, _mm512_set1_epi32(1)), last);
    // The low bits of a lane's number say which period of its group it is, the others which group.
    _mm512_or_si512(_mm512_andnot_si512(last, lane), next)
}

/// For every lane which of its register's groups it is of.
#[target_feature(enable = "avx512f")]
#[inline]
fn group_of_lane(tiles: usize) -> __m512i {
    _mm512_srl_epi32(lanes(), _mm_cvtsi32_si128(tiles.trailing_zeros().cast_signed()))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn lanes() -> __m512i {
    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
}
