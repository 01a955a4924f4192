//! What must hold of any bytes that are read as a payload, and of what is made of those that are accepted.

use super::memory::peak_of;
use super::random::Random;
use candle_core::{DType, Device, Tensor};
use candle_rbe::codec::Matrix;
use candle_rbe::{Precision, RbeTensor, ops};

/// Memory that reading may take whatever the payload: workspaces of every thread.
const ROOM: usize = 8 << 20;
/// Bytes of memory for each byte of a payload: coded terms are up to 64 times as large in memory, in two forms at once.
const PER_BYTE: usize = 256;
/// Elements up to which the accepted are decoded, and multiplied.
const DECODED: usize = 1 << 20;
/// Weights and parameters above which sums leave F32.
const LARGEST: f32 = 1e30;
/// Weights below which they fall out of it.
const SMALLEST: f32 = 1e-30;

/// The norm in F64.
fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |largest, value| largest.max(value.abs()))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("an F32 tensor on the CPU")
}

/// `act` in no more memory than `room`.
fn bounded<T>(what: &str, room: usize, act: impl FnOnce() -> T) -> T {
    let (result, peak) = peak_of(act);
    assert!(peak <= room, "{what} takes {peak} bytes; {room} are enough");
    result
}

/// Reads a payload; whether it was accepted.
///
/// # Panics
/// When something does not hold.
pub(crate) fn check(bytes: &[u8], random: &mut Random) -> bool {
    let room = PER_BYTE * bytes.len() + ROOM;
    let Ok(tensor) = bounded("reading", room, || RbeTensor::from_bytes(bytes)) else { return false };
    let matrix = bounded("reading again", room, || tensor.to_matrix().unwrap());
    assert_eq!(tensor.to_bytes().unwrap(), bytes, "the payload is what it was");
    comes_back(&tensor, &matrix, room);
    let elements = tensor.shape().elem_count();
    assert!(elements <= (1 << 24) + (1 << 13) * bytes.len(), "{elements} elements");
    if elements > DECODED {
        return true;
    }
    let weights = decodes(&tensor, &matrix, room + 16 * elements);
    if let (Some(weights), 2) = (weights, tensor.shape().rank()) {
        multiplies(&tensor, &matrix, &weights, room + 16 * elements, random);
    }
    stays_valid(&tensor, random);
    true
}

/// What is written again is the same, in either form.
fn comes_back(tensor: &RbeTensor, matrix: &Matrix, room: usize) {
    let coded = bounded("writing", room, || tensor.to_coded_bytes().unwrap());
    let plain = bounded("writing plainly", room, || tensor.to_plain_bytes().unwrap());
    assert!(coded.len() <= tensor.size_in_bytes() && plain.len() == tensor.plain_size_in_bytes());
    // Others may have coded a term otherwise than this crate does.
    let written = matrix.to_bytes(tensor.orientation());
    for bytes in [&coded, &plain] {
        let again = RbeTensor::from_bytes(bytes).unwrap_or_else(|error| panic!("its own payload: {error}"));
        let other = again.to_matrix().unwrap();
        assert_eq!(again.to_bytes().unwrap(), *bytes);
        assert_eq!(
            (again.orientation(), other.layout(), other.seed()),
            (tensor.orientation(), matrix.layout(), matrix.seed())
        );
        assert_eq!((other.transform(), other.terms()), (matrix.transform(), matrix.terms()));
        assert_eq!(other.relative_error().to_bits(), matrix.relative_error().to_bits());
        assert_eq!(other.to_bytes(again.orientation()), written, "written a second time");
    }
}

/// The weights, where they are numbers that F32 can calculate with: all decoders agree on them.
fn decodes(tensor: &RbeTensor, matrix: &Matrix, room: usize) -> Option<Vec<f32>> {
    let weights = values(&bounded("decoding", room, || tensor.dequantize()).expect("memory for it"));
    let mut in_bands = Vec::with_capacity(weights.len());
    let take = |band: &[f32]| {
        in_bands.extend_from_slice(band);
        Ok(())
    };
    tensor.decode_in_bands(take).expect("memory for bands");
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&in_bands), bits(&weights), "in bands");
    let parameters = largest(&matrix.parameters());
    if !weights.iter().all(|weight| weight.is_finite()) {
        // A sum of numbers near F32's end leaves it; others do not.
        assert!(parameters > LARGEST, "parameters up to {parameters:e} make weights that are not finite");
        return None;
    }
    let reference = matrix.decode();
    let (rows, cols) = (matrix.layout().rows(), matrix.layout().cols());
    let seen = match tensor.is_transposed() {
        true => (0..rows * cols).map(|n| reference[n % rows * cols + n / rows]).collect(),
        false => reference,
    };
    let (error, size) = (distance(&weights, &seen), norm(&weights));
    assert!(error <= 1e-5 * size + 1e-30, "decoders differ by {error:e} of {size:e}");
    // Basis functions whose parameters are larger may cancel in the weights and leave F32 in a product's sums.
    (largest(&weights).max(parameters) <= LARGEST).then_some(weights)
}

