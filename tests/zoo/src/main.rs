//! Holds the derive against real models: copies the models of candle-transformers from cargo's
//! registry to `target/zoo`, annotates them by the rules that a newcomer would follow, compiles them,
//! runs what can run at a tiny size, and prints a table. What the rules do not say is in `attributes.txt`
//! and `swaps.txt`.
//!
//! ```text
//! cargo run --release -p lora-zoo
//! cargo run --release -p lora-zoo -- --only bert,t5 --errors
//! ```

mod annotate;
mod attributes;
mod check;
mod runs;
mod sources;
mod swaps;
mod workspace;

use annotate::{Model, Place, field_at};
use anyhow::Result;
use attributes::Attributes;
use check::{Failure, check};
use clap::Parser;
use sources::{Group, Sources};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use swaps::Swaps;
use workspace::Workspace;

/// Annotates, compiles and runs the models of candle-transformers, and prints what works.
#[derive(Parser)]
struct Args {
    /// Only these models, with commas between.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Print the compiler's errors.
    #[arg(long)]
    errors: bool,
    /// Only run the models, as the last call annotated them.
    #[arg(long)]
    again: bool,
}

/// What became of a group.
struct Outcome {
    group: Group,
    text: BTreeMap<PathBuf, String>,
    skipped: BTreeSet<Place>,
    /// How many types derive. None do where a model is made of closures.
    derived: usize,
    /// The errors that are left after the rules; none if the model compiles.
    naive: Vec<Failure>,
    /// The same with the attributes beyond the rules.
    attributed: Vec<Failure>,
    /// The same with paths of types swapped for those of the library.
    swapped: Vec<Failure>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let project = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()?;
    let sources = Sources::find()?;
    let workspace = Workspace::create(&project)?;
    if args.again {
        return runs::again(&workspace, &args.only);
    }
    let more = Attributes::parse(include_str!("../attributes.txt"))?;
    let swaps = Swaps::parse(include_str!("../swaps.txt"))?;

    let mut outcomes = Vec::new();
    for group in sources.groups()? {
        if !args.only.is_empty() && !args.only.contains(&group.name) {
            continue;
        }
        let text = group
            .files
            .iter()
            .map(|path| Ok((path.clone(), sources.read(path)?)));
        outcomes.push(Outcome {
            text: text.collect::<Result<_>>()?,
            group,
            skipped: BTreeSet::new(),
            derived: 0,
            naive: Vec::new(),
            attributed: Vec::new(),
            swapped: Vec::new(),
        });
    }

    let by_rules = compile(&workspace, &mut outcomes, &Attributes::default())?;
    for (outcome, failures) in outcomes.iter_mut().zip(by_rules) {
        outcome.naive = failures.clone();
        outcome.attributed = failures.clone();
        outcome.swapped = failures;
    }
    let (mut concerned, rest): (Vec<_>, Vec<_>) = outcomes
        .into_iter()
        .partition(|outcome| more.concern(outcome.group.files.iter().map(PathBuf::as_path)));
    let with_more = compile(&workspace, &mut concerned, &more)?;
    for (outcome, failures) in concerned.iter_mut().zip(with_more) {
        outcome.attributed = failures.clone();
        outcome.swapped = failures;
    }
    let (mut concerned, rest): (Vec<_>, Vec<_>) = concerned
        .into_iter()
        .chain(rest)
        .partition(|outcome| swaps.concern(outcome.group.files.iter()));
    for outcome in &mut concerned {
        swaps.apply(&mut outcome.text)?;
        // What the compiler said of candle's types does not hold of the library's.
        outcome.skipped.clear();
    }
    let with_swaps = compile(&workspace, &mut concerned, &more)?;
    for (outcome, failures) in concerned.iter_mut().zip(with_swaps) {
        outcome.swapped = failures;
    }
    let mut outcomes: Vec<_> = concerned.into_iter().chain(rest).collect();
    outcomes.sort_by(|a, b| a.group.name.cmp(&b.group.name));
    report(&outcomes, args.errors);
    let compile = outcomes.iter().filter(|outcome| outcome.swapped.is_empty());
    runs::run(&workspace, compile.map(|outcome| &*outcome.group.name))
}

/// Compiles all, and skips fields where the compiler says so, until it says so no more. Returns the
/// errors that are left.
fn compile(
    workspace: &Workspace,
    outcomes: &mut [Outcome],
    more: &Attributes,
) -> Result<Vec<Vec<Failure>>> {
    let mut open: Vec<usize> = (0..outcomes.len()).collect();
    let mut left = vec![Vec::new(); outcomes.len()];
    while !open.is_empty() {
        let mut annotated = BTreeMap::new();
        for &index in &open {
            let outcome = &outcomes[index];
            let model = Model {
                files: &outcome.text,
                skipped: &outcome.skipped,
                more,
            };
            let (files, derived) = model.annotate()?;
            workspace.write(&outcome.group, &files)?;
            outcomes[index].derived = derived;
            annotated.insert(index, files);
        }
        let names: Vec<_> = open
            .iter()
            .map(|&index| outcomes[index].group.name.clone())
            .collect();
        let mut failures = check(workspace, &names)?;
        let mut again = Vec::new();
        for (index, files) in annotated {
            let outcome = &mut outcomes[index];
            let errors = failures.remove(&outcome.group.name).unwrap_or_default();
            let before = outcome.skipped.len();
            for error in &errors {
                outcome.skipped.extend(place(&outcome.group, error, &files));
            }
            left[index] = errors;
            if outcome.skipped.len() > before {
                again.push(index);
            }
        }
        open = again;
    }
    Ok(left)
}

/// The field that an error says to skip. An error may name the type of a field further down: who reads
/// it follows the name.
fn place(group: &Group, error: &Failure, files: &BTreeMap<PathBuf, String>) -> Option<Place> {
    let ty = error.skip()?;
    let file = error
        .file
        .strip_prefix(format!("models/{}/src", group.name))
        .ok()?;
    // The compiler counts columns from 1.
    field_at(file, files.get(file)?, (error.line, error.column - 1), ty)
}

fn report(outcomes: &[Outcome], errors: bool) {
    let (models, closures): (Vec<_>, Vec<_>) =
        outcomes.iter().partition(|outcome| outcome.derived > 0);
    let names = closures.iter().map(|outcome| outcome.group.name.as_str());
    let names = names.collect::<Vec<_>>().join(", ");
    println!(
        "{} models, {} of closures: {names}",
        outcomes.len(),
        closures.len()
    );
    let failing = |pick: fn(&Outcome) -> &Vec<Failure>| {
        let names = models.iter().filter(|outcome| !pick(outcome).is_empty());
        let names =
            names.map(|outcome| format!("{} ({})", outcome.group.name, pick(outcome).len()));
        names.collect::<Vec<_>>()
    };
    let naive = failing(|outcome| &outcome.naive);
    let attributed = failing(|outcome| &outcome.attributed);
    let count = models.len();
    println!(
        "compile by rules: {} of {count}; not: {}",
        count - naive.len(),
        naive.join(", ")
    );
    println!(
        "compile by attributes: {} of {count}; not: {}",
        count - attributed.len(),
        attributed.join(", ")
    );
    let swapped = failing(|outcome| &outcome.swapped);
    println!(
        "compile with the path of a type swapped, too: {} of {count}; not: {}",
        count - swapped.len(),
        swapped.join(", ")
    );
    if errors {
        for outcome in outcomes {
            for failure in &outcome.swapped {
                println!("== {} {}", outcome.group.name, failure.rendered);
            }
        }
    }
}
