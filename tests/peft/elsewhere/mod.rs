//! `fixtures/peft/elsewhere`: adapters as trainers and wrappers write them, by PEFT itself.

mod embeddings;
mod older;
mod prefixes;

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

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/peft/elsewhere")
        .join(case)
}
