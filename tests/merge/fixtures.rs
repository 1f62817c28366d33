//! Every fixture: on disk and as a `VarBuilder`.

use super::support::*;
use candle_core::{DType, Device, IndexOp};
use lora::peft::{
    MergeOptions, merge_checkpoint, merge_checkpoint_with, merged_var_builder,
    merged_var_builder_with,
};
use serde_json::Value;
use std::fs;
use std::sync::{Arc, Mutex};

#[test]
fn the_results_are_pefts() -> Result {
    let mut checked = 0;
    for (case, spec) in cases() {
        let (model, dtype) = (spec["model"].as_str().unwrap(), spec["dtype"].as_str());
        let expected = adapter(&case).with_file_name("merged.safetensors");
        // PEFT merges this one, although the head then changes with the embedding.
        if !expected.exists() || case == "llama_tied_apart" {
            continue;
        }
        let base = base(model, dtype.unwrap_or_default());
        let expected = load(expected);
        let dir = tempfile::tempdir()?;
        let out = match base.is_dir() {
            true => dir.path().join("merged"),
            false => dir.path().join("merged.safetensors"),
        };
        let report = merge_checkpoint(&base, adapter(&case), &out)
            .map_err(|error| format!("{case}: {error}"))?;
        let (before, merged) = (load_all(&base), load_all(&out));
        let (vb, check) = merged_var_builder(&[&base], adapter(&case), DType::F32, &Device::Cpu)?;
        assert_eq!(check.unused().len(), report.changed.len(), "{case}");
        let tolerance = if dtype.is_some() { 2e-2 } else { 1e-5 };
        assert_eq!(merged.len(), expected.len(), "{case}");
        for (name, tensor) in &merged {
            assert_eq!(tensor.dtype(), before[name].dtype(), "{case} {name}");
            let error = error(tensor, &expected[name]);
            assert!(error <= tolerance, "{case} {name}: {error}");
            let is_changed = report.changed.contains(name);
            let same = super::support::error(tensor, &before[name]) == 0.0;
            assert_eq!(same, !is_changed, "{case} {name}");
            let lazy = vb.get(tensor.dims(), name)?;
            let wide = tensor.to_dtype(DType::F32)?;
            assert_eq!(super::support::error(&lazy, &wide), 0.0, "{case} {name}");
        }
        check.finish()?;
        assert_eq!(report.changed.len() + report.unchanged, merged.len());
        checked += 1;
    }
    assert_eq!(checked, 30);
    Ok(())
}

#[test]
fn shards_keep_their_files_and_their_index() -> Result {
    let base = fixtures().join("bases/decoder_sharded");
    let dir = tempfile::tempdir()?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let options = MergeOptions::new()
        .copy_files(true)
        .progress(move |done, all, name| log.lock().unwrap().push((done, all, name.to_string())));
    let report = merge_checkpoint_with(&base, adapter("bias_all"), dir.path(), &options)?;
    let mut names: Vec<_> = fs::read_dir(dir.path())?
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let index = "model.safetensors.index.json";
    let (one, two) = (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    );
    assert_eq!(names, ["config.json", one, two, index]);
    assert_eq!(report.files.len(), 4);
    for name in [index, "config.json"] {
        let json = |path: std::path::PathBuf| -> Value {
            serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
        };
        assert_eq!(json(dir.path().join(name)), json(base.join(name)));
    }
    let expected = load(adapter("bias_all").with_file_name("merged.safetensors"));
    for name in [one, two] {
        let (merged, before) = (load(dir.path().join(name)), load(base.join(name)));
        assert_eq!(merged.len(), before.len());
        for (name, tensor) in merged {
            assert!(error(&tensor, &expected[&name]) <= 1e-5, "{name}");
        }
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), expected.len());
    assert!(
        seen.iter()
            .enumerate()
            .all(|(i, (done, all, _))| { (*done, *all) == (i + 1, expected.len()) })
    );

    // The index alone, and both shards as files, are the same base.
    let out = tempfile::tempdir()?;
    merge_checkpoint(base.join(index), adapter("bias_all"), out.path())?;
    assert_eq!(
        fs::read(out.path().join(one))?,
        fs::read(dir.path().join(one))?
    );
    assert!(!out.path().join("config.json").exists());
    let files = [base.join(one), base.join(two)];
    let (vb, check) = merged_var_builder(&files, adapter("bias_all"), DType::F64, &Device::Cpu)?;
    let unused = check.unused();
    assert!(unused.contains(&"head.bias".to_string()), "{unused:?}");
    let name = "layers.1.fc1.weight";
    assert!(error(&vb.get((10, 6), name)?, &expected[name]) <= 1e-5);
    assert_eq!(vb.get((10, 6), name)?.dtype(), DType::F64);
    assert!(vb.get((6, 10), name).is_err());
    assert!(vb.get(3, "absent").is_err());
    assert_eq!(check.unused().len(), unused.len() - 1);
    let problem = check.finish().unwrap_err().to_string();
    assert!(
        problem.contains("`head.bias`, which the model did not load"),
        "{problem}"
    );
    assert!(!problem.contains(name));
    Ok(())
}

