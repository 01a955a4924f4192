//! Candle's modules with layers that are dense or compressed: models swap the module, not their code.

pub mod candle_nn;
pub mod with_tracing;
