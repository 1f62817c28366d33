//! Which of a file's modules become which of llama.cpp's tensors.

use super::GgufOptions;
use super::sources::{Module, Pair, Source};
use crate::adapter::Part;
use crate::config::matching::is_or_ends_with;
use crate::config::selection::{Overrides, Selection};
use crate::error::shorten;
use crate::gguf::archs::Arch;
use crate::gguf::{MOST_EXPERTS, names, rows};
use crate::path::join;
use crate::peft::experts::question;
use crate::peft::keys;
use crate::peft::tensors::Tensors;
use crate::{LoraConfig, Result};
use indexmap::IndexMap;

/// The tensors of a GGUF file by llama.cpp's name, and all that is wrong. `old` says whether A and B of
/// joined experts are in the layout of PEFT up to 0.18, if anything tells.
pub(super) fn pairs(
    weights: &Tensors,
    config: &LoraConfig,
    arch: &'static Arch,
    options: &GgufOptions,
    old: Option<bool>,
) -> Result<(IndexMap<String, Pair>, Vec<String>)> {
    let (modules, problems) = modules(weights);
    let mut planner = Planner {
        arch,
        options,
        config,
        old,
        pairs: IndexMap::new(),
        problems,
    };
    let mut selection = Selection::new(config)?;
    for module in modules {
        planner.add(module, &mut selection)?;
    }
    Ok((planner.pairs, planner.problems))
}

/// The modules of the file, and all that is wrong with its tensors.
fn modules(file: &Tensors) -> (Vec<Module>, Vec<String>) {
    let mut problems = Vec::new();
    let mut parts: IndexMap<(&str, bool), [Option<&String>; 2]> = IndexMap::new();
    for (bare, key) in file.keys() {
        let part = keys::parse(bare).and_then(|parsed| match parsed.part {
            Part::A => Some(((parsed.path, parsed.of_lookup), 0)),
            Part::B => Some(((parsed.path, parsed.of_lookup), 1)),
            _ => None,
        });
        match part {
            Some((layer, part)) => parts.entry(layer).or_default()[part] = Some(key),
            None if is_base_of_embedding(bare) => {}
            None => problems.push(format!(
                "`{}` is neither A nor B of a layer: a GGUF adapter holds no other tensors. Instead, {MERGE}",
                shorten(bare)
            )),
        }
    }
    let mut modules = Vec::new();
    for ((path, of_lookup), keys) in parts {
        let short = shorten(path);
        let [Some(a), Some(b)] = keys else {
            problems.push(format!("`{short}` lacks A or B: save the adapter again"));
            continue;
        };
        let (of_a, of_b) = (&file.tensors()[a], &file.tensors()[b]);
        match (&of_a.shape[..], &of_b.shape[..]) {
            (&[rank, inputs], &[outputs, same])
                if rank == same && [rank, inputs, outputs].iter().all(|n| *n > 0) =>
            {
                modules.push(Module {
                    path: path.into(),
                    of_lookup,
                    rank,
                    inputs,
                    outputs,
                    keys: [a.clone(), b.clone()],
                    scaling: 1.0,
                });
            }
            (a, b) => problems.push(format!(
                "`{short}` has A of shape {a:?} and B of {b:?}, which do not fit"
            )),
        }
    }
    if modules.is_empty() && problems.is_empty() {
        problems.push("holds no layer: there is nothing to convert".into());
    }
    (modules, problems)
}

/// Finds llama.cpp's places for the modules of a file.
struct Planner<'a> {
    arch: &'static Arch,
    options: &'a GgufOptions,
    config: &'a LoraConfig,
    old: Option<bool>,
    /// By llama.cpp's name.
    pairs: IndexMap<String, Pair>,
    problems: Vec<String>,
}

