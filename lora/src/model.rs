//! The two traits that the crate stands on: [`LoraModel`] and [`LoraModule`].

use crate::builder::Builder;
use crate::peft::{self, SaveOptions};
use crate::{
    Cursor, CursorMut, LoraConfig, NamedParam, Result, Summary, backward, convert, merge, params,
};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use std::fmt::Debug;
use std::path::Path;

/// The LoRA type of a model or layer: `Lora<Linear>` is [`LoraLinear`](crate::layers::LoraLinear).
pub type Lora<M> = <M as LoraModel>::Lora;

/// A model or layer that has a LoRA counterpart.
///
/// The layers of candle-nn, their containers (`Vec`, `Option`, `Box`, arrays, tuples, maps) and
/// plain values implement it here; structs and enums of them with
/// [`#[derive(LoraModel)]`](derive@crate::LoraModel).
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no LoRA counterpart",
    label = "not a `LoraModel`",
    note = "if `{Self}` is yours, add `#[derive(LoraModel)]` to it",
    note = "if it is not, or holds nothing to adapt, mark the field `#[lora(skip)]`: its value is cloned"
)]
pub trait LoraModel: Sized {
    /// The LoRA architecture of this type.
    type Lora: LoraModule<Base = Self>;

    /// Builds the counterpart of a part of a model; [`to_lora`](Self::to_lora) calls it for the
    /// whole.
    ///
    /// # Errors
    /// If the part cannot be converted as the configuration asks.
    fn adapt(&self, cx: &mut Builder<'_>) -> Result<Self::Lora>;

    /// Converts to the LoRA model. Frozen weights are shared with this model, not copied;
    /// weights to train are copied.
    ///
    /// # Errors
    /// If the configuration is invalid or does not fit: a pattern that matches nothing or
    /// something that takes no adapter, nothing to adapt at all. Every problem is listed, with the
    /// layers that the model has.
    ///
    /// ```
    /// use candle_core::{Device, DType, Tensor};
    /// use lora::{LoraConfig, LoraModel, LoraModule};
    ///
    /// let weight = Tensor::zeros((3, 2), DType::F32, &Device::Cpu)?;
    /// let linear = candle_nn::Linear::new(weight, None);
    /// let model = linear.to_lora(&LoraConfig::new(1))?;
    /// assert_eq!(model.trainable_vars().len(), 2);
    /// # Ok::<(), lora::Error>(())
    /// ```
    fn to_lora(&self, config: &LoraConfig) -> Result<Self::Lora> {
        Builder::convert(self, config)
    }

    /// The LoRA model without any adapter and with nothing to train: the way to list, count and
    /// transfer the weights of a base model.
    ///
    /// ```
    /// use candle_core::{Device, DType, Tensor};
    /// use lora::{LoraModel, LoraModule};
    ///
    /// let weight = Tensor::zeros((3, 2), DType::F32, &Device::Cpu)?;
    /// let linear = candle_nn::Linear::new(weight, None);
    /// let frozen = linear.to_frozen()?;
    /// assert_eq!(frozen.named_params()[0].path, "weight");
    /// # Ok::<(), lora::Error>(())
    /// ```
    ///
    /// # Errors
    /// If a layer cannot be read, see the notes of each layer.
    fn to_frozen(&self) -> Result<Self::Lora> {
        Builder::freeze(self)
    }

    /// The LoRA model that an adapter's directory describes, with its values, in eval mode: what a
    /// directory that PEFT wrote needs to run. Call [`train`](LoraModule::train) to train it
    /// further.
    ///
    /// The directory alone says what is adapted and trained, not the model's attributes.
    ///
    /// # Errors
    /// If the directory is damaged, holds something that is not supported, or is for another
    /// model; see [`lora::peft`](crate::peft).
    fn with_adapter(&self, dir: impl AsRef<Path>) -> Result<Self::Lora> {
        peft::load_new(self, dir.as_ref())
    }
}

/// The LoRA counterpart of a [`LoraModel`].
///
/// A type defines the way back and two walks over its layers; all else is provided.
pub trait LoraModule: Sized + Clone + Debug {
    /// The base architecture of this type.
    type Base: LoraModel<Lora = Self>;

    /// The base model, with the adapters merged into its weights. This model stays as it is.
    ///
    /// # Errors
    /// If a merged weight is not finite.
    fn to_base(&self) -> Result<Self::Base>;

    /// Walks the layers.
    fn visit(&self, cursor: &mut Cursor<'_>);

    /// Walks the layers, which may be changed.
    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>);

    /// Every parameter with its path, in a stable order: the walk's.
    fn named_params(&self) -> Vec<NamedParam> {
        params::named(self)
    }

    /// The variables to train, for an optimiser: adapters, and what is trained in full. The order
    /// is that of [`named_params`](Self::named_params); a tied variable comes once.
    fn trainable_vars(&self) -> Vec<Var> {
        let vars = params::trainable(self).into_iter();
        vars.map(|(_, var)| var).collect()
    }

