//! Compressed models as files: what goes in comes out, and what is wrong is refused by name.

mod models;
mod numbers;
mod outputs;
mod refusals;
mod round_trip;
mod sample;
mod tied;
