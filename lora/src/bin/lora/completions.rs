//! `lora completions`: what a shell needs to complete the command, and its manual.

use crate::shell::print::stream;
use anyhow::{Context, Result};
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

/// The options.
#[derive(Debug, Args)]
pub struct Options {
    /// The shell, or man for the manual page
    kind: Kind,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Bash,
    Elvish,
    Fish,
    Man,
    Powershell,
    Zsh,
}

impl Kind {
    fn shell(self) -> Option<Shell> {
        match self {
            Self::Bash => Some(Shell::Bash),
            Self::Elvish => Some(Shell::Elvish),
            Self::Fish => Some(Shell::Fish),
            Self::Man => None,
            Self::Powershell => Some(Shell::PowerShell),
            Self::Zsh => Some(Shell::Zsh),
        }
    }
}

/// Prints them for the command `C`.
pub fn run<C: CommandFactory>(options: &Options) -> Result<()> {
    let (mut command, mut text) = (C::command(), Vec::new());
    match options.kind.shell() {
        Some(shell) => clap_complete::generate(shell, &mut command, "lora", &mut text),
        None => clap_mangen::Man::new(command)
            .render(&mut text)
            .context("cannot write the manual page")?,
    }
    stream(String::from_utf8_lossy(&text))
}
