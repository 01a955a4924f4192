//! The operations on Candle's tensors on a CUDA device.

use super::device::CudaMachine;
use super::machine::Element;
use super::matrix::{DeviceMatrix, Output};
use super::memory::{self, CudaMemory};
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
    bail!(
        "{op}: a tensor and the compressed one are on different CUDA devices: move one by `to_device`, and give both clones of one \
         `Device`, which makes a device of its own each time it is asked for"
    );
}

/// Products as Candle asks for them: of one input.
pub(crate) struct Asked<'a> {
    pub x: (&'a CudaStorage, &'a Layout),
    pub transposed: bool,
    /// The operation's name.
    pub op: &'static str,
}

/// What is multiplied with, and the bias that is added to each row of the results; of their type.
pub(crate) type Weight<'a> = (&'a DeviceMatrix<CudaMachine>, Option<(&'a CudaStorage, &'a Layout)>);

/// `x W' + bias`, or `x W + bias` when `transposed`, of each weight, one after another, for `x` of F32, F16 or BF16.
pub(crate) fn matmul(weights: &[Weight<'_>], asked: &Asked<'_>) -> Result<CudaStorage> {
    let (storage, op) = (asked.x.0, asked.op);
    weights.iter().try_for_each(|(matrix, _)| expect_device(matrix, storage.device(), op))?;
    match &storage.slice {
        CudaStorageSlice::F32(_) => typed_matmul::<f32>(weights, asked, Element::F32),
        CudaStorageSlice::F16(_) => typed_matmul::<f16>(weights, asked, Element::F16),
        CudaStorageSlice::BF16(_) => typed_matmul::<bf16>(weights, asked, Element::BF16),
        _ => bail!("{op} takes F32, F16 or BF16, not {:?}", storage.dtype()),
    }
}

fn typed_matmul<T: CudaDType + DeviceRepr>(
    weights: &[Weight<'_>],
    asked: &Asked<'_>,
    element: Element,
) -> Result<CudaStorage> {
    let Asked { x: (storage, layout), transposed, op } = *asked;
    let device = storage.device().clone();
    let x = storage.as_cuda_slice::<T>()?.slice(range(layout, op)?);
    let biases = weights.iter().map(|(matrix, bias)| {
        let Some((bias, layout)) = bias else { return Ok(None) };
        expect_device(matrix, bias.device(), op)?;
        Ok(Some(bias.as_cuda_slice::<T>()?.slice(range(layout, op)?)))
    });
    let biases: Vec<_> = biases.collect::<Result<_>>()?;
    let sides = |matrix: &DeviceMatrix<CudaMachine>| Sides::new(matrix.layout(), transposed);
    let Some((first, _)) = weights.first() else { bail!("{op} of no weight") };
    let batch = layout.shape().elem_count() / sides(first).input().elements();
    let outs: usize = weights.iter().map(|(matrix, _)| sides(matrix).output().elements()).sum();
    filled::<T>(&device, sizes::elements(&[batch, outs]), |y| {
        let stream = device.cuda_stream();
        let (address, _read_until_here) = x.device_ptr(&stream);
        let read: Vec<_> =
            biases.iter().map(|bias| bias.as_ref().map(|bias| bias.device_ptr(&stream))).collect();
        let addresses: Vec<_> =
            read.iter().map(|bias| bias.as_ref().map(|(address, _)| CudaMemory::Address(*address))).collect();
        let mut offset = 0;
        let products: Vec<_> = weights
            .iter()
            .zip(&addresses)
            .map(|((matrix, _), bias)| {
                let y = Operand { memory: y, offset, element };
                offset += batch * sides(matrix).output().elements();
                let bias = bias.as_ref().map(|memory| Operand { memory, offset: 0, element });
                (*matrix, Output { y, bias })
            })
            .collect();
        let x = Operand { memory: &CudaMemory::Address(address), offset: 0, element };
        DeviceMatrix::matmul_all(&products, &x, batch, transposed)
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
pub(super) fn filled<T: CudaDType + DeviceRepr>(
    device: &CudaDevice,
    len: usize,
    fill: impl FnOnce(&CudaMemory) -> crate::Result<()>,
) -> Result<CudaStorage> {
    // SAFETY: `fill` queues the writing of all of it on the stream on which it is read later.
    let slice = unsafe { device.cuda_stream().alloc::<T>(len.max(1)) }; // drivers refuse to allocate nothing
    let slice = memory::made(device, sizes::elements(&[len, size_of::<T>()]), slice)?;
    if len > 0 {
        let stream = device.cuda_stream();
        let (address, _written_until_here) = slice.device_ptr(&stream);
        fill(&CudaMemory::Address(address))?;
    }
    Ok(CudaStorage::wrap_cuda_slice(slice, device.clone()))
}
