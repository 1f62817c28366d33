//! The start of adapters over a base that is quantised already: what quantising cost the base.

use crate::adapter::{dora, quantised, updates};
use crate::config::naming::Naming;
use crate::file::Checkpoint;
use crate::init::{self, Target};
use crate::manage::{self, assign_to_adapter};
use crate::path::join;
use crate::traits::{each_layer, try_each_layer};
use crate::{Adapted, Error, LoraModule, Part, Result, linalg};
use candle_core::Tensor;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// A quantised layer whose adapter [`replace_lora_weights_loftq`] looked at. W is the original weight, Q
/// the quantised one; the errors are relative to the size of W.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LoftqLayer {
    /// The layer's path.
    pub path: String,
    /// |W − Q| / |W|.
    pub base_error: f64,
    /// |W − (Q + s·B·A)| / |W|, with the new A and B.
    pub error: f64,
    /// Whether the adapter holds the new A and B.
    pub is_replaced: bool,
}

/// Gives the adapter of this name, at each quantised linear layer, the A and B that come nearest to what
/// quantising cost the layer: PEFT's `replace_lora_weights_loftq`. The blocks stay as they are, so that
/// the adapter is one for that base and is saved as any other.
///
/// `checkpoint` holds the original weights: a `.safetensors` file, an index, or a directory with either,
/// such as the model that a GGUF file was made from. One weight at a time is read. Names may have
/// another prefix than the model's paths. Unlike PEFT's, A and B take the adapter's scaling into
/// account, and DoRA's magnitude follows.
///
/// ```
/// use candle_core::quantized::{GgmlDType, QTensor};
/// use candle_core::{DType, Device, Tensor};
/// use lora::layers::QLinear;
/// use lora::peft::replace_lora_weights_loftq;
/// use lora::{LoraConfig, LoraModel, LoraModule};
/// use std::collections::HashMap;
/// use std::sync::Arc;
///
/// #[derive(Clone, Debug, LoraModel)]
/// struct Net {
///     #[lora(rank)]
///     fc: QLinear,
/// }
///
/// let weight = Tensor::randn(0f32, 1., (16, 64), &Device::Cpu)?;
/// let dir = tempfile::tempdir().unwrap();
/// let file = dir.path().join("model.safetensors");
/// candle_core::safetensors::save(&HashMap::from([("fc.weight", weight.clone())]), &file)?;
///
/// let blocks = Arc::new(QTensor::quantize(&weight, GgmlDType::Q4_0)?);
/// let mut model = Net { fc: QLinear::new(blocks, None)? }.to_lora(&LoraConfig::new(8))?;
/// let layers = replace_lora_weights_loftq(&mut model, dir.path(), "default")?;
/// assert!(layers[0].error < 0.8 * layers[0].base_error);
/// # Ok::<(), lora::Error>(())
/// ```
///
/// # Errors
/// If the model has no adapter of this name, adapters are merged, no quantised linear layer has the
/// adapter, the files cannot be read or hold quantised weights, a weight is missing or has another shape,
/// or a layer's rank is above the smaller side of its weight. The model then stays as it was.
pub fn replace_lora_weights_loftq<M: LoraModule>(
    model: &mut M,
    checkpoint: impl AsRef<Path>,
    adapter: &str,
) -> Result<Vec<LoftqLayer>> {
    replace_lora_weights_loftq_if(model, checkpoint, adapter, |_, _| Ok(true))
}

/// As [`replace_lora_weights_loftq`], layer by layer: `keep` is shown the model with the new A and B of
/// the layer at this path, and says whether they stay. PEFT's `callback`, which may compare the model's
/// outputs with those of the original model.
///
/// # Errors
/// Those of [`replace_lora_weights_loftq`] and of `keep`. After an error of `keep`, the layer at hand has
/// its A and B from before, layers that came earlier have what was decided.
pub fn replace_lora_weights_loftq_if<M: LoraModule>(
    model: &mut M,
    checkpoint: impl AsRef<Path>,
    adapter: &str,
    mut keep: impl FnMut(&M, &str) -> Result<bool>,
) -> Result<Vec<LoftqLayer>> {
    let originals = Originals::open(model, checkpoint.as_ref(), adapter)?;
    let mut report = Vec::new();
    for (path, name) in &originals.names {
        let mut found = None;
        try_each_layer(model, |at, layer| {
            if let (true, Some(layer)) = (at == path, layer.adapted()) {
                found = Some(replacement(
                    layer,
                    path,
                    &originals.file.tensor(name)?,
                    adapter,
                )?);
            }
            Ok(())
        })?;
        let Some(Replacement { values, mut layer }) = found else {
            continue;
        };
        let before = values_of(model, values.keys())?;
        assign_to_adapter(model, adapter, &values)?;
        let decided = keep(model, path);
        layer.is_replaced = matches!(decided, Ok(true));
        if !layer.is_replaced {
            assign_to_adapter(model, adapter, &before)?;
        }
        decided?;
        report.push(layer);
    }
    Ok(report)
}

/// The original weights of the layers whose adapters are replaced.
struct Originals {
    file: Checkpoint,
    /// Each layer's path, and the name that its weight has in the file, in the order of the walk.
    names: Vec<(String, String)>,
}

