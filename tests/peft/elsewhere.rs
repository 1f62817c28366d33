//! `fixtures/peft/elsewhere`: adapters as trainers and wrappers write them, by PEFT itself.

use super::models::*;
use super::support::*;
use candle_core::{DType, Module, Tensor};
use candle_nn::{Embedding, Linear};
use lora::peft::{AdapterDir, MergeOptions, merge_checkpoint, merge_checkpoint_with};
use lora::{LoraConfig, LoraModel, LoraModule};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The head shares the embedding's tensor if the weights hold it once.
#[derive(Clone, Debug, LoraModel)]
struct Lm {
    embed_tokens: Embedding,
    fc: Linear,
    lm_head: Linear,
}

forward!(Lm, LoraLm, |self, ids| {
    let xs = ids.apply(&self.embed_tokens)?.apply(&self.fc)?.relu()?;
    xs.apply(&self.lm_head)
});

impl Twin for Lm {
    fn new(weights: &Weights) -> Self {
        let table = weights.get("embed_tokens.weight");
        let head = weights.0.get("lm_head.weight").unwrap_or(&table);
        Self {
            lm_head: Linear::new(head.clone(), None),
            embed_tokens: Embedding::new(table, 6),
            fc: weights.linear("fc"),
        }
    }
}

fn fixture(case: &str) -> Fixture {
    Fixture::new(&format!("elsewhere/{case}"))
}

/// The output of the model, and of the model merged, is PEFT's.
#[track_caller]
fn gives<M: LoraModule<Base: Module> + Module>(model: &M, fixture: &Fixture) {
    let (input, expected) = (fixture.input(), fixture.io.get("output"));
    let name = &fixture.name;
    let output = model.forward(&input).unwrap();
    assert!(error(&output, &expected) <= 1e-5, "{name}");
    let merged = model.to_base().unwrap().forward(&input).unwrap();
    assert!(error(&merged, &expected) <= 1e-5, "{name} merged");
    if let Some(base) = fixture.io.0.get("base_output") {
        assert!(error(base, &expected) > 0.05, "{name} does nothing");
    }
}

/// Every way of loading a directory into a model gives PEFT's output, and so does what is saved.
#[track_caller]
fn loads<T: Twin>(fixture: &Fixture, dir: &AdapterDir) {
    let base = T::new(&fixture.base);
    let mut model = base.with_adapter(dir.clone()).unwrap();
    gives(&model, fixture);
    model.load_adapter(dir.clone()).unwrap();
    gives(&model, fixture);

    let saved = tempfile::tempdir().unwrap();
    model.save_adapter(saved.path()).unwrap();
    let again = AdapterDir::new(saved.path()).grow_vocabulary(true);
    gives(&base.with_adapter(again).unwrap(), fixture);
}

/// As [`loads`], also beside another adapter.
#[track_caller]
fn loads_anywhere<T: Twin>(fixture: &Fixture, dir: &AdapterDir) {
    loads::<T>(fixture, dir);
    let base = T::new(&fixture.base);
    let mut model = base.to_frozen().unwrap();
    model.load_adapter_as("x", dir.clone()).unwrap();
    model.set_active(&["x"]).unwrap();
    model.eval();
    gives(&model, fixture);
    model.hot_swap("x", dir.clone()).unwrap();
    gives(&model, fixture);
}

fn refused<T>(result: lora::Result<T>, words: &[&str]) {
    let problem = result.err().expect("refused").to_string();
    for word in words {
        assert!(problem.contains(word), "no `{word}` in: {problem}");
    }
}

/// The directory, and what reading it tells.
fn heard(dir: impl AsRef<Path>) -> (AdapterDir, Arc<Mutex<Vec<String>>>) {
    let notes = Arc::<Mutex<Vec<String>>>::default();
    let sink = notes.clone();
    let dir = AdapterDir::new(dir).report(move |note| sink.lock().unwrap().push(note.into()));
    (dir, notes)
}

