//! Compressed models as files: what goes in comes out, and what is wrong is refused by name.
//! CI runs this at the best CPU level alone: files are the same at all.

mod imatrix;
mod models;
mod numbers;
mod outputs;
mod refusals;
mod round_trip;
mod sample;
mod tied;
mod truth;
