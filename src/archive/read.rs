//! A model's tensors, memory mapped: one safetensors file, or a directory of one or many; or a file that is in memory.

use super::adapters::{KIND, KIND_KEY};
use super::index::read_index;
use super::roles::is_stack;
use super::{FORMAT_KEY, FORMAT_VERSION, INDEX_FILE, MODEL_FILE, Original, SUFFIX, TENSORS_KEY, TIED_KEY};
use crate::file::Bytes;
use crate::tensor::{Origin, Unread};
use crate::{Error, RbeTensor, Result, file};
use candle_core::{DType, Device, Tensor};
use rbe_core::codec::sizes::zeroed;
use rbe_core::codec::stack::Stack;
use safetensors::tensor::{Metadata, SafeTensors, TensorInfo};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Bytes of the length that opens a safetensors file.
const LENGTH_BYTES: usize = 8;

/// One tensor of a model, under its own name whether it is compressed or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The name in the model, without `.rbe`.
    pub name: String,
    /// The type; of a compressed tensor, the type it had before.
    pub dtype: super::Dtype,
    /// The shape; of a compressed tensor, the shape it decodes to.
    pub shape: Vec<usize>,
    /// Whether the file holds `NAME.rbe` in place of `NAME`.
    pub compressed: bool,
    /// Bytes in the file; of a tied tensor those of the one that stands for it.
    pub bytes: usize,
    /// The tensor that stands for this one, which is the same and is not stored again.
    pub tied_to: Option<String>,
    /// Whether it is a stack of matrices, compressed or to be, and not one matrix.
    pub(super) stacked: bool,
    shard: usize,
    offset: usize,
}

impl Entry {
    /// The name in the file: with `.rbe` where the tensor is compressed, and of a tied tensor that of the other.
    pub fn stored_name(&self) -> String {
        let name = self.tied_to.as_ref().unwrap_or(&self.name);
        if self.compressed { format!("{name}{SUFFIX}") } else { name.clone() }
    }

    /// Bytes that the file has for this tensor alone: none where another stands for it.
    pub fn own_bytes(&self) -> usize {
        if self.tied_to.is_none() { self.bytes } else { 0 }
    }

    /// How many matrices it is: one, or of a stack (a layer's experts) as many as its first side says.
    pub fn parts(&self) -> usize {
        if self.stacked { self.shape[0] } else { 1 }
    }

    /// The sides of each matrix: its own two, of a stack the last two, of a kernel its first and the others in one.
    pub(super) fn matrix(&self) -> Option<(usize, usize)> {
        let shape = if self.stacked { &self.shape[1..] } else { &self.shape };
        match shape.split_first()? {
            (_, []) => None,
            (&rows, others) => Some((rows, super::element_count(others)?)),
        }
    }

    /// Whether a payload of this shape is the tensor's.
    fn fits(&self, payload: &[usize]) -> bool {
        (payload == self.shape && !self.stacked)
            || self.matrix().is_some_and(|(rows, cols)| payload == [rows, cols])
    }

    /// Number of weights.
    pub fn elements(&self) -> usize {
        // Dense shapes were multiplied with checks when the header was read, compressed ones in `open`.
        self.shape.iter().product()
    }
}

struct Shard {
    path: PathBuf,
    bytes: Bytes,
    header: Metadata,
    data_start: usize,
}

impl Drop for Shard {
    /// Tensors keep the map for their payloads, and nothing in memory.
    fn drop(&mut self) {
        self.bytes.give_back();
    }
}

