use crate::models::{adapt, arg, bard, write_lines};
use crate::{lora, object, text};
use ::lora::models::decoder::{Decoder, LoraDecoder};
use ::lora::models::generate::Settings;
use ::lora::models::{self, Options};
use ::lora::text::{Tokenizer, generate};
use ::lora::{LoraConfig, LoraModel, LoraModule};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

fn base() -> Decoder {
    let created = models::auto(bard(), &Options::new()).unwrap();
    created.into_decoder().unwrap().model
}

fn frozen() -> LoraDecoder {
    let mut model = base().to_frozen().unwrap();
    model.eval();
    model
}

/// What the library writes behind a prompt.
fn expected(model: &LoraDecoder, prompt: &str, settings: &Settings) -> String {
    let tokenizer = Tokenizer::from_directory(bard()).unwrap();
    let ids = tokenizer.encode(prompt).unwrap();
    let stop = Settings::from_directory(bard()).unwrap().stop_tokens;
    let settings = settings.clone().stop_tokens(stop);
    let texts = generate(model, &tokenizer, &[ids], &settings).unwrap();
    texts.into_texts().unwrap().concat()
}

#[test]
fn text_is_the_librarys_streamed_or_not() {
    let model = frozen();
    let greedy = expected(&model, "The king", &Settings::new().max_new_tokens(24));
    let args = [
        "generate",
        "--model",
        arg(bard()),
        "--prompt",
        "The king",
        "--max-tokens",
        "24",
    ];
    let output = lora(args).assert().success();
    assert_eq!(text(&output.get_output().stdout), format!("{greedy}\n"));
    assert_eq!(text(&output.get_output().stderr), "");

    let told = object(lora(args.into_iter().chain(["--json"])));
    let result = &told["results"][0];
    assert_eq!(result["text"], json!(greedy));
    assert_eq!(
        (&result["tokens"], &result["ended"]),
        (&json!(24), &json!("length"))
    );

    // Drawn; the second prompt has the next seed.
    let settings = Settings::new()
        .max_new_tokens(16)
        .temperature(0.8)
        .top_k(40)
        .top_p(0.9);
    let settings = settings.min_p(0.01).repetition_penalty(1.1);
    let drawn = [
        expected(&model, "My lord", &settings.clone().seed(5)),
        expected(&model, "O night", &settings.seed(6)),
    ];
    let args = [
        "generate",
        "--model",
        arg(bard()),
        "--prompt",
        "My lord",
        "--prompt",
        "O night",
        "--max-tokens",
        "16",
        "--temperature",
        "0.8",
        "--top-k",
        "40",
        "--top-p",
        "0.9",
        "--min-p",
        "0.01",
        "--repetition-penalty",
        "1.1",
        "--seed",
        "5",
    ];
    let output = lora(args).assert().success();
    let shown = format!(
        "--- 1: My lord\n{}\n\n--- 2: O night\n{}\n",
        drawn[0], drawn[1]
    );
    assert_eq!(text(&output.get_output().stdout), shown);
    assert_ne!(
        drawn[0],
        expected(&model, "My lord", &Settings::new().max_new_tokens(16))
    );
}

#[test]
fn a_text_ends_before_a_stop_text() {
    let whole = expected(&frozen(), "The king", &Settings::new().max_new_tokens(24));
    let stop: String = whole.chars().skip(8).take(3).collect();
    let place = whole.find(&stop).unwrap();
    let args = [
        "generate",
        "--model",
        arg(bard()),
        "--prompt",
        "The king",
        "--max-tokens",
        "24",
        "--stop",
        &stop,
        "--json",
    ];
    let told = object(lora(args));
    assert_eq!(told["results"][0]["text"], json!(whole[..place]));
    assert_eq!(told["results"][0]["ended"], json!("stop"));
}

