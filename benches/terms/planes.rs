//! The planes term.

use candle_rbe::{Budget, EncoderConfig, Rate, TermChoice};
use criterion::Criterion;

pub(crate) fn bench(criterion: &mut Criterion) {
    let weights = super::noise();
    for planes in [2, 4, 8] {
        let config = EncoderConfig {
            term: TermChoice::Planes,
            rate: Rate::BitsPerWeight(f64::from(planes) + 0.02),
            budget: Budget::Memory,
            ..EncoderConfig::default()
        };
        super::measure(criterion, &format!("planes {planes}"), config, &weights);
    }
}
