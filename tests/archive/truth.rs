//! The payload is what a tensor is, whatever was made of it; and a file that changes under a tensor is told, not multiplied with.

use super::sample::{MATRICES, Room, tensors};
use candle_core::{DType, Device, Tensor};
use candle_rbe::archive::{self, Archive};
use candle_rbe::{RbeTensor, linear_no_bias, ops};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

/// Writes over bytes of a file in place, as no writer of this crate does.
fn write_over(file: &Path, at: usize, bytes: &[u8]) {
    let mut file = std::fs::File::options().write(true).open(file).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(bytes).unwrap();
}

/// Where a payload lies in a file.
fn place(file: &Path, payload: &[u8]) -> usize {
    std::fs::read(file).unwrap().windows(payload.len()).position(|bytes| bytes == payload).unwrap()
}

#[test]
fn a_loaded_tensor_has_the_payload_of_the_file() {
    let room = Room::new(&tensors(DType::F32));
    room.compress("dense", "rbe").unwrap();
    let archive = Archive::open(room.path("rbe")).unwrap();
    let vb = archive::open(room.path("rbe"), DType::F32, &Device::Cpu).unwrap();
    for name in MATRICES {
        let entry = archive.entry(name).unwrap();
        let payload = archive.bytes(entry);
        let (rows, cols) = (entry.shape[0], entry.shape[1]);
        let layer = linear_no_bias(cols, rows, vb.pp(name.strip_suffix(".weight").unwrap())).unwrap();
        for tensor in [&archive.rbe(entry).unwrap(), layer.weight().rbe().unwrap()] {
            assert_eq!(tensor.to_bytes().unwrap(), payload);
            assert_eq!((tensor.size_in_bytes(), entry.bytes), (payload.len(), payload.len()));
            let parameters = tensor.parameters().unwrap();
            let same = tensor.with_parameters(&parameters).unwrap();
            assert_eq!(same.to_matrix().unwrap().terms(), tensor.to_matrix().unwrap().terms());
            // As many bytes of a view, which only says that it is one.
            let turned = tensor.t().unwrap().to_bytes().unwrap();
            assert_eq!(turned.len(), payload.len());
            let again = RbeTensor::from_bytes(turned).unwrap();
            assert_eq!(again.t().unwrap().to_bytes().unwrap(), payload);
        }
    }
}

#[test]
fn a_file_that_is_replaced_by_renaming_leaves_its_tensors_what_they_are() {
    let room = Room::new(&tensors(DType::F32));
    room.compress("dense", "rbe").unwrap();
    let file = room.path("rbe/model.safetensors");
    let archive = Archive::open(&file).unwrap();
    let tensor = archive.rbe(archive.entry(MATRICES[0]).unwrap()).unwrap();
    let payload = tensor.to_bytes().unwrap();
    drop(archive);
    std::fs::write(room.path("other"), b"something else").unwrap();
    if cfg!(windows) {
        // Windows keeps a file that is mapped.
        return assert!(std::fs::rename(room.path("other"), &file).is_err());
    }
    std::fs::rename(room.path("other"), &file).unwrap();
    assert_eq!(tensor.to_bytes().unwrap(), payload);
    std::fs::remove_file(&file).unwrap();
    assert!(tensor.to_matrix().is_ok());
}

#[test]
#[cfg_attr(windows, ignore = "Windows lets nobody write to a file that is mapped")]
fn a_payload_that_was_written_over_is_an_error_with_its_name() {
    let room = Room::new(&tensors(DType::F32));
    room.compress("dense", "rbe").unwrap();
    let file = room.path("rbe/model.safetensors");
    let name = "layers.0.up_proj.weight";
    let load = || {
        let vb = archive::open(&file, DType::F32, &Device::Cpu).unwrap();
        linear_no_bias(64, 80, vb.pp("layers.0.up_proj")).unwrap().weight().rbe().unwrap().clone()
    };
    let tensor = load();
    let (payload, x) = (tensor.to_bytes().unwrap(), Tensor::ones((3, 64), DType::F32, &Device::Cpu).unwrap());
    let product = || ops::matmul(&x, &tensor, Default::default()).unwrap().to_vec2::<f32>().unwrap();
    let (at, before) = (place(&file, &payload), product());
    let twice = tensor.with_parameters(&(tensor.parameters().unwrap() * 2.0).unwrap()).unwrap();
    let valid = twice.to_bytes().unwrap();
    assert_eq!(valid.len(), payload.len());
    // One damaged byte, another tensor's checksum, and another payload that is valid in itself.
    let mut damaged = payload.clone();
    damaged[payload.len() / 2] ^= 1;
    let mut other_checksum = payload.clone();
    *other_checksum.last_mut().unwrap() ^= 1;
    for (what, bytes) in [("damaged", damaged), ("checksum", other_checksum), ("valid", valid)] {
        write_over(&file, at, &bytes);
        let uses: [(&str, Option<candle_rbe::Error>); 6] = [
            ("to_matrix", tensor.to_matrix().err()),
            ("to_bytes", tensor.to_bytes().err()),
            ("a view's to_bytes", tensor.t().unwrap().to_bytes().err()),
            ("to_coded_bytes", tensor.to_coded_bytes().err()),
            ("parameters", tensor.parameters().err()),
            ("first_planes", tensor.first_planes(1).err()),
        ];
        for (using, error) in uses {
            let error = error.unwrap_or_else(|| panic!("{what}: {using} takes it")).to_string();
            let names = error.starts_with(&format!("{}: tensor {name:?}: ", file.display()));
            assert!(names && error.contains("was changed while it was in use"), "{what}, {using}: {error}");
        }
        // What products take is not in the file.
        assert_eq!(product(), before, "{what}");
    }
    write_over(&file, at, &payload);
    assert_eq!(tensor.to_bytes().unwrap(), payload, "what was read is there again");
}
