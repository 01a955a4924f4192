//! What a trellis' search takes and gives: relative errors of a Gaussian matrix and weights encoded a second, by bits and by bits of
//! state, on one core.
//!
//! ```sh
//! cargo run --release --example search_speed
//! RBE_CPU=avx2 cargo run --release --example search_speed
//! ```
//!
//! Every choice is given (blocks of 256, signs, no basis, no scales), so that nothing is tried out: the time is that of the transform,
//! of one search and of measuring the error by decoding, as long as a core is at it (on Linux; elsewhere by the clock). The fastest of
//! three runs, alternated over the sizes of states.

use candle_rbe::cpu::level;
use candle_rbe::encode::MatrixRef;
use candle_rbe::{Encoder, EncoderConfig, Rate, Result, TermChoice};
use std::time::Instant;

const ROWS: usize = 512;
const COLS: usize = 256;
const RUNS: usize = 3;
const STATE_BITS: [u8; 5] = [12, 13, 14, 15, 16];

/// Deterministic and Gaussian (Box and Muller 1958).
fn gaussian(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let one = || ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32;
    std::iter::repeat_with(one).take(count).collect()
}

/// Seconds that this thread has had a core, or, where the system does not say it, those since `start`.
fn seconds(start: Instant) -> f64 {
    let said = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = said.split(' ').next().and_then(|first| first.parse::<u64>().ok());
    nanoseconds.map_or(start.elapsed().as_secs_f64(), |nanoseconds| nanoseconds as f64 / 1e9)
}

fn encoder(bits: u8, trellis_state_bits: u8) -> Result<Encoder> {
    Encoder::new(EncoderConfig {
        term: TermChoice::Trellis,
        block: Some(256),
        trellis_state_bits,
        signs: Some(true),
        basis: Some(false),
        scales: false,
        ..Rate::BitsPerWeight(f64::from(bits) + 0.02).into()
    })
}

fn main() -> Result<()> {
    let values = gaussian(ROWS * COLS);
    let weights = MatrixRef::new(&values, ROWS, COLS);
    println!("{:?} on one core; relative error, and millions of weights a second", level());
    print!("bits ");
    STATE_BITS.iter().for_each(|bits| print!("{bits:>9} bits of state"));
    println!();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    for bits in 1..=4 {
        let mut best = [(0.0, f64::INFINITY); STATE_BITS.len()];
        for _ in 0..RUNS {
            for (state_bits, (error, fewest)) in STATE_BITS.into_iter().zip(&mut best) {
                let encoder = encoder(bits, state_bits)?;
                let start = Instant::now();
                let (encoded, taken) = pool.install(|| {
                    let before = seconds(start);
                    (encoder.encode_matrix(weights), seconds(start) - before)
                });
                *error = encoded?.relative_error();
                *fewest = fewest.min(taken);
            }
        }
        print!("{bits:>4} ");
        for (error, fewest) in best {
            print!("{error:>13.5} {:>8.2}", (ROWS * COLS) as f64 / fewest / 1e6);
        }
        println!();
    }
    Ok(())
}
