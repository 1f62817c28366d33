//! Training that goes on where it was: model, optimiser and random state in one file.

use super::{AdamW, LoraFa, Riemannian, state};
use crate::file::{TensorFile, parse_json};
use crate::manage::{self, ModelForm};
use crate::{Error, LoraModule, Result, ops};
use candle_core::backprop::GradStore;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::Path;

/// Where the file's header keeps all that is no tensor.
const KEY: &str = "lora_training_state";

/// What the keys of the optimiser's tensors begin with.
const OPTIMIZER: &str = "optimizer";

/// An optimiser that computes with an [`AdamW`]: those of this crate, and those that change the gradients
/// before they hand them to one. [`Trainer`](crate::train::Trainer) trains with any of them.
///
/// ```
/// use candle_core::backprop::GradStore;
/// use lora::optim::{AdamW, AsAdamW};
///
/// /// AdamW that learns from the signs of the gradients alone.
/// struct Signs(AdamW, Vec<candle_core::Var>);
///
/// impl AsAdamW for Signs {
///     fn as_adamw(&self) -> &AdamW {
///         &self.0
///     }
///
///     fn as_adamw_mut(&mut self) -> &mut AdamW {
///         &mut self.0
///     }
///
///     fn take_step(&mut self, grads: &GradStore) -> lora::Result<()> {
///         let mut signs = GradStore::default();
///         for var in &self.1 {
///             if let Some(grad) = grads.get(var) {
///                 signs.insert(var, grad.sign()?);
///             }
///         }
///         self.0.take_step(&signs)
///     }
/// }
/// ```
pub trait AsAdamW {
    /// The AdamW.
    fn as_adamw(&self) -> &AdamW;

    /// The AdamW, to be changed.
    fn as_adamw_mut(&mut self) -> &mut AdamW;

    /// One step with the gradients of [`LoraModule::backward`].
    ///
    /// # Errors
    /// Those of candle, gradients of which none is for this optimiser, a gradient that is not finite, and
    /// a factor of the learning rate that is negative or not finite.
    fn take_step(&mut self, grads: &GradStore) -> Result<()>;
}

macro_rules! as_adamw {
    ($($optimizer:ty: |$self:ident| $of:expr, $of_mut:expr, $step:ident;)*) => {$(
        impl AsAdamW for $optimizer {
            fn as_adamw(&self) -> &AdamW {
                let $self = self;
                $of
            }

            fn as_adamw_mut(&mut self) -> &mut AdamW {
                let $self = self;
                $of_mut
            }

            fn take_step(&mut self, grads: &GradStore) -> Result<()> {
                self.$step(grads)
            }
        }
    )*};
}

as_adamw! {
    AdamW: |it| it, it, checked_step;
    LoraFa: |it| it.adamw(), it.adamw_mut(), step;
    Riemannian: |it| it.adamw(), it.adamw_mut(), step;
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    version: u32,
    model: ModelForm,
    /// The factor of the learning rates.
    lr_factor: f64,
    /// From which the next dropout is drawn.
    random_state: u64,
}

/// Writes all that training needs to go on exactly where it is: the adapters, the optimiser's moments,
/// and this thread's [random state](crate::seed_dropout). [`load_state`] reads the file.
///
/// Adapters are written as they are, for every initial value: one of a residual base stays one, with the
/// rank that it has. For other programs there is
/// [`save_adapter`](LoraModule::save_adapter), which converts it. Also written: which adapters act, which
/// are trained, their scales, what is trained in full. Not written: the base model, which parts are
/// [recomputed](crate::LoraConfig::recompute), the groups of the optimiser, a schedule's step and the
/// place in the data. [`AdamW::steps`] counts the steps.
///
/// The file is replaced as a whole or not at all.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::{Linear, Optimizer};
/// use lora::optim::{LoraPlus, load_state, save_state};
/// use lora::{Init, LoraConfig, LoraModel, LoraModule};
///
/// let base = Linear::new(Tensor::randn(0f32, 1., (4, 6), &Device::Cpu)?, None);
/// let model = base.to_lora(&LoraConfig::new(2).init(Init::Pissa).dropout(0.1))?;
/// let mut optimizer = LoraPlus::new(1e-3, 16.0).adamw(&model)?;
/// let xs = Tensor::ones((3, 6), DType::F32, &Device::Cpu)?;
/// optimizer.backward_step(&model.forward(&xs)?.sqr()?.mean_all()?)?;
///
/// let dir = tempfile::tempdir().unwrap();
/// let path = dir.path().join("state.safetensors");
/// save_state(&path, &model, &optimizer)?;
/// let next = model.forward(&xs)?;
///
/// // In another process: the base model, and the same optimiser.
/// let mut again = base.to_frozen()?;
/// let optimizer = load_state(&path, &mut again, |model| LoraPlus::new(1e-3, 16.0).adamw(model))?;
/// assert_eq!(optimizer.steps(), 1);
/// assert_eq!(again.forward(&xs)?.to_vec2::<f32>()?, next.to_vec2::<f32>()?); // the same dropout
/// # Ok::<(), lora::Error>(())
/// ```
///
/// # Errors
/// A merged model, values that are not finite, and a file that cannot be written. An earlier file is then
/// as it was.
pub fn save_state<M: LoraModule>(
    path: impl AsRef<Path>,
    model: &M,
    optimizer: &impl AsAdamW,
) -> Result<()> {
    save_state_with(path.as_ref(), model, optimizer, None)
}

