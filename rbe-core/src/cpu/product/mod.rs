//! The products: into the coefficient domain once, through every term, back once.
//!
//! Every product is [`run`]: that of one matrix or of several with one input, with a matrix or its transpose ([`Oriented`]), with
//! the numbers that are stored or with others in their place. [`gradients`] is what takes a gradient back through it. Terms
//! know what they are multiplied as; nothing here asks for their kind.

pub(super) mod dense;
mod gradients;
mod panels;

#[cfg(test)]
pub(super) use gradients::gradients;
pub use gradients::{Gradients, parametric_gradients};

use super::Precision;
use super::activations::quantize;
use super::axis::{self, Back};
use super::exec::Exec;
use super::layout::Activations;
use super::matrix::PackedMatrix;
use super::packed::{Forms, Inputs, PackedTerm, Parameters, Product, Room, SharedRoom};
use super::pool::{Pool, Shared, zeros};
use super::rows::Rows;
use super::spmm::InLanes;
use crate::codec::Sides;
use crate::codec::axis::Axis;
use crate::codec::sizes::{elements, expect_len};
use crate::codec::term::Domain;
use panels::Numbers;
use std::cell::RefCell;
use std::ops::Range;

/// Multiply-adds below which one thread is done before the others have begun.
const WORTH_SHARING: usize = 1 << 15;
/// Segments' elements below which one thread transforms alone.
const TRANSFORM_WORTH_SHARING: usize = 1 << 10;

/// A matrix as a product sees it: itself, or its transpose.
#[derive(Clone, Copy, Debug)]
pub struct Oriented<'a> {
    matrix: &'a PackedMatrix,
    transposed: bool,
}

impl<'a> Oriented<'a> {
    /// The matrix, or when `transposed` its transpose.
    pub fn new(matrix: &'a PackedMatrix, transposed: bool) -> Self {
        Self { matrix, transposed }
    }

    /// Rows and columns exchanged.
    #[must_use]
    pub fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// Inputs and outputs.
    pub(super) fn sides(self) -> Sides {
        Sides::new(self.matrix.layout(), self.transposed)
    }

    /// The operators of inputs and of outputs.
    fn axes(self) -> (&'a Axis, &'a Axis) {
        let axes = self.matrix.axes();
        self.sides().of(&axes.rows, &axes.cols)
    }

    /// Whether both see their inputs through the same operator.
    pub(super) fn shares_input(self, other: Self) -> bool {
        self.transposed == other.transposed && self.matrix.shares_input(other.matrix, self.transposed)
    }

    /// Multiply-adds of a batch with the dense matrix.
    fn work(self, batch: usize) -> usize {
        batch.saturating_mul(self.matrix.layout().elements())
    }

    /// The terms in a domain, each with its place among all.
    fn terms(self, domain: Domain) -> impl Iterator<Item = (usize, &'a dyn PackedTerm)> {
        let terms = self.matrix.terms().iter().map(|term| &**term).enumerate();
        terms.filter(move |(_, term)| term.domain() == domain)
    }

    fn has_spectrum(self) -> bool {
        self.terms(Domain::Coefficients).next().is_some()
    }
}

impl<'a> From<&'a PackedMatrix> for Oriented<'a> {
    fn from(matrix: &'a PackedMatrix) -> Self {
        Self::new(matrix, false)
    }
}

/// `y = x W'`: `x` holds rows as long as the matrix's, `y` (`batch x rows`) one for each. Of a [transposed](Oriented::t) matrix
/// `y = x W`, for rows as long as its columns.
///
/// # Panics
/// When a slice has another length.
pub fn matmul<'a>(
    matrix: impl Into<Oriented<'a>>,
    x: Rows,
    y: &mut [f32],
    precision: Precision,
    pool: &dyn Pool,
) {
    run(Exec::new(pool), &Call { matrices: &[matrix.into()], parameters: None, x, precision }, &mut [y]);
}

