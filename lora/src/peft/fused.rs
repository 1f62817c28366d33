//! Adapters of experts whose weights are one tensor, for a model or checkpoint with a tensor for each
//! expert, and the other way round.
//!
//! transformers 5 joins the experts of a mixture into `gate_up_proj` and `down_proj`, while published
//! checkpoints, and models written for them, hold `gate_proj`, `up_proj` and `down_proj` (or `w1`,
//! `w3`, `w2`) of each expert.

use super::experts::{a_of_b, b_of_a};
use super::keys;
use super::tensors::Tensors;
use crate::adapter::update;
use crate::config::matching::is_or_ends_with;
use crate::config::selection::{Overrides, Selection};
use crate::path::join;
use crate::{LoraConfig, Part, Result, Settings, Targets};
use candle_core::Tensor;
use indexmap::IndexMap;

/// A joined weight, and the names of its parts in each expert, as two families of models have them.
const JOINED: [(&str, [&[&str]; 2]); 2] = [
    ("gate_up_proj", [&["gate_proj", "up_proj"], &["w1", "w3"]]),
    ("down_proj", [&["down_proj"], &["w2"]]),
];

/// The adapter, and the names of the weights that it is for.
pub(super) struct Fused<'a> {
    pub tensors: &'a mut Tensors,
    pub config: &'a mut LoraConfig,
    /// Shapes of the weights by path, in the order of the model or the checkpoint.
    pub weights: &'a IndexMap<String, Vec<usize>>,
    /// The weight's path for one of the adapter's.
    pub of: &'a dyn Fn(&str) -> String,
    /// The configuration's path for one of the adapter's.
    pub back: &'a dyn Fn(&str) -> String,
    /// Up to 0.18, PEFT wrote A and B the other way round. `None` where nothing tells.
    pub old: Option<bool>,
}

