//! A compressed tensor on a Candle device.

mod payload;

pub(crate) use payload::{Origin, Unread};

use crate::error::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor};
use payload::Payload;
use rbe_core::codec::sizes::zeroed;
use rbe_core::codec::term::Planes;
use rbe_core::codec::term::planes::MAX_PLANES;
use rbe_core::codec::{Errors, Layout, Matrix, ParameterGroup, Sides, matrix::Orientation};
use rbe_core::cpu::{Oriented, PackedMatrix, Rayon, requested_level};
use rbe_core::encode::PruneReport;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use crate::cuda::{self, CudaMachine, DeviceMatrix};

/// The devices that this build has kernels for.
const KERNELS: &str = if cfg!(feature = "cuda") { "the CPU and CUDA" } else { "the CPU" };

/// Weights that [`RbeTensor::decode_in_bands`] decodes at a time, where that is more than one block's rows: 16 MiB.
const BAND_ELEMENTS: usize = 1 << 22;

/// The shape that a view of a matrix has.
fn oriented_shape(layout: Layout, orientation: Orientation) -> Shape {
    match orientation {
        Orientation::Vector => Shape::from(layout.cols()),
        Orientation::Matrix => Shape::from((layout.rows(), layout.cols())),
        Orientation::Transposed => Shape::from((layout.cols(), layout.rows())),
    }
}

/// A compressed tensor of rank 1 or 2: `W^ = sum of terms`, as [`codec`](rbe_core::codec) defines it.
///
/// What a tensor is, is its **payload** ([`to_bytes`](Self::to_bytes)); for products it is packed once, as its device wants it.
/// Whatever else is wanted of it, the matrix, another device's form, one with fewer planes, is made of the payload, which is read
/// again for that.
///
/// # Memory
/// The payload of a tensor that an [`Archive`](crate::archive::Archive) or its `VarBuilder` gave stays in the file: it is a part of
/// a memory map, whose pages are given back to the system once it is read (on Unix; elsewhere the system takes them when it needs
/// them), and [`memory_in_bytes`](Self::memory_in_bytes) is what the tensor takes. One of bytes that were in memory, and one
/// that was encoded or changed in this process, holds both forms, [`size_in_bytes`](Self::size_in_bytes) more: about twice as much.
///
/// # Files that change
/// A file that a tensor was loaded from must be neither truncated nor written over while the tensor is there. To replace it by
/// renaming another, as this crate's writers do, is safe: the tensor keeps the old one, which lasts as long as it. (On Windows a
/// file that is mapped cannot be replaced, and [`Stage::commit`](crate::archive::Stage::commit) says so.) Products do not read the
/// payload. What does checks it again, and of one that was written over gives an error with the names of file and tensor; what was
/// truncated away cannot be read at all, and the system ends the process (`SIGBUS` on Unix). Who has no say in what becomes of a file
/// reads it into memory: [`archive::open_bytes`](crate::archive::open_bytes), [`from_bytes`](Self::from_bytes).
///
/// Cloning and [`t`](Self::t) share the compressed data.
#[derive(Clone)]
pub struct RbeTensor {
    payload: Arc<Payload>,
    packed: Packed,
    orientation: Orientation,
    shape: Shape,
    device: Device,
}

/// What products take, on the tensor's device.
#[derive(Clone)]
enum Packed {
    Cpu(Arc<PackedMatrix>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<DeviceMatrix<CudaMachine>>),
}

impl Packed {
    /// Packs a matrix that `payload` holds.
    ///
    /// # Errors
    /// When this build has no kernels for the device (Metal; CUDA without the feature `cuda`), the device is older than
    /// compute capability 8.0, or it has not enough memory.
    fn new(matrix: &Matrix, payload: &Payload, is_transposed: bool, device: &Device) -> Result<Self> {
        #[cfg(not(feature = "cuda"))]
        let _ = (payload, is_transposed);
        match device {
            Device::Cpu => Ok(Self::Cpu(Arc::new(PackedMatrix::new(matrix)))),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => {
                let machine = CudaMachine::new(cuda)?;
                machine.expect_room(payload.plain_size_in_bytes)?;
                let matrix = DeviceMatrix::new(machine, matrix)?;
                matrix.prepare(is_transposed)?;
                Ok(Self::Cuda(Arc::new(matrix)))
            }
            _ => Err(Error::unsupported(format!(
                "RBE tensors on {:?}; this build has kernels for {KERNELS} only",
                device.location()
            ))),
        }
    }
}

