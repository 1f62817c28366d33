//! What is written for models of every kind, and what cannot be.

use super::models::*;
use super::support::*;
use candle_core::{DType, Device, Module, ModuleT, Tensor, Var};
use candle_nn::Linear;
use lora::peft::{SaveOptions, TaskType};
use lora::{Init, LoraConfig, LoraModel, LoraModule, Targets, TrainBias};
use serde_json::{Value, json};
use std::fs;

fn mlp() -> Mlp {
    Mlp::new(&Fixture::new("linear").base)
}

fn stack() -> Stack {
    Stack::new(&Fixture::new("stack").base)
}

fn config(rank: usize) -> LoraConfig {
    LoraConfig::new(rank).init(Init::Random).seed(3)
}

/// Saves, loads again, compares the outputs; returns the configuration that was written.
fn round_trip<B: Twin>(base: &B, config: &LoraConfig, input: &Tensor) -> Result<Value> {
    let mut model = base.to_lora(config)?;
    model.eval();
    let dir = tempfile::tempdir()?;
    model.save_adapter(dir.path())?;
    let loaded = base.with_adapter(dir.path())?;
    let output = model.forward(input)?;
    assert_eq!(values(&loaded.forward(input)?), values(&output));
    assert!(error(&base.forward(input)?, &output) > 1e-2);
    // The file's own settings give a model that the file fits.
    let mut again = base.to_lora(&LoraConfig::from_pretrained(dir.path())?)?;
    again.load_adapter(dir.path())?;
    again.eval();
    assert_eq!(values(&again.forward(input)?), values(&output));
    Ok(read_config(dir.path()))
}

#[test]
fn the_file_has_all_of_pefts_keys() -> Result {
    let input = Fixture::new("linear").input();
    let config = config(3).alpha(1.5).dropout(0.25).target_modules(["fc1"]);
    let json = round_trip(&mlp(), &config, &input)?;
    // What PEFT writes for the same settings, but for its version and the model's class.
    let mut expected = read_config(&Fixture::new("linear").adapter());
    expected["auto_mapping"] = json!(null);
    expected["peft_version"] = json!(null);
    expected["lora_alpha"] = json!(1.5);
    expected["lora_dropout"] = json!(0.25);
    expected["target_modules"] = json!(["fc1"]);
    assert_eq!(json, expected);
    Ok(())
}

/// As a user of PEFT writes them: SGLang and others compare the last part of a path alone.
#[test]
fn targets_are_the_shortest_names() -> Result {
    let input = Fixture::new("stack").input();
    let written =
        |targets: Targets| round_trip(&stack(), &config(2).target_modules(targets), &input);
    for (targets, names, numbers) in [
        (r"layers\.\d\.fc1".into(), json!(["fc1"]), json!(null)),
        (
            "all-linear".into(),
            json!(["fc1", "fc2", "head"]),
            json!(null),
        ),
        // One layer of two: its names do, as `layers` has no module before it.
        (["1.fc2"].into(), json!(["layers.1.fc2"]), json!(null)),
        (
            ["layers.0.fc1", "fc2"].into(),
            json!(["layers.0.fc1", "fc2"]),
            json!(null),
        ),
    ] {
        let json = written(targets)?;
        assert_eq!(json["target_modules"], names);
        assert_eq!(json["layers_to_transform"], numbers);
    }
    Ok(())
}

/// Names and numbers, as `layers_to_transform` has them, where that is shorter.
#[test]
fn some_layers_of_many() -> Result {
    let weights = &Fixture::new("stack").base;
    let mut model = Stack::new(weights);
    for _ in 0..4 {
        let more = Stack::new(weights).layers;
        model.layers.extend(more);
    }
    let base = Deep { model };
    let dir = tempfile::tempdir()?;
    let write = |targets: Targets| -> Result<Value> {
        let model = base.to_lora(&config(2).target_modules(targets))?;
        model.save_adapter(dir.path())?;
        let (loaded, input) = (
            base.with_adapter(dir.path())?,
            Fixture::new("stack").input(),
        );
        assert_eq!(
            values(&loaded.forward(&input)?),
            values(&model.forward(&input)?)
        );
        Ok(read_config(dir.path()))
    };
    let json = write(r".*\.(1|3|4|7)\.fc\d".into())?;
    assert_eq!(json["target_modules"], json!(["fc1", "fc2"]));
    assert_eq!(json["layers_to_transform"], json!([1, 3, 4, 7]));
    // A target outside the layers needs its whole path.
    let json = write(r".*\.(1|3|4|7)\.fc\d|.*head".into())?;
    assert_eq!(json["target_modules"], json!(["fc1", "fc2", "model.head"]));
    assert_eq!(json["layers_to_transform"], json!([1, 3, 4, 7]));
    // Other layers in each of the four modules: no numbers say that.
    let json = write(r".*\.1\.fc1|.*\.2\.fc2".into())?;
    assert_eq!(
        json["target_modules"],
        json!(["layers.1.fc1", "layers.2.fc2"])
    );
    assert_eq!(json["layers_to_transform"], json!(null));
    Ok(())
}

