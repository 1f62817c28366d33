//! Training on quantised weights, and PEFT's adapters.

use super::super::{folder, io};
use super::support::{ids, pair, wide};
use candle_core::quantized::GgmlDType;
use candle_core::safetensors::load;
use candle_core::{DType, Device, Tensor};
use lora::models::decoder::Decoder;
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::assert_close;

/// The loss over a quantised head gives the gradients that the dequantised head gives.
#[test]
fn trains_as_on_the_dequantised_weights() {
    let pair = wide(GgmlDType::Q4_1);
    let config = LoraConfig::new(4).seed(3);
    let grads = |model: &Decoder| {
        let model = model.to_lora(&config).unwrap();
        lora_tests::fill_adapters(&model);
        let loss = model.loss(&ids(), None, &ids()).unwrap();
        let grads = model.backward(&loss).unwrap();
        let vars = model.trainable_vars();
        let grads = vars
            .iter()
            .map(|var| grads.get(var).unwrap().flatten_all().unwrap());
        Tensor::cat(&grads.collect::<Vec<_>>(), 0).unwrap()
    };
    let (quantised, full) = (grads(&pair.quantised()), grads(&pair.full()));
    assert_close("gradients", &quantised, &full, 1e-4);
}

/// Adapters that PEFT made for the model in transformers' order of rows and names.
#[test]
fn adapters_of_peft_fit() {
    for case in ["llama_llama3", "phi3_partial", "gemma2"] {
        let (pair, io) = (pair(case, GgmlDType::Q8_0), io(case));
        let run = |model: Decoder| {
            let adapter = folder("peft").join(case).join("adapter");
            let model = model.with_adapter(adapter).unwrap();
            model.forward(&io["ids"], None).unwrap()
        };
        assert_close(case, &run(pair.quantised()), &run(pair.full()), 1e-4);
    }
    // In full precision these are PEFT's own numbers.
    let (pair, io) = (pair("llama_llama3", GgmlDType::F32), io("llama_llama3"));
    let case = folder("peft").join("llama_llama3");
    let model = pair.quantised().with_adapter(case.join("adapter")).unwrap();
    let logits = model.forward(&io["ids"], Some(&io["mask"])).unwrap();
    let expected = load(case.join("io.safetensors"), &Device::Cpu).unwrap();
    let first = |xs: &Tensor| xs.get(0).unwrap().to_dtype(DType::F32).unwrap();
    assert_close("PEFT", &first(&logits), &first(&expected["logits"]), 1e-5);
}

/// A merged model keeps its type, and one that is converted back keeps the very blocks.
#[test]
fn goes_back_to_its_blocks() {
    let model = wide(GgmlDType::Q4K).quantised();
    let expected = model.forward(&ids(), None).unwrap();
    let mut adapted = model.to_lora(&LoraConfig::new(2)).unwrap();
    let base = adapted.to_base().unwrap();
    assert_close("base", &base.forward(&ids(), None).unwrap(), &expected, 0.0);
    lora_tests::fill_adapters(&adapted);
    adapted.merge().unwrap();
    adapted.unmerge().unwrap();
    let adapted = adapted.disabled().unwrap();
    assert_close(
        "unmerged",
        &adapted.forward(&ids(), None).unwrap(),
        &expected,
        1e-6,
    );
}