impl Shard {
    /// The entry of a tensor of this shard, which has that number; of one that is compressed, what it was is taken out of `originals`.
    fn entry(
        &self,
        index: usize,
        (stored_name, info): (&str, &TensorInfo),
        originals: &mut BTreeMap<String, Original>,
    ) -> Result<Entry> {
        let refuse = |reason: String| Err(Error::file(&self.path, reason));
        let (start, end) = info.data_offsets;
        let place = self.data_start + start..self.data_start + end;
        let entry = Entry {
            name: stored_name.to_owned(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            compressed: false,
            bytes: place.len(),
            tied_to: None,
            stacked: info.shape.len() == 3 && is_stack(stored_name),
            shard: index,
            offset: place.start,
        };
        let Some(name) = stored_name.strip_suffix(SUFFIX) else { return Ok(entry) };
        if info.dtype != super::Dtype::U8 || info.shape.len() != 1 {
            let (dtype, shape) = (info.dtype, &info.shape);
            return refuse(format!(
                "tensor {stored_name:?} is {dtype} of shape {shape:?}; a name in {SUFFIX} is kept for compressed tensors, which \
                 are U8 of rank 1"
            ));
        }
        let bytes = &self.bytes[place];
        let original = match originals.remove(name) {
            Some(original) => original,
            // Written by another tool, without our metadata: the payload itself knows its shape.
            None => {
                let shape = shape_of(bytes).map_err(|e| Error::file(&self.path, e.in_tensor(name)))?;
                Original { dtype: super::Dtype::F32, shape }
            }
        };
        if super::element_count(&original.shape).is_none() {
            return refuse(format!("the recorded shape of tensor {name:?} overflows"));
        }
        let stacked = original.shape.len() == 3 && Stack::begins(bytes);
        let Original { dtype, shape } = original;
        Ok(Entry { name: name.to_owned(), dtype, shape, compressed: true, stacked, ..entry })
    }

    fn open(path: PathBuf) -> Result<Self> {
        let file = file::open(&path)?;
        let bytes = Bytes::of(&file).map_err(|e| Error::io(&path, e))?;
        Self::new(path, bytes)
    }

    fn new(path: PathBuf, bytes: Bytes) -> Result<Self> {
        let length = bytes.len();
        if length < LENGTH_BYTES {
            return Err(Error::file(&path, format!("not a safetensors file: {length} bytes hold no header")));
        }
        let (header_bytes, header) = SafeTensors::read_metadata(&bytes).map_err(|e| {
            let hint = file::hint(&bytes).map_or_else(|| e.to_string(), str::to_owned);
            Error::file(&path, format!("not a valid safetensors file: {hint}"))
        })?;
        Ok(Self { path, bytes, header, data_start: LENGTH_BYTES + header_bytes })
    }

    fn originals(&self) -> Result<BTreeMap<String, Original>> {
        let Some(metadata) = self.header.metadata() else { return Ok(BTreeMap::new()) };
        match metadata.get(FORMAT_KEY).map(String::as_str) {
            None | Some(FORMAT_VERSION) => {}
            Some(version) => {
                let reason = format!("{FORMAT_KEY} is {version:?}; this build reads {FORMAT_VERSION:?}");
                return Err(Error::file(&self.path, reason));
            }
        }
        self.map(TENSORS_KEY)
    }

    /// A metadata entry that maps names; empty where it is not there.
    fn map<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<BTreeMap<String, T>> {
        let Some(text) = self.header.metadata().as_ref().and_then(|metadata| metadata.get(key)) else {
            return Ok(BTreeMap::new());
        };
        serde_json::from_str(text)
            .map_err(|e| Error::file(&self.path, format!("the metadata entry {key} is not valid: {e}")))
    }
}

/// A model's tensors, memory mapped and listed; nothing is decoded before it is asked for.
///
/// The files must be neither truncated nor written over while they are open, nor while a compressed tensor of theirs is there
/// ([`RbeTensor`] says what comes of it otherwise). To replace one by renaming another is safe.
pub struct Archive {
    path: PathBuf,
    shards: Vec<Shard>,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Archive({:?}, {} tensors)", self.path, self.entries.len())
    }
}