impl Originals {
    fn open<M: LoraModule>(model: &M, path: &Path, adapter: &str) -> Result<Self> {
        let mut problems = manage::unknown(model, &[adapter]);
        manage::refuse_merged(model, &mut problems);
        manage::checked(problems)?;
        let file = Checkpoint::open(path)?;
        let (mut problems, mut layers) = (Vec::new(), Vec::new());
        if let Some(scheme) = file.quantised() {
            problems.push(format!(
                "the weights are quantised by {scheme}: take those from before"
            ));
        }
        let mut known = Vec::new();
        each_layer(model, |path, layer| {
            known.push(path.to_string());
            let Some(layer) = layer.adapted().filter(|layer| !layer.is_lookup()) else {
                return;
            };
            let own = layer.adapters().get(adapter);
            if let (Some(blocks), Some(own)) = (layer.adapters().blocks(), own)
                && !own.is_tied()
            {
                let shape = blocks.shape().dims().to_vec();
                let largest = shape.iter().copied().min().unwrap_or(0);
                if own.settings.rank > largest {
                    problems.push(format!(
                        "`{path}`: rank {} is too large: a weight {shape:?} gives at most {largest}",
                        own.settings.rank
                    ));
                }
                layers.push((path.to_string(), shape));
            }
        });
        if layers.is_empty() {
            problems.push(format!(
                "the adapter `{adapter}` is at no quantised linear layer of the model"
            ));
        }
        let paths = file.names().filter_map(|name| name.strip_suffix(".weight"));
        let paths: Vec<&str> = paths.collect();
        let known: HashSet<&str> = known.iter().map(String::as_str).collect();
        let naming = Naming::find(paths.iter().copied(), &known, &[]);
        let naming = naming.map_err(|problem| Error::file(path, problem))?;
        let of_file: HashMap<String, &str> =
            paths.iter().map(|path| (naming.of(path), *path)).collect();
        let mut names = Vec::new();
        for (path, shape) in layers {
            let name = of_file.get(&path).map(|path| join(path, "weight"));
            let name = name.unwrap_or_else(|| join(&path, "weight"));
            match file.shape(&name) {
                None => problems.push(format!("has no tensor `{name}`")),
                Some(found) if found != shape => {
                    problems.push(format!(
                        "`{name}` has shape {found:?}, the model's {shape:?}"
                    ));
                }
                Some(_) => names.push((path, name)),
            }
        }
        match problems.is_empty() {
            true => Ok(Self { file, names }),
            false => Err(Error::File {
                path: path.into(),
                problems,
            }),
        }
    }
}

struct Replacement {
    /// The adapter's new values, by path.
    values: HashMap<String, Tensor>,
    layer: LoftqLayer,
}

fn replacement(
    layer: &dyn Adapted,
    path: &str,
    original: &Tensor,
    adapter: &str,
) -> Result<Replacement> {
    let unknown = || Error::layer(path, format!("has no adapter `{adapter}`"));
    let own = layer.adapters().get(adapter).ok_or_else(unknown)?;
    let base = quantised::unmerged_values(layer)?;
    let target = Target {
        path,
        weight: &original.to_device(base.device())?,
        rank: own.settings.rank,
        scaling: own.scaling(),
        blocks: None,
    };
    let start = init::missing(&target, &base)?;
    let mut changed = own.detached();
    (changed.a, changed.b) = (
        start.a.to_dtype(own.a.dtype())?,
        start.b.to_dtype(own.b.dtype())?,
    );
    let weight = linalg::matrix(original)?;
    let lacking = &weight - linalg::matrix(&base)?;
    let (a, b) = (linalg::matrix(&changed.a)?, linalg::matrix(&changed.b)?);
    let left = &lacking - own.scaling() * (b * a);
    let size = weight.norm_l2().max(f64::MIN_POSITIVE);
    let mut values = HashMap::new();
    if let Some(magnitude) = &own.magnitude {
        let norms = updates::norms(layer, &changed)?;
        let (of_weight, shape) = (layer.unmerged_weight().dtype(), magnitude.shape().clone());
        let magnitude = dora::start(&norms, of_weight, magnitude.dtype(), shape)?;
        values.insert(Part::Magnitude, magnitude);
    }
    values.insert(Part::A, changed.a);
    values.insert(Part::B, changed.b);
    let values = values.into_iter();
    Ok(Replacement {
        values: values
            .map(|(part, value)| (join(path, &part.name(false, adapter)), value))
            .collect(),
        layer: LoftqLayer {
            path: path.into(),
            base_error: lacking.norm_l2() / size,
            error: left.norm_l2() / size,
            is_replaced: true,
        },
    })
}

/// Copies of the adapters' tensors at these paths.
fn values_of<'a, M: LoraModule>(
    model: &M,
    paths: impl Iterator<Item = &'a String>,
) -> Result<HashMap<String, Tensor>> {
    let paths: HashSet<&String> = paths.collect();
    let mut values = HashMap::new();
    try_each_layer(model, |at, layer| {
        for param in layer.params() {
            let path = join(at, &param.name);
            if param.is_adapters() && paths.contains(&path) {
                // A variable changes in place.
                values.insert(path, param.tensor.detach().copy()?);
            }
        }
        Ok(())
    })?;
    Ok(values)
}
