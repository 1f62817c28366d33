//! [`LoraModel`]: a type that has a LoRA counterpart.

use crate::convert::{Builder, Values};
use crate::peft::AdapterDir;
use crate::{Calibrated, DEFAULT_ADAPTER, LoraConfig, LoraModule, Result, convert, peft};
use candle_core::Tensor;

/// The LoRA type of a model or layer: `Lora<Linear>` is [`LoraLinear`](crate::layers::LoraLinear).
pub type Lora<M> = <M as LoraModel>::Lora;

/// A model or layer that has a LoRA counterpart.
///
/// This crate implements the trait for the layers of candle-nn, their containers (`Vec`, `Option`,
/// `Box`, arrays, tuples, maps) and plain values. Structs and enums of such types derive the trait:
/// [`#[derive(LoraModel)]`](derive@crate::LoraModel).
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no LoRA counterpart",
    label = "not a `LoraModel`",
    note = "if `{Self}` is a layer of candle's, it is of another version: this crate knows candle 0.11, see `cargo tree -d`",
    note = "if `{Self}` is yours, add `#[derive(LoraModel)]` to it",
    note = "if it is not, or holds nothing to adapt, mark the field `#[lora(skip)]`: its value is cloned",
    note = "a `dyn Module` hides its layers: `lora::layers::AnyModule` can take the place of a `Box<dyn Module>`"
)]
pub trait LoraModel: Sized {
    /// The LoRA architecture of this type.
    type Lora: LoraModule<Base = Self>;

    /// True for a layer or cache of candle's and for containers of such: types that no field should
    /// [skip](macro@crate::LoraModel).
    #[doc(hidden)]
    const IS_LAYER: bool = false;

    /// Builds the LoRA counterpart of this model or part of a model. Users call
    /// [`to_lora`](Self::to_lora), which starts the walk.
    ///
    /// # Errors
    /// If the part cannot be converted as the configuration asks.
    fn adapt(&self, cx: &mut Builder<'_>) -> Result<Self::Lora>;

    /// Converts to the LoRA model. Frozen weights are shared with this model, not copied;
    /// weights to train are copied.
    ///
    /// A rank above the smaller side of a layer's weight makes the adapter larger and nothing else.
    /// A warning names such layers. The warning goes to the `log` crate, or to the error output
    /// where the program has no logger. [`summary`](LoraModule::summary) lists such layers, too.
    ///
    /// # Errors
    /// If the configuration is invalid or does not fit: a pattern matches nothing, a pattern
    /// matches a layer that takes no adapter, or there is nothing to adapt at all. The error lists
    /// every problem and the model's layers.
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
        Builder::convert(self, DEFAULT_ADAPTER, config, Values::Fresh)
    }

    /// Shows the model data, for initial values that depend on it: EVA, CorDA and LoRA-GA. The
    /// result goes to [`to_lora_calibrated`](Self::to_lora_calibrated).
    ///
    /// `batch` is called again and again with a model of the LoRA type that computes what this
    /// model does. Each call runs one batch and returns the result; for LoRA-GA the result is the
    /// loss. `None` ends the calibration. EVA ends by itself once it has seen enough.
    ///
    /// ```
    /// use candle_core::{Device, Module, Tensor};
    /// use lora::{Init, LoraConfig, LoraModel};
    ///
    /// let weight = Tensor::randn(0f32, 1., (4, 3), &Device::Cpu)?;
    /// let linear = candle_nn::Linear::new(weight, None);
    /// let config = LoraConfig::new(2).init(Init::Corda);
    /// let data = Tensor::randn(0f32, 1., (2, 16, 3), &Device::Cpu)?;
    /// let mut batches = (0..2).map(|batch| data.get(batch));
    /// let calibrated = linear.calibrate(&config, |model| match batches.next() {
    ///     Some(xs) => Ok(Some(model.forward(&xs?)?)),
    ///     None => Ok(None),
    /// })?;
    /// let model = linear.to_lora_calibrated(&config, &calibrated)?;
    /// # let _ = model;
    /// # Ok::<(), lora::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`to_lora`](Self::to_lora) and of `batch`; an initial value that needs no data, a
    /// target that is not linear, and a layer that saw too little data.
    fn calibrate(
        &self,
        config: &LoraConfig,
        batch: impl FnMut(&Self::Lora) -> Result<Option<Tensor>>,
    ) -> Result<Calibrated> {
        convert::calibrate(self, config, batch)
    }

    /// As [`to_lora`](Self::to_lora), with the result of [`calibrate`](Self::calibrate) for the
    /// same configuration. EVA may give layers other ranks than the configuration says.
    ///
    /// # Errors
    /// Those of [`to_lora`](Self::to_lora), and a layer that was not calibrated.
    fn to_lora_calibrated(
        &self,
        config: &LoraConfig,
        calibrated: &Calibrated,
    ) -> Result<Self::Lora> {
        let config = calibrated.config(config);
        Builder::convert(
            self,
            DEFAULT_ADAPTER,
            &config,
            Values::Calibrated(calibrated),
        )
    }

    /// The LoRA model without any adapter and with nothing to train. It serves to list, count and
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
    /// If a layer cannot be converted; see the notes of each layer.
    fn to_frozen(&self) -> Result<Self::Lora> {
        Builder::freeze(self)
    }

    /// The LoRA model that an adapter's directory describes, with its values, in eval mode: what a
    /// directory that PEFT wrote needs to run. Call [`train`](LoraModule::train) to train it
    /// further.
    ///
    /// The directory alone says which layers are adapted and trained; the model's attributes do not
    /// matter. A raw adapter of PiSSA or OLoRA makes its residual base again, which is right on the
    /// original base.
    ///
    /// `dir` is a path, or an [`AdapterDir`] that says how to read what the files leave open.
    ///
    /// # Errors
    /// If the directory is damaged, holds something that is not supported, or is for another
    /// model; see [`lora::peft`](crate::peft).
    fn with_adapter(&self, dir: impl Into<AdapterDir>) -> Result<Self::Lora> {
        peft::load_new(self, dir.into())
    }
}

/// A layer that may carry `#[lora(rank)]`: [`Linear`](candle_nn::Linear),
/// [`Conv1d`](candle_nn::Conv1d), [`Conv2d`](candle_nn::Conv2d),
/// [`Embedding`](candle_nn::Embedding), [`TransposedLinear`](crate::layers::TransposedLinear),
/// [`Weight`](crate::layers::Weight), [`LSTM`](crate::layers::LSTM), [`GRU`](crate::layers::GRU),
/// [`Sequential`](crate::layers::Sequential), a struct under `#[lora(linear)]`, containers of them, and every type that derives
/// [`LoraModel`]: a rank there is for all layers below that take one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot carry `#[lora(rank)]`",
    label = "takes no low-rank update",
    note = "layers that take a rank: Linear, Conv1d, Conv2d, Embedding, and Vec, Option, Box, arrays or maps of them",
    note = "to train `{Self}` in full, use `#[lora(trainable)]`"
)]
pub trait LoraLayer: LoraModel {}
