//! Every operation against `codec`.

use crate::sample::{Noise, SHAPES, TRANSFORMS, Terms, all_terms, matrix, trellis};
use crate::simulator::{Checks, Memory, Order, Simulator, encode};
use candle_rbe::Transform;
use candle_rbe::codec::Matrix;
use candle_rbe::codec::term::planes::ScaleGroup;
use candle_rbe::cuda::{DeviceMatrix, Element, GEMV_MAX_BATCH, Machine, Operand};

/// Vectors at once: those of one kernel each, and what lies between.
const TOKENS: [usize; 6] = [1, 2, 5, GEMV_MAX_BATCH, GEMV_MAX_BATCH + 3, 2 * GEMV_MAX_BATCH + 3];
/// So many are a panel's of every matrix.
const PANEL_TOKENS: usize = 129;
const ELEMENTS: [Element; 3] = [Element::F32, Element::F16, Element::BF16];

/// The largest difference that an element type may make, relative to the size of the sums: the largest root of a sum of
/// squared terms, which a sum that cancels falls below.
fn bound(element: Element) -> f64 {
    match element {
        // As the layers' tests have it.
        Element::F32 => 1e-5,
        // A result is up to five times the size of its sum and is rounded, to 2^-11 or 2^-8 of itself; so are, through a
        // panel, each of the sum's terms and the sum in the coefficient domain.
        Element::F16 => 8.0 / 2048.0,
        Element::BF16 => 8.0 / 256.0,
    }
}

/// The largest errors seen, by element type.
#[derive(Default)]
struct Worst {
    cases: usize,
    errors: [f64; 3],
}

impl Worst {
    fn take(
        &mut self,
        ours: &[f32],
        exact: &[f64],
        squares: &[f64],
        element: Element,
        what: &dyn Fn() -> String,
    ) {
        assert_eq!(ours.len(), exact.len(), "{}", what());
        let size = squares.iter().fold(1e-30, |size: f64, x| size.max(*x)).sqrt();
        let error = ours.iter().zip(exact).fold(0.0, |worst: f64, (a, b)| {
            let error = (f64::from(*a) - b).abs() / size;
            if error.is_nan() { f64::INFINITY } else { worst.max(error) }
        });
        assert!(error <= bound(element), "{}: {error:e}", what());
        self.cases += 1;
        let worst = &mut self.errors[element as usize];
        *worst = worst.max(error);
    }
}

/// A matrix on the machine and decoded by the codec, in F64.
struct Subject<'a> {
    machine: &'a Simulator,
    device: DeviceMatrix<Simulator>,
    weights: Vec<f64>,
    rows: usize,
    cols: usize,
}

impl<'a> Subject<'a> {
    fn new(machine: &'a Simulator, matrix: &Matrix) -> Self {
        let device = DeviceMatrix::new(machine.clone(), matrix).unwrap();
        let weights = matrix.decode().into_iter().map(f64::from).collect();
        let layout = matrix.layout();
        Self { machine, device, weights, rows: layout.rows(), cols: layout.cols() }
    }

    fn output(&self, elements: usize, element: Element) -> Memory {
        self.machine.allocate(elements * element.bytes()).unwrap()
    }

    fn product(&self, tokens: usize, transposed: bool, element: Element, worst: &mut Worst, what: &str) {
        let (input, output) = if transposed { (self.rows, self.cols) } else { (self.cols, self.rows) };
        // Rounded first, so that both sides multiply the same numbers.
        let noise = Noise::new((tokens * input) as u64).values((tokens + 1) * input);
        let memory = self.machine.upload(&encode(&noise, element)).unwrap();
        let x = self.machine.values(&memory, element);
        let y = self.output(tokens * output, element);
        let x_operand = Operand { memory: &memory, offset: input, element };
        let y_operand = Operand { memory: &y, offset: 0, element };
        // With a bias or without.
        let bias = if tokens % 3 == 1 { vec![] } else { Noise::new(input as u64).values(output) };
        let bias_memory = self.machine.upload(&encode(&bias, element)).unwrap();
        let bias_operand = Operand { memory: &bias_memory, offset: 0, element };
        let context = || format!("{what}, {tokens} tokens, transposed {transposed}, {element:?}");
        self.device.prepare(transposed).unwrap();
        let before = self.machine.allocations();
        let bias_operand = Some(&bias_operand).filter(|_| !bias.is_empty());
        let done = self.device.matmul(&x_operand, tokens, transposed, bias_operand, &y_operand);
        done.unwrap_or_else(|error| panic!("{}: {error}", context()));
        assert!(tokens > GEMV_MAX_BATCH || self.machine.allocations() == before, "{}", context());
        let bias = self.machine.values(&bias_memory, element);
        let mut exact: Vec<_> = (0..tokens)
            .flat_map(|_| (0..output).map(|out| bias.get(out).map_or(0.0, |b| f64::from(*b))))
            .collect();
        let mut squares: Vec<_> = exact.iter().map(|bias| bias * bias).collect();
        for (token, x) in x[input..].chunks_exact(input).enumerate() {
            for (n, weight) in self.weights.iter().enumerate() {
                let (row, col) = (n / self.cols, n % self.cols);
                let (out, input) = if transposed { (col, row) } else { (row, col) };
                let term = weight * f64::from(x[input]);
                exact[token * output + out] += term;
                squares[token * output + out] += term * term;
            }
        }
        worst.take(&self.machine.values(&y, element), &exact, &squares, element, &context);
    }

