//! The encoder's settings, as the commands that encode share them.

use candle_rbe::{Budget, Encoder, EncoderConfig, Quality, Rate, TermChoice, Transform};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};

#[derive(Args)]
#[group(skip)]
pub(crate) struct EncoderArgs {
    /// Bits per weight of all matrices of the file together, all side information counted [default: 4.02]
    #[arg(long, value_name = "B", group = "rate", allow_negative_numbers = true)]
    bits: Option<f64>,
    /// Relative error |W - W^| / |W| of each matrix, in as few bits as it takes
    #[arg(long, value_name = "E", group = "rate")]
    rel_error: Option<f64>,
    /// Root mean square error of each matrix
    #[arg(long, value_name = "R", group = "rate")]
    rmse: Option<f64>,
    /// Coefficients kept per full block
    #[arg(long, value_name = "K", group = "rate")]
    k: Option<usize>,
    /// A named rate
    #[arg(long, value_enum, group = "rate")]
    quality: Option<QualityArg>,
    /// Count bits, and choose, by what the weights take in memory; the file, entropy coded, is smaller
    #[arg(long)]
    in_memory: bool,
    /// No entropy coding: the file takes what memory does, and loads the fastest
    #[arg(long)]
    pub(crate) plain: bool,
    /// What carries the coefficients
    #[arg(
        long,
        value_parser = one_of(TermChoice::ALL, TermChoice::name, TermChoice::title),
        default_value = TermChoice::default().name()
    )]
    term: TermChoice,
    /// Edge of a block: 32, 64, 128 or 256 [default: the best of them, 64 with --k]
    #[arg(long, value_name = "N")]
    block: Option<usize>,
    /// Bits of a trellis state, 12 to 16: 14 take up to 1 % off the error and twice as long to search, 16 take 1 to 2 % off and
    /// five to eight times as long
    #[arg(long, value_name = "N")]
    state_bits: Option<u8>,
    /// No scales of rows and columns, which even out those of different size
    #[arg(long)]
    no_scales: bool,
    /// Every matrix at the same bits: token tables and heads get no more than projections
    #[arg(long)]
    no_mix: bool,
    /// Transform of the blocks
    #[arg(
        long,
        value_parser = one_of(Transform::ALL, Transform::name, Transform::title),
        default_value = Transform::default().name()
    )]
    transform: Transform,
}

#[derive(Clone, Copy, ValueEnum)]
enum QualityArg {
    /// 8 bits
    UltraHigh,
    /// 6 bits
    High,
    /// 4 bits
    Balanced,
    /// 3 bits
    Fast,
}

/// One of a list, by its name.
fn one_of<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
    title: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let values = all.iter().map(move |value| PossibleValue::new(name(*value)).help(title(*value)));
    PossibleValuesParser::new(values).try_map(move |given| {
        let is_given = |value: &T| name(*value) == given;
        all.iter().copied().find(is_given).ok_or("no such name")
    })
}

impl EncoderArgs {
    pub(crate) fn encoder(&self) -> candle_rbe::Result<Encoder> {
        let quality = |quality| match quality {
            QualityArg::UltraHigh => Quality::UltraHigh,
            QualityArg::High => Quality::High,
            QualityArg::Balanced => Quality::Balanced,
            QualityArg::Fast => Quality::Fast,
        };
        let rate = None
            .or(self.bits.map(Rate::BitsPerWeight))
            .or(self.rel_error.map(Rate::RelativeError))
            .or(self.rmse.map(Rate::Rmse))
            .or(self.k.map(Rate::Coefficients))
            .or(self.quality.map(|name| quality(name).into()))
            .unwrap_or(EncoderConfig::default().rate);
        let budget = if self.in_memory || self.plain { Budget::Memory } else { Budget::File };
        let default = EncoderConfig::default();
        let trellis_state_bits = self.state_bits.unwrap_or(default.trellis_state_bits);
        let (term, transform) = (self.term, self.transform);
        let (block, scales, mix) = (self.block, !self.no_scales, !self.no_mix);
        Encoder::new(EncoderConfig {
            rate,
            budget,
            term,
            block,
            trellis_state_bits,
            transform,
            scales,
            mix,
            ..default
        })
    }
}
