//! The operations on Candle's tensors on a CUDA device.

use super::device::CudaMachine;
use super::machine::Element;
use super::matrix::DeviceMatrix;
use super::memory::CudaMemory;
use super::operands::Operand;
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice};
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, bail};
use half::{bf16, f16};
use rbe_core::codec::{Sides, sizes};

/// The elements that a contiguous layout sees.
fn range(layout: &Layout, op: &str) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("{op} on a CUDA device takes a contiguous tensor, not strides {:?}", layout.stride()),
    }
}

fn expect_device(matrix: &DeviceMatrix<CudaMachine>, device: &CudaDevice, op: &str) -> Result<()> {
    if matrix.machine().device().same_device(device) {
        return Ok(());
    }
    bail!("{op}: the input and the compressed tensor are on different devices");
}

/// A product as Candle asks for it.
pub(crate) struct Asked<'a> {
    pub x: (&'a CudaStorage, &'a Layout),
    pub transposed: bool,
    /// Added to each row of the results; of their type.
    pub bias: Option<(&'a CudaStorage, &'a Layout)>,
    /// The operation's name.
    pub op: &'static str,
}

/// `x W' + bias`, or `x W + bias` when `transposed`, for `x` of F32, F16 or BF16.
pub(crate) fn matmul(matrix: &DeviceMatrix<CudaMachine>, asked: &Asked<'_>) -> Result<CudaStorage> {
    let (storage, op) = (asked.x.0, asked.op);
    expect_device(matrix, storage.device(), op)?;
    match &storage.slice {
        CudaStorageSlice::F32(_) => typed_matmul::<f32>(matrix, asked, Element::F32),
        CudaStorageSlice::F16(_) => typed_matmul::<f16>(matrix, asked, Element::F16),
        CudaStorageSlice::BF16(_) => typed_matmul::<bf16>(matrix, asked, Element::BF16),
        _ => bail!("{op} takes F32, F16 or BF16, not {:?}", storage.dtype()),
    }
}

fn typed_matmul<T: CudaDType + DeviceRepr>(
    matrix: &DeviceMatrix<CudaMachine>,
    asked: &Asked<'_>,
    element: Element,
) -> Result<CudaStorage> {
    let Asked { x: (storage, layout), transposed, bias, op } = *asked;
    let (device, stored) = (storage.device().clone(), matrix.layout());
    let sides = Sides::new(stored, transposed);
    let (input, output) = (sides.input().elements(), sides.output().elements());
    let x = storage.as_cuda_slice::<T>()?.slice(range(layout, op)?);
    let bias = match bias {
        None => None,
        Some((bias, layout)) => {
            expect_device(matrix, bias.device(), op)?;
            Some(bias.as_cuda_slice::<T>()?.slice(range(layout, op)?))
        }
    };
    let batch = layout.shape().elem_count() / input;
    filled::<T>(&device, sizes::elements(&[batch, output]), |y| {
        let stream = device.cuda_stream();
        let (address, _read_until_here) = x.device_ptr(&stream);
        let bias = bias.as_ref().map(|bias| bias.device_ptr(&stream));
        let bias = bias.as_ref().map(|(address, _read_until_here)| CudaMemory::Address(*address));
        let bias = bias.as_ref().map(|memory| Operand { memory, offset: 0, element });
        let x = Operand { memory: &CudaMemory::Address(address), offset: 0, element };
        matrix.matmul(&x, batch, transposed, bias.as_ref(), &Operand { memory: y, offset: 0, element })
    })
}

/// Rows `ids` (contiguous, U32) as `dtype`, F32, F16 or BF16. An id that is no row gives a row of NaN.
pub(crate) fn gather(
    matrix: &DeviceMatrix<CudaMachine>,
    ids: &CudaStorage,
    layout: &Layout,
    dtype: DType,
    op: &str,
) -> Result<CudaStorage> {
    expect_device(matrix, ids.device(), op)?;
    let device = ids.device().clone();
    let CudaStorageSlice::U32(slice) = &ids.slice else {
        bail!("{op} on a CUDA device takes U32 ids, not {:?}", ids.dtype())
    };
    let view = slice.slice(range(layout, op)?);
    let count = layout.shape().elem_count();
    let elements = sizes::elements(&[count, matrix.layout().cols()]);
    let run = |y: &CudaMemory, element: Element| {
        let stream = device.cuda_stream();
        let (address, _read_until_here) = view.device_ptr(&stream);
        matrix.gather(&CudaMemory::Address(address), count, &Operand { memory: y, offset: 0, element })
    };
    match dtype {
        DType::F32 => filled::<f32>(&device, elements, |y| run(y, Element::F32)),
        DType::F16 => filled::<f16>(&device, elements, |y| run(y, Element::F16)),
        DType::BF16 => filled::<bf16>(&device, elements, |y| run(y, Element::BF16)),
        other => bail!("{op} gives F32, F16 or BF16, not {other:?}"),
    }
}

/// All weights, `(rows, cols)` in F32.
pub(crate) fn decode(matrix: &DeviceMatrix<CudaMachine>) -> Result<CudaStorage> {
    let device = matrix.machine().device().clone();
    filled::<f32>(&device, matrix.layout().elements(), |weights| matrix.decode(weights))
}

/// A new storage of `len` elements that `fill` writes, every one.
fn filled<T: CudaDType + DeviceRepr>(
    device: &CudaDevice,
    len: usize,
    fill: impl FnOnce(&CudaMemory) -> crate::Result<()>,
) -> Result<CudaStorage> {
    // SAFETY: `fill` queues the writing of all of it on the stream on which it is read later.
    let slice = unsafe { device.alloc::<T>(len.max(1)) }?; // drivers refuse to allocate nothing
    if len > 0 {
        let stream = device.cuda_stream();
        let (address, _written_until_here) = slice.device_ptr(&stream);
        fill(&CudaMemory::Address(address))?;
    }
    Ok(CudaStorage::wrap_cuda_slice(slice, device.clone()))
}
