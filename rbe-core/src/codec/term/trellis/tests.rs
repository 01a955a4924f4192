//! The formula, row by row and around the cycle; what the values are, and the numbers of FORMAT.md.

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
    let [a, b, c] = SHIFTS[usize::from(bits) - 1][usize::from(state_bits) - 12].map(|shift| 1u64 << shift);
    let mut x = u64::from(state) << (32 - state_bits);
    x ^= x * a % (1 << 32);
    x ^= x / b;
    x ^= x * c % (1 << 32);
    let magnitudes = if bits > 2 { &FINE_MAGNITUDES[..] } else { &COARSE_MAGNITUDES[..] };
    let magnitude = magnitudes[(x % (1 << 31)) as usize / ((1 << 31) / magnitudes.len())];
    if x < 1 << 31 { magnitude } else { -magnitude }
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
fn the_values_are_the_quantiles_they_claim_to_be() {
    // The Gaussian's distribution function by Simpson's rule from the middle.
    let share = |q: f64| {
        let steps = 2000;
        let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let weight = |n: usize| if n.is_multiple_of(steps) { 1.0 } else { [2.0, 4.0][n % 2] };
        let sum: f64 = (0..=steps).map(|n| weight(n) * density(q * n as f64 / steps as f64)).sum();
        0.5 + sum * q / steps as f64 / 3.0
    };
    let quantile = |p: f64| {
        let (mut low, mut high) = (0.0, 5.0);
        for _ in 0..50 {
            let middle = (low + high) / 2.0;
            *(if share(middle) < p { &mut low } else { &mut high }) = middle;
        }
        low
    };
    // Magnitudes of the upper half of the quantiles.
    let magnitudes = |levels: u32, tail: f64| -> Vec<i8> {
        let g = |j: u32| {
            let q = quantile((f64::from(levels / 2 + j) + 0.5) / f64::from(levels));
            q + q.powi(3) / tail
        };
        let last = g(levels / 2 - 1);
        (0..levels / 2).map(|j| (127.0 * g(j) / last).round() as i8).collect()
    };
    assert_eq!(magnitudes(128, 64.0), COARSE_MAGNITUDES);
    assert_eq!(magnitudes(256, 40.0), FINE_MAGNITUDES);
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
        let values = 2 * code.magnitudes().len();
        assert!(reached.iter().enumerate().all(|(index, reached)| *reached == (index < values)), "{code:?}");
    }
}

#[test]
fn the_formats_numbers_are_these() {
    let format = include_str!("../../../../FORMAT.md");
    let (_, section) = format.split_once("#### Trellis (code 4)").unwrap();
    let (section, _) = section.split_once("\n### ").unwrap();
    let numbers = |text: &str| -> Vec<u8> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    let (_, shifts) = section.split_once("| `a, b, c` |").unwrap();
    let rows = shifts.lines().filter_map(|line| line.strip_prefix("| `n` = "));
    let expected = (1..).zip(SHIFTS).map(|(bits, shifts)| [&[bits][..], shifts.as_flattened()].concat());
    assert!(rows.map(numbers).eq(expected));

    let is_table =
        |line: &&str| line.starts_with("    ") && !line.contains(|c: char| !c.is_ascii_digit() && c != ' ');
    let magnitudes: Vec<u8> = section.lines().filter(is_table).flat_map(numbers).collect();
    let expected = COARSE_MAGNITUDES.iter().chain(&FINE_MAGNITUDES).map(|magnitude| magnitude.unsigned_abs());
    assert!(magnitudes.into_iter().eq(expected));
}
