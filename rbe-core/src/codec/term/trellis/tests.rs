//! The formula, row by row and around the cycle; what the values are, and the numbers of FORMAT.md.

use super::code::{CODEBOOKS, Codebook};
use super::*;

/// Scale groups with all numbers of bits in turn and codes of no pattern.
fn quantized(layout: Layout) -> Vec<QuantizedGroup> {
    scale_groups(layout)
        .map(|scale_group| {
            let bits = (scale_group.index % 5) as u8;
            let code = |n: usize| (n * n * 37 + n / 5 + scale_group.index) as u8 & ((1 << bits) - 1);
            QuantizedGroup {
                bits,
                scale: f16::from_f32(0.25 + scale_group.index as f32),
                codes: if bits == 0 { Vec::new() } else { (0..scale_group.len()).map(code).collect() },
            }
        })
        .collect()
}

/// The definition, bit by bit: row `r`'s state from the codes of the rows that follow, around and around.
fn state(codes: &[u8], bits: u8, state_bits: u8, row: usize) -> u32 {
    (0..u32::from(state_bits)).fold(0, |state, i| {
        let (ahead, bit) = (i / u32::from(bits), i % u32::from(bits));
        let code = codes[(row + ahead as usize) % codes.len()];
        state | u32::from(code >> bit & 1) << i
    })
}

/// The definition in numbers alone.
fn value(bits: u8, state_bits: u8, state: u32) -> i8 {
    let Codebook { columns, levels, offsets, .. } = CODEBOOKS[usize::from(bits.saturating_sub(2))];
    let set = (0..state_bits).filter(|bit| state >> bit & 1 == 1);
    let index = set.fold(0, |index, bit| index ^ columns[usize::from(bit)]);
    let (level, offset) = (index % 16, offsets[usize::from(index / 16)]);
    let twice = bits == 4 && [0, 15].contains(&level);
    levels[usize::from(level)] + if twice { 2 * offset } else { offset }
}

#[test]
fn decodes_the_formula_for_every_number_of_bits_and_border() {
    for state_bits in STATE_BITS {
        for (rows, cols, edge) in [(1, 40, 32), (5, 170, 32), (40, 170, 32), (300, 200, 256)] {
            let layout = Layout::new(rows, cols, edge).unwrap();
            let source = quantized(layout);
            let unit = 0.5;
            let term = Trellis::pack(layout, state_bits, unit, &source);
            let mut decoded = vec![0.0; rows * cols];
            for block in layout.iter() {
                let mut tile = vec![0.0; block.len()];
                term.add_rows(block, 0..block.height, &mut tile);
                for (n, value) in tile.iter().enumerate() {
                    decoded[(block.row + n / block.width) * cols + block.col + n % block.width] = *value;
                }
            }
            for (scale_group, source) in scale_groups(layout).zip(&source) {
                for n in 0..scale_group.len() {
                    let (col, row) = (n / scale_group.height, n % scale_group.height);
                    let exact = if source.bits == 0 {
                        0.0
                    } else {
                        let codes = &source.codes[col * scale_group.height..][..scale_group.height];
                        let state = state(codes, source.bits, state_bits, row);
                        let value = value(source.bits, state_bits, state);
                        f32::from(value) * source.scale.to_f32() * unit
                    };
                    assert_eq!(
                        decoded[(scale_group.row + row) * cols + scale_group.col + col],
                        exact,
                        "L {state_bits}, {rows}x{cols}, scale_group {}, row {row}",
                        scale_group.index
                    );
                }
            }
        }
    }
}

#[test]
fn rows_of_a_block_are_a_slice_of_the_block() {
    let layout = Layout::new(70, 200, 64).unwrap();
    let term = Trellis::pack(layout, 13, 1.0, &quantized(layout));
    for block in layout.iter() {
        let mut whole = vec![0.0; block.len()];
        term.add_rows(block, 0..block.height, &mut whole);
        for row in 0..block.height {
            let mut one = vec![0.0; block.width];
            term.add_rows(block, row..row + 1, &mut one);
            assert_eq!(one, whole[row * block.width..][..block.width]);
        }
    }
}

