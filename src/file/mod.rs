//! Files that models come in: regular ones alone, since a FIFO would be waited for, and with a hint where one is something
//! else than its name says.

mod bytes;

pub(crate) use bytes::Bytes;

use crate::error::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// How a file begins that is often met in the place of another, and what to do about it.
const STRANGERS: [(&[u8], &str); 7] = [
    (
        b"version https://git-lfs",
        "it is a git-LFS pointer, which stands for the file; run `git lfs pull` where it was cloned",
    ),
    (b"PK\x03\x04", "it is a PyTorch file or another ZIP archive; save the model as safetensors"),
    (b"\x80\x02", "it is a Python pickle, as old PyTorch files are; save the model as safetensors"),
    (b"GGUF", "it is a GGUF file; `rbe compress` takes it, and `rbe decode` makes a model directory of it"),
    (b"\x89HDF", "it is an HDF5 file, as TensorFlow's are; save the model as safetensors"),
    (b"<!DOCTYPE", "it is a web page; was the download refused?"),
    (b"<html", "it is a web page; was the download refused?"),
];

/// What a file is instead, by its first bytes.
pub(crate) fn hint(start: &[u8]) -> Option<&'static str> {
    STRANGERS.iter().find(|(begin, _)| start.starts_with(begin)).map(|(_, hint)| *hint)
}

/// Opens a regular file.
///
/// # Errors
/// There is none, or it cannot be read; it is a directory, a device, a FIFO or a socket.
pub(crate) fn open(path: &Path) -> Result<File> {
    // Looked at before it is opened, since opening a FIFO waits for somebody to write.
    let kind = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.file_type();
    if kind.is_dir() {
        return Err(Error::file(path, "is a directory, and a file is needed"));
    }
    if !kind.is_file() {
        return Err(Error::file(path, "is a device, a FIFO or a socket; models are read from regular files"));
    }
    File::open(path).map_err(|e| Error::io(path, e))
}

/// The text of a regular file.
///
/// # Errors
/// As [`open`]; it is not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if let Some(hint) = hint(&bytes) {
        return Err(Error::file(path, format!("is not what its name says: {hint}")));
    }
    String::from_utf8(bytes).map_err(|_| Error::file(path, "is not a text in UTF-8"))
}
