//! A trellis's states to codes, one by one: what every level's own way is compared with.

use crate::codec::term::trellis::{Code, MAX_BITS};
use crate::cpu::layout::planes::{Line, QUAD};
use crate::cpu::layout::trellis::{BIAS, Bundle, FOLLOWING, PERIOD};

/// One `T` for each code.
pub(in crate::cpu) struct PerCode<T>(pub [T; Code::COUNT]);

impl<T> PerCode<T> {
    pub(in crate::cpu) fn of(&self, code: Code) -> &T {
        &self.0[code.number()]
    }
}

/// Bytes of a period and those that follow, at most.
const BYTES: usize = 2 * MAX_BITS as usize + FOLLOWING;

/// The lines of each byte of a register's periods and of those that follow.
#[inline(always)]
fn with_following(bundle: Bundle, bits: usize) -> [Line; BYTES] {
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
