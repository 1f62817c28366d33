//! AdamW with groups and a state that can be saved.

use super::{Group, checked, state};
use crate::adapter::wider;
use crate::file::TensorFile;
use crate::traits::trainable;
use crate::{Error, LoraModule, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// AdamW, <https://arxiv.org/abs/1711.05101>, as `torch.optim.AdamW` computes it.
///
/// Each [`Group`] has a learning rate and a weight decay of its own. A
/// [`Schedule`](super::Schedule) sets a factor on all rates. The state can be saved and loaded.
///
/// A step leaves out a parameter without a gradient, as in PyTorch; [`LoraModule::backward`] and
/// [`backward_step`](Optimizer::backward_step) make sure that there is none. A step with a gradient
/// that is not finite is an error, and changes nothing. Moments are kept in at least f32, and each
/// update is rounded to the parameter's dtype once.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::{Linear, Optimizer, ParamsAdamW};
/// use lora::optim::AdamW;
/// use lora::{LoraConfig, LoraModel, LoraModule};
///
/// let weight = Tensor::ones((2, 3), DType::F32, &Device::Cpu)?;
/// let model = Linear::new(weight, None).to_lora(&LoraConfig::new(2))?;
/// let mut optimizer = AdamW::for_model(&model, ParamsAdamW::default())?;
/// let input = Tensor::ones((1, 3), DType::F32, &Device::Cpu)?;
/// let before = model.forward(&input)?.sqr()?.sum_all()?;
/// optimizer.step(&model.backward(&before)?)?;
/// let after = model.forward(&input)?.sqr()?.sum_all()?;
/// assert!(after.to_scalar::<f32>()? < before.to_scalar::<f32>()?);
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Debug)]
pub struct AdamW {
    pub(super) slots: Vec<Tracked>,
    rates: Vec<Rate>,
    pub(super) lr_factor: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    order: Decay,
    allows_non_finite: bool,
}

/// A parameter and its state.
#[derive(Debug)]
pub(super) struct Tracked {
    pub path: String,
    /// It lies under a routed part, of which a batch may reach nothing.
    pub is_routed: bool,
    pub var: Var,
    pub state: Moments,
    group: usize,
}

/// The moments of a parameter's gradient, and the number of steps that they come from.
#[derive(Clone, Debug)]
pub(super) struct Moments {
    pub first: Tensor,
    pub second: Tensor,
    pub steps: u32,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    lr: f64,
    weight_decay: f64,
}

/// Where the two common forms of AdamW differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decay {
    /// PyTorch's: decay, then update; eps is added to the corrected root.
    DecayFirst,
    /// That of transformers: update, then decay; eps is added before the correction.
    DecayLast,
}

impl AdamW {
    /// For all trained parameters of the model, as one group.
    ///
    /// # Errors
    /// If a number is out of range.
    pub fn for_model<M: LoraModule>(model: &M, params: ParamsAdamW) -> Result<Self> {
        let group = Group::new(&model.trainable_vars(), params.lr);
        let group = group.weight_decay(params.weight_decay);
        let optimizer = Self::grouped(model, [group])?;
        optimizer.betas(params.beta1, params.beta2)?.eps(params.eps)
    }

    /// For the parameters in these groups. A parameter in no group is not trained. The betas are
    /// 0.9 and 0.999, eps is 10⁻⁸.
    ///
    /// Groups hold the model's present variables. Make new groups after
    /// [`to_dtype`](LoraModule::to_dtype) or [`to_device`](LoraModule::to_device).
    ///
    /// # Errors
    /// Lists variables that are not the model's, variables in two groups, and numbers out of range.
    pub fn grouped<M: LoraModule>(
        model: &M,
        groups: impl IntoIterator<Item = Group>,
    ) -> Result<Self> {
        let params = trainable(model).into_iter();
        let names = params.map(|p| (p.var.id(), Some((p.path, p.is_routed))));
        let mut names: HashMap<_, _> = names.collect();
        let mut problems = Vec::new();
        let named = |var: &Var, group: usize| match names.get_mut(&var.id()) {
            Some(name) => name
                .take()
                .ok_or_else(|| format!("a parameter of group {group} is in a group already")),
            None => Err(format!(
                "a variable of shape {:?} in group {group} is no trained parameter of the model; \
                 make the groups after the last change of the model",
                var.dims()
            )),
        };
        let optimizer = Self::with_names(groups, &mut problems, named)?;
        fail_on(problems)?;
        Ok(optimizer)
    }

