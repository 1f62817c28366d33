//! Several adapters, each merged into what the ones before made: `fixtures/merge/several.py`.

use super::support::*;
use candle_core::{DType, Device, Tensor};
use lora::peft::{
    AdapterDir, MergeOptions, merge_checkpoint_with, merge_gguf_with, merged_var_builder_with,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn of_case(case: &str) -> PathBuf {
    match case {
        "dora_other" => fixtures().join("several").join(case),
        _ => adapter(case),
    }
}

fn of_order(order: &str) -> Vec<PathBuf> {
    order.split('+').map(of_case).collect()
}

fn after(first: &[PathBuf]) -> MergeOptions {
    MergeOptions::new().first(first)
}

#[test]
fn the_results_of_every_order_are_pefts() -> Result {
    let expected = load(fixtures().join("several/merged.safetensors"));
    let orders = expected.keys().map(|key| key.split_once('/').unwrap().0);
    let orders: BTreeSet<&str> = orders.collect();
    assert_eq!(orders.len(), 12);
    let models = cases();
    for order in orders {
        let dirs = of_order(order);
        let (last, first) = dirs.split_last().unwrap();
        let case = order.split('+').find(|case| *case != "dora_other").unwrap();
        let (_, spec) = models.iter().find(|(name, _)| name == case).unwrap();
        let base = base(spec["model"].as_str().unwrap(), "");
        let dir = tempfile::tempdir()?;
        let out = dir.path().join("merged.safetensors");
        let report = merge_checkpoint_with(&base, last, &out, &after(first))
            .map_err(|error| format!("{order}: {error}"))?;
        let (before, merged) = (load(&base), load(&out));
        assert_eq!(report.changed.len() + report.unchanged, before.len());
        let (vb, check) =
            merged_var_builder_with(&[&base], last, DType::F32, &Device::Cpu, &after(first))?;
        let mut changed = 0;
        for (name, tensor) in &merged {
            let of_peft = expected.get(&format!("{order}/{name}"));
            changed += usize::from(of_peft.is_some());
            let error = error(tensor, of_peft.unwrap_or(&before[name]));
            assert!(error <= 1e-6, "{order} {name}: {error}");
            assert_eq!(
                report.changed.contains(name),
                of_peft.is_some(),
                "{order} {name}"
            );
            let lazy = vb.get(tensor.dims(), name)?;
            assert_eq!(super::support::error(&lazy, tensor), 0.0, "{order} {name}");
        }
        check.finish()?;
        assert_eq!(changed, report.changed.len(), "{order}");
    }
    Ok(())
}

#[test]
fn the_sum_is_rounded_once() -> Result {
    let dir = tempfile::tempdir()?;
    let base = base("decoder", "bfloat16");
    let dirs = of_order("linear+dora+dora_other");
    let (last, first) = dirs.split_last().unwrap();
    let [narrow, wide] = ["narrow", "wide"].map(|name| dir.path().join(name));
    merge_checkpoint_with(&base, last, &narrow, &after(first))?;
    merge_checkpoint_with(&base, last, &wide, &after(first).dtype(DType::F32))?;
    let (narrow, wide) = (load(narrow), load(wide));
    for (name, tensor) in &narrow {
        assert_eq!(tensor.dtype(), DType::BF16);
        let rounded = wide[name].to_dtype(DType::BF16)?;
        assert_eq!(error(tensor, &rounded), 0.0, "{name}");
    }
    Ok(())
}

/// Shards keep their files; what the first adapter brings new is in the index, too.
#[test]
fn shards_hold_what_every_adapter_brings() -> Result {
    let dir = tempfile::tempdir()?;
    let mut head = Made::new();
    head.adapter = load(of_case("linear").join("adapter_model.safetensors"));
    let config = fs::read(of_case("linear").join("adapter_config.json"))?;
    head.config = serde_json::from_slice(&config)?;
    head.config["modules_to_save"] = json!(["score"]);
    head.add("score.weight", tensor(&[2, 3], 1.0));
    head.write();
    let sharded = fixtures().join("bases/decoder_sharded");
    let [out, alone] = ["out", "alone"].map(|name| dir.path().join(name));
    let options = after(&[head.adapter_dir()]).new_tensors(true);
    let report = merge_checkpoint_with(&sharded, of_case("dora"), &out, &options)?;
    assert!(report.changed.contains(&"score.weight".to_string()));
    let merged = load_all(&out);
    assert_eq!(error(&merged["score.weight"], &tensor(&[2, 3], 1.0)), 0.0);
    let index = fs::read(out.join("model.safetensors.index.json"))?;
    let index: Value = serde_json::from_slice(&index)?;
    assert_eq!(
        index["weight_map"]["score.weight"],
        "model-00002-of-00002.safetensors"
    );
    let bytes: usize = merged.values().map(|t| t.elem_count() * 4).sum();
    assert_eq!(index["metadata"]["total_size"], bytes);

    let options = after(&of_order("linear"));
    merge_checkpoint_with(base("decoder", ""), of_case("dora"), &alone, &options)?;
    for (name, tensor) in load(alone) {
        assert_eq!(error(&merged[&name], &tensor), 0.0, "{name}");
    }
    Ok(())
}

#[test]
fn a_module_that_two_adapters_trained_is_an_error() -> Result {
    let with_head = |value: f32| {
        let mut made = Made::new();
        made.base.insert("head.weight".into(), tensor(&[2, 2], 0.0));
        made.config["modules_to_save"] = json!(["head"]);
        made.add("head.weight", tensor(&[2, 2], value));
        made.write();
        made
    };
    let (one, two) = (with_head(1.0), with_head(2.0));
    let merge = |first: &Path, last: &Path| {
        merge_checkpoint_with(
            one.base_path(),
            last,
            one.out(),
            &MergeOptions::new().first([first]),
        )
    };
    let error = merge(&one.adapter_dir(), &two.adapter_dir());
    let error = error.unwrap_err().to_string();
    let named = format!(
        "`head` was trained in full, and {} changes `head.weight`, too, to other values",
        one.adapter_dir().display()
    );
    assert!(error.contains(&named), "{error}");
    assert!(!one.out().exists());
    // The same values twice are no contradiction.
    merge(&one.adapter_dir(), &one.adapter_dir())?;
    let merged = load(one.out());
    assert_eq!(
        super::support::error(&merged["head.weight"], &tensor(&[2, 2], 1.0)),
        0.0
    );
    let twice = Made::new().merge(&MergeOptions::new())?;
    let base = tensor(&[3, 2], 1.0);
    let twice = ((twice["fc.weight"].clone() * 2.0)? - base)?;
    assert!(super::support::error(&merged["fc.weight"], &twice) < 1e-6);
    Ok(())
}

#[test]
fn rows_that_two_adapters_trained_are_an_error() -> Result {
    let with_rows = |rows: [u32; 2], value: f32| {
        let mut made = Made::new();
        let table = tensor(&[5, 2], 0.0);
        made.base.insert("embed_tokens.weight".into(), table);
        made.config["trainable_token_indices"] = json!({"embed_tokens": rows});
        let key = "embed_tokens.token_adapter.trainable_tokens_delta";
        made.add(key, tensor(&[2, 2], value));
        made.write();
        made
    };
    let (one, two, three) = (
        with_rows([0, 3], 7.0),
        with_rows([1, 3], 9.0),
        with_rows([1, 4], 9.0),
    );
    let merge = |last: &Made| {
        let options = MergeOptions::new().first([one.adapter_dir()]);
        merge_checkpoint_with(one.base_path(), last.adapter_dir(), one.out(), &options)
    };
    let error = merge(&two).unwrap_err().to_string();
    assert!(
        error.contains("row 3 of `embed_tokens.weight` was trained"),
        "{error}"
    );
    assert!(!error.contains("row 1 "), "{error}");
    merge(&three)?;
    let merged = load(one.out())["embed_tokens.weight"].to_vec2::<f32>()?;
    let first_of_rows: Vec<f32> = merged.iter().map(|row| row[0]).collect();
    assert_eq!(first_of_rows, [7.0, 9.0, 1.0, 7.5, 9.5]);
    Ok(())
}

/// The base's own copy of an embedding beside an adapter is known, although another changed the table.
#[test]
fn the_copy_of_an_adapted_embedding_is_still_the_bases() -> Result {
    let mut made = Made::new();
    let table = tensor(&[5, 2], 0.0);
    made.base
        .insert("embed_tokens.weight".into(), table.clone());
    made.config["target_modules"] = json!(["fc", "embed_tokens"]);
    made.add("embed_tokens.lora_embedding_A", tensor(&[1, 5], 0.5));
    made.add("embed_tokens.lora_embedding_B", tensor(&[2, 1], 0.5));
    made.add("embed_tokens.base_layer.weight", table.clone());
    made.write();
    let options = MergeOptions::new().first([made.adapter_dir()]);
    merge_checkpoint_with(made.base_path(), made.adapter_dir(), made.out(), &options)?;
    let alone = made.merge(&MergeOptions::new())?;
    let twice = ((alone["embed_tokens.weight"].clone() * 2.0)? - table)?;
    let options = MergeOptions::new().first([made.adapter_dir()]);
    merge_checkpoint_with(made.base_path(), made.adapter_dir(), made.out(), &options)?;
    let merged: Tensor = load(made.out())["embed_tokens.weight"].clone();
    assert!(error(&merged, &twice) < 1e-6);
    Ok(())
}

/// All sums are exact in f32, so that the same adapter twice gives the very blocks of its double.
#[test]
fn several_are_merged_into_a_gguf_file() -> Result {
    let gguf = fixtures().join("../gguf/merged");
    let (base, adapter) = (gguf.join("base.gguf"), gguf.join("adapter"));
    let dir = tempfile::tempdir()?;
    let [twice, double] = ["twice.gguf", "double.gguf"].map(|name| dir.path().join(name));
    let options = MergeOptions::new().first([&adapter]);
    let report = merge_gguf_with(&base, &adapter, &twice, &options)?;
    assert_eq!(report.layers.len(), 14);
    let weighted = AdapterDir::new(&adapter).weight(2.0);
    merge_gguf_with(&base, weighted, &double, &MergeOptions::new())?;
    assert!(fs::read(&twice)? == fs::read(&double)?);
    assert!(fs::read(&twice)? != fs::read(&base)?);
    Ok(())
}
