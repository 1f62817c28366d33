//! Saving an adapter.

use super::describe::{Description, Site};
use super::{AdapterConfig, TaskType, TokenIndices, replace, targets, weights};
use crate::config::Kind;
use crate::config::matching::ends;
use crate::{DEFAULT_ADAPTER, Error, Init, LoraModule, Result, Settings, TrainBias, manage};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Which adapters to save, and what to say about the model beyond what the model itself knows.
///
/// ```
/// use lora::peft::{SaveOptions, TaskType};
///
/// let options = SaveOptions::new()
///     .base_model("timm/convnext_tiny.fb_in22k")
///     .task_type(TaskType::FeatureExtraction);
/// assert_eq!(options.task_type, Some(TaskType::FeatureExtraction));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct SaveOptions {
    /// Name or path of the base model.
    pub base_model: Option<String>,
    /// What the model is used for.
    pub task_type: Option<TaskType>,
    /// The adapters to save; `None` for all.
    pub adapters: Option<Vec<String>>,
}

impl SaveOptions {
    /// All adapters, with neither a name nor a task.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`base_model`](Self::base_model).
    pub fn base_model(mut self, name: impl Into<String>) -> Self {
        self.base_model = Some(name.into());
        self
    }

    /// Sets [`adapters`](Self::adapters).
    pub fn adapters<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.adapters = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Sets [`task_type`](Self::task_type).
    pub fn task_type(mut self, task_type: TaskType) -> Self {
        self.task_type = Some(task_type);
        self
    }
}

/// Saves the adapters that the options name, or all of them.
pub(crate) fn save_all<M: LoraModule>(model: &M, dir: &Path, options: &SaveOptions) -> Result<()> {
    let all = manage::names(model);
    let chosen = match &options.adapters {
        Some(names) => names.clone(),
        None => all.clone(),
    };
    let names: Vec<&str> = chosen.iter().map(String::as_str).collect();
    manage::checked(manage::unknown(model, &names))?;
    if names.is_empty() {
        return Err(Error::file(
            dir,
            "cannot be written: the model has no adapter",
        ));
    }
    for name in names {
        let is_top = name == DEFAULT_ADAPTER || all.len() == 1;
        let place = if is_top {
            dir.to_path_buf()
        } else {
            dir.join(name)
        };
        save(model, name, &place, options)?;
    }
    Ok(())
}

/// Saves the model's adapter of this name into the directory itself.
fn save<M: LoraModule>(model: &M, name: &str, dir: &Path, options: &SaveOptions) -> Result<()> {
    let failed = |problems| Error::File {
        path: dir.into(),
        problems,
    };
    // A file is for the original base: PEFT and others have no residual base at hand.
    let model = Description::for_original(model, name)?;
    let config = describe(&model, options).map_err(failed)?;
    let batch_norms = model
        .sites
        .iter()
        .filter(|site| site.kind == Kind::BatchNorm && model.saved_module(&site.path).is_some());
    let batch_norms: Vec<String> = batch_norms.map(|site| site.path.clone()).collect();
    let weights = weights::to_bytes(&model.entries(), &batch_norms).map_err(failed)?;
    let json = config.to_json()?;
    replace::write(dir, &json, &weights)
}

/// The configuration of the model's adapter, or all that PEFT's format cannot express.
fn describe(model: &Description, options: &SaveOptions) -> Result<AdapterConfig, Vec<String>> {
    let mut problems = model.problems.clone();
    let layers: Vec<(&str, Settings)> = model.adapted().collect();
    if layers.is_empty() {
        problems.push("cannot be written: the model has no adapter".into());
    }
    if layers.iter().any(|(path, _)| path.is_empty()) {
        problems
            .push("cannot be written: the layer has no name; make it a field of a model".into());
    }
    for (path, _) in &layers {
        if model.site(path).is_some_and(Site::is_bare) && !path.contains('.') {
            problems.push(format!(
                "cannot be written: `{path}` is a bare weight of the model itself, which PEFT takes \
                 only inside a module"
            ));
        }
    }
    problems.extend(named_twice(model));
    let bias = bias(model).unwrap_or_else(|problem| {
        problems.push(problem);
        TrainBias::None
    });
    problems.extend(clashes(model, options.task_type));
    if !problems.is_empty() {
        return Err(problems);
    }

    let (use_rslora, layers) = alphas(&layers);
    let rank = most_common(layers.iter().map(|(_, s)| s.rank)).unwrap_or(1);
    let alpha = most_common(layers.iter().map(|(_, s)| s.alpha)).unwrap_or(1.0);
    let mut config = AdapterConfig::new();
    config.r = rank;
    config.lora_alpha = alpha;
    config.lora_dropout = most_common(layers.iter().map(|(_, s)| s.dropout)).unwrap_or(0.0);
    let tokens = model.tokens();
    config.trainable_token_indices = (!tokens.is_empty()).then_some(TokenIndices::Modules(tokens));
    config.ensure_weight_tying = model.is_tied();
    if let Some(start) = model.sites.iter().find_map(|site| site.start) {
        config.set_start(start);
    }
    if let Some(loftq) = model.sites.iter().find_map(|site| site.loftq.as_ref()) {
        config.set_loftq(loftq).map_err(|problem| vec![problem])?;
    }
    if model.sites.iter().any(|site| site.keeps_b) {
        config.set_start(Init::Mica);
    }
    config.use_rslora = use_rslora;
    for (_, part, flag) in config.parts_mut() {
        *flag = model.has(part);
    }
    config.bias = bias;
    config.task_type = options.task_type;
    config.base_model_name_or_path = options.base_model.clone();
    targets::write(model, &layers, &mut config);
    // Tells in which of PEFT's layouts the adapters of experts are.
    let mut bare = model.sites.iter().filter(|site| site.is_bare());
    if bare.any(|site| site.adapter.is_some()) {
        config.peft_version = Some(super::PEFT_VERSION.into());
    }
    if !model.saved.is_empty() {
        config.modules_to_save = Some(model.named_saved());
    }
    let layers = layers.iter();
    config.rank_pattern = targets::pattern(layers.clone().map(|(p, s)| (*p, s.rank)), rank);
    config.alpha_pattern = targets::pattern(layers.map(|(p, s)| (*p, s.alpha)), alpha);
    Ok(config)
}

