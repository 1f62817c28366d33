//! Heads that share an embedding's weight, and vocabularies that grew. The expected values are those
//! of the model in training.

use super::support::*;
use candle_core::{DType, Device, Tensor};
use lora::peft::{MergeOptions, MergeReport, merge_checkpoint_with, merged_var_builder_with};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// A directory with a checkpoint and its `config.json`, and an adapter.
struct Pair {
    dir: tempfile::TempDir,
    base: Tensors,
    model: Value,
    adapter: Tensors,
    config: Value,
}

impl Pair {
    /// A tied language model of three tokens.
    fn new() -> Self {
        let model = json!({
            "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true, "vocab_size": 3,
        });
        Self {
            dir: tempfile::tempdir().unwrap(),
            base: Tensors::from([
                (EMBEDDING.into(), weight(3)),
                ("model.fc.weight".into(), tensor(&[2, 2], 1.0)),
            ]),
            model,
            adapter: Tensors::new(),
            config: json!({
                "peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": "none",
            }),
        }
    }

    fn add(mut self, key: &str, tensor: Tensor) -> Self {
        self.adapter
            .insert(format!("base_model.model.{key}"), tensor);
        self
    }

    /// An update of the embedding, of as many tokens.
    fn embedding(self, tokens: usize) -> Self {
        let (a, b) = update(tokens);
        self.add("model.embed_tokens.lora_embedding_A", a)
            .add("model.embed_tokens.lora_embedding_B", b)
    }

    /// The same update of the head.
    fn head(self, tokens: usize) -> Self {
        let (a, b) = update(tokens);
        self.add(
            "lm_head.lora_A.weight",
            b.t().unwrap().contiguous().unwrap(),
        )
        .add(
            "lm_head.lora_B.weight",
            a.t().unwrap().contiguous().unwrap(),
        )
    }

    fn with_base(mut self, name: &str, tensor: Tensor) -> Self {
        self.base.insert(name.into(), tensor);
        self
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        match self.model.get(key).is_some() {
            true => self.model[key] = value,
            false => self.config[key] = value,
        }
        self
    }

