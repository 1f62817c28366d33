//! Records as tokens, of which the right ones are learned.

use super::{fixture, tokenizer};
use lora::data::{Message, NO_LABEL, Record, Sequence, SequenceOptions, Tokenize, sequences};
use lora::text::Tokenizer;
use std::fs;

fn record(json: &str) -> Record {
    serde_json::from_str(json).unwrap()
}

/// The texts of the stretches that are learned.
fn learned(tokenizer: &Tokenizer, sequence: &Sequence) -> Vec<String> {
    let stretches = sequence.labels.split(|&label| label == NO_LABEL);
    let ids = |labels: &[i64]| -> Vec<u32> { labels.iter().map(|&label| label as u32).collect() };
    stretches
        .filter(|labels| !labels.is_empty())
        .map(|labels| tokenizer.decode_all(ids(labels)).unwrap())
        .collect()
}

fn one(tokenizer: &Tokenizer, record: Record, options: &SequenceOptions) -> Sequence {
    sequences(tokenizer, &[record], options).unwrap().remove(0)
}

#[test]
fn texts_are_learned_whole_and_completions_without_their_prompt() {
    let tokenizer = tokenizer("bytelevel");
    let options = SequenceOptions::new(100);
    let text = one(&tokenizer, record(r#"{"text": "The fox."}"#), &options);
    assert_eq!(learned(&tokenizer, &text), ["The fox.<|im_end|>"]);
    assert_eq!(text.ids.len(), text.labels.len());

    let json = r#"{"prompt": "2 + 2 =", "completion": " 4"}"#;
    let completion = one(&tokenizer, record(json), &options);
    assert_eq!(
        tokenizer.decode_all(&completion.ids).unwrap(),
        "2 + 2 = 4<|im_end|>"
    );
    assert_eq!(learned(&tokenizer, &completion), [" 4<|im_end|>"]);
    let whole = one(
        &tokenizer,
        record(json),
        &options.clone().learn_prompts(true),
    );
    assert_eq!(learned(&tokenizer, &whole), ["2 + 2 = 4<|im_end|>"]);

    // Cut before the completion, nothing is left to learn.
    let records = [record(json), record(r#"{"text": "abc"}"#)];
    let cut = sequences(&tokenizer, &records, &SequenceOptions::new(3)).unwrap();
    assert_eq!(cut.len(), 1);
    assert_eq!(cut[0].ids.len(), 3);
}

const CHAT: &str = r#"{"messages": [
    {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."}, {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "Now."}]}"#;

#[test]
fn answers_of_a_conversation_are_learned() {
    let tokenizer = tokenizer("bytelevel");
    let options = SequenceOptions::new(200);
    let chat = one(&tokenizer, record(CHAT), &options);
    assert_eq!(
        tokenizer.decode_all(&chat.ids).unwrap(),
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n\
         <|im_start|>assistant\nSo.<|im_end|>\n<|im_start|>user\nWhen?<|im_end|>\n\
         <|im_start|>assistant\nNow.<|im_end|>\n"
    );
    assert_eq!(
        learned(&tokenizer, &chat),
        ["So.<|im_end|>\n", "Now.<|im_end|>\n"]
    );

    let last = r#"{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}], "completion": [{"role": "assistant", "content": "d"}]}"#;
    let last = one(&tokenizer, record(last), &options);
    assert_eq!(learned(&tokenizer, &last), ["d<|im_end|>\n"]);
}

#[test]
fn a_template_says_itself_what_is_generated() {
    let folder = super::tokenizer::copy("bytelevel");
    let change = |name: &str| {
        let template = fixture("templates").join(name);
        fs::copy(template, folder.path().join("chat_template.jinja")).unwrap();
        Tokenizer::from_directory(folder.path()).unwrap()
    };
    let tokenizer = change("generation.jinja");
    let chat = one(&tokenizer, record(CHAT), &SequenceOptions::new(200));
    assert_eq!(learned(&tokenizer, &chat), ["So.|", "Now.|"]);

    // Thoughts of earlier answers are taken out once others follow.
    let tokenizer = change("qwen.jinja");
    let thought = r#"{"messages": [{"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nx\n</think>\n\nb"}, {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"}]}"#;
    let error = sequences(&tokenizer, &[record(thought)], &SequenceOptions::new(200)).unwrap_err();
    let error = error.to_string();
    assert!(
        error.starts_with("the data: record 0: the chat template writes message 1"),
        "{error}"
    );
    let refused = record(
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}"#,
    );
    let metaspace = crate::tokenizer("metaspace");
    let error = sequences(&metaspace, &[refused], &SequenceOptions::new(9))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with(
            "the data: record 0: the chat template refuses the conversation: After the optional"
        ),
        "{error}"
    );
    let empty = [Message::new("assistant", "x")];
    assert!(Tokenize::render_chat(&tokenizer, &empty, &[], true).is_ok());
}
