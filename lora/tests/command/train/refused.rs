//! What is refused, in which words. Nothing is written then.

use super::{Place, bard};
use crate::lora;
use serde_json::json;
use std::fs;

#[test]
fn what_is_missing_or_does_not_fit_is_named() {
    let place = Place::new();
    place.encoder();
    place.mails();
    place.jsonl(
        "texts.jsonl",
        ["one", "two", "three"].map(|text| json!({"text": text})),
    );
    place.jsonl("pairs.jsonl", [json!({"anchor": "a", "positive": "b"})]);
    place.write(
        "bad.jsonl",
        "{\"text\": \"a\", \"label\": 1}\n{\"text\": 5, \"label\": 1}\n",
    );
    place.write("mixed.jsonl", "{\"text\": \"a\"}\n{\"prompt\": \"b\"}\n");
    place.write("keys.jsonl", "{\"body\": \"a\"}\n");
    place.write("broken.jsonl", "{\"text\": \"a\"\n");
    place.write(
        "one.jsonl",
        "{\"text\": \"a\", \"label\": 1}\n{\"text\": \"b\", \"label\": 1}\n",
    );
    let bard = bard();
    let texts = format!("--model {bard} --data @texts.jsonl");
    let mails = "--model @encoder --data @mails.jsonl";
    let with = |given: &str, more: &str| format!("{given} {more}");
    for (line, error) in [
        (
            "--data @texts.jsonl".into(),
            "--model is missing: a directory with config.json, model.safetensors and tokenizer.json, a GGUF file, \
             or OWNER/NAME on the Hugging Face hub"
                .to_string(),
        ),
        (
            "--model @encoder".into(),
            "--data is missing: a JSONL file, a text, or a folder of images; `lora train --help` shows its lines"
                .into(),
        ),
        (
            "--model @nowhere/at/all --data @texts.jsonl".into(),
            "--model @nowhere/at/all is no directory, and no name on the Hugging Face hub, which is OWNER/NAME"
                .into(),
        ),
        (
            "--model @none.gguf --data @texts.jsonl".into(),
            "--model @none.gguf does not exist".into(),
        ),
        (
            "--model @encoder --data @none.jsonl".into(),
            "cannot read --data @none.jsonl: No such file or directory (os error 2)".into(),
        ),
        // Without its ending it would be a text, or a folder of images.
        (
            "--model @encoder --data @none".into(),
            "cannot read --data @none: No such file or directory (os error 2)".into(),
        ),
        (
            with(mails, "--valid @none"),
            "cannot read --valid @none: No such file or directory (os error 2)".into(),
        ),
        (
            "--model @encoder --data @encoder".into(),
            "--data @encoder is a folder, of images: cannot use --model @encoder: @encoder: there is no file beside it \
             that says what images it wants: `preprocessor_config.json` of transformers, or `pretrained_cfg` in \
             timm's `config.json` or in NAME.json for NAME.safetensors"
                .into(),
        ),
        (
            "--model @encoder --data @bad.jsonl".into(),
            "@bad.jsonl: line 2: invalid type: integer `5`, expected a string".into(),
        ),
        (
            "--model @encoder --data @mixed.jsonl".into(),
            "@mixed.jsonl: line 2: has `prompt` and `completion`, the records before have `text`: all must be of \
             one kind"
                .into(),
        ),
        (
            "--model @encoder --data @broken.jsonl".into(),
            "@broken.jsonl: line 1: no JSON: EOF while parsing an object, at column 12".into(),
        ),
        (
            "--model @encoder --data @one.jsonl".into(),
            "cannot use @one.jsonl: the data: all labels are of one class: at least two are needed".into(),
        ),
        (
            "--model @encoder --data @texts.jsonl".into(),
            "@texts.jsonl holds texts, which a language model learns; --model @encoder: the LoRA configuration \
             does not fit: a decoder is expected, the model is an encoder: `model_type` is \"bert\""
                .into(),
        ),
        (
            format!("--model {bard} --data @mails.jsonl"),
            format!(
                "cannot use --model {bard}: {bard}/config.json: `Options::task` is SequenceClassification: only \
                 encoders of text have tasks to choose from"
            ),
        ),
        (
            with(mails, "--valid @texts.jsonl"),
            "--valid @texts.jsonl holds something else than --data: both must be of one kind".into(),
        ),
        (
            with(mails, "--rank 1000000000"),
            "the LoRA configuration does not fit: rank is 1000000000, above the smaller side of every adapted \
             weight; it must be at most 16: bert.encoder.layer.0.attention.self.query (16), \
             bert.encoder.layer.0.attention.self.value (16), bert.encoder.layer.1.attention.self.query (16), \
             bert.encoder.layer.1.attention.self.value (16)"
                .into(),
        ),
        (
            with(mails, "--lr 0"),
            "--lr is 0: it must be above 0".into(),
        ),
        (
            with(mails, "--pack"),
            "--pack is for language models alone: leave it out".into(),
        ),
        (
            with(mails, "--lora-plus-ratio 4"),
            "--lora-plus-ratio has no effect with this optimiser: leave it out".into(),
        ),
        (
            with(mails, "--held-out 0 --patience 2"),
            "--patience needs data to measure with: --valid or --held-out".into(),
        ),
        (
            with(mails, "--epochs 1 --steps 3"),
            "--epochs and --steps exclude each other: keep one".into(),
        ),
        (
            with(mails, "--eval-every often"),
            "--eval-every: \"often\" is no number of steps from 1 on, nor `epoch` or `never`".into(),
        ),
        (
            with(mails, "--init none"),
            "--init: `none` is not an initial value".into(),
        ),
        (
            with(&texts, "--resume"),
            "--output @out holds no run to go on with: leave --resume out, or name the folder of the run".into(),
        ),
        (
            format!("--model {bard} --data @pairs.jsonl"),
            "--data @pairs.jsonl has too few pairs to hold some out: say --held-out 0, or name others by --valid"
                .into(),
        ),
    ] {
        assert_eq!(place.refused(&with(&line, "--output @out")), error, "{line}");
        assert!(!place.path("out").exists(), "{line}");
    }
    // The model has no template for conversations.
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    place.write(
        "chats.jsonl",
        format!("\n{}\n", json!({"messages": messages})),
    );
    // A model without a template.
    place.chat_model();
    fs::remove_file(place.path("chat/tokenizer_config.json")).unwrap();
    let words = place.refused("--model @chat --data @chats.jsonl --output @out");
    assert!(words.starts_with("@chats.jsonl: line 2: "), "{words}");
    place.jsonl("other.jsonl", [json!({"text": "a", "label": "eggs"})]);
    assert_eq!(
        place.refused(&with(mails, "--valid @other.jsonl --output @out")),
        "cannot use @other.jsonl: the data: the label \"eggs\" is none of ham, spam"
    );
    let words = place.refused("--model @encoder --data @keys.jsonl --output @out");
    assert!(
        words.starts_with("@keys.jsonl: line 1: has `body`: `text`, or `prompt`"),
        "{words}"
    );
    let words = place.refused(&with(mails, "--quantize q9 --output @out"));
    assert!(
        words.starts_with("--quantize: `q9` is not a quantisation: take one of q4_0"),
        "{words}"
    );
    let words = place.refused(&with(mails, "--target-modules quary --output @out"));
    assert!(words.contains("quary"), "{words}");
}

