//! With the feature `cuda`: each `kernels/NAME.cu` to `OUT_DIR/NAME.fatbin`. Without it nothing is done.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the kernels ask for: compute capability 8.0. Its PTX serves every later card, for which the driver compiles it.
const LEAST: &str = "80";
/// Cards that have machine code of their own unless `CUDA_COMPUTE_CAP` names one, so that nothing is compiled when a process begins:
/// A100, RTX 30, RTX 40 and L4, H100 and H200.
const CARDS: [&str; 4] = ["80", "86", "89", "90"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=kernels");
    for variable in ["NVCC", "CUDA_HOME", "NVCC_CCBIN", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let nvcc = nvcc();
    let cards = cards();
    let mut sources: Vec<_> = std::fs::read_dir("kernels")
        .expect("the folder kernels")
        .map(|entry| entry.expect("an entry of kernels").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    std::thread::scope(|scope| {
        for source in &sources {
            scope.spawn(|| compile(&nvcc, &cards, source, &out));
        }
    });
}

/// `NVCC`, the one in `CUDA_HOME`, or the one on the path.
fn nvcc() -> PathBuf {
    let in_home = || env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin").join("nvcc"));
    env::var_os("NVCC").map(PathBuf::from).or_else(in_home).unwrap_or_else(|| "nvcc".into())
}

/// The card of `CUDA_COMPUTE_CAP`, which Candle's kernels are built for too, or all.
fn cards() -> Vec<String> {
    let named = env::var("CUDA_COMPUTE_CAP").ok().filter(|cap| !cap.is_empty());
    let Some(named) = named else { return CARDS.map(str::to_owned).to_vec() };
    // `8.9` or `89`; a letter after it asks for what these kernels do not use.
    let digits: String = named.chars().filter(char::is_ascii_digit).collect();
    let is_enough = digits.parse::<u32>().is_ok_and(|cap| cap >= 80);
    assert!(
        is_enough,
        "CUDA_COMPUTE_CAP is {named:?}; the kernels need a card of compute capability {LEAST} or later"
    );
    vec![digits]
}

fn compile(nvcc: &Path, cards: &[String], source: &Path, out: &Path) {
    let fatbin = out.join(source.with_extension("fatbin").file_name().expect("a source has a name"));
    let mut command = Command::new(nvcc);
    command.args(["--fatbin", "-O3", "-std=c++17", "--threads=0"]);
    command.arg(format!("-gencode=arch=compute_{LEAST},code=compute_{LEAST}"));
    command.args(cards.iter().map(|card| format!("-gencode=arch=compute_{card},code=sm_{card}")));
    command.arg("-o").args([&fatbin, source]);
    if let Some(compiler) = env::var_os("NVCC_CCBIN") {
        command.arg("-ccbin").arg(compiler);
    }
    let status = command.status().unwrap_or_else(|error| {
        panic!(
            "the feature `cuda` needs CUDA's compiler, and {} does not run: {error}. Set NVCC to it, or CUDA_HOME to \
             the folder that has bin/nvcc; NVCC_CCBIN names a host compiler",
            nvcc.display()
        )
    });
    assert!(status.success(), "{command:?}: {status}");
}
