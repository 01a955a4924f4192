//! A trellis's states to 8-bit codes: the tables, and the way that every level's own is compared with.

use crate::codec::term::trellis::{COARSE_MAGNITUDES, Code, FINE_MAGNITUDES, MAX_BITS};
use crate::cpu::kernels::isa::Bytes;
use crate::cpu::kernels::unroll::{each, per_code};
use crate::cpu::layout::planes::{Line, QUAD};
use crate::cpu::layout::trellis::{BIAS, Bundle, FOLLOWING, PERIOD};

/// One `T` for each code.
pub(in crate::cpu) struct PerCode<T>(pub [T; Code::COUNT]);

impl<T> PerCode<T> {
    pub(in crate::cpu) fn of(&self, code: Code) -> &T {
        &self.0[code.number()]
    }
}

/// For a state that begins with bit `o` of half a byte, what that half and the next four contribute to its index:
/// `[o][half][its value]`.
pub(in crate::cpu) type NibbleTables = [[[u8; 16]; 5]; 4];
pub(in crate::cpu) static NIBBLE_TABLES: PerCode<NibbleTables> = per_code!(nibble_tables, [[[0; 16]; 5]; 4]);

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
pub(in crate::cpu) const fn pieces(o: usize, state: usize, size: usize) -> usize {
    (o + state).div_ceil(size)
}

/// `value + BIAS` of the 128 indices of up to [`COARSE_BITS`](crate::codec::term::trellis::COARSE_BITS) bits.
pub(in crate::cpu) static COARSE_CODES: [Line; 2] = {
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
pub(in crate::cpu) static FINE_CODES: [Line; 2] = biased(&FINE_MAGNITUDES);

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
pub(in crate::cpu) const BYTES: usize = 2 * MAX_BITS as usize + FOLLOWING;

/// The lines of each byte of a register's periods and of those that follow.
#[inline(always)]
pub(in crate::cpu) fn with_following(bundle: Bundle, bits: usize) -> [Line; BYTES] {
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
pub(in crate::cpu) fn decode_bundle(bundle: Bundle, codes: &mut [Line], stride: usize) {
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

/// Look-ups in tables of sixteen bytes, and from an index to its code.
pub(in crate::cpu) trait Nibbles: Bytes {
    /// What [`codes_of`](Self::codes_of) looks up in.
    type Tables: Copy;

    /// Where either has a bit, but not both.
    fn xor(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// The table's bytes at indices below 16.
    fn look_up(self, table: &[u8; 16], index: Self::Register) -> Self::Register;
    /// The tables of a trellis of `BITS` bits.
    fn tables<const BITS: usize>(self) -> Self::Tables;
    /// `value + BIAS` of indices.
    fn codes_of<const BITS: usize>(self, tables: Self::Tables, index: Self::Register) -> Self::Register;
    /// Writes a part of a line.
    fn store(self, bytes: Self::Register, line: &mut Line, part: usize);
}

/// [`decode_bundle`], half a byte of all states at a time, for numbers of bits that are constants.
#[inline(always)]
pub(in crate::cpu) fn decode_nibbles<I: Nibbles, const BITS: usize, const STATE: usize>(
    isa: I,
    bundle: Bundle,
    codes: &mut [Line],
    stride: usize,
) {
    assert!(codes.len() > (PERIOD - 1) * stride);
    let tables = NIBBLE_TABLES.of(bundle.code);
    let lines = with_following(bundle, BITS);
    let (low, tables_of_codes) = (isa.splat(0x0f), isa.tables::<BITS>());
    for part in 0..I::PARTS {
        let mut nibbles = [isa.splat(0); 2 * BYTES];
        for (nibbles, line) in nibbles.as_chunks_mut::<2>().0.iter_mut().zip(&lines) {
            let bytes = isa.load(line, part);
            *nibbles = [isa.and(bytes, low), isa.and(isa.shift_right(bytes, 4), low)];
        }
        each!(S in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
            let (first, o) = (BITS * S / 4, BITS * S % 4);
            let mut index = isa.splat(0);
            for (table, nibble) in tables[o][..pieces(o, STATE, 4)].iter().zip(&nibbles[first..]) {
                index = isa.xor(index, isa.look_up(table, *nibble));
            }
            let values = isa.codes_of::<BITS>(tables_of_codes, index);
            // SAFETY: one of `codes`, by the assertion above.
            isa.store(values, unsafe { codes.get_unchecked_mut(S * stride) }, part);
        });
    }
}

/// What a level makes of every index of a byte, by way of its tables, are the values, [`BIAS`] added.
#[cfg(test)]
pub(in crate::cpu) fn assert_codes_of_indices(coarse: [u8; 256], fine: [u8; 256]) {
    let value = |code: u8| i32::from(code) - BIAS;
    for n in 0..128 {
        let sign = if n < 64 { 1 } else { -1 };
        assert_eq!(value(coarse[n]), sign * i32::from(COARSE_MAGNITUDES[n % 64]), "{n}");
        assert_eq!(value(fine[n]), i32::from(FINE_MAGNITUDES[n]), "{n}");
        assert_eq!(value(fine[n + 128]), -i32::from(FINE_MAGNITUDES[n]), "{n}");
    }
}
