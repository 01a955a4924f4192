//! Compressed weight tensors for Candle: products that run on the compressed form, layers that replace `Linear` by
//! one `use` line, compressed models in ordinary safetensors files.
//!
//! # Quick start
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use candle_nn::Module;
//! use candle_rbe::{Encoder, EncoderConfig, Rate, RbeLinear, RbeTensor};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let weight = Tensor::randn(0f32, 0.02, (512, 256), &Device::Cpu)?; // (out, in)
//! let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.02)))?;
//! let compressed = encoder.encode(&weight)?;
//! assert!(compressed.bits_per_weight() <= 4.02); // everything counted
//! assert!(compressed.relative_error() < 0.12); // |W - W^| / |W|, measured by decoding
//!
//! let bytes = compressed.to_bytes()?; // 66 kB; the weight in F32 has 524 kB
//! let layer = RbeLinear::new(RbeTensor::from_bytes(&bytes)?, None);
//! let x = Tensor::randn(0f32, 1.0, (3, 256), &Device::Cpu)?;
//! let y = layer.forward(&x)?; // no dense weight is made
//!
//! let dense = x.matmul(&compressed.dequantize()?.t()?)?;
//! let difference = (y - &dense)?.sqr()?.sum_all()?.to_scalar::<f32>()?;
//! // The square of 0.01: one byte an activation, where weights have lost ten times as much. `Precision::Exact` has 1e-6.
//! assert!(difference <= 1e-4 * dense.sqr()?.sum_all()?.to_scalar::<f32>()?);
//! # Ok(()) }
//! ```
//!
//! In a model of your own, or in a copy of one of `candle_transformers`, one line is added at the top of the file,
//! `use candle_rbe::candle_nn;`. Each layer is then dense or compressed, by what the file holds
//! ([`candle_nn`]; the example `swap` shows the whole way). A model that this crate has ([`models`]) needs three calls:
//!
//! ```no_run
//! use candle_core::{DType, Device};
//! use candle_rbe::archive::{self, CompressOptions};
//! use candle_rbe::models::{Model, generate, greedy};
//! use candle_rbe::{Encoder, EncoderConfig, Rate};
//! use std::ops::ControlFlow;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.02)))?;
//! let options = CompressOptions::default();
//! archive::compress("llama", "llama-rbe", &encoder, &options, &mut |_| ControlFlow::Continue(()))?;
//! let model = Model::load("llama-rbe", archive::open("llama-rbe", DType::F32, &Device::Cpu)?)?;
//! for token in generate(&model, &[846, 318, 259], 20, greedy) {
//!     println!("{}", token?);
//! }
//! # Ok(()) }
//! ```
//!
//! The program `rbe` (feature `cli`) does the same on the command line; `rbe demo` shows it on a small model.
//!
//! # The sum
//!
//! A weight matrix `W` of shape `(out, in)` is cut into blocks of edge 32, 64, 128 or 256. It is a sum of terms, all
//! of them linear:
//!
//! ```text
//!     W  =  sum_k theta_k phi_k          basis: 8 smooth functions a block, phi in the weight domain
//!         + A_out' S A_in                S: sparse coefficients, or all of them in a trellis or bit-planes
//! ```
//!
//! `A` is random signs (or none) and then an orthonormal transform of each block. So the error of `W` is that of
//! `S`, and a product needs no decompression: `W x = A_out' (S (A_in x))` plus the basis term's share. [`codec`] defines
//! it; `FORMAT.md` in the crate `rbe-core` states every byte of it, and of a model file ([`archive`]).
//!
//! # Which should I use?
//!
//! | I have | I call |
//! |---|---|
//! | a matrix | [`Encoder::encode`], then [`RbeLinear::new`] |
//! | a Candle model of my own | [`archive::compress`] on its safetensors file; one line, `use candle_rbe::candle_nn;`, in each file of the model ([`candle_nn`]) |
//! | a model of `candle_transformers` | a copy of its file with that line, and [`with_tracing`] from here where it takes layers from there |
//! | a Hugging Face directory of a family that [`models`] knows | [`archive::compress`], [`archive::open`], [`models::Model::load`] |
//! | a model whose code I cannot change | [`archive::open`] in place of Candle's mmap builder: it decodes on load, and saves file size alone |
//! | a model that takes more memory than it should | [`nn::decoded_weights`]: what was decoded, and why |
//! | weights stored `(in, out)`, as GPT-2's `Conv1D` | [`linear_conv1d`], or [`RbeTensor::t`] |
//! | a compressed layer to be trained as it is stored, or healed | [`TrainableLinear`]: scales, basis parameters, sparse coefficients, bias |
//! | a layer to be trained from the beginning without ever being dense | [`TrainableLinear::from_scratch`] |
//! | a frozen layer to be fine-tuned by a few numbers | [`SpectralAdapter`]; [`archive::save_adapters`], [`archive::load_adapters`] |
//! | a compressed model, and need a dense one | [`archive::decode`]; for one tensor [`RbeTensor::dequantize`] |
//!
//! | I want | I ask for |
//! |---|---|
//! | a size of the file | [`Rate::BitsPerWeight`]: a budget that is kept, everything counted. Scales need about 0.02 bits: at 4.02 every coefficient of a trellis gets four bits, at 4.0 some get three |
//! | a size in memory, which bounds the speed | the same with [`Budget::Memory`]: the file is then smaller still, as planes and sparse terms are entropy coded |
//! | an error of every matrix | [`Rate::RelativeError`], or [`Rate::Rmse`] in the weights' own unit; kept, measured by decoding |
//! | a bound on the model's KL divergence | [`encode::fewest_bits`] over [`models::evaluate()`], or `rbe compress --kl X --text FILE` |
//! | the model's predictions, not the weights, as close as the bits allow | [`models::Walk`] and [`archive::compress_layer_by_layer`], or `rbe compress --calibrate TEXT`; of a model of my own [`nn::Calibration`] and [`archive::compress_calibrated`] |
//! | not to choose a number | [`Quality`]: `UltraHigh`, `High`, `Balanced`, `Fast` are 8, 6, 4, 3 bits |
//! | products as near a dense layer's as F32 allows, to compare the two | [`Precision::Exact`], by [`RbeLinear::with_precision`] or [`set_default_layer_config`]. The default, [`Precision::Auto`], takes activations as one signed byte or two, by what the weight has lost |
//! | exactly K coefficients a block | [`Rate::Coefficients`], for the sparse term |
//!
//! | the matrix is | term | transform | block edge |
//! |---|---|---|---|
//! | a trained projection or token table | [`TermChoice::Trellis`], beyond 4 bits in two terms; from about 5.6 to 7 bits of a file [`TermChoice::Planes`], which are as good there and faster, and take a sixth more memory | [`Transform::Dct`], with signs | large: the errors of the layer's outputs are smaller |
//! | the same, to be cut to fewer bits later, or where speed counts more than quality | [`TermChoice::Planes`] | the same | the same |
//! | smooth: a position table, a filter, a physical field | [`TermChoice::Sparse`] | [`Transform::Dct`], without signs, with a basis term | as large as the structure |
//! | constant in pieces, with jumps | [`TermChoice::Sparse`] | [`Transform::Haar`] | the same |
//! | smooth in pieces | [`TermChoice::Sparse`] | [`Transform::Daubechies4`] | the same |
//! | unknown | [`TermChoice::Auto`], the default | try them | `None`, the default: all are tried |
//!
//! All but the transform is found by the encoder, by trying, where [`EncoderConfig`] leaves it open. Trained projections
//! have no smooth structure: on them the largest coefficients alone are no better than on noise, so errors are stated
//! relative to the matrix, and quality on the model.
//!
//! | bits per weight | 1 | 2 | 3 | 4 | 5 | 6 | 8 |
//! |---|---|---|---|---|---|---|---|
//! | relative error of a Gaussian, and so nearly of any projection, in planes (Max 1960) | 0.603 | 0.345 | 0.193 | 0.107 | 0.059 | 0.032 | 0.0094 |
//! | in a trellis with the default states of 12 bits, two of them from 5 bits on | 0.521 | 0.266 | 0.135 | 0.0686 | 0.0358 | 0.0184 | 0.0049 |
//! | with states of 16 bits ([`EncoderConfig::trellis_state_bits`]), five to eight times slower to search | 0.516 | 0.262 | 0.133 | 0.0674 | 0.0350 | 0.0180 | 0.0048 |
//! | in planes that are entropy coded, by bits of the file ([`TermChoice::Planes`] with [`Budget::File`]; on the projections of llama-books); in memory about a bit more | | 0.310 | 0.150 | 0.0745 | 0.0373 | 0.0187 | 0.0093, at 7.1 |
//! | no code can do better | 0.500 | 0.250 | 0.125 | 0.0625 | 0.031 | 0.016 | 0.0039 |
//!
//! # What is where
//!
//! A file imports only from layers to its right:
//!
//! ```text
//!     bin, examples -> facade, archive -> models -> nn -> ops -> encoder -> tensor -> cuda -> step, file -> error, clock
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`candle_nn`], [`with_tracing`] | Candle's modules with this crate's layers in them: `facade` |
//! | [`models`] | decoders of many families and BERT over [`nn`], text generation, comparison of two models |
//! | [`archive`] | compressed models as safetensors files: write, read, decode, verify |
//! | [`nn`] | layers that are dense or compressed, by what the file holds; those that train; norms, attention, feed-forward, dropout |
//! | [`ops`] | Candle custom ops with gradients: products, norms, attention; gather |
//! | [`RbeTensor`] | a compressed tensor on a Candle device |
//! | [`encode`] | from a matrix to terms |
//! | [`cpu`] | the fast kernels, chosen for the running processor (`RBE_CPU=scalar`, `avx2`, `avx-vnni`, `avx512-bw`, `avx512-vnni`, `avx512`, on ARM `neon`, `neon-dot`, asks for one of them) |
//! | [`cuda`] | the same products on a CUDA device (feature `cuda`) |
//! | [`step`] | what a decoder is to one token: products with stored matrices, and numbers beside them |
//! | [`codec`] | the definition, in plain Rust, and the bytes |
//!
//! `codec`, `encode` and `cpu` are those of the crate `rbe-core`, which knows nothing of Candle. Without the feature `cuda` there are no PTX and no device in [`cuda`],
//! only the layouts and launches, which the tests run on a CPU.
//!
//! # Targets
//!
//! Kernels are there for x86-64, little-endian AArch64 and, in a module that is built with `-C target-feature=+simd128`,
//! WebAssembly; every other processor runs plain Rust. On `wasm32-unknown-unknown`
//! there are no files, threads or clock: take the feature `js`, which brings random numbers (Candle does not compile without)
//! and the time from a browser or Node; [`RbeTensor::from_bytes`] and [`archive::open_bytes`] read what is in memory.
//! Whatever takes a path is an error there. `examples/browser` is a page on which a compressed model writes.
//!
//! # What is not there yet
//!
//! - Products on Metal. A compressed tensor on such a device is [`CodecError::Unsupported`], and says so.
//! - A run on an ARM machine. The NEON kernels agree with the plain Rust ones, in integers to the bit, on emulated
//!   processors with and without dot products; how fast they are is not known.
//! - Training of what a compressed weight holds fixed: positions, codes, signs. Its numbers are trained ([`TrainableLinear`]).
#![warn(clippy::all)]
// Files are closed by dropping them; where there are none, std's are empty.
#![cfg_attr(all(target_family = "wasm", target_os = "unknown"), allow(clippy::drop_non_drop))]

pub mod archive;
mod clock;
pub mod cuda;
mod encoder;
mod error;
mod facade;
mod file;
pub mod models;
pub mod nn;
pub mod ops;
pub mod step;
mod tensor;

pub use encoder::{BlockSizeScore, BlockSizeWeights, Encoder};
pub use error::{Error, Result};
pub use facade::{candle_nn, with_tracing};
pub use nn::{
    AdapterConfig, DecodeMode, Embedding, LayerConfig, Linear, Positions, RbeAttention, RbeDropout,
    RbeLayerNorm, RbeLinear, RbeMlp, RbeRmsNorm, SpectralAdapter, TrainableLinear, embedding, layer_norm,
    linear, linear_b, linear_conv1d, linear_no_bias, rms_norm, set_default_layer_config,
};
#[doc(inline)]
pub use rbe_core::{Error as CodecError, codec, cpu, encode};
pub use rbe_core::{
    codec::Transform,
    cpu::Precision,
    encode::{Budget, EncoderConfig, Quality, Rate, TermChoice},
};
pub use tensor::RbeTensor;
