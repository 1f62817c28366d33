//! The numerical check of gradients: what the backward pass says against differences of the loss.
//!
//! A function that records no backward pass cuts the gradient. Where another path leads around the cut,
//! every parameter still gets a gradient, a wrong one, which no bookkeeping can see. Differences of the
//! loss can: along a direction d the loss must change by the gradient times d.
//!
//! The parameters of all layers cannot move alone in a bounded number of forward passes. So the layers
//! form a few groups, and the layers in a group move together, each by a step that raises the loss by
//! about the same amount, as the layer's gradient says. An error in one layer then stands out by
//! that amount. The shares of the layers are random, and all of one sign: layers above each other share
//! an error, which opposite signs would cancel. Only a group that disagrees is looked at layer by layer.
//!
//! DoRA's backward pass takes the norms for constants. So that the loss does, too, each magnitude changes
//! by the factor that its norm does: m·‖V'‖/‖V‖ over ‖V'‖ is m over ‖V‖.

use crate::adapter::updates;
use crate::linalg::gaussian;
use crate::traits::{Trainable, trainable, try_each_layer};
use crate::{Error, LoraModule, Result, manage, ops};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, TensorId, Var};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use std::collections::HashMap;
use std::fmt;

/// Groups of layers at most, each of which costs two forward passes. With the pass that is
/// differentiated, and one that shows that the loss repeats, the check runs 16.
const GROUPS: usize = 7;

/// Layers of a wrong group that are looked at one by one.
const SUSPECTS: usize = 32;

/// The result of [`LoraModule::check_gradients`]: the gradients agree.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GradientCheck {
    /// Layers with trainable parameters, all of which were checked.
    pub layers: usize,
    /// Forward passes that the check took.
    pub passes: usize,
    /// The largest difference of a group, relative to what one layer of the group contributes.
    pub worst: f64,
}

impl fmt::Display for GradientCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            layers,
            passes,
            worst,
        } = self;
        write!(
            f,
            "the gradients of {layers} layers agree with differences of the loss to {:.2} % \
             ({passes} forward passes)",
            worst * 100.0
        )
    }
}

pub(crate) fn check_gradients<M: LoraModule>(
    model: &M,
    mut loss: impl FnMut(&M) -> Result<Tensor>,
) -> Result<GradientCheck> {
    let trainable = trainable(model);
    if trainable.is_empty() {
        let problem = "the model has nothing to train, so there is no gradient to check";
        return Err(Error::Adapter(vec![problem.into()]));
    }
    let dropout = ops::dropout_state();
    let norms = Norms::of(model)?;
    let mut passes = 0;
    // Dropout draws the same masks in each pass, as differences of the loss need.
    let mut pass = || {
        ops::seed_dropout(dropout);
        passes += 1;
        let _held = norms.hold(model)?;
        loss(model)
    };
    let first = pass()?;
    let grads = manage::backward(model, &first)?;
    let layers = layers(trainable, &grads);
    let numbers = Numbers::of(model, &first)?;
    drop(first);
    let mut loss = || value(&pass()?);
    let again = loss()?;
    if (again - numbers.loss).abs() > numbers.noise() {
        return Err(Error::WrongGradient {
            layers: vec![format!(
                "the loss is {} at first and {again} for the same parameters: give the same batch \
                 in every call, and turn off what is random in the model",
                numbers.loss
            )],
            checked: layers.len(),
        });
    }
    let mut worst: f64 = 0.0;
    let mut wrong = Vec::new();
    let count = layers.len().min(GROUPS);
    for index in 0..count {
        let bounds = [index, index + 1].map(|index| index * layers.len() / count);
        let group: Vec<_> = layers[bounds[0]..bounds[1]].iter().collect();
        // A model of few layers has passes left, for more random directions.
        for round in 0..GROUPS / count {
            let probe = Probe::new(&group, &numbers, round as u64)?;
            let difference = probe.difference(&numbers, &mut loss)?;
            worst = worst.max(difference);
            if difference > numbers.tolerance {
                wrong.extend(suspects(&group, &numbers, &mut loss)?);
                break;
            }
        }
    }
    ops::seed_dropout(dropout);
    if !wrong.is_empty() {
        return Err(Error::WrongGradient {
            layers: wrong,
            checked: layers.len(),
        });
    }
    Ok(GradientCheck {
        layers: layers.len(),
        passes,
        worst,
    })
}

/// The norms of DoRA's layers before anything moves, by the magnitude.
struct Norms(HashMap<TensorId, Tensor>);

