//! Generated text: the same however it is made.

use super::tokenizer;
use candle_core::{Device, Tensor};
use lora::models::decoder::{Decoder, DecoderConfig};
use lora::models::generate::{self as tokens, Decode, Settings};
use lora::models::{self, Options, Weights};
use lora::text::{Tokenizer, generate};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::fill_adapters;

const PROMPTS: [&str; 3] = ["The quick brown fox jumps", "A", "naïve 日"];

/// A model that writes what it is given, for each prompt.
struct Script {
    rows: Vec<Vec<u32>>,
    vocabulary: usize,
}

impl Decode for Script {
    type Cache = usize;

    fn new_cache(&self) -> usize {
        0
    }

    fn decode(&self, _: &Tensor, _: &Tensor, step: &mut usize) -> candle_core::Result<Tensor> {
        let mut logits = vec![0f32; self.rows.len() * self.vocabulary];
        for (row, tokens) in self.rows.iter().enumerate() {
            let token = tokens.get(*step).copied().unwrap_or(0);
            logits[row * self.vocabulary + token as usize] = 1.0;
        }
        *step += 1;
        Tensor::from_vec(logits, (self.rows.len(), self.vocabulary), &Device::Cpu)
    }

    fn device(&self) -> Device {
        Device::Cpu
    }
}

fn script(tokenizer: &Tokenizer, texts: &[&str]) -> Script {
    let tokens = |text: &&str| tokenizer.encode_plain(*text).unwrap().ids;
    Script {
        rows: texts.iter().map(tokens).collect(),
        vocabulary: tokenizer.vocabulary_size(),
    }
}

/// What the model writes, step by step.
fn pieces(model: &Script, tokenizer: &Tokenizer, settings: &Settings) -> Vec<Vec<String>> {
    let prompts = vec![vec![5u32]; model.rows.len()];
    let stream = generate(model, tokenizer, &prompts, settings).unwrap();
    stream.map(Result::unwrap).collect()
}

fn decoder(tokenizer: &Tokenizer) -> Decoder {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": tokenizer.vocabulary_size(), "hidden_size": 32,
        "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
    });
    let config: DecoderConfig = serde_json::from_value(config).unwrap();
    models::build::<Decoder>(&config, Weights::Random(3), &Options::new())
        .unwrap()
        .model
}

fn drawn() -> Settings {
    Settings::new().max_new_tokens(60).temperature(3.0).seed(11)
}

/// Drawn bytes are seldom whole characters.
#[test]
fn streamed_text_is_the_text_of_all_tokens() {
    let tokenizer = tokenizer("bytelevel");
    let model = decoder(&tokenizer);
    let prompts = tokenizer.encode_batch(PROMPTS).unwrap();
    let all = tokens::generate(&model, &prompts, &drawn()).unwrap();
    let all = all.into_tokens().unwrap();
    let stream = generate(&model, &tokenizer, &prompts, &drawn()).unwrap();
    let (mut streamed, mut empty) = (vec![String::new(); 3], 0);
    for step in stream {
        for (text, piece) in streamed.iter_mut().zip(step.unwrap()) {
            empty += usize::from(piece.is_empty());
            text.push_str(&piece);
        }
    }
    assert!(empty > 10, "{empty} steps waited for a whole character");
    for (row, prompt) in prompts.iter().enumerate() {
        let whole = [&prompt.ids[..], &all[row]].concat();
        let whole = tokenizer.decode(whole).unwrap();
        assert_eq!(format!("{}{}", PROMPTS[row], streamed[row]), whole);
    }
    let texts = generate(&model, &tokenizer, &prompts, &drawn()).unwrap();
    assert_eq!(texts.into_texts().unwrap(), streamed);
}

#[test]
fn pieces_are_whole_characters() {
    let text = "fox 日本 🦊!";
    for name in ["bytelevel", "metaspace"] {
        let tokenizer = tokenizer(name);
        let model = script(&tokenizer, &[text]);
        let settings = Settings::new().max_new_tokens(model.rows[0].len());
        let pieces = pieces(&model, &tokenizer, &settings);
        let pieces: Vec<&str> = pieces.iter().map(|step| step[0].as_str()).collect();
        assert_eq!(pieces.len(), model.rows[0].len(), "{name}");
        let joined = pieces.concat();
        assert_eq!(joined.trim_start(), text, "{name}");
        for character in ["日", "本", "🦊"] {
            assert!(pieces.contains(&character), "{name}: {pieces:?}");
        }
    }
}

#[test]
fn an_unfinished_character_comes_at_the_end() {
    let tokenizer = tokenizer("bytelevel");
    let model = script(&tokenizer, &["x🦊"]);
    let steps = model.rows[0].len() - 1;
    let pieces = pieces(&model, &tokenizer, &Settings::new().max_new_tokens(steps));
    let pieces: Vec<&str> = pieces.iter().map(|step| step[0].as_str()).collect();
    assert_eq!(pieces.concat(), "x\u{fffd}");
    assert_eq!(*pieces.last().unwrap(), "\u{fffd}");
}