/// The products with several matrices, one after another: each as [`matmul`] writes it. Neighbours that see their input through one
/// operator (as many inputs, block edge, transform, seed and scales alike) have it transformed and cut into slices once, and each takes as
/// many of these as it would alone.
///
/// # Panics
/// When the input has another length than a matrix' inputs.
pub fn matmul_all(matrices: &[Oriented], x: Rows, precision: Precision, pool: &dyn Pool) -> Vec<f32> {
    let len = |matrix: &Oriented| elements(&[x.batch, matrix.sides().output().elements()]);
    let mut joined = zeros(matrices.iter().map(len).sum(), pool);
    let mut rest = &mut joined[..];
    let mut ys: Vec<&mut [f32]> =
        matrices.iter().map(|matrix| rest.split_off_mut(..len(matrix)).unwrap_or_default()).collect();
    add(Exec::new(pool), &Call { matrices, parameters: None, x, precision }, &mut ys);
    joined
}

/// [`matmul_all`] into memory that is there: `ys` has a slice for each matrix' results.
///
/// # Panics
/// As [`matmul_all`], and when a slice has another length than the results.
pub fn matmul_all_into(
    matrices: &[Oriented],
    x: Rows,
    ys: &mut [&mut [f32]],
    precision: Precision,
    pool: &dyn Pool,
) {
    run(Exec::new(pool), &Call { matrices, parameters: None, x, precision }, ys);
}

/// [`matmul`] with these `parameters` in the place of the matrix's own, `W(p) = sum_n p_n M_n`, in the order of the codec's
/// `Matrix::parameters`. In F32.
///
/// # Panics
/// When a slice has another length.
pub fn parametric_matmul<'a>(
    matrix: impl Into<Oriented<'a>>,
    parameters: &[f32],
    x: Rows,
    y: &mut [f32],
    pool: &dyn Pool,
) {
    let (matrices, parameters) = (&[matrix.into()], Some(parameters));
    run(Exec::new(pool), &Call { matrices, parameters, x, precision: Precision::Exact }, &mut [y]);
}

/// What is to be multiplied.
pub(super) struct Call<'a> {
    pub matrices: &'a [Oriented<'a>],
    /// In the place of a single matrix's own.
    pub parameters: Option<&'a [f32]>,
    pub x: Rows<'a>,
    pub precision: Precision,
}

thread_local! {
    /// One thread's inputs, between calls, so that a warm product allocates nothing.
    static INPUT: RefCell<Spectrum> = RefCell::default();
    /// What the items of some products have in common, likewise.
    static ROOMS: RefCell<[Room; axis::TOGETHER]> = RefCell::default();
}

/// Every product there is.
pub(super) fn run(exec: Exec, call: &Call, ys: &mut [&mut [f32]]) {
    ys.iter_mut().for_each(|y| y.fill(0.0));
    add(exec, call, ys);
}

/// [`run`] with `ys` that are zero.
fn add(exec: Exec, call: &Call, ys: &mut [&mut [f32]]) {
    let Call { matrices, parameters, x, precision } = *call;
    assert_eq!(matrices.len(), ys.len());
    for (matrix, y) in matrices.iter().zip(&*ys) {
        expect_len("the input", x.values.len(), &[x.batch, matrix.sides().input().elements()]);
        expect_len("the output", y.len(), &[x.batch, matrix.sides().output().elements()]);
    }
    let parameters = parameters.map(|parameters| matrices[0].matrix.split(parameters));
    if x.batch == 0 {
        return;
    }
    // Taken, not borrowed: a pool may run another product on this thread meanwhile.
    let mut input = INPUT.take();
    let mut rest = ys;
    for group in matrices.chunk_by(|a, b| a.shares_input(*b)).flat_map(|group| group.chunks(axis::TOGETHER)) {
        let ys = rest.split_off_mut(..group.len()).unwrap_or_default();
        let parameters = parameters.as_deref();
        let passes = group.iter().map(|matrix| {
            let slices = matrix.matrix.slices(precision);
            Pass { exec, matrix: *matrix, slices, parameters, x }
        });
        let forms = passes.clone().fold(Forms::default(), |forms, pass| forms | pass.forms());
        input.fill(exec, group[0].axes().0, x, forms);
        add_coefficients(exec, passes.clone(), &input.inputs(x), ys);
        finish(exec, passes, ys);
    }
    INPUT.set(input);
}