    fn gather(&self, element: Element, worst: &mut Worst, what: &str) {
        let ids: Vec<usize> = vec![0, self.rows - 1, self.rows / 2, self.rows / 3, 0];
        let bytes: Vec<u8> = ids.iter().flat_map(|id| (*id as u32).to_le_bytes()).collect();
        let memory = self.machine.upload(&bytes).unwrap();
        let y = self.output(ids.len() * self.cols, element);
        let operand = Operand { memory: &y, offset: 0, element };
        let done = self.device.gather(&memory, ids.len(), &operand);
        done.unwrap_or_else(|error| panic!("{what}, gather: {error}"));
        let exact: Vec<f64> =
            ids.iter().flat_map(|id| self.weights[id * self.cols..][..self.cols].iter().copied()).collect();
        let squares: Vec<_> = exact.iter().map(|x| x * x).collect();
        let context = || format!("{what}, gather, {element:?}");
        worst.take(&self.machine.values(&y, element), &exact, &squares, element, &context);
    }

    fn decode(&self, worst: &mut Worst, what: &str) {
        let weights = self.output(self.rows * self.cols, Element::F32);
        let done = self.device.decode(&weights);
        done.unwrap_or_else(|error| panic!("{what}, decode: {error}"));
        let ours = self.machine.values(&weights, Element::F32);
        let squares: Vec<_> = self.weights.iter().map(|x| x * x).collect();
        worst.take(&ours, &self.weights, &squares, Element::F32, &|| format!("{what}, decode"));
    }
}

/// Every operation on every matrix that `chosen` takes, of those numbered through.
fn compare(machine: &Simulator, chosen: impl Fn(usize) -> bool) -> Worst {
    let mut worst = Worst::default();
    let mut number = 0;
    for shape in SHAPES {
        for terms in all_terms() {
            for (transform, signs) in TRANSFORMS.into_iter().flat_map(|t| [(t, false), (t, true)]) {
                number += 1;
                if !chosen(number) {
                    continue;
                }
                let Some(matrix) = matrix(shape, terms, transform, signs) else { continue };
                let what = format!("{shape:?} {terms:?} {transform:?} signs {signs}");
                let subject = Subject::new(machine, &matrix);
                subject.decode(&mut worst, &what);
                subject.gather(ELEMENTS[number % 3], &mut worst, &what);
                let panel = Some(PANEL_TOKENS).filter(|_| number % 4 == 1);
                for (n, tokens) in TOKENS.into_iter().chain(panel).enumerate() {
                    // The transposed kernels take one vector at a time or four: two and eight are no other case than five; and panels
                    // are what more than eight take.
                    let alike = [2, GEMV_MAX_BATCH, 2 * GEMV_MAX_BATCH + 3].contains(&tokens);
                    for transposed in [false, true].into_iter().filter(|t| !(*t && alike)) {
                        let element = ELEMENTS[(number + n) % 3];
                        subject.product(tokens, transposed, element, &mut worst, &what);
                    }
                }
            }
        }
    }
    worst
}

fn report(name: &str, machine: &Simulator, worst: &Worst) {
    let [f32, f16, bf16] = worst.errors;
    println!(
        "{name}: {} cases, {} launches; largest error, relative to the size of the sums: {f32:.1e} in F32, {f16:.1e} in \
         F16, {bf16:.1e} in BF16",
        worst.cases,
        machine.launches()
    );
}

#[test]
fn every_operation_agrees_with_the_codec() {
    for order in [Order::Forward, Order::Backward] {
        let Some(machine) = Simulator::start(Checks::None, order) else { return };
        let worst =
            compare(
                &machine,
                |number| if order == Order::Forward { number % 2 == 1 } else { number % 4 == 0 },
            );
        report(&format!("threads {order:?}"), &machine, &worst);
    }
}

#[test]
fn no_address_is_wrong() {
    let Some(machine) = Simulator::start(Checks::Addresses, Order::Forward) else { return };
    let worst = compare(&machine, |number| number % 7 == 0);
    report("addresses", &machine, &worst);
}

#[test]
fn no_two_threads_race() {
    let Some(machine) = Simulator::start(Checks::Races, Order::Forward) else { return };
    let worst = compare(&machine, |number| number % 61 == 0);
    report("races", &machine, &worst);
}