/// A word after a prompt keeps the space that its token has.
#[test]
fn text_goes_on_where_the_prompt_ends() {
    let tokenizer = tokenizer("metaspace");
    let prompt = tokenizer.encode("The fox").unwrap();
    let model = script(&tokenizer, &["The fox reads the text"]);
    let rest = model.rows[0][prompt.ids.len() - 1..].to_vec();
    let settings = Settings::new().max_new_tokens(rest.len());
    let model = Script {
        rows: vec![rest],
        ..model
    };
    let texts = generate(&model, &tokenizer, &[prompt], &settings).unwrap();
    assert_eq!(texts.into_texts().unwrap(), [" reads the text"]);
}

#[test]
fn stop_strings_end_a_text_wherever_their_tokens_begin() {
    let tokenizer = tokenizer("bytelevel");
    let texts = [
        "a b##c###the rest",
        "no stop here##",
        "x\n\nUser: hi",
        "###",
    ];
    let model = script(&tokenizer, &texts);
    let settings = Settings::new()
        .max_new_tokens(40)
        .stop_tokens([0])
        .stop_strings(["###", "\n\nUser:"]);
    let pieces = pieces(&model, &tokenizer, &settings);
    let mut found = vec![String::new(); 4];
    for (step, pieces) in pieces.iter().enumerate() {
        for (text, piece) in found.iter_mut().zip(pieces) {
            text.push_str(piece);
        }
        for (text, expected) in found.iter().zip(["a b##c", "no stop here##", "x", ""]) {
            assert!(expected.starts_with(text), "step {step}: {text:?}");
        }
    }
    assert_eq!(found, ["a b##c", "no stop here##", "x", ""]);
    // All rows have ended: the longest with its stop token.
    let longest = model.rows[..2].iter().map(Vec::len).max().unwrap();
    assert!(pieces.len() <= longest + 1, "{} steps", pieces.len());

    let error = tokens::generate(&model, &[[1u32]], &settings)
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("call `text::generate`"),
        "{error}"
    );
    let error = generate(&model, &tokenizer, &[[1u32]], &settings.stop_strings([""]));
    assert_eq!(
        error.err().unwrap().to_string(),
        "the generation: a stop string is empty"
    );
}

#[test]
fn stop_tokens_have_no_text() {
    let tokenizer = tokenizer("bytelevel");
    let model = script(&tokenizer, &["fox!and more", "fo"]);
    let stop = tokenizer.encode_plain("!").unwrap().ids[0];
    let settings = Settings::new().max_new_tokens(30).stop_tokens([stop, 0]);
    let texts = generate(&model, &tokenizer, &[[5u32], [5]], &settings).unwrap();
    assert_eq!(texts.into_texts().unwrap(), ["fox", "fo"]);
}

#[test]
fn adapters_a_row_write_what_each_writes_alone() {
    let tokenizer = tokenizer("bytelevel");
    let config = LoraConfig::new(2).seed(1).target_modules(r".*_proj");
    let mut model = decoder(&tokenizer).to_lora(&config).unwrap();
    let other = LoraConfig::new(3).seed(4).target_modules(r".*q_proj");
    model.add_adapter("other", &other).unwrap();
    fill_adapters(&model);
    model.eval();
    let prompts = tokenizer.encode_batch(PROMPTS).unwrap();
    let adapters = [Some("other"), None, Some("default")];
    let rows = model.for_rows(&adapters).unwrap();
    let together = generate(&rows, &tokenizer, &prompts, &drawn()).unwrap();
    let together = together.into_texts().unwrap();
    for (row, adapter) in adapters.into_iter().enumerate() {
        let names: Vec<&str> = adapter.into_iter().collect();
        model.set_active(&names).unwrap();
        model.eval();
        let settings = drawn().seed(11 + row as u64);
        let alone = generate(&model, &tokenizer, &prompts[row..=row], &settings).unwrap();
        assert_eq!(
            alone.into_texts().unwrap(),
            [together[row].clone()],
            "{adapter:?}"
        );
    }
}

#[test]
fn settings_come_with_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |json: &str| {
        std::fs::write(folder.path().join("generation_config.json"), json).unwrap();
        Settings::from_directory(folder.path())
    };
    let several = settings(r#"{"eos_token_id": [2, 0], "stop_strings": ["a", "b"]}"#).unwrap();
    assert_eq!(
        (several.stop_tokens, several.stop_strings),
        (vec![2, 0], vec!["a".into(), "b".into()])
    );
    let one = settings(r#"{"eos_token_id": 2, "stop_strings": "a"}"#).unwrap();
    assert_eq!(
        (one.stop_tokens, one.stop_strings),
        (vec![2], vec!["a".to_string()])
    );
    let error = settings(r#"{"stop_strings": 3}"#).unwrap_err().to_string();
    assert!(
        error.ends_with("`stop_strings` is 3: one value or a list is expected"),
        "{error}"
    );
}
