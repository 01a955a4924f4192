//! A compressed tensor on a Candle device.

use crate::error::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor};
use rbe_core::codec::sizes::zeroed;
use rbe_core::codec::term::Planes;
use rbe_core::codec::term::planes::MAX_PLANES;
use rbe_core::codec::{Errors, Matrix, ParameterGroup, Sides, matrix::Orientation};
use rbe_core::cpu::{Oriented, PackedMatrix, Rayon, requested_level};
use rbe_core::encode::PruneReport;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use crate::cuda::{self, CudaMachine, DeviceMatrix};

/// The devices that this build has kernels for.
const KERNELS: &str = if cfg!(feature = "cuda") { "the CPU and CUDA" } else { "the CPU" };

/// Weights that [`RbeTensor::decode_in_bands`] decodes at a time, where that is more than one block's rows: 16 MiB.
const BAND_ELEMENTS: usize = 1 << 22;

/// The shape that a view of a matrix has.
fn oriented_shape(matrix: &PackedMatrix, orientation: Orientation) -> Shape {
    let layout = matrix.layout();
    match orientation {
        Orientation::Vector => Shape::from(layout.cols()),
        Orientation::Matrix => Shape::from((layout.rows(), layout.cols())),
        Orientation::Transposed => Shape::from((layout.cols(), layout.rows())),
    }
}

/// A compressed tensor of rank 1 or 2: `W^ = sum of terms`, as [`codec`](rbe_core::codec) defines it.
///
/// Cloning and [`t`](Self::t) share the compressed data.
#[derive(Clone)]
pub struct RbeTensor {
    matrix: Arc<PackedMatrix>,
    orientation: Orientation,
    shape: Shape,
    device: Device,
    /// The layout on a CUDA device.
    #[cfg(feature = "cuda")]
    on_cuda: Option<Arc<DeviceMatrix<CudaMachine>>>,
}

impl std::fmt::Debug for RbeTensor {
    /// A line, not the data.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RbeTensor({:?}, {}, {:?})", self.shape, self.summary(), self.device)
    }
}

impl RbeTensor {
    /// On the CPU.
    pub(crate) fn new(matrix: Arc<PackedMatrix>, orientation: Orientation) -> Self {
        let shape = oriented_shape(&matrix, orientation);
        Self {
            matrix,
            orientation,
            shape,
            device: Device::Cpu,
            #[cfg(feature = "cuda")]
            on_cuda: None,
        }
    }

    /// The shape of the tensor that was compressed.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Where the products run.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The stored matrix as the codec has it, unpacked from the layout for products;
    /// [`is_transposed`](Self::is_transposed) says how the tensor sees it.
    pub fn to_matrix(&self) -> Matrix {
        self.matrix.unpack()
    }

    /// The stored matrix in its layout for products.
    pub(crate) fn packed(&self) -> &PackedMatrix {
        &self.matrix
    }