/// On a card a product may begin before its inputs' transform has ended; the machine finds what it reads of that before it waits.
#[test]
fn a_product_waits_for_what_launches_before_it_wrote() {
    let Some(machine) = Simulator::start(Checks::Races, Order::Forward) else { return };
    let mut worst = Worst::default();
    for (terms, transform) in [
        (Terms::Planes(ScaleGroup::Block), Transform::Dct),
        (Terms::Planes(ScaleGroup::Block), Transform::Haar),
        (Terms::Trellis(12), Transform::Dct),
    ] {
        let matrix = matrix((512, 512, 256), terms, transform, true).unwrap();
        let subject = Subject::new(&machine, &matrix);
        for (tokens, element) in
            [(1, Element::F32), (5, Element::F32), (8, Element::F16), (16, Element::F16), (24, Element::F16)]
        {
            subject.product(tokens, false, element, &mut worst, &format!("{terms:?} {transform:?}"));
        }
    }
    report("overlaps", &machine, &worst);
}

#[test]
fn an_id_that_is_no_row_gives_a_row_of_nan() {
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    for terms in all_terms() {
        let Some(matrix) = matrix((100, 259, 64), terms, TRANSFORMS[0], true) else { continue };
        let subject = Subject::new(&machine, &matrix);
        let ids = machine.upload(&[100u32, 99, u32::MAX].map(u32::to_le_bytes).concat()).unwrap();
        let y = subject.output(3 * 259, Element::F32);
        let operand = Operand { memory: &y, offset: 0, element: Element::F32 };
        subject.device.gather(&ids, 3, &operand).unwrap();
        for (n, row) in machine.values(&y, Element::F32).chunks_exact(259).enumerate() {
            let nan = row.iter().filter(|x| x.is_nan()).count();
            assert_eq!(nan, if n == 1 { 0 } else { 259 }, "{terms:?}, id {n}");
        }
    }
}

#[test]
fn inputs_beyond_a_16_bit_position_have_lists_of_their_own() {
    use candle_rbe::codec::Layout;
    use candle_rbe::codec::term::sparse::{Entry, FORMATS};
    use candle_rbe::codec::term::{Sparse, Term};
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    let (rows, cols) = (3, 70_001);
    let mut worst = Worst::default();
    for format in FORMATS {
        for (rows, cols) in [(rows, cols), (cols, rows)] {
            let layout = Layout::new(rows, cols, 64).unwrap();
            let mut noise = Noise::new(9);
            let blocks: Vec<_> =
                layout.iter().map(|_| vec![Entry { row: 0, col: 0, value: noise.value() }]).collect();
            let term = Term::Sparse(Sparse::pack(layout, format, &blocks).unwrap());
            let matrix = Matrix::new(layout, TRANSFORMS[0], None, vec![term], 0.0);
            let subject = Subject::new(&machine, &matrix);
            let what = format!("{rows}x{cols} {format:?}");
            subject.gather(Element::F32, &mut worst, &what);
            subject.product(1, false, Element::F32, &mut worst, &what);
            subject.product(1, true, Element::F32, &mut worst, &what);
            subject.product(GEMV_MAX_BATCH + 1, false, Element::F32, &mut worst, &what);
        }
    }
}

#[test]
fn a_warp_goes_from_scale_group_to_scale_group() {
    use candle_rbe::codec::Layout;
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    let mut worst = Worst::default();
    for (rows, states) in [(256, 12), (128, 12), (256, 15)] {
        let layout = Layout::new(rows, 1100, rows).unwrap();
        // Every eighth of them is a warp's: some have as many bits as the one before, some have not.
        let term = trellis(layout, states, |index| (index / 12 + 4) as u8 % 5, &mut Noise::new(5));
        let matrix = Matrix::new(layout, TRANSFORMS[0], None, vec![term], 0.0);
        let subject = Subject::new(&machine, &matrix);
        for tokens in [1, GEMV_MAX_BATCH] {
            subject.product(
                tokens,
                false,
                Element::F32,
                &mut worst,
                &format!("{rows} rows, states {states}"),
            );
        }
    }
    // Sums are brought from one number of planes' units to another's.
    for rows in [256, 128] {
        let planes = Terms::Planes(ScaleGroup::Block);
        let matrix = matrix((rows, 2300, rows), planes, TRANSFORMS[0], true).unwrap();
        let subject = Subject::new(&machine, &matrix);
        for element in ELEMENTS {
            for tokens in [1, GEMV_MAX_BATCH, 2 * GEMV_MAX_BATCH, 4 * GEMV_MAX_BATCH] {
                subject.product(tokens, false, element, &mut worst, &format!("{rows} rows, planes"));
            }
        }
    }
    report("from scale group to scale group", &machine, &worst);
}

#[test]
fn no_vectors_are_no_work() {
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    let matrix = matrix((33, 70, 32), Terms::All, TRANSFORMS[0], true).unwrap();
    let subject = Subject::new(&machine, &matrix);
    let empty = machine.allocate(0).unwrap();
    let operand = || Operand { memory: &empty, offset: 0, element: Element::F32 };
    subject.device.matmul(&operand(), 0, false, None, &operand()).unwrap();
    subject.device.gather(&empty, 0, &operand()).unwrap();
    assert_eq!(machine.launches(), 0);
}
