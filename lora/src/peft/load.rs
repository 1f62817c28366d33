//! Loading an adapter.

use super::describe::{Description, Entry};
use super::weights::Weights;
use super::{AdapterConfig, CONFIG_FILE, TokenIndices, files};
use crate::convert::{Conversion, Values};
use crate::manage::assign_to_adapter;
use crate::path::join;
use crate::traits::each_layer;
use crate::{DEFAULT_ADAPTER, Error, Init, LoraConfig, LoraModel, LoraModule, Result, manage};
use candle_core::Tensor;
use indexmap::IndexMap;
use std::path::Path;

/// The settings and the weights of a directory. Of the weights, only the header was read.
struct Files<'a> {
    dir: &'a Path,
    config: LoraConfig,
    weights: Weights,
}

impl<'a> Files<'a> {
    fn open(dir: &'a Path) -> Result<Self> {
        let (file, weights) = files::open_pair(dir)?;
        let mut config = settings(dir, &file)?;
        // A list without a name means the input embedding. Only the weights tell its name.
        if let Some(TokenIndices::Input(ids)) = &file.trainable_token_indices
            && let Some(path) = weights.path_of_rows()
        {
            config.trainable_token_indices = IndexMap::from([(path, ids.clone())]);
        }
        config.ensure_weight_tying &= weights.holds_tie();
        Ok(Self {
            dir,
            config,
            weights,
        })
    }

    fn checked(&self, problems: Vec<String>) -> Result<()> {
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::File {
                path: self.dir.into(),
                problems,
            }),
        }
    }

    /// Checks that the weights have the ranks that the configuration claims. Comes before the
    /// adapter is made, as a configuration alone could claim any size.
    fn check_ranks<M: LoraModule>(&self, model: &M) -> Result<()> {
        let model = Description::of(model, "");
        let planned = model.planned(&self.config)?;
        self.checked(self.weights.check_ranks(&model, &planned))
    }

    /// Checks everything, then puts the values into the model's adapter of this name.
    fn put<M: LoraModule>(&self, model: &mut M, name: &str) -> Result<()> {
        let description = Description::of(model, name);
        let mut problems = description.disagreements(&self.config)?;
        manage::refuse_merged(model, &mut problems);
        let entries = description.entries();
        let values = self.weights.values(&entries, &description, &mut problems);
        self.checked(problems)?;
        self.checked(untied(&entries, &values)?)?;
        let paths = entries.iter().map(|entry| join(&entry.path, &entry.name));
        assign_to_adapter(model, name, &paths.zip(values).collect())
    }
}

/// The problems of tied tensors that differ in the file. In the model, one is a view of the other,
/// so that there is one place for both values.
fn untied(entries: &[Entry], values: &[Tensor]) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for (entry, value) in entries.iter().zip(values) {
        let Some(key) = &entry.tied_to else {
            continue;
        };
        let source = entries.iter().position(|other| other.key == *key);
        let source = source.map(|place| values[place].t()).transpose()?;
        let is_same = source.map(|source| value.to_device(source.device())?.eq(&source));
        let is_same = match is_same.transpose()? {
            Some(same) => same.min_all()?.to_scalar::<u8>()? == 1,
            None => false,
        };
        if !is_same {
            problems.push(format!(
                "`{}` is not the transpose of `{key}`, which ensure_weight_tying asks for",
                entry.key
            ));
        }
    }
    Ok(problems)
}

/// Loads an adapter's values into the active adapter, which must have the same form.
pub(crate) fn load<M: LoraModule>(model: &mut M, dir: &Path) -> Result<()> {
    let files = Files::open(dir)?;
    match &manage::active(model)[..] {
        [name] => {
            files.checked(other_start(model, name, &files.config))?;
            files.put(model, name)
        }
        active => manage::checked(vec![format!(
            "values are loaded into the one active adapter, but {} are active: call set_active() \
             first",
            active.len()
        )]),
    }
}

/// The problem of a file whose values are for another base than the model's adapter.
fn other_start<M: LoraModule>(model: &M, name: &str, file: &LoraConfig) -> Vec<String> {
    let theirs = file.init.changes_base().then_some(file.init);
    let mut problems = Vec::new();
    let words = |start: Option<Init>| match start {
        Some(init) => format!("the residual base of `{init}`"),
        None => "the original base".into(),
    };
    each_layer(model, |_, layer| {
        let adapter = layer.adapted().and_then(|layer| layer.adapters().get(name));
        let Some(adapter) = adapter.filter(|_| problems.is_empty()) else {
            return;
        };
        let loftq = adapter.loftq.as_ref();
        if adapter.start != theirs {
            problems.push(format!(
                "`init_lora_weights`: the file is for {}, the model's adapter for {}: load the file \
                 as a further adapter",
                words(theirs),
                words(adapter.start)
            ));
        } else if loftq.is_some_and(|mine| *mine != file.loftq_config) {
            problems.push("`loftq_config` differs from that of the model's adapter".into());
        }
    });
    problems
}

/// Loads an adapter as a further one of the model.
pub(crate) fn add<M: LoraModule>(model: &mut M, name: &str, dir: &Path) -> Result<()> {
    let files = Files::open(dir)?;
    let mut changed = model.clone();
    files.check_ranks(&changed)?;
    manage::add(&mut changed, name, &files.config, Values::FromFile)?;
    files.put(&mut changed, name)?;
    *model = changed;
    Ok(())
}

/// Loads an adapter in place of another.
pub(crate) fn swap<M: LoraModule>(model: &mut M, name: &str, dir: &Path) -> Result<()> {
    let mut changed = model.clone();
    let active = manage::active(model);
    let is_trained = manage::is_trained(model, name);
    // The old adapter goes first, as the new one takes its name.
    manage::delete(&mut changed, name)?;
    add(&mut changed, name, dir)?;
    manage::reactivate(&mut changed, &active)?;
    manage::set_adapter_trainable(&mut changed, name, is_trained)?;
    *model = changed;
    Ok(())
}

/// The LoRA model that the directory describes, in eval mode.
pub(crate) fn load_new<B: LoraModel>(base: &B, dir: &Path) -> Result<B::Lora> {
    let files = Files::open(dir)?;
    let conversion = Conversion::of(base, &files.config)?;
    files.check_ranks(conversion.frozen())?;
    let mut model: B::Lora = conversion.attach(DEFAULT_ADAPTER, Values::FromFile)?;
    files.put(&mut model, DEFAULT_ADAPTER)?;
    model.eval();
    Ok(model)
}

/// The settings of the directory, where a model can have them.
fn settings(dir: &Path, file: &AdapterConfig) -> Result<LoraConfig> {
    let settings = file.lora_config().and_then(|mut config| {
        let mut problems = Vec::new();
        match config.init {
            // Loading makes the residual base again, which is exact on the same original base.
            Init::Pissa | Init::Olora | Init::Mica => {}
            Init::Loftq if file.loftq().is_some() => {}
            init if init.changes_base() => problems.push(format!(
                "`init_lora_weights` is \"{init}\", whose residual base cannot be made again: \
                 convert the adapter with PEFT's path_initial_model_for_weight_conversion"
            )),
            // Values come from the file.
            _ => config.init = Init::Default,
        }
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(problems)
        }
    });
    settings.map_err(|problems| Error::File {
        path: dir.join(CONFIG_FILE),
        problems,
    })
}