impl std::fmt::Debug for RbeTensor {
    /// A line, not the data.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RbeTensor({:?}, {}, {:?})", self.shape, self.summary(), self.device)
    }
}

impl RbeTensor {
    /// Of a payload that holds this matrix.
    fn new(payload: Payload, matrix: &Matrix, device: &Device) -> Result<Self> {
        let orientation = payload.orientation();
        let is_transposed = orientation == Orientation::Transposed;
        let packed = Packed::new(matrix, &payload, is_transposed, device)?;
        let shape = oriented_shape(payload.layout, orientation);
        Ok(Self { payload: Arc::new(payload), packed, orientation, shape, device: device.clone() })
    }

    /// Reads and checks a payload, and packs it for a device alone.
    ///
    /// # Errors
    /// As [`from_bytes`](Self::from_bytes) and [`to_device`](Self::to_device).
    pub(crate) fn read(payload: Unread, device: &Device) -> Result<Self> {
        requested_level()?;
        let (payload, matrix) = payload.read()?;
        Self::new(payload, &matrix, device)
    }

    /// The shape of a payload's tensor. All of the payload is checked.
    ///
    /// # Errors
    /// As [`from_bytes`](Self::from_bytes).
    pub(crate) fn shape_in(payload: &[u8]) -> Result<Shape> {
        let (matrix, orientation) = Matrix::from_bytes(payload)?;
        Ok(oriented_shape(matrix.layout(), orientation))
    }

    /// The shape of the tensor that was compressed.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Where the products run.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The stored matrix as the codec has it, read from the payload; [`is_transposed`](Self::is_transposed) says how the tensor
    /// sees it.
    ///
    /// # Errors
    /// When the payload lies in a file, and that was changed since it was loaded.
    pub fn to_matrix(&self) -> Result<Matrix> {
        self.payload.matrix()
    }

    /// How the stored matrix is cut into blocks.
    pub(crate) fn layout(&self) -> Layout {
        self.payload.layout
    }

    /// The stored matrix as products on the CPU take it.
    ///
    /// # Errors
    /// When the tensor is on another device.
    pub(crate) fn on_cpu(&self) -> Result<&Arc<PackedMatrix>> {
        match &self.packed {
            Packed::Cpu(matrix) => Ok(matrix),
            #[cfg(feature = "cuda")]
            Packed::Cuda(_) => {
                Err(Error::unsupported("an input on the CPU with a compressed tensor on a CUDA device"))
            }
        }
    }

