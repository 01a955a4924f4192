//! Candle custom ops on compressed tensors.
