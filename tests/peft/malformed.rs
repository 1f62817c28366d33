//! Every way in which a directory can be wrong is an error that says so, and changes nothing.

use super::models::*;
use super::support::*;
use candle_core::{DType, Device, Module, Tensor};
use lora::{LoraConfig, LoraModel, LoraModule};
use serde_json::json;
use std::fs;
use std::path::Path;

const A1: &str = "base_model.model.fc1.lora_A.weight";
const B2: &str = "base_model.model.fc2.lora_B.weight";

fn base() -> Mlp {
    Mlp::new(&Fixture::new("linear").base)
}

/// The fixture's directory, changed.
fn changed(change: impl FnOnce(&mut Files)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut files = Files::read(&Fixture::new("linear").adapter());
    change(&mut files);
    files.write(dir.path());
    dir
}

/// A model that the unchanged directory fits.
fn model() -> LoraMlp {
    base().to_lora(&config().seed(1)).unwrap()
}

fn config() -> LoraConfig {
    LoraConfig::new(3).alpha(6.0).target_modules(["fc1", "fc2"])
}

fn snapshot<M: LoraModule>(model: &M) -> Vec<Vec<f64>> {
    model
        .named_params()
        .iter()
        .map(|param| values(&param.tensor))
        .collect()
}

/// Loading into an existing model fails with all of these words, and leaves it as it was.
fn refuse_load(model: &mut LoraMlp, dir: &Path, words: &[&str]) {
    let before = snapshot(model);
    let problem = model.load_adapter(dir).unwrap_err().to_string();
    for word in words {
        assert!(problem.contains(word), "no `{word}` in: {problem}");
    }
    assert_eq!(snapshot(model), before);
}

/// Both ways of loading fail with all of these words.
#[track_caller]
fn refuse(dir: &Path, words: &[&str]) {
    refuse_load(&mut model(), dir, words);
    let problem = base().with_adapter(dir).unwrap_err().to_string();
    for word in words {
        assert!(problem.contains(word), "no `{word}` in: {problem}");
    }
}

#[track_caller]
fn refuse_changed(change: impl FnOnce(&mut Files), words: &[&str]) {
    refuse(changed(change).path(), words);
}

#[test]
fn the_unchanged_directory_loads() -> Result {
    let fixture = Fixture::new("linear");
    let mut model = model();
    let vars: Vec<_> = model.trainable_vars().iter().map(|var| var.id()).collect();
    model.load_adapter(changed(|_| {}).path())?;
    assert!(error(&model.forward(&fixture.input())?, &fixture.io.get("output")) <= 1e-5);
    // An optimiser made before goes on with the same variables.
    let after: Vec<_> = model.trainable_vars().iter().map(|var| var.id()).collect();
    assert_eq!(after, vars);
    Ok(())
}

#[test]
fn missing_files() -> Result {
    let dir = tempfile::tempdir()?;
    refuse(&dir.path().join("absent"), &["absent", "is no directory"]);
    let words = [
        "a name on the Hugging Face hub",
        "hf download someone/their-adapter",
    ];
    refuse(Path::new("someone/their-adapter"), &words);
    let file = dir.path().join("kohya.safetensors");
    fs::write(&file, "")?;
    refuse(&file, &["A single file of kohya", "peft::import"]);
    fs::remove_file(file)?;
    for (file, words) in [
        ("adapters.safetensors", "a file of mlx-lm"),
        ("pytorch_lora_weights.safetensors", "a file of diffusers"),
        ("config.json", "it holds a model, not an adapter"),
    ] {
        let other = tempfile::tempdir()?;
        fs::write(other.path().join(file), "{}")?;
        refuse(other.path(), &["no adapter_config.json", words]);
    }
    refuse(dir.path(), &["adapter_config.json"]);
    let full = changed(|_| {});
    fs::remove_file(full.path().join("adapter_model.safetensors"))?;
    refuse(
        full.path(),
        &["no adapter_model.safetensors: was all of it copied?"],
    );
    let shard = full.path().join("adapter_model-00001-of-00002.safetensors");
    fs::write(&shard, "")?;
    let words = [
        "in shards (adapter_model-00001-of-00002.safetensors)",
        "save_file",
    ];
    refuse(full.path(), &words);
    fs::remove_file(shard)?;
    fs::write(full.path().join("adapter_model.bin"), "pickle")?;
    refuse(
        full.path(),
        &[
            "adapter_model.bin",
            "is a pickle",
            "safe_serialization=True",
        ],
    );
    Ok(())
}

