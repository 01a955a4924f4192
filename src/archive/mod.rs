//! Compressed models as ordinary safetensors files.
//!
//! A compressed matrix `NAME`, or a stack of experts' matrices, is one `U8` tensor `NAME.rbe`; every other tensor keeps its name, type, shape and
//! bytes. So each safetensors reader opens the file, and a layer is dense or compressed per tensor, by what the
//! file holds. `FORMAT.md` in the crate `rbe-core` gives every byte.
//!
//! | I want to | use |
//! |---|---|
//! | compress a Hugging Face directory | [`compress`] |
//! | the same, with the model's predictions on a text kept as close as the bits allow | [`compress_calibrated`] |
//! | the same in little memory, layer by layer, of a decoder that [`models`](crate::models) knows | [`compress_layer_by_layer`] |
//! | the same by what llama.cpp's `llama-imatrix` found | [`Imatrix`] and [`compress_calibrated`] |
//! | get an ordinary model back, or one from a GGUF file | [`decode`], [`unpack_gguf`] |
//! | run this crate's layers on the compressed weights | [`open`] and [`crate::linear`]; of a file in memory [`open_bytes`] |
//! | run an unmodified Candle model | [`open`], which decodes what is asked for by its plain name |
//! | see what was decoded, and why | [`decoded_weights`](crate::nn::decoded_weights) |
//! | give each process of several its part of every tensor | [`open_sharded`] |
//! | look into a file, tensor by tensor | [`Archive`] |
//! | keep what was fine-tuned, apart from the model | [`save_adapters`], [`load_adapters`] |
//! | compare a compressed model with its original | [`verify`] |
//! | write any output whole or not at all, replacing only what may be replaced | [`Stage`], [`abandon_outputs`] |
//! | know where a calibrated conversion that was interrupted goes on from | [`kept_layers`] |
//! | write a safetensors file without holding it in memory | [`SafetensorsWriter`] |
//!
//! Nothing is ever written half: every output is a [`Stage`], assembled beside its destination, synced, and given its name
//! in one step. Nor is a file copied to be loaded: compressed tensors keep it mapped ([`RbeTensor`](crate::RbeTensor) says what
//! that asks of who writes to it).

mod adapters;
mod beside;
mod convert;
mod decode;
mod gguf;
mod index;
mod layers;
mod measure;
mod mix;
mod options;
mod parts;
mod progress;
mod prune;
mod read;
mod roles;
mod sharded;
mod stage;
mod var_builder;
mod verify;
mod work;
mod write;

pub use adapters::{load_adapters, save_adapters};
pub use convert::{
    CompressReport, TensorReport, compress, compress_calibrated, compress_into, compress_layer_by_layer,
};
pub use decode::{DecodeOptions, DecodeReport, decode};
pub use gguf::{Imatrix, UnpackReport, gguf_parts, is_gguf, unpack_gguf};
pub use measure::NonFinite;
pub use options::{CompressOptions, Selection};
pub use progress::{OnProgress, Progress};
pub use prune::prune;
pub use read::{Archive, Entry};
pub use safetensors::Dtype;
pub use sharded::{ShardedArchive, open_sharded};
pub use stage::{COMPANIONS, Scratch, Stage, abandon_outputs, kept_layers};
pub use var_builder::{open, open_bytes, open_decoded};
pub use verify::{CheckedTensor, VerifyReport, verify};
pub use write::{SafetensorsWriter, Slot};

/// What the stored name of a compressed tensor adds to the tensor's own.
pub const SUFFIX: &str = ".rbe";

/// The `__metadata__` key that holds the container's version.
pub const FORMAT_KEY: &str = "rbe.format";

/// The `__metadata__` key that holds, as JSON, the original type and shape of each compressed tensor.
pub const TENSORS_KEY: &str = "rbe.tensors";

/// The `__metadata__` key that holds, as JSON, which tensor stands for another that is the same and is not stored again.
pub const TIED_KEY: &str = "rbe.tied";

/// The container's version that this build writes and reads.
pub const FORMAT_VERSION: &str = "1";

/// The weights of a model directory that is not sharded.
pub const MODEL_FILE: &str = "model.safetensors";

/// The index of a sharded model directory.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// What `rbe.tensors` says of one compressed tensor: how it was before.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Original {
    dtype: Dtype,
    shape: Vec<usize>,
}

/// Number of elements of a shape, or `None` where it does not fit a `usize`.
fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |count, &side| count.checked_mul(side))
}
