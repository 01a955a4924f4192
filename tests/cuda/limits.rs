//! Matrices of more weights than 31 bits count, sides longer than a grid, and a device without memory.

use crate::sample::{Noise, TRANSFORMS, Terms, matrix, trellis};
use crate::simulator::{Checks, Memory, Order, Simulator, encode};
use candle_rbe::codec::term::planes::ScaleGroup;
use candle_rbe::codec::term::sparse::{Entry, Format};
use candle_rbe::codec::term::{Sparse, Term};
use candle_rbe::codec::{Layout, Matrix};
use candle_rbe::cpu::{self, Oriented, PackedMatrix, Precision, Rayon, Rows};
use candle_rbe::cuda::{DeviceMatrix, Element, GEMV_MAX_BATCH, Machine, Operand};

fn operand(memory: &Memory) -> Operand<'_, Memory> {
    Operand { memory, offset: 0, element: Element::F32 }
}

/// Products of the device with so many vectors, compared with the CPU's.
fn compare(machine: &Simulator, matrix: &Matrix, transposed: bool, tokens: usize) {
    let (layout, device) = (matrix.layout(), DeviceMatrix::new(machine.clone(), matrix).unwrap());
    let (rows, cols) = (layout.rows(), layout.cols());
    let (inputs, outs) = if transposed { (rows, cols) } else { (cols, rows) };
    let x = Noise::new(5).values(tokens * inputs);
    let mut exact = vec![0.0; tokens * outs];
    let packed = PackedMatrix::new(matrix);
    let oriented = Oriented::from(&packed);
    let oriented = if transposed { oriented.t() } else { oriented };
    cpu::matmul(oriented, Rows::new(&x, tokens, inputs), &mut exact, Precision::Exact, &Rayon);
    let x = machine.upload(&encode(&x, Element::F32)).unwrap();
    let y = machine.allocate(tokens * outs * Element::F32.bytes()).unwrap();
    device.matmul(&operand(&x), tokens, transposed, None, &operand(&y)).unwrap();
    let ours = machine.values(&y, Element::F32);
    let largest = exact.iter().fold(0f32, |largest, y| largest.max(y.abs()));
    assert!(largest > 0.0);
    for (n, (ours, exact)) in ours.iter().zip(&exact).enumerate() {
        assert!((ours - exact).abs() <= 1e-5 * largest, "{rows}x{cols}, output {n}: {ours} for {exact}");
    }
}

#[test]
fn weights_are_more_than_31_bits_count() {
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    let (rows, cols) = (65_536, 33_024);
    assert!(rows * cols > i32::MAX as usize);
    let layout = Layout::new(rows, cols, 256).unwrap();
    // Bits in few scale groups, the last of all among them.
    let groups = layout.block_rows() * cols.div_ceil(32);
    let bits = |index| if index % 40_009 == 3 || index + 1 == groups { 4 } else { 0 };
    let term = trellis(layout, 12, bits, &mut Noise::new(5));
    let matrix = Matrix::new(layout, TRANSFORMS[0], Some(3), vec![term], 0.0);
    compare(&machine, &matrix, false, 1);
    compare(&machine, &matrix, true, 1);
}

#[test]
fn inputs_of_a_long_row_fit_a_small_cards_shared_memory() {
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    let (rows, cols) = (512, 8192);
    for terms in [Terms::Trellis(12), Terms::Trellis(16), Terms::Planes(ScaleGroup::Block)] {
        let matrix = matrix((rows, cols, 256), terms, TRANSFORMS[0], true).unwrap();
        [1, 2, 8].into_iter().for_each(|tokens| compare(&machine, &matrix, false, tokens));
        // The machine refuses a launch that asks for more than there is.
        let device = DeviceMatrix::new(machine.clone(), &matrix).unwrap();
        for tokens in [1, 2, 8, 16, 32] {
            let x = machine.upload(&encode(&Noise::new(5).values(tokens * cols), Element::F16)).unwrap();
            let y = machine.allocate(tokens * rows * Element::F16.bytes()).unwrap();
            let [x, y] = [&x, &y].map(|memory| Operand { memory, offset: 0, element: Element::F16 });
            device.matmul(&x, tokens, false, None, &y).unwrap();
        }
    }
}

#[test]
fn sides_are_as_long_as_a_grid_counts_and_no_longer() {
    const LONGEST: usize = 65_535 * 32;
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    let sparse = |rows, cols| {
        let layout = Layout::new(rows, cols, 32).unwrap();
        let entry = |index| Entry { row: 0, col: 0, value: 1.0 + (index % 7) as f32 };
        let blocks: Vec<_> = layout
            .iter()
            .map(|block| if block.index % 9 == 0 { vec![entry(block.index)] } else { vec![] })
            .collect();
        let term = Term::Sparse(Sparse::pack(layout, Format::Word24, &blocks).unwrap());
        Matrix::new(layout, TRANSFORMS[1], None, vec![term], 0.0)
    };
    for (rows, cols) in [(1, LONGEST), (LONGEST, 1)] {
        compare(&machine, &sparse(rows, cols), rows > cols, 1);
    }
    for (rows, cols, side) in [(1, LONGEST + 1, "columns"), (LONGEST + 1, 1, "rows")] {
        let refused = DeviceMatrix::new(machine.clone(), &sparse(rows, cols)).unwrap_err().to_string();
        assert!(refused.contains(&format!("{rows}x{cols}")) && refused.contains(side), "{refused}");
        assert!(refused.contains("split it"), "{refused}");
    }
}

#[test]
fn a_device_without_memory_says_so_and_goes_on_when_there_is_some() {
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    let (rows, cols, edge) = (100, 130, 64);
    let matrix = matrix((rows, cols, edge), Terms::All, TRANSFORMS[0], true).unwrap();
    let most = GEMV_MAX_BATCH + 1;
    let x = machine.upload(&encode(&Noise::new(5).values(most * cols), Element::F32)).unwrap();
    let ids = machine.upload(&7u32.to_le_bytes()).unwrap();
    let y = machine.allocate(rows.max(most) * cols.max(rows) * Element::F32.bytes()).unwrap();
    let (mut device, mut refusals) = (None, 0);
    let mut step = |work: &mut dyn FnMut() -> candle_rbe::Result<()>| {
        for room in 0.. {
            machine.set_room(room);
            let done = work();
            machine.set_room(usize::MAX);
            match done {
                Ok(()) => break,
                Err(error) => assert!(error.to_string().contains("multiply fewer tokens"), "{error}"),
            }
            refusals += 1;
        }
    };
    step(&mut || {
        device = Some(DeviceMatrix::new(machine.clone(), &matrix)?);
        Ok(())
    });
    let device = device.unwrap();
    step(&mut || device.matmul(&operand(&x), 1, false, None, &operand(&y)));
    let first = machine.read(&y);
    step(&mut || device.matmul(&operand(&x), most, false, None, &operand(&y)));
    step(&mut || device.gather(&ids, 1, &operand(&y)));
    step(&mut || device.decode(&y));
    // Nothing was left half done.
    device.matmul(&operand(&x), 1, false, None, &operand(&y)).unwrap();
    assert_eq!(machine.read(&y)[..rows * 4], first[..rows * 4]);
    assert!(refusals > 20, "{refusals}");
}
