//! [`Checkpoint`]: the weights of a model, in one file or in shards with their index.

use super::{Shard, TensorFile, parse_json, read_bounded};
use crate::error::shorten;
use crate::path::join;
use crate::{Error, Result};
use candle_core::Tensor;
use indexmap::IndexMap;
use safetensors::tensor::{Dtype, TensorInfo};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// How the name of an index ends.
pub(crate) const INDEX: &str = ".safetensors.index.json";

/// The names that transformers gives the weights of a model.
const USUAL: [&str; 2] = ["model.safetensors.index.json", "model.safetensors"];

/// The tensors of a checkpoint, from all of its files.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// The path that was given.
    pub(crate) path: PathBuf,
    /// The directory of the files; `None` for a file that was given alone.
    pub(crate) dir: Option<PathBuf>,
    pub(crate) shards: Vec<Box<dyn Shard>>,
    /// Name and contents of the index.
    pub(crate) index: Option<(String, Value)>,
    /// JSON files that would stand beside the weights, where these are in no directory of transformers.
    pub(crate) files: IndexMap<String, Value>,
    /// What stands for the `config.json` beside the files.
    config: Option<Value>,
    /// The shard of each tensor, and the tensor's name there.
    places: IndexMap<String, (usize, String)>,
}

impl Checkpoint {
    /// Opens a `.safetensors` file, an index, or a directory with either. In a directory the names that
    /// transformers gives come first: other files may lie beside them.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::open_dir(path);
        }
        let name = path.file_name().map(|name| name.to_string_lossy());
        if name.is_some_and(|name| name.ends_with(INDEX)) {
            let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            return Self::open_index(path, parent.unwrap_or(Path::new(".")));
        }
        Self::of(path, None, None, vec![one(path)?])
    }

    /// Opens several files, each as [`open`](Self::open) does, as one checkpoint.
    pub(crate) fn open_all(paths: &[PathBuf]) -> Result<Self> {
        let Some(first) = paths.first() else {
            return Err(Error::Config(vec!["no base files are given".into()]));
        };
        let mut shards = Vec::new();
        for path in paths {
            shards.extend(Self::open(path)?.shards);
        }
        Self::of(first, None, None, shards)
    }

    fn open_dir(dir: &Path) -> Result<Self> {
        let of_file = |path: &Path| Self::of(dir, Some(dir), None, vec![one(path)?]);
        let usual = USUAL.iter().map(|name| dir.join(name));
        if let Some(usual) = usual.into_iter().find(|path| path.is_file()) {
            return match usual.extension().is_some_and(|end| end == "json") {
                true => Self::open_index(&usual, dir),
                false => of_file(&usual),
            };
        }
        let failed = |error| Error::file(dir, error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            names.extend(name.to_str().map(String::from));
        }
        let ending = |end: &str| -> Vec<&String> {
            names.iter().filter(|name| name.ends_with(end)).collect()
        };
        let (indices, files) = (ending(INDEX), ending(".safetensors"));
        match (indices.as_slice(), files.as_slice()) {
            ([index], _) => Self::open_index(&dir.join(index), dir),
            ([], [file]) => of_file(&dir.join(file)),
            _ => Err(Error::file(
                dir,
                format!(
                    "must hold one `*{INDEX}` or one `*.safetensors`; it holds {} and {}: name the \
                     file",
                    indices.len(),
                    files.len()
                ),
            )),
        }
    }

    fn open_index(path: &Path, dir: &Path) -> Result<Self> {
        let Index { json, files } = Index::read(path)?;
        let names: BTreeSet<&String> = files.values().collect();
        let shards = names.iter().map(|file| one(&dir.join(file)));
        let shards = shards.collect::<Result<Vec<_>>>()?;
        let places: HashMap<&String, usize> = names.into_iter().zip(0..).collect();
        let absent = files.iter().filter(|(tensor, file)| {
            let shard = &shards[places[file]];
            !shard.tensors().contains_key(*tensor)
        });
        let problems: Vec<String> = absent
            .map(|(tensor, file)| {
                let tensor = shorten(tensor);
                format!("puts `{tensor}` into `{file}`, which does not hold it")
            })
            .collect();
        if !problems.is_empty() {
            return Err(Error::File {
                path: path.into(),
                problems,
            });
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into());
        let index = name.map(|name| (name, json));
        Self::of(path, Some(dir), index, shards)
    }

    /// A checkpoint of these files.
    ///
    /// # Errors
    /// If two hold a tensor of the same name.
    pub(crate) fn of(
        path: &Path,
        dir: Option<&Path>,
        index: Option<(String, Value)>,
        shards: Vec<Box<dyn Shard>>,
    ) -> Result<Self> {
        let mut places = IndexMap::new();
        let mut problems = Vec::new();
        for (place, shard) in shards.iter().enumerate() {
            for name in shard.tensors().keys() {
                let place = (place, name.clone());
                if places.insert(name.clone(), place).is_some() {
                    problems.push(format!("holds `{}` in two files", shorten(name)));
                }
            }
        }
        if problems.is_empty() {
            Ok(Self {
                path: path.into(),
                dir: dir.map(Into::into),
                shards,
                index,
                files: IndexMap::new(),
                config: None,
                places,
            })
        } else {
            Err(Error::File {
                path: path.into(),
                problems,
            })
        }
    }

    /// The same tensors, with these JSON files beside.
    pub(crate) fn with_files(mut self, files: IndexMap<String, Value>) -> Self {
        self.files = files;
        self
    }

    /// The same tensors, with this configuration in the place of the `config.json` beside the files.
    pub(crate) fn with_config(mut self, config: Value) -> Self {
        self.config = Some(config);
        self
    }

    /// The same tensors, each as part of this module.
    pub(crate) fn within(mut self, module: &str) -> Self {
        let places = std::mem::take(&mut self.places).into_iter();
        self.places = places
            .map(|(name, place)| (join(module, &name), place))
            .collect();
        self
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        let (shard, name) = self.places.get(name)?;
        self.shards[*shard].tensors().get(name)
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.info(name).map(|info| info.shape.as_slice())
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        match self.places.get(name) {
            Some((shard, name)) => self.shards[*shard].tensor(name),
            None => Err(Error::file(&self.path, format!("has no tensor `{name}`"))),
        }
    }

    /// The scheme by which the weights are quantised, if they are.
    pub(crate) fn quantised(&self) -> Option<&'static str> {
        let has = |end: &str| self.names().any(|name| name.ends_with(end));
        let is_of = |dtypes: &[Dtype]| {
            let mut infos = self.names().filter_map(|name| self.info(name));
            infos.any(|info| dtypes.contains(&info.dtype))
        };
        if has(".qweight") {
            Some("GPTQ or AWQ")
        } else if has(".absmax") || has(".quant_map") {
            Some("bitsandbytes, to 4 bits")
        } else if has(".SCB") {
            Some("bitsandbytes, to 8 bits")
        } else if is_of(&[Dtype::F8_E4M3, Dtype::F8_E5M2]) {
            Some("a scheme of 8-bit floats (fp8)")
        } else {
            None
        }
    }

    /// `config.json` beside the files, if there is one.
    pub(crate) fn model_config(&self) -> Result<Option<Value>> {
        if let Some(config) = self.config.as_ref().or(self.files.get("config.json")) {
            return Ok(Some(config.clone()));
        }
        let dir = self.shards.first().and_then(|shard| shard.path().parent());
        let path = dir.map(|dir| dir.join("config.json"));
        let Some(path) = path.filter(|path| path.exists()) else {
            return Ok(None);
        };
        let config = parse_json(&read_bounded(&path)?);
        config
            .map(Some)
            .map_err(|error| Error::file(&path, format!("is not valid JSON: {error}")))
    }
}

