//! Conversations as text: transformers', for each kind of template.

use super::{fixture, read, tokenizer};
use lora::data::{Message, Tokenize};
use lora::text::{ChatOptions, Tokenizer};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::fs;

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    #[serde(default)]
    tools: Vec<Value>,
    rendered: Option<String>,
    error: Option<String>,
    generated: Option<Vec<String>>,
    /// What the template reads beside.
    #[serde(flatten)]
    values: Map<String, Value>,
}

#[test]
fn conversations_are_those_of_transformers() {
    let cases: Vec<Case> = read("chats.json");
    assert_eq!(cases.len(), 42);
    let tokenizer = tokenizer("metaspace");
    let mut problems = Vec::new();
    for (index, case) in cases.into_iter().enumerate() {
        let path = fixture("templates")
            .join(&case.template)
            .with_extension("jinja");
        let template = fs::read_to_string(path).unwrap();
        let mut options = ChatOptions::new()
            .prompt(case.add_generation_prompt)
            .tools(case.tools)
            .template(template)
            .now("2026-03-05T12:30:01");
        for (key, value) in case.values {
            options = options.with(key, value);
        }
        let found = tokenizer.render_chat(&case.messages, &options);
        match (found, case.rendered, case.error) {
            (Ok(found), Some(expected), None) if found == expected => {}
            (Err(found), None, Some(expected))
                if found
                    .to_string()
                    .ends_with(&format!("refuses the conversation: {expected}")) => {}
            (found, expected, error) => problems.push(format!(
                "{index} {}\n--- found\n{found:?}\n--- expected\n{expected:?} {error:?}",
                case.template
            )),
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
}

#[test]
fn generated_places_are_those_of_transformers() {
    let folder = super::tokenizer::copy("bytelevel");
    let template = fixture("templates/generation.jinja");
    fs::copy(template, folder.path().join("chat_template.jinja")).unwrap();
    let tokenizer = Tokenizer::from_directory(folder.path()).unwrap();
    let cases: Vec<Case> = read("chats.json");
    let cases = cases
        .iter()
        .filter_map(|case| Some((case, case.generated.as_ref()?)));
    for (case, expected) in cases {
        let rendered = Tokenize::render_chat(&tokenizer, &case.messages, &[], false).unwrap();
        let generated: Vec<&str> = rendered
            .generated
            .iter()
            .map(|place| &rendered.text[place.clone()])
            .collect();
        assert_eq!(generated, *expected);
    }
}

#[test]
fn a_template_is_found_by_its_name_and_by_its_file() {
    let message = [Message::new("user", "hi")];
    let metaspace = tokenizer("metaspace");
    let text = metaspace
        .render_chat(&message, &ChatOptions::new())
        .unwrap();
    assert_eq!(text, "<s>[INST] hi[/INST]");
    let tools = ChatOptions::new().tools([Value::from(1)]);
    assert_eq!(metaspace.render_chat(&message, &tools).unwrap(), "[1]hi");
    let named = ChatOptions::new().template("tool_use");
    assert_eq!(metaspace.render_chat(&message, &named).unwrap(), "nullhi");
    let ids = metaspace
        .encode_chat(&message, &ChatOptions::new())
        .unwrap()
        .ids;
    assert_eq!(
        ids.iter().filter(|&&id| id == 1).count(),
        1,
        "one start, the template's"
    );

    let error = metaspace.render_chat(&message, &ChatOptions::new().template("none"));
    let error = error.unwrap_err().to_string();
    assert!(
        error.ends_with("has no chat template `none`; there are: `default`, `tool_use`"),
        "{error}"
    );
    let error = tokenizer("wordpiece").render_chat(&message, &ChatOptions::new());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("has no chat template: neither chat_template.jinja"),
        "{error}"
    );

    let folder = super::tokenizer::copy("wordpiece");
    let json = r#"{"chat_template": "from json {{ messages[0].content }}"}"#;
    fs::write(folder.path().join("chat_template.json"), json).unwrap();
    let text = Tokenizer::from_directory(folder.path()).unwrap();
    let text = text.render_chat(&message, &ChatOptions::new()).unwrap();
    assert_eq!(text, "from json hi");
    fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    fs::write(
        folder.path().join("additional_chat_templates/rag.jinja"),
        "a file",
    )
    .unwrap();
    let text = Tokenizer::from_directory(folder.path()).unwrap();
    let rag = ChatOptions::new().template("rag");
    assert_eq!(text.render_chat(&message, &rag).unwrap(), "a file");
}

#[test]
fn a_damaged_template_is_an_error() {
    let tokenizer = tokenizer("metaspace");
    let message = [Message::new("user", "hi")];
    for (template, expected) in [
        ("{% for x in %}", "unexpected end of block"),
        ("{{ messages[0].a.b }}", "undefined"),
        ("{{ messages | nonsense }}", "nonsense"),
        ("{% generation %}", "end of"),
        (
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "recursion",
        ),
    ] {
        let options = ChatOptions::new().template(template);
        let error = tokenizer
            .render_chat(&message, &options)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("the text: the chat template: "),
            "{template}: {error}"
        );
        assert!(error.contains(expected), "{template}: {error}");
    }
    let error = tokenizer.render_chat(&[], &ChatOptions::new()).unwrap_err();
    assert_eq!(error.to_string(), "the text: a conversation has no message");
    let options = ChatOptions::new().now("noon");
    let error = tokenizer
        .render_chat(&message, &options)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("the text: the time `noon`: "), "{error}");
}
