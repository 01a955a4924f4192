use super::*;

/// Every `step`-th position of each block, with values over three decades.
fn entries(layout: Layout, step: usize) -> Vec<Vec<Entry>> {
    layout
        .iter()
        .map(|block| {
            (block.index % step..block.len())
                .step_by(step)
                .map(|n| Entry {
                    row: (n / block.width) as u8,
                    col: (n % block.width) as u8,
                    value: (n as f32 * 1.7).sin() * 0.1f32.powf((n % 3) as f32),
                })
                .collect()
        })
        .collect()
}

#[test]
fn every_format_gives_back_positions_exactly_and_values_within_its_step() {
    for block in [32, 64, 128, 256] {
        let layout = Layout::new(300, 171, block).unwrap();
        for step in [1, 3, 50, 100_000] {
            let blocks = entries(layout, step);
            for format in FORMATS.into_iter().filter(|format| format.allows(block)) {
                if blocks.iter().any(|block| block.len() > 65535) {
                    continue;
                }
                let sparse = Sparse::pack(layout, format, &blocks).unwrap();
                for (block, expected) in layout.iter().zip(&blocks) {
                    let got = sparse.entries(block);
                    assert_eq!(got.len(), expected.len());
                    let largest = expected.iter().fold(0f32, |m, e| m.max(e.value.abs()));
                    for (a, b) in got.iter().zip(expected) {
                        assert_eq!((a.row, a.col), (b.row, b.col), "{format:?}");
                        let bound = match format {
                            Format::Word32 | Format::RowMask => b.value.abs() / 2048.0 + 1e-9,
                            Format::Word24 => largest * (0.5 / 511.0 + 1e-3),
                            // Half a level at the top of the scale is 2.3 % of the value there.
                            Format::Word24Mu => b.value.abs() * 0.025 + largest * 1.3e-3,
                        };
                        assert!((a.value - b.value).abs() <= bound, "{format:?}: {a:?} {b:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn rows_of_a_block_are_a_slice_of_the_block() {
    let layout = Layout::new(70, 45, 64).unwrap();
    for format in FORMATS {
        let sparse = Sparse::pack(layout, format, &entries(layout, 2)).unwrap();
        for block in layout.iter() {
            let mut whole = vec![0.0; block.len()];
            sparse.add_rows(block, 0..block.height, &mut whole);
            for row in 0..block.height {
                let mut one = vec![0.0; block.width];
                sparse.add_rows(block, row..row + 1, &mut one);
                assert_eq!(one, whole[row * block.width..][..block.width], "{format:?} row {row}");
            }
        }
    }
}

#[test]
fn word24_refuses_blocks_its_positions_cannot_name() {
    let layout = Layout::new(200, 200, 128).unwrap();
    let error = Sparse::pack(layout, Format::Word24, &entries(layout, 9)).unwrap_err();
    assert!(error.to_string().contains("six bits"), "{error}");
}

#[test]
fn entries_outside_their_block_out_of_order_or_repeated_are_refused() {
    // Blocks of 20 x 32 and 20 x 35.
    let layout = Layout::new(20, 67, 32).unwrap();
    let entry = |row, col, value| Entry { row, col, value };
    for format in FORMATS {
        let pack = |entries: &[Entry]| Sparse::pack(layout, format, &[vec![], entries.to_vec()]);
        for (entries, expected) in [
            (vec![entry(0, 35, 1.0)], "outside the block"),
            (vec![entry(20, 0, 1.0)], "outside the block"),
            (vec![entry(255, 255, 1.0)], "outside the block"),
            (vec![entry(3, 3, 1.0), entry(3, 3, 2.0)], "row-major order"),
            (vec![entry(3, 3, 1.0), entry(3, 2, 2.0)], "row-major order"),
            (vec![entry(3, 3, 1.0), entry(2, 5, 2.0)], "row-major order"),
            (vec![entry(3, 3, f32::NAN)], "must be finite"),
            (vec![entry(3, 3, f32::NEG_INFINITY)], "must be finite"),
            (vec![entry(3, 3, f32::MAX)], "at most"),
        ] {
            let error = pack(&entries).unwrap_err().to_string();
            assert!(error.contains(expected), "{format:?} {entries:?}: {error}");
        }
        let right = pack(&[entry(0, 5, 1.0), entry(3, 0, 2.0), entry(19, 5, -3.0)]).unwrap();
        assert_eq!(right.coefficients(), 3);
    }
}