#[test]
fn a_missing_key() {
    let remove = |files: &mut Files| drop(files.weights.0.remove(B2));
    refuse_changed(remove, &["`fc2.lora_B.weight` is missing"]);
}

#[test]
fn an_unexpected_key() {
    for key in [
        "norm.weight",
        "fc1.lora_magnitude_vector",
        "fc3.lora_A.weight",
    ] {
        let add = |files: &mut Files| {
            let tensor = files.weights.get(A1);
            files
                .weights
                .0
                .insert(format!("base_model.model.{key}"), tensor);
        };
        refuse_changed(add, &[&format!("`{key}` is unexpected")]);
    }
}

#[test]
fn a_key_with_and_without_its_prefix() {
    let double = |files: &mut Files| {
        let tensor = files.weights.get(A1);
        files.weights.0.insert("fc1.lora_A.weight".into(), tensor);
    };
    refuse_changed(double, &["`fc1.lora_A.weight` with and without its prefix"]);
    let named = |files: &mut Files| {
        let tensor = files.weights.get(A1);
        files
            .weights
            .0
            .insert(A1.replace("lora_A", "lora_A.default"), tensor);
    };
    let words = ["or the adapter's name", "fc1.lora_A.default.weight", A1];
    refuse_changed(named, &words);
}

#[test]
fn a_wrong_shape() {
    let transpose = |files: &mut Files| {
        let tensor = files.weights.get(B2).t().unwrap().contiguous().unwrap();
        files.weights.0.insert(B2.into(), tensor);
    };
    let words = ["`fc2.lora_B.weight` has shape [3, 5], the model's [5, 3]"];
    refuse_changed(transpose, &words);
}

#[test]
fn values_that_are_not_finite() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let spoil = |files: &mut Files| {
            let mut values: Vec<f32> = files
                .weights
                .get(A1)
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap();
            values[20] = value;
            let tensor = Tensor::from_vec(values, (3, 7), &Device::Cpu).unwrap();
            files.weights.0.insert(A1.into(), tensor);
        };
        refuse_changed(
            spoil,
            &["`fc1.lora_A.weight` holds values that are not finite"],
        );
    }
    // Finite in the file, but not in the model's dtype.
    let large = |files: &mut Files| {
        let tensor = Tensor::full(1e300f64, (3, 7), &Device::Cpu).unwrap();
        files.weights.0.insert(A1.into(), tensor);
    };
    refuse_changed(
        large,
        &["`fc1.lora_A.weight` holds values that are not finite in F32"],
    );
}

#[test]
fn dtypes_that_are_not_floats() {
    for dtype in [DType::U8, DType::U32, DType::I64] {
        let cast = |files: &mut Files| {
            let tensor = files.weights.get(A1).to_dtype(dtype).unwrap();
            files.weights.0.insert(A1.into(), tensor);
        };
        refuse_changed(
            cast,
            &[&format!("`fc1.lora_A.weight` is {dtype:?}: it must be F64")],
        );
    }
}

#[test]
fn every_problem_is_reported_at_once() {
    let break_much = |files: &mut Files| {
        files.weights.0.remove(B2);
        files.rename(A1, "base_model.model.fc1.lora_X.weight");
        files.config["lora_alpha"] = json!(7);
        files.config["bias"] = json!("all");
        files.config["modules_to_save"] = json!(["head"]);
    };
    let words = [
        "`fc1.lora_A.weight` is missing",
        "`fc2.lora_B.weight` is missing",
        "`fc1.lora_X.weight` is unexpected",
        "`fc1` has scaling 2 (alpha 6) in the model, 2.3333333333333335 (alpha 7) in the file",
        "the file's `bias` trains `norm.bias`, the model does not",
        "`head` is in the file's modules_to_save, but not trained in full in the model",
    ];
    refuse_load(&mut model(), changed(break_much).path(), &words);
}