#[test]
fn each_prompt_may_name_its_adapters() {
    let dir = tempfile::tempdir().unwrap();
    let [french, german] = ["french", "german"].map(|name| dir.path().join(name));
    let config = LoraConfig::new(2).target_modules(["q_proj", "v_proj", "down_proj"]);
    adapt(&base(), &config, 1, &french);
    adapt(&base(), &config, 2, &german);
    let mut model = base().with_adapter(french.as_path()).unwrap();
    model.rename_adapter("default", "french").unwrap();
    model.load_adapter_as("de", german.as_path()).unwrap();
    let settings = Settings::new().max_new_tokens(8);
    let mut texts = Vec::new();
    for names in [
        &["french"][..],
        &["de"],
        &[],
        &["french", "de"],
        &["french", "de"],
    ] {
        model.set_active(names).unwrap();
        model.eval();
        texts.push(expected(&model, "A day", &settings));
    }
    for (place, text) in texts.iter().enumerate() {
        assert_eq!(texts[..place].contains(text), place == 4, "{texts:?}");
    }
    let prompts = write_lines(
        &dir.path().join("prompts.jsonl"),
        &[
            json!({"prompt": "A day", "adapter": "french"}),
            json!({"prompt": "A day", "adapter": "de"}),
            json!({"prompt": "A day", "adapter": []}),
            json!({"prompt": "A day", "adapter": ["french", "de"]}),
            json!({"prompt": "A day"}),
        ],
    );
    let german = format!("de={}", arg(&german));
    let args = [
        "generate",
        "--model",
        arg(bard()),
        "--adapter",
        arg(&french),
        "--adapter",
        &german,
        "--prompt-file",
        arg(&prompts),
        "--max-tokens",
        "8",
        "--json",
    ];
    let told = object(lora(args));
    for (place, text) in texts.iter().enumerate() {
        assert_eq!(told["results"][place]["text"], json!(text), "{place}");
    }
    assert_eq!(told["results"][4]["adapters"], json!(["french", "de"]));

    write_lines(&prompts, &[json!({"prompt": "A day", "adapter": "latin"})]);
    let output = lora(args).assert().code(1);
    let error = text(&output.get_output().stderr);
    assert!(
        error.contains(
            "prompt 1 asks for the adapter latin, there are french, de: say --adapter latin=DIR"
        ),
        "{error}"
    );
}

fn refused(args: &[&str], problem: &str) {
    let args = ["generate"].iter().chain(args).copied();
    let output = lora(args).assert().code(1);
    let error = text(&output.get_output().stderr);
    assert!(error.contains(problem), "{error}");
    assert_eq!(text(&output.get_output().stdout), "");
}

#[test]
fn what_cannot_be_done_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let bard = bard();
    let model = ["--model", arg(bard)];
    let with = |more: &[&'static str]| -> Vec<String> {
        model
            .iter()
            .chain(more)
            .map(|word| word.to_string())
            .collect()
    };
    let refuse = |more: &[&'static str], problem: &str| {
        let args = with(more);
        refused(
            &args.iter().map(String::as_str).collect::<Vec<_>>(),
            problem,
        );
    };
    refuse(
        &[],
        "there is no prompt: say --prompt TEXT or --prompt-file FILE",
    );
    refuse(
        &["--prompt", "x", "--top-p", "0.9"],
        "--top-p has no effect: the temperature is 0",
    );
    refuse(
        &["--prompt-file", "none.txt"],
        "cannot read --prompt-file none.txt",
    );
    refused(&["--prompt", "x"], "--model is missing");
    let file = dir.path().join("prompts.jsonl");
    for (line, problem) in [
        ("{\"prompt\": 3}", "line 1: "),
        ("{}", "line 1 has neither `prompt` nor `messages`"),
        (
            "{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\"}]}",
            "line 1 has no message to answer",
        ),
        ("no", "line 1: no JSON"),
    ] {
        fs::write(&file, line).unwrap();
        refused(&[model[0], model[1], "--prompt-file", arg(&file)], problem);
    }
    // The command line itself.
    for (flag, value) in [
        ("--top-p", "2"),
        ("--temperature", "-1"),
        ("--max-tokens", "0"),
        ("--stop", ""),
    ] {
        let args = ["generate", model[0], model[1], "--prompt", "x", flag, value];
        let output = lora(args).assert().code(2);
        assert!(text(&output.get_output().stderr).contains(flag));
    }
}

#[test]
fn lines_of_a_file_or_of_the_input_are_prompts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompts.txt");
    fs::write(&file, "My lord\n\nO night\n").unwrap();
    let bard = bard();
    let args = |file| {
        [
            "generate",
            "--model",
            arg(bard),
            "--prompt-file",
            file,
            "--max-tokens",
            "4",
            "--json",
        ]
    };
    let of_file = object(lora(args(arg(&file))));
    assert_eq!(of_file["results"].as_array().unwrap().len(), 2);
    let mut command = lora(args("-"));
    command.write_stdin("My lord\nO night\n");
    assert_eq!(object(command)["results"], of_file["results"]);
}

/// As in `lora generate .. | head`.
#[test]
fn nobody_need_read_to_the_end() {
    let bard = bard();
    let mut child = Command::new(env!("CARGO_BIN_EXE_lora"))
        .args([
            "generate",
            "--model",
            arg(bard),
            "--prompt",
            "The king",
            "--max-tokens",
            "64",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(141), String::new())
    );
}

#[test]
fn a_model_that_writes_nothing_is_named() {
    let digits = crate::models::repository("examples/data/digits.safetensors");
    let output = lora(["generate", "--model", arg(&digits), "--prompt", "x"])
        .assert()
        .code(1);
    let error = text(&output.get_output().stderr);
    assert!(error.contains("digits.safetensors"), "{error}");
    assert!(Path::new(&digits).exists());
}
