//! `LoraConfig::quantize`: a base in full precision becomes a quantised one as it is converted.

use super::{dequantised, pair};
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Tensor};
use candle_nn::Linear;
use lora::models::convnext::ConvNext;
use lora::models::decoder::{Decoder, DecoderConfig};
use lora::models::{self, Options, Weights};
use lora::{Adapted, LoraConfig, LoraModel, LoraModule};
use lora_tests::{assert_close, fill_adapters, values};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

#[test]
fn linear_layers_become_quantised() -> Result {
    let (_, mut full) = pair(GgmlDType::Q8_0);
    // The head shares the table, and stays as it is.
    full.head = Linear::new(full.embed.embeddings().clone(), None);
    let model = full.to_lora(&LoraConfig::new(2).quantize(GgmlDType::Q4_0))?;
    let dtypes = model.summary().rows.into_iter().map(|row| row.quantised);
    let q = Some(GgmlDType::Q4_0);
    assert_eq!(dtypes.collect::<Vec<_>>(), [None, q, q, None]);
    let expected = dequantised(&QTensor::quantize(full.up.weight(), GgmlDType::Q4_0)?);
    assert_eq!(
        values(&dequantised(model.up.adapters().blocks().unwrap()))?,
        values(&expected)?
    );
    assert!(model.unmerged_weight_is_nan());
    // What a base `Linear` gets back is the sum, in full precision.
    fill_adapters(&model);
    let base = model.to_base()?;
    let update = model
        .up
        .delta(model.up.adapters().get("default").unwrap())?;
    assert_close("base", base.up.weight(), &(expected + update)?, 1e-6);
    Ok(())
}

impl super::LoraFull {
    fn unmerged_weight_is_nan(&self) -> bool {
        let weight = self.up.unmerged_weight();
        let values = values(weight).unwrap();
        weight.stride() == [0, 0] && values.iter().all(|value| value.is_nan())
    }
}

#[test]
fn patterns_choose_the_layers() -> Result {
    let (_, full) = pair(GgmlDType::Q8_0);
    let config = LoraConfig::new(2).quantize(GgmlDType::Q5_0);
    let quantised = |config: &LoraConfig| -> Result<Vec<String>> {
        let rows = full.to_lora(config)?.summary().rows.into_iter();
        let rows = rows.filter(|row| row.quantised.is_some());
        Ok(rows.map(|row| row.path).collect())
    };
    assert_eq!(quantised(&config)?, ["up", "down", "head"]);
    assert_eq!(
        quantised(&config.clone().quantize_modules(["head"]))?,
        ["head"]
    );
    assert_eq!(
        quantised(&config.clone().quantize_modules(".*n"))?,
        ["down"]
    );
    let saved = config.clone().modules_to_save(["head"]);
    assert_eq!(quantised(&saved)?, ["up", "down"]);
    let refused = [
        (
            saved.quantize_modules(["head"]),
            "quantize_modules names `head`, which is trained in full",
        ),
        (
            config.clone().quantize_modules(["embed"]),
            "quantize_modules names `embed`, a Embedding: only a Linear is quantised",
        ),
        (
            config.clone().quantize_modules(["gate"]),
            "quantize_modules",
        ),
        (
            LoraConfig::new(2).quantize(GgmlDType::Q4K),
            "quantize: Q4K takes 256 inputs at a time, `up` has 32: take another type, or name the \
             other layers in quantize_modules",
        ),
        (
            LoraConfig::new(2).quantize(GgmlDType::F16),
            "quantize: F16 is not a quantisation",
        ),
        (
            LoraConfig::new(2).quantize_modules(["up"]),
            "quantize_modules has no effect without quantize",
        ),
    ];
    for (config, text) in refused {
        let error = full.to_lora(&config).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    let json = serde_json::to_value(&config)?;
    assert_eq!(json["lora_quantize"], "q5_0");
    assert_eq!(serde_json::from_value::<LoraConfig>(json)?, config);
    Ok(())
}

#[test]
fn a_decoder_trains_on_a_quantised_base() -> Result {
    let config: DecoderConfig = serde_json::from_str(
        r#"{"model_type": "llama", "vocab_size": 50, "hidden_size": 64, "intermediate_size": 96,
            "num_attention_heads": 4, "num_hidden_layers": 2, "tie_word_embeddings": true}"#,
    )?;
    let base = models::build::<Decoder>(&config, Weights::Random(0), &Options::new())?.model;
    let config = LoraConfig::new(4).target_modules("all-linear").seed(1);
    let config = config.quantize(GgmlDType::Q4_1).recompute("model.layers.0");
    let model = base.to_lora(&config)?;
    assert_eq!(
        model
            .summary()
            .rows
            .iter()
            .filter(|row| row.quantised.is_some())
            .count(),
        14
    );
    fill_adapters(&model);
    let ids = Tensor::new(&[[7i64, 3, 9, 1, 40, 2], [5, 6, 7, 8, 9, 10]], &Device::Cpu)?;
    let check = model.check_gradients(|model| Ok(model.loss(&ids, None, &ids)?))?;
    assert_eq!(check.layers, 14);
    Ok(())
}

/// Each matrix of a decoder is quantised as soon as it is made, the embedding and the head too.
#[test]
fn a_decoder_is_quantised_as_it_is_made() -> Result {
    let json = |width: usize| {
        serde_json::json!({
            "model_type": "llama", "vocab_size": 50, "hidden_size": width, "intermediate_size": 96,
            "num_attention_heads": 4, "num_hidden_layers": 2, "tie_word_embeddings": false,
        })
    };
    let config: DecoderConfig = serde_json::from_value(json(64))?;
    let weights = || Weights::Random(3);
    let options = Options::new().quantize(GgmlDType::Q5_0);
    let base = models::build::<Decoder>(&config, weights(), &options)?.model;
    let full = models::build::<Decoder>(&config, weights(), &Options::new())?.model;
    let (Some(QMatMul::QTensor(ours)), Some(QMatMul::Tensor(theirs))) = (
        base.lm_head().map(|head| head.weight()),
        full.lm_head().map(|head| head.weight()),
    ) else {
        panic!("{base:?}");
    };
    let expected = QTensor::quantize(theirs, GgmlDType::Q5_0)?;
    assert_eq!(ours.data()?, expected.data()?);
    let model = base.to_lora(&LoraConfig::new(2).target_modules("all-linear"))?;
    let rows = model.summary().rows.into_iter();
    let quantised = rows.filter(|row| row.quantised == Some(GgmlDType::Q5_0));
    assert_eq!(quantised.count(), 2 * 7 + 2);
    let ids = Tensor::new(&[[7i64, 3, 9, 1, 40, 2]], &Device::Cpu)?;
    let (ours, theirs) = (base.forward(&ids, None)?, full.forward(&ids, None)?);
    let error = lora_tests::relative_error(&ours, &theirs)?;
    assert!(error > 1e-4 && error < 0.2, "{error}");

    let refused = |config: &DecoderConfig, options: &Options, text: &str| {
        let error = models::build::<Decoder>(config, weights(), options).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    };
    let text = "quantize: Q4K takes 256 inputs at a time, `model.embed_tokens` has 64";
    refused(&config, &Options::new().quantize(GgmlDType::Q4K), text);
    let half = options.clone().dtype(DType::BF16);
    refused(
        &config,
        &half,
        "with quantised weights a model computes in F32",
    );
    let error = models::create::<ConvNext>("convnext_atto", weights(), &options).unwrap_err();
    let text = "`quantize` is Q5_0: only a decoder is quantised as it is read";
    assert!(error.to_string().contains(text), "{error}");
    Ok(())
}