    fn base_dir(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn try_merge(&self, options: MergeOptions) -> lora::Result<(Tensors, Value, MergeReport)> {
        let (base, adapter) = (self.base_dir(), self.dir.path().join("adapter"));
        for dir in [&base, &adapter] {
            fs::create_dir_all(dir).unwrap();
        }
        let _ = fs::remove_dir_all(self.out());
        candle_core::safetensors::save(&self.base, base.join("model.safetensors")).unwrap();
        fs::write(base.join("config.json"), self.model.to_string()).unwrap();
        fs::write(adapter.join("adapter_config.json"), self.config.to_string()).unwrap();
        let weights = adapter.join("adapter_model.safetensors");
        candle_core::safetensors::save(&self.adapter, weights).unwrap();
        let options = options.copy_files(true);
        let report = merge_checkpoint_with(&base, &adapter, self.out(), &options)?;
        let merged = load_all(&self.out());
        let (vb, check) =
            merged_var_builder_with(&[&base], &adapter, DType::F32, &Device::Cpu, &options)?;
        assert_eq!(*check.settings(), report.settings);
        for (name, tensor) in &merged {
            assert_eq!(error(&vb.get(tensor.dims(), name)?, tensor), 0.0, "{name}");
        }
        check.finish()?;
        let config = fs::read(self.out().join("config.json")).unwrap();
        Ok((merged, serde_json::from_slice(&config).unwrap(), report))
    }

    #[track_caller]
    fn merge(&self, options: MergeOptions) -> (Tensors, Value) {
        let (merged, config, report) = self.try_merge(options).unwrap();
        let mut expected = self.model.clone();
        for (key, value) in &report.settings {
            expected[key] = value.clone();
        }
        assert_eq!(config, expected);
        (merged, config)
    }

    #[track_caller]
    fn refuse(&self, options: MergeOptions, words: &[&str]) {
        let problem = self.try_merge(options).unwrap_err().to_string();
        for word in words {
            assert!(problem.contains(word), "no `{word}` in: {problem}");
        }
        assert!(!self.out().exists());
    }
}

fn weight(tokens: usize) -> Tensor {
    tensor(&[tokens, 2], -0.5)
}

/// A and B of an embedding.
fn update(tokens: usize) -> (Tensor, Tensor) {
    (tensor(&[1, tokens], 0.75), tensor(&[2, 1], 2.0))
}

/// The weight with the update.
fn updated(weight: &Tensor) -> Tensor {
    let (a, b) = update(weight.dims()[0]);
    (weight + b.matmul(&a).unwrap().t().unwrap()).unwrap()
}

fn options() -> MergeOptions {
    MergeOptions::new()
}

#[track_caller]
fn same(actual: &Tensor, expected: &Tensor) {
    assert!(error(actual, expected) <= 1e-6, "{actual} {expected}");
}

/// Files of PEFT's, against the weights that compute what PEFT's unmerged model does.
#[test]
fn pefts_files() {
    let grown = || options().new_tensors(true);
    for (case, options, rows, is_tied) in [
        ("dora", options().untie(true), 12, false),
        ("grown_embedding", grown().untie(true), 16, false),
        ("grown_head", grown().untie(true), 16, false),
        ("grown", grown(), 16, true),
        ("grown_trained", grown(), 16, false),
        ("gpt2_adapted", options().untie(true), 12, false),
        ("gpt2_trained", options().untie(true), 12, false),
    ] {
        let dir = fixtures().join("tied");
        let base = match case.starts_with("gpt2") {
            true => dir.join("gpt2"),
            false => base("llama_tied", ""),
        };
        let adapter = dir.join(case).join("adapter");
        let out = tempfile::tempdir().unwrap();
        let refused = merge_checkpoint_with(&base, &adapter, out.path(), &MergeOptions::new());
        let problem = refused.unwrap_err().to_string();
        assert_eq!(
            problem.contains("new_tensors"),
            rows == 16,
            "{case}: {problem}"
        );
        let unties = !is_tied && case != "grown_trained";
        assert_eq!(
            problem.contains("MergeOptions::untie"),
            unties,
            "{case}: {problem}"
        );

        let options = options.copy_files(true);
        merge_checkpoint_with(&base, &adapter, out.path(), &options).unwrap();
        let merged = load_all(out.path());
        for (name, expected) in load(dir.join(case).join("expected.safetensors")) {
            match merged.get(&name) {
                Some(merged) => assert!(error(merged, &expected) <= 1e-5, "{case} {name}"),
                None => assert!(is_tied && name == HEAD, "{case} {name}"),
            }
        }
        let before = load_all(&base);
        let added = merged.keys().filter(|name| !before.contains_key(*name));
        assert_eq!(added.count(), usize::from(!is_tied), "{case}");
        let config = fs::read(out.path().join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(
            (&config["vocab_size"], &config["tie_word_embeddings"]),
            (&json!(rows), &json!(is_tied))
        );
    }
}

/// PEFT saves the grown embedding beside its update. The head computed with the grown one.
#[test]
fn a_tied_vocabulary_that_grew() {
    let pair = Pair::new()
        .embedding(4)
        .add("model.embed_tokens.base_layer.weight", weight(4));
    // One error tells both options.
    pair.refuse(
        options(),
        &["MergeOptions::new_tensors", "MergeOptions::untie"],
    );
    pair.refuse(options().untie(true), &["MergeOptions::new_tensors"]);
    pair.refuse(options().new_tensors(true), &["MergeOptions::untie"]);
    let (merged, config) = pair.merge(options().new_tensors(true).untie(true));
    same(&merged[EMBEDDING], &updated(&weight(4)));
    same(&merged[HEAD], &weight(4));
    assert_eq!(
        (&config["vocab_size"], &config["tie_word_embeddings"]),
        (&json!(4), &json!(false))
    );
    let (merged, config) = pair.merge(options().new_tensors(true).keep_tied(true));
    same(&merged[EMBEDDING], &updated(&weight(4)));
    assert!(!merged.contains_key(HEAD));
    assert_eq!(
        (&config["vocab_size"], &config["tie_word_embeddings"]),
        (&json!(4), &json!(true))
    );

    // Only grown, it stays one weight.
    let fc = [
        ("lora_A", tensor(&[1, 2], 1.0)),
        ("lora_B", tensor(&[2, 1], 1.0)),
    ];
    let mut pair = Pair::new().add("model.embed_tokens.weight", weight(4));
    for (part, tensor) in fc {
        pair = pair.add(&format!("model.fc.{part}.weight"), tensor);
    }
    let (merged, config) = pair.merge(options().new_tensors(true));
    same(&merged[EMBEDDING], &weight(4));
    assert!(!merged.contains_key(HEAD));
    assert_eq!(
        (&config["vocab_size"], &config["tie_word_embeddings"]),
        (&json!(4), &json!(true))
    );
}

/// PEFT saves the grown weight under the name of the module that has the update.
#[test]
fn a_tied_vocabulary_that_grew_under_the_heads_name() {
    let pair = Pair::new()
        .head(4)
        .add("lm_head.base_layer.weight", weight(4));
    pair.refuse(
        options(),
        &["MergeOptions::new_tensors", "MergeOptions::untie"],
    );
    let (merged, config) = pair.merge(options().new_tensors(true).untie(true));
    same(&merged[EMBEDDING], &weight(4));
    same(&merged[HEAD], &updated(&weight(4)));
    assert_eq!(config["vocab_size"], 4);
    assert_eq!(config["tie_word_embeddings"], false);
}

/// Trained in full, the grown embedding is a copy: its file must hold the head's rows.
#[test]
fn a_trained_vocabulary_that_grew() {
    let pair = Pair::new()
        .set("modules_to_save", json!(["embed_tokens"]))
        .add("model.embed_tokens.weight", updated(&weight(4)));
    let all = || options().new_tensors(true).untie(true);
    pair.refuse(
        all(),
        &["has 4 rows in the file, `lm_head.weight` 3 in the base"],
    );
    let (merged, config) = pair.add(HEAD, weight(4)).merge(all());
    same(&merged[EMBEDDING], &updated(&weight(4)));
    same(&merged[HEAD], &weight(4));
    assert_eq!(
        (&config["vocab_size"], &config["tie_word_embeddings"]),
        (&json!(4), &json!(false))
    );
}

/// A head in the checkpoint is tied if it equals the embedding.
#[test]
fn a_tied_head_in_the_checkpoint() {
    let stored = || Pair::new().with_base(HEAD, weight(3));
    let expected = updated(&weight(3));
    // The embedding alone, the head alone, and both with one update.
    let pair = stored().embedding(3);
    pair.refuse(
        options(),
        &[
            "`model.embed_tokens.weight` is also the head's",
            "keep_tied",
        ],
    );
    let (merged, config) = pair.merge(options().untie(true));
    same(&merged[EMBEDDING], &expected);
    same(&merged[HEAD], &weight(3));
    assert_eq!(config["tie_word_embeddings"], false);
    let (merged, config) = pair.merge(options().keep_tied(true));
    same(&merged[EMBEDDING], &expected);
    same(&merged[HEAD], &expected);
    assert_eq!(config["tie_word_embeddings"], true);

    let pair = stored().head(3);
    pair.refuse(
        options(),
        &[
            "`lm_head.weight` is adapted, but is also",
            "MergeOptions::untie",
        ],
    );
    let (merged, config) = pair.merge(options().untie(true));
    same(&merged[EMBEDDING], &weight(3));
    same(&merged[HEAD], &expected);
    assert_eq!(config["tie_word_embeddings"], false);

    let pair = stored().embedding(3).head(3);
    let (merged, config) = pair
        .set("ensure_weight_tying", json!(true))
        .merge(options());
    same(&merged[EMBEDDING], &expected);
    same(&merged[HEAD], &expected);
    assert_eq!(config["tie_word_embeddings"], true);
}

/// Where the two differ, or the flag is false, each has its own update.
#[test]
fn a_head_of_its_own_in_the_checkpoint() {
    let other = tensor(&[3, 2], 7.0);
    for (head, flag) in [(&other, true), (&other, false), (&weight(3), false)] {
        let pair = Pair::new()
            .with_base(HEAD, head.clone())
            .set("tie_word_embeddings", json!(flag))
            .embedding(3);
        let (merged, config) = pair.merge(options());
        same(&merged[EMBEDDING], &updated(&weight(3)));
        same(&merged[HEAD], head);
        assert_eq!(config["tie_word_embeddings"], false);
    }
}

#[test]
fn an_encoder_is_tied_to_its_masked_head_alone() {
    let name = "embeddings.word_embeddings.weight";
    let mut pair = Pair::new();
    pair.base = Tensors::from([(name.into(), weight(3))]);
    pair.model = json!({"model_type": "bert", "tie_word_embeddings": true});
    let (a, b) = update(3);
    let pair = pair
        .add("embeddings.word_embeddings.lora_embedding_A", a)
        .add("embeddings.word_embeddings.lora_embedding_B", b);
    let (merged, config) = pair.merge(options());
    same(&merged[name], &updated(&weight(3)));
    assert_eq!(config["tie_word_embeddings"], true);

    let pair = pair.with_base("cls.predictions.bias", tensor(&[3], 0.0));
    pair.refuse(options(), &["is also the head's weight"]);
    let (merged, _) = pair.merge(options().untie(true));
    same(&merged["cls.predictions.decoder.weight"], &weight(3));
    // A head that is in the checkpoint and differs is no tied one.
    let pair = pair.with_base("cls.predictions.decoder.weight", tensor(&[3, 2], 7.0));
    let (merged, _) = pair.merge(options());
    same(&merged[name], &updated(&weight(3)));
}

/// PEFT warns and ties nothing where it does not know the names: the file then holds no update of
/// the head.
#[test]
fn a_tie_that_peft_did_not_train() {
    let name = "transformer.wte.weight";
    let gpt = || {
        let mut pair = Pair::new();
        pair.base = Tensors::from([(name.into(), weight(3))]);
        pair.model["architectures"] = json!(["GPT2LMHeadModel"]);
        pair.set("ensure_weight_tying", json!(true))
    };
    let (a, b) = update(3);
    let adapted = gpt()
        .add("transformer.wte.lora_embedding_A", a)
        .add("transformer.wte.lora_embedding_B", b);
    let trained = gpt()
        .set("modules_to_save", json!(["wte"]))
        .add(name, updated(&weight(3)));
    for pair in [adapted, trained] {
        pair.refuse(
            options(),
            &["`transformer.wte.weight` is also the head's weight"],
        );
        let (merged, config) = pair.merge(options().untie(true));
        same(&merged[name], &updated(&weight(3)));
        same(&merged[HEAD], &weight(3));
        assert_eq!(config["tie_word_embeddings"], false);
    }
}

/// With DoRA, the embedding has a magnitude for each column, the head one for each row: two weights.
#[test]
fn a_tie_with_magnitudes() {
    let (columns, rows) = (tensor(&[2], 3.0), tensor(&[3], 5.0));
    let pair = Pair::new()
        .embedding(3)
        .head(3)
        .set("ensure_weight_tying", json!(true))
        .set("use_dora", json!(true))
        .add("model.embed_tokens.lora_magnitude_vector", columns.clone())
        .add("lm_head.lora_magnitude_vector", rows.clone());
    pair.refuse(options(), &["MergeOptions::untie"]);
    pair.refuse(options().keep_tied(true), &["MergeOptions::untie"]);
    let (merged, config) = pair.merge(options().untie(true));
    let sum = updated(&weight(3));
    let norms = |dim| sum.sqr().unwrap().sum_keepdim(dim).unwrap().sqrt().unwrap();
    let columns = columns.reshape((1, 2)).unwrap().div(&norms(0)).unwrap();
    let rows = rows.reshape((3, 1)).unwrap().div(&norms(1)).unwrap();
    same(&merged[EMBEDDING], &sum.broadcast_mul(&columns).unwrap());
    same(&merged[HEAD], &sum.broadcast_mul(&rows).unwrap());
    assert_eq!(config["tie_word_embeddings"], false);
}

/// The settings of a text model may stand apart.
#[test]
fn settings_go_where_they_are() {
    let mut pair = Pair::new()
        .embedding(4)
        .add("model.embed_tokens.base_layer.weight", weight(4));
    pair.model = json!({
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"vocab_size": 3, "hidden_size": 2},
    });
    let (_, config, _) = pair
        .try_merge(options().new_tensors(true).untie(true))
        .unwrap();
    let expected = json!({
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"vocab_size": 4, "hidden_size": 2},
        "tie_word_embeddings": false,
    });
    assert_eq!(config, expected);
}