impl Planner<'_> {
    fn add(&mut self, mut module: Module, selection: &mut Selection<'_>) -> Result<()> {
        let (inner, depth) = keys::wrappers_behind(&module.path);
        let parameter = self.parameter(inner, depth);
        let count = match parameter {
            Some(_) => self.experts(inner),
            None => Some(1),
        };
        let Some(count) = count else {
            return Ok(());
        };
        let path = parameter.map_or(module.path.clone(), |name| join(inner, name));
        let settings = selection.settings(&path, Overrides::default())?;
        if settings.rank.checked_mul(count) != Some(module.rank) {
            let (rank, of_config) = (module.rank, settings.rank);
            self.problems.push(format!(
                "`{}` has rank {rank}, but {of_config} in the configuration{}",
                shorten(&path),
                match count {
                    1 => ": see `r` and `rank_pattern` in adapter_config.json".into(),
                    _ => format!(", for each of {count} experts: see `experts` of the options"),
                }
            ));
            return Ok(());
        }
        (module.rank, module.scaling, module.path) = (settings.rank, settings.scaling, path);
        match parameter {
            Some(parameter) => self.fused(module, parameter, count),
            None => self.module(module),
        }
        Ok(())
    }

    /// The weight of all experts that an adapter at this path is for. PEFT has one wrapper for each
    /// adapted weight, the innermost for the first in the model's code.
    fn parameter(&self, path: &str, depth: usize) -> Option<&'static str> {
        let targets = &self.config.target_parameters;
        let is_adapted = |name: &&str| {
            let path = join(path, name);
            targets.iter().any(|target| is_or_ends_with(&path, target))
        };
        let is_experts = is_or_ends_with(path, "experts");
        let adapted = FUSED
            .into_iter()
            .filter(|name| is_experts && is_adapted(name));
        adapted.rev().nth(depth)
    }

    /// The update of a weight of all experts.
    fn fused(&mut self, module: Module, parameter: &str, count: usize) {
        let (experts, _) = module.path.rsplit_once('.').unwrap_or_default();
        let is_square = module.inputs == module.outputs;
        match self.old {
            Some(true) => self.problems.push(format!(
                "`{}` is of PEFT up to 0.18, whose A and B are the other way round: load the adapter \
                 into its model and save it again",
                shorten(&module.path)
            )),
            // Of any other shape llama.cpp refuses what is turned.
            None if is_square => self.problems.push(question(experts)),
            _ => {}
        }
        let parts: &[&str] = match parameter {
            "gate_up_proj" => &["gate_proj", "up_proj"],
            _ => &["down_proj"],
        };
        let outputs = module.outputs / parts.len();
        if outputs * parts.len() != module.outputs {
            let (path, rows) = (shorten(&module.path), module.outputs);
            let problem = format!("`{path}` has {rows} outputs, which are not two halves");
            self.problems.push(problem);
            return;
        }
        for (number, part) in parts.iter().enumerate() {
            let places = names::to_gguf(self.arch, &format!("{experts}.0.{part}"));
            let Some(place) = places.into_iter().next() else {
                self.unknown(&shorten(&module.path));
                return;
            };
            let source = Source::Fused {
                module: module.clone(),
                count,
                from: number * outputs,
            };
            self.pair(place.name, source, module.inputs, outputs);
        }
    }

    fn module(&mut self, module: Module) {
        let short = shorten(&module.path);
        let places = names::to_gguf(self.arch, &module.path);
        let is_tokens = places.iter().any(|place| place.name == names::TOKENS);
        if places.is_empty() || is_tokens != module.of_lookup {
            self.unknown(&short);
        }
        for place in places {
            if let Some(reason) = self.refuses(&place.name) {
                let problem = format!("`{short}` has no place: {reason}");
                self.problems.push(problem);
            } else if let Some(expert) = place.expert {
                self.expert(place.name, expert, module.clone());
            } else {
                let (inputs, outputs) = (module.inputs, module.outputs);
                self.pair(place.name, Source::Module(module.clone()), inputs, outputs);
            }
        }
    }

    fn unknown(&mut self, path: &str) {
        self.problems.push(format!(
            "`{path}` has no known name in llama.cpp's {}: merge the adapter into the model's safetensors \
             (peft::merge_checkpoint), which llama.cpp's convert_hf_to_gguf.py converts",
            self.arch.name
        ));
    }

    /// The number of experts that the options name, or a problem.
    fn experts(&mut self, path: &str) -> Option<usize> {
        let path = shorten(path);
        let problem = match self.options.experts {
            Some(count) if (1..=MOST_EXPERTS).contains(&count) => return Some(count),
            Some(count) => format!(
                "`{path}` is of experts, of which `experts` of the options counts {count}: 1 to \
                 {MOST_EXPERTS} are possible, see num_experts or num_local_experts in the model's config.json"
            ),
            None => format!(
                "`{path}` is of experts, which llama.cpp has in one weight: set `experts` of the options, \
                 see num_experts or num_local_experts in the model's config.json"
            ),
        };
        self.problems.push(problem);
        None
    }

    /// Why llama.cpp would refuse an adapter of a weight that it has, or pass over the adapter.
    fn refuses(&self, name: &str) -> Option<String> {
        let kind = names::kind(name);
        let is_tied = self.options.tied.unwrap_or(self.arch.is_tied);
        let has_head = !self.arch.head.is_empty();
        if is_tied && has_head && [names::HEAD, names::TOKENS].contains(&kind) {
            return Some(format!(
                "the embedding is the model's head (`tie_word_embeddings`), and llama.cpp applies an adapter \
                 to neither of the two. If the model's GGUF file has an `output.weight`, set `tied` of the \
                 options to false; if not, {MERGE}"
            ));
        }
        let arch = self.arch.name;
        let is_passed_over = self.arch.unadapted.contains(&kind);
        is_passed_over
            .then(|| format!("for {arch}, llama.cpp has no adapter of this layer: {MERGE}"))
    }

    /// The update of one expert.
    fn expert(&mut self, name: String, expert: usize, module: Module) {
        let short = shorten(&module.path);
        let Some(count) = self.experts(&module.path) else {
            return;
        };
        let (inputs, outputs) = (module.inputs, module.outputs);
        let pair = self.pairs.entry(name).or_insert_with_key(|name| Pair {
            name: name.clone(),
            source: Source::Experts(vec![None; count]),
            inputs,
            outputs,
            order: None,
        });
        let fits = (pair.inputs, pair.outputs) == (inputs, outputs);
        match &mut pair.source {
            Source::Experts(modules) if fits && expert < count && modules[expert].is_none() => {
                modules[expert] = Some(module);
            }
            _ => self.problems.push(format!(
                "`{short}` does not fit beside the other experts: all must have the same shape, each one \
                 adapter, and a number below {count}, the `experts` of the options"
            )),
        }
    }

    fn pair(&mut self, name: String, source: Source, inputs: usize, outputs: usize) {
        let order = match rows::order(self.arch, &name, outputs, self.options.of_rows()) {
            Ok(order) => order,
            Err(problem) => {
                self.problems.push(problem);
                return;
            }
        };
        let outputs = order.as_ref().map_or(outputs, Vec::len);
        let pair = Pair {
            name: name.clone(),
            source,
            inputs,
            outputs,
            order,
        };
        let short = shorten(pair.path());
        if self.pairs.insert(name, pair).is_some() {
            self.problems.push(format!(
                "`{short}` and another layer of the file have one name in llama.cpp: {MERGE}"
            ));
        }
    }
}

/// The weights of all experts, in the order of transformers' code.
const FUSED: [&str; 2] = ["gate_up_proj", "down_proj"];

/// What to do with an adapter that llama.cpp cannot apply.
pub(super) const MERGE: &str = "merge the adapter into the model's GGUF file (peft::merge_gguf) or its safetensors \
     (peft::merge_checkpoint)";

/// PEFT writes the base weight of an adapted embedding or head beside the adapter.
fn is_base_of_embedding(key: &str) -> bool {
    let module = keys::path_of_base_weight(key);
    module.is_some_and(|module| {
        ["embed_tokens", "lm_head"]
            .iter()
            .any(|name| is_or_ends_with(module, name))
    })
}