    fn with_names(
        groups: impl IntoIterator<Item = Group>,
        problems: &mut Vec<String>,
        mut name: impl FnMut(&Var, usize) -> Result<(String, bool), String>,
    ) -> Result<Self> {
        let (mut slots, mut rates) = (Vec::new(), Vec::new());
        for (index, group) in groups.into_iter().enumerate() {
            let Group {
                vars,
                lr,
                weight_decay,
            } = group;
            for (what, number) in [("learning rate", lr), ("weight decay", weight_decay)] {
                if !(number >= 0.0 && number.is_finite()) {
                    problems.push(format!(
                        "the {what} of group {index} is {number}: it must be 0 or more"
                    ));
                }
            }
            rates.push(Rate { lr, weight_decay });
            for var in vars {
                match name(&var, index) {
                    Ok((path, is_routed)) => slots.push(Tracked::new(path, is_routed, var, index)?),
                    Err(problem) => problems.push(problem),
                }
            }
        }
        if slots.is_empty() && problems.is_empty() {
            problems.push("there is no parameter to train in any group".into());
        }
        Ok(Self {
            slots,
            rates,
            lr_factor: 1.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            order: Decay::DecayFirst,
            allows_non_finite: false,
        })
    }

    /// Sets how slowly the two moments change: 0.9 and 0.999 if it is not called.
    ///
    /// # Errors
    /// Unless both are in 0..1.
    pub fn betas(mut self, beta1: f64, beta2: f64) -> Result<Self> {
        let mut problems = Vec::new();
        for (name, beta) in [("beta1", beta1), ("beta2", beta2)] {
            if !(0.0..1.0).contains(&beta) {
                problems.push(format!(
                    "{name} is {beta}: it must be at least 0 and below 1"
                ));
            }
        }
        fail_on(problems)?;
        (self.beta1, self.beta2) = (beta1, beta2);
        Ok(self)
    }

    /// Sets what is added to the root of the second moment: 10⁻⁸ if it is not called.
    ///
    /// # Errors
    /// If it is negative or not finite.
    pub fn eps(mut self, eps: f64) -> Result<Self> {
        if !(eps >= 0.0 && eps.is_finite()) {
            fail_on(vec![format!("eps is {eps}: it must be 0 or more")])?;
        }
        self.eps = eps;
        Ok(self)
    }

    pub(super) fn order(mut self, order: Decay) -> Self {
        self.order = order;
        self
    }

    /// Sets the factor on the learning rates of all groups; 1 at first.
    pub fn set_lr_factor(&mut self, factor: f64) {
        self.lr_factor = factor;
    }

    /// Takes steps with a loss or a gradient that is NaN or infinite, too: for those who look for
    /// such values and leave the step out themselves. The check reads one number a step.
    pub fn allow_non_finite(&mut self, allow: bool) {
        self.allows_non_finite = allow;
    }

