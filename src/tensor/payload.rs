//! The payload of a compressed tensor: the truth of it, of which every device's form is made.

use crate::error::{Error, Result};
use crate::file::Bytes;
use rbe_core::codec::payload::seen_through;
use rbe_core::codec::{Errors, Layout, Matrix, ParameterGroup, matrix::Orientation};
use std::path::PathBuf;

/// A payload that nobody has looked into yet, in a file or in memory.
#[derive(Clone)]
pub(crate) struct Unread {
    pub bytes: Bytes,
    /// `None` of a tensor that is from no file.
    pub origin: Option<Origin>,
}

/// Where a payload is from, for errors.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub file: PathBuf,
    /// The tensor's name in the model.
    pub tensor: String,
}

/// A payload that was read and found right, and what is known of it without reading it again.
pub(crate) struct Payload {
    bytes: Bytes,
    origin: Option<Origin>,
    /// The last bytes of the payload when it was read.
    checksum: Option<[u8; 4]>,
    /// The view that the payload has the matrix in; a tensor may have it in another.
    orientation: Orientation,
    pub layout: Layout,
    pub errors: Errors,
    pub summary: String,
    pub stored_numbers: usize,
    pub plain_size_in_bytes: usize,
    pub parameter_groups: Vec<ParameterGroup>,
}

impl Unread {
    /// Reads and checks it.
    ///
    /// # Errors
    /// [`CodecError::Payload`](crate::CodecError::Payload) with the first thing found wrong.
    pub(super) fn read(self) -> Result<(Payload, Matrix)> {
        let read = Matrix::from_bytes(&self.bytes);
        self.bytes.give_back();
        let (matrix, orientation) = read?;
        Ok((Payload::new(self, &matrix, orientation), matrix))
    }
}

impl Payload {
    /// Of bytes that were read as this matrix, or written.
    pub(super) fn new(of: Unread, matrix: &Matrix, orientation: Orientation) -> Self {
        let Unread { bytes, origin } = of;
        Self {
            checksum: bytes.last_chunk().copied(),
            bytes,
            origin,
            orientation,
            layout: matrix.layout(),
            errors: matrix.errors(),
            summary: matrix.summary(),
            stored_numbers: matrix.stored_numbers(),
            plain_size_in_bytes: matrix.plain_size_in_bytes(),
            parameter_groups: matrix.parameter_groups(),
        }
    }

    /// That of a matrix that was made here, each term entropy coded where that takes fewer bytes.
    ///
    /// # Errors
    /// When it has none: [`Matrix::expect_payload`].
    pub(super) fn of(matrix: &Matrix, orientation: Orientation) -> Result<Self> {
        matrix.expect_payload(orientation)?;
        let bytes = matrix.to_bytes(orientation).into();
        Ok(Self::new(Unread { bytes, origin: None }, matrix, orientation))
    }

    /// How the payload has the matrix.
    pub(super) fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// Bytes that it has.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Reads it again.
    ///
    /// # Errors
    /// When it lies in a file, and that changed since.
    pub(super) fn matrix(&self) -> Result<Matrix> {
        let read = match self.bytes.last_chunk().copied() == self.checksum {
            true => Matrix::from_bytes(&self.bytes).map_err(|error| self.changed(&error.to_string())),
            false => Err(self.changed("it has another checksum")),
        };
        self.bytes.give_back();
        Ok(read?.0)
    }

    /// A copy, as a tensor in this view has it.
    ///
    /// # Errors
    /// When it lies in a file, and that changed since; when one of the views is a vector's.
    pub(super) fn to_bytes(&self, orientation: Orientation) -> Result<Vec<u8>> {
        // What is checked is the copy, which nobody else changes.
        let copy = self.bytes.to_vec();
        self.bytes.give_back();
        if copy.last_chunk().copied() != self.checksum {
            return Err(self.changed("it has another checksum"));
        }
        seen_through(copy, orientation).map_err(|error| match error {
            rbe_core::Error::Payload { .. } => self.changed(&error.to_string()),
            other => other.into(),
        })
    }

    /// The error of a payload that is not what was read.
    fn changed(&self, how: &str) -> Error {
        let reason = format!(
            "the payload was changed while it was in use: {how}; a file that a model is loaded from is replaced by giving \
             another its name, not written over"
        );
        match &self.origin {
            Some(Origin { file, tensor }) => Error::file(file, format!("tensor {tensor:?}: {reason}")),
            None => Error::Codec(rbe_core::Error::payload(reason)),
        }
    }
}
