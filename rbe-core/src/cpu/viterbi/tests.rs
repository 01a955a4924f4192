//! The search against every bit sequence, every level against the portable one, the seam.

use super::*;
use crate::cpu::{Level, levels};

/// The codebook that a level's kernels search.
fn on(level: Level, code: Code) -> Codebook {
    Codebook::with_kernels(code, &Kernels::new(level).unwrap())
}

/// A deterministic unit Gaussian: sums of twelve uniform numbers.
fn gaussian(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

fn squared_error(column: &[f32], scale: f32, values: &[i8]) -> f32 {
    column.iter().zip(values).map(|(x, value)| (x - scale * f32::from(*value)).powi(2)).sum()
}

#[test]
fn short_columns_get_the_best_of_all_sequences() {
    for (bits, rows) in [(1, 1), (1, 12), (2, 6), (3, 4), (4, 3)] {
        let book = Codebook::new(Code::new(bits, 12));
        for seed in 0..5 {
            let column = gaussian(rows, seed);
            let (mut codes, mut values) = (vec![0; rows], vec![0; rows]);
            Search::default().column(&book, &column, 0.02, &mut codes, &mut values);
            let error = squared_error(&column, 0.02, &values);
            let best = (0..1u32 << (rows * usize::from(bits))).map(|word| {
                let code = |row: usize| (word >> (row * usize::from(bits))) as u8 & ((1 << bits) - 1);
                let codes: Vec<u8> = (0..rows).map(code).collect();
                book.code.decode(&codes, &mut values);
                squared_error(&column, 0.02, &values)
            });
            let best = best.fold(f32::INFINITY, f32::min);
            assert!((error - best).abs() <= 1e-3 * best, "k {bits}, {rows} rows: {error} {best}");
        }
    }
}

#[test]
fn a_path_with_fixed_ends_is_the_best_of_all() {
    // Without a seam to decide, Viterbi's search is exact: compare with every sequence that begins and ends with
    // the given bits.
    for (bits, rows) in [(1, 14), (2, 8), (3, 5)] {
        let book = Codebook::new(Code::new(bits, 12));
        let targets: Vec<i16> = gaussian(rows, 5)
            .iter()
            .map(|x| (x * 50.0 * f32::from(1u16 << shift(book.code))) as i16)
            .collect();
        let mut search = Search::default();
        let states = |across: usize, codes: &[u8]| {
            let mut states = vec![across as u16; codes.len() + 1];
            for row in (0..codes.len()).rev() {
                let state = states[row + 1] << bits | u16::from(codes[row]);
                states[row] = state & (book.values.len() - 1) as u16;
            }
            states.truncate(codes.len());
            states
        };
        for across in [0, 77, book.classes() - 1] {
            search.part.clone_from(&targets);
            search.run(&book, Some(across));
            let end = (across * 31 + 5) % book.classes();
            let total = |states: &[u16]| {
                let cost = |(s, t): (&u16, &i16)| u64::from(cost(*t, book.values[usize::from(*s)]));
                states.iter().zip(&targets).map(cost).sum::<u64>()
            };
            let mut codes = vec![0; rows];
            search.follow(&book, end, |row, code| codes[row] = code);
            let path = states(across, &codes);
            let mut least = u64::MAX;
            for word in 0..1u32 << (rows * usize::from(bits)) {
                let code = |row: usize| (word >> (row * usize::from(bits))) as u8 & ((1 << bits) - 1);
                let states = states(across, &(0..rows).map(code).collect::<Vec<_>>());
                if usize::from(states[0]) % book.classes() == end {
                    least = least.min(total(&states));
                }
            }
            assert_eq!(total(&path), least, "k {bits} across {across}");
        }
    }
}

#[test]
fn every_level_finds_the_same_bits() {
    for bits in 1..=4 {
        for state_bits in [12, 13, 16] {
            for rows in [1, 3, 4, 13, 64, 256] {
                let column = gaussian(rows, rows as u64);
                let results = levels().into_iter().map(|level| {
                    let book = on(level, Code::new(bits, state_bits));
                    let (mut codes, mut values) = (vec![0; rows], vec![0; rows]);
                    Search::default().column(&book, &column, 0.023, &mut codes, &mut values);
                    (codes, values)
                });
                let results: Vec<_> = results.collect();
                assert!(
                    results.windows(2).all(|pair| pair[0] == pair[1]),
                    "k {bits} L {state_bits} {rows} rows"
                );
            }
        }
    }
}

#[test]
fn a_step_is_the_same_on_every_level_to_the_last_unit_of_cost() {
    for bits in 1..=4 {
        let step = |level, target| {
            let book = on(level, Code::new(bits, 12));
            let costs: Vec<u16> = (0..book.classes() + OVERREAD).map(|n| (n * 7919 % 32749) as u16).collect();
            let mut next = vec![0; book.classes()];
            let least = book.step.run(&costs, &book.values, target, &mut next);
            (next, least)
        };
        // The differences of the first saturate at -2^15, whose square is the only one to need 16 bits.
        for target in [i16::MIN, -20_000, -1, 0, 333, i16::MAX] {
            let expected = step(levels()[0], target);
            assert_eq!(expected.1, expected.0.iter().copied().fold(u16::MAX, u16::min));
            for level in levels() {
                assert!(step(level, target) == expected, "{level:?} k {bits} target {target}");
            }
        }
    }
}

#[test]
fn a_search_may_be_used_again_for_any_code() {
    let mut search = Search::default();
    for (bits, state_bits, rows) in [(1, 12, 256), (4, 14, 9), (2, 12, 100), (3, 12, 1)] {
        let book = Codebook::new(Code::new(bits, state_bits));
        let column = gaussian(rows, 3);
        let run = |search: &mut Search| {
            let (mut codes, mut values) = (vec![0; rows], vec![0; rows]);
            search.column(&book, &column, 0.02, &mut codes, &mut values);
            codes
        };
        assert_eq!(run(&mut search), run(&mut Search::default()));
    }
}

#[test]
fn outliers_and_zeros_do_no_harm() {
    for bits in 1..=4 {
        let book = Codebook::new(Code::new(bits, 12));
        for column in [vec![0.0; 50], vec![1e30; 50], vec![-1e30; 50]] {
            let (mut codes, mut values) = (vec![9; 50], vec![0; 50]);
            Search::default().column(&book, &column, 1.0, &mut codes, &mut values);
            assert!(codes.iter().all(|code| *code < 1 << bits));
            let sum: i32 = values.iter().map(|value| i32::from(*value)).sum();
            let good = match column[0] {
                0.0 => sum.abs() < 600,
                outlier => sum as f32 * outlier.signum() > 600.0,
            };
            assert!(good, "{bits} bits, {}: {sum}", column[0]);
        }
    }
}