fn one(path: &Path) -> Result<Box<dyn Shard>> {
    Ok(Box::new(TensorFile::open(path)?))
}

/// The index of a checkpoint in shards.
pub(crate) struct Index {
    /// All that the file holds.
    json: Value,
    /// The file of each tensor, in the index's directory.
    pub(crate) files: IndexMap<String, String>,
}

impl Index {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let wrong = |problem: String| Error::file(path, problem);
        let json: Value = parse_json(&read_bounded(path)?)
            .map_err(|error| wrong(format!("is not valid JSON: {error}")))?;
        let map = json.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| wrong("has no object `weight_map`".into()))?;
        let (mut files, mut problems) = (IndexMap::new(), Vec::new());
        for (tensor, file) in map {
            // An index is from elsewhere: a path in it must not lead out of the directory.
            let plain = file
                .as_str()
                .filter(|file| !file.starts_with('.') && !file.contains(['/', '\\', ':', '\0']));
            match plain {
                Some(file) => {
                    files.insert(tensor.clone(), file.into());
                }
                None => problems.push(format!(
                    "puts `{}` into {}, which is no plain file name",
                    shorten(tensor),
                    shorten(&file.to_string())
                )),
            }
        }
        match problems.is_empty() {
            true => Ok(Self { json, files }),
            false => Err(Error::File {
                path: path.into(),
                problems,
            }),
        }
    }
}