/// Products, forward and transposed, and gathered rows are those of the decoded weights.
fn multiplies(tensor: &RbeTensor, matrix: &Matrix, weights: &[f32], room: usize, random: &mut Random) {
    let (rows, cols) = tensor.shape().dims2().expect("a matrix");
    let (top, parameters) = (largest(weights), largest(&matrix.parameters()));
    let transposed = tensor.t().expect("a matrix has a transpose");
    let weight = |row: usize, col: usize| f64::from(weights[row * cols + col]);
    // Basis functions may cancel each other; then what is left is rounding of what there was.
    let cancelled = 1e-6 * 128.0 * f64::from(parameters) * ((rows * cols) as f64).sqrt();
    for (seen, inputs, outputs, flipped) in [(tensor, cols, rows, false), (&transposed, rows, cols, true)] {
        let tokens = random.of(&[1, 3, 17]);
        let x: Vec<f32> = (0..tokens * inputs).map(|_| random.gauss()).collect();
        let input = Tensor::from_slice(&x, (tokens, inputs), &Device::Cpu).expect("an input");
        let room = room + 64 * tokens * (rows + cols);
        let y =
            bounded("a product", room, || ops::matmul(&input, seen, Precision::Exact).expect("a product"));
        let y = values(&y);
        assert!(y.iter().all(|y| y.is_finite()), "{tokens} tokens: an output that is not finite");
        let mut error = 0.0;
        for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact(outputs)) {
            for (output, y) in y.iter().enumerate() {
                let own = |input: usize| if flipped { weight(input, output) } else { weight(output, input) };
                let sum: f64 = (0..inputs).map(|input| own(input) * f64::from(x[input])).sum();
                error += (sum - f64::from(*y)).powi(2);
            }
        }
        let bound = (1e-4 * norm(weights) + cancelled) * norm(&x) / (tokens as f64).sqrt();
        assert!(
            error.sqrt() <= bound + f64::from(SMALLEST),
            "{tokens} tokens: a product differs by {:e}, weights are up to {top:e}: {}",
            error.sqrt(),
            tensor.summary()
        );
        let coarse = ops::matmul(&input, seen, Precision::Int8).expect("a product");
        assert!(values(&coarse).iter().all(|y| y.is_finite()));
    }
    // Rows of a table are rows of the stored matrix.
    let (table, count) = if tensor.is_transposed() { (&transposed, cols) } else { (tensor, rows) };
    let ids: Vec<u32> = (0..4).map(|_| random.below(count) as u32).collect();
    let index = Tensor::from_slice(&ids, ids.len(), &Device::Cpu).expect("ids");
    let gathered = values(&ops::gather(table, &index, DType::F32).expect("rows that there are"));
    let width = gathered.len() / ids.len();
    let mut error = 0.0;
    for (id, row) in ids.iter().zip(gathered.chunks_exact(width)) {
        let own = |col: usize| {
            if tensor.is_transposed() { weight(col, *id as usize) } else { weight(*id as usize, col) }
        };
        error +=
            row.iter().enumerate().map(|(col, value)| (own(col) - f64::from(*value)).powi(2)).sum::<f64>();
    }
    let bound = 1e-4 * norm(weights) + cancelled + f64::from(SMALLEST);
    assert!(error.sqrt() <= bound, "gathered rows differ by {:e}: {}", error.sqrt(), tensor.summary());
}

/// What is made of an accepted tensor is accepted too, or refused with a sentence.
fn stays_valid(tensor: &RbeTensor, random: &mut Random) {
    let parameters = tensor.parameters().expect("a tensor of parameters");
    let factor = random.of(&[0.0, 1e-30, 0.5, 1.0, 3.0, 1e30]);
    let scaled = (&parameters * factor).expect("as many parameters");
    let made = [
        tensor.with_parameters(&parameters),
        tensor.with_parameters(&scaled),
        tensor.first_planes(1 + random.below(8) as u8),
        tensor.prune_coefficients(random.of(&[0.0, 0.5, 1e9, f32::INFINITY]), None).map(|(pruned, _)| pruned),
    ];
    for made in made.into_iter().flatten() {
        if let Err(error) = RbeTensor::from_bytes(made.to_bytes().unwrap()) {
            panic!("{} of {} is refused: {error}", made.summary(), tensor.summary());
        }
    }
}
