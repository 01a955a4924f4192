//! Mutants of valid payloads: what is refused costs little, what is accepted keeps every promise. `fuzz/` has the same for
//! `cargo fuzz`.

mod check;
mod memory;
mod mutate;
mod random;
#[path = "../samples/mod.rs"]
mod samples;
mod seeds;
mod small;
mod stacks;

use check::check;
use mutate::mutant;
use random::Random;
use seeds::seeds;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Each test counts what the whole process holds.
static ALONE: Mutex<()> = Mutex::new(());

/// Mutants of a test run. More with `RBE_FUZZ_CASES`.
const CASES: usize = 12_000;
/// The largest payload that is changed: small ones are hit where it matters.
const MOST_BYTES: usize = 12_000;

/// Bytes as they are pasted into a test.
fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_is_read_costs_little_and_what_is_accepted_keeps_every_promise() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let cases =
        std::env::var("RBE_FUZZ_CASES").map_or(CASES, |cases| cases.parse().expect("a number of cases"));
    let seed = std::env::var("RBE_FUZZ_SEED").map_or(1, |seed| seed.parse().expect("a seed"));
    let mut random = Random::new(seed);
    let seeds = seeds(&mut random, MOST_BYTES);
    let run = |what: &str, bytes: &[u8], case: u64| {
        let run = || check(bytes, &mut Random::new(case));
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            let shown = if bytes.len() > 2000 { "too many to show".to_owned() } else { hexadecimal(bytes) };
            panic!("case {case} of seed {seed}, from {what}; {} bytes: {shown}", bytes.len())
        })
    };
    for (n, seed) in seeds.iter().enumerate() {
        assert!(run(&seed.name, &seed.bytes, n as u64), "{} is refused", seed.name);
    }
    let mut accepted = 0;
    for case in 0..cases {
        let from = &seeds[random.below(seeds.len())];
        let bytes = mutant(&from.bytes, &seeds, &mut random);
        accepted += usize::from(run(&from.name, &bytes, case as u64));
    }
    println!("{} payloads, {cases} mutants, {accepted} accepted", seeds.len());
    // Where the mutator only makes what the first check refuses, it tests nothing.
    assert!(accepted * 16 > cases && accepted * 2 < cases, "{accepted} of {cases} were accepted");
}
