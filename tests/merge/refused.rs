//! What is not merged, and why; and what options allow.

use super::support::*;
use candle_core::{DType, Device, Tensor};
use lora::peft::{MergeOptions, merge_checkpoint, merge_checkpoint_with, merged_var_builder_with};
use serde_json::json;
use std::fs;

#[test]
fn the_unchanged_pair_merges() -> Result {
    let merged = Made::new().merge(&MergeOptions::new())?;
    // 1 + i/4 for W, B·A with B = 2, 2.25, 2.5 and A = 1, 1.25.
    let expected = [[3.0, 3.75], [3.75, 4.5625], [4.5, 5.375]];
    assert_eq!(merged["fc.weight"].to_vec2::<f32>()?, expected);
    Ok(())
}

#[test]
fn keys_without_a_place_and_places_without_a_key() {
    let mut made = Made::new();
    made.add("other.lora_A.weight", tensor(&[1, 2], 0.0));
    made.add("other.lora_B.weight", tensor(&[3, 1], 0.0));
    made.add("norm.weight", tensor(&[3], 0.0));
    made.add("fc.lora_magnitude_vector", tensor(&[3], 1.0));
    made.add("fc.base_layer.bias", tensor(&[3], 1.0));
    made.refuse(&[
        "`other` is adapted, but the base has no `other.weight`",
        "norm.weight` is unexpected",
        "`fc` has a magnitude, but `use_dora` is false",
        "is a bias that the setting `bias` does not train",
    ]);

    let mut made = Made::new();
    made.remove("fc.lora_B.weight");
    made.config["modules_to_save"] = json!(["head"]);
    made.base.insert("head.weight".into(), tensor(&[1, 3], 0.0));
    made.base.insert("fc2.weight".into(), tensor(&[1, 3], 0.0));
    made.config["target_modules"] = json!(["fc", "fc2"]);
    made.refuse(&[
        "`fc` has a matrix A, but no B",
        "`head.weight` is in `modules_to_save`, but not in the adapter",
        "`fc2` is a target of the configuration, but the adapter has nothing",
    ]);

    let mut made = Made::new();
    made.config["use_dora"] = json!(true);
    made.refuse(&["`fc` has no magnitude"]);
    let mut made = Made::new();
    made.config["lora_bias"] = json!(true);
    made.refuse(&["`fc` has no `lora_B.bias`"]);
    made.add("fc.lora_B.bias", tensor(&[3], 1.0));
    made.base.remove("fc.bias");
    made.refuse(&["no `fc.bias` to add it to"]);
}

#[test]
fn a_key_with_and_without_its_prefix() {
    let mut made = Made::new();
    made.adapter
        .insert("fc.lora_A.weight".into(), tensor(&[1, 2], 0.0));
    made.refuse(&["`fc.lora_A.weight` with and without its prefix"]);
}

#[test]
fn shapes_and_ranks() {
    let shapes: [(&[usize], &[usize], &str); 6] = [
        (&[1, 3], &[3, 1], "do not fit"),
        (&[1, 2], &[3, 2], "do not fit"),
        (&[2, 2], &[3, 2], "its rank is 1"),
        (&[0, 2], &[3, 0], "its rank is 1"),
        (&[2], &[3, 1], "do not fit"),
        (&[1, 2, 1], &[3, 1, 1], "do not fit"),
    ];
    for (a, b, word) in shapes {
        let mut made = Made::new();
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        made.add("fc.lora_A.weight", zeros(a));
        made.add("fc.lora_B.weight", zeros(b));
        made.refuse(&[word]);
    }
    let mut made = Made::new();
    made.config["r"] = json!(u64::MAX);
    made.refuse(&["its rank is 18446744073709551615"]);
}

