//! What entropy coding of files gives, on trained projections and on a smooth matrix, and how fast it is undone.
//!
//! ```sh
//! cargo run --release --features cli --example entropy -- [MODEL_DIR]
//! ```
//!
//! `memory` are the bits per weight of the terms as they are, which products read, `file` those of the payload. Sizes and
//! errors are over all projections together. Speeds are of one thread, and of the bytes as they are in memory.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_rbe::codec::Matrix;
use candle_rbe::codec::matrix::Orientation;
use candle_rbe::codec::term::sparse::FORMATS;
use candle_rbe::codec::term::{Sparse, Term};
use candle_rbe::{Budget, Encoder, EncoderConfig, Rate, RbeTensor, TermChoice};
use std::time::Instant;

/// Sizes and errors of several matrices.
#[derive(Default)]
struct Sum {
    weights: f64,
    plain: f64,
    coded: f64,
    squared_error: f64,
    energy: f64,
}

impl Sum {
    fn of(encoder: &Encoder, matrices: &[Tensor]) -> Result<Self> {
        let mut sum = Self::default();
        for matrix in matrices {
            let tensor = encoder.encode(matrix)?;
            let energy = f64::from(matrix.sqr()?.sum_all()?.to_scalar::<f32>()?);
            sum.weights += matrix.elem_count() as f64;
            sum.plain += tensor.plain_size_in_bytes() as f64;
            sum.coded += tensor.size_in_bytes() as f64;
            sum.squared_error += tensor.relative_error().powi(2) * energy;
            sum.energy += energy;
        }
        Ok(sum)
    }

    fn print(&self, name: &str) {
        println!(
            "{name:<34} {:>7.3} {:>7.3} {:>7.1} % {:>10.4} %",
            8.0 * self.plain / self.weights,
            8.0 * self.coded / self.weights,
            100.0 * (1.0 - self.coded / self.plain),
            100.0 * (self.squared_error / self.energy).sqrt()
        );
    }
}

/// The same matrix with its sparse coefficients in every format that can hold them.
fn formats(matrix: &Matrix) -> Vec<(String, Matrix)> {
    let [Term::Sparse(sparse)] = matrix.terms() else { return vec![] };
    let layout = matrix.layout();
    let entries: Vec<_> = layout.iter().map(|block| sparse.entries(block)).collect();
    let with = |format| {
        let term = Sparse::pack(layout, format, &entries).ok()?;
        let matrix = matrix.with_terms(vec![Term::Sparse(term)], 0.0);
        Some((format!("{format:?}"), matrix))
    };
    FORMATS.into_iter().filter_map(with).collect()
}

fn row(name: &str, matrix: &Matrix) {
    let (plain, coded) = (matrix.plain_size_in_bytes(), matrix.size_in_bytes());
    let saved = 100.0 * (1.0 - coded as f64 / plain as f64);
    println!("{name:<34} {plain:>9} {coded:>9} {saved:>7.1} %");
}

/// Seconds of the fastest of several runs.
fn seconds<T>(mut run: impl FnMut() -> Result<T>) -> Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..7 {
        let start = Instant::now();
        std::hint::black_box(run()?);
        least = least.min(start.elapsed().as_secs_f64());
    }
    Ok(least)
}

fn speed(name: &str, tensor: &RbeTensor) -> Result<()> {
    let matrix = tensor.to_matrix()?;
    let (coded, plain) = (matrix.to_bytes(Orientation::Matrix), matrix.to_plain_bytes(Orientation::Matrix));
    let speed = |seconds: f64| plain.len() as f64 / seconds / 1e6;
    println!(
        "{name:<34} {:>9.0} {:>9.0} {:>9.0} {:>9.0} {:>9.0}",
        speed(seconds(|| Ok(Matrix::from_bytes(&coded)?))?),
        speed(seconds(|| Ok(Matrix::from_bytes(&plain)?))?),
        speed(seconds(|| Ok(RbeTensor::from_bytes(&coded)?))?),
        speed(seconds(|| Ok(RbeTensor::from_bytes(&plain)?))?),
        speed(seconds(|| Ok(matrix.to_bytes(Orientation::Matrix)))?),
    );
    Ok(())
}

