use crate::files::{Folder, error, json, random, read, rows, update};
use crate::{lora, text};
use candle_core::quantized::gguf_file::{Value as Field, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

fn run(args: &[&str]) -> Value {
    let output = lora(args.iter().copied()).arg("--json").assert().success();
    json(&output.get_output().stdout)
}

fn adapters(folder: &Folder) {
    for (name, seed) in [("one", 1), ("two", 3)] {
        folder.adapter(
            name,
            r#""r": 2, "lora_alpha": 3, "target_modules": ["up_proj"]"#,
            &[(
                "model.layers.0.mlp.up_proj",
                random(&[2, 32], seed),
                random(&[64, 2], seed + 1),
            )],
        );
    }
}

const WEIGHT: &str = "model.layers.0.mlp.up_proj.weight";

fn sum(folder: &Folder, base: &Tensor, weights: [f64; 2]) -> Tensor {
    let of = |name: &str, weight: f64| {
        update(
            &folder.path(name),
            WEIGHT.trim_end_matches(".weight"),
            1.5 * weight,
        )
    };
    let sum = (base.to_dtype(DType::F64).unwrap() + of("one", weights[0])).unwrap();
    (sum + of("two", weights[1])).unwrap()
}

#[test]
fn weights_and_several_adapters_add_up() {
    let folder = Folder::new();
    adapters(&folder);
    let base = random(&[64, 32], 9);
    folder.tensors(
        "base/model.safetensors",
        &[(WEIGHT, base.clone()), ("norm.weight", rows(&[[1.0, 2.0]]))],
    );
    std::fs::write(
        folder.path("base/config.json"),
        r#"{"torch_dtype": "float32"}"#,
    )
    .unwrap();
    // Beside the file that transformers names, others may lie.
    folder.tensors("base/other.safetensors", &[("x", rows(&[[1.0]]))]);
    let [from, out] = ["base", "out"].map(|name| folder.arg(name));
    let [one, two] = ["one", "two"].map(|name| folder.arg(name));
    let report = run(&[
        "merge",
        &from,
        &out,
        "--adapter",
        &format!("{one}=0.5"),
        "--adapter",
        &format!("{two}=-2"),
    ]);
    assert_eq!(
        (&report["changed"], &report["unchanged"]),
        (&serde_json::json!([WEIGHT]), &1.into())
    );
    let found = read(&folder.path("out/model.safetensors"));
    assert!(error(&found[WEIGHT], &sum(&folder, &base, [0.5, -2.0])) < 1e-6);
    assert!(!folder.path("out/other.safetensors").exists());

    // One alone, in another dtype: rounded once.
    let half = folder.arg("half");
    let report = run(&[
        "merge",
        &from,
        &half,
        "--adapter",
        &format!("{one}=0.5"),
        "--dtype",
        "bf16",
    ]);
    assert_eq!(
        report["settings"],
        serde_json::json!({"torch_dtype": "bfloat16"})
    );
    let found = read(&folder.path("half/model.safetensors"));
    let expected = sum(&folder, &base, [0.5, 0.0])
        .to_dtype(DType::F32)
        .unwrap();
    assert_eq!(
        (found[WEIGHT].dtype(), found["norm.weight"].dtype()),
        (DType::BF16, DType::BF16)
    );
    let off = error(&found[WEIGHT], &expected);
    assert!(off > 1e-4 && off < 4e-3, "{off}");
    let config = std::fs::read_to_string(folder.path("half/config.json")).unwrap();
    assert!(config.contains("\"torch_dtype\": \"bfloat16\""), "{config}");

    // From halves to whole floats the sum is not rounded to halves.
    let base = base.to_dtype(DType::BF16).unwrap();
    folder.tensors("half.safetensors", &[(WEIGHT, base.clone())]);
    let [from, out] = ["half.safetensors", "wide.safetensors"].map(|name| folder.arg(name));
    run(&["merge", &from, &out, "--adapter", &one, "--dtype", "f32"]);
    let found = read(&folder.path("wide.safetensors"));
    assert!(error(&found[WEIGHT], &sum(&folder, &base, [1.0, 0.0])) < 1e-6);
}

/// The index of shards counts the bytes of the other dtype.
#[test]
fn shards_are_merged_into_another_dtype() {
    let folder = Folder::new();
    adapters(&folder);
    let base = random(&[64, 32], 9);
    let shards = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    folder.tensors(&format!("base/{}", shards[0]), &[(WEIGHT, base.clone())]);
    let ids = Tensor::new(&[1i64, 2], &Device::Cpu).unwrap();
    let norm = rows(&[[1.0, 2.0]]);
    folder.tensors(
        &format!("base/{}", shards[1]),
        &[("ids", ids), ("norm.weight", norm)],
    );
    let map = serde_json::json!({WEIGHT: shards[0], "ids": shards[1], "norm.weight": shards[1]});
    let index =
        serde_json::json!({"metadata": {"total_size": 64 * 32 * 4 + 16 + 8}, "weight_map": map});
    let name = "model.safetensors.index.json";
    std::fs::write(folder.path("base").join(name), index.to_string()).unwrap();
    let [from, out, one] = ["base", "out", "one"].map(|name| folder.arg(name));
    run(&["merge", &from, &out, "--adapter", &one, "--dtype", "f16"]);
    let index = std::fs::read_to_string(folder.path("out").join(name)).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    assert_eq!(index["metadata"]["total_size"], 64 * 32 * 2 + 16 + 4);
    let found = read(&folder.path("out").join(shards[1]));
    assert_eq!(
        (found["ids"].dtype(), found["norm.weight"].dtype()),
        (DType::I64, DType::F16)
    );
    let found = read(&folder.path("out").join(shards[0]));
    assert!(error(&found[WEIGHT], &sum(&folder, &base, [1.0, 0.0])) < 1e-3);
}

#[test]
fn a_quantised_model_stays_one() {
    let folder = Folder::new();
    adapters(&folder);
    let base = random(&[64, 32], 9);
    let blocks = QTensor::quantize(&base, GgmlDType::Q8_0).unwrap();
    let fields = [
        ("general.architecture", Field::String("llama".into())),
        ("llama.attention.head_count", Field::U32(2)),
        ("llama.attention.head_count_kv", Field::U32(1)),
    ];
    let fields: Vec<(&str, &Field)> = fields.iter().map(|(key, field)| (*key, field)).collect();
    let mut file = std::fs::File::create(folder.path("base.gguf")).unwrap();
    write(&mut file, &fields, &[("blk.0.ffn_up.weight", &blocks)]).unwrap();
    let [from, out, one] = ["base.gguf", "out.gguf", "one"].map(|name| folder.arg(name));
    let report = run(&["merge", &from, &out, "--adapter", &one]);
    assert_eq!(report["changed"][0]["name"], "blk.0.ffn_up.weight");
    let told = report["changed"][0]["error"].as_f64().unwrap();
    assert!(told > 1e-4 && told < 0.01, "{told}");
    let found = run(&["diff", &from, &out]);
    let changed = sum(
        &folder,
        &blocks.dequantize(&Device::Cpu).unwrap(),
        [1.0, 0.0],
    );
    let expected = error(&changed, &blocks.dequantize(&Device::Cpu).unwrap());
    assert!(
        (found["relative"].as_f64().unwrap() / expected - 1.0).abs() < 0.01,
        "{found} {expected}"
    );
    let found = run(&["inspect", &out]);
    assert_eq!(
        (&found["format"], &found["tensors"][0]["dtype"]),
        (&"GGUF".into(), &"Q8_0".into())
    );

    let printed = |args: &[&str]| {
        text(
            &lora(args.iter().copied())
                .assert()
                .code(1)
                .get_output()
                .stderr,
        )
    };
    let wrong = printed(&["merge", &from, &out, "--adapter", &one]);
    assert!(wrong.contains("say --force"), "{wrong}");
    let wrong = printed(&[
        "merge",
        &from,
        &out,
        "--force",
        "--dtype",
        "f16",
        "--adapter",
        &one,
    ]);
    assert!(wrong.contains("--dtype is for safetensors"), "{wrong}");
}

/// The library's options have the names of flags in what the command prints.
#[test]
fn errors_name_flags() {
    let folder = Folder::new();
    let square = || random(&[4, 4], 1);
    folder.tensors(
        "base.safetensors",
        &[
            ("a.weight", square()),
            ("b.weight", random(&[3, 4], 2)),
            ("c.weight", random(&[4, 3], 2)),
        ],
    );
    let low = |input: usize, out: usize| (random(&[1, input], 3), random(&[out, 1], 4));
    let layers = [("a", low(4, 4)), ("b", low(4, 3)), ("c", low(4, 3))];
    let layers = layers.map(|(path, (a, b))| (path, a, b));
    folder.adapter(
        "adapter",
        r#""r": 1, "target_modules": ["a", "b", "c"]"#,
        &layers,
    );
    let [base, out, adapter] =
        ["base.safetensors", "out.safetensors", "adapter"].map(|name| folder.arg(name));
    let args = ["merge", &base, &out, "--adapter", &adapter];
    let printed = text(&lora(args).assert().code(1).get_output().stderr);
    assert!(
        printed.contains("say so with --fan-in-fan-out"),
        "{printed}"
    );
    assert!(!folder.path("out.safetensors").exists());
    lora(args).arg("--fan-in-fan-out=false").assert().success();
}

#[test]
fn a_gguf_file_becomes_a_model_in_full_precision() {
    let folder = Folder::new();
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/quantised");
    let [base, adapter] = ["llama.gguf", "adapter"].map(|name| format!("{fixtures}/{name}"));
    let out = folder.arg("full");
    let report = run(&[
        "merge",
        &base,
        &out,
        "--adapter",
        &adapter,
        "--dtype",
        "f16",
    ]);
    assert!(!report["changed"].as_array().unwrap().is_empty());
    let found = read(&folder.path("full/model.safetensors"));
    let weight = &found["model.layers.0.self_attn.q_proj.weight"];
    assert_eq!(weight.dtype(), DType::F16);
    let config = std::fs::read_to_string(folder.path("full/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["model_type"], "llama");
}

/// A GGUF file is told by how it begins; in a folder it may be the only file with weights.
#[test]
fn a_gguf_file_may_have_any_name() {
    let folder = Folder::new();
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/quantised");
    let [gguf, adapter] = ["llama.gguf", "adapter"].map(|name| format!("{fixtures}/{name}"));
    std::fs::create_dir(folder.path("folder")).unwrap();
    for name in ["model.bin", "model.safetensors", "folder/any.gguf"] {
        std::fs::copy(&gguf, folder.path(name)).unwrap();
    }
    run(&[
        "merge",
        &gguf,
        &folder.arg("out.gguf"),
        "--adapter",
        &adapter,
    ]);
    run(&["merge", &gguf, &folder.arg("full"), "--adapter", &adapter]);
    let expected = std::fs::read(folder.path("out.gguf")).unwrap();
    let weights = std::fs::read(folder.path("full/model.safetensors")).unwrap();
    for name in ["model.bin", "model.safetensors", "folder"] {
        let [base, out, full] = [name, "again.gguf", "again"].map(|name| folder.arg(name));
        run(&["merge", &base, &out, "--adapter", &adapter, "--force"]);
        assert!(
            std::fs::read(folder.path("again.gguf")).unwrap() == expected,
            "{name}"
        );
        run(&["merge", &base, &full, "--adapter", &adapter, "--force"]);
        let found = std::fs::read(folder.path("again/model.safetensors")).unwrap();
        assert!(found == weights, "{name}");
        assert_eq!(run(&["inspect", &base])["format"], "GGUF", "{name}");
        assert_eq!(run(&["diff", &base, &gguf])["relative"], 0.0, "{name}");
    }
    let options = ::lora::models::Options::new();
    let model = ::lora::models::auto(folder.path("model.bin"), &options).unwrap();
    assert!(model.into_decoder().is_ok());
    std::fs::write(folder.path("none.bin"), "GG").unwrap();
    let error = ::lora::models::auto(folder.path("none.bin"), &options).unwrap_err();
    assert!(error.to_string().contains("none.bin"), "{error}");
}

/// The order is told where it matters.
#[test]
fn the_order_of_adapters_is_told() {
    let folder = Folder::new();
    adapters(&folder);
    let base = random(&[64, 32], 9);
    folder.tensors("base.safetensors", &[(WEIGHT, base)]);
    let tensors = read(&folder.path("two/adapter_model.safetensors"));
    let mut tensors: Vec<(&str, Tensor)> = tensors
        .iter()
        .map(|(k, t)| (k.as_str(), t.clone()))
        .collect();
    let magnitude = (random(&[64], 5).abs().unwrap() + 0.5).unwrap();
    let key = "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector";
    tensors.push((key, magnitude));
    folder.tensors("dora/adapter_model.safetensors", &tensors);
    std::fs::write(
        folder.path("dora/adapter_config.json"),
        r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["up_proj"], "use_dora": true}"#,
    )
    .unwrap();
    let [from, out] = ["base.safetensors", "out.safetensors"].map(|name| folder.arg(name));
    let [one, two, dora] = ["one", "two", "dora"].map(|name| folder.arg(name));
    let half = format!("{one}=0.5");
    let printed = |adapters: [&str; 2]| {
        let args = [
            "merge",
            &from,
            &out,
            "--force",
            "--adapter",
            adapters[0],
            "--adapter",
            adapters[1],
        ];
        text(&lora(args).assert().success().get_output().stdout)
    };
    assert_eq!(
        printed([&half, &dora]),
        format!(
            "1 tensor changed, 0 as before; written to {out}\n\
             merged in this order: {one} (times 0.5), then {dora}: with DoRA, another order gives another \
             result\n"
        )
    );
    let first = read(&folder.path("out.safetensors"))[WEIGHT].clone();
    printed([&dora, &half]);
    let second = read(&folder.path("out.safetensors"))[WEIGHT].clone();
    assert!(error(&first, &second) > 1e-3);
    assert_eq!(
        printed([&one, &two]),
        format!(
            "1 tensor changed, 0 as before; written to {out}\n\
             merged in this order: {one}, then {two}\n"
        )
    );
    let report = run(&["merge", &from, &out, "--force", "--adapter", &half]);
    assert_eq!(
        report["adapters"],
        serde_json::json!([{"path": one, "weight": 0.5}])
    );
}