#[test]
fn values_that_are_not_finite() {
    for value in [f32::NAN, f32::INFINITY, f32::MAX] {
        let mut made = Made::new();
        made.add(
            "fc.lora_A.weight",
            Tensor::full(value, (1, 2), &Device::Cpu).unwrap(),
        );
        made.refuse(&["merging `fc.weight` gives values that are not finite"]);
    }
    // What is a number in f32 need not be one in f16.
    let mut made = Made::new();
    made.add(
        "fc.lora_A.weight",
        Tensor::full(1e5f32, (1, 2), &Device::Cpu).unwrap(),
    );
    let half = made.base["fc.weight"].to_dtype(DType::F16).unwrap();
    made.base.insert("fc.weight".into(), half);
    made.refuse(&["not finite in F16"]);
    // ‖V‖ is zero.
    let mut made = Made::new();
    made.config["use_dora"] = json!(true);
    made.add("fc.lora_magnitude_vector", tensor(&[3], 1.0));
    made.base.insert(
        "fc.weight".into(),
        tensor(&[3, 2], 0.0).zeros_like().unwrap(),
    );
    made.add(
        "fc.lora_B.weight",
        tensor(&[3, 1], 0.0).zeros_like().unwrap(),
    );
    made.refuse(&["not finite"]);
}

#[test]
fn dtypes() -> Result {
    let mut made = Made::new();
    let whole = made.base["fc.weight"].to_dtype(DType::U8)?;
    made.base.insert("fc.weight".into(), whole);
    made.refuse(&["`fc.weight` is U8"]);
    let mut made = Made::new();
    let whole = made.remove("fc.lora_A.weight").to_dtype(DType::I64)?;
    made.add("fc.lora_A.weight", whole);
    made.refuse(&["lora_A.weight` is I64"]);
    // f64 weights are merged in f64.
    let mut made = Made::new();
    let third = (Tensor::ones((3, 2), DType::F64, &Device::Cpu)? / 3.0)?;
    made.base.insert("fc.weight".into(), third);
    let merged = made.merge(&MergeOptions::new())?["fc.weight"].to_vec2::<f64>()?;
    assert_eq!(merged[0], [1.0 / 3.0 + 2.0, 1.0 / 3.0 + 2.5]);
    Ok(())
}

#[test]
fn a_changed_base_is_asked_for() -> Result {
    for name in [
        "pissa",
        "pissa_niter_4",
        "olora",
        "corda",
        "lora_ga",
        "loftq",
    ] {
        let mut made = Made::new();
        made.config["init_lora_weights"] = json!(name);
        made.refuse(&["`init_lora_weights` names", "residual_base"]);
        assert_eq!(
            made.merge(&MergeOptions::new().residual_base(true))?.len(),
            2
        );
    }
    let mut made = Made::new();
    made.config["arrow_config"] = json!({"top_k": 2});
    made.refuse(&["Arrow"]);
    Ok(())
}

#[test]
fn new_tensors_are_asked_for() -> Result {
    let mut made = Made::new();
    made.config["modules_to_save"] = json!(["score", "wide"]);
    made.add("score.weight", tensor(&[2, 3], 5.0));
    made.add("wide.weight", tensor(&[4, 2], 1.0));
    made.base.insert("wide.weight".into(), tensor(&[3, 2], 1.0));
    made.refuse(&[
        "no `score.weight` in the base",
        "wide.weight` has shape [4, 2]",
    ]);
    let merged = made.merge(&MergeOptions::new().new_tensors(true))?;
    assert_eq!(
        merged["score.weight"].to_vec2::<f32>()?,
        tensor(&[2, 3], 5.0).to_vec2::<f32>()?
    );
    assert_eq!(merged["wide.weight"].dims(), [4, 2]);

    // In shards they are in the last one and in the index.
    let dir = tempfile::tempdir()?;
    let shard = "model-00001-of-00001.safetensors";
    fs::copy(made.base_path(), dir.path().join(shard))?;
    let map = json!({"fc.weight": shard, "fc.bias": shard, "wide.weight": shard});
    let index = json!({"metadata": {"total_size": 60}, "weight_map": map});
    let name = "model.safetensors.index.json";
    fs::write(dir.path().join(name), index.to_string())?;
    let (out, options) = (
        dir.path().join("out"),
        MergeOptions::new().new_tensors(true),
    );
    merge_checkpoint_with(dir.path(), made.adapter_dir(), &out, &options)?;
    let index: serde_json::Value = serde_json::from_slice(&fs::read(out.join(name))?)?;
    assert_eq!(index["weight_map"]["score.weight"], shard);
    // Six values are new, two more in `wide`.
    assert_eq!(index["metadata"]["total_size"], 60 + 4 * 8);
    assert_eq!(load(out.join(shard)).len(), 4);
    Ok(())
}