/// As [`save_state`], with a text of the caller's under this key of the file's header.
pub(crate) fn save_state_with<M: LoraModule>(
    path: &Path,
    model: &M,
    optimizer: &impl AsAdamW,
    beside: Option<(&str, String)>,
) -> Result<()> {
    let (form, mut tensors) = manage::save_state(model)?;
    let adamw = optimizer.as_adamw();
    tensors.extend(state::tensors(&adamw.slots, OPTIMIZER)?);
    let form = Form {
        version: 1,
        model: form,
        lr_factor: adamw.lr_factor,
        random_state: ops::dropout_state(),
    };
    let json = serde_json::to_string(&form).map_err(|error| Error::file(path, error))?;
    let beside = beside.map(|(key, text)| (key.to_string(), text));
    let texts = [(KEY.to_string(), json)].into_iter().chain(beside);
    state::write(path, tensors, texts)
}

/// Puts a model into the state that [`save_state`] wrote, and gives the optimiser that `optimizer` makes
/// for it, with its moments. This thread draws on from the saved random state.
///
/// The model is a LoRA model of the same base: the conversion of before, or just
/// [`to_frozen`](crate::LoraModel::to_frozen) of the base model. The state replaces all of its adapters;
/// their variables are new. No initial value is computed again, and none needs its data again: a residual
/// base follows from the saved values.
///
/// # Errors
/// Lists everything missing, unexpected, of another shape or not finite; layers with other base weights
/// than were trained with, of which samples are compared; parameters of the optimiser that the file does
/// not have. The model is then as it was.
pub fn load_state<M: LoraModule, O: AsAdamW>(
    path: impl AsRef<Path>,
    model: &mut M,
    optimizer: impl FnOnce(&mut M) -> Result<O>,
) -> Result<O> {
    let file = TensorFile::open(path.as_ref())?;
    let form = form(&file)?;
    let mut used = HashSet::new();
    let mut loaded = manage::load_state(model, &form.model, &file, &mut used)?;
    let mut optimizer = optimizer(&mut loaded)?;
    let adamw = optimizer.as_adamw_mut();
    state::load(&mut adamw.slots, &file, OPTIMIZER, used)?;
    adamw.lr_factor = form.lr_factor;
    ops::seed_dropout(form.random_state);
    *model = loaded;
    Ok(optimizer)
}

/// Puts a model into the state that [`save_state`] wrote, for a use without an optimiser.
pub(crate) fn load_model<M: LoraModule>(path: &Path, model: &mut M) -> Result<()> {
    let file = TensorFile::open(path)?;
    *model = manage::load_state(model, &form(&file)?.model, &file, &mut HashSet::new())?;
    Ok(())
}

fn form(file: &TensorFile) -> Result<Form> {
    let failed = |problem: String| Error::file(file.path(), problem);
    let json = file.metadata().and_then(|metadata| metadata.get(KEY));
    let Some(json) = json else {
        return Err(failed(
            "is no training state: save_state() writes one".into(),
        ));
    };
    let value = parse_json(json.as_bytes());
    let form = value.and_then(serde_json::from_value::<Form>);
    let form = form.map_err(|error| failed(format!("holds a damaged training state: {error}")))?;
    match form.version {
        1 => Ok(form),
        version => Err(failed(format!(
            "holds a training state of version {version}: this crate reads version 1"
        ))),
    }
}
