//! A model of candle-transformers, unchanged, with an adapter that PEFT saved.

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use lora::peft::merged_var_builder;
use std::fs;
use std::path::Path;

type Result<T = (), E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// The largest difference between the logits and PEFT's, relative to the largest logit.
fn check(case: &str) -> Result {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/merge");
    let (base, case) = (
        fixtures.join("bases/llama"),
        fixtures.join("cases").join(case),
    );
    let config: LlamaConfig = serde_json::from_slice(&fs::read(base.join("config.json"))?)?;
    let config = config.into_config(false);
    let (dtype, device) = (DType::F32, Device::Cpu);

    let (vb, check) = merged_var_builder(&[&base], case.join("adapter"), dtype, &device)?;
    let model = Llama::load(vb, &config)?;
    check.finish()?;

    let expected = candle_core::safetensors::load(case.join("logits.safetensors"), &device)?;
    let (ids, expected) = (&expected["input_ids"], &expected["logits"]);
    let mut cache = Cache::new(false, dtype, &config, &device)?;
    // candle's Llama gives the last token's logits only.
    let count = ids.dim(1)?;
    for length in 1..=count {
        let logits = model.forward(&ids.narrow(1, 0, length)?, 0, &mut cache)?;
        let expected = expected.narrow(1, length - 1, 1)?.squeeze(1)?;
        let max = |tensor: Tensor| tensor.abs()?.max_all()?.to_scalar::<f32>();
        let error = max((&logits - &expected)?)? / max(expected)?;
        assert!(error < 1e-5, "{length} tokens: {error}");
    }

    // The adapter matters: the base alone computes something else.
    let files: Vec<_> = fs::read_dir(&base)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    let shards: Vec<_> = files
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    let mut tensors = std::collections::HashMap::new();
    for shard in shards {
        tensors.extend(candle_core::safetensors::load(shard, &device)?);
    }
    let vb = candle_nn::VarBuilder::from_tensors(tensors, dtype, &device);
    let base = Llama::load(vb, &config)?.forward(ids, 0, &mut cache)?;
    let expected = expected.narrow(1, count - 1, 1)?.squeeze(1)?;
    let difference = (base - expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(difference > 1e-2, "{difference}");
    Ok(())
}

#[test]
fn llama_with_every_linear_layer_adapted() -> Result {
    check("llama")
}

#[test]
fn llama_with_an_adapted_head_and_embedding() -> Result {
    check("llama_head")
}
