//! A smooth matrix at 309:1, and the same setting on a trained projection, so that nobody is misled.
//!
//! ```sh
//! cargo run --release --features cli --example smooth
//! ```

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_rbe::{Encoder, EncoderConfig, Rate, TermChoice};

/// Two travelling waves and a hill on the unit square, sampled at 512x256:
/// `sin(4y + 2x) + cos(3x - 5y) / 2 + exp(-6 ((y - 0.4)^2 + (x - 0.6)^2))`.
fn smooth(rows: usize, cols: usize) -> Result<Tensor> {
    let value = |n: usize| {
        let (y, x) = ((n / cols) as f32 / rows as f32, (n % cols) as f32 / cols as f32);
        (4.0 * y + 2.0 * x).sin()
            + 0.5 * (3.0 * x - 5.0 * y).cos()
            + (-6.0 * ((y - 0.4).powi(2) + (x - 0.6).powi(2))).exp()
    };
    Ok(Tensor::from_vec((0..rows * cols).map(value).collect::<Vec<f32>>(), (rows, cols), &Device::Cpu)?)
}

fn main() -> Result<()> {
    const BYTES: f64 = 1696.0;
    let field = smooth(512, 256)?;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/llama-books/model.safetensors");
    let model = candle_core::safetensors::load(path, &Device::Cpu)?;
    let gate = model["model.layers.2.mlp.gate_proj.weight"].narrow(0, 0, 512)?.to_dtype(DType::F32)?;

    println!("{:<40} {:>6} {:>9} {:>11}  terms", "512x256 matrix", "bytes", "of F32", "rel. error");
    for (name, matrix) in [("smooth field", &field), ("trained projection (gate_proj, 512 rows)", &gate)] {
        let config = EncoderConfig {
            block: Some(128),
            term: TermChoice::Sparse,
            ..Rate::BitsPerWeight(8.0 * BYTES / matrix.elem_count() as f64).into()
        };
        let compressed = Encoder::new(config)?.encode(matrix)?;
        let (bytes, dense) = (compressed.size_in_bytes(), 4 * matrix.elem_count());
        println!(
            "{name:<40} {bytes:>6} {:>8.0}:1 {:>10.3} %  {}",
            dense as f64 / bytes as f64,
            100.0 * compressed.relative_error(),
            compressed.summary()
        );
    }
    println!(
        "\nThe sparse term is for smooth matrices. Trained projections are noise to it: give them a trellis."
    );
    Ok(())
}
