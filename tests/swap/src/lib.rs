//! candle-transformers' models over this crate's layers: its own files, each with the line `use candle_rbe::candle_nn;`, and
//! `candle_rbe::with_tracing` in the place of its `with_tracing`.
// They are not this crate's to mend; and one of them has a macro for all, which others name from the root.
#![allow(warnings, macro_expanded_macro_exports_accessed_by_absolute_paths)]

pub use candle_transformers::{generation, object_detection, quantized_nn, quantized_var_builder, utils};

include!(concat!(env!("OUT_DIR"), "/models.rs"));