    /// The matrix that products on the CPU see.
    ///
    /// # Errors
    /// As [`on_cpu`](Self::on_cpu).
    pub(crate) fn oriented(&self) -> Result<Oriented<'_>> {
        Ok(Oriented::new(self.on_cpu()?, self.is_transposed()))
    }

    /// A tensor of a matrix as the codec has it, on the CPU.
    ///
    /// # Errors
    /// When it has no payload ([`Matrix::expect_payload`]): a vector's matrix has more than one row, there are no terms, or too
    /// little is stored of too many elements; as [`requested_level`].
    pub fn from_matrix(matrix: &Matrix, orientation: Orientation) -> Result<Self> {
        Self::of(matrix, orientation, &Device::Cpu)
    }

    fn of(matrix: &Matrix, orientation: Orientation, device: &Device) -> Result<Self> {
        requested_level()?;
        Self::new(Payload::of(matrix, orientation)?, matrix, device)
    }

    /// How the tensor sees the stored matrix.
    pub fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// The numbers in which the tensor is linear, F32, `(count)`: term after term those that
    /// [`parameter_groups`](Self::parameter_groups) counts. Positions and codes are fixed.
    ///
    /// # Errors
    /// As [`to_matrix`](Self::to_matrix); Candle's, when the tensor cannot be made.
    pub fn parameters(&self) -> Result<Tensor> {
        let parameters = self.to_matrix()?.parameters();
        let count = parameters.len();
        Ok(Tensor::from_vec(parameters, count, &self.device)?)
    }

    /// How many [`parameters`](Self::parameters) each term has: `basis` 8 a block, `sparse` one a coefficient, `planes`,
    /// `trellis` and the second one's `residual_trellis` one a scale.
    pub fn parameter_groups(&self) -> &[ParameterGroup] {
        &self.payload.parameter_groups
    }

    /// The same positions and codes with other parameters, rounded to what the format holds (F16 for scales and sparse
    /// values). [`relative_error`](Self::relative_error) is then unknown and reads 1.
    ///
    /// # Errors
    /// When their number is another, one is not finite or larger than the format holds, or a scale is negative; as
    /// [`to_matrix`](Self::to_matrix).
    pub fn with_parameters(&self, parameters: &Tensor) -> Result<Self> {
        let parameters = parameters.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let matrix = self.to_matrix()?.with_parameters(&parameters)?;
        Self::of(&matrix, self.orientation, &self.device)
    }

    /// Takes away the sparse term's coefficients of magnitude below `threshold`, with what the basis functions can say of them
    /// absorbed into their parameters ([`encode::prune`](rbe_core::encode::prune)), and reports what that changed. The error that the
    /// tensor records is then measured against `original`, or without one the most that it can be.
    ///
    /// # Errors
    /// When there is no sparse term, the threshold is negative or not a number, or `original` has another shape; when what the
    /// basis functions absorb, or the error to be recorded, is not finite; when so little is left that it has no payload; as
    /// [`to_matrix`](Self::to_matrix).
    pub fn prune_coefficients(
        &self,
        threshold: f32,
        original: Option<&Tensor>,
    ) -> Result<(Self, PruneReport)> {
        if threshold.is_nan() || threshold < 0.0 {
            return Err(Error::config(format!("a threshold of {threshold}; it must be at least 0")));
        }
        let original = match original {
            None => None,
            Some(original) if original.shape() != &self.shape => {
                let reason = format!("an original of {:?} of a tensor of {:?}", original.shape(), self.shape);
                return Err(Error::shape(reason));
            }
            Some(original) => {
                let stored = if self.is_transposed() { original.t()? } else { original.clone() };
                let stored = stored.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
                Some(stored.flatten_all()?.to_vec1::<f32>()?)
            }
        };
        let before = self.to_matrix()?;
        let after = rbe_core::encode::prune(&before, threshold)?;
        let report = PruneReport::new(&before, &after, original.as_deref());
        let error_after = report.error_after as f32;
        if !error_after.is_finite() {
            return Err(Error::config(format!(
                "pruned at {threshold}, the relative error is {}, and only finite ones are recorded: the original is zero or \
                 weights are too large for F32",
                report.error_after
            )));
        }
        let after = after.with_errors(error_after.into());
        Ok((Self::of(&after, self.orientation, &self.device)?, report))
    }

    /// Whether the tensor is the transpose of the stored matrix.
    pub fn is_transposed(&self) -> bool {
        self.orientation == Orientation::Transposed
    }

    /// The tensor with rows and columns exchanged: a view of the same data.
    ///
    /// # Errors
    /// When the tensor is a vector.
    pub fn t(&self) -> Result<Self> {
        let orientation = match self.orientation {
            Orientation::Vector => return Err(Error::shape("a vector has no transpose")),
            Orientation::Matrix => Orientation::Transposed,
            Orientation::Transposed => Orientation::Matrix,
        };
        Ok(Self { orientation, shape: oriented_shape(self.layout(), orientation), ..self.clone() })
    }

    /// The first planes of every planes term, the other terms as they are: the coarser quantiser nested in the finer one.
    /// [`relative_error`](Self::relative_error) is then unknown and reads 1.
    ///
    /// # Errors
    /// When there is no planes term, or `planes` is not 1 to 8; when a scale of so few planes, which is larger than that of
    /// all, is larger than the format holds; as [`to_matrix`](Self::to_matrix).
    pub fn first_planes(&self, planes: u8) -> Result<Self> {
        let matrix = self.to_matrix()?;
        if matrix.term::<Planes>().is_none() {
            return Err(Error::config(format!(
                "the first planes of a tensor without any: {}",
                self.summary()
            )));
        }
        if !(1..=MAX_PLANES).contains(&planes) {
            return Err(Error::config(format!("the first {planes} planes; there are 1 to {MAX_PLANES}")));
        }
        Self::of(&matrix.truncate_planes(planes)?, self.orientation, &self.device)
    }

    /// Coefficients that a product multiplies with.
    pub(crate) fn stored_coefficients(&self) -> usize {
        self.payload.stored_numbers
    }

    /// The same tensor on another device: there products with it run. The payload, which it is packed from, stays on the host.
    ///
    /// # Errors
    /// When this build has no kernels for the device (Metal; CUDA without the feature `cuda`), the device is older than
    /// compute capability 8.0, or it has not enough memory; as [`to_matrix`](Self::to_matrix).
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        if self.device.same_device(device) {
            return Ok(self.clone());
        }
        let packed = Packed::new(&self.to_matrix()?, &self.payload, self.is_transposed(), device)?;
        Ok(Self { packed, device: device.clone(), ..self.clone() })
    }

    /// The tensor in its layout for products on a CUDA device.
    ///
    /// # Errors
    /// When it is not on one.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_cuda(&self) -> Result<&Arc<DeviceMatrix<CudaMachine>>> {
        match &self.packed {
            Packed::Cuda(matrix) => Ok(matrix),
            Packed::Cpu(_) => {
                Err(Error::unsupported("an input on a CUDA device with a compressed tensor on the CPU"))
            }
        }
    }

    /// Decodes into a dense F32 tensor on the same device.
    ///
    /// # Errors
    /// When there is no memory for it; Candle's, when the tensor cannot be made.
    pub fn dequantize(&self) -> Result<Tensor> {
        let weights = self.decode()?;
        Ok(match self.orientation {
            Orientation::Vector => weights.flatten_all()?,
            Orientation::Matrix => weights,
            Orientation::Transposed => weights.t()?.contiguous()?,
        })
    }

    /// Decodes a few rows at a time, on the CPU: `take` gets whole rows of the tensor (of a vector all of it) in F32, from the
    /// first on. A tensor larger than memory can so be written to a file.
    ///
    /// # Errors
    /// When there is no memory for the rows of one block; what `take` says; of a tensor on another device, as
    /// [`to_matrix`](Self::to_matrix).
    pub fn decode_in_bands(&self, mut take: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        self.decode_rows(0..usize::MAX, |_, band| take(band))
    }

    /// The same of these rows alone, with all of the blocks that have one of them: `take` gets the number of the first row that it
    /// gets, too. What is cut along the borders of blocks is decoded once, whatever it is cut into.
    ///
    /// # Errors
    /// As [`decode_in_bands`](Self::decode_in_bands).
    pub fn decode_rows(
        &self,
        wanted: Range<usize>,
        mut take: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let here = self.to_device(&Device::Cpu)?;
        let (matrix, transposed) = (here.on_cpu()?, self.is_transposed());
        let sides = Sides::new(self.layout(), transposed);
        let (blocks, length) = (sides.output().blocks(), sides.input().elements());
        let rows = |band: usize| sides.output().range(band);
        let mut first = (0..blocks).find(|band| rows(*band).end > wanted.start).unwrap_or(blocks);
        let bands = (first..blocks).find(|band| rows(*band).start >= wanted.end).unwrap_or(blocks);
        let mut weights = Vec::new();
        while first < bands && !wanted.is_empty() {
            let start = rows(first).start;
            let enough = |end: &usize| (rows(*end - 1).end - start).saturating_mul(length) >= BAND_ELEMENTS;
            let end = (first + 1..bands).find(enough).unwrap_or(bands);
            let sides = [rows(end - 1).end - start, length];
            // One band is as large as the next, but for the last.
            if weights.len() != sides[0] * sides[1] {
                weights = zeroed(&sides, "rows of a decoded matrix")?;
            }
            matrix.decode_band(transposed, first..end, &mut weights, &Rayon);
            take(start, &weights)?;
            first = end;
        }
        Ok(())
    }

    /// The stored matrix, dense.
    fn decode(&self) -> Result<Tensor> {
        let stored = (self.layout().rows(), self.layout().cols());
        match &self.packed {
            Packed::Cpu(matrix) => Ok(Tensor::from_vec(matrix.decode(&Rayon)?, stored, &self.device)?),
            #[cfg(feature = "cuda")]
            Packed::Cuda(matrix) => {
                let storage = candle_core::Storage::Cuda(cuda::decode(matrix)?);
                Ok(Tensor::from_storage(storage, stored, candle_core::op::BackpropOp::none(), false))
            }
        }
    }

    /// The self-describing payload, which FORMAT.md states byte by byte, as it is: of a tensor that was loaded, what it was loaded
    /// from; of one that was encoded or changed here, each term entropy coded where that takes fewer bytes, which loses nothing.
    /// Of a transposed view it says that it is one.
    ///
    /// # Errors
    /// When the payload lies in a file, and that was changed since it was loaded.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.payload.to_bytes(self.orientation)
    }

    /// The payload with no term entropy coded: read the fastest. One that is so already is given as it is.
    ///
    /// # Errors
    /// As [`to_bytes`](Self::to_bytes).
    pub fn to_plain_bytes(&self) -> Result<Vec<u8>> {
        match self.is_coded() {
            true => Ok(self.to_matrix()?.to_plain_bytes(self.orientation)),
            false => self.to_bytes(),
        }
    }

    /// The payload with each term entropy coded where that takes fewer bytes. One that is so already is given as it is.
    ///
    /// # Errors
    /// As [`to_bytes`](Self::to_bytes).
    pub fn to_coded_bytes(&self) -> Result<Vec<u8>> {
        match self.is_coded() {
            true => self.to_bytes(),
            false => Ok(self.to_matrix()?.to_bytes(self.orientation)),
        }
    }

    /// Whether a term of the payload is entropy coded, which takes fewer bytes.
    fn is_coded(&self) -> bool {
        self.size_in_bytes() < self.plain_size_in_bytes()
    }

    /// Reads and checks a payload; the tensor is on the CPU. A `Vec` is taken over, a slice copied.
    ///
    /// # Errors
    /// [`CodecError::Payload`](crate::CodecError::Payload) with the first thing found wrong; as [`requested_level`].
    pub fn from_bytes<'a>(bytes: impl Into<Cow<'a, [u8]>>) -> Result<Self> {
        Self::from_bytes_on(bytes, &Device::Cpu)
    }

    /// Reads and checks a payload, and packs it for a device alone.
    ///
    /// # Errors
    /// As [`from_bytes`](Self::from_bytes) and [`to_device`](Self::to_device).
    pub fn from_bytes_on<'a>(bytes: impl Into<Cow<'a, [u8]>>, device: &Device) -> Result<Self> {
        requested_level()?;
        let bytes = bytes.into();
        // Copied when it is known to be one.
        let (matrix, orientation) = Matrix::from_bytes(&bytes)?;
        let bytes = bytes.into_owned().into();
        let payload = Payload::new(Unread { bytes, origin: None }, &matrix, orientation);
        Self::new(payload, &matrix, device)
    }

    /// Bytes of the payload, which [`to_bytes`](Self::to_bytes) gives, everything counted.
    pub fn size_in_bytes(&self) -> usize {
        self.payload.len()
    }

    /// Bytes of the payload that [`to_plain_bytes`](Self::to_plain_bytes) gives, everything counted.
    pub fn plain_size_in_bytes(&self) -> usize {
        self.payload.plain_size_in_bytes
    }

    /// Bits per element of the file, [`size_in_bytes`](Self::size_in_bytes); those of memory are
    /// [`memory_in_bytes`](Self::memory_in_bytes).
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.size_in_bytes() as f64 / self.layout().elements() as f64
    }

    /// `|W - W^| / |W|` in the Frobenius norm, as the encoder measured it by decoding.
    pub fn relative_error(&self) -> f64 {
        f64::from(self.payload.errors.relative)
    }

    /// The error, and those of the worst row and block of the stored matrix, as the encoder measured them by decoding.
    pub fn errors(&self) -> Errors {
        self.payload.errors
    }

    /// One line for people: terms, transform, block edge.
    pub fn summary(&self) -> &str {
        &self.payload.summary
    }

    /// Bytes that the form for products takes in the device's memory. On a CUDA device, where a part of it is made when a product
    /// asks for it, they are those of the plain payload, which it takes about.
    pub fn memory_in_bytes(&self) -> usize {
        match &self.packed {
            Packed::Cpu(matrix) => matrix.memory_in_bytes(),
            #[cfg(feature = "cuda")]
            Packed::Cuda(_) => self.payload.plain_size_in_bytes,
        }
    }
}
