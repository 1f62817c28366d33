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
    /// The errors that are left at each stage; none if the model compiles.
    failures: [Vec<Failure>; STAGES.len()],
}

/// What an owner does, one after the other: follows the rules, adds attributes, swaps paths of types.
const STAGES: [&str; 3] = [
    "by rules",
    "by attributes",
    "with the path of a type swapped, too",
];

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
            failures: Default::default(),
        });
    }

    let concerned = |outcomes: &[Outcome], is_concerned: &dyn Fn(&Outcome) -> bool| {
        let all = outcomes.iter().enumerate();
        let concerned = all.filter(|(_, outcome)| is_concerned(outcome));
        concerned.map(|(index, _)| index).collect::<Vec<_>>()
    };
    let open = concerned(&outcomes, &|_| true);
    compile(&workspace, &mut outcomes, open, 0, &Attributes::default())?;
    let open = concerned(&outcomes, &|outcome| {
        more.concern(outcome.group.files.iter())
    });
    compile(&workspace, &mut outcomes, open, 1, &more)?;
    let open = concerned(&outcomes, &|outcome| {
        swaps.concern(outcome.group.files.iter())
    });
    for &index in &open {
        swaps.apply(&mut outcomes[index].text)?;
        // What the compiler said of candle's types does not hold of the library's.
        outcomes[index].skipped.clear();
    }
    compile(&workspace, &mut outcomes, open, 2, &more)?;

    report(&outcomes, args.errors);
    let compile = outcomes.iter().filter(|outcome| outcome.last().is_empty());
    runs::run(&workspace, compile.map(|outcome| &*outcome.group.name))
}

impl Outcome {
    /// The errors that are left at the end.
    fn last(&self) -> &[Failure] {
        self.failures.last().map_or(&[], Vec::as_slice)
    }
}

/// Compiles the open groups, and skips fields where the compiler says so, until it says so no more. The
/// errors that are left are those of the stage, and of the later ones if nothing changes there.
fn compile(
    workspace: &Workspace,
    outcomes: &mut [Outcome],
    mut open: Vec<usize>,
    stage: usize,
    more: &Attributes,
) -> Result<()> {
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
            outcome.failures[stage..].fill(errors);
            if outcome.skipped.len() > before {
                again.push(index);
            }
        }
        open = again;
    }
    Ok(())
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
    let count = models.len();
    for (stage, how) in STAGES.iter().enumerate() {
        let failures = models
            .iter()
            .map(|outcome| (&outcome.group.name, outcome.failures[stage].len()));
        let failing = failures.filter(|(_, failures)| *failures > 0);
        let failing: Vec<_> = failing
            .map(|(name, failures)| format!("{name} ({failures})"))
            .collect();
        let names = failing.join(", ");
        println!(
            "compile {how}: {} of {count}; not: {names}",
            count - failing.len()
        );
    }
    if errors {
        for outcome in outcomes {
            for failure in outcome.last() {
                println!("== {} {}", outcome.group.name, failure.rendered);
            }
        }
    }
}
