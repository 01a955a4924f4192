//! From a matrix to terms.
//!
//! [`Rate`] says what is wanted; the encoder finds the rest by trying: block edge, random signs, basis term,
//! planes or sparse, bits per block, step of each quantiser. What it reports is measured by decoding.

mod allocate;
mod calibrate;
mod coded_planes;
mod config;
mod drift;
mod encoder;
mod feedback;
mod fewest_bits;
mod importance;
mod matrix_ref;
mod planes;
mod prune;
mod quantizer;
mod rate;
mod scales;
mod search;
mod share;
mod sparse;
mod spectrum;
mod trellis;

pub use calibrate::LayerStatistics;
pub use config::EncoderConfig;
pub use encoder::{MatrixEncoder, check_largest};
pub use fewest_bits::fewest_bits;
pub use importance::{Importance, column_squares};
pub use matrix_ref::MatrixRef;
pub use prune::{PruneReport, prune};
pub use rate::{Budget, Quality, Rate, TermChoice};
pub use scales::{RowScales, Scaling, column_scales};
pub use share::{Offer, share};
