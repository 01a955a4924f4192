//! What can go wrong, in words that stand alone.

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything this crate refuses to do, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that contradicts itself or is out of range.
    #[error("invalid setting: {reason}")]
    InvalidConfig {
        /// What is wrong and what is allowed.
        reason: String,
    },

    /// A tensor whose shape does not fit the operation.
    #[error("wrong shape: {reason}")]
    Shape {
        /// What was expected and what came.
        reason: String,
    },

    /// A weight that is NaN or infinite; nothing sensible can be stored for it.
    #[error("weight {index} is {value}; only finite weights can be compressed")]
    NonFinite {
        /// Position in row-major order.
        index: usize,
        /// The value found there.
        value: f32,
    },

    /// Memory that the system does not give.
    #[error("{what} takes {bytes} bytes of memory, more than there is")]
    Allocation {
        /// What it is for.
        what: String,
        /// How much.
        bytes: usize,
    },

    /// A rate that no setting of the allowed terms reaches.
    #[error("cannot reach {asked}: {best}")]
    UnreachableRate {
        /// What was asked for.
        asked: String,
        /// What can be reached, and what to change.
        best: String,
    },

    /// Bytes that are not a valid compressed tensor.
    #[error("not a valid RBE payload: {reason}")]
    Payload {
        /// The first thing found wrong.
        reason: String,
    },

    /// A dtype, device or option this build does not support.
    #[error("unsupported: {what}")]
    Unsupported {
        /// What was asked for and what is supported.
        what: String,
    },
}

impl Error {
    /// Bytes that are not a valid payload: [`Error::Payload`].
    pub fn payload(reason: impl Into<String>) -> Self {
        Error::Payload { reason: reason.into() }
    }

    /// A setting out of range: [`Error::InvalidConfig`].
    pub fn config(reason: impl Into<String>) -> Self {
        Error::InvalidConfig { reason: reason.into() }
    }

    /// A shape that does not fit: [`Error::Shape`].
    pub fn shape(reason: impl Into<String>) -> Self {
        Error::Shape { reason: reason.into() }
    }

    /// Something this build does not do: [`Error::Unsupported`].
    pub fn unsupported(what: impl Into<String>) -> Self {
        Error::Unsupported { what: what.into() }
    }
}
