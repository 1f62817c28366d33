//! Models and adapters by their names on the Hugging Face hub: a local server that speaks the hub's routes, and
//! a cache of the test's own.

use crate::models::{arg, bard, bert, colours, vit};
use crate::text;
use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub whose repositories are folders, `OWNER/NAME`, and the cache of those who use it.
struct Hub {
    dir: TempDir,
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            requests: Arc::default(),
            dir,
        };
        let (requests, files) = (hub.requests.clone(), hub.dir.path().join("hub"));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away is no failure of the server's.
                if let Ok(request) = respond(stream.unwrap(), &files) {
                    requests.lock().unwrap().push(request);
                }
            }
        });
        hub
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The folder of a repository, which is made.
    fn repository(&self, name: &str) -> PathBuf {
        let dir = self.path("hub").join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// The command with this hub.
    fn lora(&self, args: &[&str]) -> Command {
        let mut command = crate::lora(args.iter().copied());
        command
            .env("HF_ENDPOINT", &self.address)
            .env("HF_HUB_CACHE", self.path("cache"))
            .env_remove("HF_HUB_OFFLINE")
            .env_remove("HF_TOKEN");
        command
    }

    /// The files that were asked for since the last call, each once.
    fn requests(&self) -> Vec<String> {
        let mut requests = std::mem::take(&mut *self.requests.lock().unwrap());
        requests.sort();
        requests.dedup();
        requests
    }

    /// The error of the command, without this hub's address and folder.
    fn refused(&self, mut command: Command) -> String {
        let told = command.assert().code(1);
        let error = text(&told.get_output().stderr);
        error
            .replace(&self.address, "HUB")
            .replace(arg(self.dir.path()), "@")
    }
}

fn respond(mut stream: TcpStream, files: &Path) -> std::io::Result<String> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let route = request.split(' ').nth(1).unwrap_or_default();
    let name = route.trim_start_matches('/').replace("resolve/main/", "");
    let found = fs::read(files.join(&name));
    let (status, body) = match &found {
        Ok(bytes) => ("200 OK", bytes.as_slice()),
        Err(_) => ("404 Not Found", b"".as_slice()),
    };
    // Only a repository that there is has a commit.
    let is_there = files.join(&name).parent().is_some_and(Path::is_dir);
    let commit = match is_there {
        true => format!("X-Repo-Commit: {COMMIT}\r\n"),
        false => String::new(),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"{}\"\r\n{commit}Connection: close\r\n\r\n",
        body.len(),
        name.replace('/', "-")
    )?;
    if !request.starts_with("HEAD ") {
        stream.write_all(body)?;
    }
    Ok(name)
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn printed(mut command: Command) -> String {
    let told = command.assert().success();
    text(&told.get_output().stdout)
}

fn json(command: Command) -> Value {
    serde_json::from_str(&printed(command)).unwrap()
}

