//! Everything there is to know of this crate on a CUDA card, in one command: does each operation agree with the CPU, do
//! GPT-2 and LLaMA, and how fast are products beside Candle's own.
//!
//! ```sh
//! cargo run --release --features cuda --example gpu -- MODELS OUT [agreement|models|speed ..]
//! ```
//!
//! `MODELS` is this repository's folder `models`, `OUT` a folder for `gpu.json` and `gpu.md`. The built program needs
//! neither Rust nor a network: carry it, the folder and CUDA's libraries (cudart, cublas, curand) to the machine that has
//! the card. It ends with an error where anything disagrees.

mod agreement;
mod models;
mod speed;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use candle_rbe::archive::Stage;
use serde::Serialize;
use std::path::PathBuf;
use std::process::Command;

/// One comparison.
#[derive(Serialize)]
struct Check {
    what: String,
    error: f64,
    bound: f64,
}

impl Check {
    /// `|ours - exact| / |exact|`; NaN is no agreement.
    fn new(what: String, ours: &Tensor, exact: &Tensor, bound: f64) -> Result<Self> {
        use candle_core::DType::F64;
        let on_host = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(F64);
        let (ours, exact) = (on_host(ours)?, on_host(exact)?);
        let squares = |x: Tensor| x.sqr()?.sum_all()?.to_scalar::<f64>();
        let size = squares(exact.clone())?.max(1e-30);
        let error = (squares((ours - exact)?)? / size).sqrt();
        Ok(Self { what, error, bound })
    }

    fn passed(&self) -> bool {
        self.error <= self.bound
    }
}

/// What `gpu.json` holds.
#[derive(Serialize)]
struct Report {
    card: String,
    driver: String,
    date: String,
    checks: Vec<Check>,
    speed: Option<speed::Speed>,
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "gpu MODELS OUT [agreement|models|speed ..]";
    let models = PathBuf::from(args.next().context(usage)?);
    let out = PathBuf::from(args.next().context(usage)?);
    let parts: Vec<String> = args.collect();
    let asked = |part: &str| parts.is_empty() || parts.iter().any(|asked| asked == part);

    // Begun before the work; what an earlier run wrote is replaced.
    std::fs::create_dir_all(&out)?;
    let begin = |name: &str| Stage::file(out.join(name), true, &[&models]);
    let (json_file, markdown_file) = (begin("gpu.json")?, begin("gpu.md")?);

    let device = Device::new_cuda(0).context("no CUDA device")?;
    let mut checks = Vec::new();
    if asked("agreement") {
        agreement::run(&device, &mut checks)?;
    }
    if asked("models") {
        models::run(&models, &device, &mut checks)?;
    }
    let speed = if asked("speed") { Some(speed::run(&device)?) } else { None };

    let report = Report {
        card: query("name"),
        driver: query("driver_version"),
        date: output("date", &["-u", "+%F %H:%M UTC"]),
        checks,
        speed,
    };
    std::fs::write(json_file.path(), serde_json::to_string_pretty(&report)?)?;
    json_file.commit()?;
    let markdown = markdown(&report);
    std::fs::write(markdown_file.path(), &markdown)?;
    markdown_file.commit()?;
    print!("{markdown}");
    let failed = report.checks.iter().filter(|check| !check.passed()).count();
    anyhow::ensure!(failed == 0, "{failed} of {} comparisons disagree", report.checks.len());
    Ok(())
}

fn query(field: &str) -> String {
    output("nvidia-smi", &[&format!("--query-gpu={field}"), "--format=csv,noheader", "--id=0"])
}

/// What a program prints, or `unknown`.
fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success());
    output.map_or_else(|| "unknown".to_owned(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

fn markdown(report: &Report) -> String {
    let Report { card, driver, date, checks, speed } = report;
    let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
    let worst = checks.iter().map(|check| check.error / check.bound).fold(0.0, f64::max);
    let mut text = format!(
        "# {card}, driver {driver}, {date}\n\n{} comparisons with the CPU, {} disagree; the nearest to its bound has {:.0} % \
         of it.\n",
        checks.len(),
        failed.len(),
        100.0 * worst
    );
    for Check { what, error, bound } in failed {
        text += &format!("\n- DISAGREES: {what}: {error:.1e}, allowed {bound:.1e}");
    }
    if let Some(speed) = speed {
        text += &speed.markdown();
    }
    text + "\n"
}