/// Whether the scalings are alpha / √r, and the layers' settings. The file has one flag for this:
/// if layers differ, all get the alphas that give the same scalings as alpha / r.
fn alphas<'a>(layers: &[(&'a str, Settings)]) -> (bool, Vec<(&'a str, Settings)>) {
    let rslora = layers.iter().filter(|(_, s)| s.use_rslora).count();
    if rslora == 0 || rslora == layers.len() {
        return (rslora > 0, layers.to_vec());
    }
    let layers = layers.iter().map(|&(path, s)| {
        let alpha = s.scaling * s.rank as f64;
        (path, Settings { alpha, ..s })
    });
    (false, layers.collect())
}

/// The value that occurs most often; the first, if several do.
pub(super) fn most_common<T: PartialEq + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: Vec<(T, usize)> = Vec::new();
    for value in values {
        match counts.iter_mut().find(|(known, _)| *known == value) {
            Some((_, count)) => *count += 1,
            None => counts.push((value, 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max()?;
    counts
        .into_iter()
        .find(|(_, count)| *count == most)
        .map(|(value, _)| value)
}

/// Which rule the trained biases follow.
fn bias(model: &Description) -> Result<TrainBias, String> {
    let biases = model.biases();
    let some = |adapted: bool| {
        biases
            .iter()
            .any(|(_, a, trained)| *a == adapted && *trained)
    };
    let all = |adapted: bool| {
        biases
            .iter()
            .all(|(_, a, trained)| *a != adapted || *trained)
    };
    let any = some(true) || some(false);
    match (any, some(false)) {
        (false, _) => Ok(TrainBias::None),
        (true, false) if all(true) => Ok(TrainBias::LoraOnly),
        (true, true) if all(true) && all(false) => Ok(TrainBias::All),
        _ => {
            let frozen = biases.iter().filter(|(_, _, trained)| !trained);
            let frozen: Vec<_> = frozen.map(|(key, ..)| format!("`{key}`")).collect();
            Err(format!(
                "cannot be written: a PEFT adapter trains no bias, the biases of its layers, or all \
                 biases; here some are trained, but not {}",
                frozen.join(", ")
            ))
        }
    }
}

/// The problems of bare weights, and of embeddings with trained rows, whose path is also the end of
/// another path: PEFT would take both.
fn named_twice(model: &Description) -> Vec<String> {
    let tokens = model.tokens();
    let is_named = |site: &Site| match site.is_bare() {
        true => site.adapter.is_some(),
        false => tokens.contains_key(&site.path),
    };
    let mut others = HashMap::new();
    for site in model.sites.iter().filter(|site| !is_named(site)) {
        others.extend(ends(&site.path).map(|end| ((site.kind, end), &site.path)));
    }
    let named = model.sites.iter().filter(|site| is_named(site));
    let clashes = named.filter_map(|site| {
        let other = others.get(&(site.kind, site.path.as_str()))?;
        Some(format!(
            "cannot be written: the name `{}` also means `{other}` to PEFT; rename one of them",
            site.path
        ))
    });
    clashes.collect()
}

/// The problems of modules that PEFT would train in full by mistake. PEFT takes any module whose
/// path ends in the letters of an entry of modules_to_save, and adds entries for the task.
fn clashes(model: &Description, task: Option<TaskType>) -> Vec<String> {
    let heads = task
        .map(TaskType::heads)
        .unwrap_or_default()
        .iter()
        .copied();
    let saved = model.saved.iter().map(String::as_str);
    let entries: HashSet<&str> = saved.chain(heads).collect();
    let mut problems = Vec::new();
    for module in model.modules() {
        let mut letters = module.char_indices().map(|(place, _)| &module[place..]);
        let entry = letters.find(|end| entries.contains(end));
        let saved = model.saved_module(module);
        if let Some(entry) = entry
            && saved != Some(module)
        {
            problems.push(format!(
                "cannot be written: the entry `{entry}` of modules_to_save also means `{module}` to \
                 PEFT, which {}; rename one of them",
                if saved.is_some() { "is inside it" } else { "is not trained in full" }
            ));
        }
    }
    problems
}