#[test]
fn a_language_model_comes_once_and_is_then_used_from_the_cache() {
    let hub = Hub::start();
    copy(bard(), &hub.repository("someone/bard"));
    let args = |model| {
        [
            "generate",
            "--model",
            model,
            "--prompt",
            "My lord, ",
            "--max-tokens",
            "12",
        ]
    };
    let expected = printed(crate::lora(args(arg(bard()))));
    assert_eq!(printed(hub.lora(&args("someone/bard"))), expected);
    let files = [
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    let files = files.map(|file| format!("someone/bard/{file}"));
    assert_eq!(hub.requests(), files);

    // What the repository lacks is not asked for again, either.
    assert_eq!(printed(hub.lora(&args("someone/bard"))), expected);
    let mut nowhere = hub.lora(&args("someone/bard"));
    nowhere.env("HF_ENDPOINT", "http://127.0.0.1:1");
    assert_eq!(printed(nowhere), expected);
    let mut offline = hub.lora(&args("someone/bard"));
    offline.env("HF_HUB_OFFLINE", "1");
    assert_eq!(printed(offline), expected);
    assert_eq!(hub.requests(), [""; 0]);
}

/// A model of images has no tokenizer, and says in a file of its own which images it wants.
#[test]
fn a_model_of_images_is_trained_by_its_name() {
    let hub = Hub::start();
    vit(&hub.repository("someone/vit"));
    let data = colours(hub.dir.path());
    let output = hub.path("out");
    let run = [
        "train",
        "--model",
        "someone/vit",
        "--data",
        arg(&data),
        "--output",
        arg(&output),
        "--epochs",
        "1",
        "--threads",
        "1",
        "--json",
    ];
    json(hub.lora(&run));
    let asked: Vec<String> = [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
    ]
    .map(|file| format!("someone/vit/{file}"))
    .into();
    assert_eq!(hub.requests(), asked);
    let config = fs::read(output.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["base_model_name_or_path"], "someone/vit");

    // The adapter's folder names its base, which is in the cache.
    let image = data.join("red/0.png");
    let args = ["classify", "--adapter", arg(&output), arg(&image), "--json"];
    let mut offline = hub.lora(&args);
    offline.env("HF_HUB_OFFLINE", "1");
    let found = json(offline);
    assert_eq!(hub.requests(), [""; 0]);

    // An adapter by its name, too; its names of classes come along.
    copy_files(&output, &hub.repository("someone/colours"));
    let args = [
        "classify",
        "--adapter",
        "someone/colours",
        arg(&image),
        "--json",
    ];
    assert_eq!(json(hub.lora(&args)), found);
    let asked = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "classes.json",
    ];
    assert_eq!(
        hub.requests(),
        asked.map(|file| format!("someone/colours/{file}"))
    );
}

fn copy_files(from: &Path, to: &Path) {
    for file in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "classes.json",
    ] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

#[test]
fn an_encoder_is_embedded_by_its_name() {
    let hub = Hub::start();
    let dir = hub.repository("someone/bert");
    bert(&dir, &[]);
    let args = |model| ["embed", "--model", model, "the cat sat", "--json"];
    let expected = printed(crate::lora(args(arg(&dir))));
    let values = |line: &str| -> Value {
        let mut told: Value = serde_json::from_str(line).unwrap();
        told.as_object_mut().unwrap().remove("model");
        told
    };
    let found = printed(hub.lora(&args("someone/bert")));
    assert_eq!(values(&found), values(&expected));
}

#[test]
fn what_cannot_be_had_is_named_with_its_reason() {
    let hub = Hub::start();
    let generate = |model| ["generate", "--model", model, "--prompt", "x"];
    let not_had = |flag: &str, name: &str, kind: &str| {
        format!(
            "error: {flag} {name} is no {kind}, and cannot be had from the Hugging Face hub under this name: "
        )
    };
    assert_eq!(
        hub.refused(hub.lora(&generate("someone/nothing"))),
        not_had("--model", "someone/nothing", "directory")
            + "someone/nothing/config.json: the hub at HUB has no such repository or file\n"
    );
    let mut offline = hub.lora(&generate("someone/nothing"));
    offline.env("HF_HUB_OFFLINE", "1");
    assert_eq!(
        hub.refused(offline),
        not_had("--model", "someone/nothing", "directory")
            + "someone/nothing/config.json: not in the cache, @/cache, and offline mode allows no download\n"
    );
    assert_eq!(
        hub.refused(hub.lora(&[
            "generate",
            "--model",
            arg(bard()),
            "--adapter",
            "someone/nothing",
            "--prompt",
            "x"
        ])),
        not_had("--adapter", "someone/nothing", "folder")
            + "someone/nothing/adapter_config.json: the hub at HUB has no such repository or file\n"
    );
    // A repository without weights that can be read, and one without a tokenizer.
    let repository = hub.repository("someone/pickle");
    fs::copy(bard().join("config.json"), repository.join("config.json")).unwrap();
    assert_eq!(
        hub.refused(hub.lora(&generate("someone/pickle"))),
        not_had("--model", "someone/pickle", "directory")
            + "someone/pickle/model.safetensors: the hub at HUB has no such repository or file\n"
    );
    let repository = hub.repository("someone/mute");
    copy(bard(), &repository);
    fs::remove_file(repository.join("tokenizer.json")).unwrap();
    let error = hub.refused(hub.lora(&generate("someone/mute")));
    assert!(
        error.starts_with("error: cannot use the tokenizer of --model someone/mute: ")
            && error.contains("tokenizer.json: "),
        "{error}"
    );
}
