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
        for module in &joined {
            if let Err(problem) = self.split(module)? {
                problems.push(problem);
            }
        }
        self.drop_targets(&joined);
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

    /// The weight's shape for one of the adapter's paths.
    fn shape(&self, path: &str) -> Option<&[usize]> {
        self.weights.get(&(self.of)(path)).map(Vec::as_slice)
    }

    /// Gives each expert of a module its part of an adapter for joined weights.
    fn split(&mut self, module: &str) -> Result<Result<(), String>> {
        let named = |name: &str| {
            let path = (self.back)(&join(module, name));
            let mut targets = self.config.target_parameters.iter();
            targets.any(|target| is_or_ends_with(&path, target))
        };
        let adapted: Vec<_> = JOINED.iter().filter(|(name, _)| named(name)).collect();
        let is_joined = adapted
            .iter()
            .any(|(name, _)| self.shape(&join(module, name)).is_some());
        let family = (0..2).find(|family| {
            let mut parts = JOINED.iter().map(|(_, parts)| parts[*family][0]);
            parts.any(|part| self.shape(&of_expert(module, 0, part)).is_some())
        });
        let (Some(family), false) = (family, is_joined) else {
            return Ok(Ok(()));
        };
        // The first of a module's adapted weights is innermost.
        let mut place = module.to_string();
        let mut places = Vec::new();
        for joined in adapted.iter().rev() {
            places.push((*joined, place.clone()));
            place = keys::wrapped(&place);
        }
        for ((name, parts), place) in places {
            if let Err(problem) = self.split_weight(module, name, parts[family], &place)? {
                return Ok(Err(problem));
            }
        }
        Ok(Ok(()))
    }

    /// Takes the entries of `target_parameters` out that name weights of these modules, unless a module
    /// still has such a weight. An entry may name the weights of many modules.
    fn drop_targets(&mut self, modules: &[String]) {
        let back = self.back;
        let (left, gone): (Vec<String>, Vec<String>) =
            modules.iter().cloned().partition(|module| {
                let a = keys::part(module, Part::A, false);
                self.tensors.info(&a).is_some()
            });
        let names = |modules: &[String], target: &str| {
            let paths = modules.iter().map(|module| back(module));
            let mut weights = paths.flat_map(|path| JOINED.map(|(name, _)| join(&path, name)));
            weights.any(|weight| is_or_ends_with(&weight, target))
        };
        let targets = &mut self.config.target_parameters;
        targets.retain(|target| !names(&gone, target) || names(&left, target));
    }

    /// Gives each expert its part of the adapter at `place`, which is for the joined weight `name`.
    fn split_weight(
        &mut self,
        module: &str,
        name: &str,
        parts: &[&str],
        place: &str,
    ) -> Result<Result<(), String>> {
        let [of_a, of_b] = [Part::A, Part::B].map(|part| keys::part(place, part, false));
        let (Some(a), Some(b)) = (self.tensors.get(&of_a)?, self.tensors.get(&of_b)?) else {
            return Ok(Err(format!("`{place}` lacks A or B of `{name}`")));
        };
        let settings = self.settings(&(self.back)(&join(module, name)))?;
        let count = a.dim(0)? / settings.rank.max(1);
        let (mut outs, mut inputs) = (Vec::new(), Vec::new());
        for part in parts {
            if let Some(&[out, input]) = self.shape(&of_expert(module, 0, part)) {
                outs.push(out);
                inputs.push(input);
            }
        }
        let is_there = |expert| self.shape(&of_expert(module, expert, parts[0])).is_some();
        let are_all = count > 0 && is_there(count - 1) && !is_there(count);
        let rows = count * settings.rank;
        let wrong = || {
            Ok(Err(format!(
                "A {:?} and B {:?} of `{module}.{name}`, of rank {}, do not fit the {} of its experts",
                a.dims(),
                b.dims(),
                settings.rank,
                parts.join(" and ")
            )))
        };
        let (&[a_rows, of_input], &[of_out, b_columns]) = (a.dims(), b.dims()) else {
            return wrong();
        };
        if outs.len() != parts.len() || !are_all || a_rows != rows || b_columns != rows {
            return wrong();
        }
        let (input, out): (usize, usize) = (inputs[0], outs.iter().sum());
        let (dims, turned) = ((of_input, of_out), (out, input));
        let is_old = match (dims == (input, out), dims == turned) {
            (true, true) => self.old,
            (true, false) => Some(false),
            (false, true) => Some(true),
            (false, false) => return wrong(),
        };
        let (a, b) = match is_old {
            None => return Ok(Err(super::experts::question(module))),
            Some(true) => (a_of_b(&b, count)?, b_of_a(&a, count)?),
            Some(false) => (a, b),
        };
        self.tensors.remove(&of_a);
        self.tensors.remove(&of_b);
        let mut paths = Vec::new();
        for expert in 0..count {
            let (a, b) = update::of_expert(&a, &b, expert, count)?;
            let mut start = 0;
            for (part, out) in parts.iter().zip(&outs) {
                let path = of_expert(module, expert, part);
                let b = b.narrow(0, start, *out)?.contiguous()?;
                self.put(&path, a.contiguous()?, b)?;
                paths.push((self.back)(&path));
                start += out;
            }
        }
        let own = (self.back)(module);
        let (own, parts) = (fancy_regex::escape(&own), parts.join("|"));
        let pattern = format!(r"^{own}\.\d+\.(?:{parts})$");
        self.set(pattern, settings.rank, settings.alpha);
        self.target(paths);
        Ok(Ok(()))
    }

    fn put(&mut self, path: &str, a: Tensor, b: Tensor) -> Result<()> {
        self.tensors.insert(&keys::part(path, Part::A, false), a)?;
        self.tensors.insert(&keys::part(path, Part::B, false), b)
    }

    /// Makes one adapter for each joined weight of a module out of those of its experts.
    fn join(&mut self, module: &str) -> Result<Result<(), String>> {
        let mut made = Vec::new();
        for (name, families) in &JOINED {
            let path = join(module, name);
            let Some(&[count, out, input]) = self.shape(&path) else {
                continue;
            };
            let pieces = self.pieces(module, families, count)?;
            if pieces.is_empty() {
                continue;
            }
            let joined = Joined {
                count,
                input,
                height: out / families[0].len(),
                parts: families[0].len(),
            };
            match joined.of(&pieces)? {
                Ok(matrices) => made.push((*name, matrices)),
                Err(problem) => return Ok(Err(format!("`{path}`: {problem}"))),
            }
        }
        // The first of the module's weights is innermost.
        let place = |name: &str| self.weights.get_index_of(&(self.of)(&join(module, name)));
        made.sort_by_key(|(name, _)| std::cmp::Reverse(place(name)));
        let mut at = module.to_string();
        for (name, (a, b, settings)) in made {
            let path = (self.back)(&join(module, name));
            let pattern = format!("^{}$", fancy_regex::escape(&path));
            self.set(pattern, settings.rank, settings.alpha);
            self.config.target_parameters.push(path);
            self.put(&at, a, b)?;
            at = keys::wrapped(&at);
        }
        Ok(Ok(()))
    }

    /// Takes the adapters of a joined weight's parts out of the file.
    fn pieces(
        &mut self,
        module: &str,
        families: &[&[&str]; 2],
        count: usize,
    ) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        for expert in 0..count {
            let parts = families.iter().flat_map(|family| family.iter().enumerate());
            for (part, name) in parts {
                let path = of_expert(module, expert, name);
                let [a, b] = [Part::A, Part::B].map(|of| keys::part(&path, of, false));
                let (Some(of_a), Some(of_b)) = (self.tensors.get(&a)?, self.tensors.get(&b)?)
                else {
                    continue;
                };
                pieces.push(Piece {
                    expert,
                    part,
                    settings: self.settings(&(self.back)(&path))?,
                    a: of_a,
                    b: of_b,
                });
                self.tensors.remove(&a);
                self.tensors.remove(&b);
            }
        }
        Ok(pieces)
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

