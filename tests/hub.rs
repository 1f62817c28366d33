//! Pretrained weights from a hub: a local server that speaks the hub's routes.

use candle_core::Device;
use candle_core::safetensors::save;
use lora::models::convnext::ConvNext;
use lora::models::{self, Created, Hub, Options, Weights};
use lora::{Error, LoraModel, LoraModule};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const NAME: &str = "test_convnext2";
const ROUTE: &str = "/timm/test_convnext2.r160_in1k/resolve/main/model.safetensors";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does when it is asked for the file.
#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Whole,
    /// Closes the connection halfway.
    Cut,
    /// Sends half the file and says that it is all.
    Half,
    /// Sends another page in its place.
    Page,
    /// Sends a page in the file's place when asked for its length too.
    OnlyPages,
    NotFound,
}

struct Server {
    address: String,
    answer: Arc<Mutex<Answer>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// A server that holds one file.
    fn start(answer: Answer, file: Vec<u8>) -> Self {
        Self::of(answer, HashMap::from([(ROUTE.to_string(), file)]))
    }

    /// A server of files, by their routes.
    fn of(answer: Answer, files: HashMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            answer: Arc::new(Mutex::new(answer)),
            requests: Arc::default(),
        };
        let (answer, requests) = (server.answer.clone(), server.requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let answer = *answer.lock().unwrap();
                // A client that goes away is no failure of the server's.
                if let Ok(request) = respond(stream.unwrap(), answer, &files) {
                    requests.lock().unwrap().push(request);
                }
            }
        });
        server
    }

    fn set(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// The requests since the last call.
    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub::new()
            .endpoint(&self.address)
            .cache_dir(cache)
            .retries(0)
    }
}

fn respond(
    stream: TcpStream,
    answer: Answer,
    files: &HashMap<String, Vec<u8>>,
) -> std::io::Result<String> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let request = request.trim_end_matches(" HTTP/1.1").to_string();
    let head = request.starts_with("HEAD ");
    let page = b"<html>Sorry</html>".as_slice();
    let route = files.keys().find(|route| request.ends_with(*route));
    let found = route.is_some() && answer != Answer::NotFound;
    let file = route.map_or(page, |route| files[route].as_slice());
    let (status, body, length) = match answer {
        _ if !found => ("404 Not Found", page, page.len()),
        Answer::Cut if !head => ("200 OK", &file[..file.len() / 2], file.len()),
        Answer::Half if !head => ("200 OK", &file[..file.len() / 2], file.len() / 2),
        Answer::Page if !head => ("404 Not Found", page, page.len()),
        Answer::OnlyPages => ("200 OK", page, page.len()),
        _ => ("200 OK", file, file.len()),
    };
    // The cache keeps files by their tags.
    let etag = match route.map(String::as_str) {
        Some(ROUTE) | None => "an-etag".into(),
        Some(route) => route.replace('/', "-"),
    };
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: \"{etag}\"\r\n\
         X-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n"
    )?;
    if !head {
        stream.write_all(body)?;
    }
    Ok(request)
}

/// A model's weights as the hub would hold them, with the bytes of their file.
fn pretrained(directory: &Path) -> (HashMap<String, Vec<f64>>, Vec<u8>) {
    let created = models::create::<ConvNext>(NAME, Weights::Random(5), &Options::new()).unwrap();
    let params = created.model.to_frozen().unwrap().named_params();
    let tensors: HashMap<_, _> = params.into_iter().map(|p| (p.path, p.tensor)).collect();
    let path = directory.join("weights");
    save(&tensors, &path).unwrap();
    (weights(&created), std::fs::read(path).unwrap())
}

fn weights(created: &Created<ConvNext>) -> HashMap<String, Vec<f64>> {
    let params = created.model.to_frozen().unwrap().named_params();
    let values = |p: lora::NamedParam| (p.path, lora_tests::values(&p.tensor).unwrap());
    params.into_iter().map(values).collect()
}

fn create(hub: Hub) -> lora::Result<Created<ConvNext>> {
    models::create(NAME, Weights::Hub(hub), &Options::new())
}

/// The files that the cache would give out, and those they stand for.
fn entries(cache: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![cache.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                open.push(path);
            } else if name == "model.safetensors" && !path.to_str().unwrap().contains(".no_exist")
                || name == "an-etag"
            {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn a_download_is_used_again_without_the_network() {
    let directory = tempfile::tempdir().unwrap();
    let (expected, file) = pretrained(directory.path());
    let server = Server::start(Answer::Whole, file);
    let cache = directory.path().join("cache");

    let created = create(server.hub(&cache)).unwrap();
    assert!(created.fresh.is_empty());
    assert!(weights(&created) == expected);
    assert_eq!(
        server.requests(),
        [format!("HEAD {ROUTE}"), format!("GET {ROUTE}")]
    );

    let again = create(server.hub(&cache)).unwrap();
    assert!(weights(&again) == expected);
    let nowhere = Hub::new().endpoint("http://127.0.0.1:1").cache_dir(&cache);
    assert!(weights(&create(nowhere).unwrap()) == expected);
    let offline = server.hub(&cache).offline(true);
    assert!(weights(&create(offline).unwrap()) == expected);
    assert_eq!(server.requests(), [""; 0]);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(Answer::NotFound, Vec::new());
    let error = create(server.hub(directory.path())).unwrap_err();
    let Error::File { path, problems } = error else {
        panic!("{error}");
    };
    let name = "timm/test_convnext2.r160_in1k/model.safetensors";
    assert_eq!(path, Path::new(name));
    let problem = "has no such repository or file";
    assert_eq!(
        problems,
        [format!("the hub at {} {problem}", server.address)]
    );
}

#[test]
fn without_network_and_cache_the_error_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let hub = Hub::new().cache_dir(directory.path()).retries(0);
    let error = create(hub.clone().offline(true)).unwrap_err().to_string();
    assert!(error.contains("not in the cache"), "{error}");
    let unreachable = hub.endpoint("http://127.0.0.1:1");
    let error = create(unreachable).unwrap_err().to_string();
    assert!(
        error.contains("http://127.0.0.1:1") && error.contains("refused"),
        "{error}"
    );
}

#[test]
fn a_broken_download_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let (expected, file) = pretrained(directory.path());
    let half = file.len() / 2;
    let server = Server::start(Answer::Whole, file);
    for (index, answer) in [Answer::Cut, Answer::Half, Answer::Page, Answer::OnlyPages]
        .into_iter()
        .enumerate()
    {
        let cache = directory.path().join(index.to_string());
        server.set(answer);
        let error = create(server.hub(&cache)).unwrap_err().to_string();
        assert!(error.contains("model.safetensors"), "{error}");
        if answer == Answer::Half {
            assert!(
                error.contains(&format!("{half} of {}", 2 * half)),
                "{error}"
            );
        }
        assert_eq!(entries(&cache), [""; 0].map(PathBuf::from), "{error}");
        // The next attempt starts anew.
        server.set(Answer::Whole);
        assert!(weights(&create(server.hub(&cache)).unwrap()) == expected);
        assert_eq!(entries(&cache).len(), 2);
    }
}

