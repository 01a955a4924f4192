//! `cargo +nightly fuzz run payload`: any bytes as a payload. Mutants and what must hold of them are those of the test in
//! `tests/fuzz`; libFuzzer chooses which are worth keeping. Without a corpus it begins with the test's own payloads.
#![no_main]

#[path = "../../tests/fuzz/check.rs"]
mod check;
#[path = "../../tests/fuzz/memory.rs"]
mod memory;
#[path = "../../tests/fuzz/mutate.rs"]
mod mutate;
#[path = "../../tests/fuzz/random.rs"]
mod random;
#[path = "../../tests/samples/mod.rs"]
mod samples;
#[path = "../../tests/fuzz/seeds.rs"]
mod seeds;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use random::Random;
use seeds::Seed;
use std::sync::LazyLock;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

static SEEDS: LazyLock<Vec<Seed>> = LazyLock::new(|| seeds::seeds(&mut Random::new(1), 12_000));

fuzz_target!(|bytes: &[u8]| {
    check::check(bytes, &mut Random::new(bytes.len() as u64));
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut random = Random::new(seed.into());
    let mutant = match random.below(4) {
        // libFuzzer's own changes, which know what they reached.
        0 | 1 => {
            let size = fuzzer_mutate(data, size, max_size);
            mutate::seal(&mut data[..size]);
            return size;
        }
        // Another of our payloads, now and then: else what they hold would be found byte by byte.
        2 if random.below(16) == 0 => SEEDS[random.below(SEEDS.len())].bytes.clone(),
        _ => mutate::mutant(&data[..size], &SEEDS, &mut random),
    };
    let size = mutant.len().min(max_size);
    data[..size].copy_from_slice(&mutant[..size]);
    size
});