    /// The paths of the parameters, in the order of the groups.
    ///
    /// An optimiser that [`Optimizer::new`] made knows no paths and numbers its parameters: `0`,
    /// `1`, ..
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().map(|slot| slot.path.as_str())
    }

    /// The present learning rate of the parameter with this path.
    pub fn rate_of(&self, path: &str) -> Option<f64> {
        let slot = self.slots.iter().find(|slot| slot.path == path)?;
        Some(self.rates[slot.group].lr * self.lr_factor)
    }

    /// The number of steps so far. Where parameters differ, the largest.
    pub fn steps(&self) -> usize {
        let steps = self.slots.iter().map(|slot| slot.state.steps);
        steps.max().unwrap_or(0) as usize
    }

    /// Writes the moments and step counts as a safetensors file, under the parameters' paths. The
    /// file holds no learning rates and no other settings. [`save_state`](super::save_state) writes
    /// them together with the model.
    ///
    /// The file is replaced as a whole or not at all.
    ///
    /// # Errors
    /// If a value is not finite, or the file cannot be written.
    pub fn save_state(&self, path: impl AsRef<Path>) -> Result<()> {
        state::write(path.as_ref(), state::tensors(&self.slots, "")?, [])
    }

    /// Reads the state that [`save_state`](Self::save_state) wrote for an optimiser of the same
    /// parameters. The groups may differ.
    ///
    /// # Errors
    /// Lists everything missing, unexpected, of another shape or not finite. The state then stays
    /// as it was.
    pub fn load_state(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let file = TensorFile::open(path.as_ref())?;
        state::load(&mut self.slots, &file, "", HashSet::new())
    }

    /// One step, unless the gradients are another model's or not finite.
    pub(super) fn checked_step(&mut self, grads: &GradStore) -> Result<()> {
        checked::reached(&self.slots, grads)?;
        if !self.allows_non_finite {
            checked::finite(&self.slots, grads)?;
        }
        self.step_with(|var| grads.get(var))
    }

    /// The settings that no state holds, for a comparison: learning rates and weight decays of the groups,
    /// betas and eps.
    pub(crate) fn settings(&self) -> String {
        let rates = self.rates.iter();
        let rates = rates.map(|rate| format!("({}, {})", rate.lr, rate.weight_decay));
        format!(
            "(learning rate, weight decay) of each group {}, betas {} and {}, eps {}",
            rates.collect::<Vec<_>>().join(" "),
            self.beta1,
            self.beta2,
            self.eps
        )
    }

    /// One step, with the gradient that `grad` gives for a parameter.
    fn step_with<'a>(&mut self, grad: impl Fn(&Var) -> Option<&'a Tensor>) -> Result<()> {
        if !(self.lr_factor >= 0.0 && self.lr_factor.is_finite()) {
            fail_on(vec![format!(
                "the factor of the learning rate is {}: it must be 0 or more",
                self.lr_factor
            )])?;
        }
        for slot in &mut self.slots {
            let Some(grad) = grad(&slot.var) else {
                continue;
            };
            let Rate { lr, weight_decay } = self.rates[slot.group];
            let lr = lr * self.lr_factor;
            let state = slot.state.next(grad, self.beta1, self.beta2)?;
            let steps = f64::from(state.steps);
            let first_bias = 1.0 - self.beta1.powf(steps);
            let second_bias = (1.0 - self.beta2.powf(steps)).sqrt();
            let root = state.second.sqrt()?;
            let kept = 1.0 - lr * weight_decay;
            // Summed in the moments' dtype and rounded once: in bf16 a small step would vanish.
            let value = slot.var.as_tensor().detach();
            let value = value.to_dtype(state.first.dtype())?;
            let value = match self.order {
                Decay::DecayFirst => {
                    let update = (&state.first / ((root / second_bias)? + self.eps)?)?;
                    ((value * kept)? - (update * (lr / first_bias))?)?
                }
                Decay::DecayLast => {
                    let update = (&state.first / (root + self.eps)?)?;
                    ((value - (update * (lr * second_bias / first_bias))?)? * kept)?
                }
            };
            // First the parameter, which can fail, then its state: both belong to the same step.
            slot.var.set(&value.to_dtype(slot.var.dtype())?)?;
            slot.state = state;
        }
        Ok(())
    }

    /// The backward pass of `loss`: every parameter of this optimiser must get a gradient.
    pub(super) fn backward(&self, loss: &Tensor) -> Result<GradStore> {
        checked::backward(&self.slots, loss, self.allows_non_finite)
    }

    /// The gradients of this optimiser's parameters.
    pub(super) fn own(&self, grads: &GradStore) -> GradStore {
        let mut own = GradStore::default();
        for Tracked { var, .. } in &self.slots {
            if let Some(grad) = grads.get(var) {
                own.insert(var, grad.clone());
            }
        }
        own
    }
}