impl Norms {
    fn of<M: LoraModule>(model: &M) -> Result<Self> {
        let mut norms = HashMap::new();
        each_magnitude(model, |magnitude, now| {
            norms.insert(magnitude.id(), now()?);
            Ok(())
        })?;
        Ok(Self(norms))
    }

    /// Changes the magnitudes by what the norms have changed, until the result is dropped.
    fn hold<M: LoraModule>(&self, model: &M) -> Result<Held> {
        let mut held = Held(Vec::new());
        if self.0.is_empty() {
            return Ok(held);
        }
        each_magnitude(model, |magnitude, now| {
            let Some(norms) = self.0.get(&magnitude.id()) else {
                return Ok(());
            };
            let factor = (now()? / norms)?.reshape(magnitude.shape())?;
            // A variable comes back as it is.
            let var = Var::from_tensor(magnitude)?;
            let before = var.as_detached_tensor().copy()?;
            var.set(&(&before * factor.to_dtype(before.dtype())?)?)?;
            held.0.push((var, before));
            Ok(())
        })?;
        Ok(held)
    }
}

/// Magnitudes that are not their own for a pass.
struct Held(Vec<(Var, Tensor)>);

impl Drop for Held {
    fn drop(&mut self) {
        for (var, before) in &self.0 {
            // The same variable took a tensor of the same shape and dtype before.
            let _ = var.set(before);
        }
    }
}

/// Calls `f` with each variable that is a magnitude of the forward pass, and what computes the norms.
fn each_magnitude<M: LoraModule>(
    model: &M,
    mut f: impl FnMut(&Tensor, &dyn Fn() -> Result<Tensor>) -> Result<()>,
) -> Result<()> {
    try_each_layer(model, |_, layer| {
        let Some(layer) = layer.adapted() else {
            return Ok(());
        };
        for adapter in layer.adapters().to_compute() {
            if let Some(magnitude) = adapter.magnitude.as_ref().filter(|m| m.is_variable()) {
                f(magnitude, &|| updates::norms(layer, adapter))?;
            }
        }
        Ok(())
    })
}

/// A layer's variables, each with its gradient.
struct Checked {
    path: String,
    vars: Vec<(Var, Tensor)>,
}

fn layers(trainable: Vec<Trainable>, grads: &GradStore) -> Vec<Checked> {
    let mut layers: Vec<Checked> = Vec::new();
    for Trainable {
        path, layer, var, ..
    } in trainable
    {
        // The backward pass gave each variable a gradient.
        let Some(grad) = grads.get(&var).cloned() else {
            continue;
        };
        match layers.last_mut().filter(|last| last.path == path[..layer]) {
            Some(last) => last.vars.push((var, grad)),
            None => layers.push(Checked {
                path: path[..layer].to_string(),
                vars: vec![(var, grad)],
            }),
        }
    }
    layers
}

/// The layers of a group that disagree when they move alone, with the two numbers.
fn suspects(
    group: &[&Checked],
    numbers: &Numbers,
    loss: &mut impl FnMut() -> Result<f64>,
) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for layer in group.iter().take(SUSPECTS) {
        // Along one direction a wrong gradient may be right by chance.
        for round in 0..3 {
            let probe = Probe::new(&[layer], numbers, round)?;
            if probe.difference(numbers, loss)? > numbers.tolerance {
                let (expected, measured) = (probe.expected, probe.change(0.25, loss)?);
                wrong.push(format!(
                    "{}: by the gradient the loss changes by {expected:.3e}, it changes by \
                     {measured:.3e}",
                    layer.path
                ));
                break;
            }
        }
    }
    if wrong.is_empty() {
        let (first, last) = (&group[0].path, &group[group.len() - 1].path);
        wrong.push(format!("one or more of the layers from {first} to {last}"));
    }
    Ok(wrong)
}

/// What the arithmetic of a model allows.
struct Numbers {
    loss: f64,
    /// The rounding of the loss, relative.
    rounding: f64,
    /// The change of the loss to aim at, relative.
    change: f64,
    /// The largest difference that passes, relative to what one layer contributes.
    tolerance: f64,
}

impl Numbers {
    fn of<M: LoraModule>(model: &M, loss: &Tensor) -> Result<Self> {
        let params = model.named_params();
        let mut dtypes = params.iter().map(|param| param.tensor.dtype());
        let is_half = |dtype| matches!(dtype, DType::BF16 | DType::F16);
        let (rounding, change, tolerance) = match is_half(loss.dtype()) || dtypes.any(is_half) {
            true => (4e-3, 0.1, 0.3),
            false => (2e-6, 1e-2, 0.02),
        };
        Ok(Self {
            loss: value(loss)?,
            rounding,
            change,
            tolerance,
        })
    }

