//! Files of the Hugging Face hub, through its local cache.

use crate::file::{Index, TensorFile};
use crate::{Error, Result};
use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::{HFClient, HFError, split_id};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeSet;
use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a repository may have beside `tokenizer.json`.
const BESIDE_A_TOKENIZER: [&str; 6] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "sentence_bert_config.json",
    "generation_config.json",
];

/// What a model of images may have beside `config.json`: which images it wants.
const BESIDE_A_MODEL: &str = "preprocessor_config.json";

/// Access to the Hugging Face hub.
///
/// A file in the cache is used as it is, without a request. Any other file is downloaded, with a
/// progress bar where the error output is a terminal. The address, the cache and the token may be
/// set here. Otherwise they come from the environment, as for all programs that use the hub:
/// `HF_ENDPOINT`, `HF_HUB_CACHE` or `HF_HOME`, `HF_TOKEN`; `HF_HUB_OFFLINE=1` forbids requests.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    endpoint: Option<String>,
    cache_dir: Option<PathBuf>,
    offline: bool,
    retries: Option<usize>,
}

impl Hub {
    /// The hub with the settings of the environment.
    pub fn new() -> Self {
        let offline = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
        Self {
            offline: ["1", "ON", "YES", "TRUE"].contains(&offline.to_uppercase().as_str()),
            ..Self::default()
        }
    }

    /// Sets the address, for example `https://huggingface.co`.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// Sets the directory of the cache.
    pub fn cache_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(directory.into());
        self
    }

    /// Sets whether to do without the network.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Sets how often a failed request is made again.
    pub fn retries(mut self, retries: usize) -> Self {
        self.retries = Some(retries);
        self
    }

    /// The directory in the cache that holds a repository's model: `config.json`, its weights in one file or in
    /// shards, and `preprocessor_config.json` if the repository has it. [`auto`](super::auto) reads it:
    ///
    /// ```no_run
    /// use lora::models::{self, Hub, Options};
    ///
    /// let directory = Hub::new().fetch_model("HuggingFaceTB/SmolLM2-135M")?;
    /// let created = models::auto(directory, &Options::new())?.into_decoder()?;
    /// # Ok::<(), lora::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch), and an index that names no plain files.
    pub fn fetch_model(&self, repository: &str) -> Result<PathBuf> {
        let config = self.fetch(repository, "config.json")?;
        if let Err(alone) = self.fetch(repository, "model.safetensors") {
            // Large models come in shards. Without an index the first problem is the one to tell.
            let index = self.fetch(repository, "model.safetensors.index.json");
            let files = Index::read(&index.map_err(|_| alone)?)?.files;
            for shard in files.into_values().collect::<BTreeSet<_>>() {
                self.fetch(repository, &shard)?;
            }
        }
        self.fetch_if_there(repository, BESIDE_A_MODEL)?;
        let directory = config.parent().unwrap_or(Path::new("."));
        Ok(directory.to_path_buf())
    }

    /// The directory in the cache that holds a repository's tokenizer: `tokenizer.json`, and those of the
    /// files beside that the repository has. `text::Tokenizer`, of the feature `text`, reads it. Offline, the
    /// files beside are those in the cache.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub fn fetch_tokenizer(&self, repository: &str) -> Result<PathBuf> {
        let tokenizer = self.fetch(repository, "tokenizer.json")?;
        for file in BESIDE_A_TOKENIZER {
            self.fetch_if_there(repository, file)?;
        }
        let directory = tokenizer.parent().unwrap_or(Path::new("."));
        Ok(directory.to_path_buf())
    }

    /// The path of a repository's file in the cache, for example of `model.safetensors` of
    /// `timm/convnext_tiny.fb_in1k`. A file that is missing or damaged is downloaded.
    ///
    /// # Errors
    /// [`Error::File`] names repository and file. The cache is then as if nothing had been asked.
    pub fn fetch(&self, repository: &str, file: &str) -> Result<PathBuf> {
        let missing = |reason| Error::file(format!("{repository}/{file}"), reason);
        self.find(repository, file, false)?.map_err(missing)
    }

    /// As [`fetch`](Self::fetch), but `None` for a file that the repository does not have. The cache notes
    /// this, too, and so the hub is asked once. Offline, it is `None` for any file that the cache lacks.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch), but for a file that is not there.
    pub fn fetch_if_there(&self, repository: &str, file: &str) -> Result<Option<PathBuf>> {
        Ok(self.find(repository, file, true)?.ok())
    }

    /// The path of a repository's file in the cache, or the reason why there is no such file. An `optional`
    /// file is not asked for again that the hub once lacked.
    fn find(
        &self,
        repository: &str,
        file: &str,
        optional: bool,
    ) -> Result<Result<PathBuf, String>> {
        let name = format!("{repository}/{file}");
        let fail = |problem: String| Error::file(&name, problem);
        let mut client = HFClient::builder();
        if let Some(endpoint) = &self.endpoint {
            client = client.endpoint(endpoint);
        }
        if let Some(directory) = &self.cache_dir {
            client = client.cache_dir(directory);
        }
        if let Some(retries) = self.retries {
            client = client.retry_max_attempts(retries);
        }
        let client = client.build().map_err(|error| fail(describe(&error)))?;
        let (endpoint, cache) = (
            client.endpoint().to_string(),
            client.cache_dir().to_path_buf(),
        );
        let client = hf_hub::HFClientSync::from_inner(client);
        let client = client.map_err(|error| fail(describe(&error)))?;
        let (owner, repository) = split_id(repository);
        let repository = client.model(owner, repository);

        let cached = repository.download_file().filename(file);
        let cached = cached.local_files_only(true).send();
        let damaged = match cached {
            Ok(path) => match check(&path, None) {
                Ok(()) => return Ok(Ok(path)),
                Err(problem) if self.offline => return Err(fail(problem)),
                Err(_) => true,
            },
            Err(HFError::EntryNotFound { .. }) if optional => {
                return Ok(Err("the repository had no such file".into()));
            }
            Err(_) => false,
        };
        if self.offline {
            return Ok(Err(format!(
                "not in the cache, {}, and offline mode allows no download",
                cache.display()
            )));
        }

        let length = Arc::new(AtomicU64::new(0));
        let progress = Progress {
            bar: bar(&name),
            length: length.clone(),
        };
        let download = repository.download_file().filename(file);
        let download = download.force_download(damaged).progress(progress).send();
        let path = match download {
            Ok(path) => path,
            Err(HFError::EntryNotFound { .. } | HFError::RepoNotFound { .. }) => {
                let reason = format!("the hub at {endpoint} has no such repository or file");
                return Ok(Err(reason));
            }
            Err(error) => {
                let problem = format!("not downloaded from {endpoint}: {}", describe(&error));
                let go_on = "; HF_HUB_OFFLINE=1 does with the files in the cache";
                return Err(fail(problem + if optional { go_on } else { "" }));
            }
        };
        match check(&path, Some(length.load(Ordering::Relaxed))) {
            Ok(()) => Ok(Ok(path)),
            Err(problem) => {
                remove(&path);
                Err(fail(format!("not downloaded from {endpoint}: {problem}")))
            }
        }
    }
}