#[test]
fn an_embeddings_weight_must_be_the_bases_own() -> Result {
    let mut made = Made::new();
    made.base
        .insert("embed_tokens.weight".into(), tensor(&[4, 2], 1.0));
    made.add("embed_tokens.base_layer.weight", tensor(&[4, 2], 1.0));
    let merged = made.merge(&MergeOptions::new())?;
    assert_eq!(
        error(&merged["embed_tokens.weight"], &tensor(&[4, 2], 1.0)),
        0.0
    );
    fs::remove_file(made.out())?;
    made.add("embed_tokens.base_layer.weight", tensor(&[4, 2], 2.0));
    made.refuse(&["differs from the base's `embed_tokens.weight`"]);
    let merged = made.merge(&MergeOptions::new().new_tensors(true))?;
    assert_eq!(
        error(&merged["embed_tokens.weight"], &tensor(&[4, 2], 2.0)),
        0.0
    );
    Ok(())
}

#[test]
fn trained_rows() {
    let mut made = Made::new();
    made.base
        .insert("embed_tokens.weight".into(), tensor(&[4, 2], 1.0));
    made.add(
        "embed_tokens.token_adapter.trainable_tokens_delta",
        tensor(&[2, 2], 9.0),
    );
    made.refuse(&["`trainable_token_indices` does not name `embed_tokens`"]);
    for indices in [json!([1]), json!([1, 4]), json!([2, 2]), json!([0, 1, 2])] {
        made.config["trainable_token_indices"] = indices;
        made.refuse(&["does not fit"]);
    }
    made.config["trainable_token_indices"] = json!({"embed_tokens": [3, 0]});
    let merged = made.merge(&MergeOptions::new()).unwrap();
    let rows = merged["embed_tokens.weight"].to_vec2::<f32>().unwrap();
    assert_eq!(rows, [[9.5, 9.75], [1.5, 1.75], [2.0, 2.25], [9.0, 9.25]]);
}

#[test]
fn square_weights_need_a_witness() -> Result {
    let mut made = Made::new();
    made.config["target_modules"] = json!(["fc", "square"]);
    made.base.insert(
        "square.weight".into(),
        Tensor::zeros((2, 2), DType::F32, &Device::Cpu)?,
    );
    made.add("square.lora_A.weight", tensor(&[1, 2], 1.0));
    made.add("square.lora_B.weight", tensor(&[2, 1], 2.0));
    let merged = made.merge(&MergeOptions::new())?;
    let delta = [[2.0, 2.5], [2.25, 2.8125]];
    assert_eq!(merged["square.weight"].to_vec2::<f32>()?, delta);
    fs::remove_file(made.out())?;
    // The flag says (in, out), `fc` is (out, in).
    made.config["fan_in_fan_out"] = json!(true);
    made.refuse(&["`square.weight` is square", "fan_in_fan_out"]);
    let merged = made.merge(&MergeOptions::new().fan_in_fan_out(true))?;
    let transposed = [[2.0, 2.25], [2.5, 2.8125]];
    assert_eq!(merged["square.weight"].to_vec2::<f32>()?, transposed);
    let merged = made.merge(&MergeOptions::new().fan_in_fan_out(false))?;
    assert_eq!(merged["square.weight"].to_vec2::<f32>()?, delta);
    Ok(())
}

