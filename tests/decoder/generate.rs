//! Generated tokens: transformers', and the same however they are made.

use super::{folder, read};
use candle_core::{DType, Device, Tensor};
use lora::models::decoder::Decoder;
use lora::models::generate::{Settings, generate};
use lora::{Lora, LoraConfig, LoraModel, LoraModule};
use lora_tests::fill_adapters;
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    prompts: Vec<Vec<u32>>,
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    model: String,
    repetition_penalty: f64,
    tokens: Vec<Vec<u32>>,
}

fn fixture() -> Fixture {
    let json = std::fs::read(folder("generate.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

/// In one padded batch, the tokens are those that transformers gives to each prompt alone.
#[test]
fn tokens_are_those_of_transformers() {
    let Fixture { prompts, entries } = fixture();
    assert_eq!(entries.len(), 12);
    for entry in entries {
        let model = read(&entry.model, DType::F32).model;
        let settings = Settings::new()
            .max_new_tokens(12)
            .repetition_penalty(entry.repetition_penalty);
        let tokens = generate(&model, &prompts, &settings).unwrap().into_tokens();
        assert_eq!(tokens.unwrap(), entry.tokens, "{}", entry.model);
    }
}

fn drawn() -> Settings {
    let settings = Settings::new().max_new_tokens(10).temperature(1.2).seed(9);
    settings
        .top_k(40)
        .top_p(0.95)
        .min_p(0.01)
        .repetition_penalty(1.1)
}

#[test]
fn a_batch_draws_what_its_rows_draw_alone() {
    let prompts = fixture().prompts;
    for case in ["smollm2", "gemma3", "qwen3_moe", "mistral_window"] {
        let model = read(case, DType::F64).model;
        let batch = generate(&model, &prompts, &drawn())
            .unwrap()
            .into_tokens()
            .unwrap();
        for (row, prompt) in prompts.iter().enumerate() {
            let settings = drawn().seed(9 + row as u64);
            let alone = generate(&model, &[prompt], &settings)
                .unwrap()
                .into_tokens();
            assert_eq!(alone.unwrap(), [batch[row].clone()], "{case}, {row}");
        }
        let again = generate(&model, &prompts, &drawn())
            .unwrap()
            .into_tokens()
            .unwrap();
        assert_eq!(batch, again);
        let other = generate(&model, &prompts, &drawn().seed(77))
            .unwrap()
            .into_tokens();
        assert_ne!(batch, other.unwrap());
    }
}

/// The tokens without a cache: each from the whole sequence before it.
#[test]
fn the_cache_changes_no_token() {
    let prompt = vec![5u32, 8, 30, 12];
    for case in ["llama_llama3", "gemma2", "smollm3_window", "mixtral"] {
        let model = read(case, DType::F64).model;
        let mut sequence = prompt.clone();
        for _ in 0..10 {
            let ids = Tensor::new(sequence.as_slice(), &Device::Cpu)
                .unwrap()
                .unsqueeze(0)
                .unwrap();
            let logits = model.forward(&ids, None).unwrap();
            let last = logits.get(0).unwrap().get(sequence.len() - 1).unwrap();
            sequence.push(last.argmax(0).unwrap().to_scalar::<u32>().unwrap());
        }
        let settings = Settings::new().max_new_tokens(10);
        let tokens = generate(&model, &[&prompt], &settings)
            .unwrap()
            .into_tokens();
        assert_eq!(tokens.unwrap()[0], sequence[4..], "{case}");
    }
}

#[test]
fn sequences_end_at_their_stop_tokens() {
    let Fixture { prompts, entries } = fixture();
    let entry = entries.iter().find(|entry| entry.model == "olmo2").unwrap();
    let model = read("olmo2", DType::F32).model;
    // In the rows 49 comes fourth, 16 eighth and 36 third.
    let settings = Settings::new().max_new_tokens(12).stop_tokens([49, 16, 36]);
    let steps: Vec<Vec<Option<u32>>> = generate(&model, &prompts, &settings)
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let ends = entry.tokens.iter().map(|tokens| {
        let end = tokens.iter().position(|token| [49, 16, 36].contains(token));
        end.map_or(12, |end| end + 1)
    });
    let ends: Vec<usize> = ends.collect();
    assert!(ends.iter().any(|&end| end < 5));
    assert_eq!(steps.len(), *ends.iter().max().unwrap());
    for (step, tokens) in steps.iter().enumerate() {
        for (row, token) in tokens.iter().enumerate() {
            let expected = (step < ends[row]).then_some(entry.tokens[row][step]);
            assert_eq!(*token, expected, "step {step}, row {row}");
        }
    }
    let none = generate(&model, &prompts, &Settings::new().max_new_tokens(0)).unwrap();
    assert_eq!(none.into_tokens().unwrap(), vec![Vec::<u32>::new(); 3]);
}

/// A model whose adapter is on these layers.
fn adapted(case: &str, targets: &str) -> Lora<Decoder> {
    let model = read(case, DType::F64).model;
    let config = LoraConfig::new(2).seed(1).target_modules(targets);
    let mut model = model.to_lora(&config).unwrap();
    fill_adapters(&model);
    model.eval();
    model
}

#[test]
fn merged_or_not_the_tokens_are_the_same() {
    let prompts = fixture().prompts;
    let mut model = adapted("qwen3", r".*_proj");
    let unmerged = generate(&model, &prompts, &drawn())
        .unwrap()
        .into_tokens()
        .unwrap();
    model.merge().unwrap();
    let merged = generate(&model, &prompts, &drawn())
        .unwrap()
        .into_tokens()
        .unwrap();
    assert_eq!(merged, unmerged);
    let base = read("qwen3", DType::F64).model;
    let plain = generate(&base, &prompts, &drawn())
        .unwrap()
        .into_tokens()
        .unwrap();
    assert_ne!(plain, unmerged);
}

/// Each prompt with its own adapter, in one batch.
#[test]
fn adapters_a_row_give_what_each_gives_alone() {
    let prompts = fixture().prompts;
    for (case, targets, others) in [
        ("qwen3", r".*_proj", r".*(q_proj|down_proj|lm_head)"),
        ("qwen3_moe", r".*([qkv]_proj|gate)", r".*o_proj"),
        // Tokens of one expert then have adapters of their own.
        (
            "qwen3_moe",
            r".*(up_proj|q_proj)",
            r".*(gate_proj|down_proj|gate)",
        ),
        ("mixtral", r".*w[123]", r".*(w2|o_proj)"),
    ] {
        let mut model = adapted(case, targets);
        let config = LoraConfig::new(3).seed(4).target_modules(others);
        model.add_adapter("other", &config).unwrap();
        fill_adapters(&model);
        model.eval();
        let adapters = [Some("other"), None, Some("default")];
        let rows = model.for_rows(&adapters).unwrap();
        let together = generate(&rows, &prompts, &drawn()).unwrap();
        let together = together.into_tokens().unwrap();
        for (row, adapter) in adapters.into_iter().enumerate() {
            let settings = drawn().seed(9 + row as u64);
            let names: Vec<&str> = adapter.into_iter().collect();
            model.set_active(&names).unwrap();
            model.eval();
            let alone = generate(&model, &[&prompts[row]], &settings).unwrap();
            let alone = alone.into_tokens().unwrap();
            assert_eq!(alone, [together[row].clone()], "{case}, {adapter:?}");
        }
    }
}

/// Rows of different length, so that a token's place does not tell its row; an expert sees more tokens of
/// one row than of another.
#[test]
fn experts_compute_each_row_with_its_adapter() {
    for (case, targets, others) in [
        ("qwen3_moe", r".*(up|down)_proj", r".*gate_proj"),
        ("mixtral", r".*w[13]", r".*w2"),
    ] {
        let mut model = adapted(case, targets);
        let config = LoraConfig::new(3).seed(4).target_modules(others);
        model.add_adapter("other", &config).unwrap();
        fill_adapters(&model);
        model.eval();
        let adapters = [None, Some("other"), Some("default"), Some("other")];
        let ids: Vec<u32> = (0..4 * 5).map(|i| (7 * i + i / 5) % 40 + 1).collect();
        let ids = Tensor::from_vec(ids, (4, 5), &Device::Cpu).unwrap();
        let mask = [[1u32, 1, 1, 1, 1], [0, 1, 1, 1, 1], [1; 5], [0, 0, 0, 1, 1]];
        let mask = Tensor::new(&mask, &Device::Cpu).unwrap();
        let rows = model.for_rows(&adapters).unwrap();
        let together = rows.forward(&ids, Some(&mask)).unwrap();
        let mut each = Vec::new();
        for (row, adapter) in adapters.into_iter().enumerate() {
            let names: Vec<&str> = adapter.into_iter().collect();
            model.set_active(&names).unwrap();
            model.eval();
            let part = |tensor: &Tensor| tensor.narrow(0, row, 1).unwrap();
            let alone = model.forward(&part(&ids), Some(&part(&mask))).unwrap();
            let tokens = mask.to_vec2::<u32>().unwrap()[row].iter().sum::<u32>() as usize;
            let last = |tensor: &Tensor| tensor.narrow(1, 5 - tokens, tokens).unwrap();
            let what = format!("{case}, {adapter:?}");
            lora_tests::assert_close(&what, &last(&part(&together)), &last(&alone), 1e-12);
            each.push(last(&alone).narrow(1, tokens - 1, 1).unwrap());
        }
        // The adapters do something.
        assert!(lora_tests::relative_error(&each[0], &each[1]).unwrap() > 1e-3);
    }
}

#[test]
fn what_cannot_be_generated_is_an_error() {
    let model = read("llama_linear", DType::F32).model;
    let error =
        |prompts: &[Vec<u32>], settings: &Settings| match generate(&model, prompts, settings) {
            Ok(tokens) => tokens.into_tokens().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
    let plain = Settings::new();
    assert_eq!(error(&[], &plain), "the generation: there is no prompt");
    assert_eq!(
        error(
            &[vec![1], vec![]],
            &plain.clone().temperature(-1.0).top_k(0)
        ),
        "the generation:
  - temperature is -1: it must be 0 or more
  - top_k is 0: it must be at least 1
  - prompt 1 has no token"
    );
    let wrong = plain.clone().top_p(0.0).min_p(1.5).repetition_penalty(0.0);
    assert_eq!(
        error(&[vec![1]], &wrong),
        "the generation:
  - top_p is Some(0.0): it must be above 0 and at most 1
  - min_p is Some(1.5): it must be from 0 to 1
  - repetition_penalty is 0: it must be above 0"
    );
    assert!(!error(&[vec![56]], &plain).is_empty());

    let trained = model.to_lora(&LoraConfig::new(1)).unwrap();
    let mut tokens = generate(&trained, &[[1u32, 2]], &plain).unwrap();
    let error = tokens.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("call `eval()` of a LoRA model"), "{error}");
    assert!(tokens.next().is_none());
}

#[test]
fn settings_come_with_the_model() {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, json: &str| std::fs::write(directory.path().join(file), json).unwrap();
    let read = || Settings::from_directory(directory.path());
    write(
        "config.json",
        r#"{"model_type": "llama", "eos_token_id": 2, "temperature": 0.3}"#,
    );
    assert_eq!(read().unwrap(), Settings::new().stop_tokens([2]));
    write(
        "generation_config.json",
        r#"{"bos_token_id": 1, "do_sample": true, "eos_token_id": [106, 1], "temperature": 0.6, "top_p": 0.95,
            "max_new_tokens": 9, "repetition_penalty": 1.05, "num_beams": 1, "typical_p": 1,
            "transformers_version": "4.50.0"}"#,
    );
    let expected = Settings::new()
        .stop_tokens([106, 1])
        .temperature(0.6)
        .top_k(50)
        .top_p(0.95);
    let expected = expected.max_new_tokens(9).repetition_penalty(1.05);
    assert_eq!(read().unwrap(), expected);
    // Without `do_sample` the settings of drawing have no effect.
    write(
        "generation_config.json",
        r#"{"temperature": 0.6, "top_k": 20, "eos_token_id": null}"#,
    );
    assert_eq!(read().unwrap(), Settings::new());
    write(
        "generation_config.json",
        r#"{"do_sample": true, "top_k": 0, "top_p": 1.0, "temperature": -1, "num_beams": 4, "eos_token_id": "x"}"#,
    );
    let error = read().unwrap_err().to_string();
    let error = error.replace(&directory.path().display().to_string(), "DIR");
    assert_eq!(
        error,
        "DIR/generation_config.json:
  - `eos_token_id` is \"x\": one value or a list is expected
  - `num_beams` is 4: generation here has no such setting
  - temperature is -1: it must be 0 or more"
    );
}