/// The problem with a file of the cache, if any. The client takes the body of any answer for the
/// file. So its length must be what the hub promised, and that of weights what their header says.
fn check(path: &Path, length: Option<u64>) -> Result<(), String> {
    let found = fs::metadata(path).map_err(|error| error.to_string())?.len();
    match length {
        Some(length) if length > 0 && length != found => {
            return Err(format!("{found} of {length} bytes arrived"));
        }
        _ => {}
    }
    if path.extension().is_some_and(|end| end == "safetensors") {
        TensorFile::open(path).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Removes an entry of the cache: a link, and the file that it points to.
fn remove(path: &Path) {
    // A file that stays is found damaged the next time.
    if let Ok(target) = fs::canonicalize(path) {
        let _ = fs::remove_file(target);
    }
    let _ = fs::remove_file(path);
}

/// An error with its causes, which the texts of the client's errors leave out.
fn describe(error: &HFError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

/// Shows how far a download is, and notes the length that the hub promises.
struct Progress {
    bar: ProgressBar,
    length: Arc<AtomicU64>,
}

fn bar(name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    );
    let bar = ProgressBar::new(0).with_message(name.to_string());
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

impl ProgressHandler for Progress {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else {
            return;
        };
        match event {
            DownloadEvent::Start { total_bytes, .. } => {
                self.length.store(*total_bytes, Ordering::Relaxed);
                self.bar.set_length(*total_bytes);
            }
            DownloadEvent::Progress { files } => {
                if let Some(file) = files.first() {
                    self.bar.set_position(file.bytes_completed);
                }
            }
            DownloadEvent::AggregateProgress {
                bytes_completed, ..
            } => self.bar.set_position(*bytes_completed),
            DownloadEvent::Complete => self.bar.finish_and_clear(),
        }
    }
}
