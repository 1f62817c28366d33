//! The pages for those who come from other tools: every flag and command that they name is there.

use crate::files::Folder;
use crate::models::{arg, repository};
use crate::{lora, object, text};
use std::collections::{BTreeMap, BTreeSet};

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

/// The spans of code in a cell.
fn spans(cell: &str) -> BTreeSet<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The objects of `--json` have the keys that the page lists, and no other.
#[test]
fn the_keys_of_every_object_are_on_the_page() {
    let page = include_str!("../../docs/command.md");
    let (_, table) = page.split_once("| command | keys |").unwrap();
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with("| "));
    let rows: Vec<Vec<&str>> = rows.map(|row| row.split(" |").collect()).collect();
    let folder = Folder::new();
    let decoder = repository("tests/fixtures/decoder");
    let model = decoder.join("llama_llama3/model.safetensors");
    let adapter = decoder.join("peft/llama_llama3/adapter");
    let gguf = repository("tests/fixtures/quantised/llama.gguf");
    let of_gguf = repository("tests/fixtures/quantised/adapter");
    let [model, adapter, gguf, of_gguf] = [&model, &adapter, &gguf, &of_gguf].map(|path| arg(path));
    let [merged, small, both, out, file] =
        ["merged.safetensors", "small", "both", "out", "out.gguf"].map(|name| folder.arg(name));
    let merge = ["merge", model, &merged, "--adapter", adapter];
    let runs: [(&str, &[&str]); 10] = [
        ("`lora merge`", &merge),
        (
            "`lora merge` to GGUF",
            &["merge", gguf, &file, "--adapter", of_gguf],
        ),
        ("`lora inspect` of an adapter", &["inspect", adapter]),
        ("`lora inspect` of a checkpoint", &["inspect", model]),
        (
            "`lora extract`",
            &["extract", model, &merged, &out, "--rank=2"],
        ),
        ("`lora resize`", &["resize", adapter, &small, "--rank=1"]),
        ("`lora combine`", &["combine", adapter, &small, &both]),
        ("`lora diff` of adapters", &["diff", adapter, &small]),
        ("`lora diff` of checkpoints", &["diff", model, &merged]),
        (
            "`lora convert`",
            &["convert", adapter, &folder.arg("mlx"), "--to=mlx-lm"],
        ),
    ];
    assert_eq!(rows.len(), runs.len());
    for (name, args) in runs {
        let row = rows.iter().find(|row| row[0] == format!("| {name}"));
        let row = row.unwrap_or_else(|| panic!("no row of {name}"));
        let mut command = lora(args.iter().copied());
        command.arg("--json");
        let found = object(command);
        let keys = |value: &serde_json::Value| -> BTreeSet<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let listed = |cell: &str| -> BTreeSet<String> {
            spans(cell).into_iter().map(String::from).collect()
        };
        assert_eq!(keys(&found), listed(row[1]), "{name}");
        let lists = ["layers", "tensors", "adapters"].map(|key| &found[key][0]);
        if let Some(entry) = lists.iter().find(|entry| entry.is_object()) {
            assert_eq!(keys(entry), listed(row[2]), "{name}");
        }
    }
}
