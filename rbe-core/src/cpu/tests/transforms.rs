//! That a segment has the same coefficients alone and beside others.

use crate::cpu::kernels::Kernels;
use crate::cpu::layout::{EDGE, LANES, Lanes, Strip};
use crate::cpu::tests::levels;

type OfStrip = fn(&Kernels, &mut Strip, usize, usize);
type InLanes = fn(&Kernels, &mut [Lanes], &mut [Lanes]);

#[test]
fn a_segment_of_a_strip_has_the_bits_that_it_has_in_lanes_on_every_level() {
    let first = Kernels::new(levels()[0]).unwrap();
    let strips: [OfStrip; 2] = [Kernels::dct2_of_strip, Kernels::dct3_of_strip];
    let lanes: [InLanes; 2] = [Kernels::dct2, Kernels::dct3];
    for len in [16, 32, 64, 128, 256] {
        let x: Vec<f32> = (0..EDGE).map(|n| (n as f32 * n as f32 * 0.37).sin()).collect();
        for (of_strip, in_lanes) in strips.into_iter().zip(lanes) {
            let mut expected = vec![];
            for segment in x.chunks(len) {
                let mut lanes: Vec<Lanes> = segment.iter().map(|x| Lanes([*x; LANES])).collect();
                in_lanes(&first, &mut lanes, &mut vec![Lanes::ZERO; len]);
                expected.extend(lanes.iter().map(|lanes| lanes.0[LANES - 1].to_bits()));
            }
            for level in levels() {
                let kernels = Kernels::new(level).unwrap();
                for count in 1..=EDGE / len {
                    let mut strip = Strip::ZERO;
                    // What was there before is nobody's.
                    strip.elements.fill(f32::NAN);
                    strip.elements[..count * len].copy_from_slice(&x[..count * len]);
                    of_strip(&kernels, &mut strip, len, count);
                    let found = strip.elements[..count * len].iter().map(|x| x.to_bits());
                    assert!(found.eq(expected[..count * len].iter().copied()), "{level:?}: {count} of {len}");
                }
            }
        }
    }
}
