//! A trellis term's scale groups, decoded once for all vectors: as 8-bit codes for the integer products (see
//! [`walk`](super::walk)), as floats for the transposed product.

use super::EDGE;
use super::unroll::per_code;
use crate::codec::term::trellis::{COARSE_MAGNITUDES, Code, FINE_MAGNITUDES, GROUP_COLS, MAX_BITS};
use crate::cpu::activations::QuantizedRows;
use crate::cpu::layout::planes::{Line, QUAD, QUADS, TILE_ROWS};
use crate::cpu::layout::trellis::{BIAS, Bundle, FOLLOWING, GroupCodes, PERIOD, PackedGroup};

/// The coefficients of a scale group, row by row.
pub(in crate::cpu) type GroupRows = [[f32; GROUP_COLS]; EDGE];

/// Digits that decoded scale groups are multiplied with in one go: their values and the codes stay in the nearer caches.
pub(super) const DIGITS_AT_ONCE: usize = 16;
/// Scale groups of the widest block.
pub(super) const MOST_GROUPS: usize = EDGE / GROUP_COLS;

/// Digits that a scale group is to be multiplied with, at most `N`.
#[derive(Clone, Copy)]
pub(super) struct GroupSlices<'a, const N: usize> {
    /// Those of the first slice from the scale group's first column on, the other slices' after them.
    pub values: &'a [i8],
    /// What is taken away from the scale group's product with each slice, and what multiplies the rest.
    pub biases: [i32; N],
    pub factors: [f32; N],
}

impl<'a, const N: usize> GroupSlices<'a, N> {
    const NONE: Self = Self { values: &[], biases: [0; N], factors: [0.0; N] };

    /// All slices of `x` for the scale group that begins with column `col` of block column `j`; `bias` is in each of its codes.
    #[inline(always)]
    pub(super) fn new(x: QuantizedRows<'a>, j: usize, col: usize, scale: f32, bias: i32) -> Self {
        let mut slices = Self { values: x.values(0, j, col), ..Self::NONE };
        for slice in 0..x.slices() {
            slices.biases[slice] = x.tile_sum(slice, j, col) * bias;
            slices.factors[slice] = scale * x.scale(slice, j);
        }
        slices
    }
}

/// Scale groups of a block, decoded, and the slices that they are to be multiplied with.
pub(super) struct DecodedStrips<'a> {
    pub codes: &'a [GroupCodes],
    pub x: QuantizedRows<'a>,
    /// For each scale group.
    pub slices: [GroupSlices<'a, DIGITS_AT_ONCE>; MOST_GROUPS],
}

impl<'a> DecodedStrips<'a> {
    /// `places` are the scale groups' first columns in block column `j` and their scales; `bias` is in every code.
    pub(super) fn new(
        codes: &'a [GroupCodes],
        places: &[(usize, f32); MOST_GROUPS],
        x: QuantizedRows<'a>,
        j: usize,
        bias: i32,
    ) -> Self {
        let mut slices = [GroupSlices::NONE; MOST_GROUPS];
        for (slices, (col, scale)) in slices.iter_mut().zip(&places[..codes.len()]) {
            *slices = GroupSlices::new(x, j, *col, *scale, bias);
        }
        Self { codes, x, slices }
    }
}

/// One `T` for each code.
pub(super) struct PerCode<T>(pub [T; Code::COUNT]);

impl<T> PerCode<T> {
    pub(super) fn of(&self, code: Code) -> &T {
        &self.0[code.number()]
    }
}

/// For a state that begins with bit `o` of half a byte, what that half and the next four contribute to its index:
/// `[o][half][its value]`.
pub(super) type NibbleTables = [[[u8; 16]; 5]; 4];
pub(super) static NIBBLE_TABLES: PerCode<NibbleTables> = per_code!(nibble_tables, [[[0; 16]; 5]; 4]);

const fn nibble_tables(code: Code) -> NibbleTables {
    let mut tables = [[[0; 16]; 5]; 4];
    let mut o = 0;
    while o < 4 {
        let mut value = 0;
        while value < 16 {
            let mut bit = o;
            while bit < o + code.state_bits() as usize {
                if value >> (bit % 4) & 1 == 1 {
                    tables[o][bit / 4][value] ^= code.index(1 << (bit - o));
                }
                bit += 1;
            }
            value += 1;
        }
        o += 1;
    }
    tables
}

/// Bytes, or halves of them where `size` is 4, that a state of `STATE` bits lies in which begins with bit `o` of the first.
pub(super) const fn pieces(o: usize, state: usize, size: usize) -> usize {
    (o + state).div_ceil(size)
}

