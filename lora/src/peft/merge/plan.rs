//! What an adapter does to each tensor of a checkpoint.

use super::MergeOptions;
use super::change::{Change, Start, outcome};
use super::merged::merged;
use super::modules::Keys;
use super::planner::Planner;
use super::settings;
use super::tying::Tie;
use crate::adapter::Part;
use crate::adapter::update;
use crate::config::naming::{Naming, strangers, with_modules};
use crate::config::selection::{Selection, misfits};
use crate::file::Checkpoint;
use crate::peft::InitWeights;
use crate::peft::experts::are_old;
use crate::peft::files;
use crate::peft::fused::Fused;
use crate::peft::import::Format;
use crate::peft::keys::without_wrappers;
use crate::peft::tensors::{self, Tensors};
use crate::peft::weights::Weights;
use crate::peft::{AdapterDir, CONFIG_FILE, keys};
use crate::{Error, Result, ops};
use candle_core::{DType, Tensor};
use indexmap::IndexMap;
use safetensors::tensor::{Dtype, TensorInfo};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;

/// How many values of a tensor are in memory in the wider dtype at a time.
const PIECE: usize = 1 << 24;

/// Every change, checked against the shapes of the base.
pub(in crate::peft) struct Plan {
    /// What the adapter is merged into: the original, or what the adapters before made of it.
    pub base: Arc<Checkpoint>,
    /// What the first adapter was merged into.
    pub original: Arc<Checkpoint>,
    /// The tensors that adapters before changed, each with the last that did.
    earlier: IndexMap<String, Earlier>,
    /// By the tensor's name in the checkpoint.
    pub changes: IndexMap<String, Change>,
    /// What `config.json` must say of the result and does not say of the original.
    pub settings: IndexMap<String, Value>,
    /// The dtype of all floats of the result, if that is not the base's.
    pub dtype: Option<Dtype>,
    adapter: Tensors,
}

impl Plan {
    /// Plans the adapter, behind those that the options name first.
    pub fn new(base: Checkpoint, dir: &AdapterDir, options: &MergeOptions) -> Result<Self> {
        let dtype = options.dtype.map(dtype_of_result).transpose()?;
        let base = Arc::new(base);
        let mut onto = Onto {
            base: base.clone(),
            original: base,
            earlier: IndexMap::new(),
            settings: IndexMap::new(),
        };
        for before in &options.first {
            onto = Self::one(onto, before, options, None)?.into_onto(before)?;
        }
        Self::one(onto, dir, options, dtype)
    }

    /// What the next adapter is merged into.
    fn into_onto(self, dir: &AdapterDir) -> Result<Onto> {
        let mut earlier = self.earlier.clone();
        for (name, change) in &self.changes {
            let change = Earlier {
                by: dir.path().into(),
                is_shared: matches!(change.start, Start::Merged(_)),
            };
            earlier.insert(name.clone(), change);
        }
        Ok(Onto {
            original: self.original.clone(),
            earlier,
            settings: self.settings.clone(),
            base: Arc::new(merged(self)?),
        })
    }