#[test]
fn keys_with_the_adapters_name() {
    for case in ["named", "named_dora", "named_whole"] {
        let fixture = fixture(case);
        loads_anywhere::<Mlp>(&fixture, &fixture.adapter().into());
    }
    let fixture = fixture("named_bare");
    loads_anywhere::<Stack>(&fixture, &fixture.adapter().into());
}

#[test]
fn a_name_in_some_keys_of_every_form() -> Result {
    let names = |key: &str| -> Vec<String> {
        let name =
            |end: &str, named: &str| key.strip_suffix(end).map(|head| format!("{head}{named}"));
        let found = [
            name(".weight", ".french.weight"),
            name(".lora_magnitude_vector", ".lora_magnitude_vector.weight"),
            name(".lora_magnitude_vector", ".lora_magnitude_vector.french"),
            name(".lora_B.bias", ".lora_B.french.bias"),
            name("_embedding_A", "_embedding_A.french"),
            name("_embedding_B", "_embedding_B.french"),
            name("_delta", "_delta.french"),
        ];
        found
            .into_iter()
            .flatten()
            .filter(|_| key.contains("lora_") || key.contains("_delta"))
            .collect()
    };
    fn check<T: Twin>(case: &str, names: &impl Fn(&str) -> Vec<String>) -> Result {
        let fixture = Fixture::new(&format!("forms/{case}"));
        let files = Files::read(&fixture.adapter());
        let mut seen = 0;
        for key in files.weights.0.keys() {
            for named in names(key) {
                let mut files = Files::read(&fixture.adapter());
                files.rename(key, &named);
                let dir = tempfile::tempdir()?;
                files.write(dir.path());
                let model = T::new(&fixture.base).with_adapter(dir.path())?;
                let output = model.forward(&fixture.input())?;
                assert!(
                    error(&output, &fixture.io.get("output.default")) <= 1e-5,
                    "{named}"
                );
                seen += 1;
            }
        }
        assert!(seen > 2, "{case}");
        Ok(())
    }
    check::<Mlp>("linear_dora", &names)?;
    check::<Mlp>("linear_lora_bias", &names)?;
    check::<EmbedNet>("embedding_dora", &names)?;
    check::<EmbedNet>("embedding_tokens", &names)
}

#[test]
fn names_of_two_adapters_are_refused() -> Result {
    let fixture = fixture("named");
    let mut files = Files::read(&fixture.adapter());
    let key = "base_model.model.fc1.lora_A.french.weight";
    files.rename(key, &key.replace("french", "german"));
    let dir = tempfile::tempdir()?;
    files.write(dir.path());
    let words = ["several adapters", "french, german"];
    refused(Mlp::new(&fixture.base).with_adapter(dir.path()), &words);
    let base = fixture.dir.join("base.safetensors");
    let out = dir.path().join("merged.safetensors");
    refused(merge_checkpoint(base, dir.path(), out), &words);
    Ok(())
}

#[test]
fn wrapped_and_compiled_models() {
    for (case, note) in [
        ("compiled", "_orig_mod"),
        ("compiled_inside", "_orig_mod"),
        (
            "wrapped",
            "paths with `module` in the adapter's file have no prefix",
        ),
        (
            "wrapped_regex",
            "paths with `module` in the adapter's file have no prefix",
        ),
    ] {
        let fixture = fixture(case);
        let (dir, notes) = heard(fixture.adapter());
        loads_anywhere::<Stack>(&fixture, &dir);
        let notes = notes.lock().unwrap();
        assert!(
            notes.iter().all(|told| told.contains(note)),
            "{case}: {notes:?}"
        );
        assert!(notes.len() >= 4, "{case}: {notes:?}");
    }
}