impl Archive {
    /// Opens a safetensors file, or a directory with `model.safetensors` or a sharded model's index.
    ///
    /// Where a directory holds both, the single file is taken, as Hugging Face's loaders do.
    ///
    /// # Errors
    /// A file is missing, truncated or no safetensors; an index points outside its directory, to a missing shard or
    /// tensor; a tensor is there twice and no index says which counts; the container's version is unknown or its metadata
    /// does not fit the tensors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let kind = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !kind.is_dir() {
            return Self::from_shards(path, vec![Shard::open(path.to_owned())?], &BTreeMap::new());
        }
        if path.join(MODEL_FILE).exists() {
            return Self::from_shards(path, vec![Shard::open(path.join(MODEL_FILE))?], &BTreeMap::new());
        }
        let index_path = path.join(INDEX_FILE);
        if !index_path.exists() {
            let hint = found_instead(path);
            return Err(Error::file(path, format!("holds neither {MODEL_FILE} nor {INDEX_FILE}{hint}")));
        }
        let index = read_index(&index_path)?;
        let files: BTreeSet<&String> = index.values().collect();
        let shards = files.iter().map(|file| Shard::open(path.join(file))).collect::<Result<Vec<_>>>()?;
        for (name, file) in &index {
            let shard = shards.iter().find(|shard| shard.path.ends_with(file));
            if shard.is_none_or(|shard| shard.header.info(name).is_none()) {
                let reason = format!("says that {file:?} holds tensor {name:?}, and it does not");
                return Err(Error::file(&index_path, reason));
            }
        }
        Self::from_shards(path, shards, &index)
    }

    /// A safetensors file that is in memory: downloaded, built into the program, or where there are no files at all. `name`
    /// stands for its path in errors.
    ///
    /// # Errors
    /// The bytes are no safetensors file; the container's version is unknown or its metadata does not fit the tensors.
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Vec<u8>) -> Result<Self> {
        let name = name.as_ref();
        Self::from_shards(name, vec![Shard::new(name.to_owned(), bytes.into())?], &BTreeMap::new())
    }

    fn from_shards(path: &Path, shards: Vec<Shard>, index: &BTreeMap<String, String>) -> Result<Self> {
        let mut archive = Self {
            path: path.to_owned(),
            shards: vec![],
            entries: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        let mut tied = BTreeMap::new();
        for (number, shard) in shards.into_iter().enumerate() {
            archive.list(number, &shard, index)?;
            for (key, value) in shard.header.metadata().iter().flatten() {
                // Each shard describes its own tensors; of what they say in common the first shard's word holds.
                if key != TENSORS_KEY && key != TIED_KEY {
                    archive.metadata.entry(key.clone()).or_insert_with(|| value.clone());
                }
            }
            tied.extend(shard.map::<String>(TIED_KEY)?);
            archive.shards.push(shard);
        }
        archive.list_tied(tied)?;
        Ok(archive)
    }

    /// Adds the tensors that others stand for.
    fn list_tied(&mut self, tied: BTreeMap<String, String>) -> Result<()> {
        let mut entries = vec![];
        for (name, other) in tied {
            let refuse = |reason: &str| {
                let said = format!("{TIED_KEY} says that {other:?} stands for tensor {name:?}, {reason}");
                Err(Error::file(&self.path, said))
            };
            if self.entries.contains_key(&name) {
                return refuse("which is there itself");
            }
            let Some(entry) = self.entries.get(&other) else { return refuse("and is not there") };
            entries.push(Entry { name, tied_to: Some(other), ..entry.clone() });
        }
        self.entries.extend(entries.into_iter().map(|entry| (entry.name.clone(), entry)));
        Ok(())
    }

    /// Lists a shard's tensors but for those that `said_in`, the index, has in another file.
    fn list(&mut self, index: usize, shard: &Shard, said_in: &BTreeMap<String, String>) -> Result<()> {
        let mut originals = shard.originals()?;
        for (stored_name, info) in shard.header.tensors() {
            if said_in.get(&stored_name).is_some_and(|file| !shard.path.ends_with(file)) {
                originals.remove(stored_name.strip_suffix(SUFFIX).unwrap_or(&stored_name));
                continue;
            }
            let refuse = |reason: String| Err(Error::file(&shard.path, reason));
            let entry = shard.entry(index, (&stored_name, info), &mut originals)?;
            if let Some(other) = self.entries.insert(entry.name.clone(), entry) {
                let name = &other.name;
                let there = if other.shard == index { shard } else { &self.shards[other.shard] };
                return if other.shard == index {
                    refuse(format!("tensor {name:?} is there twice, dense and compressed"))
                } else {
                    refuse(format!("tensor {name:?} is also in {}", there.path.display()))
                };
            }
        }
        match originals.pop_first() {
            None => Ok(()),
            Some((name, _)) => {
                let reason = format!(
                    "{TENSORS_KEY} names tensor {name:?}, and there is no {:?}",
                    format!("{name}{SUFFIX}")
                );
                Err(Error::file(&shard.path, reason))
            }
        }
    }

    /// The file or directory that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The safetensors files, in the order of their names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }

    /// The file that holds a tensor.
    pub fn file_of(&self, entry: &Entry) -> &Path {
        &self.shards[entry.shard].path
    }

    /// The `__metadata__` of the files, without what this crate keeps there for itself.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata
            .iter()
            .filter(|(key, _)| *key != FORMAT_KEY)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }

    /// All tensors, in the order of their names.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> + Clone {
        self.entries.values()
    }

    /// One tensor's entry.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// One tensor's entry, or an error that names the file and the tensor.
    pub fn entry(&self, name: &str) -> Result<&Entry> {
        self.get(name).ok_or_else(|| self.missing(name))
    }

    /// The error of a tensor that is not there.
    pub(super) fn missing(&self, name: &str) -> Error {
        Error::MissingTensor { path: self.path.clone(), name: name.to_owned(), hint: self.has_instead(name) }
    }

    /// What is known of a tensor that is not there: the same under another prefix, or that the file is no model.
    fn has_instead(&self, name: &str) -> String {
        if self.metadata.get(KIND_KEY).is_some_and(|kind| kind == KIND) {
            return "; it holds adapters, which change a model and are none".into();
        }
        let inside = |long: &str, short: &str| {
            long.strip_suffix(short).is_some_and(|prefix| prefix.ends_with('.') && !short.is_empty())
        };
        let other = self.entries.keys().find(|other| inside(other, name) || inside(name, other));
        other.map_or_else(String::new, |other| {
            let (more, less) = (other.strip_suffix(name), name.strip_suffix(other.as_str()));
            let how = match (more, less) {
                (Some(prefix), _) => format!("with {prefix:?} before it"),
                (None, prefix) => format!("without {:?} before it", prefix.unwrap_or_default()),
            };
            format!("; it holds {other:?}, the same {how}: the model was saved under another prefix, rename its tensors")
        })
    }

    /// What [`TIED_KEY`] says of this archive; `None` where no tensor stands for another.
    pub(super) fn tied_as_json(&self) -> Result<Option<String>> {
        let tied: BTreeMap<&str, &str> = self
            .entries()
            .filter_map(|entry| Some((entry.name.as_str(), entry.tied_to.as_deref()?)))
            .collect();
        let json = || serde_json::to_string(&tied).map_err(|e| Error::file(&self.path, e));
        (!tied.is_empty()).then(json).transpose()
    }

    /// Whether any tensor is compressed.
    pub fn is_compressed(&self) -> bool {
        self.metadata.contains_key(FORMAT_KEY) || self.entries().any(|entry| entry.compressed)
    }

    /// A tensor's bytes as they lie in the file: little-endian values, or the payload.
    pub fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.shards[entry.shard].bytes[entry.offset..entry.offset + entry.bytes]
    }

    /// The part of the file that those are.
    fn bytes_of(&self, entry: &Entry) -> Bytes {
        self.shards[entry.shard].bytes.part(entry.offset..entry.offset + entry.bytes)
    }

    /// The payload of a compressed tensor, where it lies.
    pub(super) fn payload(&self, entry: &Entry) -> Unread {
        let origin = Origin { file: self.file_of(entry).to_owned(), tensor: entry.name.clone() };
        Unread { bytes: self.bytes_of(entry), origin: Some(origin) }
    }

    /// Reads and checks a compressed tensor; it lives on the CPU. Its payload stays where it is: in the file, which must be neither
    /// truncated nor written over while the tensor is there, or in the memory that the archive was opened from. A kernel of more than two
    /// sides is the matrix whose columns are all but the first.
    ///
    /// # Errors
    /// The tensor is dense or a [stack](Self::part), its payload is damaged, or of another shape than the header says.
    pub fn rbe(&self, entry: &Entry) -> Result<RbeTensor> {
        if entry.stacked {
            let reason =
                format!("is a stack of {} matrices; take them one by one, by Archive::part", entry.parts());
            return Err(self.about(entry, reason));
        }
        self.part(entry, 0)
    }

    /// The same of one of a tensor's [`parts`](Entry::parts): of a stack the others' payloads are not read.
    ///
    /// # Errors
    /// As there; there are not so many.
    pub fn part(&self, entry: &Entry, index: usize) -> Result<RbeTensor> {
        if !entry.compressed {
            return Err(self.about(entry, "is not compressed"));
        }
        let in_part = |reason: &dyn Display| match entry.stacked {
            true => self.about(entry, format!("matrix {index}: {reason}")),
            false => self.about(entry, reason),
        };
        let tensor =
            RbeTensor::read(self.payload_part(entry, index)?, &Device::Cpu).map_err(|e| in_part(&e))?;
        if !entry.fits(tensor.shape().dims()) {
            let (payload, header) = (tensor.shape().dims(), &entry.shape);
            return Err(in_part(&format!("the payload has shape {payload:?}, the header says {header:?}")));
        }
        Ok(tensor)
    }

    /// The payload of a part, where it lies.
    pub(super) fn payload_part(&self, entry: &Entry, index: usize) -> Result<Unread> {
        let mut payload = self.payload(entry);
        let none =
            || self.about(entry, format!("has {} matrices, and none of the number {index}", entry.parts()));
        if !entry.stacked {
            return if index == 0 { Ok(payload) } else { Err(none()) };
        }
        let stack = Stack::from_bytes(&payload.bytes).map_err(|e| self.about(entry, e))?;
        let (found, header) = (stack.shape(), &entry.shape);
        if found[..] != header[..] {
            let reason = format!("the payload has shape {found:?}, the header says {header:?}");
            return Err(self.about(entry, reason));
        }
        let range = stack.ranges().into_iter().nth(index).ok_or_else(none)?;
        payload.bytes = payload.bytes.part(range);
        Ok(payload)
    }

    /// The bytes of a part of a dense tensor.
    pub(super) fn part_bytes(&self, entry: &Entry, index: usize) -> &[u8] {
        let bytes = entry.bytes / entry.parts().max(1);
        &self.bytes(entry)[index * bytes..(index + 1) * bytes]
    }

    /// One of a dense tensor's [`parts`](Entry::parts), as the matrix that is encoded: of a kernel all sides but the first in one.
    ///
    /// # Errors
    /// The tensor is compressed, a vector or of a type that Candle has not; there are not so many.
    pub fn dense_part(&self, entry: &Entry, index: usize) -> Result<Tensor> {
        let shape = entry.matrix().filter(|_| !entry.compressed && index < entry.parts());
        let shape =
            shape.ok_or_else(|| self.about(entry, format!("has no dense matrix of the number {index}")))?;
        let tensor = DType::try_from(entry.dtype).and_then(|dtype| {
            Tensor::from_raw_buffer(self.part_bytes(entry, index), dtype, &[shape.0, shape.1], &Device::Cpu)
        });
        self.bytes_of(entry).give_back();
        tensor.map_err(|e| self.about(entry, e))
    }

    /// A compressed tensor, decoded on the CPU.
    fn decoded(&self, entry: &Entry) -> Result<Tensor> {
        let shape = entry.shape.as_slice();
        if !entry.stacked {
            return Ok(self.part(entry, 0)?.dequantize()?.reshape(shape)?);
        }
        let mut values: Vec<f32> = zeroed(shape, "a stack of decoded matrices")?;
        let size = values.len() / entry.parts();
        for (index, room) in values.chunks_exact_mut(size).enumerate() {
            let mut done = 0;
            self.part(entry, index)?.decode_in_bands(|band| {
                room[done..done + band.len()].copy_from_slice(band);
                done += band.len();
                Ok(())
            })?;
        }
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// A tensor as Candle's: dense ones as they are stored, compressed ones decoded to F32.
    pub fn tensor(&self, entry: &Entry, device: &Device) -> Result<Tensor> {
        let tensor = if entry.compressed {
            // Its errors name the tensor.
            return Ok(self.decoded(entry)?.to_device(device)?);
        } else {
            let part = self.bytes_of(entry);
            let read = DType::try_from(entry.dtype)
                .and_then(|dtype| Tensor::from_raw_buffer(&part, dtype, &entry.shape, device));
            part.give_back();
            read.map_err(Error::from)
        };
        tensor.map_err(|e| self.about(entry, e))
    }

    /// An error about one tensor, naming its file.
    pub(super) fn about(&self, entry: &Entry, reason: impl std::fmt::Display) -> Error {
        Error::file(self.file_of(entry), format!("tensor {:?}: {reason}", entry.name))
    }
}

