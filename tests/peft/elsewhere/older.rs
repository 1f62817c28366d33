//! Files of older versions, quantised bases, bare encoders.

use super::*;

/// Older files name the bias of an adapted layer without PEFT's wrapper.
#[test]
fn biases_of_older_files() -> Result {
    for case in ["linear_bias_all", "linear_bias_lora_only"] {
        let fixture = Fixture::new(case);
        let mut files = Files::read(&fixture.adapter());
        let wrapped: Vec<String> = files
            .weights
            .0
            .keys()
            .filter(|key| key.contains("base_layer.bias"))
            .cloned()
            .collect();
        assert!(!wrapped.is_empty());
        for key in wrapped {
            files.rename(&key, &key.replace("base_layer.", ""));
        }
        let dir = tempfile::tempdir()?;
        files.write(dir.path());
        loads_anywhere::<Mlp>(&fixture, &dir.path().into());
    }
    Ok(())
}

#[test]
fn quantised_bases_say_what_they_are() -> Result {
    let fixture = Fixture::new("linear");
    for (end, dtype, what) in [
        ("weight.absmax", DType::F32, "bitsandbytes, to 4 bits"),
        ("SCB", DType::F32, "bitsandbytes, to 8 bits"),
        ("qweight", DType::I64, "GPTQ or AWQ"),
        ("weight", DType::F8E4M3, "8-bit floats (fp8)"),
    ] {
        let mut base = Weights::read(fixture.dir.join("base.safetensors"));
        let weight = base.0.remove("fc1.weight").unwrap();
        base.0.insert(format!("fc1.{end}"), weight.to_dtype(dtype)?);
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("base.safetensors");
        candle_core::safetensors::save(&base.0.into_iter().collect(), &path)?;
        let merged = merge_checkpoint(&path, fixture.adapter(), dir.path().join("m.safetensors"));
        refused(merged, &["the base is quantised by", what, "dequantised"]);
    }
    Ok(())
}

/// A bare encoder has no head that could share the embedding's weight, whatever its settings say.
#[test]
fn a_bare_encoder_is_not_tied() -> Result {
    let from = folder("bert_tokens");
    let dir = tempfile::tempdir()?;
    let base = dir.path().join("model.safetensors");
    std::fs::copy(from.join("base.safetensors"), &base)?;
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json"))?)?;
    let name = "embeddings.word_embeddings";
    let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &candle_core::Device::Cpu);
    let files = Files {
        config: json!({"peft_type": "LORA", "r": 1, "lora_alpha": 3, "target_modules": ["word_embeddings"]}),
        weights: Weights(
            [
                (
                    format!("base_model.model.{name}.lora_embedding_A"),
                    ones(&[1, 12])?,
                ),
                (
                    format!("base_model.model.{name}.lora_embedding_B"),
                    ones(&[8, 1])?,
                ),
            ]
            .into(),
        ),
    };
    let adapter = dir.path().join("adapter");
    files.write(&adapter);
    let out = dir.path().join("out.safetensors");
    // The checkpoint decides: one without a head's tensors is an encoder, whatever its configuration says.
    for architecture in ["BertModel", "BertForMaskedLM"] {
        config["architectures"] = json!([architecture]);
        config["tie_word_embeddings"] = json!(true);
        std::fs::write(dir.path().join("config.json"), config.to_string())?;
        merge_checkpoint(&base, &adapter, &out)?;
    }
    let (before, after) = (Weights::read(&base), Weights::read(&out));
    let name = format!("{name}.weight");
    assert!(error(&after.get(&name), &(before.get(&name) + 3.0)?) <= 1e-6);
    Ok(())
}
