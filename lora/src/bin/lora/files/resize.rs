//! `lora resize`: an adapter of another rank.

use crate::files::rank::Rank;
use crate::shell::common::Common;
use crate::shell::output::{Folder, Output};
use crate::shell::table::{Table, percent, plural};
use anyhow::{Result, bail};
use clap::Args;
use lora::peft::{import, resize};
use std::path::PathBuf;

/// The options.
#[derive(Debug, Args)]
pub struct Options {
    /// The adapter: a folder of PEFT's, or one of another format as for `lora convert`
    adapter: PathBuf,
    /// The folder to write
    out: PathBuf,
    #[command(flatten)]
    rank: Rank,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    common: Common,
}

/// Writes the adapter.
pub fn run(options: &Options) -> Result<()> {
    options.common.start()?;
    options.output.check(&options.out)?;
    let Some(choice) = options.rank.choice() else {
        bail!("say which rank: --rank N, or --energy SHARE for a rank by layer");
    };
    let adapter = Folder::of(&options.adapter, &import::Options::new())?;
    let report = resize(&adapter.path, &options.out, choice)?;
    let mut table = Table::new(&["layer", ">before", ">now", ">lost"]);
    for layer in &report.layers {
        table.row([
            layer.name.clone(),
            layer.before.to_string(),
            layer.after.to_string(),
            percent(Some(layer.error)),
        ]);
    }
    let mut lines = table.lines("");
    lines.extend([
        String::new(),
        format!(
            "{} written to {}; {} of the update is lost",
            plural(report.layers.len(), "layer"),
            options.out.display(),
            percent(Some(report.error))
        ),
    ]);
    options.common.result(&report, lines.join("\n"))
}
