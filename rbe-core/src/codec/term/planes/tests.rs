use super::*;

fn blocks(layout: Layout, group: ScaleGroup) -> Vec<QuantizedBlock> {
    layout
        .iter()
        .map(|block| {
            let planes = (block.index % 9) as u8;
            let mask = ((1u16 << planes) - 1) as u8;
            QuantizedBlock {
                planes,
                scales: (0..group.scales_in(block)).map(|i| f16::from_f32(0.25 + i as f32)).collect(),
                codes: (0..block.len()).map(|n| (n * 37 + n / 5) as u8 & mask).collect(),
            }
        })
        .collect()
}

#[test]
fn decodes_the_formula_at_every_number_of_planes() {
    for group in [ScaleGroup::Block, ScaleGroup::Row] {
        for edge in [32, 64] {
            let layout = Layout::new(3 * edge + 5, 4 * edge + 3, edge).unwrap();
            let quantized = blocks(layout, group);
            let unit = 0.125;
            let term = Planes::pack(layout, group, unit, &quantized);
            for limit in 0..=MAX_PLANES {
                let cut = term.truncate(limit).unwrap();
                for (block, source) in layout.iter().zip(&quantized) {
                    let mut out = vec![0.0; block.len()];
                    cut.add_rows(block, 0..block.height, &mut out);
                    let p = source.planes.min(limit);
                    let drop = source.planes - p;
                    for (n, value) in out.iter().enumerate() {
                        let row = if group == ScaleGroup::Row { n / block.width } else { 0 };
                        let step = source.scales[row].to_f32() * unit * f32::from(1u16 << drop);
                        let u = f32::from(source.codes[n] >> drop.min(7) >> (drop / 8));
                        let exact =
                            if p == 0 { 0.0 } else { step * (2.0 * u + 1.0 - f32::from(1u16 << p)) / 2.0 };
                        assert_eq!(*value, exact, "{group:?} block {} planes {p} element {n}", block.index);
                    }
                }
            }
        }
    }
}

#[test]
fn reading_fewer_planes_equals_truncating() {
    let layout = Layout::new(97, 130, 32).unwrap();
    let term = Planes::pack(layout, ScaleGroup::Row, 1.0, &blocks(layout, ScaleGroup::Row));
    for limit in 0..=MAX_PLANES {
        let cut = term.truncate(limit).unwrap();
        for block in layout.iter() {
            for row in 0..block.height {
                let (mut a, mut b) = (vec![0.0; block.width], vec![0.0; block.width]);
                let factor = term.levels(block, row, limit, &mut a);
                assert_eq!(factor, cut.levels(block, row, MAX_PLANES, &mut b));
                assert_eq!(a, b);
            }
        }
    }
}
