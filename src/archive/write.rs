//! A safetensors file written front to back, with one tensor in memory at a time.
//!
//! The header stands first, but the length of a payload is known only after encoding. So the writer keeps room for
//! the longest header that its plan can need, writes the tensors, returns, and fills what is left with spaces,
//! which the format allows.

use super::{Dtype, SUFFIX, element_count};
use crate::{Error, Result};
use safetensors::tensor::TensorInfo;
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The longest header that safetensors' own reader accepts.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// Every tensor starts at a multiple of its own type's size; eight covers the widest.
const ALIGNMENT: usize = 8;

/// A tensor that a file is going to hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Its name in the file.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its shape; a side that is not known yet is `usize::MAX`.
    pub shape: Vec<usize>,
}

impl Slot {
    /// A tensor whose shape is known.
    pub fn dense(name: impl Into<String>, dtype: Dtype, shape: &[usize]) -> Self {
        Self { name: name.into(), dtype, shape: shape.to_vec() }
    }

    /// The payload of the compressed tensor `name`, of a length that encoding will tell.
    pub fn payload(name: &str) -> Self {
        Self { name: format!("{name}{SUFFIX}"), dtype: Dtype::U8, shape: vec![usize::MAX] }
    }

    fn is_payload(&self) -> bool {
        self.dtype == Dtype::U8 && self.name.ends_with(SUFFIX)
    }
}

