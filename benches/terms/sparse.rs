//! The sparse term, as many coefficients a block as `Rate::Coefficients` asks for.

use candle_rbe::{EncoderConfig, Rate, TermChoice};
use criterion::Criterion;

pub(crate) fn bench(criterion: &mut Criterion) {
    let weights = super::noise();
    for (edge, kept) in [(64, 200), (256, 800)] {
        let config = EncoderConfig {
            term: TermChoice::Sparse,
            rate: Rate::Coefficients(kept),
            block: Some(edge),
            basis: Some(false),
            ..EncoderConfig::default()
        };
        super::measure(criterion, &format!("sparse {kept} of {edge}x{edge}"), config, &weights);
    }
}