/// So many layers that a search through all of them, for each of them, would be noticed.
#[test]
fn very_many_layers() -> Result {
    let weight = Tensor::ones((2, 2), DType::F32, &Device::Cpu)?;
    let linear = || Linear::new(weight.clone(), None);
    let block = |_| Block {
        fc1: linear(),
        fc2: linear(),
    };
    let base = Stack {
        layers: (0..12_000).map(block).collect(),
        head: linear(),
    };
    let dir = tempfile::tempdir()?;
    // No two of them follow from one name.
    let odd = r"layers\.\d*[13579]\.fc1|layers\.\d*[02468]\.fc2";
    let config = config(1).target_modules(odd).modules_to_save(["head"]);
    let model = base.to_lora(&config)?;
    model.save_adapter(dir.path())?;
    let json = read_config(dir.path());
    assert_eq!(
        json["target_modules"].as_array().map(Vec::len),
        Some(12_000)
    );
    let loaded = base.with_adapter(dir.path())?;
    assert_eq!(loaded.trainable_vars().len(), 2 * 12_000 + 1);
    Ok(())
}

/// The file alone decides, not the attributes of the model. `b` does not mean `a.b`, which is
/// trained in full.
#[test]
fn a_file_overrides_attributes() -> Result {
    let base = Nested::new();
    let mut model = base.to_lora(&config(4))?;
    let dir = tempfile::tempdir()?;
    model.save_adapter(dir.path())?;
    let json = read_config(dir.path());
    assert_eq!(json["target_modules"], json!(["b"]));
    assert_eq!(json["modules_to_save"], json!(["a.b"]));
    assert_eq!((&json["r"], &json["lora_alpha"]), (&json!(2), &json!(5)));

    // Not trained in full, `a.b` would be meant: a regular expression tells the two apart.
    let mut files = Files::read(dir.path());
    files.weights.0.retain(|key, _| !key.contains("a.b"));
    files.config["modules_to_save"] = json!(null);
    files.config["target_modules"] = json!("^(b)$");
    files.config["lora_alpha"] = json!(1);
    let plain = tempfile::tempdir()?;
    files.write(plain.path());
    let loaded = base.with_adapter(plain.path())?;
    loaded.save_adapter(dir.path())?;
    assert_eq!(read_config(dir.path())["target_modules"], json!("^(b)$"));
    let settings = loaded.b.adapters().iter().next().unwrap().settings();
    assert_eq!((settings.rank, settings.alpha), (2, 1.0));
    assert_eq!(loaded.trainable_vars().len(), 2);
    // The model made from the attributes trains more.
    let problem = model.load_adapter(plain.path()).unwrap_err().to_string();
    assert!(
        problem.contains("`a.b` is trained in full in the model"),
        "{problem}"
    );
    Ok(())
}

#[test]
fn ranks_and_alphas_that_differ_have_anchored_patterns() -> Result {
    let input = Fixture::new("stack").input();
    let config = config(2)
        .alpha(4.0)
        .target_modules(["fc1", "fc2"])
        .rank_pattern(r"^layers\.1\.fc1", 4)
        .rank_pattern("fc1", 3)
        .alpha_pattern("0.fc2", 2.5);
    let json = round_trip(&stack(), &config, &input)?;
    assert_eq!(json["r"], 2);
    assert_eq!(
        json["rank_pattern"],
        json!({r"^layers\.0\.fc1$": 3, r"^layers\.1\.fc1$": 4})
    );
    assert_eq!(json["alpha_pattern"], json!({r"^layers\.0\.fc2$": 2.5}));
    Ok(())
}

