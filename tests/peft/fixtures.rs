//! What PEFT saved gives PEFT's outputs and gradients here, and is saved again as it was.

use super::models::*;
use super::support::*;
use candle_core::{DType, IndexOp, Module, Tensor};
use lora::{LoraModel, LoraModule};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;

/// The fixture's model with its adapter does all that PEFT's does.
fn check<T: Twin>(fixture: &Fixture) -> Result {
    let (input, tolerance) = (fixture.input(), fixture.tolerance());
    let base = T::new(&fixture.base);
    let mut model = base.with_adapter(fixture.adapter())?;
    let near = |what: &str, actual: &Tensor| {
        let error = error(actual, &fixture.io.get(what));
        assert!(error <= tolerance, "{}: {what}: {error:e}", fixture.name);
        error
    };

    near("base_output", &base.forward(&input)?);
    near("base_output", &base.to_frozen()?.forward(&input)?);
    let output = model.forward(&input)?;
    near("output", &output);
    assert!(
        error(&output, &fixture.io.get("base_output")) > 0.1,
        "the adapter does nothing"
    );
    // PEFT cannot merge a grouped convolution.
    let merged = match fixture.io.0.contains_key("merged_output") {
        true => "merged_output",
        false => "output",
    };
    near(merged, &model.to_base()?.forward(&input)?);
    merges_on_disk::<T>(fixture, merged == "merged_output")?;
    model.merge()?;
    near(merged, &model.forward(&input)?);
    model.unmerge()?;

    model.train();
    let loss = (model.forward(&input)?.to_dtype(DType::F32)? * fixture.io.get("g"))?.sum_all()?;
    let grads = model.backward(&loss)?;
    let mut keys = BTreeSet::new();
    for param in model
        .named_params()
        .into_iter()
        .filter(|param| param.is_trainable())
    {
        let mut key = format!("grad.{}", param.path.replace(".default", ""));
        if !fixture.io.0.contains_key(&key) {
            key = format!("grad.{}.base_layer.bias", param.layer());
        }
        near(&key, grads.get(&param.tensor).unwrap());
        keys.insert(key);
    }
    let expected: BTreeSet<_> = fixture
        .io
        .0
        .keys()
        .filter(|key| key.starts_with("grad."))
        .cloned()
        .collect();
    assert_eq!(keys, expected, "{}", fixture.name);
    saves_the_same(&model, fixture)
}

/// Saving gives PEFT's keys and bytes, and a configuration that means the same.
fn saves_the_same<M: LoraModule>(model: &M, fixture: &Fixture) -> Result {
    let dir = tempfile::tempdir()?;
    model.save_adapter(dir.path())?;
    let theirs = fs::read(fixture.adapter().join("adapter_model.safetensors"))?;
    let theirs = safetensors::SafeTensors::deserialize(&theirs)?;
    let bytes = fs::read(dir.path().join("adapter_model.safetensors"))?;
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes)?;
    let metadata = metadata.metadata().clone().unwrap();
    assert_eq!(
        metadata.into_iter().collect::<Vec<_>>(),
        [("format".into(), "pt".into())]
    );
    let ours = safetensors::SafeTensors::deserialize(&bytes)?;

    // With bias="all" PEFT also writes the biases of both copies of a trained module.
    let is_copy =
        |key: &&str| key.contains(".modules_to_save.") || key.contains(".original_module.");
    let names: BTreeSet<&str> = theirs
        .names()
        .into_iter()
        .filter(|key| !is_copy(key))
        .collect();
    assert_eq!(
        ours.names().into_iter().collect::<BTreeSet<_>>(),
        names,
        "{}",
        fixture.name
    );
    for (name, tensor) in ours.tensors() {
        let other = theirs.tensor(&name)?;
        assert_eq!(tensor.dtype(), other.dtype(), "{name}");
        assert_eq!(tensor.shape(), other.shape(), "{name}");
        assert!(tensor.data() == other.data(), "{name}");
    }

    let (ours, theirs) = (read_config(dir.path()), read_config(&fixture.adapter()));
    for (key, value) in ours.as_object().unwrap() {
        match key.as_str() {
            // PEFT's is a set. A regular expression, and names without exceptions, become names.
            "target_modules" if theirs[key].is_array() && theirs["exclude_modules"].is_null() => {
                let names = |value: &serde_json::Value| -> BTreeSet<String> {
                    serde_json::from_value(value.clone()).unwrap()
                };
                assert_eq!(names(value), names(&theirs[key]), "{}", fixture.name);
            }
            // Stated by other names, and in another order.
            "target_modules" | "exclude_modules" | "rank_pattern" | "alpha_pattern" => continue,
            "auto_mapping" | "peft_version" => assert!(value.is_null(), "{key}"),
            // The commonest of the layers, the others follow by pattern.
            "r" | "lora_alpha" if fixture.name.contains("pattern") => continue,
            "bias" if fixture.name == "conv2d_bias_all" => assert_eq!(value, "all"),
            _ => assert_eq!(value, &theirs[key], "{}: {key}", fixture.name),
        }
    }
    let keys: Vec<_> = ours.as_object().unwrap().keys().collect();
    assert!(keys.is_sorted(), "{keys:?}");
    Ok(())
}