/// `value + BIAS` of the 128 indices of up to [`COARSE_BITS`](crate::codec::term::trellis::COARSE_BITS) bits.
pub(super) static COARSE_CODES: [Line; 2] = {
    let mut lines = biased(&COARSE_MAGNITUDES);
    let mut n = 0;
    while n < 64 {
        // `-(value + 128) = -value + 128` in eight bits.
        lines[1].0[n] = lines[0].0[n].wrapping_neg();
        n += 1;
    }
    lines
};
/// `magnitude + BIAS` of more bits.
pub(super) static FINE_CODES: [Line; 2] = biased(&FINE_MAGNITUDES);

const fn biased(magnitudes: &[i8]) -> [Line; 2] {
    let mut lines = [Line([0; 64]); 2];
    let mut n = 0;
    while n < magnitudes.len() {
        lines[n / 64].0[n % 64] = (magnitudes[n] as i32 + BIAS) as u8;
        n += 1;
    }
    lines
}

/// Bytes of a period and those that follow, at most.
pub(super) const BYTES: usize = 2 * MAX_BITS as usize + FOLLOWING;

/// The lines of each byte of a register's periods and of those that follow.
#[inline(always)]
pub(super) fn with_following(bundle: Bundle, bits: usize) -> [Line; BYTES] {
    let (own, following) = bundle.lines.split_at(2 * bits);
    let mut bytes = [Line([0; 64]); BYTES];
    bytes[..2 * bits].copy_from_slice(own);
    let after = &mut bytes[2 * bits..][..FOLLOWING];
    if bundle.packing.is_full() {
        for (after, own) in after.iter_mut().zip(own) {
            for (lane, after) in after.0.chunks_exact_mut(QUAD).enumerate() {
                after.copy_from_slice(&own.0[QUAD * bundle.packing.next_lane(lane)..][..QUAD]);
            }
        }
    } else {
        after.copy_from_slice(following);
    }
    bytes
}

/// The codes of one register's groups: `codes[s * stride]` has row `s` of each lane's period.
#[inline(always)]
pub(super) fn decode_bundle(bundle: Bundle, codes: &mut [Line], stride: usize) {
    let bits = usize::from(bundle.code.bits());
    let bytes = with_following(bundle, bits);
    for s in 0..PERIOD {
        let (first, o) = (bits * s / 8, bits * s % 8);
        for (n, value) in codes[s * stride].0.iter_mut().enumerate() {
            let [low, middle, high] = [0, 1, 2].map(|ahead| u32::from(bytes[first + ahead].0[n]));
            let state = (low | middle << 8 | high << 16) >> o;
            *value = (i32::from(bundle.code.value(state as u16)) + BIAS) as u8;
        }
    }
}

/// Rows of a register's groups that share its lanes, to the lines of their groups.
#[inline(always)]
pub(super) fn spread(bundle: &[Line; PERIOD], groups: usize, first_group: usize, codes: &mut GroupCodes) {
    let bytes = size_of::<Line>() / groups;
    for (s, line) in bundle.iter().enumerate() {
        for (group, piece) in line.0.chunks_exact(bytes).enumerate() {
            let line = &mut codes[s / groups * QUADS + first_group + group];
            line.0[s % groups * bytes..][..bytes].copy_from_slice(piece);
        }
    }
}

/// A scale group's coefficients from its codes.
#[inline(always)]
pub(super) fn rows_of_codes(scale_group: &PackedGroup, codes: &GroupCodes, rows: &mut GroupRows) {
    for tile in 0..scale_group.packing.tiles() {
        for lane in 0..TILE_ROWS {
            let row = &mut rows[scale_group.packing.row(tile, lane)];
            for (group, row) in row.as_chunks_mut::<QUAD>().0.iter_mut().enumerate() {
                let codes = &codes[tile * QUADS + group].0[lane * QUAD..][..QUAD];
                for (value, code) in row.iter_mut().zip(codes) {
                    *value = (i32::from(*code) - BIAS) as f32 * scale_group.scale;
                }
            }
        }
    }
}

/// What a level makes of every index of a byte, by way of its tables, are the values, [`BIAS`] added.
#[cfg(test)]
pub(super) fn assert_codes_of_indices(coarse: [u8; 256], fine: [u8; 256]) {
    let value = |code: u8| i32::from(code) - BIAS;
    for n in 0..128 {
        let sign = if n < 64 { 1 } else { -1 };
        assert_eq!(value(coarse[n]), sign * i32::from(COARSE_MAGNITUDES[n % 64]), "{n}");
        assert_eq!(value(fine[n]), i32::from(FINE_MAGNITUDES[n]), "{n}");
        assert_eq!(value(fine[n + 128]), -i32::from(FINE_MAGNITUDES[n]), "{n}");
    }
}
