//! One element of several vectors side by side.

use std::ops::{Add, Mul, Sub};

/// Vectors transformed together.
pub(in crate::cpu) const LANES: usize = 16;
/// Or so many, where there are no more.
pub(in crate::cpu) const FOUR: usize = 4;

/// What a transform goes through: one element of several vectors.
pub(in crate::cpu) trait Element:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<f32, Output = Self>
{
}

macro_rules! element {
    ($(#[$doc:meta])* $name:ident, $lanes:expr, $align:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[repr(C, align($align))]
        pub(in crate::cpu) struct $name(pub [f32; $lanes]);

        impl $name {
            pub(in crate::cpu) const ZERO: Self = Self([0.0; $lanes]);
        }

        impl Element for $name {}

        impl Add for $name {
            type Output = Self;
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                Self(std::array::from_fn(|lane| self.0[lane] + other.0[lane]))
            }
        }

        impl Sub for $name {
            type Output = Self;
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                Self(std::array::from_fn(|lane| self.0[lane] - other.0[lane]))
            }
        }

        impl Mul<f32> for $name {
            type Output = Self;
            #[inline(always)]
            fn mul(self, factor: f32) -> Self {
                Self(self.0.map(|value| value * factor))
            }
        }
    };
}
element!(
    /// One element of each of sixteen: a register.
    Lanes,
    LANES,
    64
);
element!(
    /// One element of each of four: where there are no more, a transform of 256 stays in the first cache.
    FourLanes,
    FOUR,
    16
);
