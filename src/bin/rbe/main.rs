//! `rbe`: compressed weights for Candle, on the command line.
//!
//! Results go to standard output, everything else to standard error; the exit status is 0 only on success.

mod bar;
mod bench;
mod blocks;
mod chart;
mod chat;
mod completions;
mod compress;
mod decode;
mod demo;
mod device;
mod encoder;
mod eval;
mod generate;
mod hub;
mod imatrix;
mod inspect;
mod interrupt;
mod language;
mod layers;
mod memory;
mod print;
mod profile;
mod prune;
mod reader;
mod sampling;
mod source;
mod verify;
mod writer;

use candle_rbe::cpu;
use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;
use std::sync::LazyLock;

/// Compress the weights of a model, look into them, and run it on them.
#[derive(Parser)]
#[command(name = "rbe", version, long_version = LONG_VERSION.as_str(), max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What `--version` adds to `-V`: the kernels that this processor runs, the last unless `RBE_CPU` names another.
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    let levels: Vec<_> = cpu::levels().iter().map(|level| level.name()).collect();
    format!("{}\nCPU levels: {}", env!("CARGO_PKG_VERSION"), levels.join(" "))
});

#[derive(Subcommand)]
enum Command {
    Compress(compress::Compress),
    Decode(decode::Decode),
    Inspect(inspect::Inspect),
    Verify(verify::Verify),
    Eval(eval::Eval),
    Generate(generate::Generate),
    Demo(demo::Demo),
    Profile(profile::Profile),
    Bench(bench::Bench),
    Blocks(blocks::Blocks),
    Prune(prune::Prune),
    Imatrix(imatrix::WriteImatrix),
    Completions(completions::Completions),
}

fn main() -> ExitCode {
    let result = run(Cli::parse().command);
    interrupt::has_the_last_word();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    // Said before any work, and whatever the command is.
    candle_rbe::cpu::requested_level()?;
    match command {
        Command::Compress(command) => command.run(),
        Command::Decode(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Verify(command) => command.run(),
        Command::Eval(command) => command.run(),
        Command::Generate(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Profile(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Blocks(command) => command.run(),
        Command::Prune(command) => command.run(),
        Command::Imatrix(command) => command.run(),
        Command::Completions(command) => command.run(Cli::command()),
    }
}
