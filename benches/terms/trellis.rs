//! The trellis term; beyond four bits there are two.

use candle_rbe::{EncoderConfig, Rate, TermChoice};
use criterion::Criterion;

pub(crate) fn bench(criterion: &mut Criterion) {
    let weights = super::noise();
    for bits in [2, 3, 4, 8] {
        let config = EncoderConfig {
            term: TermChoice::Trellis,
            rate: Rate::BitsPerWeight(f64::from(bits) + 0.02),
            block: Some(256),
            ..EncoderConfig::default()
        };
        super::measure(criterion, &format!("trellis {bits}"), config, &weights);
    }
}
