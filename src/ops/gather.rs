//! Rows of a compressed table.

use super::{CandlePool, elements, from_f32};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::{Error, RbeTensor};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

/// Rows `ids` (any shape, U32, U8 or I64) of a compressed `(rows, cols)` table as `(.., cols)` of `dtype`;
/// only those rows are decoded.
///
/// On a CUDA device an id that is none of the table's rows gives a row of NaN: to refuse it would be to wait for the
/// device.
///
/// # Errors
/// When the table is not an untransposed matrix, an id is not one of its rows, or a type is not supported.
pub fn gather(table: &RbeTensor, ids: &Tensor, dtype: DType) -> Result<Tensor> {
    if table.shape().rank() != 2 || table.is_transposed() {
        bail!("rows can be gathered from a compressed matrix stored by rows, not from {:?}", table.shape());
    }
    super::expect_device(ids, table, NAME)?;
    let ids = if ids.device().is_cuda() { &device_ids(ids)? } else { ids };
    ids.apply_op1_no_bwd(&RbeGather { table: table.clone(), dtype })
}

const NAME: &str = "rbe-gather";

/// Ids as the CUDA kernels take them. One that U32 does not have becomes its largest, a row that no table has.
fn device_ids(ids: &Tensor) -> Result<Tensor> {
    match ids.dtype() {
        DType::U8 | DType::U32 => ids.to_dtype(DType::U32)?.contiguous(),
        DType::I64 => ids.clamp(-1i64, i64::from(u32::MAX))?.to_dtype(DType::U32)?.contiguous(),
        other => bail!("{NAME} takes U8, U32 or I64 ids, not {other:?}"),
    }
}

struct RbeGather {
    table: RbeTensor,
    dtype: DType,
}

impl CustomOp1 for RbeGather {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ids: Vec<i64> = match storage {
            CpuStorage::U8(ids) => elements(ids, layout, i64::from),
            CpuStorage::U32(ids) => elements(ids, layout, i64::from),
            CpuStorage::I64(ids) => elements(ids, layout, |id| id),
            other => bail!("{} takes U8, U32 or I64 ids, not {:?}", self.name(), super::dtype_of(other)),
        };
        let (rows, cols) = self.table.shape().dims2()?;
        let row = |id: i64| usize::try_from(id).ok().filter(|row| *row < rows);
        let Some(picked) = ids.iter().map(|id| row(*id)).collect::<Option<Vec<usize>>>() else {
            let bad = ids.iter().find(|id| row(**id).is_none());
            bail!("{}: id {} in a table of {rows} rows", self.name(), bad.unwrap_or(&-1));
        };
        let mut values = vec![0.0; picked.len() * cols];
        self.table.on_cpu()?.gather(&picked, &mut values, &CandlePool).map_err(Error::from)?;
        let shape = [layout.dims(), &[cols]].concat();
        Ok((from_f32(values, self.dtype, self.name())?, Shape::from(shape)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, ids: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let rows = cuda::gather(self.table.on_cuda()?, ids, layout, self.dtype, self.name())?;
        let (_, cols) = self.table.shape().dims2()?;
        Ok((rows, Shape::from([layout.dims(), &[cols]].concat())))
    }
}