/// Merged on disk and in a `VarBuilder`, files of all kinds give the weights that PEFT computes.
#[test]
fn merging_reads_the_same_files() -> Result {
    fn check<T: Twin<Lora: LoraModule<Base: Module>>>(case: &str) -> Result {
        let fixture = fixture(case);
        let temporary = tempfile::tempdir()?;
        let (base, out) = (
            fixture.dir.join("base.safetensors"),
            temporary.path().join("m.safetensors"),
        );
        let dir = AdapterDir::new(fixture.adapter()).report(|_| {});
        merge_checkpoint(&base, dir.clone(), &out)?;
        let merged = T::new(&Weights::read(&out));
        let expected = fixture.io.get("output");
        assert!(
            error(&merged.forward(&fixture.input())?, &expected) <= 1e-5,
            "{case}"
        );
        let device = candle_core::Device::Cpu;
        let (vb, check) = lora::peft::merged_var_builder(&[&base], dir, DType::F32, &device)?;
        for (name, tensor) in Weights::read(&out).0 {
            assert!(error(&vb.get(tensor.dims(), &name)?, &tensor) <= 1e-6);
        }
        check.finish()?;
        Ok(())
    }
    for case in ["named", "named_dora", "named_whole"] {
        check::<Mlp>(case)?;
    }
    for case in [
        "named_bare",
        "compiled",
        "compiled_inside",
        "wrapped",
        "wrapped_regex",
    ] {
        check::<Stack>(case)?;
    }
    for case in ["saved_untied", "saved_target_untied"] {
        check::<Lm>(case)?;
    }
    Ok(())
}

/// A model around the one that was trained.
#[derive(Clone, Debug, LoraModel)]
struct Outer {
    model: Stack,
}

forward!(Outer, LoraOuter, |self, xs| { self.model.forward(xs) });

impl Twin for Outer {
    fn new(weights: &Weights) -> Self {
        Self {
            model: Stack::new(weights),
        }
    }
}

/// Two models of one kind: a path without their names may mean either.
#[derive(Clone, Debug, LoraModel)]
struct Pair {
    left: Stack,
    right: Stack,
}

forward!(Pair, LoraPair, |self, xs| { self.left.forward(xs) });

impl Twin for Pair {
    fn new(weights: &Weights) -> Self {
        Self {
            left: Stack::new(weights),
            right: Stack::new(weights),
        }
    }
}

fn with_prefix(fixture: &Fixture, prefix: &str) -> tempfile::TempDir {
    let mut files = Files::read(&fixture.adapter());
    for key in files.weights.0.clone().into_keys() {
        let bare = key.strip_prefix("base_model.model.").unwrap();
        files.rename(&key, &format!("{prefix}{bare}"));
    }
    let dir = tempfile::tempdir().unwrap();
    files.write(dir.path());
    dir
}

#[test]
fn prefixes_that_moved() {
    let peft = "base_model.model.";
    for case in ["stack", "stack_patterns", "stack_exclude"] {
        let fixture = Fixture::new(case);
        for prefix in ["", "model.", "model.model.", "module.", "_orig_mod.", peft] {
            for front in ["", peft] {
                let dir = with_prefix(&fixture, &format!("{front}{prefix}"));
                let dir = AdapterDir::new(dir.path()).report(|_| {});
                loads_anywhere::<Stack>(&fixture, &dir);
                // Anchored patterns mean one of the two models only.
                if case != "stack_patterns" {
                    loads_anywhere::<Outer>(&fixture, &dir);
                }
            }
        }
    }
}

