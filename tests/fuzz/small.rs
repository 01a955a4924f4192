//! Small payloads of large matrices: they are read in memory and time of their bytes, or refused.

use super::ALONE;
use super::memory::peak_of;
use super::mutate::seal;
use candle_rbe::RbeTensor;
use std::time::{Duration, Instant};

/// A payload of one term without signs, or with them.
fn payload(rows: u32, cols: u32, edge: u16, signs: bool, term: &[u8]) -> Vec<u8> {
    let mut bytes = b"RBET\x02\0\x01\0".to_vec();
    bytes.extend(rows.to_le_bytes());
    bytes.extend(cols.to_le_bytes());
    bytes.extend(edge.to_le_bytes());
    bytes.extend([u8::from(signs), 1]);
    bytes.extend(if signs { 7u64 } else { 0 }.to_le_bytes());
    bytes.extend([0; 12]);
    bytes.extend(term);
    bytes.extend([0; 4]);
    seal(&mut bytes);
    bytes
}

/// A term's code and first field, a unit of 1, and `zeros` bytes of counts and scales that are all 0.
fn term(code: u8, first: u8, zeros: usize) -> Vec<u8> {
    let mut term = vec![code, first];
    term.extend(1f32.to_le_bytes());
    term.extend(std::iter::repeat_n(0, zeros));
    term
}

/// Word32 without entries.
fn sparse(blocks: usize) -> Vec<u8> {
    term(2, 0, 2 * blocks)
}

/// No planes, and a scale for each block.
fn planes(blocks: usize) -> Vec<u8> {
    term(3, 0, 3 * blocks)
}

/// No bits, and a scale for each scale group.
fn trellis(scale_groups: usize) -> Vec<u8> {
    term(4, 12, 3 * scale_groups)
}

#[test]
fn payloads_of_nearly_nothing_are_read_in_proportion_to_their_bytes() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // A sparse term has 2 bytes for a block, planes 3, a trellis 3 for a scale group.
    for (name, bytes) in [
        ("signs of an axis of 2^24", payload(1 << 24, 1, 256, true, &sparse(1 << 16))),
        ("signs of an axis of 2^27", payload(1 << 27, 1, 256, true, &sparse(1 << 19))),
        ("signs of the other axis", payload(1, 1 << 27, 256, true, &sparse(1 << 19))),
        ("an axis of 2^27 without signs", payload(1 << 27, 1, 256, false, &sparse(1 << 19))),
        ("planes of 0 bits", payload(16_384, 16_384, 128, false, &planes(1 << 14))),
        ("planes of 0 bits in one row", payload(1, 1 << 26, 256, true, &planes(1 << 18))),
        ("sparse without entries", payload(65_536, 65_536, 128, true, &sparse(1 << 18))),
        ("a trellis of 0 bits", payload(65_536, 65_536, 256, false, &trellis(1 << 19))),
    ] {
        let start = Instant::now();
        let (tensor, peak) = peak_of(|| {
            let tensor = RbeTensor::from_bytes(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
            // What `inspect` and a second writing ask for.
            let sizes = (tensor.memory_in_bytes(), tensor.plain_size_in_bytes());
            assert_eq!(tensor.to_bytes().unwrap(), bytes, "{name}");
            (tensor, sizes)
        });
        let (length, took) = (bytes.len(), start.elapsed());
        println!("{name}: {length} bytes, {} times as many held, {took:?}", peak / length);
        assert!(peak <= 96 * length + (8 << 20), "{name}: {peak} bytes of memory for {length}");
        // A second for each megabyte, on the slowest machine; going through every element took three for 98 kB.
        let limit = Duration::from_secs(2) + Duration::from_micros(2 * length as u64);
        assert!(took < limit, "{name}: {took:?} for {length} bytes");
        drop(tensor);
    }
}

#[test]
fn more_elements_than_the_bytes_allow_are_refused() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for (name, bytes, elements) in [
        ("planes of 0 bits", payload(4096, 8192, 256, false, &planes(512)), "4096x8192"),
        ("sparse without entries", payload(65_536, 65_536, 256, false, &sparse(65_536)), "65536x65536"),
        ("a vector", payload(1, 1 << 30, 256, true, &sparse(1 << 22)[..1 << 12]), "1x1073741824"),
    ] {
        let (result, peak) = peak_of(|| RbeTensor::from_bytes(&bytes));
        let error = result.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(elements) && error.contains("8192 more for each byte"), "{name}: {error}");
        assert!(peak < 1 << 16, "{name}: {peak} bytes to refuse it");
    }
    // A zero matrix of 2^24 elements is allowed whatever its blocks are.
    let largest = payload(4096, 4096, 256, true, &sparse(256));
    assert_eq!(RbeTensor::from_bytes(&largest).unwrap().to_bytes().unwrap(), largest);
}
