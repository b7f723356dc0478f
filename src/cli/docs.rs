//! Shell completions and manual pages, made from the command line's own definition.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::{Failure, exit};

/// Print a completion script for a shell
#[derive(Args)]
pub struct Completions {
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), "envelopefs", &mut script);
        std::io::stdout().write_all(&script).map_err(|e| Failure::new(exit::FAILURE, e.to_string()))
    }
}

/// Write the manual pages into a directory
#[derive(Args)]
pub struct Man {
    directory: PathBuf,
}

impl Man {
    pub fn run(self) -> Result<(), Failure> {
        let failed = |e: std::io::Error| Failure::new(exit::FAILURE, format!("{}: {e}", self.directory.display()));
        std::fs::create_dir_all(&self.directory).map_err(failed)?;
        clap_mangen::generate_to(super::command(), &self.directory).map_err(failed)
    }
}
