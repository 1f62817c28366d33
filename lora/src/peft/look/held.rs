//! [`Held`]: an adapter of any format as its file has it. What is wrong is noted, not refused.

use crate::config::matching::{is_bias, is_or_ends_with, modules_above};
use crate::config::selection::{Overrides, Selection};
use crate::error::shorten;
use crate::file::{TensorFile, read_json};
use crate::peft::config::json_bytes;
use crate::peft::import::find::Located;
use crate::peft::import::{Format, Meaning};
use crate::peft::layers::number;
use crate::peft::product::Product;
use crate::peft::{AdapterConfig, CONFIG_FILE, GgufOptions, files, gguf_to_adapter, keys};
use crate::{Error, LoraConfig, Part, Result, TrainBias};
use candle_core::Tensor;
use indexmap::IndexMap;
use serde_json::{Map, Value, json};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::path::Path;
use tempfile::TempDir;

/// An adapter as its file has it.
pub(super) struct Held {
    pub format: Format,
    pub file: TensorFile,
    pub settings: Map<String, Value>,
    /// By name, in the order of their numbers.
    pub layers: IndexMap<String, HeldLayer>,
    /// Keys of tensors that are no part of an update of low rank.
    pub others: Vec<String>,
    /// What should not be so.
    pub strange: Vec<String>,
    /// Where a file of llama.cpp was written as PEFT's.
    _converted: Option<TempDir>,
}

/// What a file has of a layer.
pub(super) struct HeldLayer {
    pub keys: HashMap<Meaning, String>,
    pub scaling: f64,
    pub experts: usize,
    /// mlx-lm's matrices are the transposes of PEFT's.
    turned: bool,
}

impl Held {
    pub fn open(located: &Located) -> Result<Self> {
        if located.format == Format::Gguf {
            return Self::open_gguf(located);
        }
        let file = TensorFile::open(&located.weights)?;
        let mut held = Self {
            format: located.format,
            settings: Map::new(),
            layers: IndexMap::new(),
            others: Vec::new(),
            strange: Vec::new(),
            file,
            _converted: None,
        };
        let config = held.read_settings(located.dir.as_deref())?;
        held.find_layers();
        held.scale(config.as_ref())?;
        held.note_unknown(config.as_ref());
        Ok(held)
    }

    /// Reads the file of llama.cpp in PEFT's form. The order of rows changes no norm, so that any
    /// number of heads will do.
    fn open_gguf(located: &Located) -> Result<Self> {
        let failed = |error| Error::file(std::env::temp_dir(), error);
        let dir = tempfile::tempdir().map_err(failed)?;
        let options = GgufOptions {
            heads: Some(1),
            kv_heads: Some(1),
            ..GgufOptions::default()
        };
        gguf_to_adapter(&located.weights, dir.path(), &options)?;
        let mut held = Self::open(&Located {
            format: Format::Peft,
            weights: dir.path().join(crate::peft::WEIGHTS_FILE),
            dir: Some(dir.path().into()),
        })?;
        held.format = Format::Gguf;
        held._converted = Some(dir);
        Ok(held)
    }

    /// The settings beside the weights or in their header.
    fn read_settings(&mut self, dir: Option<&Path>) -> Result<Option<AdapterConfig>> {
        if let Some(dir) = dir {
            let config = AdapterConfig::parse(dir, &files::read_config(dir)?)?;
            let text = json_bytes(&config).unwrap_or_default();
            if let Ok(Value::Object(settings)) = serde_json::from_slice(&text) {
                self.settings = settings;
            }
            self.settings.extend(config.unknown.clone());
            self.strange.extend(config.unknown_note());
            return Ok(Some(config));
        }
        let beside = self.file.path().with_file_name(CONFIG_FILE);
        match self.format {
            Format::MlxLm if beside.is_file() => {
                if let Value::Object(settings) = read_json(&beside)? {
                    self.settings = settings;
                }
            }
            Format::MlxLm | Format::Peft => self.strange.push(format!(
                "there is no {CONFIG_FILE} beside the weights, which tells the scaling: norms are \
                 those of B·A"
            )),
            _ => {
                let metadata = self.file.metadata().into_iter().flatten();
                self.settings = metadata
                    .map(|(key, value)| (key.clone(), json!(value)))
                    .collect();
                self.settings.sort_keys();
            }
        }
        Ok(None)
    }

    fn find_layers(&mut self) {
        let turned = self.format == Format::MlxLm;
        for key in self.file.tensors().keys() {
            let Some((name, meaning)) = self.format.meant(key) else {
                self.others.push(key.clone());
                continue;
            };
            let layer = self.layers.entry(name).or_insert_with(|| HeldLayer {
                keys: HashMap::new(),
                scaling: 1.0,
                experts: 1,
                turned,
            });
            if let Some(other) = layer.keys.insert(meaning, key.clone()) {
                let (one, two) = (shorten(&other), shorten(key));
                self.strange.push(format!(
                    "`{one}` and `{two}` are the same matrix of a layer"
                ));
            }
        }
        self.layers.sort_by(|one, _, two, _| by_numbers(one, two));
        self.others.sort_by(|one, two| by_numbers(one, two));
    }

