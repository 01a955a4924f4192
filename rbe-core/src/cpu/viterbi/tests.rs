//! The search against every bit sequence, every level against the portable one, bytes against words, the seam.

use super::*;
use crate::codec::term::trellis::Code;
use crate::cpu::kernels::{ByteRow, DEAD, Kernels, OVERREAD};
use crate::cpu::layout::planes::Line;
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

/// The states of rows that follow class `across`.
fn states(book: &Codebook, across: usize, codes: &[u8]) -> Vec<usize> {
    let mut states = vec![across; codes.len() + 1];
    for row in (0..codes.len()).rev() {
        let state = states[row + 1] << book.code.bits() | usize::from(codes[row]);
        states[row] = state & (book.values.len() - 1);
    }
    states.truncate(codes.len());
    states
}

/// What a search for the path between two classes finds, and what costs least of all: in units of [`cost`].
fn found_and_least(book: &Codebook, costs: &mut impl Costs, targets: &[i16], ends: [usize; 2]) -> [u64; 2] {
    let (rows, bits) = (targets.len(), usize::from(book.code.bits()));
    let total = |states: &[usize]| {
        let cost = |(s, t): (&usize, &i16)| u64::from(cost(*t, book.values[*s]));
        states.iter().zip(targets).map(cost).sum::<u64>()
    };
    let mut codes = vec![0; rows];
    assert!(search(costs, book, targets, Some(ends), |row, code| codes[row] = code));
    let path = states(book, ends[0], &codes);
    assert_eq!(path[0] % book.classes(), ends[1], "k {bits}: a path to another class");
    let all = (0..1u32 << (rows * bits)).filter_map(|word| {
        let code = |row: usize| (word >> (row * bits)) as u8 & ((1 << bits) - 1);
        let states = states(book, ends[0], &(0..rows).map(code).collect::<Vec<_>>());
        (states[0] % book.classes() == ends[1]).then(|| total(&states))
    });
    [total(&path), all.min().unwrap()]
}

/// Targets of a column of `rows`, in a search's fixed point.
fn targets(book: &Codebook, rows: usize) -> Vec<i16> {
    let fixed = |x: &f32| (x * 20.0 * f32::from(1u16 << shift(book.code))) as i16;
    gaussian(rows, 5).iter().map(fixed).collect()
}

#[test]
fn a_path_with_fixed_ends_is_the_best_of_all() {
    // Without a seam to decide, Viterbi's search is exact: compare with every sequence that begins and ends with
    // the given bits.
    for (bits, rows) in [(1, 14), (2, 8), (3, 5)] {
        let book = Codebook::new(Code::new(bits, 12));
        for across in [0, 77, book.classes() - 1] {
            let ends = [across, (across * 31 + 5) % book.classes()];
            let [found, least] = found_and_least(&book, &mut Words::default(), &targets(&book, rows), ends);
            assert_eq!(found, least, "k {bits} across {across}");
        }
    }
}

#[test]
fn with_bytes_a_path_is_the_best_but_for_rounding() {
    for (bits, rows) in [(1, 16), (2, 8), (3, 5), (4, 4)] {
        let book = Codebook::new(Code::new(bits, 14));
        for across in (0..book.classes()).step_by(book.classes() / 8 - 1) {
            let targets = targets(&book, rows);
            // A class that a path of those that the search takes for likely ends in.
            let mut codes = vec![0; rows];
            let mut costs = ByteCosts::default();
            assert!(costs.run(&book, &targets, Some(across)));
            let end = place_of_least(costs.before(&book, rows));
            search(&mut costs, &book, &targets, Some([across, end]), |row, code| codes[row] = code);
            let [found, least] = found_and_least(&book, &mut costs, &targets, [across, end]);
            // A row's cost is rounded, that of the first few together.
            let rounding = (rows as u64) << codebook::dropped(book.code);
            assert!(found <= least + rounding, "k {bits} across {across}: {found}, {least}");
        }
    }
}

#[test]
fn what_bytes_do_not_reach_is_found_with_words() {
    let book = Codebook::new(Code::new(4, 14));
    let mut search = Search { part: vec![0; 6], ..Search::default() };
    // To classes of large values, where all targets are zero: too far behind the best for a byte.
    let unreached = (0..book.classes()).map(|end| [77, end]).filter(|ends| {
        !super::search(&mut ByteCosts::default(), &book, &search.part, Some(*ends), |_, _| ())
    });
    let unreached: Vec<_> = unreached.take(3).collect();
    assert_eq!(unreached.len(), 3);
    for ends in unreached {
        let mut codes = vec![0; 6];
        search.path(&book, Some(ends), |row, code| codes[row] = code);
        assert_eq!(states(&book, ends[0], &codes)[0] % book.classes(), ends[1]);
    }
}

