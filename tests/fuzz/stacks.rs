//! Mutants of stacks: what is read of one is inside it, and costs little.

use super::memory::peak_of;
use super::random::Random;
use candle_rbe::codec::stack::Stack;

/// Mutants.
const CASES: usize = 20_000;
/// Bytes before the lengths.
const HEADER: usize = 20;

/// A stack of a few payloads of any bytes.
fn seed(random: &mut Random) -> Vec<u8> {
    let payloads: Vec<Vec<u8>> = (0..1 + random.below(5))
        .map(|_| (0..random.below(40)).map(|_| random.below(256) as u8).collect())
        .collect();
    Stack::to_bytes(1 + random.below(9), 1 + random.below(9), &payloads).expect("small numbers")
}

/// One with bytes changed, cut off or added, most of them under a right checksum.
fn mutant(random: &mut Random) -> Vec<u8> {
    let mut bytes = seed(random);
    let count = bytes[8] as usize;
    for _ in 0..1 + random.below(3) {
        let at = random.below(bytes.len().min(HEADER + 8 * count + 8));
        bytes[at] = [0, 1, 255, random.below(256) as u8][random.below(4)];
    }
    match random.below(6) {
        0 => bytes.truncate(random.below(bytes.len())),
        1 => bytes.extend_from_slice(&[0; 9][..random.below(9)]),
        _ => {}
    }
    let end = HEADER + 8 * usize::from(*bytes.get(8).unwrap_or(&0));
    if random.below(8) > 0 && bytes.len() >= end + 4 {
        let checksum = crc32fast::hash(&bytes[..end]).to_le_bytes();
        bytes[end..end + 4].copy_from_slice(&checksum);
    }
    bytes
}

#[test]
fn stacks_are_read_within_their_bytes() {
    let _alone = super::ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut random = Random::new(7);
    let mut accepted = 0;
    for _ in 0..CASES {
        let bytes = mutant(&mut random);
        let (read, peak) = peak_of(|| Stack::from_bytes(&bytes).map(|stack| stack.shape()));
        assert!(peak <= 64 * bytes.len() + 4096, "{peak} bytes for {}", bytes.len());
        let Ok([count, rows, cols]) = read else { continue };
        accepted += 1;
        let stack = Stack::from_bytes(&bytes).expect("accepted before");
        assert_eq!(stack.parts().len(), count);
        assert!(rows * cols * count <= (1 << 24) + (1 << 13) * bytes.len());
        let payloads: Vec<Vec<u8>> = stack.parts().iter().map(|part| part.to_vec()).collect();
        assert_eq!(Stack::to_bytes(rows, cols, &payloads).expect("its own parts"), bytes);
    }
    assert!(accepted * 50 > CASES && accepted * 2 < CASES, "{accepted} of {CASES} were accepted");
}
