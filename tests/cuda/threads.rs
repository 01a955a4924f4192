//! Threads of the host, whose streams nothing orders.

use crate::sample::{Noise, TRANSFORMS, Terms, matrix};
use crate::simulator::{Checks, Memory, Order, Simulator, encode};
use candle_rbe::codec::Matrix;
use candle_rbe::codec::term::planes::ScaleGroup;
use candle_rbe::codec::term::sparse::Format;
use candle_rbe::cuda::{DeviceMatrix, Element, Machine, Operand};

const SHAPE: (usize, usize, usize) = (160, 96, 64);

/// A matrix of each form.
fn matrices() -> Vec<Matrix> {
    let terms = [
        Terms::Planes(ScaleGroup::Block),
        Terms::Trellis(12),
        Terms::Sparse(Format::Word32, 3),
        Terms::Basis,
        Terms::Adapter,
        Terms::All,
    ];
    terms.into_iter().map(|terms| matrix(SHAPE, terms, TRANSFORMS[0], true).unwrap()).collect()
}

/// Queues a product, and does not wait for it.
fn product(machine: &Simulator, matrix: &DeviceMatrix<Simulator>) -> Memory {
    let (rows, cols, _) = SHAPE;
    let x = machine.upload(&encode(&Noise::new(3).values(cols), Element::F32)).unwrap();
    let y = machine.allocate(rows * Element::F32.bytes()).unwrap();
    let [x, to] = [&x, &y].map(|memory| Operand { memory, offset: 0, element: Element::F32 });
    matrix.matmul(&x, 1, false, None, &to).unwrap();
    y
}

/// What one thread alone gets.
fn expected() -> Option<Vec<Vec<f32>>> {
    let machine = Simulator::start(Checks::None, Order::Forward)?;
    let one = |matrix: &Matrix| {
        let matrix = DeviceMatrix::new(machine.clone(), matrix).unwrap();
        machine.values(&product(&machine, &matrix), Element::F32)
    };
    Some(matrices().iter().map(one).collect())
}

/// What `work` gives in a thread of its own.
fn elsewhere<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

#[test]
fn a_matrix_of_one_thread_is_there_for_another() {
    let (Some(machine), Some(expected)) = (Simulator::start_with_streams(), expected()) else { return };
    for (matrix, expected) in matrices().iter().zip(expected) {
        let matrix = DeviceMatrix::new(machine.clone(), matrix).unwrap();
        // The first product lays out what the second finds; nobody waits for either.
        let _first = elsewhere(|| product(&machine, &matrix));
        let second = elsewhere(|| machine.values(&product(&machine, &matrix), Element::F32));
        assert_eq!(second, expected);
    }
}

#[test]
fn a_matrix_is_there_until_another_threads_product_is_done() {
    let (Some(machine), Some(expected)) = (Simulator::start_with_streams(), expected()) else { return };
    for (matrix, expected) in matrices().iter().zip(expected) {
        let matrix = DeviceMatrix::new(machine.clone(), matrix).unwrap();
        let y = elsewhere(|| product(&machine, &matrix));
        drop(matrix);
        // This thread's stream runs ahead of the other's.
        machine.wait().unwrap();
        machine.wait_for_all().unwrap();
        assert_eq!(machine.values(&y, Element::F32), expected);
    }
}