/// A tool that changes the keys leaves the settings as they were. Only the patterns tell, as the
/// ranks are all the same.
#[test]
fn patterns_of_alpha_find_their_layers_under_moved_prefixes() -> Result {
    let weights = Fixture::new("stack").base;
    let base = Stack::new(&weights);
    let config = LoraConfig::new(2)
        .target_modules(["fc1", "fc2"])
        .alpha_pattern("layers.1.fc1", 20.0)
        .init(lora::Init::Random);
    let mut model = base.to_lora(&config)?;
    model.eval();
    let saved = tempfile::tempdir()?;
    model.save_adapter(saved.path().join("adapter"))?;
    let input = Fixture::new("stack").input();
    let expected = model.forward(&input)?;
    let path = saved.path().join("base.safetensors");
    candle_core::safetensors::save(&weights.0.into_iter().collect(), &path)?;
    for prefix in ["module.", "base_model.model.base_model.model.", ""] {
        let mut files = Files::read(&saved.path().join("adapter"));
        for key in files.weights.0.clone().into_keys() {
            let bare = key.strip_prefix("base_model.model.").unwrap();
            files.rename(&key, &format!("{prefix}{bare}"));
        }
        let dir = tempfile::tempdir()?;
        files.write(dir.path());
        let dir = AdapterDir::new(dir.path()).report(|_| {});
        let output = base.with_adapter(dir.clone())?.forward(&input)?;
        assert!(error(&output, &expected) <= 1e-5, "{prefix}");
        let out = saved.path().join("out.safetensors");
        merge_checkpoint(&path, dir, &out)?;
        let output = Stack::new(&Weights::read(out)).forward(&input)?;
        assert!(error(&output, &expected) <= 1e-5, "{prefix} merged");
    }
    Ok(())
}

#[test]
fn an_ambiguous_path_needs_a_rename() {
    let fixture = Fixture::new("stack");
    let pair = Pair::new(&fixture.base);
    let words = [
        "more than one way",
        "`layers.0.fc1`",
        "`left.layers.0.fc1`, `right.layers.0.fc1` in the model",
        "AdapterDir::new(dir).rename(\"prefix in the file\", \"prefix in the model\")",
    ];
    refused(pair.with_adapter(fixture.adapter()), &words);
    let dir = AdapterDir::new(fixture.adapter())
        .report(|_| {})
        .rename("", "left");
    loads_anywhere::<Pair>(&fixture, &dir);
    let right = AdapterDir::new(fixture.adapter())
        .report(|_| {})
        .rename("", "right");
    let mut model = pair.with_adapter(dir).unwrap();
    refused(
        model.load_adapter(right.clone()),
        &["`right.layers.0.fc1` is a target of the file"],
    );
    model.load_adapter_as("right", right).unwrap();
    let names: Vec<_> = model
        .layer_status()
        .into_iter()
        .map(|layer| layer.name)
        .collect();
    assert!(names.contains(&"right.layers.1.fc2".into()), "{names:?}");
}

#[test]
fn a_file_of_strangers_is_told_apart() -> Result {
    let fixture = Fixture::new("stack");
    let mut files = Files::read(&fixture.adapter());
    for key in files.weights.0.clone().into_keys() {
        files.rename(&key, &key.replace("fc", "linear"));
    }
    files.config["target_modules"] = json!(["linear1", "linear2", "fc1"]);
    let dir = tempfile::tempdir()?;
    files.write(dir.path());
    let words = [
        "none of the file's paths is one of the model's",
        "`layers.0.linear1`, `layers.0.linear2`, `layers.1.linear1`, .. in the file",
        "`layers.0.fc1`, `layers.0.fc2`, `layers.1.fc1`, .. in the model",
        ".rename(",
    ];
    refused(Stack::new(&fixture.base).with_adapter(dir.path()), &words);
    let star = AdapterDir::new(dir.path())
        .report(|_| {})
        .rename("layers.*.linear1", "layers.*.fc1")
        .rename("layers.*.linear2", "layers.*.fc2");
    loads_anywhere::<Stack>(&fixture, &star);
    Ok(())
}

#[test]
fn embeddings_beside_the_matrices() {
    for case in [
        "saved_tied",
        "saved_untied",
        "saved_target",
        "saved_target_untied",
    ] {
        let fixture = fixture(case);
        loads_anywhere::<Lm>(&fixture, &fixture.adapter().into());
    }
}