/// Puts tensors in the order in which a file holds them: wide types first, so that all are aligned without gaps,
/// payloads last, each group by name.
pub(super) fn file_order(slots: &mut [Slot]) {
    slots.sort_by(|a, b| {
        let key = |slot: &Slot| (slot.is_payload(), std::cmp::Reverse(slot.dtype.bitsize()));
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
}

/// Writes a safetensors file tensor by tensor, in bounded memory.
///
/// ```
/// use candle_rbe::archive::{Dtype, SafetensorsWriter, Slot};
/// let plan = vec![Slot::dense("bias", Dtype::F32, &[2]), Slot::dense("ids", Dtype::I64, &[1])];
/// let mut writer = SafetensorsWriter::new(std::io::Cursor::new(vec![]), "model.safetensors", plan, Default::default())?;
/// while let Some(slot) = writer.next_slot().cloned() {
///     let bytes = vec![0; slot.shape[0] * slot.dtype.bitsize() / 8];
///     writer.write(&slot.shape, &bytes)?;
/// }
/// let file = writer.finish()?.into_inner();
/// assert_eq!(safetensors::SafeTensors::deserialize(&file).unwrap().len(), 2);
/// # Ok::<(), candle_rbe::Error>(())
/// ```
#[derive(Debug)]
pub struct SafetensorsWriter<W: Write + Seek> {
    out: BufWriter<W>,
    path: PathBuf,
    metadata: BTreeMap<String, String>,
    /// What is still to be written, the next one last.
    ahead: Vec<Slot>,
    written: Vec<(String, TensorInfo)>,
    header_room: usize,
    offset: usize,
}

impl<W: Write + Seek> SafetensorsWriter<W> {
    /// Starts a file of the tensors in `plan`, which it puts into the file's order; `path` is for errors alone.
    pub fn new(
        out: W,
        path: impl AsRef<Path>,
        mut plan: Vec<Slot>,
        metadata: BTreeMap<String, String>,
    ) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let mut names = BTreeSet::new();
        if let Some(slot) = plan.iter().find(|slot| slot.name == "__metadata__" || !names.insert(&slot.name))
        {
            return Err(Error::file(&path, format!("cannot hold another tensor named {:?}", slot.name)));
        }
        file_order(&mut plan);
        let longest = plan.iter().map(|slot| {
            let (dtype, shape) = (slot.dtype, slot.shape.clone());
            (slot.name.clone(), TensorInfo { dtype, shape, data_offsets: (usize::MAX, usize::MAX) })
        });
        let header_bytes = header(&path, &metadata, &longest.collect::<Vec<_>>())?.len();
        // The eight bytes of the length come before, so a room of a multiple of eight keeps the data aligned.
        let header_room = header_bytes.next_multiple_of(ALIGNMENT);
        if header_room > MAX_HEADER_BYTES {
            let reason = format!("needs a header of {header_room} bytes; readers accept {MAX_HEADER_BYTES}");
            return Err(Error::file(&path, reason));
        }
        plan.reverse();
        let out = BufWriter::with_capacity(1 << 20, out);
        let mut writer = Self { out, path, metadata, ahead: plan, written: vec![], header_room, offset: 0 };
        let blank = vec![b' '; ALIGNMENT + header_room];
        writer.io(|out| out.write_all(&blank))?;
        Ok(writer)
    }

    /// The tensor to be written next; `None` when all are.
    pub fn next_slot(&self) -> Option<&Slot> {
        self.ahead.last()
    }

    /// Writes the next tensor: `bytes` are its values, little-endian, row by row.
    pub fn write(&mut self, shape: &[usize], bytes: &[u8]) -> Result<()> {
        self.write_pieces(shape, bytes.len(), |write| write(bytes))
    }

    /// Writes the next tensor, `len` bytes, piece by piece: `pieces` gives each to the function that it gets, in their order.
    pub fn write_pieces(
        &mut self,
        shape: &[usize],
        len: usize,
        pieces: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let Some(slot) = self.ahead.pop() else {
            return Err(Error::file(&self.path, "every planned tensor has been written"));
        };
        let fits = slot.shape.len() == shape.len()
            && slot.shape.iter().zip(shape).all(|(&planned, &side)| planned == usize::MAX || planned == side);
        let bits = element_count(shape).and_then(|count| count.checked_mul(slot.dtype.bitsize()));
        let unfit = |given: usize| {
            let (name, dtype, planned) = (&slot.name, slot.dtype, &slot.shape);
            let reason =
                format!("{given} bytes of shape {shape:?} for a {dtype} tensor planned as {planned:?}");
            Error::file(&self.path, Error::shape(reason).in_tensor(name))
        };
        if !fits || bits != len.checked_mul(8) {
            return Err(unfit(len));
        }
        let end = self.offset.checked_add(len).ok_or_else(|| Error::file(&self.path, "is too large"))?;
        let (out, path, mut given) = (&mut self.out, &self.path, 0usize);
        pieces(&mut |piece| {
            given = given.saturating_add(piece.len());
            if given > len {
                return Err(unfit(given));
            }
            out.write_all(piece).map_err(|e| Error::io(path, e))
        })?;
        if given != len {
            return Err(unfit(given));
        }
        let info = TensorInfo { dtype: slot.dtype, shape: shape.to_vec(), data_offsets: (self.offset, end) };
        self.written.push((slot.name, info));
        self.offset = end;
        Ok(())
    }

    /// Writes the header over the room kept for it and hands back what was written to.
    pub fn finish(mut self) -> Result<W> {
        if let Some(slot) = self.next_slot() {
            return Err(Error::file(
                &self.path,
                format!("tensor {:?} was planned and not written", slot.name),
            ));
        }
        let mut header = header(&self.path, &self.metadata, &self.written)?;
        debug_assert!(header.len() <= self.header_room, "the plan's header is the longest");
        header.resize(self.header_room, b' ');
        let length = self.header_room as u64;
        self.io(|out| {
            out.seek(SeekFrom::Start(0))?;
            out.write_all(&length.to_le_bytes())?;
            out.write_all(&header)?;
            out.flush()
        })?;
        let path = self.path;
        self.out.into_inner().map_err(|e| Error::io(path, e.into_error()))
    }

    fn io(&mut self, act: impl FnOnce(&mut BufWriter<W>) -> std::io::Result<()>) -> Result<()> {
        act(&mut self.out).map_err(|e| Error::io(&self.path, e))
    }
}

/// The header's JSON, its tensors in the order of their bytes.
fn header(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[(String, TensorInfo)],
) -> Result<Vec<u8>> {
    struct Header<'a>(&'a BTreeMap<String, String>, &'a [(String, TensorInfo)]);
    impl Serialize for Header<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(None)?;
            if !self.0.is_empty() {
                map.serialize_entry("__metadata__", self.0)?;
            }
            for (name, info) in self.1 {
                map.serialize_entry(name, info)?;
            }
            map.end()
        }
    }
    serde_json::to_vec(&Header(metadata, tensors)).map_err(|e| Error::file(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;
    use std::io::Cursor;

    fn bytes_of(slot: &Slot) -> Vec<u8> {
        let bits = element_count(&slot.shape).unwrap() * slot.dtype.bitsize();
        (0..bits / 8).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn a_file_of_every_width_is_read_back_by_the_safetensors_crate_and_aligned() {
        use Dtype::*;
        let types = [U8, F16, F64, BF16, BOOL, I64, F32, I8, F8_E4M3, U32, I16, F4];
        let mut plan: Vec<Slot> = types.iter().map(|&d| Slot::dense(format!("t{d}"), d, &[3, 2])).collect();
        plan.push(Slot::dense("scalar", F32, &[]));
        plan.push(Slot::dense("empty", F16, &[0, 5]));
        plan.push(Slot::payload("matrix"));
        let metadata = BTreeMap::from([("format".to_owned(), "pt \"quoted\"".to_owned())]);
        let mut writer =
            SafetensorsWriter::new(Cursor::new(vec![]), "test", plan.clone(), metadata.clone()).unwrap();
        while let Some(mut slot) = writer.next_slot().cloned() {
            if slot.is_payload() {
                slot.shape = vec![13];
            }
            writer.write(&slot.shape, &bytes_of(&slot)).unwrap();
        }
        let file = writer.finish().unwrap().into_inner();

        let read = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read.len(), plan.len());
        let (_, header) = SafeTensors::read_metadata(&file).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["format"], metadata["format"]);
        assert_eq!(header.offset_keys().last().unwrap(), "matrix.rbe");
        let data_start = file.len() - header.data_len();
        for mut slot in plan {
            if slot.is_payload() {
                slot.shape = vec![13];
            }
            let view = read.tensor(&slot.name).unwrap();
            assert_eq!((view.dtype(), view.shape()), (slot.dtype, &slot.shape[..]), "{}", slot.name);
            assert_eq!(view.data(), bytes_of(&slot), "{}", slot.name);
            let start = data_start + header.info(&slot.name).unwrap().data_offsets.0;
            assert_eq!(start % slot.dtype.bitsize().div_ceil(8), 0, "{} is not aligned", slot.name);
        }
    }

    #[test]
    fn an_empty_model_is_a_valid_file() {
        let writer = SafetensorsWriter::new(Cursor::new(vec![]), "test", vec![], BTreeMap::new()).unwrap();
        let file = writer.finish().unwrap().into_inner();
        assert_eq!(SafeTensors::deserialize(&file).unwrap().len(), 0);
    }

    #[test]
    fn the_plan_is_kept() {
        let plan = vec![Slot::dense("a", Dtype::F32, &[2])];
        let start =
            || SafetensorsWriter::new(Cursor::new(vec![]), "out", plan.clone(), BTreeMap::new()).unwrap();
        let error = start().write(&[2], &[0; 7]).unwrap_err().to_string();
        assert!(error.starts_with("out: tensor \"a\": wrong shape: 7 bytes"), "{error}");
        assert!(start().write(&[4], &[0; 16]).is_err());
        assert!(start().finish().unwrap_err().to_string().contains("planned and not written"));
        let mut writer = start();
        writer.write(&[2], &[0; 8]).unwrap();
        assert!(writer.write(&[2], &[0; 8]).is_err());
    }

    #[test]
    fn pieces_are_one_tensor_and_neither_more_nor_less() {
        let plan = vec![Slot::dense("a", Dtype::F32, &[2])];
        let write = |pieces: &[&[u8]]| -> Result<Vec<u8>> {
            let mut writer =
                SafetensorsWriter::new(Cursor::new(vec![]), "out", plan.clone(), BTreeMap::new())?;
            writer.write_pieces(&[2], 8, |write| pieces.iter().try_for_each(|piece| write(piece)))?;
            Ok(writer.finish()?.into_inner())
        };
        let file = write(&[&[1, 2, 3], &[], &[4, 5, 6, 7, 8]]).unwrap();
        assert_eq!(
            SafeTensors::deserialize(&file).unwrap().tensor("a").unwrap().data(),
            [1, 2, 3, 4, 5, 6, 7, 8]
        );
        for pieces in [&[&[0; 7][..]][..], &[&[0; 8], &[0; 1]], &[]] {
            let error = write(pieces).unwrap_err().to_string();
            assert!(error.starts_with("out: tensor \"a\": wrong shape: "), "{error}");
        }
    }

    #[test]
    fn a_name_used_twice_is_refused() {
        let plan = vec![Slot::payload("a"), Slot::dense("a.rbe", Dtype::F32, &[2])];
        let error = SafetensorsWriter::new(Cursor::new(vec![]), "out", plan, BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains("\"a.rbe\""), "{error}");
    }

    /// A disk with so many bytes left.
    struct Disk(Cursor<Vec<u8>>, usize);
    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let room = self.1.saturating_sub(usize::try_from(self.0.position()).unwrap());
            if room == 0 {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            self.0.write(&bytes[..room.min(bytes.len())])
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    impl Seek for Disk {
        fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn a_disk_that_fills_up_anywhere_is_an_error() {
        let plan = vec![Slot::dense("a", Dtype::F32, &[500]), Slot::payload("b")];
        let write = |room: usize| -> Result<usize> {
            let disk = Disk(Cursor::new(vec![]), room);
            let mut writer = SafetensorsWriter::new(disk, "disk", plan.clone(), BTreeMap::new())?;
            writer.write(&[500], &[1; 2000])?;
            writer.write(&[300], &[2; 300])?;
            Ok(writer.finish()?.0.into_inner().len())
        };
        let whole = write(usize::MAX).unwrap();
        assert_eq!(write(whole).unwrap(), whole);
        for room in [0, 1, 100, 1000, whole - 300, whole - 1] {
            match write(room) {
                Err(Error::Io { path, source }) => {
                    assert_eq!(path, Path::new("disk"));
                    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
                }
                other => panic!("{room} of {whole} bytes: {other:?}"),
            }
        }
    }
}