#[test]
fn a_damaged_file_in_the_cache_is_downloaded_again() {
    let directory = tempfile::tempdir().unwrap();
    let (expected, file) = pretrained(directory.path());
    let server = Server::start(Answer::Whole, file);
    let cache = directory.path().join("cache");
    create(server.hub(&cache)).unwrap();
    let blob = entries(&cache)
        .into_iter()
        .find(|path| path.ends_with("an-etag"));
    std::fs::write(blob.unwrap(), b"damaged").unwrap();
    let offline = create(server.hub(&cache).offline(true)).unwrap_err();
    assert!(offline.to_string().contains("is no valid file"));
    assert!(weights(&create(server.hub(&cache)).unwrap()) == expected);
}

#[test]
fn a_variant_without_weights_says_so() {
    let created = models::create::<ConvNext>(
        "convnext_atto_rms",
        Weights::Hub(Hub::new().offline(true)),
        &Options::new(),
    );
    let error = created.unwrap_err().to_string();
    assert!(
        error.contains("convnext_atto_rms has no pretrained weights"),
        "{error}"
    );
}

/// A decoder in shards, as the hub holds large ones.
#[test]
fn a_model_comes_with_its_configuration_and_shards() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/decoder/llama_linear");
    let read = |file: &str| std::fs::read(fixtures.join(file)).unwrap();
    let tensors = candle_core::safetensors::load(fixtures.join("model.safetensors"), &Device::Cpu);
    let (directory, mut shards) = (
        tempfile::tempdir().unwrap(),
        [HashMap::new(), HashMap::new()],
    );
    let (mut map, mut files) = (serde_json::Map::new(), HashMap::new());
    for (index, (name, tensor)) in tensors.unwrap().into_iter().enumerate() {
        map.insert(
            name.clone(),
            format!("part-{}.safetensors", index % 2).into(),
        );
        shards[index % 2].insert(name, tensor);
    }
    let route = |file: &str| format!("/someone/model/resolve/main/{file}");
    for (index, shard) in shards.iter().enumerate() {
        let path = directory.path().join("shard");
        save(shard, &path).unwrap();
        let name = format!("part-{index}.safetensors");
        files.insert(route(&name), std::fs::read(path).unwrap());
    }
    let index = serde_json::json!({"weight_map": map}).to_string();
    files.insert(route("model.safetensors.index.json"), index.into_bytes());
    files.insert(route("config.json"), read("config.json"));
    let server = Server::of(Answer::Whole, files);

    let cache = tempfile::tempdir().unwrap();
    let found = server
        .hub(cache.path())
        .fetch_model("someone/model")
        .unwrap();
    let auto = models::auto(&found, &Options::new()).unwrap();
    let model = auto.into_decoder().unwrap().model;
    let io = candle_core::safetensors::load(fixtures.join("io.safetensors"), &Device::Cpu).unwrap();
    let logits = model.forward(&io["ids"], None).unwrap();
    lora_tests::assert_close("logits", &logits, &io["logits"], 1e-5);

    server.requests();
    let missing = server
        .hub(cache.path())
        .fetch_model("someone/other")
        .unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("someone/other/config.json: "),
        "{missing}"
    );
}

/// A tokenizer comes with those of its files that there are.
#[test]
fn a_tokenizer_is_fetched_with_the_files_beside_it() {
    let route = |file: &str| format!("/someone/model/resolve/main/{file}");
    let files = HashMap::from([
        (route("tokenizer.json"), b"{}".to_vec()),
        (
            route("tokenizer_config.json"),
            b"{\"eos_token\": \"x\"}".to_vec(),
        ),
    ]);
    let server = Server::of(Answer::Whole, files);
    let cache = tempfile::tempdir().unwrap();
    let found = server
        .hub(cache.path())
        .fetch_tokenizer("someone/model")
        .unwrap();
    let mut names: Vec<String> = std::fs::read_dir(&found)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["tokenizer.json", "tokenizer_config.json"]);
    let offline = server.hub(cache.path()).offline(true);
    assert_eq!(offline.fetch_tokenizer("someone/model").unwrap(), found);
    let missing = server
        .hub(cache.path())
        .fetch_tokenizer("someone/other")
        .unwrap_err();
    let missing = missing.to_string();
    assert!(
        missing.starts_with("someone/other/tokenizer.json: the hub at "),
        "{missing}"
    );
}