/// The head would change with the embedding, which the adapter's training did not do.
#[test]
fn a_shared_weight_is_changed_only_on_demand() -> Result {
    let (base, case) = (base("llama_tied", ""), "llama_tied_apart");
    let problem = merged_var_builder(&[&base], adapter(case), DType::F32, &Device::Cpu);
    let problem = problem.err().unwrap().to_string();
    assert!(problem.contains("is also the head's weight"), "{problem}");
    let options = MergeOptions::new().keep_tied(true);
    let (vb, _) =
        merged_var_builder_with(&[&base], adapter(case), DType::F32, &Device::Cpu, &options)?;
    let expected = load(adapter(case).with_file_name("merged.safetensors"));
    let name = "model.embed_tokens.weight";
    assert!(error(&vb.get((12, 8), name)?, &expected[name]) <= 1e-5);
    Ok(())
}

/// Untied, the head keeps the weight that it had; or gets an update of its own.
#[test]
fn a_head_gets_a_weight_of_its_own_on_demand() -> Result {
    let (base, case) = (base("llama_tied", ""), adapter("llama_tied_apart"));
    let name = "model.embed_tokens.weight";
    let before = load_all(&base)[name].clone();
    let expected = load(case.with_file_name("merged.safetensors"));
    let dir = tempfile::tempdir()?;
    let options = MergeOptions::new().untie(true).copy_files(true);
    let report = merge_checkpoint_with(&base, &case, dir.path(), &options)?;
    assert_eq!(report.changed, [name, "lm_head.weight"]);
    let merged = load_all(dir.path());
    assert!(error(&merged[name], &expected[name]) <= 1e-5);
    assert_eq!(error(&merged["lm_head.weight"], &before), 0.0);
    let config: Value = serde_json::from_slice(&fs::read(dir.path().join("config.json"))?)?;
    assert_eq!(config["tie_word_embeddings"], false);
    assert_eq!(config["hidden_size"], 8);

    // Copies of the weights in the file make no difference.
    let saved = tempfile::tempdir()?;
    let mut tensors = load(case.join("adapter_model.safetensors"));
    tensors.insert("base_model.model.lm_head.weight".into(), before.clone());
    candle_core::safetensors::save(&tensors, saved.path().join("adapter_model.safetensors"))?;
    fs::copy(
        case.join("adapter_config.json"),
        saved.path().join("adapter_config.json"),
    )?;
    let refused = merged_var_builder(&[&base], saved.path(), DType::F32, &Device::Cpu);
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("is also the head's weight"), "{refused}");
    let report = merge_checkpoint_with(&base, saved.path(), dir.path(), &options)?;
    assert_eq!(report.changed, [name, "lm_head.weight"]);

    // An adapter of the head alone.
    let own = tempfile::tempdir()?;
    fs::write(
        own.path().join("adapter_config.json"),
        r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["lm_head"]}"#,
    )?;
    let tensors = [("A", tensor(&[1, 8], 1.0)), ("B", tensor(&[12, 1], -1.0))];
    let tensors =
        tensors.map(|(part, t)| (format!("base_model.model.lm_head.lora_{part}.weight"), t));
    let tensors: Tensors = tensors.into_iter().collect();
    candle_core::safetensors::save(&tensors, own.path().join("adapter_model.safetensors"))?;
    let device = Device::Cpu;
    let refused = merged_var_builder(&[&base], own.path(), DType::F32, &device)
        .err()
        .unwrap();
    assert!(
        refused.to_string().contains("MergeOptions::untie"),
        "{refused}"
    );
    let (vb, check) = merged_var_builder_with(&[&base], own.path(), DType::F32, &device, &options)?;
    let delta = tensor(&[12, 1], -1.0).matmul(&tensor(&[1, 8], 1.0))?;
    let head = vb.get((12, 8), "lm_head.weight")?;
    assert!(error(&head, &(&before + delta)?) <= 1e-6);
    assert_eq!(error(&vb.get((12, 8), name)?, &before), 0.0);
    check.finish()?;
    Ok(())
}