impl Tracked {
    fn new(path: String, is_routed: bool, var: Var, group: usize) -> Result<Self> {
        // In a half type 1 − beta2 is too small a share to change a sum.
        let moment = Tensor::zeros(var.dims(), wider(var.dtype(), DType::F32), var.device())?;
        let state = Moments {
            first: moment.clone(),
            second: moment,
            steps: 0,
        };
        Ok(Self {
            path,
            is_routed,
            var,
            state,
            group,
        })
    }
}

impl Moments {
    fn next(&self, grad: &Tensor, beta1: f64, beta2: f64) -> Result<Self> {
        let grad = grad.detach().to_dtype(self.first.dtype())?;
        let first = ((&self.first * beta1)? + (&grad * (1.0 - beta1))?)?;
        let second = ((&self.second * beta2)? + (grad.sqr()? * (1.0 - beta2))?)?;
        Ok(Self {
            first,
            second,
            steps: self.steps.saturating_add(1),
        })
    }
}

/// Without a model there are no paths: the positions of the variables stand for them.
impl Optimizer for AdamW {
    type Config = ParamsAdamW;

    fn new(vars: Vec<Var>, params: ParamsAdamW) -> candle_core::Result<Self> {
        let group = Group::new(&vars, params.lr).weight_decay(params.weight_decay);
        let (mut count, mut problems) = (0.., Vec::new());
        let mut seen = std::collections::HashSet::new();
        let name = |var: &Var, _: usize| {
            let path = count.next().unwrap_or(0).to_string();
            if seen.insert(var.id()) {
                Ok((path, false))
            } else {
                Err(format!("variable {path} is given twice"))
            }
        };
        let optimizer = Self::with_names([group], &mut problems, name)?;
        // Candle's training loops may begin without variables.
        problems.retain(|_| !vars.is_empty());
        fail_on(problems)?;
        Ok(optimizer
            .betas(params.beta1, params.beta2)?
            .eps(params.eps)?)
    }

    /// The backward pass and one step. Every parameter of this optimiser must get a gradient, as with
    /// [`LoraModule::backward`], and the loss must be finite. Which parts are routed, only an optimiser
    /// knows that was made for a model.
    fn backward_step(&mut self, loss: &Tensor) -> candle_core::Result<()> {
        let grads = self.backward(loss)?;
        self.step(&grads)
    }

    /// One step. It is an error if no parameter has a gradient: the parameters belong to another
    /// model, or to this one before it was changed. A gradient that is not finite is an error, too.
    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        Ok(self.checked_step(grads)?)
    }

    /// The present learning rate of the first group whose own is not 0.
    fn learning_rate(&self) -> f64 {
        let first = self.rates.iter().find(|rate| rate.lr > 0.0);
        first.map_or(0.0, |rate| rate.lr * self.lr_factor)
    }

    /// Sets the learning rate of the first group whose own is not 0. The rates of the other groups
    /// change in proportion. The factor that was set before is replaced.
    fn set_learning_rate(&mut self, lr: f64) {
        match self.rates.iter().find(|rate| rate.lr > 0.0) {
            Some(first) => self.lr_factor = lr / first.lr,
            None => {
                self.lr_factor = 1.0;
                self.rates.iter_mut().for_each(|rate| rate.lr = lr);
            }
        }
    }
}

fn fail_on(problems: Vec<String>) -> Result<()> {
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::Optimizer(problems))
    }
}