/// The path of one expert's layer.
fn of_expert(module: &str, expert: usize, name: &str) -> String {
    join(&join(module, &expert.to_string()), name)
}

/// The adapter of one part of a joined weight, in one expert.
struct Piece {
    expert: usize,
    part: usize,
    a: Tensor,
    b: Tensor,
    settings: Settings,
}

/// A joined weight: `parts` weights of (height, input) one above the other, for each of `count`
/// experts.
struct Joined {
    count: usize,
    input: usize,
    height: usize,
    parts: usize,
}

impl Joined {
    /// A and B of the joined weight, and their settings. Each part has its own ranks, so that the
    /// joined rank is the sum. Experts and parts without an adapter get zeros.
    fn of(&self, pieces: &[Piece]) -> Result<Result<(Tensor, Tensor, Settings), String>> {
        let rank = pieces.iter().map(|piece| piece.settings.rank).max();
        let (rank, first) = (rank.unwrap_or(1), &pieces[0]);
        let all = rank * self.parts;
        // A scaling of zero leaves nothing to multiply the others by.
        let mut scalings = pieces.iter().map(|piece| piece.settings.scaling);
        let scaling = scalings.find(|scaling| *scaling != 0.0).unwrap_or(0.0);
        for piece in pieces {
            let own = piece.settings.rank;
            let fits = piece.a.dims() == [own, self.input] && piece.b.dims() == [self.height, own];
            if !fits {
                return Ok(Err(format!(
                    "A {:?} and B {:?} of expert {}, of rank {own}, do not fit",
                    piece.a.dims(),
                    piece.b.dims(),
                    piece.expert
                )));
            }
        }
        let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
        for expert in 0..self.count {
            let (mut rows, mut columns) = (Vec::new(), Vec::new());
            for part in 0..self.parts {
                let mut own = pieces.iter();
                let own = own.find(|piece| piece.expert == expert && piece.part == part);
                let (a, b) = match own {
                    Some(piece) => piece.padded(rank, scaling)?,
                    None => {
                        let zeros = |rows, columns| {
                            Tensor::zeros((rows, columns), first.a.dtype(), first.a.device())
                        };
                        (zeros(rank, self.input)?, zeros(self.height, rank)?)
                    }
                };
                rows.push(a);
                let above = part * self.height;
                let below = (self.parts - 1 - part) * self.height;
                columns.push(b.pad_with_zeros(0, above, below)?);
            }
            of_a.push(Tensor::cat(&rows, 0)?);
            of_b.push(Tensor::cat(&columns, 1)?.unsqueeze(2)?);
        }
        let a = Tensor::cat(&of_a, 0)?;
        // Expert e has each count-th column from e on.
        let b = Tensor::cat(&of_b, 2)?.contiguous()?;
        let b = b.reshape((self.height * self.parts, all * self.count))?;
        let divisor = match first.settings.use_rslora {
            true => (all as f64).sqrt(),
            false => all as f64,
        };
        let settings = Settings {
            rank: all,
            alpha: scaling * divisor,
            ..first.settings
        };
        Ok(Ok((a, b, settings)))
    }
}

impl Piece {
    /// A and B of a larger rank, for another scaling.
    fn padded(&self, rank: usize, scaling: f64) -> candle_core::Result<(Tensor, Tensor)> {
        let missing = rank - self.settings.rank;
        let factor = match scaling {
            0.0 => 0.0,
            scaling => self.settings.scaling / scaling,
        };
        let a = self.a.pad_with_zeros(0, 0, missing)?;
        Ok((a, (&self.b * factor)?.pad_with_zeros(1, 0, missing)?))
    }
}
