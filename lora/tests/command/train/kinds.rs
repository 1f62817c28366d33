//! Each kind of data trains: the loss falls, and the folder holds what it should.

use super::{Place, bard, losses};
use serde_json::{Value, json};

/// Trains, checks that the loss falls, and that the adapter says what it is for.
fn learns(place: &Place, line: &str, task: &str) -> Value {
    learns_to(0.95, place, line, task)
}

/// As [`learns`]; the loss falls to this share of that of the first epoch.
fn learns_to(share: f64, place: &Place, line: &str, task: &str) -> Value {
    let report = place.train(&format!("{line} --output @out"));
    let (first, last) = losses(&report);
    assert!(last < share * first, "{line}: {first} {last}");
    assert_eq!(report["ended"], "finished");
    assert_eq!(place.json("out/adapter_config.json")["task_type"], task);
    for file in [
        "adapter_model.safetensors",
        "README.md",
        "curves.svg",
        "log.jsonl",
        "train.toml",
    ] {
        assert!(place.path(&format!("out/{file}")).is_file(), "{file}");
    }
    let checkpoints = place.path("out/checkpoints").read_dir().unwrap();
    assert!(checkpoints.count() > 0);
    report
}

const LINES: [&str; 4] = [
    "Of Mans First Disobedience, and the Fruit",
    "Of that Forbidden Tree, whose mortal tast",
    "Brought Death into the World, and all our woe,",
    "With loss of Eden, till one greater Man",
];

/// Short runs of the language model.
const SHORT: &str = "--max-length 32 --batch 2 --lr 1e-2";

#[test]
fn texts() {
    let place = Place::new();
    let records = LINES.iter().map(|line| json!({"text": line}));
    let data = place.jsonl("texts.jsonl", records);
    let line = format!(
        "--model {} --data {data} --valid {data} {SHORT} --epochs 6",
        bard()
    );
    let report = learns(&place, &line, "CAUSAL_LM");
    let after = report["after"]["perplexity"].as_f64().unwrap();
    assert!(after < report["before"]["perplexity"].as_f64().unwrap());
    // The folder alone is enough to find the base.
    assert_eq!(
        place.json("out/adapter_config.json")["base_model_name_or_path"],
        bard().as_str()
    );
}

#[test]
fn one_text_by_passages_and_packed_records() {
    let place = Place::new();
    let data = place.write("text.txt", LINES.join("\n").repeat(3));
    let line = format!(
        "--model {} --data {data} {SHORT} --epochs 3 --held-out 0.3",
        bard()
    );
    learns(&place, &line, "CAUSAL_LM");
    let records = LINES.iter().map(|line| json!({"text": &line[..9]}));
    let data = place.jsonl("texts.jsonl", records);
    let line = format!(
        "--model {} --data {data} {SHORT} --epochs 6 --pack --force --held-out 0.25",
        bard()
    );
    let report = learns(&place, &line, "CAUSAL_LM");
    // Three texts of ten tokens are one row.
    assert_eq!(report["steps"], 6);
}

#[test]
fn completions() {
    let place = Place::new();
    let records = LINES
        .iter()
        .map(|line| json!({"prompt": &line[..9], "completion": &line[9..20]}));
    let data = place.jsonl("pairs.jsonl", records);
    let line = format!("--model {} --data {data} {SHORT} --epochs 6", bard());
    learns(&place, &line, "CAUSAL_LM");
}

#[test]
fn conversations() {
    let place = Place::new();
    let model = place.chat_model();
    let records = LINES.iter().map(|line| {
        json!({"messages": [
            {"role": "user", "content": &line[..4]}, {"role": "assistant", "content": &line[4..12]},
        ]})
    });
    let data = place.jsonl("chats.jsonl", records);
    learns(
        &place,
        &format!("--model {model} --data {data} {SHORT} --epochs 6"),
        "CAUSAL_LM",
    );
}

#[test]
fn classes() {
    let place = Place::new();
    let (model, data) = (place.encoder(), place.mails());
    let line =
        format!("--model {model} --data {data} --epochs 12 --batch 4 --lr 2e-2 --tensorboard");
    let report = learns(&place, &line, "SEQ_CLS");
    assert_eq!(place.json("out/classes.json"), json!(["ham", "spam"]));
    assert_eq!(report["after"]["accuracy"], 1.0);
    assert!(place.path("out/events.out.tfevents.lora").is_file());
    let config = place.json("out/adapter_config.json");
    assert_eq!(config["modules_to_save"], json!(["classifier"]));
}

#[test]
fn pairs() {
    let place = Place::new();
    place.encoder();
    let words = ["cheap", "offer", "buy", "meeting", "notes", "agenda"];
    let numbered = |number: usize| format!("{} {}", words[number % 6], words[number / 6 % 6]);
    let other = |number: usize| format!("the {} now", words[number % 6]);
    let matches = (0..12).map(|n| json!({"anchor": numbered(n), "positive": other(n)}));
    place.jsonl("matches.jsonl", matches);
    // Words of the same half belong together.
    let scores = (0..24).map(|n| {
        let (a, b) = (n % 6, (5 * n + n / 6) % 6);
        let score = if (a < 3) == (b < 3) { 1.0 } else { 0.0 };
        json!({"sentence1": words[a], "sentence2": other(b), "score": score})
    });
    place.jsonl("scores.jsonl", scores);
    let triplets = (0..12)
        .map(|n| json!({"anchor": numbered(n), "positive": other(n), "negative": other(n + 1)}));
    place.jsonl("triplets.jsonl", triplets);
    let run = "--model @encoder --epochs 10 --batch 6 --force --target-modules all-linear";
    for (data, more, metric) in [
        ("matches", "--lr 3e-2", "ndcg@10"),
        ("scores", "--lr 3e-2", "spearman"),
        ("scores", "--lr 3e-2 --loss cosine", "pearson"),
        ("triplets", "--lr 3e-2 --loss triplet", "recall@1"),
    ] {
        let line = format!("{run} --data @{data}.jsonl {more}");
        let report = learns(&place, &line, "FEATURE_EXTRACTION");
        assert!(report["after"][metric].is_number(), "{report}");
    }
}

#[test]
fn every_optimiser_and_start_learns() {
    let place = Place::new();
    place.encoder();
    place.mails();
    let run = "--model @encoder --data @mails.jsonl --epochs 16 --batch 8 --force \
               --target-modules query,value,dense --rank 4";
    for more in [
        "--lr 1e-2 --optimizer lora_plus --lora-plus-ratio 4",
        "--lr 3e-2 --optimizer lora_fa",
        "--lr 1e-2 --optimizer riemannian",
        "--lr 2e-2 --init pissa --dora",
        "--lr 2e-2 --init eva --rslora",
        "--lr 2e-2 --init corda",
        "--lr 2e-2 --init lora_ga",
        "--lr 3e-2 --recompute --dropout 0.1 --bias lora_only --weight-decay 0.01 --accumulate 2",
    ] {
        // A random model has no components that would help a start.
        let share = if more.contains("--init") { 0.995 } else { 0.95 };
        learns_to(share, &place, &format!("{run} {more}"), "SEQ_CLS");
    }
}

#[test]
fn a_quantised_base_learns() {
    let place = Place::new();
    let records = LINES.iter().map(|line| json!({"text": line}));
    let data = place.jsonl("texts.jsonl", records);
    let line = format!(
        "--model {} --data {data} {SHORT} --epochs 6 --quantize q8_0",
        bard()
    );
    learns(&place, &line, "CAUSAL_LM");
}
