//! Adapters of bare parameters, such as the weights of all experts in one tensor.

use super::change::FileUpdate;
use super::modules::Module;
use super::planner::Planner;
use crate::adapter::Form;
use crate::adapter::Part;
use crate::config::matching::is_or_ends_with;
use crate::path::join;
use crate::peft::experts::Layout;
use crate::{Result, Settings};

/// A parameter that an adapter is for.
struct Parameter {
    path: String,
    weight: String,
    shape: Vec<usize>,
    settings: Settings,
}

/// The matrices of one wrapper.
struct Wrapper {
    a: String,
    b: String,
    a_shape: Vec<usize>,
    b_shape: Vec<usize>,
}

impl Parameter {
    fn experts(&self) -> usize {
        if self.shape.len() == 3 {
            self.shape[0]
        } else {
            1
        }
    }

    /// Whether the matrices fit as they are, and transposed.
    fn fits(&self, wrapper: &Wrapper) -> (bool, bool) {
        let experts = self.experts();
        let rows = self.settings.rank.checked_mul(experts);
        let (&[.., x, y], &[r, input], &[out, r2]) = (
            self.shape.as_slice(),
            wrapper.a_shape.as_slice(),
            wrapper.b_shape.as_slice(),
        ) else {
            return (false, false);
        };
        let ranks = r == r2 && Some(r) == rows && !self.shape.contains(&0);
        let transposed = self.shape.len() == 3 && (input, out) == (x, y);
        (ranks && (out, input) == (x, y), ranks && transposed)
    }
}

