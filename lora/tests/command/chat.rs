use crate::models::{adapt, arg, bard, write_lines};
use crate::{lora, object, text};
use ::lora::LoraConfig;
use ::lora::models::decoder::Decoder;
use ::lora::models::{self, Options};
use serde_json::json;
use std::fs;
use std::path::Path;

const TEMPLATE: &str = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}";

/// The small Llama with a chat template.
fn talker(dir: &Path) -> Decoder {
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(bard().join(file), dir.join(file)).unwrap();
    }
    fs::write(dir.join("chat_template.jinja"), TEMPLATE).unwrap();
    let created = models::auto(dir, &Options::new()).unwrap();
    created.into_decoder().unwrap().model
}

/// What `lora generate` writes behind a rendered conversation.
fn generated(dir: &Path, prompt: &str, more: &[&str]) -> String {
    let file = write_lines(&dir.join("prompt.jsonl"), &[json!({"prompt": prompt})]);
    let args = [
        "generate",
        "--model",
        arg(dir),
        "--prompt-file",
        arg(&file),
        "--max-tokens",
        "8",
        "--json",
    ];
    let told = object(lora(args.into_iter().chain(more.iter().copied())));
    told["results"][0]["text"].as_str().unwrap().to_string()
}

#[test]
fn answers_are_those_to_the_rendered_conversation() {
    let dir = tempfile::tempdir().unwrap();
    talker(dir.path());
    let first = "<system>Be brief\n<user>Hello there\n<assistant>";
    let one = generated(dir.path(), first, &["--seed", "3", "--temperature", "0.7"]);
    // The second is the answer to all that was said, from the cache.
    let second = format!("{first}{one}\n<user>And then?\n<assistant>");
    let two = generated(
        dir.path(),
        &second,
        &["--seed", "4", "--temperature", "0.7"],
    );
    let third = "<system>Be brief\n<user>Again\n<assistant>";
    let three = generated(dir.path(), third, &["--seed", "5", "--temperature", "0.7"]);

    let args = [
        "chat",
        "--model",
        arg(dir.path()),
        "--system",
        "Be brief",
        "--max-tokens",
        "8",
        "--temperature",
        "0.7",
        "--seed",
        "3",
    ];
    let said = "Hello there\n\nAnd then?\n/reset\nAgain\n/exit\nunheard\n";
    let mut command = lora(args);
    let output = command.write_stdin(said).assert().success();
    assert_eq!(
        text(&output.get_output().stdout),
        format!("{one}\n{two}\n{three}\n")
    );

    let mut command = lora(args.into_iter().chain(["--json"]));
    command.write_stdin("Hello there\nAnd then?");
    assert_eq!(
        object(command)["messages"],
        json!([
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "Hello there"},
            {"role": "assistant", "content": one},
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": two},
        ])
    );
    // `generate --chat` renders, too.
    let args = [
        "generate",
        "--model",
        arg(dir.path()),
        "--chat",
        "--system",
        "Be brief",
        "--prompt",
        "Hello there",
        "--max-tokens",
        "8",
        "--temperature",
        "0.7",
        "--seed",
        "3",
    ];
    let output = lora(args).assert().success();
    assert_eq!(text(&output.get_output().stdout), format!("{one}\n"));
}

#[test]
fn adapters_may_be_changed_while_talking() {
    let dir = tempfile::tempdir().unwrap();
    let base = talker(dir.path());
    let adapter = dir.path().join("tuned");
    adapt(
        &base,
        &LoraConfig::new(2).target_modules(["q_proj", "down_proj"]),
        1,
        &adapter,
    );
    let prompt = "<user>Hello\n<assistant>";
    let plain = generated(dir.path(), prompt, &[]);
    let tuned = generated(dir.path(), prompt, &["--adapter", arg(&adapter)]);
    assert_ne!(plain, tuned);

    let named = format!("tuned={}", arg(&adapter));
    let args = [
        "chat",
        "--model",
        arg(dir.path()),
        "--adapter",
        &named,
        "--max-tokens",
        "8",
    ];
    let said = "Hello\n/reset\n/adapter\nHello\n/reset\n/adapter tuned\nHello\n/adapter latin\n/what\n/help\n";
    let mut command = lora(args);
    let output = command.write_stdin(said).assert().success();
    assert_eq!(
        text(&output.get_output().stdout),
        format!("{tuned}\n{plain}\n{tuned}\n")
    );
    let notes = text(&output.get_output().stderr);
    for note in [
        "adapters: tuned; acting: none\n",
        "adapters: tuned; acting: tuned\n",
        "`latin`",
        "there is no /what:\n",
        "/reset            forget the conversation",
    ] {
        assert!(notes.contains(note), "{note}: {notes}");
    }
}

#[test]
fn a_model_without_a_template_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    talker(dir.path());
    fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    let output = lora(["chat", "--model", arg(dir.path())]).assert().code(1);
    let error = text(&output.get_output().stderr);
    let problem = "lora chat writes by the model's chat template; lora generate does without";
    assert!(error.contains(problem), "{error}");
    let args = [
        "generate",
        "--model",
        arg(dir.path()),
        "--chat",
        "--prompt",
        "Hello",
    ];
    let output = lora(args).assert().code(1);
    let error = text(&output.get_output().stderr);
    assert!(error.contains("cannot use prompt 1, Hello: "), "{error}");
}

/// The repository's model has one, in which Orsino talks with Viola.
#[test]
fn the_small_llama_answers() {
    let mut command = lora([
        "chat",
        "--model",
        arg(bard()),
        "--max-tokens",
        "16",
        "--stop",
        "\n\n",
    ]);
    let output = command.write_stdin("How now?\n").assert().success();
    let prompt = "ORSINO.\nHow now?\n\nVIOLA.\n";
    let args = [
        "generate",
        "--model",
        arg(bard()),
        "--prompt",
        prompt,
        "--max-tokens",
        "16",
        "--stop",
        "\n\n",
    ];
    let expected = lora(args).assert().success();
    assert_eq!(output.get_output().stdout, expected.get_output().stdout);
}