#[test]
fn rslora_is_seen_in_the_scaling() -> Result {
    let input = Fixture::new("stack").input();
    let config = config(4)
        .use_rslora(true)
        .target_modules(["fc1"])
        .rank_pattern("0.fc1", 2);
    let json = round_trip(&stack(), &config, &input)?;
    assert_eq!(json["use_rslora"], true);
    assert_eq!(json["lora_alpha"], 4);
    Ok(())
}

#[test]
fn biases_and_heads() -> Result {
    let input = Fixture::new("linear").input();
    let config = config(2).target_modules(["fc1"]);
    for (train_bias, name) in [(TrainBias::LoraOnly, "lora_only"), (TrainBias::All, "all")] {
        let config = config
            .clone()
            .train_bias(train_bias)
            .modules_to_save(["head"]);
        let json = round_trip(&mlp(), &config, &input)?;
        assert_eq!(json["bias"], name);
        assert_eq!(json["modules_to_save"], json!(["head"]));
    }
    Ok(())
}

#[test]
fn the_dtypes_of_the_model_are_kept() -> Result {
    let base = mlp().to_frozen()?.to_dtype(DType::BF16)?.to_base()?;
    let model = base.to_lora(&config(2).target_modules(["fc1"]).modules_to_save(["head"]))?;
    let dir = tempfile::tempdir()?;
    model.save_adapter(dir.path())?;
    let weights = Weights::read(dir.path().join("adapter_model.safetensors"));
    assert_eq!(
        weights.get("base_model.model.fc1.lora_A.weight").dtype(),
        DType::F32
    );
    assert_eq!(
        weights.get("base_model.model.head.weight").dtype(),
        DType::BF16
    );
    Ok(())
}

#[test]
fn a_merged_model_saves_the_same_bytes() -> Result {
    let mut model = mlp().to_lora(&config(2).target_modules(["fc1"]))?;
    let (plain, merged) = (tempfile::tempdir()?, tempfile::tempdir()?);
    model.save_adapter(plain.path())?;
    model.merge()?;
    model.save_adapter(merged.path())?;
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        assert_eq!(
            fs::read(plain.path().join(name))?,
            fs::read(merged.path().join(name))?
        );
    }
    Ok(())
}

#[test]
fn options_are_written() -> Result {
    let model = mlp().to_lora(&config(2).target_modules(["fc1"]))?;
    let dir = tempfile::tempdir()?;
    let options = SaveOptions::new()
        .base_model("some/model")
        .task_type(TaskType::Seq2SeqLm);
    model.save_adapter_with(dir.path(), &options)?;
    let json = read_config(dir.path());
    assert_eq!(json["base_model_name_or_path"], "some/model");
    assert_eq!(json["task_type"], "SEQ_2_SEQ_LM");
    mlp().with_adapter(dir.path())?;
    Ok(())
}

fn problem<M: LoraModule>(model: &M) -> String {
    let dir = tempfile::tempdir().unwrap();
    let problem = model.save_adapter(dir.path()).unwrap_err().to_string();
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "something was written"
    );
    problem
}

#[test]
fn what_the_format_cannot_express_is_refused() -> Result {
    let frozen = problem(&mlp().to_frozen()?);
    assert!(frozen.contains("the model has no adapter"), "{frozen}");
    let alone = problem(&mlp().fc1.to_lora(&config(2))?);
    assert!(alone.contains("the layer has no name"), "{alone}");

    // One bias of two.
    let mut model = stack().to_lora(
        &config(2)
            .target_modules(["fc1"])
            .train_bias(TrainBias::LoraOnly),
    )?;
    let other = stack().to_lora(&config(2).target_modules(["fc1"]))?;
    model.layers[1] = other.layers[1].clone();
    let some = problem(&model);
    assert!(some.contains("`layers.1.fc1.base_layer.bias`"), "{some}");

    // PEFT takes every module that ends in an entry's letters.
    let mut model = Nested::new().to_lora(&config(2))?;
    model.a = Inner {
        b: Nested::new().a.b,
    }
    .to_lora(&config(2).target_modules(["b"]))?;
    let trained =
        Inner { b: Nested::new().b }.to_lora(&LoraConfig::new(1).modules_to_save(["b"]))?;
    model.b = trained.b;
    let clash = problem(&model);
    assert!(
        clash.contains("the entry `b`") && clash.contains("`a.b`"),
        "{clash}"
    );
    Ok(())
}

