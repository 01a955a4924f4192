//! The definition of RBE: safe scalar Rust over slices.
pub mod transform;
