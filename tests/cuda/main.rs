//! The CUDA kernels, their layouts and launches against `codec`, on a CPU.
//!
//! g++ compiles the kernels unchanged into a program that runs each CUDA thread as a fiber (`machine/`), once plainly and
//! once for each sanitizer; the crate's own launches drive it through a pipe. Without g++ there is nothing to run: a
//! line says so, and `RBE_REQUIRE_GXX=1` makes it a failure.
//! CI runs this at the best CPU level alone: the kernels of a card know none.

mod agreement;
mod faults;
mod launches;
mod limits;
mod sample;
mod simulator;
mod step;
mod threads;
