//! The pages for those who come from other tools: every flag and command that they name is there.

use crate::{lora, text};
use std::collections::BTreeMap;

const PAGES: [&str; 2] = [
    include_str!("../../docs/coming-from-mlx-lm.md"),
    include_str!("../../docs/coming-from-trainer.md"),
];

fn help(command: &str) -> String {
    let output = lora([command, "--help"]).assert().success();
    text(&output.get_output().stdout)
}

/// The spans of code in the second cell of the tables' rows, where this library's side stands.
fn ours(page: &str) -> Vec<&str> {
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let cells = rows.filter_map(|row| row.split(" | ").nth(1));
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn every_flag_of_the_pages_is_there() {
    let mut helps = BTreeMap::new();
    let mut flags = 0;
    for span in PAGES.into_iter().flat_map(ours) {
        let mut words = span.split_whitespace();
        let command = match words.next() {
            Some("lora") => words.next().unwrap(),
            Some(word) if word.starts_with("--") => "train",
            _ => continue,
        };
        let help = helps.entry(command).or_insert_with(|| help(command));
        for flag in span
            .split_whitespace()
            .filter(|word| word.starts_with("--"))
        {
            flags += 1;
            let known = [" ", ",", "\n", "["].map(|end| help.contains(&format!("{flag}{end}")));
            assert!(
                known.contains(&true),
                "`lora {command}` has no {flag} ({span})"
            );
        }
    }
    assert!(
        flags > 50,
        "{flags} flags are too few: are the tables read?"
    );
}
