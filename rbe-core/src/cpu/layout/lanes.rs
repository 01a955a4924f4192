//! One element of several vectors side by side.

use std::ops::{Add, Mul, Sub};

/// Vectors transformed together.
pub(in crate::cpu) const LANES: usize = 16;

/// What a transform goes through: one element of several vectors.
pub(in crate::cpu) trait Element:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<f32, Output = Self>
{
}

/// One element of each of sixteen: a register.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(in crate::cpu) struct Lanes(pub [f32; LANES]);

impl Lanes {
    pub(in crate::cpu) const ZERO: Self = Self([0.0; LANES]);
}

impl Element for Lanes {}

impl Add for Lanes {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] + other.0[lane]))
    }
}

impl Sub for Lanes {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] - other.0[lane]))
    }
}

impl Mul<f32> for Lanes {
    type Output = Self;
    #[inline(always)]
    fn mul(self, factor: f32) -> Self {
        Self(self.0.map(|value| value * factor))
    }
}