/// Merged without the model's code, the base gives the same outputs.
fn merges_on_disk<T: Twin>(fixture: &Fixture, can: bool) -> Result {
    let dir = tempfile::tempdir()?;
    let (base, out) = (
        fixture.dir.join("base.safetensors"),
        dir.path().join("merged"),
    );
    let merged = lora::peft::merge_checkpoint(base, fixture.adapter(), &out);
    if !can {
        let problem = merged.unwrap_err().to_string();
        assert!(problem.contains("a convolution with groups"), "{problem}");
        return Ok(());
    }
    merged?;
    let output = T::new(&Weights::read(out)).forward(&fixture.input())?;
    let error = error(&output, &fixture.io.get("merged_output"));
    assert!(
        error <= fixture.tolerance(),
        "{}: on disk: {error:e}",
        fixture.name
    );
    Ok(())
}

fn check_all(model: &str, count: usize, check: fn(&Fixture) -> Result) -> Result {
    let of_model = cases().into_iter().filter(|(_, name)| name == model);
    let mut checked = 0;
    for (case, _) in of_model {
        check(&Fixture::new(&case)).map_err(|error| format!("{case}: {error}"))?;
        checked += 1;
    }
    assert_eq!(checked, count);
    Ok(())
}

#[test]
fn linear() -> Result {
    check_all("mlp", 13, check::<Mlp>)
}

#[test]
fn nested_lists() -> Result {
    check_all("stack", 5, check::<Stack>)
}

#[test]
fn conv1d() -> Result {
    check_all("conv1d", 1, check::<Conv1dNet>)
}

#[test]
fn conv2d() -> Result {
    check_all("conv2d", 2, check::<Conv2dNet>)?;
    check_all("conv2d_grouped", 1, check::<Conv2dNet>)
}

#[test]
fn embedding() -> Result {
    check_all("embedding", 2, check::<EmbedNet>)
}

#[test]
fn keys_without_the_prefix_load_too() -> Result {
    let fixture = Fixture::new("linear");
    let mut files = Files::read(&fixture.adapter());
    for key in files.weights.0.clone().into_keys() {
        files.rename(&key, key.strip_prefix("base_model.model.").unwrap());
    }
    let dir = tempfile::tempdir()?;
    files.write(dir.path());
    let model = Mlp::new(&fixture.base).with_adapter(dir.path())?;
    assert!(error(&model.forward(&fixture.input())?, &fixture.io.get("output")) <= 1e-5);
    Ok(())
}

#[test]
fn a_bare_list_of_tokens_means_the_embedding_that_the_weights_name() -> Result {
    let fixture = Fixture::new("forms/embedding_tokens");
    let mut files = Files::read(&fixture.adapter());
    files.config["trainable_token_indices"] = json!([1, 4, 9]);
    let dir = tempfile::tempdir()?;
    files.write(dir.path());
    let model = EmbedNet::new(&fixture.base).with_adapter(dir.path())?;
    let expected = fixture.io.get("output.default");
    assert!(error(&model.forward(&fixture.input())?, &expected) <= 1e-5);
    Ok(())
}

#[test]
fn other_float_dtypes_are_converted() -> Result {
    let fixture = Fixture::new("linear");
    for (dtype, tolerance) in [(DType::F64, 1e-5), (DType::BF16, 2e-2), (DType::F16, 2e-3)] {
        let mut files = Files::read(&fixture.adapter());
        for tensor in files.weights.0.values_mut() {
            *tensor = tensor.to_dtype(dtype)?;
        }
        let dir = tempfile::tempdir()?;
        files.write(dir.path());
        let model = Mlp::new(&fixture.base).with_adapter(dir.path())?;
        assert_eq!(
            model.fc1.adapters().iter().next().unwrap().a().dtype(),
            DType::F32
        );
        let error = error(&model.forward(&fixture.input())?, &fixture.io.get("output"));
        assert!(error <= tolerance, "{dtype:?}: {error:e}");
    }
    Ok(())
}