    /// The rounding of the loss.
    fn noise(&self) -> f64 {
        self.rounding * self.loss.abs().max(1e-3)
    }

    /// The change of the loss to aim at.
    fn aim(&self) -> f64 {
        self.change * self.loss.abs().max(1e-3)
    }
}

/// A step of a group of layers, and what the gradient says about it.
struct Probe<'a> {
    steps: Vec<(&'a Var, Tensor, Tensor)>,
    /// The change of the loss by the gradient.
    expected: f64,
    /// The largest contribution of a layer to that.
    contribution: f64,
}

impl<'a> Probe<'a> {
    fn new(group: &[&'a Checked], numbers: &Numbers, seed: u64) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let aim = numbers.aim() / group.len() as f64;
        let mut probe = Self {
            steps: Vec::new(),
            expected: 0.0,
            contribution: 0.0,
        };
        for layer in group {
            let share = aim * rng.random_range(0.5..1.5) / layer.vars.len() as f64;
            let mut of_layer: f64 = 0.0;
            for (var, grad) in &layer.vars {
                let random = (0..var.elem_count()).map(|_| gaussian(&mut rng)).collect();
                let (step, change) = step(var, grad, share, random)?;
                of_layer += change;
                probe
                    .steps
                    .push((var, var.as_detached_tensor().copy()?, step));
            }
            probe.expected += of_layer;
            probe.contribution = probe.contribution.max(of_layer.abs());
        }
        Ok(probe)
    }

    /// How far the gradient and the loss disagree beyond rounding, relative to a layer's contribution.
    /// A long step bends, so a disagreement is looked at with ever shorter steps, until rounding hides
    /// it.
    fn difference(&self, numbers: &Numbers, loss: &mut impl FnMut() -> Result<f64>) -> Result<f64> {
        let mut smallest = f64::INFINITY;
        for length in [1.0, 0.5, 0.25, 0.1, 0.03] {
            let change = self.change(length, loss)?;
            let noise = numbers.noise() / length;
            let excess = ((change - self.expected).abs() - noise).max(0.0);
            smallest = smallest.min(excess / self.contribution.max(noise));
            if smallest <= numbers.tolerance {
                break;
            }
        }
        Ok(smallest)
    }

    /// The change of the loss along the step, by a central difference over `length` of the step.
    fn change(&self, length: f64, loss: &mut impl FnMut() -> Result<f64>) -> Result<f64> {
        let _restore = Restore(self);
        self.go(length)?;
        let above = loss()?;
        self.go(-length)?;
        let below = loss()?;
        Ok((above - below) / (2.0 * length))
    }

    fn go(&self, length: f64) -> Result<()> {
        for (var, at, step) in &self.steps {
            var.set(&(at + (step * length)?)?)?;
        }
        Ok(())
    }
}

/// Puts the very values back, whatever happens in the loss.
struct Restore<'a>(&'a Probe<'a>);

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        for (var, at, _) in &self.0.steps {
            // The same variable took a tensor of the same shape and dtype before.
            let _ = var.set(at);
        }
    }
}

/// A step of a variable along its gradient and a random direction of the same length, and the change
/// of the loss that the gradient says, about `aim`.
fn step(var: &Var, grad: &Tensor, aim: f64, random: Vec<f64>) -> Result<(Tensor, f64)> {
    let random = Tensor::from_vec(random, var.shape(), var.device())?;
    let random = (&random / norm(&random)?.max(f64::MIN_POSITIVE))?;
    let grad = grad.detach().to_dtype(DType::F64)?;
    let slope = norm(&grad)?;
    // A variable of zeros, such as B at first, has no length of its own.
    let typical = 0.02 * (var.elem_count() as f64).sqrt();
    let longest = 0.1 * norm(&var.as_detached_tensor().to_dtype(DType::F64)?)?.max(typical);
    let (direction, length) = match slope > 0.0 {
        true => (((&grad / slope)? + random)?, (aim / slope).min(longest)),
        false => (random, 0.1 * longest),
    };
    let step = (direction * length)?;
    let change = (&grad * &step)?.sum_all()?.to_scalar::<f64>()?;
    Ok((step.to_dtype(var.dtype())?, change))
}

fn norm(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt())
}

fn value(loss: &Tensor) -> Result<f64> {
    let loss = loss.detach().to_dtype(DType::F64)?;
    Ok(loss.sum_all()?.to_scalar::<f64>()?)
}
