//! diffusers' files: the components of a pipeline, each with PEFT's keys or those of before PEFT.

use super::{Found, Meaning, Meant, Options};
use crate::config::selection::{Overrides, Selection};
use crate::error::shorten;
use crate::file::{self, TensorFile};
use crate::path::join;
use crate::peft::layers::{Layer, number, scaled};
use crate::peft::{AdapterConfig, keys};
use crate::{LoraConfig, Part, Result};
use candle_core::Tensor;
use indexmap::IndexMap;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// The components that diffusers' pipelines have.
const COMPONENTS: [&str; 8] = [
    "unet",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "transformer",
    "transformer_2",
    "prior",
    "controlnet",
];

/// Under this name the file's header holds PEFT's settings.
const METADATA: &str = "lora_adapter_metadata";

/// Endings of before PEFT, behind the layer's path.
const OLD: [(&str, Part); 4] = [
    (".lora.down.weight", Part::A),
    (".lora.up.weight", Part::B),
    (".lora_linear_layer.down.weight", Part::A),
    (".lora_linear_layer.up.weight", Part::B),
];

/// Endings of the oldest files, behind the name of one of an attention's projections.
const OLDEST: [(&str, Part); 2] = [("_lora.down.weight", Part::A), ("_lora.up.weight", Part::B)];

pub(super) fn is_key(key: &str) -> bool {
    let ends = OLD.iter().chain(&OLDEST);
    let is_old = ends.clone().any(|(end, _)| key.ends_with(end));
    let component = key.split('.').next().unwrap_or_default();
    is_old || (COMPONENTS.contains(&component) && keys::parse(key).is_some())
}

/// What a key is, without its component.
enum Key {
    Part(String, Part),
    Alpha(String),
}

/// What a key is, and of which layer, with the component before its path.
pub(super) fn meant(key: &str) -> Option<Meant> {
    let component = key
        .split('.')
        .next()
        .filter(|name| COMPONENTS.contains(name));
    let rest = match component {
        Some(component) => key.strip_prefix(component)?.strip_prefix('.')?,
        None => key,
    };
    let (path, meaning) = match parse(rest, is_of_text(component))? {
        Key::Part(path, Part::A) => (path, Meaning::A),
        Key::Part(path, Part::B) => (path, Meaning::B),
        Key::Part(path, _) => (path, Meaning::Magnitude),
        Key::Alpha(path) => (path, Meaning::Alpha),
    };
    Some((join(component.unwrap_or_default(), &path), meaning))
}

fn is_of_text(component: Option<&str>) -> bool {
    component.is_some_and(|name| name.starts_with("text_encoder"))
}

/// The scaling that the file's header gives a layer of this rank.
pub(super) fn scaling(file: &TensorFile, name: &str) -> Option<f64> {
    let component = name
        .split('.')
        .next()
        .filter(|name| COMPONENTS.contains(name));
    let path = component.map_or(name, |component| &name[component.len() + 1..]);
    let settings = settings(file, component).ok()??;
    let mut selection = Selection::new(&settings).ok()?;
    let settings = selection.settings(path, Overrides::default()).ok()?;
    Some(settings.scaling)
}

fn parse(key: &str, of_text: bool) -> Option<Key> {
    let key = key.replace(".processor.", ".");
    if let Some(path) = key.strip_suffix(".alpha") {
        return Some(Key::Alpha(path.into()));
    }
    for (end, part) in OLD {
        if let Some(path) = key.strip_suffix(end) {
            return Some(Key::Part(path.into(), part));
        }
    }
    for (end, part) in OLDEST {
        let Some(path) = key.strip_suffix(end) else {
            continue;
        };
        let (module, name) = path.rsplit_once('.')?;
        let name = match (name, of_text) {
            ("to_q", true) => "q_proj",
            ("to_k", true) => "k_proj",
            ("to_v", true) => "v_proj",
            ("to_out", true) => "out_proj",
            ("to_out", false) => "to_out.0",
            (name, _) => name,
        };
        return Some(Key::Part(format!("{module}.{name}"), part));
    }
    let parsed = keys::parse(&key)?;
    let is_matrix = matches!(parsed.part, Part::A | Part::B | Part::Magnitude);
    (is_matrix && !parsed.of_lookup).then(|| Key::Part(parsed.path.into(), parsed.part))
}

