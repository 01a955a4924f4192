//! How many launches a product takes, and that it allocates nothing.

use crate::sample::{Noise, TRANSFORMS, Terms, matrix};
use crate::simulator::{Checks, Memory, Order, Simulator, encode};
use candle_rbe::Transform;
use candle_rbe::codec::term::planes::ScaleGroup;
use candle_rbe::codec::term::sparse::Format;
use candle_rbe::cuda::{DeviceMatrix, Element, GEMV_MAX_BATCH, Machine, Operand, Output};
use std::sync::Arc;

#[test]
fn a_product_is_one_launch_and_no_allocation() {
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    let (whole, border, low) = ((512, 512, 256), (576, 256, 256), (1100, 512, 32));
    let planes = Terms::Planes(ScaleGroup::Block);
    // Inputs of several tokens are transformed by a launch of their own, and so are those of many block rows or by a matrix.
    for (terms, transform, shape, counts) in [
        (Terms::Trellis(12), Transform::Dct, whole, [(1, 1), (2, 1), (3, 2), (GEMV_MAX_BATCH, 2), (64, 2)]),
        (planes, Transform::Dct, whole, [(1, 1), (2, 1), (3, 2), (GEMV_MAX_BATCH, 2), (128, 2)]),
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

/// Launches of all products of one input; each is as it is alone.
fn together(machine: &Simulator, tokens: usize, matrices: &[DeviceMatrix<Simulator>]) -> usize {
    let cols = matrices[0].layout().cols();
    let x = machine.upload(&encode(&Noise::new(tokens as u64).values(tokens * cols), Element::F16)).unwrap();
    let outs: Vec<_> = matrices.iter().map(|matrix| tokens * matrix.layout().rows()).collect();
    let y = machine.allocate(2 * outs.iter().sum::<usize>()).unwrap();
    fn operand(memory: &Memory, offset: usize) -> Operand<'_, Memory> {
        Operand { memory, offset, element: Element::F16 }
    }
    let mut first = 0;
    let products: Vec<_> = matrices
        .iter()
        .zip(&outs)
        .map(|(matrix, len)| {
            first += len;
            (matrix, Output { y: operand(&y, first - len), bias: None })
        })
        .collect();
    let before = machine.launches();
    DeviceMatrix::matmul_all(&products, &operand(&x, 0), tokens, false).unwrap();
    let launches = machine.launches() - before;
    let apart = matrices.iter().zip(&outs).map(|(matrix, len)| {
        let y = machine.allocate(2 * len).unwrap();
        matrix.matmul(&operand(&x, 0), tokens, false, None, &operand(&y, 0)).unwrap();
        machine.read(&y)
    });
    assert_eq!(machine.read(&y), apart.collect::<Vec<_>>().concat(), "{tokens} tokens");
    launches
}

#[test]
fn products_of_one_input_share_its_transform() {
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    let device = |(rows, terms, signs)| {
        DeviceMatrix::new(machine.clone(), &matrix((rows, 256, 256), terms, Transform::Dct, signs).unwrap())
            .unwrap()
    };
    let planes = Terms::Planes(ScaleGroup::Block);
    let of = |rows: [(usize, Terms, bool); 3]| rows.map(device);
    // One token is transformed in each product's only launch, as soon as anything else; so are two in blocks of 256.
    for (matrices, tokens, launches) in [
        (of([(512, planes, false), (256, planes, false), (256, Terms::Trellis(12), false)]), 1, 3),
        (of([(512, planes, false), (256, planes, false), (256, Terms::Trellis(12), false)]), 3, 1 + 3),
        (of([(512, planes, false), (256, planes, false), (256, Terms::Trellis(12), false)]), 16, 1 + 3),
        // A panel, a dense product (no launch of ours) and a way back each.
        (of([(512, planes, false), (256, planes, false), (256, planes, false)]), 129, 1 + 3 * 2),
        // Other signs are another operator; what shares one does so if it is next to it.
        (of([(512, planes, true), (256, planes, false), (256, planes, false)]), 3, 2 + (1 + 2)),
    ] {
        assert_eq!(together(&machine, tokens, &matrices), launches, "{tokens} tokens");
    }
}

#[test]
fn a_captured_product_runs_again_with_other_inputs() {
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    let planes = Terms::Planes(ScaleGroup::Block);
    for (terms, tokens) in
        [(planes, 1), (planes, 16), (Terms::Trellis(12), 1), (Terms::Trellis(12), 8), (Terms::All, 1)]
    {
        let (rows, cols) = (512, 256);
        let matrix = matrix((rows, cols, 256), terms, Transform::Dct, true).unwrap();
        let device = DeviceMatrix::new(machine.clone(), &matrix).unwrap();
        device.prepare(false).unwrap();
        let [given, other] = [1, 2].map(|seed| encode(&Noise::new(seed).values(tokens * cols), Element::F16));
        let x = machine.upload(&given).unwrap();
        let [y, expected] = [0, 0].map(|_| machine.allocate(2 * tokens * rows).unwrap());
        let operand = |memory| Operand { memory, offset: 0, element: Element::F16 };
        // Nothing but launches: the machine refuses to capture the rest.
        let graph = machine
            .capture(&mut || device.matmul(&operand(&x), tokens, false, None, &operand(&y)))
            .expect("launches alone");
        assert!(graph.launches() > 0);
        machine.overwrite(&x, &other).unwrap();
        for _ in 0..2 {
            machine.replay(&graph).unwrap();
        }
        device.matmul(&operand(&x), tokens, false, None, &operand(&expected)).unwrap();
        assert_eq!(machine.read(&y), machine.read(&expected), "{terms:?}, {tokens} tokens");
    }
}

#[test]
fn matrices_one_below_the_other_take_one_launch() {
    let Some(machine) = Simulator::start(Checks::Addresses, Order::Forward) else { return };
    let planes = Terms::Planes(ScaleGroup::Block);
    let device = |(rows, terms, signs)| {
        let matrix = matrix((rows, 320, 256), terms, Transform::Dct, signs).unwrap();
        Arc::new(DeviceMatrix::new(machine.clone(), &matrix).unwrap())
    };
    for terms in [planes, Terms::Trellis(12), Terms::Trellis(14)] {
        // The last may end with shorter blocks.
        for rows in [vec![512, 256, 256], vec![256, 768], vec![256, 300]] {
            let parts: Vec<_> = rows.iter().map(|rows| device((*rows, terms, true))).collect();
            let stacked = DeviceMatrix::stacked(&parts).unwrap().expect("one matrix");
            let all: usize = rows.iter().sum();
            assert_eq!((stacked.layout().rows(), stacked.layout().cols()), (all, 320));
            for (element, tokens, bound) in [
                (Element::F32, 1, 1e-5),
                (Element::F16, 1, 2e-3),
                (Element::F16, 5, 2e-3),
                (Element::F32, 70, 1e-5),
            ] {
                let x = machine.upload(&encode(&Noise::new(9).values(tokens * 320), element)).unwrap();
                fn operand(memory: &Memory, element: Element) -> Operand<'_, Memory> {
                    Operand { memory, offset: 0, element }
                }
                let multiply = |matrix: &DeviceMatrix<Simulator>| {
                    let out = matrix.layout().rows();
                    let y = machine.allocate(tokens * out * element.bytes()).unwrap();
                    let before = machine.launches();
                    matrix.matmul(&operand(&x, element), tokens, false, None, &operand(&y, element)).unwrap();
                    (machine.values(&y, element), machine.launches() - before)
                };
                let (ours, launches) = multiply(&stacked);
                let is_whole = rows.iter().all(|rows| rows % 256 == 0);
                assert!(!is_whole || tokens > 1 || launches == 1, "{launches} launches");
                let mut first = 0;
                for part in &parts {
                    let (expected, out) = (multiply(part).0, part.layout().rows());
                    let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                    for (at, expected) in expected.iter().enumerate() {
                        let ours = ours[at / out * all + first + at % out];
                        let error = (ours - expected).abs() / largest;
                        assert!(
                            error <= bound,
                            "{terms:?}, {rows:?}, {element:?}, {tokens} tokens: {error:e}"
                        );
                    }
                    first += out;
                }
            }
        }
    }
    for (why, parts) in [
        ("other signs", [(256, planes, true), (256, planes, false)]),
        ("a border above another", [(300, planes, true), (256, planes, true)]),
        ("other terms", [(256, planes, true), (256, Terms::Trellis(12), true)]),
        ("another number of states", [(256, Terms::Trellis(14), true), (256, Terms::Trellis(12), true)]),
        ("scales of rows", [(256, Terms::Planes(ScaleGroup::Row), true), (256, planes, true)]),
        ("single coefficients", [(256, Terms::Sparse(Format::Word32, 9), true), (256, planes, true)]),
        ("several terms", [(256, Terms::All, true), (256, Terms::All, true)]),
    ] {
        assert!(DeviceMatrix::stacked(&parts.map(device)).unwrap().is_none(), "{why}");
    }
}