#[test]
fn a_rank_that_only_the_configuration_has() {
    for rank in [2u64, 4, 1 << 40, u64::MAX] {
        let claim = |files: &mut Files| files.config["r"] = json!(rank);
        refuse_changed(claim, &[&format!("{rank}")]);
        let claim = |files: &mut Files| files.config["rank_pattern"] = json!({"fc2": rank});
        refuse_changed(claim, &[&format!("{rank}"), "fc2"]);
    }
}

#[test]
fn a_configuration_for_another_model() {
    let more = |files: &mut Files| files.config["target_modules"] = json!(["fc1", "fc2", "head"]);
    refuse_load(
        &mut model(),
        changed(more).path(),
        &["`head` is a target of the file, but has no adapter in the model"],
    );
    let fewer = |files: &mut Files| {
        files.config["target_modules"] = json!(["fc1"]);
        files.weights.0.retain(|key, _| key.contains("fc1"));
    };
    let words = [
        "`fc2` has an adapter in the model, but is no target of the file",
        "`fc2.lora_A.weight` is missing",
    ];
    refuse_load(&mut model(), changed(fewer).path(), &words);
    let rslora = |files: &mut Files| files.config["use_rslora"] = json!(true);
    refuse_load(
        &mut model(),
        changed(rslora).path(),
        &["`fc1` has scaling 2 (alpha 6)"],
    );
    // A new model is made as the file says, but the file must fit it.
    let other = |files: &mut Files| files.config["target_modules"] = json!(["q_proj"]);
    let problem = base()
        .with_adapter(changed(other).path())
        .unwrap_err()
        .to_string();
    assert!(problem.contains("`q_proj` matches nothing"), "{problem}");
    assert!(problem.contains("fc1 (Linear)"), "{problem}");
}

#[test]
fn a_model_that_trains_more_than_the_file_holds() {
    let mut model = base().to_lora(&config().modules_to_save(["head"])).unwrap();
    let words = [
        "`head` is trained in full in the model, but not in the file's modules_to_save",
        "`head.weight` is missing",
    ];
    refuse_load(&mut model, changed(|_| {}).path(), &words);
    let mut model = base()
        .to_lora(&config().train_bias(lora::TrainBias::LoraOnly))
        .unwrap();
    let words = [
        "the model trains `fc1.base_layer.bias`, the file's `bias` does not say so",
        "`fc1.base_layer.bias` is missing",
    ];
    refuse_load(&mut model, changed(|_| {}).path(), &words);
}

#[test]
fn a_merged_model() -> Result {
    let mut model = model();
    model.merge()?;
    refuse_load(
        &mut model,
        changed(|_| {}).path(),
        &["is merged: call unmerge()"],
    );
    model.unmerge()?;
    model.load_adapter(changed(|_| {}).path())?;
    Ok(())
}

#[test]
fn features_that_are_not_supported() {
    let change = |files: &mut Files| {
        files.config["arrow_config"] = json!({"top_k": 2});
        files.config["use_qalora"] = json!(true);
        files.config["init_lora_weights"] = json!("pizza");
    };
    let words = [
        "`arrow_config` is {\"top_k\":2}: Arrow",
        "`use_qalora` is true: QALoRA",
        "`init_lora_weights` is \"pizza\"",
    ];
    refuse_changed(change, &words);
    let change = |files: &mut Files| files.config["init_lora_weights"] = json!("corda");
    let words = ["`init_lora_weights` is \"corda\", whose residual base"];
    refuse_changed(change, &words);
    let change = |files: &mut Files| files.config["init_lora_weights"] = json!("pissa");
    let words = ["the file is for the residual base of `pissa`"];
    // On the base itself the change can be made again.
    let raw = changed(change);
    refuse_load(&mut model(), raw.path(), &words);
    base().with_adapter(raw.path()).unwrap();
    let change = |files: &mut Files| {
        files.config["r"] = json!(3.0);
        files.config["use_dora"] = json!("x");
    };
    refuse_changed(change, &["`r` is 3.0", "`use_dora` is \"x\""]);
}

