//! What kernels are given: vectors, rows that are asked for, parts of sums, panels.

use super::machine::{Arg, Element};
use std::ops::Range;

/// Vectors in a device's memory.
#[derive(Debug)]
pub struct Operand<'a, M> {
    /// Where.
    pub memory: &'a M,
    /// Elements before the first.
    pub offset: usize,
    /// Of what type.
    pub element: Element,
}

impl<'a, M> Operand<'a, M> {
    /// The same vectors without the first `elements`.
    pub(super) fn from(&self, elements: usize) -> Self {
        Self { offset: self.offset + elements, ..*self }
    }

    pub(super) fn arg(&self) -> Arg<'a, M> {
        Arg::Memory(self.memory, self.offset * self.element.bytes())
    }
}

/// What is multiplied: `batch` rows with a matrix or its transpose.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub batch: usize,
    pub transposed: bool,
    /// Of vectors.
    pub element: Element,
}

/// Numbers in F32: so many floats into a memory.
pub(super) struct Partial<'a, M> {
    pub memory: &'a M,
    pub offset: usize,
}

impl<'a, M> Partial<'a, M> {
    pub(super) fn arg(&self) -> Arg<'a, M> {
        self.from(0)
    }

    /// Its address without the first `elements`.
    fn from(&self, elements: usize) -> Arg<'a, M> {
        Arg::Memory(self.memory, (self.offset + elements) * size_of::<f32>())
    }
}

/// Where results go, rows of an axis' whole length, and what is added to them.
pub(super) struct Target<'a, M> {
    pub y: Operand<'a, M>,
    /// Of the same shape as the results.
    pub addend: Option<Partial<'a, M>>,
    /// One row, of the results' type.
    pub bias: Option<&'a Operand<'a, M>>,
}

impl<'a, M> Target<'a, M> {
    /// Results alone.
    pub(super) fn of(memory: &'a M, element: Element) -> Self {
        Self { y: Operand { memory, offset: 0, element }, addend: None, bias: None }
    }

    /// What is added and where to, from an element of each row on.
    pub(super) fn args(&self, first: usize) -> [Arg<'a, M>; 3] {
        [
            self.addend.as_ref().map_or(Arg::Null, |addend| addend.from(first)),
            self.bias.map_or(Arg::Null, |bias| bias.from(first).arg()),
            self.y.from(first).arg(),
        ]
    }
}

/// Rows that are asked for: `count` numbers (`u32`), so many into a memory.
#[derive(Clone, Copy)]
pub(super) struct Gather<'a, M> {
    pub ids: &'a M,
    pub offset: usize,
    pub count: usize,
}

impl<'a, M> Gather<'a, M> {
    pub(super) fn arg(&self) -> Arg<'a, M> {
        Arg::Memory(self.ids, self.offset * size_of::<u32>())
    }
}

/// A dense piece of the coefficients, column by column: `(cols, stride)`; it begins at block boundaries.
pub(super) struct Panel<'a, M> {
    pub memory: &'a M,
    pub element: Element,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
    /// Rows, filled up to whole pieces.
    pub stride: usize,
}