#[test]
fn a_rotation_of_the_codes_is_a_rotation_of_the_values() {
    // Tail-biting: no row is the first.
    let layout = Layout::new(57, 1, 64).unwrap();
    let codes: Vec<u8> = (0..57).map(|n: usize| (n * n / 3 % 8) as u8).collect();
    let decode = |codes: Vec<u8>| {
        let scale_group = QuantizedGroup { bits: 3, scale: f16::ONE, codes };
        let term = Trellis::pack(layout, 16, 1.0, &[scale_group]);
        let mut out = vec![0.0; 57];
        term.add_rows(layout.block_at(0, 0), 0..57, &mut out);
        out
    };
    let mut values = decode(codes.clone());
    let mut rotated = codes;
    for _ in 0..57 {
        rotated.rotate_left(1);
        values.rotate_left(1);
        assert_eq!(decode(rotated.clone()), values);
    }
}

#[test]
fn values_are_signed_bytes_of_seven_bits_in_pairs() {
    for bits in 1..=MAX_BITS {
        let code = Code::new(bits, 12);
        let last = code.indices() - 1;
        for index in 0..=last {
            let value = code.value_of_index(index as u8);
            assert!(value.unsigned_abs() <= 63, "{bits} bits, index {index}: {value}");
            assert_eq!(code.value_of_index((last - index) as u8), -value, "{bits} bits, index {index}");
        }
        // Levels and offsets are in their order.
        let Codebook { levels, offsets, .. } = code.codebook();
        assert!(levels.is_sorted() && offsets.is_sorted());
    }
}

#[test]
fn windows_say_what_states_do() {
    for code in (0..Code::COUNT).map(Code::numbered) {
        let windows = code.windows();
        for state in 0..=u16::MAX >> (16 - code.state_bits()) {
            let at = |start: u8| usize::from(state >> start & 15);
            let of = |[first, second, third]: [u8; 3], mix: [[u8; 16]; 2]| {
                at(first) ^ usize::from(mix[0][at(second)]) ^ usize::from(mix[1][at(third)])
            };
            let level = of(windows.starts[0], windows.mix_level);
            let offset = windows.offsets[of(windows.starts[1], windows.mix_offset)];
            let times = if windows.doubled[level] { 2 } else { 1 };
            assert_eq!(windows.levels[level] + times * offset, code.value(state), "{code:?} {state:x}");
        }
    }
}

#[test]
fn the_bits_of_a_row_choose_among_different_values() {
    for code in (0..Code::COUNT).map(Code::numbered) {
        for ahead in 0..=u16::MAX >> (16 - code.state_bits() + code.bits()) {
            let own = 0..1 << code.bits();
            let mut indices: Vec<_> = own.map(|own| code.index(ahead << code.bits() | own)).collect();
            indices.sort();
            indices.dedup();
            assert_eq!(indices.len(), 1 << code.bits(), "{code:?} {ahead:x}");
        }
    }
}

#[test]
fn an_index_is_the_sum_of_its_bits() {
    for code in (0..Code::COUNT).map(Code::numbered) {
        assert_eq!((Code::numbered(code.number()), Code::new(code.bits(), code.state_bits())), (code, code));
        let mut reached = [false; 256];
        for state in 0..=u16::MAX >> (16 - code.state_bits()) {
            let bits = (0..16).map(|bit| code.index(state & 1 << bit));
            assert_eq!(code.index(state), bits.fold(0, |sum, index| sum ^ index), "{code:?} {state:x}");
            reached[usize::from(code.index(state))] = true;
        }
        let indices = code.indices();
        assert!(reached.iter().enumerate().all(|(index, reached)| *reached == (index < indices)), "{code:?}");
    }
}

#[test]
fn the_formats_numbers_are_these() {
    let format = include_str!("../../../../FORMAT.md");
    let (_, section) = format.split_once("#### Trellis (code 4)").unwrap();
    let (section, _) = section.split_once("\n### ").unwrap();
    let numbers = |line: &str| -> Vec<i32> {
        let words = line.split(|c: char| !c.is_ascii_digit() && c != '-');
        words.filter_map(|number| number.parse().ok()).collect()
    };
    let lines = |prefix: &str| -> Vec<Vec<i32>> {
        section.lines().filter_map(|line| line.strip_prefix(prefix)).map(numbers).collect()
    };
    let of_books = |of: fn(&Codebook) -> Vec<i32>| CODEBOOKS.iter().map(of).collect::<Vec<_>>();
    let signed = |numbers: &[i8]| numbers.iter().map(|n| i32::from(*n)).collect::<Vec<_>>();
    assert_eq!(lines("    c      "), of_books(|book| book.columns.map(i32::from).to_vec()));
    assert_eq!(lines("    level  "), of_books(|book| book.levels.map(i32::from).to_vec()));
    assert_eq!(lines("    offset "), CODEBOOKS.each_ref().map(|book| signed(book.offsets)));
}