#[test]
fn a_pattern_without_end() {
    // The look-ahead makes it a matter of trying, in more ways than there is time for.
    let regex = r"(?:(?=.?).?){40}(?:(?=.?).?){40}(?:(?=.?).?){40}(?:(?=.?).?){40}y";
    let change = |files: &mut Files| files.config["target_modules"] = json!(regex);
    refuse_changed(change, &["target_modules `(?:(?=", "` on `fc1`"]);
    let change = |files: &mut Files| files.config["target_modules"] = json!("(");
    refuse_changed(change, &["target_modules `(`"]);
}

#[test]
fn damaged_configurations() -> Result {
    let dir = changed(|_| {});
    let path = dir.path().join("adapter_config.json");
    let deep = format!("{{\"peft_type\": {}", "[".repeat(1 << 20));
    for text in [
        "",
        "{",
        "[1]",
        "\u{feff}{}",
        "{\"peft_type\": \"LORA\"",
        "{\"peft_type\": \"LORA\", \"target_modules\": [\"fc1\"], \"r\": 2, \"r\": 3}",
        deep.as_str(),
    ] {
        fs::write(&path, text)?;
        refuse(dir.path(), &["adapter_config.json"]);
    }
    fs::write(&path, vec![b' '; (16 << 20) + 1])?;
    refuse(dir.path(), &["larger than 16 MiB"]);
    fs::remove_file(&path)?;
    fs::create_dir(&path)?;
    refuse(dir.path(), &["adapter_config.json"]);
    Ok(())
}

#[test]
fn damaged_weights() -> Result {
    let dir = changed(|_| {});
    let path = dir.path().join("adapter_model.safetensors");
    let good = fs::read(&path)?;
    // Cut off anywhere, or with something behind.
    for length in (0..good.len()).step_by(7) {
        fs::write(&path, &good[..length])?;
        refuse_load(
            &mut model(),
            dir.path(),
            &["adapter_model.safetensors: is no valid file"],
        );
    }
    fs::write(&path, [good.as_slice(), b"more"].concat())?;
    refuse(dir.path(), &["is no valid file"]);
    // A header that claims to be larger than the file, or than anything.
    for length in [good.len() as u64, 200_000_000, u64::MAX] {
        let mut bytes = good.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(&path, bytes)?;
        refuse(dir.path(), &["is no valid file"]);
    }
    let header = |json: &str, data: &[u8]| {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend(data);
        bytes
    };
    let huge = u64::MAX / 4;
    for json in [
        "[]".to_string(),
        "[".repeat(100_000),
        format!(r#"{{"a":{{"dtype":"F32","shape":[{huge},{huge}],"data_offsets":[0,4]}}}}"#),
        format!(r#"{{"a":{{"dtype":"F32","shape":[1],"data_offsets":[0,{huge}]}}}}"#),
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#.to_string(),
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_string(),
        r#"{"a":{"dtype":"Q7","shape":[1],"data_offsets":[0,4]}}"#.to_string(),
    ] {
        fs::write(&path, header(&json, &[0; 4]))?;
        refuse(dir.path(), &["is no valid file"]);
    }
    // A key twice, with the same place in the file.
    let entry = r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    fs::write(&path, header(&format!("{{{entry},{entry}}}"), &[0; 4]))?;
    refuse(dir.path(), &["is no valid file", "`a` comes twice"]);
    Ok(())
}

/// Whatever the bytes are, the answer is an adapter or an error.
#[test]
fn changed_bytes_never_panic() -> Result {
    let dir = changed(|_| {});
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let mut refused = 0;
    for name in ["adapter_model.safetensors", "adapter_config.json"] {
        let path = dir.path().join(name);
        let good = fs::read(&path)?;
        for _ in 0..400 {
            let mut bytes = good.clone();
            // Headers, where the structure is.
            let at = random(good.len().min(700));
            bytes[at] = random(256) as u8;
            fs::write(&path, bytes)?;
            refused += usize::from(base().with_adapter(dir.path()).is_err());
        }
        fs::write(&path, good)?;
    }
    assert!(refused > 400, "{refused}");
    base().with_adapter(dir.path())?;
    Ok(())
}
