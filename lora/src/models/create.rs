//! Creating a model by its name or its configuration.

use super::loader::Loader;
use super::random::Random;
use super::shapes::{Placeholder, parameter_shapes};
use super::{Architecture, Created, Extra, Options, Variant, Weights, names};
use crate::config::matching::is_or_starts_with;
use crate::file::Checkpoint;
use crate::{Error, Result};
use candle_core::DType;
use candle_core::Shape;
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Creates a variant by its name, such as `convnext_tiny`. A tag chooses among the variant's
/// pretrained weights: `convnext_tiny.fb_in1k`.
///
/// The number of classes comes from the options, else from the file, else from the variant.
///
/// # Errors
/// [`Error::UnknownModel`] lists names that are close. [`Error::Weights`] lists the parameters that
/// the file lacks, those of another shape, and the file's that the model lacks. [`Error::File`]
/// names a file that cannot be read or downloaded.
pub fn create<M: Architecture>(
    name: &str,
    weights: Weights,
    options: &Options,
) -> Result<Created<M>> {
    let (variant, _tag) = find::<M>(name)?;
    #[cfg(feature = "hub")]
    let weights = match weights {
        Weights::Hub(hub) => {
            let Some(tag) = _tag.or_else(|| variant.tags().next()) else {
                let name = variant.name;
                let problem = format!("{name} has no pretrained weights on the hub");
                return Err(Error::Weights(vec![problem]));
            };
            let repo = format!("timm/{}.{tag}", variant.name);
            Weights::File(hub.fetch(&repo, "model.safetensors")?)
        }
        weights => weights,
    };
    build(&variant.config, weights, options)
}

/// Creates a model of any configuration. Its weights cannot come from the hub, which knows models
/// by name only.
///
/// # Errors
/// As [`create`], except that no name can be unknown.
pub fn build<M: Architecture>(
    config: &M::Config,
    weights: Weights,
    options: &Options,
) -> Result<Created<M>> {
    let changed = M::with_options(config, options);
    match weights {
        Weights::Random(seed) => {
            let fresh = parameter_shapes::<M>(&changed)?.into_keys().collect();
            make(changed, Random::new(seed), fresh, Vec::new(), options)
        }
        Weights::Placeholder => make(changed, Placeholder, Vec::new(), Vec::new(), options),
        Weights::File(path) => load(config, &path, options),
        #[cfg(feature = "hub")]
        Weights::Hub(_) => Err(Error::Weights(vec![
            "weights from the hub go by a variant's name: use `create`, or `Hub::fetch` and \
             `Weights::File`"
                .into(),
        ])),
    }
}

fn make<M: Architecture>(
    config: M::Config,
    backend: impl SimpleBackend + 'static,
    fresh: Vec<String>,
    ignored: Vec<String>,
    options: &Options,
) -> Result<Created<M>> {
    let vb = VarBuilder::from_backend(Box::new(backend), options.dtype, options.device.clone());
    let model = match options.quantize {
        None => M::build(&config, vb)?,
        Some(dtype) if options.dtype == DType::F32 => M::build_quantised(&config, vb, dtype)?,
        Some(dtype) => {
            return Err(Error::Config(vec![format!(
                "`dtype` is {:?}, and `quantize` {dtype:?}: with quantised weights a model computes in F32",
                options.dtype
            )]));
        }
    };
    Ok(Created {
        model,
        config,
        fresh,
        ignored,
    })
}

fn find<M: Architecture>(
    full_name: &str,
) -> Result<(&'static Variant<M::Config>, Option<&'static str>)> {
    let (name, tag) = match full_name.split_once('.') {
        Some((name, tag)) => (name, Some(tag)),
        None => (full_name, None),
    };
    let unknown = |near| Error::UnknownModel {
        name: full_name.into(),
        near,
    };
    let variants = M::variants();
    let Some(variant) = variants.iter().find(|variant| variant.name == name) else {
        let names = variants.iter().map(|variant| variant.name);
        return Err(unknown(names::near(name, names)));
    };
    let Some(tag) = tag else {
        return Ok((variant, None));
    };
    match variant.tags().find(|&known| known == tag) {
        Some(tag) => Ok((variant, Some(tag))),
        None => Err(unknown(
            variant.tags().map(|tag| format!("{name}.{tag}")).collect(),
        )),
    }
}

