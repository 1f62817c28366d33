//! Loading an adapter.

use super::describe::{Description, Entry};
use super::embeddings::{self, Growth};
use super::fused::Fused;
use super::import::Format;
use super::weights::Weights;
use super::{AdapterConfig, AdapterDir, CONFIG_FILE, experts, files, keys};
use crate::config::Kind;
use crate::config::naming::{self, Naming};
use crate::config::selection::Selection;
use crate::convert::{Conversion, Values};
use crate::manage::assign_to_adapter;
use crate::path::join;
use crate::traits::each_layer;
use crate::{
    DEFAULT_ADAPTER, Error, Init, LoraConfig, LoraModel, LoraModule, Part, Result, manage,
};
use candle_core::Tensor;
use std::collections::HashSet;

/// The settings and the weights of a directory. Of the weights, only the header was read.
pub(super) struct Files {
    pub dir: AdapterDir,
    pub file: AdapterConfig,
    pub config: LoraConfig,
    pub weights: Weights,
    /// Where the file and the model have no path in common: what to do.
    hint: Option<String>,
}

impl Files {
    fn open(dir: AdapterDir) -> Result<Self> {
        let (file, weights) = files::open_pair(&dir)?;
        let mut config = settings(&dir, &file)?;
        config.ensure_weight_tying &= weights.holds_tie();
        Ok(Self {
            config,
            dir,
            file,
            weights,
            hint: None,
        })
    }

    /// Brings the files to the model's terms: its paths, the layout of its experts, its embeddings.
    /// Returns the rows that the model lacks. `model` has no adapter in view.
    fn fit(&mut self, model: &Description) -> Result<Vec<Growth>> {
        let named = self.name(model);
        self.checked(named.err().into_iter().collect())?;
        self.find_whose_paths(model)?;
        let is_embedding = |path: &str| {
            let site = model.site(path);
            site.is_some_and(|site| site.kind == Kind::Embedding)
        };
        let tensors = &self.weights.tensors;
        let named = tensors.name_rows(&self.file, &mut self.config, is_embedding);
        self.checked(named.err().into_iter().collect())?;
        let mut problems = Vec::new();
        self.split_and_join_experts(model, &mut problems)?;
        experts::fit(self, model, &mut problems)?;
        let growth = embeddings::fit(self, model, &mut problems)?;
        self.checked(problems)?;
        Ok(growth)
    }

    /// Puts the model's paths in place of the file's.
    fn name(&mut self, model: &Description) -> Result<(), String> {
        let paths = self.weights.tensors.paths();
        let known = model.paths();
        let known: HashSet<&str> = known.iter().map(String::as_str).collect();
        let named = paths.iter().map(String::as_str);
        let naming = Naming::find(named, &known, &self.dir.renames)?;
        self.weights.tensors.rename(&naming)?;
        naming.notes().iter().for_each(|note| self.dir.tell(note));
        if !paths.is_empty() && !paths.iter().any(|path| known.contains(&*naming.of(path))) {
            let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
            let layers = model.sites.iter().filter(|site| site.adaptable);
            let layers: Vec<&str> = layers.map(|site| site.path.as_str()).collect();
            let keys = self.weights.tensors.tensors().keys().map(String::as_str);
            let foreign = Format::of(keys).and_then(Format::hint);
            self.hint = Some(foreign.unwrap_or_else(|| naming::strangers(&paths, &layers)));
        }
        self.config.naming = naming;
        Ok(())
    }

    /// Finds out whether the settings mean the file's paths, as PEFT writes them, or the model's: a
    /// tool may have changed the keys alone. The ranks tell, and the patterns that match nothing.
    fn find_whose_paths(&mut self, model: &Description) -> Result<()> {
        if self.config.naming.is_same() {
            return Ok(());
        }
        let of_file = self.misfits(model)?;
        self.config.naming.settings_mean_model(true);
        let of_model = self.misfits(model)?;
        self.config.naming.settings_mean_model(of_model < of_file);
        Ok(())
    }