#[test]
fn a_loaded_model_is_in_eval_mode() -> Result {
    let fixture = Fixture::new("linear");
    let mut files = Files::read(&fixture.adapter());
    files.config["lora_dropout"] = json!(0.5);
    let dir = tempfile::tempdir()?;
    files.write(dir.path());
    let mut model = Mlp::new(&fixture.base).with_adapter(dir.path())?;
    let (input, output) = (fixture.input(), fixture.io.get("output"));
    assert!(error(&model.forward(&input)?, &output) <= 1e-5);
    model.train();
    assert!(
        error(&model.forward(&input)?, &output) > 1e-3,
        "dropout acts in training"
    );
    Ok(())
}

/// PEFT passes over entries that match nothing, and writes heads that the model may not have.
#[test]
fn entries_without_effect_are_accepted() -> Result {
    let fixture = Fixture::new("linear");
    let mut files = Files::read(&fixture.adapter());
    files.config["task_type"] = json!("SEQ_CLS");
    files.config["modules_to_save"] = json!(["classifier", "score"]);
    files.config["target_modules"] = json!(["fc1", "q_proj", "fc2"]);
    files.config["exclude_modules"] = json!(["fc3"]);
    files.config["rank_pattern"] = json!({"v_proj": 9});
    let dir = tempfile::tempdir()?;
    files.write(dir.path());
    let base = Mlp::new(&fixture.base);
    let mut model = base.with_adapter(dir.path())?;
    assert!(error(&model.forward(&fixture.input())?, &fixture.io.get("output")) <= 1e-5);
    model.load_adapter(dir.path())?;
    // For a new adapter it is an error, as a misspelt name would have no effect.
    let config = lora::LoraConfig::from_pretrained(dir.path())?;
    let problem = base.to_lora(&config).unwrap_err().to_string();
    assert!(
        problem.contains("modules_to_save `score` matches nothing"),
        "{problem}"
    );
    Ok(())
}

/// PEFT writes the base weight beside the adapter of a language model's embedding.
#[test]
fn an_embeddings_base_weight_must_be_the_models_own() -> Result {
    let fixture = Fixture::new("embedding");
    let mut files = Files::read(&fixture.adapter());
    let key = "base_model.model.embed.base_layer.weight".to_string();
    let weight = fixture.base.get("embed.weight");
    files.weights.0.insert(key.clone(), weight.clone());
    let dir = tempfile::tempdir()?;
    files.write(dir.path());
    let base = EmbedNet::new(&fixture.base);
    let model = base.with_adapter(dir.path())?;
    assert!(error(&model.forward(&fixture.input())?, &fixture.io.get("output")) <= 1e-5);

    let changed = Tensor::cat(&[weight.i(1..)?, weight.i(..1)?], 0)?;
    files.weights.0.insert(key, changed);
    files.write(dir.path());
    let problem = base.with_adapter(dir.path()).unwrap_err().to_string();
    assert!(
        problem.contains("embed.base_layer.weight` differs from the model's own"),
        "{problem}"
    );
    Ok(())
}

#[test]
fn the_settings_can_be_read_alone() -> Result {
    let fixture = Fixture::new("stack_patterns");
    let config = lora::LoraConfig::from_pretrained(fixture.adapter())?;
    assert_eq!((config.rank, config.alpha), (2, 4.0));
    let ranks: Vec<_> = config
        .rank_pattern
        .iter()
        .map(|(k, v)| (k.as_str(), *v))
        .collect();
    assert_eq!(ranks, [("^layers\\.1\\.fc1", 4), ("fc1", 3)]);
    assert_eq!(config.alpha_pattern["\\d\\.fc2"], 9.0);
    let model = Stack::new(&fixture.base).to_lora(&config)?;
    let ranks = model
        .layers
        .iter()
        .map(|layer| layer.fc1.adapters().iter().next().unwrap().settings().rank);
    assert_eq!(ranks.collect::<Vec<_>>(), [3, 4]);
    Ok(())
}

/// Read and written again, a file of PEFT's has the same bytes.
#[test]
fn configurations_are_written_as_peft_writes_them() -> Result {
    for (name, _) in cases() {
        let dir = Fixture::new(&name).adapter();
        let bytes = std::fs::read(dir.join("adapter_config.json"))?;
        let config = lora::peft::AdapterConfig::read(&dir)?;
        let written = config.to_json()?;
        // PEFT sorts the patterns; here they keep their order, which is PEFT's in its own files.
        assert_eq!(
            String::from_utf8(written)?,
            String::from_utf8(bytes)?,
            "{name}"
        );
        config.to_lora_config()?;
    }
    Ok(())
}
