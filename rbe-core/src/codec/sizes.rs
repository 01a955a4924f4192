//! Products of sizes: the one place where lengths are multiplied before memory is trusted to them.
//!
//! A product that wraps looks small, and what is checked against it looks large enough. So the doors of `cpu` and `cuda`
//! check their slices here, and so does what asks for memory. What lies behind a door multiplies parts of sizes that were
//! checked there.

use crate::error::{Error, Result};

/// How many elements have these sides, where a `usize` holds it.
pub fn checked(sides: &[usize]) -> Option<usize> {
    sides.iter().try_fold(1usize, |product, side| product.checked_mul(*side))
}

/// How many elements have these sides.
///
/// # Panics
/// When it is more than a `usize` holds.
pub fn elements(sides: &[usize]) -> usize {
    checked(sides).unwrap_or_else(|| panic!("{} elements are more than memory can hold", shape(sides)))
}

/// Refuses a slice that has not as many elements as these sides.
///
/// # Panics
/// When it has more or fewer.
pub fn expect_len(what: &str, len: usize, sides: &[usize]) {
    assert!(checked(sides) == Some(len), "{what} has {len} elements, and {} are expected", shape(sides));
}

/// How many elements a slice needs in which `count` parts of `len` begin `stride` apart.
pub fn strided(count: usize, stride: usize, len: usize) -> Option<usize> {
    match count.checked_sub(1) {
        None => Some(0),
        Some(last) => last.checked_mul(stride)?.checked_add(len),
    }
}

/// So many elements, all of them zero (the default).
///
/// # Errors
/// When the system has no memory for them; `what` is named then.
pub fn zeroed<T: Clone + Default>(sides: &[usize], what: &str) -> Result<Vec<T>> {
    let mut values = Vec::new();
    match checked(sides).filter(|len| values.try_reserve_exact(*len).is_ok()) {
        Some(len) => {
            values.resize(len, T::default());
            Ok(values)
        }
        None => {
            let bytes = checked(sides).unwrap_or(usize::MAX).saturating_mul(size_of::<T>());
            Err(Error::Allocation { what: format!("{what} ({})", shape(sides)), bytes })
        }
    }
}

fn shape(sides: &[usize]) -> String {
    sides.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_that_wrap_and_memory_that_is_not_there_are_told_as_they_were_asked() {
        assert_eq!(checked(&[3, 4, 5]), Some(60));
        assert_eq!(checked(&[]), Some(1));
        assert_eq!(checked(&[usize::MAX, 0]), Some(0));
        let half = 1 << (usize::BITS / 2);
        assert_eq!(checked(&[half, half]), None);
        assert_eq!(strided(0, usize::MAX, usize::MAX), Some(0));
        assert_eq!(strided(1, usize::MAX, 7), Some(7));
        assert_eq!(strided(3, 10, 4), Some(24));
        assert_eq!(strided(3, usize::MAX, 4), None);
        assert_eq!(strided(2, usize::MAX, 1), None);
        assert_eq!(zeroed::<u8>(&[2, 3], "a matrix").unwrap(), [0; 6]);
        for sides in [&[half, half][..], &[usize::MAX / 8]] {
            let error = zeroed::<f32>(sides, "a matrix").unwrap_err().to_string();
            assert!(error.starts_with("a matrix (") && error.contains("bytes of memory"), "{error}");
        }
        let error = std::panic::catch_unwind(|| expect_len("the input", 4, &[half, half])).unwrap_err();
        let text = error.downcast_ref::<String>().unwrap();
        assert!(text.starts_with("the input has 4 elements, and ") && text.contains(" x "), "{text}");
    }
}