    fn one(
        onto: Onto,
        dir: &AdapterDir,
        options: &MergeOptions,
        dtype: Option<Dtype>,
    ) -> Result<Self> {
        let base = &*onto.base;
        let (
            mut config,
            Weights {
                tensors: mut adapter,
            },
        ) = files::open_pair(dir)?;
        let in_config = |problems| Error::File {
            path: dir.path().join(CONFIG_FILE),
            problems,
        };
        let mut problems = Vec::new();
        if config.init_lora_weights.changes_base() {
            if !options.residual_base {
                problems.push(
                    "`init_lora_weights` names an initial value that leaves a residual base, and \
                     the adapter fits only that base. Convert the adapter with PEFT's \
                     path_initial_model_for_weight_conversion; or, if the base given is the \
                     residual base, say so with MergeOptions::residual_base"
                        .into(),
                );
            }
            // On its residual base the adapter is one like any other.
            config.init_lora_weights = InitWeights::Flag(true);
        }
        let mut lora = match config.lora_config() {
            Ok(lora) if problems.is_empty() => lora,
            Ok(_) => return Err(in_config(problems)),
            Err(more) => {
                problems.extend(more);
                return Err(in_config(problems));
            }
        };
        let failed = |problems| Error::File {
            path: dir.path().into(),
            problems,
        };
        let named = adapter.name_rows(&config, &mut lora, keys::is_embedding_path);
        named.map_err(|problem| failed(vec![problem]))?;
        let known = with_modules(base.names());
        let paths = adapter.paths();
        let renames = [&dir.renames[..], &options.rename].concat();
        let naming = Naming::find(paths.iter().map(String::as_str), &known, &renames);
        let naming = naming.map_err(|problem| failed(vec![problem]))?;
        naming.notes().iter().for_each(|note| dir.tell(note));
        let weights = base.names().filter_map(|name| {
            let path = name.strip_suffix(".weight").unwrap_or(name);
            Some((path.to_string(), base.shape(name)?.to_vec()))
        });
        let mut problems = Vec::new();
        let mut fused = Fused {
            tensors: &mut adapter,
            config: &mut lora,
            weights: &weights.collect(),
            of: &|path| naming.of(path),
            back: &|path| path.into(),
            old: are_old(dir, &config),
        };
        fused.fit(&mut problems)?;
        if !problems.is_empty() {
            return Err(failed(problems));
        }
        let keys = Keys::of(&adapter);
        let tie = Tie::find(base, &keys, |path| naming.of(path))?;
        let ranks = |read: &dyn Fn(&str) -> String| -> Vec<(String, usize)> {
            let modules = keys.modules.iter().filter_map(|(path, module)| {
                let info = adapter.tensors().get(module.get(Part::A)?)?;
                Some((read(&without_wrappers(path)), *info.shape.first()?))
            });
            modules.collect()
        };
        let as_model = !naming.is_same()
            && misfits(&lora, ranks(&|path| naming.of(path)))?
                < misfits(&lora, ranks(&|path| path.into()))?;
        let mut planner = Planner {
            base,
            original: &onto.original,
            earlier: &onto.earlier,
            adapter: &adapter,
            config: &config,
            lora: &lora,
            options,
            selection: Selection::new(&lora)?,
            dir,
            naming,
            as_model,
            tie,
            changes: IndexMap::new(),
            problems: Vec::new(),
        };
        planner.plan(&keys)?;
        let Planner {
            changes,
            mut problems,
            naming,
            tie,
            ..
        } = planner;
        if !problems.is_empty() {
            let is_known = |path: &String| known.contains(&*naming.of(path));
            if !paths.is_empty() && !paths.iter().any(is_known) {
                let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
                let keys = adapter.tensors().keys().map(String::as_str);
                let foreign = Format::of(keys).and_then(Format::hint);
                let stranger = || strangers(&paths, &base.names().collect::<Vec<_>>());
                problems.push(foreign.unwrap_or_else(stranger));
            }
            problems.extend(base.quantised().map(|scheme| {
                format!(
                    "the base is quantised by {scheme}: an update cannot be added to such weights. \
                     Merge into the checkpoint that was quantised, or into one that was dequantised"
                )
            }));
            return Err(failed(problems));
        }
        let mut plan = Self {
            base: onto.base,
            original: onto.original,
            earlier: onto.earlier,
            changes,
            settings: onto.settings,
            dtype,
            adapter,
        };
        let settings = settings::changed(&plan, tie.as_ref())?;
        plan.settings.extend(settings);
        Ok(plan)
    }

    /// The merged tensor, in the dtype of the result.
    pub fn apply(&self, name: &str) -> Result<Tensor> {
        self.compute(name, true)
    }

    /// The merged tensor, in the dtype of the computation.
    pub(super) fn apply_wide(&self, name: &str) -> Result<Tensor> {
        self.compute(name, false)
    }

    fn compute(&self, name: &str, is_rounded: bool) -> Result<Tensor> {
        let start = self.start(name)?;
        let failed = |error: candle_core::Error| {
            Error::file(self.adapter.path(), format!("merging `{name}`: {error}"))
        };
        let dtype = match self.outcome(name) {
            Some((dtype, _)) => DType::try_from(dtype)?,
            None => start.dtype(),
        };
        let unchanged = Change::default();
        let change = match self.changes.get(name) {
            Some(change) if dtype.is_float() => change,
            None if dtype.is_float() && dtype != start.dtype() && is_rounded => &unchanged,
            _ => return Ok(start),
        };
        let wide = match dtype == DType::F64 || start.dtype() == DType::F64 {
            true => DType::F64,
            false => DType::F32,
        };
        let dtype = if is_rounded { dtype } else { wide };
        // The sum is rounded once: not to the base's dtype before that of the result.
        let start = match dtype == start.dtype() {
            true => start,
            false => start.to_dtype(wide)?,
        };
        let read = |key: &str| -> Result<Tensor> { Ok(self.adapter.tensor(key)?.to_dtype(wide)?) };
        let merge = || -> Result<Tensor> {
            let mut weight = match &change.low_rank {
                Some(low_rank) => {
                    let unmerged = match &low_rank.magnitude {
                        Some(_) => self.unmerged(name, start.dims())?,
                        None => None,
                    };
                    low_rank.apply(&start, unmerged.as_ref(), read, PIECE)?
                }
                None => start.clone(),
            };
            if change.add.is_some() || change.rows.is_some() {
                weight = weight.to_dtype(wide)?;
            }
            if let Some((key, factor)) = &change.add {
                weight = (weight + (read(key)? * *factor)?)?;
            }
            if let Some((key, rows)) = &change.rows {
                weight = update::replace_rows(&weight, rows, &read(key)?)?;
            }
            Ok(weight.to_dtype(dtype)?)
        };
        let merged = merge().map_err(|error| match error {
            Error::Candle(error) => failed(error),
            error => error,
        })?;
        // A weight may be larger than all else: the check needs only the merged one.
        drop(start);
        let mut finite = true;
        for part in parts(&merged)? {
            finite &= ops::is_finite(&part?)?;
        }
        if !finite {
            let problem = format!("merging `{name}` gives values that are not finite in {dtype:?}");
            return Err(Error::file(self.adapter.path(), problem));
        }
        Ok(merged)
    }

