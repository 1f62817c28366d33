//! The gradients of small LoRA models by differences of the loss, with and without recomputation.

use super::{CASES, folder, io, read};
use candle_core::safetensors::load;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use candle_nn::loss::cross_entropy;
use lora::models::decoder::Decoder;
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{assert_close, check_gradients, fill_adapters};
use std::collections::HashMap;

/// The loss of each token but the first, in the last nine positions.
fn loss(logits: &Tensor, ids: &Tensor) -> candle_core::Result<Tensor> {
    let logits = logits.narrow(1, 5, 8)?.flatten_to(1)?;
    let labels = ids.narrow(1, 6, 8)?.flatten_all()?;
    cross_entropy(&logits, &labels)
}

fn linear_layers(case: &str) -> LoraConfig {
    let all = r".*(_proj|\.gate|\.w[123])";
    LoraConfig::new(2)
        .seed(5)
        .target_modules(all)
        .modules_to_save(match case {
            // A head that shares the embedding's weight is trained with it.
            "llama_linear" => vec!["lm_head"],
            _ => vec![],
        })
}

#[test]
fn agree_with_differences_of_the_loss() {
    for case in CASES {
        let (base, io) = (read(case, DType::F64).model, io(case));
        let model = base.to_lora(&linear_layers(case)).unwrap();
        fill_adapters(&model);
        for mask in [None, Some(&io["mask"])] {
            let check = model
                .check_gradients(|model| Ok(loss(&model.forward(&io["ids"], mask)?, &io["ids"])?));
            if let Err(error) = check {
                panic!("{case}, {}: {error}", mask.is_some());
            }
        }
    }
}

/// The embedding and the norms pass their gradients, too: trained in full and by adapters.
#[test]
fn of_embeddings_and_norms() {
    for case in ["llama_llama3", "gemma2", "olmo2"] {
        let (base, io) = (read(case, DType::F64).model, io(case));
        let config = LoraConfig::new(2)
            .seed(5)
            .target_modules(["embed_tokens", "q_proj"])
            .modules_to_save(["norm"]);
        let model = base.to_lora(&config).unwrap();
        fill_adapters(&model);
        let check =
            model.check_gradients(|model| Ok(loss(&model.forward(&io["ids"], None)?, &io["ids"])?));
        check.unwrap_or_else(|error| panic!("{case}: {error}"));
    }
}

/// A base model in variables has the right gradients, too.
#[test]
fn base_models_have_them() {
    for (case, names) in [
        (
            "qwen3",
            [
                "layers.0.self_attn.k_norm",
                "layers.1.input_layernorm",
                "norm",
            ]
            .as_slice(),
        ),
        (
            "olmo2",
            &[
                "layers.0.self_attn.q_norm",
                "layers.0.post_feedforward_layernorm",
            ],
        ),
        (
            "qwen3_moe",
            &["layers.1.mlp.gate", "layers.1.post_attention_layernorm"],
        ),
    ] {
        let weights = load(folder(case).join("model.safetensors"), &Device::Cpu).unwrap();
        let (config, io) = (read(case, DType::F64).config, io(case));
        let mut tensors: HashMap<String, Tensor> = HashMap::new();
        for (name, tensor) in weights {
            tensors.insert(name, tensor.to_dtype(DType::F64).unwrap());
        }
        let mut vars = Vec::new();
        for name in names {
            let name = format!("model.{name}.weight");
            let var = Var::from_tensor(&tensors[&name]).unwrap();
            tensors.insert(name.clone(), var.as_tensor().clone());
            vars.push((name, var));
        }
        let vb = VarBuilder::from_tensors(tensors, DType::F64, &Device::Cpu);
        let model = Decoder::new(&config, vb).unwrap();
        let vars: Vec<(&str, &Var)> = vars.iter().map(|(name, var)| (&**name, var)).collect();
        check_gradients(case, &vars, || {
            loss(&model.forward(&io["ids"], None)?, &io["ids"])
        });
    }
}

#[test]
fn recomputed_ones_are_the_same() {
    for case in ["llama_linear", "gemma3", "qwen3_moe"] {
        let (base, io) = (read(case, DType::F32).model, io(case));
        let config = linear_layers(case).modules_to_save(Vec::<String>::new());
        let run = |config: &LoraConfig| {
            let model = base.to_lora(config).unwrap();
            fill_adapters(&model);
            let loss = loss(
                &model.forward(&io["ids"], Some(&io["mask"])).unwrap(),
                &io["ids"],
            );
            let grads = model.backward(&loss.unwrap()).unwrap();
            let vars = model.trainable_vars();
            vars.iter()
                .map(|var| grads.get(var).unwrap().clone())
                .collect::<Vec<_>>()
        };
        let layers = ["model.layers.0", "model.layers.1"];
        let (kept, anew) = (run(&config), run(&config.clone().recompute(layers)));
        assert_eq!(kept.len(), anew.len());
        for (kept, anew) in kept.iter().zip(&anew) {
            assert_close(case, anew, kept, 1e-6);
        }
    }
}

/// Without targets of its own, a configuration adapts what PEFT's does.
#[test]
fn queries_and_values_are_adapted_by_default() {
    for (case, expected) in [
        ("smollm2", ["q_proj", "v_proj"].as_slice()),
        ("mixtral", &["q_proj", "v_proj"]),
        ("phi3_partial", &["qkv_proj"]),
    ] {
        let model = read(case, DType::F32).model;
        let model = model.to_lora(&LoraConfig::new(2)).unwrap();
        let adapted = model
            .summary()
            .rows
            .into_iter()
            .filter(|row| row.rank.is_some());
        let paths: Vec<String> = adapted.map(|row| row.path).collect();
        let layer = |index| {
            expected
                .iter()
                .map(move |name| format!("model.layers.{index}.self_attn.{name}"))
        };
        assert_eq!(paths, (0..2).flat_map(layer).collect::<Vec<_>>());
    }
}