/// The layers of the file.
pub(super) fn read(file: &TensorFile, options: &Options) -> Result<Found<Vec<Layer>>> {
    let component = match component(file, options) {
        Ok(component) => component,
        Err(problem) => return Ok(Err(vec![problem])),
    };
    let of_text = is_of_text(component);
    let mut problems = Vec::new();
    let mut modules: IndexMap<String, HashMap<Option<Part>, &str>> = IndexMap::new();
    for key in file.tensors().keys() {
        let rest = match component {
            Some(component) => key
                .strip_prefix(component)
                .and_then(|k| k.strip_prefix('.')),
            None => Some(key.as_str()),
        };
        let Some(rest) = rest else {
            continue;
        };
        let (path, part) = match parse(rest, of_text) {
            Some(Key::Part(path, part)) => (path, Some(part)),
            Some(Key::Alpha(path)) => (path, None),
            None => {
                problems.push(format!("`{}` is no matrix of a layer", shorten(key)));
                continue;
            }
        };
        if modules.entry(path).or_default().insert(part, key).is_some() {
            problems.push(format!(
                "`{}` means a matrix that is there already",
                shorten(key)
            ));
        }
    }
    let settings = match settings(file, component) {
        Ok(settings) => settings,
        Err(problem) => {
            problems.push(problem);
            None
        }
    };
    let mut selection = settings.as_ref().map(Selection::new).transpose()?;
    let mut layers = Vec::new();
    for (path, tensors) in modules {
        let get = |part: Part| {
            tensors
                .get(&Some(part))
                .map(|key| file.tensor(key))
                .transpose()
        };
        let (Some(a), Some(b)) = (get(Part::A)?, get(Part::B)?) else {
            problems.push(format!("`{}` lacks A or B", shorten(&path)));
            continue;
        };
        let rank = a.dims().first().copied().unwrap_or(0);
        let alpha = match (tensors.get(&None), &mut selection) {
            (Some(key), _) => match number(file, key)? {
                Ok(alpha) => alpha,
                Err(problem) => {
                    problems.push(problem);
                    continue;
                }
            },
            (None, Some(selection)) => {
                let settings = selection.settings(&path, Overrides::default())?;
                settings.scaling * rank as f64
            }
            // As diffusers reads a file that does not say.
            (None, None) => rank as f64,
        };
        layers.push(Layer {
            magnitude: get(Part::Magnitude)?,
            path,
            of_lookup: false,
            a,
            b,
            alpha,
        });
    }
    Ok(match problems.is_empty() {
        true => Ok(layers),
        false => Err(problems),
    })
}

/// The component that is meant; `None` where the keys begin with none.
fn component<'a>(file: &'a TensorFile, options: &'a Options) -> Result<Option<&'a str>, String> {
    let first = |key: &'a String| key.split('.').next().unwrap_or_default();
    let mut all: Vec<&str> = file.tensors().keys().map(first).collect();
    all.sort_unstable();
    all.dedup();
    let known: Vec<&str> = all
        .iter()
        .copied()
        .filter(|name| COMPONENTS.contains(name))
        .collect();
    match (options.component.as_deref(), known.as_slice()) {
        (Some(wanted), _) if all.contains(&wanted) => Ok(Some(wanted)),
        (_, []) => Ok(None),
        (None, [one]) => Ok(Some(one)),
        (wanted, known) => Err(format!(
            "holds adapters of {}{}: say which with Options::component",
            known.join(", "),
            wanted.map_or(String::new(), |wanted| format!(", none of `{wanted}`"))
        )),
    }
}

/// PEFT's settings of the component, if the header holds them.
fn settings(file: &TensorFile, component: Option<&str>) -> Result<Option<LoraConfig>, String> {
    let text = file.metadata().and_then(|metadata| metadata.get(METADATA));
    let Some(text) = text else {
        return Ok(None);
    };
    let wrong = |problem: String| format!("`{METADATA}` in the header: {problem}");
    let all = file::parse_json(text.as_bytes()).map_err(|error| wrong(error.to_string()))?;
    let all = all
        .as_object()
        .ok_or_else(|| wrong("is no object".into()))?;
    let prefix = component.map_or(String::new(), |component| format!("{component}."));
    let own = all.iter().filter_map(|(key, value)| {
        let key = key.strip_prefix(&prefix)?;
        Some((key.to_string(), value.clone()))
    });
    let mut own: Map<String, Value> = own.collect();
    if own.is_empty() {
        return Ok(None);
    }
    own.insert("peft_type".into(), "LORA".into());
    let json = Value::Object(own).to_string();
    let config = AdapterConfig::from_text(json.as_bytes());
    let config = config.map_err(|problems| wrong(problems.join("; ")))?;
    let config = config.lora_config();
    config
        .map(Some)
        .map_err(|problems| wrong(problems.join("; ")))
}

/// The tensors of diffusers' file. The scaling goes into B, as a file without settings has a
/// scaling of 1.
pub(super) fn write(layers: &[Layer], component: &str) -> Found<Vec<(String, Tensor)>> {
    let (mut tensors, mut problems) = (Vec::new(), Vec::new());
    for layer in layers {
        let path = shorten(&layer.path);
        if layer.of_lookup || layer.magnitude.is_some() {
            problems.push(format!(
                "`{path}` is an embedding or has DoRA, which diffusers' files do not hold"
            ));
        }
        let key = |part| format!("{component}.{}", keys::part(&layer.path, part, false));
        match scaled(&layer.b, layer.scaling()) {
            Ok(b) => tensors.extend([(key(Part::A), layer.a.clone()), (key(Part::B), b)]),
            Err(error) => problems.push(format!("`{path}`: {error}")),
        }
    }
    match problems.is_empty() {
        true => Ok(tensors),
        false => Err(problems),
    }
}