/// The shape that a payload says.
fn shape_of(bytes: &[u8]) -> Result<Vec<usize>> {
    match Stack::begins(bytes) {
        true => Ok(Stack::from_bytes(bytes)?.shape().to_vec()),
        false => Ok(RbeTensor::shape_in(bytes)?.into_dims()),
    }
}

/// What a directory without a model's weights holds in their place, as the rest of a sentence.
fn found_instead(directory: &Path) -> String {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let found = |wanted: &dyn Fn(&str) -> bool| names.iter().find(|name| wanted(name));
    if let Some(name) = found(&|name| name == "adapter_model.safetensors" || name == "adapter_model.bin") {
        return format!(
            "; {name:?} is an adapter, which changes a model and is none: merge it into its base model"
        );
    }
    if let Some(name) = found(&|name| name.ends_with(".safetensors")) {
        return format!("; it holds {name:?}: name that file, or call it {MODEL_FILE}");
    }
    if let Some(name) = found(&|name| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end)))
    {
        return format!("; {name:?} is PyTorch's: save the model as safetensors");
    }
    if let Some(name) = found(&|name| name.ends_with(".gguf")) {
        return format!("; it holds {name:?}: name that file, which `rbe compress` and `rbe decode` take");
    }
    match found(&|name| name.ends_with(".h5") || name.ends_with(".onnx")) {
        Some(name) => format!("; {name:?} is of another format: give the model as safetensors"),
        None => String::new(),
    }
}
