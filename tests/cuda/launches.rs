//! How many launches a product takes, and that it allocates nothing.

use crate::sample::{Noise, TRANSFORMS, Terms, matrix};
use crate::simulator::{Checks, Order, Simulator, encode};
use candle_rbe::Transform;
use candle_rbe::codec::term::planes::ScaleGroup;
use candle_rbe::codec::term::sparse::Format;
use candle_rbe::cuda::{DeviceMatrix, Element, GEMV_MAX_BATCH, Machine, Operand};

#[test]
fn a_product_is_one_launch_and_no_allocation() {
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    let (whole, border, low) = ((512, 512, 256), (576, 256, 256), (1100, 512, 32));
    let planes = Terms::Planes(ScaleGroup::Block);
    // Inputs of several tokens are transformed by a launch of their own, and so are those of many block rows or by a matrix.
    for (terms, transform, shape, counts) in [
        (Terms::Trellis(12), Transform::Dct, whole, [(1, 1), (2, 1), (3, 2), (GEMV_MAX_BATCH, 2), (64, 2)]),
        (planes, Transform::Dct, whole, [(1, 1), (2, 1), (3, 2), (GEMV_MAX_BATCH, 2), (64, 2)]),
        (Terms::Planes(ScaleGroup::Row), Transform::Dct, whole, [(1, 1), (2, 2), (3, 2), (8, 2), (7, 2)]),
        (Terms::Trellis(12), Transform::Haar, whole, [(1, 2), (2, 2), (3, 2), (8, 2), (16, 2)]),
        (Terms::Trellis(12), Transform::Dct, low, [(1, 2), (2, 2), (3, 2), (8, 2), (7, 2)]),
        // Rows that are too few for tensor cores have a launch of their own.
        (Terms::Trellis(12), Transform::Dct, border, [(1, 2), (2, 3), (3, 3), (8, 3), (7, 3)]),
        (planes, Transform::Dct, border, [(1, 1), (2, 3), (3, 3), (8, 3), (7, 3)]),
        // What reads single coefficients takes transformed inputs, and leaves its results to others.
        (Terms::Sparse(Format::Word32, 9), Transform::Dct, whole, [(1, 3), (2, 3), (3, 3), (8, 3), (7, 3)]),
        (Terms::Adapter, Transform::Dct, whole, [(1, 4), (2, 4), (3, 4), (8, 4), (7, 4)]),
        (Terms::Basis, Transform::Dct, whole, [(1, 2), (2, 2), (3, 2), (8, 2), (7, 2)]),
    ] {
        assert!(TRANSFORMS.contains(&transform));
        let matrix = matrix(shape, terms, transform, true).unwrap();
        let device = DeviceMatrix::new(machine.clone(), &matrix).unwrap();
        device.prepare(false).unwrap();
        for (tokens, launches) in counts {
            let (rows, cols, _) = shape;
            let x = Noise::new(tokens as u64).values(tokens * cols);
            let x = machine.upload(&encode(&x, Element::F16)).unwrap();
            let [y, bias] = [tokens * rows, rows].map(|len| machine.upload(&vec![0; 2 * len]).unwrap());
            let [x, y, bias] =
                [&x, &y, &bias].map(|memory| Operand { memory, offset: 0, element: Element::F16 });
            let before = (machine.launches(), machine.allocations());
            device.matmul(&x, tokens, false, Some(&bias), &y).unwrap();
            let made = (machine.launches() - before.0, machine.allocations() - before.1);
            assert_eq!(made, (launches, 0), "{terms:?} {transform:?} {shape:?}, {tokens} tokens");
        }
    }
}