#[test]
fn a_line_that_cannot_be_understood_ends_with_2() {
    lora(["train", "--rank", "many"]).assert().code(2);
    lora(["train", "--lr", "nan"]).assert().code(2);
    lora(["train", "--resume", "--force"]).assert().code(2);
    lora(["train", "--schedule", "zigzag"]).assert().code(2);
}

#[test]
fn nothing_is_overwritten() {
    let place = Place::new();
    place.encoder();
    place.mails();
    let run = "--model @encoder --data @mails.jsonl --steps 1 --output @out";
    place.train(run);
    let held = fs::read(place.path("out/adapter_model.safetensors")).unwrap();
    place.write("out/mine.txt", "mine");
    assert_eq!(
        place.refused(&format!("{run} --seed 5")),
        "--output @out holds a run: go on with it by --resume, replace it by --force, or name another folder"
    );
    assert_eq!(
        fs::read(place.path("out/adapter_model.safetensors")).unwrap(),
        held
    );
    place.train(&format!("{run} --seed 5 --force"));
    assert_ne!(
        fs::read(place.path("out/adapter_model.safetensors")).unwrap(),
        held
    );
    assert_eq!(fs::read(place.path("out/mine.txt")).unwrap(), b"mine");

    fs::create_dir(place.path("adapter")).unwrap();
    place.write("adapter/adapter_config.json", "{}");
    let run = "--model @encoder --data @mails.jsonl --steps 1";
    assert_eq!(
        place.refused(&format!("{run} --output @adapter")),
        "--output @adapter holds adapter_config.json, which the run would write: name another folder, or replace \
         it by --force"
    );
    fs::create_dir(place.path("noted")).unwrap();
    place.write("noted/README.md", "my notes");
    assert_eq!(
        place.refused(&format!("{run} --output @noted --force")),
        "--output @noted: @noted/README.md: is not a card that this library wrote: move it away to get one"
    );
    place.write("file", "");
    assert_eq!(
        place.refused(&format!("{run} --output @file")),
        "--output @file is a file: name a folder"
    );
}

#[test]
fn a_run_that_cannot_learn_leaves_nothing_behind() {
    let place = Place::new();
    place.encoder();
    place.mails();
    let run =
        "--model @encoder --data @mails.jsonl --held-out 0 --lr 1e30 --clip 0 --warmup 0 --steps 9";
    let error = place.refused(&format!("{run} --save-every 1000 --output @out"));
    assert!(
        error.contains("not finite") && error.ends_with("try a lower --lr, now 1e30"),
        "{error}"
    );
    assert!(!place.path("out").exists());
}

/// Each process of several would train the same, into the same folder.
#[cfg(not(feature = "mpi"))]
#[test]
fn mpirun_needs_the_feature() {
    let output = crate::lora(["train"])
        .env("OMPI_COMM_WORLD_SIZE", "4")
        .output();
    assert_eq!(
        crate::text(&output.unwrap().stderr),
        "error: mpirun has started 4 processes, but this `lora` trains with one: build it with `--features \
         cli,mpi`\n"
    );
}