/// The terms in the coefficient domain of at most [`TOGETHER`](axis::TOGETHER) products with one input: round by round the next one of
/// every matrix, so that two never add to one output at a time. What threads may take item by item is one run of them.
fn add_coefficients<'a>(
    exec: Exec,
    passes: impl Iterator<Item = Pass<'a>> + Clone,
    x: &Inputs,
    ys: &mut [&mut [f32]],
) {
    let terms = |pass: &Pass<'a>| pass.matrix.terms(Domain::Coefficients);
    // Rounds of each matrix that is not multiplied in panels.
    let mut rounds = [0; axis::TOGETHER];
    for ((pass, y), rounds) in passes.clone().zip(&mut *ys).zip(&mut rounds) {
        match pass.panels() {
            None => *rounds = terms(&pass).count(),
            Some(numbers) => {
                let terms: Vec<_> = terms(&pass).map(|(_, term)| term).collect();
                panels::add_product(pass.exec(), &terms, pass.matrix.matrix.layout(), numbers, x.rows, y);
            }
        }
    }
    let mut rooms = ROOMS.take();
    for round in 0..rounds.into_iter().max().unwrap_or(0) {
        let mut shares = [const { None }; axis::TOGETHER];
        let (mut count, mut work) = (0, 0);
        let places = shares.iter_mut().zip(&mut rooms).zip(rounds);
        for ((pass, y), ((share, room), rounds)) in passes.clone().zip(&mut *ys).zip(places) {
            let Some((n, term)) = terms(&pass).nth(round).filter(|_| round < rounds) else { continue };
            let product = pass.product(n);
            let Some(items) = term.items(&product) else {
                term.add_product(pass.exec(), &product, x, y);
                continue;
            };
            let room = term.prepare(&product, room);
            *share = Some(Share { term, product, room, out: Shared::new(y), items: count..count + items });
            (count, work) = (count + items, work + pass.work());
        }
        if count == 0 {
            continue;
        }
        exec.shared_if(work, WORTH_SHARING).pool.run(count, &|range| {
            for Share { term, product, room, out, items } in shares.iter().flatten() {
                let own = range.start.max(items.start)..range.end.min(items.end);
                if !own.is_empty() {
                    let own = own.start - items.start..own.end - items.start;
                    // SAFETY: the pool runs each item once, the outputs of the products are apart, and the rooms are made ready.
                    unsafe { term.add_items(exec.kernels, product, x, room, out, own) };
                }
            }
        });
    }
    ROOMS.set(rooms);
}

/// A product among others: the part of their items that is its own.
struct Share<'a> {
    term: &'a dyn PackedTerm,
    product: Product<'a>,
    room: SharedRoom<'a>,
    out: Shared<'a, f32>,
    items: Range<usize>,
}

/// The way back, and the terms in the weight domain, of at most [`TOGETHER`](axis::TOGETHER) products, whose `ys` hold coefficients.
fn finish<'a>(exec: Exec, passes: impl Iterator<Item = Pass<'a>> + Clone, ys: &mut [&mut [f32]]) {
    let spectra = || passes.clone().filter(|pass| pass.matrix.has_spectrum());
    let elements = spectra().map(|pass| pass.x.batch * pass.matrix.sides().output().elements()).sum();
    let back = passes.clone().zip(&mut *ys).filter(|(pass, _)| pass.matrix.has_spectrum());
    let back = back.map(|(pass, y)| Back { axis: pass.matrix.axes().1, y });
    axis::inverse(exec.shared_if(elements, TRANSFORM_WORTH_SHARING), back);
    let (lanes, slices) = (&InLanes::default(), &Activations::default());
    for (pass, y) in passes.zip(ys) {
        pass.add_weights(&Inputs { rows: pass.x, lanes, slices }, y);
    }
}

/// One matrix's product.
#[derive(Clone, Copy)]
struct Pass<'a> {
    exec: Exec<'a>,
    matrix: Oriented<'a>,
    /// Of the activations.
    slices: usize,
    /// Those of each term, in the place of its own.
    parameters: Option<&'a [Parameters<'a>]>,
    x: Rows<'a>,
}