/// Two parameters of the same, square shape: neither order nor layout can be seen.
#[test]
fn parameters_that_shapes_do_not_tell_apart() -> Result {
    let mut made = Made::new();
    made.config["target_modules"] = json!([]);
    made.config["target_parameters"] = json!(["experts.b", "experts.a"]);
    made.adapter.clear();
    for name in ["a", "b"] {
        let zeros = Tensor::zeros((2, 3, 3), DType::F32, &Device::Cpu)?;
        made.base.insert(format!("experts.{name}"), zeros);
    }
    for (path, value) in [("experts", 1.0), ("experts.base_layer", 5.0)] {
        made.add(&format!("{path}.lora_A.weight"), tensor(&[2, 3], value));
        made.add(&format!("{path}.lora_B.weight"), tensor(&[3, 2], value));
    }
    made.refuse(&["in several orders", "parameter_order"]);
    let options = MergeOptions::new().parameter_order(["b", "a"]);
    let problem = made.merge(&options).unwrap_err().to_string();
    assert!(problem.contains("transposed_parameters"), "{problem}");
    // `b` comes first in the code, so its adapter is innermost, with the value 5.
    let merged = made.merge(&options.clone().transposed_parameters(false))?;
    let first =
        |name: &str| -> Result<f32> { Ok(merged[name].flatten_all()?.to_vec1::<f32>()?[0]) };
    assert_eq!((first("experts.b")?, first("experts.a")?), (25.0, 1.0));
    let turned = made.merge(&options.transposed_parameters(true))?;
    let back = turned["experts.b"].transpose(1, 2)?;
    assert_eq!(error(&back, &merged["experts.b"]), 0.0);
    made.remove("experts.lora_A.weight");
    made.remove("experts.lora_B.weight");
    fs::remove_file(made.out())?;
    made.refuse(&["adapters of 1 parameters, but the base has 2"]);
    Ok(())
}

#[test]
fn damaged_files() -> Result {
    let made = Made::new();
    made.write();
    let path = made.adapter_dir().join("adapter_model.safetensors");
    let good = fs::read(&path)?;
    let merge = || merge_checkpoint(made.base_path(), made.adapter_dir(), made.out());
    for length in (0..good.len()).step_by(5) {
        fs::write(&path, &good[..length])?;
        assert!(
            merge()
                .unwrap_err()
                .to_string()
                .contains("is no valid file")
        );
    }
    fs::remove_file(&path)?;
    fs::write(path.with_extension("bin"), "pickle")?;
    assert!(merge().unwrap_err().to_string().contains("is a pickle"));
    fs::write(&path, &good)?;
    let base = fs::read(made.base_path())?;
    fs::write(made.base_path(), &base[..base.len() - 1])?;
    assert!(
        merge()
            .unwrap_err()
            .to_string()
            .contains("base.safetensors: is no valid file")
    );
    fs::write(made.base_path(), &base)?;
    let onto = merge_checkpoint(made.base_path(), made.adapter_dir(), made.base_path());
    assert!(onto.unwrap_err().to_string().contains("is the base itself"));
    assert_eq!(fs::read(made.base_path())?, base);
    merge()?;
    Ok(())
}

#[test]
fn damaged_indices() -> Result {
    let made = Made::new();
    made.write();
    let dir = tempfile::tempdir()?;
    let index = dir.path().join("model.safetensors.index.json");
    fs::copy(made.base_path(), dir.path().join("a.safetensors"))?;
    fs::copy(made.base_path(), dir.path().join("b.safetensors"))?;
    let (a, deep) = ("a.safetensors", "[".repeat(100_000));
    for (text, word) in [
        (
            json!({"weight_map": {"fc.weight": "../base.safetensors"}}),
            "no plain file name",
        ),
        (
            json!({"weight_map": {"fc.weight": "/etc/passwd"}}),
            "no plain file name",
        ),
        (
            json!({"weight_map": {"fc.weight": "x\\y"}}),
            "no plain file name",
        ),
        (
            json!({"weight_map": {"fc.weight": 3}}),
            "no plain file name",
        ),
        (
            json!({"weight_map": {"fc.weight": ".."}}),
            "no plain file name",
        ),
        (
            json!({"weight_map": {"fc.weight": "absent.safetensors"}}),
            "absent.safetensors",
        ),
        (
            json!({"weight_map": {"other": a}}),
            "puts `other` into `a.safetensors`",
        ),
        (
            json!({"weight_map": {"fc.weight": a, "fc.bias": "b.safetensors"}}),
            "in two files",
        ),
        (json!({"weight_map": []}), "weight_map"),
        (json!(deep), "weight_map"),
    ] {
        fs::write(&index, text.to_string())?;
        let out = dir.path().join("out");
        let problem = merge_checkpoint(dir.path(), made.adapter_dir(), &out).unwrap_err();
        assert!(
            problem.to_string().contains(word),
            "no `{word}` in {problem}"
        );
        assert!(!out.exists());
    }
    fs::write(&index, deep)?;
    let problem = merge_checkpoint(dir.path(), made.adapter_dir(), made.out()).unwrap_err();
    assert!(problem.to_string().contains("is not valid JSON"));
    fs::remove_file(&index)?;
    let problem = merge_checkpoint(dir.path(), made.adapter_dir(), made.out()).unwrap_err();
    assert!(problem.to_string().contains("name the file"), "{problem}");
    Ok(())
}

