//! What a search knows of a code.

use crate::codec::term::trellis::Code;
use crate::cpu::kernels::{Kernels, StateBlocks, ViterbiByteStep, ViterbiStep};

/// The smallest states that are searched with costs in bytes. (Below, the table that each row needs costs what its registers save.)
const FROM_STATE_BITS: u8 = 14;
/// The values of all states of a code, as fixed-point numbers.
#[derive(Clone, Debug)]
pub(crate) struct Codebook {
    pub(super) code: Code,
    pub(super) step: ViterbiStep,
    /// `2^shift` times the value of each state.
    pub(super) values: Vec<i16>,
    /// Of large states.
    pub(super) bytes: Option<ByteBook>,
}

impl Codebook {
    pub(crate) fn new(code: Code) -> Self {
        Self::with_kernels(code, Kernels::get())
    }

    pub(super) fn with_kernels(code: Code, kernels: &Kernels) -> Self {
        let shift = shift(code);
        let states = 0..=u16::MAX >> (16 - code.state_bits());
        let values = states.map(|state| i16::from(code.value(state)) << shift).collect();
        let bytes = ByteBook::new(code, kernels.viterbi_bytes(code.bits()));
        Self { code, step: kernels.viterbi(code.bits()), values, bytes }
    }

    /// Classes of states.
    pub(super) fn classes(&self) -> usize {
        self.values.len() >> self.code.bits()
    }

    /// The class of a row's state.
    pub(super) fn class(&self, codes: &[u8], row: usize) -> usize {
        usize::from(self.code.state(codes, row)) & (self.classes() - 1)
    }
}

/// Bits after the point of targets and values: the mean squared error of a Gaussian is then about 15 units of cost
/// for every `k`, so that rounding does not show and 4000 times as much still fits.
pub(super) fn shift(code: Code) -> u32 {
    u32::from(code.bits()) + 5
}

/// Bits that a cost loses in a byte.
pub(super) fn dropped(code: Code) -> u32 {
    if code.bits() == 1 { 2 } else { 1 }
}

/// What a code has for the search with costs in bytes.
#[derive(Clone, Debug)]
pub(super) struct ByteBook {
    pub(super) blocks: StateBlocks,
    pub(super) step: ViterbiByteStep,
}

impl ByteBook {
    /// For states large enough.
    fn new(code: Code, step: ViterbiByteStep) -> Option<Self> {
        let blocks = || StateBlocks::new(code, step.lanes(), shift(code), dropped(code));
        (code.state_bits() >= FROM_STATE_BITS).then(|| Self { blocks: blocks(), step })
    }
}
