//! candle-transformers' models over this crate's layers: its own files, each with the line `use candle_rbe::candle_nn;`, and
//! `candle_rbe::with_tracing` in the place of its `with_tracing`.
#![allow(warnings)] // the files are not this crate's to mend

pub use candle_transformers::{
    generation, object_detection, quantized_nn, quantized_var_builder, serde_default_fn, utils,
};

include!(concat!(env!("OUT_DIR"), "/models.rs"));