#[test]
fn convolutions_with_groups_are_refused() {
    let (base, case) = (base("grouped", ""), adapter("grouped"));
    let problem = merged_var_builder(&[base], case, DType::F32, &Device::Cpu).err();
    let problem = problem.unwrap().to_string();
    assert!(
        problem.contains("`conv` is a convolution with groups"),
        "{problem}"
    );
}

/// A checkpoint of the inner model, and one with a part more.
#[test]
fn a_first_part_of_the_names_may_differ() -> Result {
    let (all, case) = (load(base("decoder", "")), adapter("linear"));
    let expected = load(case.with_file_name("merged.safetensors"));
    let dir = tempfile::tempdir()?;
    let with = dir.path().join("with.safetensors");
    let renamed: Tensors = all
        .iter()
        .map(|(k, v)| (format!("model.{k}"), v.clone()))
        .collect();
    candle_core::safetensors::save(&renamed, &with)?;
    let (vb, _) = merged_var_builder(&[&with], &case, DType::F32, &Device::Cpu)?;
    let name = "layers.0.fc2.weight";
    let merged = vb.pp("model").get((6, 10), name)?;
    assert!(error(&merged, &expected[name]) <= 1e-5);

    let without = dir.path().join("without.safetensors");
    let inner = |k: &str| k.strip_prefix("layers.").map(String::from);
    let renamed: Tensors = all
        .iter()
        .filter_map(|(k, v)| Some((inner(k)?, v.clone())))
        .collect();
    candle_core::safetensors::save(&renamed, &without)?;
    let (vb, _) = merged_var_builder(&[&without], &case, DType::F32, &Device::Cpu)?;
    assert!(error(&vb.get((6, 10), "0.fc2.weight")?, &expected[name]) <= 1e-5);

    let other = dir.path().join("other.safetensors");
    let moved = |k: &str| k.replacen("layers.", "text.blocks.", 1);
    let renamed: Tensors = all.iter().map(|(k, v)| (moved(k), v.clone())).collect();
    candle_core::safetensors::save(&renamed, &other)?;
    let problem = merged_var_builder(&[&other], &case, DType::F32, &Device::Cpu).err();
    assert!(
        problem
            .unwrap()
            .to_string()
            .contains("the base has no `layers.0.fc1.weight`")
    );
    let options = MergeOptions::new().rename("layers", "text.blocks");
    let (vb, _) = merged_var_builder_with(&[&other], &case, DType::F32, &Device::Cpu, &options)?;
    let merged = vb.get((6, 10), "text.blocks.0.fc2.weight")?;
    assert!(error(&merged, &expected[name]) <= 1e-5);
    assert!(merged.i((0, 0))?.to_scalar::<f32>()?.is_finite());
    Ok(())
}
