//! `lora combine`: several adapters into one.

use crate::shell::common::Common;
use crate::shell::output::{Folder, Output};
use crate::shell::table::{Table, percent, plural};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use lora::peft::{combine_files, import};
use lora::{Combination, CombineOptions, MajoritySign};
use std::path::PathBuf;

/// The options.
#[derive(Debug, Args)]
#[command(after_help = "\
The rules are those of PEFT's add_weighted_adapter. cat is exactly the weighted sum, with the sum of the
ranks; svd is its best approximation of one rank. The rules without svd in their names work on A and on B
apart, for adapters of one rank. ties, dare and magnitude-prune need --density. What DoRA changes depends on
the base, and is no such sum: `lora merge` each of these into the base, `lora extract` a plain adapter from
the base and the result, and combine those.")]
pub struct Options {
    /// Two adapters or more, of PEFT or another format as for `lora convert`, and at the end the
    /// folder to write
    #[arg(num_args = 2.., required = true, value_name = "ADAPTER.. OUT")]
    paths: Vec<PathBuf>,
    /// A weight for each adapter, in their order [default: 1 for each]
    #[arg(
        long,
        value_name = "NUMBERS",
        value_delimiter = ',',
        allow_negative_numbers = true
    )]
    weights: Vec<f64>,
    /// How the adapters become one
    #[arg(long, value_enum, default_value = "svd")]
    rule: Rule,
    /// Rank of the rules with svd [default: the largest of the adapters]
    #[arg(long, value_name = "N")]
    rank: Option<usize>,
    /// Share of the values that ties, dare and magnitude-prune keep: above 0 and at most 1
    #[arg(long, value_name = "SHARE")]
    density: Option<f64>,
    /// Whose sign wins in ties and dare-ties
    #[arg(long, value_enum, default_value = "total")]
    sign: Sign,
    /// For the rules with svd: clip the values of A and B at this quantile of theirs
    #[arg(long, value_name = "SHARE")]
    clamp: Option<f64>,
    /// What dare draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Rule {
    Linear,
    Cat,
    Svd,
    Ties,
    #[value(alias = "ties_svd")]
    TiesSvd,
    #[value(alias = "dare_linear")]
    DareLinear,
    #[value(alias = "dare_ties")]
    DareTies,
    #[value(alias = "dare_linear_svd")]
    DareLinearSvd,
    #[value(alias = "dare_ties_svd")]
    DareTiesSvd,
    #[value(alias = "magnitude_prune")]
    MagnitudePrune,
    #[value(alias = "magnitude_prune_svd")]
    MagnitudePruneSvd,
}

impl From<Rule> for Combination {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Linear => Self::Linear,
            Rule::Cat => Self::Cat,
            Rule::Svd => Self::Svd,
            Rule::Ties => Self::Ties,
            Rule::TiesSvd => Self::TiesSvd,
            Rule::DareLinear => Self::DareLinear,
            Rule::DareTies => Self::DareTies,
            Rule::DareLinearSvd => Self::DareLinearSvd,
            Rule::DareTiesSvd => Self::DareTiesSvd,
            Rule::MagnitudePrune => Self::MagnitudePrune,
            Rule::MagnitudePruneSvd => Self::MagnitudePruneSvd,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sign {
    /// That of the sum of the values
    Total,
    /// That of most values
    Frequency,
}

/// Writes the adapter.
pub fn run(options: &Options) -> Result<()> {
    options.common.start()?;
    let Some((out, adapters)) = options.paths.split_last() else {
        bail!("name adapters, and a folder to write");
    };
    options.output.check(out)?;
    let weights = match options.weights.as_slice() {
        [] => vec![1.0; adapters.len()],
        weights if weights.len() == adapters.len() => weights.to_vec(),
        weights => bail!(
            "--weights has {} for {}: name one each",
            plural(weights.len(), "number"),
            plural(adapters.len(), "adapter")
        ),
    };
    let mut asked =
        CombineOptions::default()
            .seed(options.seed)
            .majority_sign(match options.sign {
                Sign::Total => MajoritySign::Total,
                Sign::Frequency => MajoritySign::Frequency,
            });
    asked.svd_rank = options.rank;
    asked.density = options.density;
    asked.svd_clamp = options.clamp;
    let read = |path: &PathBuf| Folder::of(path, &import::Options::new());
    let folders = adapters.iter().map(read).collect::<Result<Vec<_>>>()?;
    let paths = folders.iter().map(|folder| folder.path.as_path());
    let report = combine_files(paths.zip(weights), out, options.rule.into(), &asked)?;
    let mut table = Table::new(&["layer", ">adapters", ">rank", ">from the sum"]);
    for layer in &report.layers {
        table.row([
            layer.name.clone(),
            layer.adapters.to_string(),
            layer.rank.to_string(),
            percent(layer.error),
        ]);
    }
    let mut lines = table.lines("");
    let (number, place) = (plural(report.layers.len(), "layer"), out.display());
    lines.extend([
        String::new(),
        match report.error {
            Some(_) => format!(
                "{number} written to {place}; {} from the weighted sum of the updates",
                percent(report.error)
            ),
            None => format!("{number} written to {place}"),
        },
    ]);
    options.common.result(&report, lines.join("\n"))
}
