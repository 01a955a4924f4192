//! The token, and bytes in registers: a quarter of a line, four rows.

use crate::cpu::kernels::generic::windows::Windows;
use crate::cpu::kernels::isa::{Bytes, Isa};
use crate::cpu::layout::planes::{Line, QUAD};
use std::arch::wasm32::*;

/// The instructions are there where this is compiled.
#[derive(Clone, Copy)]
pub(super) struct Simd128;

impl Isa for Simd128 {
    const FMA: bool = false;
}

/// A quarter of a line.
#[inline(always)]
fn quarter(line: &Line, part: usize) -> v128 {
    // SAFETY: sixteen bytes.
    unsafe { v128_load(line.0[16 * part..][..16].as_ptr().cast()) }
}

impl Bytes for Simd128 {
    const PARTS: usize = 4;
    type Register = v128;

    #[inline(always)]
    fn splat(self, byte: u8) -> v128 {
        u8x16_splat(byte)
    }

    #[inline(always)]
    fn load(self, line: &Line, part: usize) -> v128 {
        quarter(line, part)
    }

    #[inline(always)]
    fn and(self, a: v128, b: v128) -> v128 {
        v128_and(a, b)
    }

    /// Of 16 bits: x86 has no shift of bytes.
    #[inline(always)]
    fn shift_right(self, bytes: v128, shift: usize) -> v128 {
        u16x8_shr(bytes, shift as u32)
    }

    #[inline(always)]
    fn insert_below<const BITS: i32>(self, above: v128, field: v128) -> v128 {
        let field = v128_and(field, u8x16_splat(((1u32 << BITS) - 1) as u8));
        v128_or(field, u16x8_shl(above, BITS.cast_unsigned()))
    }
}

impl Windows for Simd128 {
    #[inline(always)]
    fn load_next(self, line: &Line, part: usize, lanes: usize) -> v128 {
        let own = quarter(line, part);
        if lanes == 2 {
            return u32x4_shuffle::<1, 0, 3, 2>(own, own);
        }
        // The four bytes after the last: of the next quarter, or of the first that the column has.
        let quarters = QUAD * lanes / 16;
        let next = quarter(line, part / quarters * quarters + (part + 1) % quarters);
        u32x4_shuffle::<1, 2, 3, 4>(own, next)
    }

    #[inline(always)]
    fn store(self, bytes: v128, line: &mut Line, part: usize) {
        // SAFETY: sixteen bytes.
        unsafe { v128_store(line.0[16 * part..][..16].as_mut_ptr().cast(), bytes) }
    }

    #[inline(always)]
    fn table(self, table: &[u8; 16]) -> v128 {
        // SAFETY: sixteen bytes.
        unsafe { v128_load(table.as_ptr().cast()) }
    }

    #[inline(always)]
    fn look_up(self, table: v128, index: v128) -> v128 {
        u8x16_swizzle(table, index)
    }

    #[inline(always)]
    fn window_across(self, bytes: v128, next: v128, at: usize) -> v128 {
        let here = 8 - at;
        // Shifts of 16 bits bring in a neighbour's bits, which the masks take away.
        let low = v128_and(self.shift_right(bytes, at), u8x16_splat((1 << here) - 1));
        let high = v128_and(u16x8_shl(next, here as u32), u8x16_splat(0x0f & !((1 << here) - 1)));
        v128_or(low, high)
    }

    #[inline(always)]
    fn xor(self, a: v128, b: v128) -> v128 {
        v128_xor(a, b)
    }

    #[inline(always)]
    fn add(self, a: v128, b: v128) -> v128 {
        u8x16_add(a, b)
    }
}
