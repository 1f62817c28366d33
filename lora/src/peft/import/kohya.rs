//! kohya's files: `lora_unet_mid_block_to_q.lora_down.weight`, `.lora_up.weight`, `.alpha`.

use super::{Found, Meaning, Meant, Options};
use crate::error::shorten;
use crate::file::{Checkpoint, TensorFile};
use crate::peft::layers::{Layer, number};
use crate::{Result, gguf};
use candle_core::{Device, Tensor};
use indexmap::IndexMap;
use std::collections::HashMap;

const DOWN: &str = "lora_down.weight";
const UP: &str = "lora_up.weight";
const ALPHA: &str = "alpha";

pub(super) fn is_key(key: &str) -> bool {
    let tail = key.split_once('.').map(|(_, tail)| tail);
    key.starts_with("lora_") && tail.is_some_and(|tail| tail == DOWN || tail == UP)
}

/// What a key is, and of which layer.
pub(super) fn meant(key: &str) -> Option<Meant> {
    let (module, tail) = key.split_once('.')?;
    let meaning = match tail {
        DOWN => Meaning::A,
        UP => Meaning::B,
        ALPHA => Meaning::Alpha,
        _ => return None,
    };
    Some((module.into(), meaning))
}

/// `unet` and `mid_block_to_q` for `lora_unet_mid_block_to_q`.
fn taken_apart(module: &str) -> Option<(&str, &str)> {
    module.strip_prefix("lora_")?.split_once('_')
}

/// The layers of the file.
pub(super) fn read(file: &TensorFile, options: &Options) -> Result<Found<Vec<Layer>>> {
    let mut problems = Vec::new();
    let mut modules: IndexMap<&str, HashMap<&str, &str>> = IndexMap::new();
    for key in file.tensors().keys() {
        let Some((module, tail)) = key.split_once('.') else {
            problems.push(format!("`{}` is no key of kohya's", shorten(key)));
            continue;
        };
        if ![DOWN, UP, ALPHA].contains(&tail) {
            let what = match tail {
                "dora_scale" => "LyCORIS' DoRA, whose norms PEFT takes in another way",
                "lora_mid.weight" => "a Tucker decomposition, which PEFT does not have",
                _ => "neither of `lora_down`, `lora_up` and `alpha`",
            };
            problems.push(format!("`{}` is {what}", shorten(key)));
        }
        modules.entry(module).or_default().insert(tail, key);
    }
    let component = match component(&modules, options) {
        Ok(component) => component,
        Err(problem) => {
            problems.push(problem);
            return Ok(Err(problems));
        }
    };
    let names = match Names::of(options)? {
        Ok(names) => names,
        Err(problem) => {
            problems.push(problem);
            return Ok(Err(problems));
        }
    };
    let mut layers = Vec::new();
    for (module, tensors) in &modules {
        let Some((of, name)) = taken_apart(module).filter(|(of, _)| *of == component) else {
            continue;
        };
        let path = match names.find(name) {
            Ok(path) => path,
            Err(problem) => {
                problems.push(format!("`lora_{of}_{}`: {problem}", shorten(name)));
                continue;
            }
        };
        let (Some(down), Some(up)) = (tensors.get(DOWN), tensors.get(UP)) else {
            problems.push(format!("`{}` lacks `{DOWN}` or `{UP}`", shorten(module)));
            continue;
        };
        let (mut a, mut b) = (file.tensor(down)?, file.tensor(up)?);
        // A linear layer's matrices may be stored as those of a convolution of one pixel.
        if names.is_matrix(&path) && a.rank() == 4 && a.dims()[2..] == [1, 1] {
            (a, b) = (a.flatten_from(1)?, b.flatten_from(1)?);
        }
        let rank = a.dims().first().copied().unwrap_or(0) as f64;
        let alpha = match tensors.get(ALPHA) {
            Some(key) => match number(file, key)? {
                Ok(alpha) => alpha,
                Err(problem) => {
                    problems.push(problem);
                    continue;
                }
            },
            None => rank,
        };
        layers.push(Layer {
            path,
            of_lookup: false,
            a,
            b,
            alpha,
            magnitude: None,
        });
    }
    Ok(match problems.is_empty() {
        true => Ok(layers),
        false => Err(problems),
    })
}