impl<'a> Pass<'a> {
    /// What term `n` is asked for.
    fn product(&self, n: usize) -> Product<'a> {
        let parameters = self.parameters.map(|parameters| &parameters[n]);
        Product { sides: self.matrix.sides(), batch: self.x.batch, slices: self.slices, parameters }
    }

    /// As what the blocks of all terms are added up and multiplied, where the digits of many vectors with all terms take more time
    /// than that.
    fn panels(&self) -> Option<Numbers> {
        if self.parameters.is_some() || self.matrix.transposed {
            return None;
        }
        let kernels = self.exec.kernels;
        let terms = self.matrix.terms(Domain::Coefficients);
        let digits: f32 = terms.map(|(n, term)| term.cost(kernels, &self.product(n))).sum();
        let cost = kernels.panel_cost();
        let (numbers, each) = match self.slices {
            ..=2 if kernels.has_panel_integers() => (Numbers::Integers, cost.integers),
            _ => (Numbers::Floats, cost.floats),
        };
        (self.x.batch as f32 * (digits - each) > cost.decoding).then_some(numbers)
    }

    /// The forms in which the terms in the coefficient domain read their input.
    fn forms(&self) -> Forms {
        if self.panels().is_some() {
            return Forms::FLOATS;
        }
        let terms = self.matrix.terms(Domain::Coefficients);
        terms.fold(Forms::default(), |forms, (n, term)| {
            forms | term.reads(self.exec.kernels, &self.product(n))
        })
    }

    /// Multiply-adds with the dense matrix.
    fn work(&self) -> usize {
        self.matrix.work(self.x.batch)
    }

    /// What runs the product where it is run alone.
    fn exec(&self) -> Exec<'_> {
        self.exec.shared_if(self.work(), WORTH_SHARING)
    }

    /// Adds the shares of the terms in the weight domain.
    fn add_weights(&self, x: &Inputs, out: &mut [f32]) {
        for (n, term) in self.matrix.terms(Domain::Weights) {
            term.add_product(self.exec(), &self.product(n), x, out);
        }
    }
}

/// Rows in the coefficient domain, in the forms that terms read.
#[derive(Default)]
struct Spectrum {
    floats: Vec<f32>,
    lanes: InLanes,
    slices: Activations,
}

impl Spectrum {
    /// The forms, of as many rows as `x` has.
    fn inputs(&self, x: Rows) -> Inputs<'_> {
        let rows = Rows { values: &self.floats, ..x };
        Inputs { rows, lanes: &self.lanes, slices: &self.slices }
    }

    /// Takes every row into the coefficient domain.
    fn fill(&mut self, exec: Exec, axis: &Axis, x: Rows, forms: Forms) {
        if forms == Forms::default() {
            return;
        }
        let transform = exec.shared_if(x.values.len(), TRANSFORM_WORTH_SHARING);
        self.floats.resize(if forms.floats { x.values.len() } else { 0 }, 0.0);
        self.slices.prepare(axis.cut(), x.batch, forms.slices, exec.kernels.pairs_digits());
        let slots = self.slices.slots();
        let floats = Shared::new(&mut self.floats);
        axis::forward(transform, axis, x.values, &|row, j, segment| {
            if forms.floats {
                let start = row * x.len + axis.cut().range(j).start;
                // SAFETY: each row's block has a place of its own and is taken once.
                unsafe { floats.part(start..start + segment.len()) }.copy_from_slice(segment);
            }
            if forms.slices > 0 {
                // SAFETY: as above.
                quantize(exec.kernels, segment, unsafe { slots.of(row, j) });
                if slots.are_paired() {
                    // SAFETY: as above.
                    unsafe {
                        slots.pair(j, |first, second, pairs| exec.kernels.pair_digits(first, second, pairs))
                    };
                }
            }
        });
        if forms.lanes {
            self.lanes.fill(transform, Rows { values: &self.floats, ..x });
        }
    }
}