    /// Whether the settings fail to give each matrix A of the file its rank, or give another layer
    /// one; and how many patterns have no effect.
    fn misfits(&self, model: &Description) -> Result<(bool, usize)> {
        let mut selection = Selection::new(&self.config)?;
        let planned = model.planned_by(&mut selection)?;
        let keys = self.weights.tensors.keys().keys();
        let parsed = keys.filter_map(|key| keys::parse(key));
        let count = parsed.filter(|parsed| parsed.part == Part::A).count();
        let fits = count == planned.len() && self.weights.check_ranks(model, &planned).is_empty();
        Ok((!fits, selection.unused().count()))
    }

    /// Brings adapters of experts to the weights that the model has: one for all, or one for each.
    fn split_and_join_experts(
        &mut self,
        model: &Description,
        problems: &mut Vec<String>,
    ) -> Result<()> {
        let weights = model.sites.iter().filter_map(|site| {
            let shape = site.own.first()?.param.tensor.dims().to_vec();
            Some((site.path.clone(), shape))
        });
        let naming = self.config.naming.clone();
        let mut fused = Fused {
            weights: &weights.collect(),
            of: &|path| path.into(),
            back: &|path| naming.meant_or_same(path),
            old: experts::are_old(&self.dir, &self.file),
            tensors: &mut self.weights.tensors,
            config: &mut self.config,
        };
        fused.fit(problems)
    }

    fn checked(&self, mut problems: Vec<String>) -> Result<()> {
        if problems.is_empty() {
            return Ok(());
        }
        problems.extend(self.hint.clone());
        Err(Error::File {
            path: self.dir.path().into(),
            problems,
        })
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
pub(crate) fn load<M: LoraModule>(model: &mut M, dir: AdapterDir) -> Result<()> {
    let mut files = Files::open(dir)?;
    let growth = files.fit(&Description::of(model, ""))?;
    if let Some(layer) = growth.first() {
        files.checked(vec![format!(
            "`{}` has more rows in the file than in the model, whose adapter is there already: make \
             the model from the directory with with_adapter",
            layer.path
        )])?;
    }
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
pub(crate) fn add<M: LoraModule>(model: &mut M, name: &str, dir: AdapterDir) -> Result<()> {
    let mut files = Files::open(dir)?;
    let mut changed = model.clone();
    let growth = files.fit(&Description::of(&changed, ""))?;
    embeddings::grow(&mut changed, growth)?;
    files.check_ranks(&changed)?;
    manage::add(&mut changed, name, &files.config, Values::FromFile)?;
    files.put(&mut changed, name)?;
    *model = changed;
    Ok(())
}

/// Loads an adapter in place of another.
pub(crate) fn swap<M: LoraModule>(model: &mut M, name: &str, dir: AdapterDir) -> Result<()> {
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
pub(crate) fn load_new<B: LoraModel>(base: &B, dir: AdapterDir) -> Result<B::Lora> {
    let mut files = Files::open(dir)?;
    // The walk shows the model's paths, which tell how the file's are meant. So the adapter's
    // settings are final only after the walk.
    let config = files.config.clone();
    let mut conversion = Conversion::of(base, &config)?;
    let growth = files.fit(&Description::of(conversion.frozen(), ""))?;
    embeddings::grow(conversion.frozen_mut(), growth)?;
    files.check_ranks(conversion.frozen())?;
    let conversion = conversion.with_settings(&files.config)?;
    let mut model: B::Lora = conversion.attach(DEFAULT_ADAPTER, Values::FromFile)?;
    files.put(&mut model, DEFAULT_ADAPTER)?;
    model.eval();
    Ok(model)
}

/// The settings of the directory, where a model can have them.
fn settings(dir: &AdapterDir, file: &AdapterConfig) -> Result<LoraConfig> {
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
        path: dir.path().join(CONFIG_FILE),
        problems,
    })
}
