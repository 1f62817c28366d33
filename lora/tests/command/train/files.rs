//! Models and data that the tests make.

use super::Place;
use candle_core::{Device, Tensor};
use lora::models::encoder::{Encoder, EncoderConfig};
use lora::models::parameter_shapes;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;

const WORDS: [&str; 12] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "cheap", "offer", "buy", "meeting", "notes", "agenda",
    "the", "now",
];

impl Place {
    /// A BERT of a few thousand random numbers, without a head, and its tokenizer, in the folder `encoder`.
    pub fn encoder(&self) -> String {
        let dir = self.path("encoder");
        fs::create_dir_all(&dir).unwrap();
        let config = json!({
            "architectures": ["BertModel"], "model_type": "bert", "vocab_size": WORDS.len(),
            "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2,
            "max_position_embeddings": 16, "type_vocab_size": 2, "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        });
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let config: EncoderConfig = serde_json::from_value(config).unwrap();
        let mut tensors = HashMap::new();
        let mut seed = 1u64;
        for (name, shape) in parameter_shapes::<Encoder>(&config).unwrap() {
            let is_norm = name.contains("LayerNorm.weight");
            let values: Vec<f32> = (0..shape.elem_count())
                .map(|_| {
                    seed = seed
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    let drawn = (seed >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
                    if is_norm { 1.0 } else { drawn * 0.6 }
                })
                .collect();
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            tensors.insert(name, tensor);
        }
        candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
        let vocabulary: HashMap<&str, usize> = WORDS.into_iter().zip(0..).collect();
        let special = |id: usize| json!({"SpecialToken": {"id": WORDS[id], "type_id": 0}});
        let text = |name: &str, of: usize| json!({"Sequence": {"id": name, "type_id": of}});
        let second = json!({"SpecialToken": {"id": "[SEP]", "type_id": 1}});
        let token = |id: usize| json!({"id": WORDS[id], "ids": [id], "tokens": [WORDS[id]]});
        let added = |id: usize| {
            json!({
                "id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true
            })
        };
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": (0..4).map(added).collect::<Vec<_>>(),
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [special(2), text("A", 0), special(3)],
                "pair": [special(2), text("A", 0), special(3), text("B", 1), second],
                "special_tokens": {"[CLS]": token(2), "[SEP]": token(3)}
            },
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
        });
        fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        dir.to_str().unwrap().into()
    }

    /// Mails and others, told apart by their words.
    pub fn mails(&self) -> String {
        self.jsonl("mails.jsonl", mails(24))
    }

    /// The small language model, with a chat template beside it, in the folder `chat`.
    pub fn chat_model(&self) -> String {
        let dir = self.path("chat");
        fs::create_dir_all(&dir).unwrap();
        for entry in fs::read_dir(super::bard()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
        }
        let template = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n\
                        {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let config = json!({"chat_template": template});
        fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
        dir.to_str().unwrap().into()
    }
}

/// So many texts, of two classes in turn, all different.
pub fn mails(count: usize) -> Vec<Value> {
    let spam = ["cheap", "offer", "buy"];
    let ham = ["meeting", "notes", "agenda"];
    let filler = ["the", "now", "please", "the now"];
    (0..count)
        .map(|number| {
            let (words, label) = match number % 2 {
                0 => (spam, "spam"),
                _ => (ham, "ham"),
            };
            let (first, second) = (words[number / 2 % 3], words[number / 6 % 3]);
            let text = format!(
                "{first} {second} {} {}",
                filler[number / 2 % 4],
                filler[number / 8 % 4]
            );
            json!({"text": format!("{text} x{number}"), "label": label})
        })
        .collect()
}