impl Fused<'_> {
    /// Splits and joins what the weights ask for. Adds what cannot be done to the problems.
    pub fn fit(&mut self, problems: &mut Vec<String>) -> Result<()> {
        let parsed = self
            .tensors
            .keys()
            .keys()
            .filter_map(|key| keys::parse(key));
        let paths = parsed.filter(|parsed| parsed.part == Part::A && !parsed.of_lookup);
        let (mut joined, mut single): (Vec<String>, Vec<String>) = Default::default();
        for parsed in paths {
            let (module, _) = keys::wrappers_behind(parsed.path);
            let list = match self.lone(module) {
                Some(experts) => (&mut single, experts),
                None => (&mut joined, module.to_string()),
            };
            if !list.0.contains(&list.1) {
                list.0.push(list.1);
            }
        }
        for module in joined {
            if let Err(problem) = self.split(&module)? {
                problems.push(problem);
            }
        }
        for module in single {
            if let Err(problem) = self.join(&module)? {
                problems.push(problem);
            }
        }
        Ok(())
    }

    /// The module of all experts, if this path is that of one expert's layer which only a joined
    /// weight can take.
    fn lone(&self, path: &str) -> Option<String> {
        let (expert, name) = path.rsplit_once('.')?;
        let (module, number) = expert.rsplit_once('.')?;
        number.parse::<usize>().ok()?;
        let fused = JOINED
            .iter()
            .find(|(_, parts)| parts.iter().any(|p| p.contains(&name)))?;
        let has = |path: &str| self.weights.contains_key(&(self.of)(path));
        (!has(path) && has(&join(module, fused.0))).then(|| module.into())
    }

    fn settings(&self, path: &str) -> Result<Settings> {
        let mut selection = Selection::new(self.config)?;
        selection.settings(path, Overrides::default())
    }

    /// Gives each expert of a module its part of an adapter for joined weights.
    fn split(&mut self, module: &str) -> Result<Result<(), String>> {
        let named = |name: &str| {
            let path = (self.back)(&join(module, name));
            let mut targets = self.config.target_parameters.iter();
            targets.any(|target| is_or_ends_with(&path, target))
        };
        let adapted: Vec<_> = JOINED.iter().filter(|(name, _)| named(name)).collect();
        let shape = |path: &str| self.weights.get(&(self.of)(path)).cloned();
        let is_joined = adapted
            .iter()
            .any(|(name, _)| shape(&join(module, name)).is_some());
        let of_expert = |expert: usize, name: &str| join(&join(module, &expert.to_string()), name);
        let family = (0..2).find(|family| {
            JOINED
                .iter()
                .any(|(_, parts)| shape(&of_expert(0, parts[*family][0])).is_some())
        });
        let (Some(family), false, false) = (family, is_joined, adapted.is_empty()) else {
            return Ok(Ok(()));
        };
        // The first of a module's adapted weights is innermost.
        let mut place = module.to_string();
        let mut places: Vec<String> = Vec::new();
        for _ in &adapted {
            places.push(place.clone());
            place = keys::wrapped(&place);
        }
        let mut split: Vec<(String, Tensor, Tensor)> = Vec::new();
        let mut ranks = Vec::new();
        for ((name, parts), place) in adapted.iter().zip(places.iter().rev()) {
            let [of_a, of_b] = [Part::A, Part::B].map(|part| keys::part(place, part, false));
            let (Some(a), Some(b)) = (self.tensors.get(&of_a)?, self.tensors.get(&of_b)?) else {
                return Ok(Err(format!("`{place}` lacks A or B of `{name}`")));
            };
            let parts = parts[family];
            let shapes: Vec<_> = parts
                .iter()
                .filter_map(|part| shape(&of_expert(0, part)))
                .collect();
            let (Some(&[_, input]), true) = (
                shapes.first().map(Vec::as_slice),
                shapes.len() == parts.len(),
            ) else {
                return Ok(Err(format!(
                    "`{module}` has no {} of its experts",
                    parts.join(", ")
                )));
            };
            let outs: Vec<usize> = shapes.iter().map(|shape| shape[0]).collect();
            let out: usize = outs.iter().sum();
            let settings = self.settings(&(self.back)(&join(module, name)))?;
            let rows = a.dim(0)?;
            let count = rows / settings.rank.max(1);
            let next = shape(&of_expert(count, parts[0])).is_some();
            let last = count > 0 && shape(&of_expert(count - 1, parts[0])).is_some();
            if rows != count * settings.rank || b.dims().get(1) != Some(&rows) || next || !last {
                return Ok(Err(format!(
                    "A {:?} and B {:?} of `{module}.{name}` are not of rank {} for each of its \
                     experts",
                    a.dims(),
                    b.dims(),
                    settings.rank
                )));
            }
            let dims = (a.dim(1)?, b.dim(0)?);
            let swapped = match (dims == (input, out), dims == (out, input)) {
                (true, true) => match self.old {
                    Some(old) => old,
                    None => return Ok(Err(super::experts::question(module))),
                },
                (true, false) => false,
                (false, true) => true,
                (false, false) => {
                    return Ok(Err(format!(
                        "A {:?} and B {:?} of `{module}.{name}` do not fit experts of ({out}, \
                         {input})",
                        a.dims(),
                        b.dims()
                    )));
                }
            };
            let (a, b) = match swapped {
                true => (a_of_b(&b, count)?, b_of_a(&a, count)?),
                false => (a, b),
            };
            for expert in 0..count {
                let (a, b) = update::of_expert(&a, &b, expert, count)?;
                let mut start = 0;
                for (part, out) in parts.iter().zip(&outs) {
                    let b = b.narrow(0, start, *out)?.contiguous()?;
                    split.push((of_expert(expert, part), a.contiguous()?, b));
                    start += out;
                }
            }
            let names = parts.join("|");
            ranks.push((names, settings));
            self.tensors.remove(&of_a);
            self.tensors.remove(&of_b);
        }
        let own = (self.back)(module);
        for (names, settings) in ranks {
            let pattern = format!(r"^{}\.\d+\.(?:{names})$", fancy_regex::escape(&own));
            self.set(pattern, settings.rank, settings.alpha);
        }
        let parameters = &mut self.config.target_parameters;
        parameters.retain(|target| {
            let mut names = JOINED.iter().map(|(name, _)| join(&own, name));
            // One entry may name the weights of many modules. Only one of this module alone goes.
            !names.any(|name| name == *target)
        });
        let mut paths = Vec::new();
        for (path, a, b) in split {
            paths.push((self.back)(&path));
            self.tensors.insert(&keys::part(&path, Part::A, false), a)?;
            self.tensors.insert(&keys::part(&path, Part::B, false), b)?;
        }
        self.target(paths);
        Ok(Ok(()))
    }

    /// Makes one adapter for each joined weight of a module out of those of its experts.
    fn join(&mut self, module: &str) -> Result<Result<(), String>> {
        let of_expert = |expert: usize, name: &str| join(&join(module, &expert.to_string()), name);
        let mut made: Vec<(String, Tensor, Tensor, usize, f64)> = Vec::new();
        let weights = self.weights.keys();
        let place = |name: &str| {
            let path = (self.of)(&join(module, name));
            weights.clone().position(|weight| *weight == path)
        };
        for (name, families) in &JOINED {
            let Some(&[count, out, input]) = self
                .weights
                .get(&(self.of)(&join(module, name)))
                .map(Vec::as_slice)
            else {
                continue;
            };
            let mut parts = Vec::new();
            let mut taken = Vec::new();
            for expert in 0..count {
                for family in families {
                    for (place, part) in family.iter().enumerate() {
                        let path = of_expert(expert, part);
                        let [a, b] = [Part::A, Part::B].map(|of| keys::part(&path, of, false));
                        if let (Some(of_a), Some(of_b)) =
                            (self.tensors.get(&a)?, self.tensors.get(&b)?)
                        {
                            let settings = self.settings(&(self.back)(&path))?;
                            parts.push((expert, place, family.len(), of_a, of_b, settings));
                            taken.extend([a, b]);
                        }
                    }
                }
            }
            let Some((.., first)) = parts.first() else {
                continue;
            };
            let (scaling, rslora) = (first.scaling, first.use_rslora);
            let pieces = families[0].len();
            let height = out / pieces;
            let rank = parts.iter().map(|part| part.5.rank).max().unwrap_or(1);
            let all = rank * pieces;
            let zeros = |shape: (usize, usize)| {
                Tensor::zeros(shape, parts[0].3.dtype(), parts[0].3.device())
            };
            let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
            for expert in 0..count {
                let (mut rows, mut columns) = (Vec::new(), Vec::new());
                for piece in 0..pieces {
                    let part = parts
                        .iter()
                        .find(|part| part.0 == expert && part.1 == piece);
                    let (a, b) = match part {
                        Some((.., a, b, settings)) => {
                            let fits = a.dims() == [settings.rank, input]
                                && b.dims() == [height, settings.rank];
                            if !fits {
                                return Ok(Err(format!(
                                    "A {:?} and B {:?} of expert {expert} in `{module}` do not fit \
                                     `{name}` ({count}, {out}, {input})",
                                    a.dims(),
                                    b.dims()
                                )));
                            }
                            let missing = rank - settings.rank;
                            let factor = match scaling {
                                0.0 => 0.0,
                                scaling => settings.scaling / scaling,
                            };
                            let b = (b * factor)?;
                            (
                                a.pad_with_zeros(0, 0, missing)?,
                                b.pad_with_zeros(1, 0, missing)?,
                            )
                        }
                        None => (zeros((rank, input))?, zeros((height, rank))?),
                    };
                    rows.push(a);
                    let above = piece * height;
                    columns.push(b.pad_with_zeros(0, above, out - above - height)?);
                }
                of_a.push(Tensor::cat(&rows, 0)?);
                // Expert e has each count-th column from e on.
                of_b.push(Tensor::cat(&columns, 1)?.unsqueeze(2)?);
            }
            let a = Tensor::cat(&of_a, 0)?;
            let b = Tensor::cat(&of_b, 2)?
                .contiguous()?
                .reshape((out, all * count))?;
            for key in taken {
                self.tensors.remove(&key);
            }
            let alpha = match rslora {
                true => scaling * (all as f64).sqrt(),
                false => scaling * all as f64,
            };
            made.push((name.to_string(), a, b, all, alpha));
        }
        // The first of the module's weights is innermost.
        made.sort_by_key(|(name, ..)| std::cmp::Reverse(place(name)));
        let mut at = module.to_string();
        for (name, a, b, rank, alpha) in made {
            let path = (self.back)(&join(module, &name));
            self.set(format!("^{}$", fancy_regex::escape(&path)), rank, alpha);
            self.config.target_parameters.push(path);
            self.tensors.insert(&keys::part(&at, Part::A, false), a)?;
            self.tensors.insert(&keys::part(&at, Part::B, false), b)?;
            at = keys::wrapped(&at);
        }
        Ok(Ok(()))
    }

    /// Gives the layers of this pattern a rank and an alpha, before any other pattern does.
    fn set(&mut self, pattern: String, rank: usize, alpha: f64) {
        self.config
            .rank_pattern
            .shift_insert(0, pattern.clone(), rank);
        self.config.alpha_pattern.shift_insert(0, pattern, alpha);
    }

    /// Makes these layers targets.
    fn target(&mut self, paths: Vec<String>) {
        self.config.target_modules = Some(match self.config.target_modules.take() {
            None => Targets::Names(paths),
            Some(Targets::Names(mut names)) => {
                names.extend(paths);
                Targets::Names(names)
            }
            Some(Targets::Regex(regex)) => {
                let paths: Vec<_> = paths.iter().map(|path| fancy_regex::escape(path)).collect();
                Targets::Regex(format!("(?:{regex})|(?:{})", paths.join("|")))
            }
        });
    }
}