/// The root of the mean squared error over columns of a Gaussian, relative.
fn relative_error(book: &Codebook, search: &mut Search, columns: usize, rows: usize) -> f64 {
    let scale = [0.05, 0.0518, 0.0518, 0.0543][usize::from(book.code.bits()) - 1];
    let mut error = 0.0;
    for seed in 0..columns {
        let column = gaussian(rows, seed as u64);
        let (mut codes, mut values) = (vec![0; rows], vec![0; rows]);
        search.column(book, &column, scale, &mut codes, &mut values);
        error += f64::from(squared_error(&column, scale, &values));
    }
    (error / (columns * rows) as f64).sqrt()
}

#[test]
fn bytes_leave_the_error_of_words() {
    for bits in 1..=4 {
        let bytes = Codebook::new(Code::new(bits, 14));
        let words = Codebook { bytes: None, ..bytes.clone() };
        let [with_bytes, with_words] =
            [&bytes, &words].map(|book| relative_error(book, &mut Search::default(), 8, 200));
        assert!((with_bytes / with_words - 1.0).abs() < 0.002, "k {bits}: {with_bytes} {with_words}");
    }
}

#[test]
fn over_the_seam_once_is_as_good_as_back_to_it() {
    for (bits, state_bits) in [(1, 12), (2, 12), (3, 12), (4, 12), (1, 14), (4, 14)] {
        let book = Codebook::new(Code::new(bits, state_bits));
        let mut search = Search::default();
        let (rows, columns, mut met) = (256, 16, 0);
        let (mut once, mut twice) = (0.0, 0.0);
        for seed in 0..columns {
            let column = gaussian(rows, seed);
            let (mut codes, mut values) = (vec![0; rows], vec![0; rows]);
            search.column(&book, &column, 0.05, &mut codes, &mut values);
            once += squared_error(&column, 0.05, &values);
            met += usize::from(search.around(&book, MAX_DEPTH, &mut codes));
            // Once around without the seam, and then the rows on both sides of it.
            search.take_part(0, rows);
            search.path(&book, None, |n, code| codes[n] = code);
            search.mend_seam(&book, MAX_DEPTH, 0, &mut codes);
            book.code.decode(&codes, &mut values);
            twice += squared_error(&column, 0.05, &values);
        }
        assert!(once <= 1.005 * twice, "k {bits} L {state_bits}: {once}, {twice}");
        // Nearly always; with one bit, two paths may go side by side for long.
        assert!(met >= columns as usize / 2, "k {bits} L {state_bits}: {met} of {columns}");
    }
}

#[test]
fn every_level_finds_the_same_bits() {
    for bits in 1..=4 {
        for state_bits in [12, 13, 14, 16] {
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
fn a_step_in_bytes_is_the_same_on_every_level() {
    for bits in 1..=4 {
        let step = |level, target, excess| {
            let book = on(level, Code::new(bits, 14));
            let bytes = book.bytes.as_ref().unwrap();
            let living = |n: usize| (n * 7919 % 251) as u8 | excess;
            let before = (0..book.classes()).map(|n| if n % 3 == 0 { living(n) } else { DEAD });
            let before: Vec<_> = before.collect();
            let row = ByteRow { blocks: &bytes.blocks, target, before: &before, excess };
            let mut next = vec![0; book.classes()];
            let mut table = vec![Line([0; 64]); bytes.blocks.table_lines()];
            let least = bytes.step.run(row, &mut table, &mut next);
            (next, least)
        };
        for (target, excess) in [(i16::MIN, 0), (-20_000, 64), (-1, 32), (0, 0), (333, 128), (i16::MAX, 0)] {
            let expected = step(levels()[0], target, excess);
            assert_eq!(Some(&expected.1), expected.0.iter().min());
            for level in levels() {
                assert!(step(level, target, excess) == expected, "{level:?} k {bits} target {target}");
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
    for (bits, state_bits) in [(1, 12), (2, 12), (3, 12), (4, 12), (1, 14), (4, 16)] {
        let book = Codebook::new(Code::new(bits, state_bits));
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
