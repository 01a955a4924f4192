//! Sums over the values of a dense tensor, in f64 and without a copy.

use super::{Archive, Dtype, Entry};
use half::{bf16, f16};

/// The types that hold weights.
pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Calls `each` with the position and the value of every weight, in row-major order.
///
/// Types that hold no weights have no values here; see [`is_float`].
pub(super) fn for_each(bytes: &[u8], dtype: Dtype, mut each: impl FnMut(usize, f64)) {
    macro_rules! walk {
        ($float:ty) => {
            for (index, bytes) in bytes.chunks_exact(size_of::<$float>()).enumerate() {
                let mut value = [0; size_of::<$float>()];
                value.copy_from_slice(bytes);
                each(index, <$float>::from_le_bytes(value).into());
            }
        };
    }
    match dtype {
        Dtype::F64 => walk!(f64),
        Dtype::F32 => walk!(f32),
        Dtype::F16 => walk!(f16),
        Dtype::BF16 => walk!(bf16),
        _ => {}
    }
}

/// The weight at a position.
pub(super) fn value(bytes: &[u8], dtype: Dtype, index: usize) -> f64 {
    let size = dtype.bitsize() / 8;
    let mut value = 0.0;
    for_each(&bytes[index * size..(index + 1) * size], dtype, |_, it| value = it);
    value
}

/// `|W|^2` in the Frobenius norm.
pub(super) fn squared_norm(bytes: &[u8], dtype: Dtype) -> f64 {
    let mut sum = 0.0;
    for_each(bytes, dtype, |_, value| sum += value * value);
    sum
}

/// The values of a dense tensor that are no finite numbers.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct NonFinite {
    /// The tensor's name.
    pub name: String,
    /// How many are NaN. A layer with one gives nothing else.
    pub nan: u64,
    /// How many are infinite, as in a stored mask.
    pub infinite: u64,
    /// Where the first of them is, in row-major order.
    pub first: u64,
    /// Values in all.
    pub values: u64,
}

impl NonFinite {
    /// Those of a dense tensor; `None` where all are finite, or the tensor is compressed or holds no weights.
    pub(super) fn of(archive: &Archive, entry: &Entry) -> Option<Self> {
        let (mut nan, mut infinite, mut first) = (0, 0, None);
        if !entry.compressed {
            for_each(archive.bytes(entry), entry.dtype, |index, value| {
                if !value.is_finite() {
                    first.get_or_insert(index as u64);
                    *(if value.is_nan() { &mut nan } else { &mut infinite }) += 1;
                }
            });
        }
        let name = entry.name.clone();
        first.map(|first| Self { name, nan, infinite, first, values: entry.elements() as u64 })
    }
}

impl std::fmt::Display for NonFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { nan, infinite, first, values, .. } = self;
        let what = match (nan, infinite) {
            (0, _) => format!("{infinite} infinite"),
            (_, 0) => format!("{nan} NaN"),
            _ => format!("{nan} NaN and {infinite} infinite"),
        };
        write!(f, "holds {what} of {values} values, the first at {first}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_read_as_it_is_stored() {
        let values = [1.0f32, -2.5, 0.0, 384.0];
        let bytes: [(Dtype, Vec<u8>); 4] = [
            (Dtype::F64, values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect()),
            (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            (Dtype::F16, values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()),
            (Dtype::BF16, values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()),
        ];
        for (dtype, bytes) in bytes {
            assert!(is_float(dtype));
            assert_eq!(squared_norm(&bytes, dtype), 1.0 + 6.25 + 384.0 * 384.0);
            assert_eq!([0, 1, 2, 3].map(|index| value(&bytes, dtype, index)), values.map(f64::from));
        }
        assert!(!is_float(Dtype::I64));
    }
}