fn main() -> Result<()> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/models/llama-books");
    let dir = std::env::args().nth(1).unwrap_or_else(|| default.to_owned());
    let model = candle_core::safetensors::load(format!("{dir}/model.safetensors"), &Device::Cpu)?;
    let mut names: Vec<&String> = model.keys().collect();
    names.sort();
    let projection = |name: &&&String| {
        ["_proj.weight", "c_attn.weight", "c_fc.weight"].iter().any(|end| name.ends_with(end))
    };
    let projections: Vec<Tensor> = names
        .iter()
        .filter(projection)
        .map(|name| model[*name].to_dtype(DType::F32))
        .collect::<candle_core::Result<_>>()?;

    println!("{:<34} {:>7} {:>7} {:>9} {:>12}", "projections", "memory", "file", "saved", "rel. error");
    for (term, name, rates) in [
        (TermChoice::Trellis, "trellis", &[2.02, 3.02, 3.52, 4.02, 5.02, 6.02][..]),
        (TermChoice::Planes, "planes", &[2.02, 3.02, 3.52, 4.02, 5.02, 6.02, 7.02, 8.02]),
    ] {
        for (budget, counted) in [(Budget::Memory, "memory"), (Budget::File, "file")] {
            if term == TermChoice::Trellis && budget == Budget::File {
                continue;
            }
            for &bits in rates {
                let config = EncoderConfig { term, budget, ..Rate::BitsPerWeight(bits).into() };
                Sum::of(&Encoder::new(config)?, &projections)?
                    .print(&format!("{name}, {bits} bits of {counted}"));
            }
        }
    }

    let (rows, cols) = (512usize, 256usize);
    let smooth = |n: usize| {
        let (y, x) = ((n / cols) as f32 / rows as f32, (n % cols) as f32 / cols as f32);
        (4.0 * y + 2.0 * x).sin()
            + 0.5 * (3.0 * x - 5.0 * y).cos()
            + (-6.0 * ((y - 0.4).powi(2) + (x - 0.6).powi(2))).exp()
    };
    let field =
        Tensor::from_vec((0..rows * cols).map(smooth).collect::<Vec<f32>>(), (rows, cols), &Device::Cpu)?;
    println!("\n{:<34} {:>9} {:>9} {:>9}", "sparse, bytes", "plain", "coded", "saved");
    for k in [64, 200] {
        let config = EncoderConfig {
            term: TermChoice::Sparse,
            basis: Some(false),
            signs: Some(false),
            ..Rate::Coefficients(k).into()
        };
        let matrix = Encoder::new(config)?.encode(&projections[0])?.to_matrix()?;
        for (format, matrix) in formats(&matrix) {
            row(&format!("projection, K = {k}, {format}"), &matrix);
        }
    }
    for (block, rate) in
        [(128, Rate::Coefficients(50)), (64, Rate::Coefficients(16)), (64, Rate::Coefficients(100))]
    {
        let config =
            EncoderConfig { term: TermChoice::Sparse, block: Some(block), basis: Some(false), ..rate.into() };
        let matrix = Encoder::new(config)?.encode(&field)?.to_matrix()?;
        for (format, matrix) in formats(&matrix) {
            row(&format!("smooth, blocks of {block}, {rate}, {format}"), &matrix);
        }
    }
    for budget in [Budget::Memory, Budget::File] {
        let rate = Rate::BitsPerWeight(8.0 * 1696.0 / (rows * cols) as f64);
        let config = EncoderConfig { term: TermChoice::Sparse, block: Some(128), budget, ..rate.into() };
        let tensor = Encoder::new(config)?.encode(&field)?;
        let error = 100.0 * tensor.relative_error();
        row(&format!("smooth, 1696 bytes of {budget:?}, error {error:.3} %"), &tensor.to_matrix()?);
    }

    println!(
        "\n{:<34} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "4096x4096, MB/s of plain bytes", "read", "plain", "loaded", "plain", "written"
    );
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let weight = Tensor::randn(0f32, 0.02, (4096, 4096), &Device::Cpu)?;
    let settings = [
        (TermChoice::Planes, Rate::BitsPerWeight(3.02), Budget::Memory),
        (TermChoice::Planes, Rate::BitsPerWeight(4.02), Budget::Memory),
        (TermChoice::Planes, Rate::BitsPerWeight(5.02), Budget::File),
        (TermChoice::Planes, Rate::BitsPerWeight(8.02), Budget::Memory),
        (TermChoice::Sparse, Rate::Coefficients(200), Budget::Memory),
    ];
    for (term, rate, budget) in settings {
        let block = Some(64);
        let signs = Some(false);
        let basis = Some(false);
        let config = EncoderConfig { term, budget, block, signs, basis, ..rate.into() };
        let tensor = Encoder::new(config)?.encode(&weight)?;
        pool.install(|| speed(&format!("{term:?}, {rate}, {budget:?}"), &tensor))?;
    }
    Ok(())
}
