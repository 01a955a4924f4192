//! With the feature `cuda`: each `kernels/NAME.cu` to `OUT_DIR/NAME.ptx`. Without it nothing is done.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Any card from compute capability 8.0 on: the driver compiles PTX for its own.
const ARCH: &str = "compute_80";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=kernels");
    for variable in ["NVCC", "CUDA_HOME", "NVCC_CCBIN"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let nvcc = nvcc();
    let mut sources: Vec<_> = std::fs::read_dir("kernels")
        .expect("the folder kernels")
        .map(|entry| entry.expect("an entry of kernels").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    std::thread::scope(|scope| {
        for source in &sources {
            scope.spawn(|| compile(&nvcc, source, &out));
        }
    });
}

/// `NVCC`, the one in `CUDA_HOME`, or the one on the path.
fn nvcc() -> PathBuf {
    let in_home = || env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin").join("nvcc"));
    env::var_os("NVCC").map(PathBuf::from).or_else(in_home).unwrap_or_else(|| "nvcc".into())
}

fn compile(nvcc: &Path, source: &Path, out: &Path) {
    let ptx = out.join(source.with_extension("ptx").file_name().expect("a source has a name"));
    let mut command = Command::new(nvcc);
    command.args(["--ptx", "-O3", "-std=c++17", "-arch", ARCH, "-o"]).args([&ptx, source]);
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