/// The base in one float type, the file in another.
#[test]
fn embeddings_that_were_rounded() -> Result {
    let types = [DType::F32, DType::F16, DType::BF16];
    for case in ["saved_untied", "saved_target_untied"] {
        let fixture = fixture(case);
        for ours in types {
            for theirs in types {
                let mut files = Files::read(&fixture.adapter());
                let cast = |t: &mut Tensor| *t = t.to_dtype(theirs).unwrap();
                files.weights.0.values_mut().for_each(cast);
                let dir = tempfile::tempdir()?;
                files.write(dir.path());
                let mut base = Weights::read(fixture.dir.join("base.safetensors"));
                let cast = |t: &mut Tensor| *t = t.to_dtype(ours).unwrap();
                base.0.values_mut().for_each(cast);
                let model = Lm::new(&base).with_adapter(dir.path())?;
                let output = model.forward(&fixture.input())?;
                let output = output.to_dtype(DType::F32)?;
                let expected = fixture.io.get("output");
                assert!(error(&output, &expected) <= 5e-2, "{ours:?} {theirs:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn embeddings_that_training_changed() {
    for case in [
        "changed_tied",
        "changed_untied",
        "changed_target",
        "changed_target_tied",
    ] {
        let fixture = fixture(case);
        let words = [
            "differs from the model's own weight",
            "AdapterDir::new(dir).trained_embeddings(true)",
        ];
        refused(
            Lm::new(&fixture.base).with_adapter(fixture.adapter()),
            &words,
        );
        let dir = AdapterDir::new(fixture.adapter()).trained_embeddings(true);
        loads_anywhere::<Lm>(&fixture, &dir);
    }
    // Numbers that are no weights are none for any option.
    let fixture = fixture("changed_untied");
    let mut files = Files::read(&fixture.adapter());
    let head = files
        .weights
        .0
        .get_mut("base_model.model.lm_head.weight")
        .unwrap();
    *head = head.to_dtype(DType::I64).unwrap();
    let dir = tempfile::tempdir().unwrap();
    files.write(dir.path());
    let dir = AdapterDir::new(dir.path()).trained_embeddings(true);
    let words = ["`lm_head.weight` is unexpected"];
    refused(Lm::new(&fixture.base).with_adapter(dir), &words);
}

#[test]
fn a_vocabulary_that_grew() {
    for case in [
        "grown_tied",
        "grown_untied",
        "grown_target",
        "grown_saved",
        "grown_tokens_tied",
        "grown_tokens_untied",
    ] {
        let fixture = fixture(case);
        let words = [
            "16 rows, the model's 11",
            "AdapterDir::new(dir).grow_vocabulary(true)",
        ];
        refused(
            Lm::new(&fixture.base).with_adapter(fixture.adapter()),
            &words,
        );
        let dir = AdapterDir::new(fixture.adapter()).grow_vocabulary(true);
        let model = Lm::new(&fixture.base).with_adapter(dir.clone()).unwrap();
        gives(&model, &fixture);
        let base = model.to_base().unwrap();
        assert_eq!(base.embed_tokens.embeddings().dims(), [16, 6]);
        let mut model = Lm::new(&fixture.base).to_frozen().unwrap();
        model.load_adapter_as("x", dir).unwrap();
        model.set_active(&["x"]).unwrap();
        model.eval();
        gives(&model, &fixture);
    }
    let fixture = fixture("changed_grown");
    let dir = AdapterDir::new(fixture.adapter()).grow_vocabulary(true);
    refused(
        Lm::new(&fixture.base).with_adapter(dir.clone()),
        &["trained_embeddings(true)"],
    );
    gives(
        &Lm::new(&fixture.base)
            .with_adapter(dir.trained_embeddings(true))
            .unwrap(),
        &fixture,
    );
}

#[test]
fn a_vocabulary_grows_under_no_other_adapter() -> Result {
    let fixture = fixture("grown_untied");
    let config = LoraConfig::new(2).target_modules(["embed_tokens"]);
    let mut model = Lm::new(&fixture.base).to_lora(&config)?;
    let dir = AdapterDir::new(fixture.adapter()).grow_vocabulary(true);
    refused(
        model.load_adapter_as("x", dir.clone()),
        &["load this adapter first"],
    );
    refused(model.load_adapter(dir), &["with_adapter"]);
    Ok(())
}

/// On disk the options are the same, or `new_tensors`.
#[test]
fn merging_a_vocabulary_that_grew() -> Result {
    for case in [
        "grown_tied",
        "grown_tokens_tied",
        "grown_untied",
        "grown_saved",
        "grown_tokens_untied",
        "changed_untied",
        "changed_grown",
    ] {
        let fixture = fixture(case);
        let temporary = tempfile::tempdir()?;
        let (base, out) = (
            fixture.dir.join("base.safetensors"),
            temporary.path().join("m.safetensors"),
        );
        refused(
            merge_checkpoint(&base, fixture.adapter(), &out),
            &["new_tensors"],
        );
        let options = MergeOptions::new().new_tensors(true);
        merge_checkpoint_with(&base, fixture.adapter(), &out, &options)?;
        let other = temporary.path().join("other.safetensors");
        let dir = AdapterDir::new(fixture.adapter())
            .grow_vocabulary(case.starts_with("grown") || case == "changed_grown")
            .trained_embeddings(case.starts_with("changed"));
        merge_checkpoint(&base, dir, &other)?;
        assert_eq!(std::fs::read(&other)?, std::fs::read(&out)?, "{case}");
        let merged = Weights::read(&out);
        let names: Vec<&String> = merged.0.keys().collect();
        let mut expected = vec!["embed_tokens.weight", "fc.bias", "fc.weight"];
        if !case.ends_with("_tied") {
            expected.push("lm_head.weight");
        }
        assert_eq!(names, expected, "{case}");
        let output = Lm::new(&merged).forward(&fixture.input())?;
        assert!(error(&output, &fixture.io.get("output")) <= 1e-5, "{case}");
    }
    Ok(())
}

/// Names of another kind, which no prefix brings together, have a way through by rules.
#[test]
fn merging_with_rules() -> Result {
    let fixture = Fixture::new("stack");
    let temporary = tempfile::tempdir()?;
    let base = temporary.path().join("base.safetensors");
    let renamed = fixture.base.0.iter().map(|(name, tensor)| {
        let name = name
            .replace("layers.", "encoder.layer.")
            .replace("fc", "mlp.dense");
        (name, tensor.clone())
    });
    candle_core::safetensors::save(&renamed.collect(), &base)?;
    let out = temporary.path().join("out.safetensors");
    let words = ["none of the file's paths", "`encoder.layer.0.mlp.dense1"];
    refused(merge_checkpoint(&base, fixture.adapter(), &out), &words);
    let dir = AdapterDir::new(fixture.adapter())
        .report(|_| {})
        .rename("layers.*.fc1", "encoder.layer.*.mlp.dense1")
        .rename("layers.*.fc2", "encoder.layer.*.mlp.dense2");
    merge_checkpoint(&base, dir, &out)?;
    let merged = Weights::read(&out).0.into_iter().map(|(name, tensor)| {
        let name = name
            .replace("encoder.layer.", "layers.")
            .replace("mlp.dense", "fc");
        (name, tensor)
    });
    let output = Stack::new(&Weights(merged.collect())).forward(&fixture.input())?;
    assert!(error(&output, &fixture.io.get("output")) <= 1e-5);
    Ok(())
}

/// A bare list of rows means the input embedding, whatever its name: the weights that PEFT merges.
#[test]
fn a_bare_list_of_rows_on_bert_and_gpt2() -> Result {
    for (case, options) in [
        ("bert_tokens", MergeOptions::new()),
        (
            "gpt2_tokens",
            MergeOptions::new().fan_in_fan_out(true).untie(true),
        ),
    ] {
        let dir = folder(case);
        let temporary = tempfile::tempdir()?;
        let out = temporary.path().join("m.safetensors");
        let base = dir.join("base.safetensors");
        merge_checkpoint_with(&base, dir.join("adapter"), &out, &options)?;
        let config = LoraConfig::from_pretrained(dir.join("adapter"))?;
        let path = match case {
            "bert_tokens" => "embeddings.word_embeddings",
            _ => "transformer.wte",
        };
        assert_eq!(config.trainable_token_indices[path], [1, 5]);
        let (merged, expected) = (
            Weights::read(&out),
            Weights::read(dir.join("merged.safetensors")),
        );
        for (name, tensor) in &expected.0 {
            // The head is the embedding, which is in the file once.
            let name = if name == "lm_head.weight" {
                "transformer.wte.weight"
            } else {
                name
            };
            assert!(error(&merged.get(name), tensor) <= 1e-5, "{case} {name}");
        }
    }
    Ok(())
}

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/peft/elsewhere")
        .join(case)
}

/// Older files name the bias of an adapted layer without PEFT's wrapper.
#[test]
fn biases_of_older_files() -> Result {
    for case in ["linear_bias_all", "linear_bias_lora_only"] {
        let fixture = Fixture::new(case);
        let mut files = Files::read(&fixture.adapter());
        let wrapped: Vec<String> = files
            .weights
            .0
            .keys()
            .filter(|key| key.contains("base_layer.bias"))
            .cloned()
            .collect();
        assert!(!wrapped.is_empty());
        for key in wrapped {
            files.rename(&key, &key.replace("base_layer.", ""));
        }
        let dir = tempfile::tempdir()?;
        files.write(dir.path());
        loads_anywhere::<Mlp>(&fixture, &dir.path().into());
    }
    Ok(())
}

#[test]
fn quantised_bases_say_what_they_are() -> Result {
    let fixture = Fixture::new("linear");
    for (end, dtype, what) in [
        ("weight.absmax", DType::F32, "bitsandbytes, to 4 bits"),
        ("SCB", DType::F32, "bitsandbytes, to 8 bits"),
        ("qweight", DType::I64, "GPTQ or AWQ"),
        ("weight", DType::F8E4M3, "8-bit floats (fp8)"),
    ] {
        let mut base = Weights::read(fixture.dir.join("base.safetensors"));
        let weight = base.0.remove("fc1.weight").unwrap();
        base.0.insert(format!("fc1.{end}"), weight.to_dtype(dtype)?);
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("base.safetensors");
        candle_core::safetensors::save(&base.0.into_iter().collect(), &path)?;
        let merged = merge_checkpoint(&path, fixture.adapter(), dir.path().join("m.safetensors"));
        refused(merged, &["the base is quantised by", what, "dequantised"]);
    }
    Ok(())
}

/// A bare encoder has no head that could share the embedding's weight, whatever its settings say.
#[test]
fn a_bare_encoder_is_not_tied() -> Result {
    let from = folder("bert_tokens");
    let dir = tempfile::tempdir()?;
    let base = dir.path().join("model.safetensors");
    std::fs::copy(from.join("base.safetensors"), &base)?;
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json"))?)?;
    let name = "embeddings.word_embeddings";
    let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &candle_core::Device::Cpu);
    let files = Files {
        config: json!({"peft_type": "LORA", "r": 1, "lora_alpha": 3, "target_modules": ["word_embeddings"]}),
        weights: Weights(
            [
                (
                    format!("base_model.model.{name}.lora_embedding_A"),
                    ones(&[1, 12])?,
                ),
                (
                    format!("base_model.model.{name}.lora_embedding_B"),
                    ones(&[8, 1])?,
                ),
            ]
            .into(),
        ),
    };
    let adapter = dir.path().join("adapter");
    files.write(&adapter);
    let out = dir.path().join("out.safetensors");
    // The checkpoint decides: one without a head's tensors is an encoder, whatever its configuration says.
    for architecture in ["BertModel", "BertForMaskedLM"] {
        config["architectures"] = json!([architecture]);
        config["tie_word_embeddings"] = json!(true);
        std::fs::write(dir.path().join("config.json"), config.to_string())?;
        merge_checkpoint(&base, &adapter, &out)?;
    }
    let (before, after) = (Weights::read(&base), Weights::read(&out));
    let name = format!("{name}.weight");
    assert!(error(&after.get(&name), &(before.get(&name) + 3.0)?) <= 1e-6);
    Ok(())
}