    /// The matrix that products see.
    pub(crate) fn oriented(&self) -> Oriented<'_> {
        Oriented::new(&self.matrix, self.is_transposed())
    }

    /// A tensor of a matrix as the codec has it, on the CPU.
    ///
    /// # Errors
    /// When it has no payload ([`Matrix::expect_payload`]): a vector's matrix has more than one row, there are no terms, or too
    /// little is stored of too many elements; as [`requested_level`].
    pub fn from_matrix(matrix: &Matrix, orientation: Orientation) -> Result<Self> {
        requested_level()?;
        matrix.expect_payload(orientation)?;
        Ok(Self::new(Arc::new(PackedMatrix::new(matrix)), orientation))
    }

    /// How the tensor sees the stored matrix.
    pub fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// The numbers in which the tensor is linear, F32, `(count)`: term after term those that
    /// [`parameter_groups`](Self::parameter_groups) counts. Positions and codes are fixed.
    ///
    /// # Errors
    /// Candle's, when the tensor cannot be made.
    pub fn parameters(&self) -> Result<Tensor> {
        let parameters = self.to_matrix().parameters();
        let count = parameters.len();
        Ok(Tensor::from_vec(parameters, count, &self.device)?)
    }

    /// How many [`parameters`](Self::parameters) each term has: `basis` 8 a block, `sparse` one a coefficient, `planes`,
    /// `trellis` and the second one's `residual_trellis` one a scale.
    pub fn parameter_groups(&self) -> &[ParameterGroup] {
        self.matrix.parameter_groups()
    }

    /// The same positions and codes with other parameters, rounded to what the format holds (F16 for scales and sparse
    /// values). [`relative_error`](Self::relative_error) is then unknown and reads 1.
    ///
    /// # Errors
    /// When their number is another, one is not finite or larger than the format holds, or a scale is negative.
    pub fn with_parameters(&self, parameters: &Tensor) -> Result<Self> {
        let parameters = parameters.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let matrix = self.to_matrix().with_parameters(&parameters)?;
        Self::new(Arc::new(PackedMatrix::new(&matrix)), self.orientation).to_device(&self.device)
    }

    /// Takes away the sparse term's coefficients of magnitude below `threshold`, with what the basis functions can say of them
    /// absorbed into their parameters ([`encode::prune`](rbe_core::encode::prune)), and reports what that changed. The error that the
    /// tensor records is then measured against `original`, or without one the most that it can be.
    ///
    /// # Errors
    /// When there is no sparse term, the threshold is negative or not a number, or `original` has another shape; when what the
    /// basis functions absorb, or the error to be recorded, is not finite.
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
        let before = self.to_matrix();
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
        let after =
            Self::new(Arc::new(PackedMatrix::new(&after)), self.orientation).to_device(&self.device)?;
        Ok((after, report))
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
        Ok(Self { orientation, shape: oriented_shape(&self.matrix, orientation), ..self.clone() })
    }

    /// The first planes of every planes term, the other terms as they are: the coarser quantiser nested in the finer one.
    /// [`relative_error`](Self::relative_error) is then unknown and reads 1.
    ///
    /// # Errors
    /// When there is no planes term, or `planes` is not 1 to 8; when a scale of so few planes, which is larger than that of
    /// all, is larger than the format holds.
    pub fn first_planes(&self, planes: u8) -> Result<Self> {
        let matrix = self.matrix.unpack();
        if matrix.term::<Planes>().is_none() {
            return Err(Error::config(format!(
                "the first planes of a tensor without any: {}",
                self.summary()
            )));
        }
        if !(1..=MAX_PLANES).contains(&planes) {
            return Err(Error::config(format!("the first {planes} planes; there are 1 to {MAX_PLANES}")));
        }
        let matrix = matrix.truncate_planes(planes)?;
        Self::new(Arc::new(PackedMatrix::new(&matrix)), self.orientation).to_device(&self.device)
    }

    /// Coefficients that a product multiplies with.
    pub(crate) fn stored_coefficients(&self) -> usize {
        self.matrix.stored_coefficients()
    }

    /// The same tensor on another device: there products with it run. The compressed bytes stay on the host too.
    ///
    /// # Errors
    /// When this build has no kernels for the device (Metal; CUDA without the feature `cuda`), the device is older than
    /// compute capability 8.0, or it has not enough memory.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::new(self.matrix.clone(), self.orientation)),
            #[cfg(feature = "cuda")]
            Device::Cuda(_) if self.device.same_device(device) => Ok(self.clone()),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => {
                let machine = CudaMachine::new(cuda)?;
                machine.expect_room(self.memory_in_bytes())?;
                let matrix = DeviceMatrix::new(machine, &self.to_matrix())?;
                matrix.prepare(self.is_transposed())?;
                Ok(Self { device: device.clone(), on_cuda: Some(Arc::new(matrix)), ..self.clone() })
            }
            _ => Err(Error::unsupported(format!(
                "RBE tensors on {:?}; this build has kernels for {KERNELS} only",
                device.location()
            ))),
        }
    }

    /// The tensor in its layout for products on a CUDA device.
    ///
    /// # Errors
    /// When it is not on one.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_cuda(&self) -> Result<&DeviceMatrix<CudaMachine>> {
        self.on_cuda.as_deref().ok_or_else(|| {
            Error::unsupported("an input on a CUDA device with a compressed tensor on the CPU")
        })
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
    /// When there is no memory for the rows of one block; what `take` says.
    pub fn decode_in_bands(&self, mut take: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let transposed = self.is_transposed();
        let sides = Sides::new(self.matrix.layout(), transposed);
        let (bands, length) = (sides.output().blocks(), sides.input().elements());
        let rows = |band: usize| sides.output().range(band);
        let (mut first, mut weights) = (0, Vec::new());
        while first < bands {
            let start = rows(first).start;
            let enough = |end: &usize| (rows(*end - 1).end - start).saturating_mul(length) >= BAND_ELEMENTS;
            let end = (first + 1..bands).find(enough).unwrap_or(bands);
            let sides = [rows(end - 1).end - start, length];
            // One band is as large as the next, but for the last.
            if weights.len() != sides[0] * sides[1] {
                weights = zeroed(&sides, "rows of a decoded matrix")?;
            }
            self.matrix.decode_band(transposed, first..end, &mut weights, &Rayon);
            take(&weights)?;
            first = end;
        }
        Ok(())
    }

    /// The stored matrix, dense.
    fn decode(&self) -> Result<Tensor> {
        let stored = (self.matrix.layout().rows(), self.matrix.layout().cols());
        #[cfg(feature = "cuda")]
        if let Some(matrix) = &self.on_cuda {
            let storage = candle_core::Storage::Cuda(cuda::decode(matrix)?);
            return Ok(Tensor::from_storage(storage, stored, candle_core::op::BackpropOp::none(), false));
        }
        Ok(Tensor::from_vec(self.matrix.decode(&Rayon)?, stored, &self.device)?)
    }

    /// The self-describing payload that FORMAT.md states byte by byte: each term entropy coded where that takes fewer
    /// bytes, which loses nothing.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.matrix.unpack().to_bytes(self.orientation)
    }

    /// The payload with every term as it lies in memory, more or less: it loads the fastest.
    pub fn to_plain_bytes(&self) -> Vec<u8> {
        self.matrix.unpack().to_plain_bytes(self.orientation)
    }

    /// Reads and checks a payload; the tensor is on the CPU.
    ///
    /// # Errors
    /// [`CodecError::Payload`](crate::CodecError::Payload) with the first thing found wrong; as [`requested_level`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        requested_level()?;
        let (matrix, orientation) = Matrix::from_bytes(bytes)?;
        Ok(Self::new(Arc::new(PackedMatrix::new(&matrix)), orientation))
    }

    /// Bytes of the payload that [`to_bytes`](Self::to_bytes) makes, everything counted. It is made the first time this is
    /// asked for.
    pub fn size_in_bytes(&self) -> usize {
        self.matrix.size_in_bytes()
    }

    /// Bytes of the payload that [`to_plain_bytes`](Self::to_plain_bytes) makes, everything counted.
    pub fn plain_size_in_bytes(&self) -> usize {
        self.matrix.plain_size_in_bytes()
    }

    /// Bits per element of the file, [`size_in_bytes`](Self::size_in_bytes); those of memory are
    /// [`memory_in_bytes`](Self::memory_in_bytes).
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.size_in_bytes() as f64 / self.matrix.layout().elements() as f64
    }

    /// `|W - W^| / |W|` in the Frobenius norm, as the encoder measured it by decoding.
    pub fn relative_error(&self) -> f64 {
        f64::from(self.matrix.errors().relative)
    }

    /// The error, and those of the worst row and block of the stored matrix, as the encoder measured them by decoding.
    pub fn errors(&self) -> Errors {
        self.matrix.errors()
    }

    /// One line for people: terms, transform, block edge.
    pub fn summary(&self) -> &str {
        self.matrix.summary()
    }

    /// Bytes that the layout for products takes in memory.
    pub fn memory_in_bytes(&self) -> usize {
        self.matrix.memory_in_bytes()
    }
}
