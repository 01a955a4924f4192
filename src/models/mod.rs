//! Models over nn::Linear.
