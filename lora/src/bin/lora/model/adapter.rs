//! Where an adapter is, and what its files say.

use super::source::{Source, is_hub_name};
use anyhow::{Context, Result, bail};
use lora::models::Hub;
use lora::peft::{AdapterConfig, CONFIG_FILE, TaskType, WEIGHTS_FILE, check_name};
use lora::{DEFAULT_ADAPTER, Lora, LoraModel, LoraModule};
use safetensors::SafeTensors;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The classes that an adapter with a head tells apart: names, in the order of the head's logits.
pub const CLASSES_FILE: &str = "classes.json";

/// `[NAME=]DIR` of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterArg {
    /// The name, if one is given.
    pub name: Option<String>,
    /// A folder, or OWNER/NAME on the hub.
    pub place: String,
}

impl AdapterArg {
    /// Without a name.
    pub fn of(place: impl Into<String>) -> Self {
        Self {
            name: None,
            place: place.into(),
        }
    }
}

impl FromStr for AdapterArg {
    type Err = String;

    /// A folder may have `=` in its path: what stands before the first `=` is a name only if no folder is
    /// called so.
    fn from_str(text: &str) -> Result<Self, String> {
        let Some((name, place)) = text.split_once('=').filter(|_| !Path::new(text).is_dir()) else {
            return Ok(Self::of(text));
        };
        check_name(name).map_err(|error| error.to_string())?;
        Ok(Self {
            name: Some(name.into()),
            place: place.into(),
        })
    }
}

/// An adapter's folder, and what its files say.
#[derive(Clone, Debug)]
pub struct AdapterSource {
    /// Its name in the model.
    pub name: String,
    /// Its folder.
    pub dir: PathBuf,
    /// Its settings.
    pub config: AdapterConfig,
    /// The base model that it names.
    pub base: Option<String>,
    /// The classes that it tells apart; empty if it has none, or no file says their names.
    pub classes: Vec<String>,
}

impl AdapterSource {
    /// Whether a folder holds an adapter.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(CONFIG_FILE).is_file()
    }

    /// The adapter that `--adapter` names.
    ///
    /// # Errors
    /// If there is none, or its files are damaged.
    pub fn find(arg: &AdapterArg) -> Result<Self> {
        let (place, path) = (&arg.place, Path::new(&arg.place));
        let dir = match path.is_dir() {
            true if Self::is_in(path) => path.to_path_buf(),
            true => {
                bail!("--adapter {place} holds no {CONFIG_FILE}: name the folder of an adapter")
            }
            false if is_hub_name(place) && !path.exists() => download(place)?,
            false => bail!(
                "--adapter {place} is no folder, and no name on the Hugging Face hub, which is OWNER/NAME"
            ),
        };
        let config =
            AdapterConfig::read(&dir).with_context(|| format!("cannot use --adapter {place}"))?;
        Ok(Self {
            name: arg.name.clone().unwrap_or_else(|| name_of(&dir)),
            base: config.base_model_name_or_path.clone(),
            classes: classes(&dir)?,
            config,
            dir,
        })
    }

    /// Whether it was trained to tell texts apart.
    pub fn is_classifier(&self) -> bool {
        self.config.task_type == Some(TaskType::SeqCls)
    }

    /// The shape of a layer's weight that the adapter holds whole, as it was trained in full.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn shape(&self, layer: &str) -> Result<Option<Vec<usize>>> {
        let path = self.dir.join(WEIGHTS_FILE);
        let cannot = || format!("cannot read {}", path.display());
        let bytes = fs::read(&path).with_context(cannot)?;
        let file = SafeTensors::deserialize(&bytes).with_context(cannot)?;
        let tensor = file.tensor(&format!("base_model.model.{layer}.weight"));
        Ok(tensor.ok().map(|tensor| tensor.shape().to_vec()))
    }

    /// What to say if the adapter names another base than this one.
    pub(super) fn other_base(&self, source: &Source) -> Option<String> {
        let named = self.base.as_deref()?;
        let last = |name: &str| {
            let path = Path::new(name).components().next_back();
            path.map(|part| part.as_os_str().to_owned())
        };
        let same = last(named) == last(&source.name);
        (!same).then(|| {
            format!(
                "the adapter {} was trained for {named}, --model is {}: the results mean something if both are \
                 the same model",
                self.dir.display(),
                source.name
            )
        })
    }
}

/// The base with adapters, all of which act; without any, the base alone. In eval mode.
///
/// # Errors
/// If an adapter does not fit the base.
pub fn load<M: LoraModel>(base: &M, adapters: &[AdapterSource]) -> Result<Lora<M>> {
    let cannot =
        |adapter: &AdapterSource| format!("cannot use --adapter {}", adapter.dir.display());
    let Some((first, rest)) = adapters.split_first() else {
        let mut model = base.to_frozen()?;
        model.eval();
        return Ok(model);
    };
    let mut model = base
        .with_adapter(first.dir.as_path())
        .with_context(|| cannot(first))?;
    if first.name != DEFAULT_ADAPTER {
        model.rename_adapter(DEFAULT_ADAPTER, &first.name)?;
    }
    for adapter in rest {
        model
            .load_adapter_as(&adapter.name, adapter.dir.as_path())
            .with_context(|| cannot(adapter))?;
    }
    let names: Vec<&str> = adapters.iter().map(|one| one.name.as_str()).collect();
    if names.len() > 1 {
        model.set_active(&names)?;
    }
    model.eval();
    Ok(model)
}

/// A name for the adapter in a folder: the folder's own, without what no name may hold.
fn name_of(dir: &Path) -> String {
    let full = std::path::absolute(dir).unwrap_or_else(|_| dir.into());
    let name = full.file_name().unwrap_or_default().to_string_lossy();
    let name = name.replace(['.', ':', '\\'], "_");
    match check_name(&name) {
        Ok(()) => name,
        Err(_) => DEFAULT_ADAPTER.into(),
    }
}

fn classes(dir: &Path) -> Result<Vec<String>> {
    let path = dir.join(CLASSES_FILE);
    let cannot = || format!("cannot read {}", path.display());
    match fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json)
            .with_context(|| format!("{}: a list of the classes' names is expected", cannot())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(cannot),
    }
}

fn download(name: &str) -> Result<PathBuf> {
    let hub = Hub::new();
    let config = hub.fetch(name, CONFIG_FILE);
    let fetched = config.and_then(|config| {
        hub.fetch(name, WEIGHTS_FILE)?;
        // Only adapters with a head have it.
        hub.fetch_if_there(name, CLASSES_FILE)?;
        Ok(config)
    });
    let config = fetched.with_context(|| {
        format!(
            "--adapter {name} is no folder, and cannot be had from the Hugging Face hub under this name"
        )
    })?;
    Ok(config.parent().unwrap_or(Path::new(".")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_may_have_a_name() {
        let parse = |text: &str| text.parse::<AdapterArg>();
        assert_eq!(parse("a/b"), Ok(AdapterArg::of("a/b")));
        let named = AdapterArg {
            name: Some("french".into()),
            place: "out/x=1".into(),
        };
        assert_eq!(parse("french=out/x=1"), Ok(named));
        assert!(parse("a.b=c").is_err());
        assert_eq!(name_of(Path::new("out/v1.0")), "v1_0");
    }
}