/// The component that is meant.
fn component<'a>(
    modules: &IndexMap<&'a str, HashMap<&str, &str>>,
    options: &'a Options,
) -> Result<&'a str, String> {
    let mut all: Vec<&str> = modules
        .keys()
        .filter_map(|module| taken_apart(module).map(|(component, _)| component))
        .collect();
    all.sort_unstable();
    all.dedup();
    let wanted = options.component.as_deref();
    let wanted = wanted.map(|name| name.strip_prefix("lora_").unwrap_or(name));
    match (wanted, all.as_slice()) {
        (Some(wanted), all) if all.contains(&wanted) => Ok(wanted),
        (None, [one]) => Ok(one),
        (_, []) => Err("holds no key of the form `lora_unet_NAME`".into()),
        (wanted, all) => Err(format!(
            "holds adapters of {}{}: say which with Options::component",
            all.join(", "),
            wanted.map_or(String::new(), |wanted| format!(", none of `{wanted}`"))
        )),
    }
}

/// The base model's modules, by the names that kohya gives them.
struct Names {
    paths: HashMap<String, Vec<String>>,
    base: Option<Checkpoint>,
}

impl Names {
    fn of(options: &Options) -> Result<Result<Self, String>> {
        let mut paths: HashMap<String, Vec<String>> = HashMap::new();
        let base = options.base.as_deref().map(gguf::open).transpose()?;
        let of_base = base.iter().flat_map(Checkpoint::names);
        let of_base = of_base.filter_map(|name| name.strip_suffix(".weight"));
        let given = options.modules.iter().map(String::as_str);
        for path in of_base.chain(given) {
            let list = paths.entry(path.replace('.', "_")).or_default();
            if !list.iter().any(|known| known == path) {
                list.push(path.into());
            }
        }
        Ok(match paths.is_empty() {
            true => Err(
                "kohya's keys have `_` for each `.` of a path: Options::base names the \
                         checkpoint whose names tell the paths, Options::modules lists them"
                    .into(),
            ),
            false => Ok(Self { paths, base }),
        })
    }

    fn find(&self, name: &str) -> Result<String, String> {
        match self.paths.get(name).map(Vec::as_slice) {
            Some([one]) => Ok(one.clone()),
            Some(several) => Err(format!("may be {}", several.join(" or "))),
            None => Err("is no module of the base".into()),
        }
    }

    /// True if the base's weight is known to be a matrix.
    fn is_matrix(&self, path: &str) -> bool {
        let shape = self
            .base
            .as_ref()
            .map(|base| base.shape(&format!("{path}.weight")));
        shape.flatten().is_some_and(|shape| shape.len() == 2)
    }
}

/// The tensors of kohya's file.
pub(super) fn write(layers: &[Layer], component: &str) -> Found<Vec<(String, Tensor)>> {
    let component = component.strip_prefix("lora_").unwrap_or(component);
    let (mut tensors, mut problems) = (Vec::new(), Vec::new());
    for layer in layers {
        let path = shorten(&layer.path);
        if layer.magnitude.is_some() {
            problems.push(format!(
                "`{path}` has DoRA, which kohya's files do not hold"
            ));
        }
        if layer.of_lookup {
            problems.push(format!(
                "`{path}` is an embedding, which kohya does not adapt"
            ));
        }
        let module = format!("lora_{component}_{}", layer.path.replace('.', "_"));
        let alpha = Tensor::new(layer.alpha as f32, &Device::Cpu);
        match alpha {
            Ok(alpha) => tensors.push((format!("{module}.{ALPHA}"), alpha)),
            Err(error) => problems.push(error.to_string()),
        }
        tensors.push((format!("{module}.{DOWN}"), layer.a.clone()));
        tensors.push((format!("{module}.{UP}"), layer.b.clone()));
    }
    let mut names: Vec<&String> = tensors.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let name = shorten(twice[0]);
        problems.push(format!("two layers would get kohya's name `{name}`"));
    }
    match problems.is_empty() {
        true => Ok(tensors),
        false => Err(problems),
    }
}