/// For some tasks PEFT looks for heads of its own accord.
#[test]
fn a_task_whose_head_is_not_trained_is_refused() -> Result {
    let model = mlp().to_lora(&config(2).target_modules(["fc1"]))?;
    let dir = tempfile::tempdir()?;
    let options = SaveOptions::new().task_type(TaskType::SeqCls);
    // It takes any module that ends in `score` or `classifier`: none here.
    model.save_adapter_with(dir.path(), &options)?;
    let scored = Scored {
        score: Nested::new().b,
        a: Inner { b: Nested::new().b },
    };
    let model = scored.to_lora(&config(2).target_modules(["a.b"]))?;
    let problem = model
        .save_adapter_with(dir.path(), &options)
        .unwrap_err()
        .to_string();
    assert!(
        problem.contains("`score` of modules_to_save also means `score`"),
        "{problem}"
    );
    let model = scored.to_lora(&config(2).target_modules(["a.b"]).modules_to_save(["score"]))?;
    model.save_adapter_with(dir.path(), &options)?;
    scored.with_adapter(dir.path())?;
    Ok(())
}

#[test]
fn values_that_are_not_finite_leave_the_old_file() -> Result {
    let model = mlp().to_lora(&config(2).target_modules(["fc1"]))?;
    let dir = tempfile::tempdir()?;
    model.save_adapter(dir.path())?;
    let path = dir.path().join("adapter_model.safetensors");
    let before = fs::read(&path)?;
    let var: &Var = &model.trainable_vars()[1];
    var.set(&Tensor::full(f32::NAN, var.shape(), &Device::Cpu)?)?;
    let problem = model.save_adapter(dir.path()).unwrap_err().to_string();
    assert!(
        problem.contains("`fc1.lora_B.weight` holds values that are not finite"),
        "{problem}"
    );
    assert_eq!(fs::read(&path)?, before);
    assert_eq!(fs::read_dir(dir.path())?.count(), 2);
    Ok(())
}

/// A trained batch norm brings its statistics, and the counter that PEFT asks for.
#[test]
fn a_trained_batch_norm_is_saved_whole() -> Result {
    let (one, two) = (Normed::new(0.25, 2.0)?, Normed::new(0.0, 1.0)?);
    let model = one.to_lora(&config(1).target_modules(["fc"]).modules_to_save(["norm"]))?;
    let dir = tempfile::tempdir()?;
    model.save_adapter(dir.path())?;
    let weights = Weights::read(dir.path().join("adapter_model.safetensors"));
    let counter = weights.get("base_model.model.norm.num_batches_tracked");
    assert_eq!(
        (counter.dtype(), counter.dims()),
        (DType::I64, [].as_slice())
    );
    assert_eq!(weights.0.len(), 2 + 4 + 1);

    let loaded = two.with_adapter(dir.path())?;
    assert_eq!(values(loaded.norm.running_mean()), [0.25; 3]);
    assert_eq!(values(loaded.norm.running_var()), [2.0; 3]);
    let xs = Tensor::ones((2, 3), DType::F32, &Device::Cpu)?;
    let (a, b) = (
        loaded.norm.forward_t(&xs, false)?,
        model.norm.forward_t(&xs, false)?,
    );
    assert_eq!(values(&a), values(&b));
    Ok(())
}

/// MiCA freezes B. The file says so: after loading, B is not trained either.
#[test]
fn mica_stays_mica() -> Result {
    let base = mlp();
    let config = LoraConfig::new(2)
        .target_modules(["fc1"])
        .init(Init::Mica)
        .seed(3);
    let model = base.to_lora(&config)?;
    assert_eq!(model.trainable_vars().len(), 1);
    let dir = tempfile::tempdir()?;
    model.save_adapter(dir.path())?;
    assert_eq!(read_config(dir.path())["init_lora_weights"], json!("mica"));
    let mut loaded = base.with_adapter(dir.path())?;
    loaded.load_adapter_as("more", dir.path())?;
    for name in ["default", "more"] {
        loaded.set_active(&[name])?;
        let vars = loaded.trainable_vars();
        assert_eq!(vars.len(), 1, "{name}");
        assert_eq!(vars[0].dims()[0], 2, "{name}: A alone");
    }
    Ok(())
}