fn load<M: Architecture>(config: &M::Config, path: &Path, options: &Options) -> Result<Created<M>> {
    let checkpoint = Checkpoint::open(path)?;
    let is_of = |body: &&str| checkpoint.names().any(|name| is_or_starts_with(name, body));
    let checkpoint = match M::BODY.filter(|body| !is_of(body)) {
        Some(body) => checkpoint.within(body),
        None => checkpoint,
    };
    let mut settings = options.clone();
    let classifier = checkpoint.shape(&format!("{}.weight", M::CLASSIFIER));
    let listed = |name: &str| {
        options
            .fresh
            .iter()
            .any(|module| is_or_starts_with(name, module))
    };
    if let (None, Some(&[classes, _]), false) =
        (options.num_classes, classifier, listed(M::CLASSIFIER))
    {
        settings.num_classes = Some(classes);
    }
    let config = M::with_options(config, &settings);
    let expected = parameter_shapes::<M>(&config)?;

    let renamed = renamed::<M>(&checkpoint, &config, expected.keys());
    let in_file = |name: &str| renamed.get(name).cloned().unwrap_or_else(|| name.into());
    let differs =
        |name: &str, shape: &Shape| checkpoint.shape(&in_file(name)) != Some(shape.dims());
    let of_classifier = |name: &str| is_or_starts_with(name, M::CLASSIFIER);
    let mut heads = M::heads(&config, options);
    heads.retain(|head| {
        let of_head = |name: &str| is_or_starts_with(name, head);
        (expected.iter()).any(|(name, shape)| of_head(name) && differs(name, shape))
    });
    let no_classes = options.num_classes == Some(0);
    let is_fresh =
        |name: &str| listed(name) || heads.iter().any(|head| is_or_starts_with(name, head));

    let mut problems = Vec::new();
    let mut fresh = Vec::new();
    for (name, shape) in &expected {
        if is_fresh(name) {
            fresh.push(name.clone());
            continue;
        }
        match checkpoint.shape(&in_file(name)) {
            None => problems.push(format!("`{name}` {:?} is missing", shape.dims())),
            Some(found) if found != shape.dims() => problems.push(format!(
                "`{name}` is {found:?}, the model's is {:?}",
                shape.dims()
            )),
            Some(_) => problems.extend(not_a_float(&checkpoint, &in_file(name))),
        }
    }
    let used: HashSet<&String> = renamed.values().collect();
    let mut names: Vec<&str> = checkpoint.names().collect();
    names.sort_unstable();
    let mut ignored = Vec::new();
    for name in names {
        let dropped = is_fresh(name) || (no_classes && of_classifier(name));
        if expected.contains_key(name) || used.contains(&name.to_string()) || dropped {
            continue;
        }
        match M::extra(&config, name) {
            Extra::Unknown => problems.push(format!("`{name}` is not a parameter of the model")),
            Extra::Harmless => ignored.push(name.into()),
            Extra::CopyOf(other) => match is_copy(&checkpoint, name, &in_file(other))? {
                true => ignored.push(name.into()),
                false => problems.push(format!(
                    "`{name}` differs from `{other}`, but the configuration makes both one weight"
                )),
            },
        }
    }
    if !problems.is_empty() {
        if let Some(scheme) = checkpoint.quantised() {
            problems.push(format!(
                "the weights are quantised by {scheme}: dequantise them first"
            ));
        }
        problems.push(format!("the file is {}", path.display()));
        return Err(Error::Weights(problems));
    }
    let random = Random::new(options.seed);
    let loader = Loader::new(checkpoint, random, fresh.iter().cloned(), renamed);
    make(config, loader, fresh, ignored, options)
}

/// The file's names of the parameters that it has under another name of theirs.
fn renamed<'a, M: Architecture>(
    checkpoint: &Checkpoint,
    config: &M::Config,
    names: impl Iterator<Item = &'a String>,
) -> HashMap<String, String> {
    let missing = names.filter(|name| !checkpoint.contains(name));
    let other = |name: &String| {
        let others = M::other_names(config, name).into_iter();
        let other = others
            .into_iter()
            .find(|other| checkpoint.contains(other))?;
        Some((name.clone(), other))
    };
    missing.filter_map(other).collect()
}

/// Whether two tensors hold the same.
fn is_copy(checkpoint: &Checkpoint, name: &str, other: &str) -> Result<bool> {
    if checkpoint.info(name).map(|info| (info.dtype, &info.shape))
        != checkpoint.info(other).map(|info| (info.dtype, &info.shape))
    {
        return Ok(false);
    }
    let (a, b) = (checkpoint.tensor(name)?, checkpoint.tensor(other)?);
    let differences = a.ne(&b)?.to_dtype(DType::F32)?.max_all()?;
    Ok(differences.to_scalar::<f32>()? == 0.0)
}

/// The problem with a tensor that holds no floating-point numbers.
fn not_a_float(file: &Checkpoint, name: &str) -> Option<String> {
    let found = file.info(name)?.dtype;
    let float = DType::try_from(found).is_ok_and(|dtype| dtype.is_float());
    (!float).then(|| format!("`{name}` is {found:?}, the model's is floating-point"))
}
