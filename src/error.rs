//! What can go wrong, in words that stand alone: Candle keeps only the text of a custom op's error.

use std::path::{Path, PathBuf};

/// The result of this crate's own functions; layers and ops return Candle's.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything this crate refuses to do, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the codec, the encoder or the kernels.
    #[error(transparent)]
    Codec(#[from] rbe_core::Error),

    /// An element of an input that is not finite, or too large to be meant.
    #[error("element {index} of the input is {value}; it must be finite and at most {largest:e}")]
    Input {
        /// Position in row-major order.
        index: usize,
        /// The value found there.
        value: f64,
        /// The largest magnitude allowed.
        largest: f32,
    },

    /// An output that its type cannot hold.
    #[error("element {index} of the output is {value} in {dtype}{}", if *.decoded { ", with the decoded weight too" } else { "" })]
    NonFiniteOutput {
        /// Position in row-major order.
        index: usize,
        /// The value found there.
        value: f64,
        /// The output's type.
        dtype: String,
        /// Whether the decoded weight gave it.
        decoded: bool,
    },

    /// More tokens than a model has positions for.
    #[error("{}", full(*.context, *.past, *.new))]
    Context {
        /// The model's positions.
        context: usize,
        /// How many of them a cache has taken.
        past: usize,
        /// Tokens that were to follow.
        new: usize,
    },

    /// Less memory than a product takes.
    #[error("the product takes {needed} bytes and {available} are available")]
    Memory {
        /// Bytes that it takes at once.
        needed: usize,
        /// Bytes that are allowed, or that the system has.
        available: usize,
    },

    /// A tensor that should be in the file and is not.
    #[error("{path}: no tensor named {name:?}{hint}")]
    MissingTensor {
        /// The file or directory searched.
        path: PathBuf,
        /// The name looked for.
        name: String,
        /// What is there instead, as the rest of the sentence; empty where nothing is known.
        hint: String,
    },

    /// An output that is already there.
    #[error("{path} already exists; remove it or ask for it to be overwritten")]
    Exists {
        /// The path that would have been overwritten.
        path: PathBuf,
    },

    /// A failed read or write.
    #[error("{path}: {source}")]
    Io {
        /// The file concerned.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },

    /// A file that is not what its name promises (safetensors, JSON, a model's configuration).
    #[error("{path}: {reason}")]
    File {
        /// The file concerned.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// Any of the above, about one tensor of a model.
    #[error("tensor {name:?}: {source}")]
    Tensor {
        /// The tensor's name in the model.
        name: String,
        /// What went wrong with it.
        source: Box<Error>,
    },

    /// An error of Candle's own.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A context that is full, and an input that never had room in it.
fn full(context: usize, past: usize, new: usize) -> String {
    match past {
        0 => format!("{new} tokens are more than the model's context of {context} positions"),
        _ => format!(
            "the model's context of {context} positions is full: {past} are taken, and {new} more do not fit"
        ),
    }
}

impl Error {
    /// Adds the name of the tensor that the error is about.
    pub fn in_tensor(self, name: impl Into<String>) -> Self {
        Error::Tensor { name: name.into(), source: Box::new(self) }
    }

    pub(crate) fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_owned(), source }
    }

    pub(crate) fn file(path: impl AsRef<Path>, reason: impl ToString) -> Self {
        Error::File { path: path.as_ref().to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn config(reason: impl Into<String>) -> Self {
        Error::Codec(rbe_core::Error::config(reason))
    }

    pub(crate) fn shape(reason: impl Into<String>) -> Self {
        Error::Codec(rbe_core::Error::shape(reason))
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Error::Codec(rbe_core::Error::unsupported(what))
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            error => candle_core::Error::wrap(error),
        }
    }
}
