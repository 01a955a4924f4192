//! Payloads that are nearly valid: a valid one with something changed, and its checksum made right again.

use super::random::Random;
use super::seeds::Seed;

/// Bytes of the header.
const HEADER: usize = 40;
/// Bytes of the checksum.
const CHECKSUM: usize = 4;
/// Where in the header the number of terms lies.
const TERM_COUNT: usize = 19;

/// Makes the checksum right.
pub(crate) fn seal(bytes: &mut [u8]) {
    if let Some(at) = bytes.len().checked_sub(CHECKSUM) {
        let checksum = crc32fast::hash(&bytes[..at]);
        bytes[at..].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// A number that is a limit of something.
fn limit(random: &mut Random) -> Vec<u8> {
    const F16: [u16; 11] = [0, 1, 0x3ff, 0x400, 0x3c00, 0x7bff, 0x7c00, 0x7e00, 0x8000, 0xbc00, 0xfbff];
    const U8: [u8; 23] =
        [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 31, 32, 64, 127, 128, 129, 130, 131, 132, 254, 255];
    const U32: [u32; 27] = [
        0,
        1,
        2,
        31,
        32,
        33,
        63,
        64,
        65,
        127,
        128,
        255,
        256,
        257,
        65_535,
        65_536,
        // Powers of two around the smallest and the largest unit, and other floats at an end.
        0x0080_0000,
        0x0f80_0000,
        0x3f80_0000,
        0x7300_0000,
        0x7380_0000,
        0x7f7f_ffff,
        0x7f80_0000,
        0x7fff_ffff,
        0x8000_0000,
        0xff7f_ffff,
        0xffff_ffff,
    ];
    match random.below(5) {
        0 => vec![random.of(&U8)],
        1 => random.of(&F16).to_le_bytes().to_vec(),
        2 => random.of(&U32).to_le_bytes().to_vec(),
        3 => (random.next() as u32 >> random.below(32)).to_le_bytes().to_vec(),
        _ => (1u64 << random.below(64)).to_le_bytes().to_vec(),
    }
}

/// Writes bytes over others.
fn write(bytes: &mut [u8], at: usize, new: &[u8]) {
    bytes.iter_mut().skip(at).zip(new).for_each(|(byte, new)| *byte = *new);
}

/// Somewhere behind the header.
fn behind_header(bytes: &[u8], random: &mut Random) -> usize {
    let room = bytes.len().saturating_sub(HEADER);
    (HEADER + random.below(room)).min(bytes.len())
}

/// Other sizes: of the matrix, of its blocks, of the payload.
fn change_sizes(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.len() < HEADER {
        return;
    }
    let edge = random.of(&[32u16, 64, 128, 256]);
    for at in [8, 12] {
        let side = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let whole = side.div_ceil(edge.into()).wrapping_mul(edge.into());
        let other = match random.below(7) {
            0 | 1 => side,
            2 => whole.wrapping_sub(random.below(edge.into()) as u32),
            3 => side.wrapping_add(1),
            4 => side.wrapping_sub(1),
            5 => random.next() as u32 >> random.below(32),
            _ => whole,
        };
        write(bytes, at, &other.to_le_bytes());
    }
    if random.below(3) == 0 {
        write(bytes, 16, &edge.to_le_bytes());
    }
    for at in [6, 7] {
        if random.below(3) == 0 {
            bytes[at] = random.below(3) as u8;
        }
    }
    if random.below(4) == 0 {
        bytes.truncate(random.below(bytes.len()).max(HEADER + CHECKSUM));
    }
    if random.below(4) == 0 {
        let fill = if random.below(2) == 0 { 0 } else { random.next() as u8 };
        let at = bytes.len() - CHECKSUM;
        bytes.splice(at..at, std::iter::repeat_n(fill, random.below(2000)));
    }
}

/// One change of `bytes`; `other` is another payload to take from.
fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    match random.below(12) {
        0 => {
            for _ in 0..1 + random.below(8) {
                let (at, len) = (random.below(bytes.len()), 1 + random.below(8));
                let new: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
                write(bytes, at, &new);
            }
        }
        1 => {
            let bit = random.below(8 * bytes.len());
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
        2 => {
            bytes.truncate(random.below(bytes.len()));
            bytes.extend([0; CHECKSUM]);
        }
        3 => {
            let at = random.below(bytes.len());
            let from = if random.below(2) == 0 { at.min(other.len()) } else { random.below(other.len()) };
            bytes.truncate(at);
            bytes.extend(&other[from..]);
        }
        4 => {
            bytes.truncate(HEADER);
            bytes.extend(other.iter().skip(HEADER));
        }
        5 if bytes.len() > HEADER + CHECKSUM && other.len() > HEADER => {
            // The terms of both.
            bytes.truncate(bytes.len() - CHECKSUM);
            bytes.extend(&other[HEADER..]);
            bytes[TERM_COUNT] = bytes[TERM_COUNT].wrapping_add(other[TERM_COUNT]);
        }
        5 | 6 => change_sizes(bytes, random),
        7 => {
            // The fields at the beginning of a term.
            for _ in 0..1 + random.below(3) {
                let at = HEADER + random.below(bytes.len().saturating_sub(HEADER).min(80));
                write(bytes, at, &limit(random));
            }
        }
        8 => {
            for _ in 0..1 + random.below(4) {
                let at = random.below(bytes.len());
                write(bytes, at, &limit(random));
            }
        }
        9 => {
            let (at, len) = (behind_header(bytes, random), 1 + random.below(16));
            bytes.drain(at..(at + len).min(bytes.len()));
        }
        10 => {
            let (at, fill, len) = (behind_header(bytes, random), random.next() as u8, 1 + random.below(16));
            bytes.splice(at..at, std::iter::repeat_n(fill, len));
        }
        _ => {
            let (from, to) = (behind_header(bytes, random), behind_header(bytes, random));
            let part: Vec<u8> = bytes.iter().skip(from).take(1 + random.below(32)).copied().collect();
            write(bytes, to, &part);
        }
    }
}

/// A payload with a change or a few, its checksum right but for one in sixteen.
pub(crate) fn mutant(bytes: &[u8], seeds: &[Seed], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let changes = if random.below(4) == 0 { 2 + random.below(3) } else { 1 };
    for _ in 0..changes {
        let other = &seeds[random.below(seeds.len())].bytes;
        change(&mut bytes, other, random);
    }
    if random.below(16) > 0 {
        seal(&mut bytes);
    }
    bytes
}