    /// A tensor before its update.
    fn start(&self, name: &str) -> Result<Tensor> {
        match self.changes.get(name).map(|change| &change.start) {
            None | Some(Start::Own) => self.base.tensor(name),
            Some(Start::File(key)) => self.adapter.tensor(key),
            Some(Start::Base(other)) => self.base.tensor(other),
            Some(Start::Before(other)) => self.start(other),
            Some(Start::Merged(other)) => self.apply(other),
        }
    }

    /// The original's weight where an adapter before changed it: the one that this adapter was trained
    /// on. `None` where the weight is that one, or another of its own.
    fn unmerged(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        match self.changes.get(name).map(|change| &change.start) {
            Some(Start::Base(other) | Start::Before(other)) => self.unmerged(other, shape),
            None | Some(Start::Own)
                if self.earlier.contains_key(name) && self.original.shape(name) == Some(shape) =>
            {
                self.original.tensor(name).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The dtype and shape of a tensor of the result.
    pub fn outcome(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        let (own, shape) = outcome(name, &self.changes, &self.base, &self.adapter)?;
        let dtype = self.dtype.filter(|_| is_plain_float(own)).unwrap_or(own);
        Some((dtype, shape))
    }

    /// Whether a tensor of the result is not the base's own.
    pub fn touches(&self, name: &str) -> bool {
        let after = self.outcome(name).map(|(dtype, _)| dtype);
        self.changes.contains_key(name) || after != self.base.info(name).map(|info| info.dtype)
    }

    /// The tensors that the base does not have.
    pub fn new_tensors(&self) -> impl Iterator<Item = &str> {
        let names = self.changes.keys().map(String::as_str);
        names.filter(|name| !self.base.contains(name))
    }

    /// All tensors that differ from the original's, by this adapter or one before.
    pub fn changed(&self) -> impl Iterator<Item = &str> {
        let own = self.changes.keys();
        let own = own.filter(|name| !self.earlier.contains_key(*name));
        self.earlier.keys().chain(own).map(String::as_str)
    }

    /// Whether a tensor is a head's that is the embedding's weight.
    pub fn is_shared(&self, name: &str) -> bool {
        match self.changes.get(name) {
            Some(change) => matches!(change.start, Start::Merged(_)),
            None => self
                .earlier
                .get(name)
                .is_some_and(|earlier| earlier.is_shared),
        }
    }

    /// The tensors of a shard of the result, and where they lie; new ones are behind the last.
    pub fn layout(&self, shard: usize) -> IndexMap<String, TensorInfo> {
        let is_last = shard + 1 == self.base.shards.len();
        let names = self.base.shards[shard].tensors().keys().map(String::as_str);
        let names = names.chain(self.new_tensors().filter(|_| is_last));
        let mut end = 0;
        let infos = names.filter_map(|name| {
            let (dtype, shape) = self.outcome(name)?;
            let start = end;
            end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
            let info = TensorInfo {
                dtype,
                shape,
                data_offsets: (start, end),
            };
            Some((name.to_string(), info))
        });
        infos.collect()
    }
}

/// What an adapter before did to a tensor.
#[derive(Clone)]
pub(super) struct Earlier {
    pub by: PathBuf,
    /// The tensor is a head that is the embedding's weight.
    is_shared: bool,
}

/// What an adapter is merged into.
struct Onto {
    base: Arc<Checkpoint>,
    original: Arc<Checkpoint>,
    earlier: IndexMap<String, Earlier>,
    settings: IndexMap<String, Value>,
}

fn is_plain_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

fn dtype_of_result(dtype: DType) -> Result<Dtype> {
    tensors::dtype(dtype).map_err(|_| {
        let problem = "a result is in F64, F32, F16 or BF16";
        Error::Config(vec![format!(
            "`dtype` of the options is {dtype:?}: {problem}"
        )])
    })
}

/// A tensor's values in order, about [`PIECE`] at a time.
pub(super) fn parts(tensor: &Tensor) -> Result<impl Iterator<Item = Result<Tensor>>> {
    let flat = tensor.flatten_all()?;
    let count = flat.elem_count();
    let starts = (0..count).step_by(PIECE);
    Ok(starts.map(move |from| Ok(flat.narrow(0, from, PIECE.min(count - from))?)))
}