/// Whatever the bytes are, the answer is a merged file or an error.
#[test]
fn changed_bytes_never_panic() -> Result {
    let mut made = Made::new();
    made.config["use_dora"] = json!(true);
    made.config["trainable_token_indices"] = json!([3, 0]);
    made.base
        .insert("embed_tokens.weight".into(), tensor(&[4, 2], 1.0));
    made.add(
        "embed_tokens.token_adapter.trainable_tokens_delta",
        tensor(&[2, 2], 9.0),
    );
    made.add("fc.lora_magnitude_vector", tensor(&[3], 1.0));
    made.write();
    let mut state = 7u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let adapter = made.adapter_dir();
    let mut refused = 0;
    for path in [
        adapter.join("adapter_model.safetensors"),
        adapter.join("adapter_config.json"),
        made.base_path(),
    ] {
        let good = fs::read(&path)?;
        for _ in 0..300 {
            let mut bytes = good.clone();
            // Headers, where the structure is.
            let at = random(good.len().min(600));
            bytes[at] = random(256) as u8;
            fs::write(&path, bytes)?;
            let options = MergeOptions::new()
                .new_tensors(random(2) == 0)
                .keep_tied(true);
            let base = [made.base_path()];
            let (dtype, device) = (DType::F32, Device::Cpu);
            let merged = merged_var_builder_with(&base, &adapter, dtype, &device, &options);
            let loaded = merged.and_then(|(vb, check)| {
                for name in ["fc.weight", "fc.bias", "embed_tokens.weight"] {
                    vb.get_unchecked_dtype(name, dtype)?;
                }
                check.finish()
            });
            refused += usize::from(loaded.is_err());
        }
        fs::write(&path, good)?;
    }
    assert!(refused > 300, "{refused}");
    merge_checkpoint(made.base_path(), adapter, made.out())?;
    Ok(())
}

/// A file of very many names is refused in a time that grows with their number, not its square.
#[test]
fn very_many_names() -> Result {
    let made = Made::new();
    made.write();
    let mut header = serde_json::Map::new();
    let empty = |shape: [usize; 2]| json!({"dtype": "F32", "shape": shape, "data_offsets": [0, 0]});
    let count = 10_000;
    for number in 0..count {
        header.insert(format!("x{number}.a.lora_A.weight"), empty([0, 2]));
        header.insert(format!("x{number}.a.lora_B.weight"), empty([3, 0]));
        header.insert(format!("y{number}.lora_embedding_A"), empty([0, 3]));
        header.insert(format!("y{number}.lora_embedding_B"), empty([2, 0]));
        header.insert(format!("z{number}.weight"), empty([0, 1]));
    }
    let header = serde_json::to_vec(&header)?;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    fs::write(made.adapter_dir().join("adapter_model.safetensors"), bytes)?;
    let merged = merge_checkpoint(made.base_path(), made.adapter_dir(), made.out());
    let lora::Error::File { problems, .. } = merged.unwrap_err() else {
        panic!("another error");
    };
    // Those, the target that the file has nothing for, and what to do.
    assert_eq!(problems.len(), 3 * count + 2);
    Ok(())
}