    /// The parameters that are not trained.
    fn non_trainable(&self) -> Vec<NamedParam> {
        let params = self.named_params().into_iter();
        params.filter(|param| !param.is_trainable()).collect()
    }

    /// A table of the layers and their parameters, with the totals.
    fn summary(&self) -> Summary {
        Summary::of(self)
    }

    /// The backward pass of `loss`, checked: every trainable parameter must get a gradient.
    /// Gradients of frozen parameters are dropped.
    ///
    /// # Errors
    /// [`Error::NoGradient`](crate::Error::NoGradient) lists the parameters without a gradient and
    /// the usual causes.
    fn backward(&self, loss: &Tensor) -> Result<GradStore> {
        backward::backward(self, loss)
    }

    /// Adds the adapters to the weights, so that the forward pass costs what the base model's
    /// does. All layers are merged or none.
    ///
    /// # Errors
    /// Names the layer whose merged weight is not finite; the model is then as it was.
    fn merge(&mut self) -> Result<()> {
        merge::merge(self)
    }

    /// Takes the adapters out of the weights again: the very tensors from before come back.
    ///
    /// # Errors
    /// None: the result is for symmetry with [`merge`](Self::merge).
    fn unmerge(&mut self) -> Result<()> {
        merge::unmerge(self);
        Ok(())
    }

    /// True if any layer is merged.
    fn is_merged(&self) -> bool {
        merge::is_merged(self)
    }

    /// Switches to training: dropout acts, and gradients are recorded. A fresh model trains.
    fn train(&mut self) {
        params::each_layer_mut(self, |_, layer| layer.set_training(true));
    }

    /// Switches to evaluation: no dropout in the low-rank branches, and layers record no graph.
    ///
    /// A trained tensor that is a field still records one, as the model's own code computes with
    /// it; candle's `Dropout` goes by the argument that the model gives it.
    fn eval(&mut self) {
        params::each_layer_mut(self, |_, layer| layer.set_training(false));
    }

    /// The model on another device. Trained parameters are new variables: make the optimiser
    /// after this. Fields marked `#[lora(skip)]` stay where they are.
    ///
    /// # Errors
    /// If a tensor cannot be moved.
    fn to_device(&self, device: &Device) -> Result<Self> {
        convert::to_device(self, device)
    }

    /// The model in another floating-point dtype. Adapters are f32 on a bf16 or f16 base, as in
    /// PEFT. Trained parameters are new variables: make the optimiser after this.
    ///
    /// # Errors
    /// If the dtype is not a floating-point one or a tensor cannot be cast.
    fn to_dtype(&self, dtype: DType) -> Result<Self> {
        convert::to_dtype(self, dtype)
    }

    /// Saves the adapter in PEFT's format: the low-rank matrices, trained biases and fully trained
    /// modules. A merged model is saved as well. See [`lora::peft`](crate::peft).
    ///
    /// The directory is made if need be; files in it are replaced as a whole or not at all. Where
    /// layers differ in their dropout, the most common one is written: the format holds one.
    ///
    /// # Errors
    /// If a value is not finite, PEFT's format cannot express the model, or the directory cannot be
    /// written.
    fn save_adapter(&self, dir: impl AsRef<Path>) -> Result<()> {
        peft::save(self, dir.as_ref(), &SaveOptions::default())
    }

    /// Saves the adapter as [`save_adapter`](Self::save_adapter) does, with the name of its base
    /// model and its task.
    ///
    /// # Errors
    /// Those of [`save_adapter`](Self::save_adapter), and a head that PEFT would look for because
    /// of the task and that is not trained.
    fn save_adapter_with(&self, dir: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        peft::save(self, dir.as_ref(), options)
    }

    /// Loads an adapter into this model's own, which must have the same form. Values are converted
    /// to the dtypes that the model has; variables keep their identity, so an optimiser goes on
    /// with them.
    ///
    /// # Errors
    /// Lists everything missing, unexpected, of another shape, not finite, and every setting in
    /// which the file and the model disagree; the model is then as it was. A merged model is
    /// refused too.
    fn load_adapter(&mut self, dir: impl AsRef<Path>) -> Result<()> {
        peft::load(self, dir.as_ref())
    }
}

/// A layer that may carry `#[lora(rank)]`: [`Linear`](candle_nn::Linear),
/// [`Conv1d`](candle_nn::Conv1d), [`Conv2d`](candle_nn::Conv2d),
/// [`Embedding`](candle_nn::Embedding) and containers of them.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot carry `#[lora(rank)]`",
    label = "takes no low-rank update",
    note = "layers that take a rank: Linear, Conv1d, Conv2d, Embedding, and Vec, Option, Box, arrays or maps of them",
    note = "to train `{Self}` in full, use `#[lora(trainable)]`"
)]
pub trait LoraLayer: LoraModel {}