    /// Finds each layer's scaling, and notes ranks that are not those of the settings.
    fn scale(&mut self, config: Option<&AdapterConfig>) -> Result<()> {
        let lora = config.map(AdapterConfig::lora_config);
        let lora: Option<LoraConfig> = match lora {
            Some(Err(problems)) => {
                self.strange.extend(problems);
                config.map(|config| {
                    let mut lora = LoraConfig::new(config.r).alpha(config.lora_alpha);
                    lora.use_rslora = config.use_rslora;
                    lora
                })
            }
            lora => lora.and_then(Result::ok),
        };
        let mut selection = lora.as_ref().map(Selection::new).transpose()?;
        let of_experts = lora
            .as_ref()
            .is_some_and(|lora| !lora.target_parameters.is_empty());
        for (name, layer) in &mut self.layers {
            let Some(rows) = layer.rows(&self.file) else {
                continue;
            };
            if let Some(selection) = &mut selection {
                let path = keys::without_wrappers(name);
                let settings = selection.settings(&path, Overrides::default())?;
                layer.scaling = settings.scaling;
                let rank = settings.rank.max(1);
                if of_experts && rows % rank == 0 {
                    layer.experts = rows / rank;
                } else if rows != settings.rank {
                    self.strange.push(format!(
                        "`{}` has rank {rows} in its tensors, {} in the settings",
                        shorten(name),
                        settings.rank
                    ));
                }
                continue;
            }
            layer.scaling = match layer.keys.get(&Meaning::Alpha) {
                Some(key) => match number(&self.file, key)? {
                    Ok(alpha) => alpha / rows.max(1) as f64,
                    Err(problem) => {
                        self.strange.push(problem);
                        1.0
                    }
                },
                None => self.format.scaling(&self.file, name)?,
            };
        }
        Ok(())
    }

    /// Notes names that the format does not know.
    fn note_unknown(&mut self, config: Option<&AdapterConfig>) {
        let is_known = |key: &str| match config {
            Some(config) => is_known(key, config),
            None => false,
        };
        let unknown = self.others.iter().filter(|key| !is_known(key));
        let unknown = unknown.map(|key| {
            let what = match (self.format, config) {
                (Format::Peft | Format::Gguf, None) => "is no part of an adapter of low rank",
                (Format::Peft | Format::Gguf, Some(_)) => {
                    "is no part of an adapter, and no setting says that the module is trained in full"
                }
                _ => "is a name that the format does not know",
            };
            format!("`{}` {what}", shorten(key))
        });
        let unknown: Vec<String> = unknown.collect();
        self.strange.extend(unknown);
    }

    /// A tensor of a layer as PEFT has it: A (r, in, ..), B (out, r, ..).
    pub fn tensor(&self, layer: &HeldLayer, meaning: Meaning) -> Result<Option<Tensor>> {
        let Some(key) = layer.keys.get(&meaning) else {
            return Ok(None);
        };
        let tensor = self.file.tensor(key)?;
        let is_matrix = matches!(meaning, Meaning::A | Meaning::B) && tensor.rank() == 2;
        Ok(Some(match layer.turned && is_matrix {
            true => tensor.t()?,
            false => tensor,
        }))
    }

    /// The layer's update; `None` if a matrix is missing.
    pub fn product(&self, layer: &HeldLayer) -> Result<Option<Product>> {
        let (Some(a), Some(b)) = (
            self.tensor(layer, Meaning::A)?,
            self.tensor(layer, Meaning::B)?,
        ) else {
            return Ok(None);
        };
        Product::of(&a, &b, layer.scaling, layer.experts).map(Some)
    }
}

impl HeldLayer {
    /// The shape of a tensor as PEFT has it.
    pub fn shape(&self, file: &TensorFile, meaning: Meaning) -> Option<Vec<usize>> {
        let mut shape = file.shape(self.keys.get(&meaning)?)?.to_vec();
        if self.turned && shape.len() == 2 {
            shape.reverse();
        }
        Some(shape)
    }

    /// The rank, or what A says of it: the rows of A, else the columns of B.
    fn rows(&self, file: &TensorFile) -> Option<usize> {
        let of_a = || self.shape(file, Meaning::A)?.first().copied();
        let of_b = || self.shape(file, Meaning::B)?.get(1).copied();
        of_a().or_else(of_b)
    }

    pub fn rank(&self, file: &TensorFile) -> usize {
        self.rows(file).unwrap_or(0) / self.experts.max(1)
    }
}

/// Whether PEFT's settings give a tensor its place.
fn is_known(key: &str, config: &AdapterConfig) -> bool {
    let (plain, _) = keys::without_adapter(keys::without_prefix(key));
    if let Some(parsed) = keys::parse(&plain) {
        return match parsed.part {
            Part::Bias => config.lora_bias || config.bias == TrainBias::All,
            Part::Tokens => config.trainable_token_indices.is_some(),
            _ => true,
        };
    }
    let path = keys::without_copies(&keys::without_wrappers(&plain));
    let saved = config.modules_to_save.iter().flatten();
    let heads = config
        .task_type
        .map(|task| task.heads())
        .unwrap_or_default();
    let mut entries = saved.map(String::as_str).chain(heads.iter().copied());
    let is_saved = entries.any(|entry| {
        let mut places = modules_above(&path).chain([path.as_str()]);
        places.any(|place| is_or_ends_with(place, entry))
    });
    is_saved
        || (is_bias(&path) && config.bias != TrainBias::None)
        || keys::path_of_base_weight(&plain).is_some()
        || keys::is_embedding(&path)
        || path.strip_suffix(".weight").is_some_and(keys::is_head)
}

/// The order of names in which numbers count as such: `h.2.b` before `h.10.a`.
pub(super) fn by_numbers(one: &str, two: &str) -> Ordering {
    let parts = |name: &str| -> Vec<(u64, String)> {
        let segments = name.split(['.', '_']);
        let part = |segment: &str| match segment.parse() {
            Ok(number) => (number, String::new()),
            Err(_) => (u64::MAX, segment.to_string()),
        };
        segments.map(part).collect()
    };
    parts(one).cmp(&parts(two))
}
