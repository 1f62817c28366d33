//! Adapters for `fixtures/peft/check_adapters.py`, which loads them into PEFT.
//!
//! `LORA_PEFT_EXPORT=DIR cargo test -p lora-tests --test peft export` leaves them in DIR. Each is
//! also loaded here again.

use super::models::*;
use super::support::*;
use candle_core::{Device, Module, Tensor};
use lora::peft::{SaveOptions, TaskType};
use lora::{LoraConfig, LoraModel, LoraModule, TrainBias};
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

/// Trains a model a little, in effect: every trainable value becomes some other.
fn fill<M: LoraModule>(model: &M) -> Result {
    for (index, var) in model.trainable_vars().iter().enumerate() {
        let count = var.elem_count() as u32;
        let steps = Tensor::arange(0u32, count, var.device())?.to_dtype(candle_core::DType::F32)?;
        let values = (((steps * 1.7)? + index as f64)?.sin()? * 0.4)?;
        var.set(&values.reshape(var.shape())?.to_dtype(var.dtype())?)?;
    }
    Ok(())
}

struct Export {
    dir: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Export {
    fn new() -> Result<Self> {
        Ok(match std::env::var_os("LORA_PEFT_EXPORT") {
            Some(dir) => Self {
                dir: dir.into(),
                _temporary: None,
            },
            None => {
                let temporary = tempfile::tempdir()?;
                Self {
                    dir: temporary.path().into(),
                    _temporary: Some(temporary),
                }
            }
        })
    }

    /// Saves an adapter for the model of a fixture.
    fn write<T: Twin>(&self, name: &str, fixture: &str, config: LoraConfig) -> Result {
        let models: HashMap<_, _> = cases().into_iter().collect();
        let model = &models[fixture];
        let fixture = Fixture::new(fixture);
        self.write_model(
            name,
            model,
            &T::new(&fixture.base),
            &fixture.input(),
            config,
        )
    }

    /// Saves an adapter with base model, input and output.
    fn write_model<T>(
        &self,
        name: &str,
        model_name: &str,
        base: &T,
        input: &Tensor,
        config: LoraConfig,
    ) -> Result
    where
        T: LoraModel<Lora: Module> + Module,
    {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir)?;
        let params = base.to_frozen()?.named_params().into_iter();
        let params: HashMap<_, _> = params.map(|param| (param.path, param.tensor)).collect();
        candle_core::safetensors::save(&params, dir.join("base.safetensors"))?;
        fs::write(dir.join("model"), model_name)?;

        let mut model = base.to_lora(&config.seed(1))?;
        fill(&model)?;
        let options = SaveOptions::new().task_type(TaskType::FeatureExtraction);
        model.save_adapter_with(dir.join("adapter"), &options)?;
        model.eval();
        let output = model.forward(input)?;
        let io = HashMap::from([("input", input.clone()), ("output", output.clone())]);
        candle_core::safetensors::save(&io, dir.join("io.safetensors"))?;

        let loaded = base.with_adapter(dir.join("adapter"))?;
        assert_eq!(values(&loaded.forward(input)?), values(&output), "{name}");
        let changed = error(&base.forward(input)?, &output);
        assert!(changed > 0.05, "{name}: the adapter does nothing");
        Ok(())
    }
}

#[test]
fn export() -> Result {
    let export = Export::new()?;
    let config = |rank| {
        LoraConfig::new(rank)
            .alpha(5.0)
            .target_modules(["fc1", "fc2"])
    };
    let bias = |bias| config(3).train_bias(bias);

    export.write::<Mlp>("linear", "linear", config(3))?;
    export.write::<Mlp>("linear_rank1", "linear", config(1))?;
    export.write::<Mlp>("linear_rslora", "linear", config(4).use_rslora(true))?;
    let patterns = config(3).rank_pattern("fc2", 5).alpha_pattern("fc1", 2.5);
    export.write::<Mlp>("linear_patterns", "linear", patterns)?;
    export.write::<Mlp>("linear_bias_lora_only", "linear", bias(TrainBias::LoraOnly))?;
    export.write::<Mlp>("linear_bias_all", "linear", bias(TrainBias::All))?;
    export.write::<Mlp>("linear_head", "linear", config(3).modules_to_save(["head"]))?;
    let both = bias(TrainBias::All).modules_to_save(["head", "norm"]);
    export.write::<Mlp>("linear_head_bias_all", "linear", both)?;
    export.write::<Mlp>(
        "linear_bf16",
        "linear_bf16",
        config(3).modules_to_save(["head"]),
    )?;

    export.write::<Stack>("stack", "stack", config(2))?;
    let one = config(2).exclude_modules(["layers.1.fc1", "0.fc2"]);
    export.write::<Stack>("stack_exclude", "stack", one)?;
    let regex = config(2).target_modules(r".*\.fc1|head");
    export.write::<Stack>("stack_regex", "stack", regex)?;

    let patterns = config(2)
        .rank_pattern(r"1\.fc\d", 4)
        .rank_pattern("fc1", 3)
        .alpha_pattern("fc2", 7.0)
        .use_rslora(true);
    export.write::<Stack>("stack_patterns", "stack", patterns)?;

    let convs = |rank, names: &[&str]| {
        LoraConfig::new(rank)
            .alpha(6.0)
            .target_modules(names.to_vec())
    };
    export.write::<Conv1dNet>("conv1d", "conv1d", convs(3, &["conv"]))?;
    export.write::<Conv1dNet>("conv1d_head", "conv1d", convs(2, &["conv", "head"]))?;
    export.write::<Conv2dNet>("conv2d", "conv2d", convs(3, &["conv1", "conv2"]))?;
    let all = convs(2, &["conv2"])
        .train_bias(TrainBias::All)
        .modules_to_save(["conv1"]);
    export.write::<Conv2dNet>("conv2d_saved", "conv2d", all)?;
    export.write::<Conv2dNet>("conv2d_grouped", "conv2d_grouped", convs(4, &["conv1"]))?;
    export.write::<EmbedNet>("embedding", "embedding", convs(3, &["embed"]))?;
    export.write::<EmbedNet>("embedding_out", "embedding", convs(2, &["embed", "out"]))?;
    export.write::<EmbedNet>("embedding_saved", "embedding", {
        convs(2, &["out"]).modules_to_save(["embed"])
    })?;

    // A regular expression, as names would mean too much; a module with buffers.
    let input = Tensor::new(&[[0.3f32, -1.0, 0.5], [1.0, 0.1, -0.4]], &Device::Cpu)?;
    let nested = Nested::new();
    export.write_model(
        "nested",
        "nested",
        &nested,
        &input,
        LoraConfig::new(2).target_modules("b"),
    )?;
    let config = convs(2, &["fc"]).modules_to_save(["norm"]);
    export.write_model("normed", "normed", &Normed::new(0.25, 2.0)?, &input, config)?;
    Ok(())
}
