//! `rbe completions`

use clap::{Args, Command};
use clap_complete::Shell;
use std::io::{Write, stdout};

/// Print a script that completes this program's arguments in a shell
///
/// In Bash: `rbe completions bash > ~/.local/share/bash-completion/completions/rbe`.
#[derive(Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(&self, mut program: Command) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut program, "rbe", &mut script);
        Ok(stdout().lock().write_all(&script)?)
    }
}
