//! Everything there is to know of this crate on a CUDA card, in one command: does each operation agree with the CPU, do
//! GPT-2 and LLaMA, how fast are products beside Candle's own, and how fast is a text written.
//!
//! ```sh
//! cargo run --release --features cuda --example gpu -- MODELS OUT [agreement|models|speed|text ..] [KEY=WORD ..]
//! ```
//!
//! `MODELS` is this repository's folder `models`, `OUT` a folder for `gpu.json` and `gpu.md`. They are written anew whenever a
//! matrix or a model is done, so that a run which is cut short leaves what it has found. What goes wrong is one failed check, and
//! the rest goes on. `shape=8192x8192`, `form=trellis` and `tokens=1` leave out what is not named so (`form` may be a part of a
//! name). Numbers are drawn from one seed: two runs compare the same.
//!
//! The built program needs neither Rust nor a network: `examples/gpu/pack FOLDER` makes archives of it and the models, for a machine
//! that has the card and CUDA's libraries (cudart, cublas, curand); `examples/gpu/without_card/run` runs it where there is no card, and counts what it
//! asks the driver for. It ends with an error where anything disagrees.

mod agreement;
mod models;
mod noise;
mod speed;
mod text;

use anyhow::{Context, Result, bail};
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
    /// Why there is nothing to compare.
    failure: Option<String>,
}

impl Check {
    /// `max |ours - exact| / size`; NaN is no agreement.
    fn new(what: String, ours: &Tensor, exact: &Tensor, size: f64, bound: f64) -> Result<Self> {
        use candle_core::DType::F64;
        let on_host = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(F64)?.flatten_all()?.to_vec1::<f64>();
        let (ours, exact) = (on_host(ours)?, on_host(exact)?);
        let far = |(a, b): (&f64, &f64)| if (a - b).is_nan() { f64::INFINITY } else { (a - b).abs() };
        let error = ours.iter().zip(&exact).map(far).fold(0.0, f64::max) / size.max(1e-30);
        Ok(Self { what, error, bound, failure: None })
    }

    /// The largest magnitude, as the size of what is compared.
    fn size(x: &Tensor) -> Result<f64> {
        Ok(f64::from(x.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?))
    }

    fn failed(what: String, why: &anyhow::Error) -> Self {
        Self { what, error: f64::INFINITY, bound: 0.0, failure: Some(format!("{why:#}")) }
    }

    fn passed(&self) -> bool {
        self.failure.is_none() && self.error <= self.bound
    }
}

/// What is left out.
#[derive(Default)]
struct Filter {
    parts: Vec<String>,
    shape: Option<String>,
    form: Option<String>,
    tokens: Option<String>,
}

impl Filter {
    fn new(args: impl Iterator<Item = String>) -> Result<Self> {
        let mut filter = Self::default();
        for arg in args {
            match arg.split_once('=') {
                Some(("shape", word)) => filter.shape = Some(word.to_owned()),
                Some(("form", word)) => filter.form = Some(word.to_owned()),
                Some(("tokens", word)) => filter.tokens = Some(word.to_owned()),
                None if ["agreement", "models", "speed", "text"].contains(&&*arg) => filter.parts.push(arg),
                _ => {
                    bail!("{arg}: not agreement, models, speed, text, shape=ROWSxCOLS, form=NAME or tokens=N")
                }
            }
        }
        Ok(filter)
    }

    fn part(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|asked| asked == part)
    }

    fn shape(&self, (rows, cols): (usize, usize)) -> bool {
        self.shape.as_ref().is_none_or(|shape| *shape == format!("{rows}x{cols}"))
    }

    fn form(&self, name: &str) -> bool {
        self.form.as_ref().is_none_or(|form| name.to_lowercase().contains(&form.to_lowercase()))
    }

    fn tokens(&self, tokens: usize) -> bool {
        self.tokens.as_ref().is_none_or(|asked| *asked == tokens.to_string())
    }
}

/// What `gpu.json` holds.
#[derive(Serialize)]
struct Report {
    card: String,
    driver: String,
    date: String,
    /// Whether all of it was done.
    complete: bool,
    checks: Vec<Check>,
    speed: Option<speed::Speed>,
    texts: Vec<text::Written>,
    #[serde(skip)]
    out: PathBuf,
}

impl Report {
    /// Does one thing after another may fail: its failure is a failed check.
    fn attempt(&mut self, what: &str, part: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        if let Err(error) = part(self) {
            eprintln!("{what}: {error:#}");
            self.checks.push(Check::failed(what.to_owned(), &error));
        }
        self.save()
    }

    /// Replaces both files by what is known now.
    fn save(&self) -> Result<()> {
        for (name, text) in [("gpu.json", serde_json::to_string_pretty(self)?), ("gpu.md", markdown(self))] {
            let file = Stage::file(self.out.join(name), true, &[])?;
            std::fs::write(file.path(), text)?;
            file.commit()?;
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "gpu MODELS OUT [agreement|models|speed|text ..] [shape=ROWSxCOLS] [form=NAME] [tokens=N]";
    let models = PathBuf::from(args.next().context(usage)?);
    let out = PathBuf::from(args.next().context(usage)?);
    let filter = Filter::new(args)?;
    std::fs::create_dir_all(&out)?;
    let device = Device::new_cuda(0).context("no CUDA device")?;
    let mut report = Report {
        card: query("name"),
        driver: query("driver_version"),
        date: output("date", &["-u", "+%F %H:%M UTC"]),
        complete: false,
        checks: Vec::new(),
        speed: None,
        texts: Vec::new(),
        out,
    };
    report.save()?;
    if filter.part("agreement") {
        agreement::run(&device, &filter, &mut report)?;
    }
    if filter.part("models") {
        models::run(&models, &device, &mut report)?;
    }
    if filter.part("speed") {
        speed::run(&device, &filter, &mut report)?;
    }
    if filter.part("text") {
        text::run(&device, &filter, &mut report)?;
    }
    report.complete = true;
    report.save()?;
    print!("{}", markdown(&report));
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
    let Report { card, driver, date, complete, checks, speed, texts, .. } = report;
    let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
    let compared = checks.iter().filter(|check| check.bound > 0.0);
    let worst = compared.map(|check| check.error / check.bound).fold(0.0, f64::max);
    let mut text = format!(
        "# {card}, driver {driver}, {date}\n\n{}{} comparisons with the CPU, {} disagree; the nearest to its bound has {:.0} % \
         of it.\n",
        if *complete { "" } else { "NOT COMPLETE. " },
        checks.len(),
        failed.len(),
        100.0 * worst
    );
    for Check { what, error, bound, failure } in failed {
        text += &match failure {
            Some(why) => format!("\n- FAILED: {what}: {why}"),
            None => format!("\n- DISAGREES: {what}: {error:.1e}, allowed {bound:.1e}"),
        };
    }
    if let Some(speed) = speed {
        text += &speed.markdown();
    }
    text += &text::markdown(texts);
    text + "\n"
}
