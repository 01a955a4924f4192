//! The examples of FORMAT.md are payloads, and decode to the numbers beside them.
//! CI runs this at the best CPU level alone: a payload is decoded by the codec.

use candle_rbe::RbeTensor;
use candle_rbe::codec::{Matrix, matrix::Orientation};

const FORMAT: &str = include_str!("../rbe-core/FORMAT.md");

/// The bytes of a section, and the numbers beside them.
fn parts_of(title: &str) -> (Vec<u8>, Vec<f32>) {
    let (_, example) = FORMAT.split_once(&format!("### {title}\n")).expect("a section of that name");
    let example = example.split("\n### ").next().unwrap_or_default();
    let (before, after) = example.split_once("It decodes to\n").expect("what it decodes to");
    let indented = |text: &'static str| text.lines().filter_map(|line| line.strip_prefix("    "));
    let bytes: Vec<u8> = indented(before)
        .flat_map(|line| line.split("   ").next().unwrap_or_default().split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).expect("two hexadecimal digits"))
        .collect();
    let numbers: Vec<f32> = indented(after)
        .flat_map(str::split_whitespace)
        .map(|number| number.parse().expect("a number"))
        .collect();
    (bytes, numbers)
}

/// The tensor of a section, whose payload is what `write` makes of its matrix.
fn example(title: &str, shape: &[usize], write: fn(&Matrix, Orientation) -> Vec<u8>) {
    let (bytes, numbers) = parts_of(title);
    let tensor = RbeTensor::from_bytes(&bytes).unwrap();
    assert_eq!(tensor.shape().dims(), shape);
    let decoded = tensor.dequantize().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(decoded.len(), numbers.len());
    for (decoded, number) in decoded.iter().zip(&numbers) {
        assert!((decoded - number).abs() < 1e-6, "{decoded:?} {number:?}");
    }
    assert_eq!(tensor.to_bytes().unwrap(), bytes);
    assert_eq!(write(&tensor.to_matrix().unwrap(), tensor.orientation()), bytes);
}

#[test]
fn the_plain_example_decodes_to_the_numbers_beside_it() {
    example("Example", &[2, 3], Matrix::to_plain_bytes);
    // Two coefficients are too few to be smaller when they are coded.
    example("Example", &[2, 3], Matrix::to_bytes);
}

#[test]
fn the_coded_example_decodes_to_the_numbers_beside_it() {
    example("Example, entropy coded", &[32], Matrix::to_bytes);
}

#[test]
fn the_example_of_a_stack_has_its_matrices() {
    use candle_rbe::codec::stack::Stack;

    let (_, section) = FORMAT.split_once("### Stacks\n").expect("a section of that name");
    let header: Vec<u8> = section
        .split("\n## ")
        .next()
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .flat_map(|line| line.split("   ").next().unwrap_or_default().split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).expect("two hexadecimal digits"))
        .collect();
    let (payload, _) = parts_of("Example");
    let bytes = [&header[..], &payload, &payload].concat();
    let stack = Stack::from_bytes(&bytes).unwrap();
    assert_eq!((stack.shape(), stack.parts()), ([2, 2, 3], &[&payload[..], &payload][..]));
    assert_eq!(Stack::to_bytes(2, 3, &[payload.clone(), payload]).unwrap(), bytes);
}
