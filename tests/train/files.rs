//! What a run writes.

use super::{LoraNet, batches, evaluate, loss, model, optimizer, options, weights};
use lora::LoraModule;
use lora::data::BatchOptions;
use lora::optim::load_state;
use lora::train::{Every, ModelCard, TrainOptions, Trained, Trainer};
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

fn run(dir: &Path, options: TrainOptions, stop: bool) -> (Trained, LoraNet) {
    let mut model = model(0.0);
    let trained = Trainer::new(options)
        .output(dir)
        .resume(true)
        .evaluate(evaluate)
        .stop_when(|| stop)
        .run(
            &mut model,
            &mut batches(&BatchOptions::new(2)),
            optimizer,
            loss,
        );
    (trained.unwrap(), model)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = dir.read_dir().unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn lines(dir: &Path) -> Vec<Value> {
    let log = fs::read_to_string(dir.join("log.jsonl")).unwrap();
    assert!(log.ends_with('\n'));
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn the_last_checkpoints_and_the_best_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (trained, model) = run(dir.path(), options().save(Every::Steps(1)).keep(3), false);
    let checkpoints = dir.path().join("checkpoints");
    assert_eq!(
        names(dir.path()),
        ["checkpoints", "curves.svg", "log.jsonl"]
    );
    assert_eq!(
        names(&checkpoints),
        [
            "best.safetensors",
            "step-00000007.safetensors",
            "step-00000008.safetensors",
            "step-00000009.safetensors"
        ]
    );
    let last = checkpoints.join("step-00000009.safetensors");
    assert_eq!(trained.checkpoint.as_ref(), Some(&last));
    // A checkpoint is a training state, too.
    let mut again = super::model(0.0);
    load_state(&last, &mut again, optimizer).unwrap();
    assert_eq!(weights(&again), weights(&model));
}

#[test]
fn each_step_and_each_evaluation_is_a_line() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), options(), false);
    let lines = lines(dir.path());
    let keys =
        |line: &Value| -> Vec<String> { line.as_object().unwrap().keys().cloned().collect() };
    let steps: Vec<&Value> = lines
        .iter()
        .filter(|line| line.get("loss").is_some())
        .collect();
    let numbers: Vec<u64> = steps
        .iter()
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (1..=9).collect::<Vec<u64>>());
    let expected = "step epoch loss lr grad_norm count unit seconds";
    for line in &steps {
        assert_eq!(keys(line).join(" "), expected);
        assert_eq!(line["unit"], "examples");
    }
    let evaluations: Vec<&Value> = lines
        .iter()
        .filter(|line| line.get("loss").is_none())
        .collect();
    assert_eq!(evaluations.len(), 5);
    for line in evaluations {
        assert_eq!(keys(line).join(" "), "step epoch metrics");
        assert!(line["metrics"]["loss"].is_f64());
    }
    let svg = fs::read_to_string(dir.path().join("curves.svg")).unwrap();
    for name in ["loss", "lr", "grad_norm"] {
        assert!(svg.contains(&format!(">{name}</text>")), "{svg}");
    }
}

/// Killed behind its checkpoint, a run takes steps again: the log has each once, and no half line.
#[test]
fn the_log_is_cut_back_to_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let numbers = |dir: &Path| -> Vec<(u64, bool)> {
        let lines = lines(dir);
        let number = |line: &Value| (line["step"].as_u64().unwrap(), line.get("loss").is_some());
        lines.iter().map(number).collect()
    };
    run(&dir.path().join("whole"), options(), false);
    let other = dir.path().join("other");
    for _ in 0..3 {
        run(&other, options(), true);
    }
    let mut log = OpenOptions::new()
        .append(true)
        .open(other.join("log.jsonl"))
        .unwrap();
    let lost = "{\"step\":4,\"epoch\":1,\"loss\":0.5}\n{\"step\":5,\"epo";
    log.write_all(lost.as_bytes()).unwrap();
    run(&other, options(), false);
    assert_eq!(numbers(&other), numbers(&dir.path().join("whole")));
}

#[test]
fn a_card_says_how_an_adapter_was_trained() {
    let dir = tempfile::tempdir().unwrap();
    let (trained, model) = run(&dir.path().join("run"), options(), false);
    let adapter = dir.path().join("adapter");
    model.save_adapter(&adapter).unwrap();
    let card = ModelCard::new("hub/base").task("text-classification");
    let card = card.options(&options()).trained(&trained);
    card.write(&adapter).unwrap();
    let text = fs::read_to_string(adapter.join("README.md")).unwrap();
    for part in [
        "base_model: hub/base\nlibrary_name: peft\npipeline_tag: text-classification\n",
        "tags:\n- base_model:adapter:hub/base\n- lora\n",
        "| length | 3 epochs |\n",
        "| steps | 9 |\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let loss = trained.evaluations.last().unwrap().metrics.get("loss");
    let table = "## Evaluation\n\n| metric | value |\n|---|---|\n";
    let row = format!("{table}| loss | {} |\n", loss.unwrap());
    assert!(text.contains(&row), "{text}");
    // The folder is an adapter all the same.
    super::model(0.0).load_adapter(&adapter).unwrap();
}