impl Planner<'_> {
    /// Whether an adapter at this path is for bare parameters of the module: the configuration
    /// names one of them, and the base has it.
    pub fn is_of_parameters(&self, name: &str) -> bool {
        let named = self.lora.target_parameters.iter();
        let place = self.locate(name);
        let mut inside = named.filter_map(|target| target.rsplit_once('.').or(Some(("", target))));
        inside.any(|(module, parameter)| {
            let is_module = module.is_empty() || is_or_ends_with(name, module);
            is_module && self.base.contains(&join(&place, parameter))
        })
    }

    /// Plans the updates of a module's bare parameters. `parts` holds PEFT's wrappers, each with
    /// its depth.
    ///
    /// PEFT nests the wrappers in the order of the parameters in the model's code, the first
    /// innermost. A checkpoint does not know that order: the shapes tell, or the caller.
    pub fn parameters(&mut self, module: &str, parts: Vec<(usize, &Module)>) -> Result<()> {
        let mut wrappers = Vec::new();
        let mut parts = parts;
        // Innermost first.
        parts.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
        for (_, part) in parts {
            for other in [Part::Magnitude, Part::Bias] {
                if let Some(key) = part.get(other) {
                    let problem = format!("`{key}`: a bare parameter has no magnitude and no bias");
                    self.problems.push(problem);
                }
            }
            let Some((a, b)) = self.pair(module, part) else {
                return Ok(());
            };
            let (a_shape, b_shape) = (self.shape_of(&a).to_vec(), self.shape_of(&b).to_vec());
            wrappers.push(Wrapper {
                a,
                b,
                a_shape,
                b_shape,
            });
        }
        let mut parameters = self.found(module)?;
        if parameters.len() != wrappers.len() {
            let names: Vec<_> = parameters.iter().map(|p| p.weight.as_str()).collect();
            self.problems.push(format!(
                "`{module}` has adapters of {} parameters, but the base has {}: {}",
                wrappers.len(),
                names.len(),
                names.join(", ")
            ));
            return Ok(());
        }
        let order = &self.options.parameter_order;
        let place = |p: &Parameter| order.iter().position(|name| is_or_ends_with(&p.path, name));
        if parameters.iter().all(|p| place(p).is_some()) {
            parameters.sort_by_key(place);
        } else {
            let fits = |w: usize, p: usize| {
                let (plain, transposed) = parameters[p].fits(&wrappers[w]);
                plain || transposed
            };
            let orders = orders(wrappers.len(), &fits);
            let [order] = orders.as_slice() else {
                let list: Vec<_> = parameters
                    .iter()
                    .map(|p| format!("`{}` {:?}", p.weight, p.shape))
                    .collect();
                self.problems.push(format!(
                    "the adapters of `{module}` fit the parameters {} {}: name them in the order of \
                     the model's code with MergeOptions::parameter_order",
                    list.join(", "),
                    if orders.is_empty() { "in no order" } else { "in several orders" }
                ));
                return Ok(());
            };
            let mut taken: Vec<Option<Parameter>> = parameters.into_iter().map(Some).collect();
            parameters = order.iter().filter_map(|&p| taken[p].take()).collect();
        }
        for (parameter, wrapper) in parameters.iter().zip(wrappers) {
            self.parameter(parameter, wrapper);
        }
        Ok(())
    }

    fn parameter(&mut self, parameter: &Parameter, wrapper: Wrapper) {
        let Parameter {
            path,
            weight,
            shape,
            settings,
        } = parameter;
        // An older PEFT read all weights of experts as (experts, in, out).
        let old = self.dir.old_experts.unwrap_or(false);
        let old = old || self.config.experts_layout() == Layout::InOut;
        let given = self.options.transposed_parameters.or(old.then_some(true));
        let transposed = match parameter.fits(&wrapper) {
            (true, true) if given.is_none() => {
                self.problems.push(format!(
                    "`{weight}` {shape:?} is square, so that the shapes do not tell whether it is \
                     (experts, out, in) or (experts, in, out): say so with \
                     MergeOptions::transposed_parameters"
                ));
                return;
            }
            (true, true) => given == Some(true),
            (true, false) => false,
            (false, true) => true,
            (false, false) => {
                self.problems.push(format!(
                    "`{path}` has A {:?} and B {:?}, which do not fit the base's `{weight}` \
                     {shape:?} with rank {}",
                    wrapper.a_shape, wrapper.b_shape, settings.rank
                ));
                return;
            }
        };
        let form = match parameter.shape.len() {
            3 => Form::Experts {
                count: parameter.experts(),
                transposed,
            },
            _ => Form::Linear,
        };
        let low_rank = FileUpdate {
            a: wrapper.a,
            b: wrapper.b,
            magnitude: None,
            scaling: settings.scaling,
            form,
        };
        self.add(path, weight, *settings, low_rank);
    }

    /// The parameters of a module that the configuration names.
    fn found(&mut self, module: &str) -> Result<Vec<Parameter>> {
        let place = self.locate(module);
        let mut found = Vec::new();
        for weight in self.base.names() {
            let name = match place.is_empty() {
                true => Some(weight),
                false => weight
                    .strip_prefix(&place)
                    .and_then(|r| r.strip_prefix('.')),
            };
            let Some(name) = name.filter(|name| !name.contains('.')) else {
                continue;
            };
            let path = join(module, name);
            let mut named = self.lora.target_parameters.iter();
            if named.any(|target| is_or_ends_with(&path, target)) {
                let shape = self.base.shape(weight).unwrap_or_default().to_vec();
                found.push((path, weight.to_string(), shape));
            }
        }
        let found = found.into_iter().map(|(path, weight, shape)| {
            let settings = self.settings(&path)?;
            Ok(Parameter {
                path,
                weight,
                shape,
                settings,
            })
        });
        found.collect()
    }
}

/// The ways to give each of `count` wrappers a parameter of its own that fits. Up to two: more than
/// one already means that the shapes do not tell.
fn orders(count: usize, fits: &impl Fn(usize, usize) -> bool) -> Vec<Vec<usize>> {
    fn extend(
        count: usize,
        fits: &impl Fn(usize, usize) -> bool,
        order: &mut Vec<usize>,
        all: &mut Vec<Vec<usize>>,
    ) {
        if all.len() > 1 {
            return;
        }
        if order.len() == count {
            all.push(order.clone());
            return;
        }
        for parameter in 0..count {
            if !order.contains(&parameter) && fits(order.len(), parameter) {
                order.push(parameter);
                extend(count, fits, order, all);
                order.pop();
            }
        }
    }
    // No model has more in one module, and the time grows with the factorial.
    let mut all = Vec::new();
    if count <= 8 {
        extend(count, fits, &mut Vec::new(), &mut all);
    }
    all
}
