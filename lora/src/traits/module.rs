//! [`LoraModule`]: what every LoRA model and layer can do.

use crate::convert::Values;
use crate::peft::{self, AdapterDir, SaveOptions};
use crate::{
    Calibrated, Combination, CombineOptions, Cursor, CursorMut, GradientCheck, Layer, LayerStatus,
    LoraConfig, LoraModel, ModelStatus, NamedParam, Result, Summary, manage,
};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use std::fmt::Debug;
use std::path::Path;

/// The LoRA counterpart of a [`LoraModel`].
///
/// A type defines the way back to its base and two walks over its layers. Everything else is provided,
/// as the table shows.
///
/// **`clone()` shares the variables**: `let best = model.clone()` changes as training goes on. Clones
/// are for views. [`deep_clone`](Self::deep_clone) gives a snapshot.
///
/// | for | methods |
/// |---|---|
/// | looking at the model | [`named_params`](Self::named_params), [`non_trainable`](Self::non_trainable), [`for_each_layer`](Self::for_each_layer), [`summary`](Self::summary), [`layer_status`](Self::layer_status), [`model_status`](Self::model_status) |
/// | training | [`trainable_vars`](Self::trainable_vars), [`backward`](Self::backward), [`backward_any`](Self::backward_any), [`check_gradients`](Self::check_gradients), [`train`](Self::train), [`eval`](Self::eval), [`to_device`](Self::to_device), [`to_dtype`](Self::to_dtype), [`deep_clone`](Self::deep_clone) |
/// | adapters | [`adapter_names`](Self::adapter_names), [`active_adapters`](Self::active_adapters), [`add_adapter`](Self::add_adapter), [`add_adapter_calibrated`](Self::add_adapter_calibrated), [`add_weighted_adapter`](Self::add_weighted_adapter), [`set_active`](Self::set_active), [`set_adapter_trainable`](Self::set_adapter_trainable), [`set_scale`](Self::set_scale), [`rename_adapter`](Self::rename_adapter), [`delete_adapter`](Self::delete_adapter), [`disabled`](Self::disabled), [`for_rows`](Self::for_rows) |
/// | merging | [`merge`](Self::merge), [`merge_in_full`](Self::merge_in_full), [`unmerge`](Self::unmerge), [`merge_adapters`](Self::merge_adapters), [`unmerge_adapters`](Self::unmerge_adapters), [`merged_adapters`](Self::merged_adapters), [`is_merged`](Self::is_merged), [`to_base`](Self::to_base) |
/// | files | [`save_adapter`](Self::save_adapter), [`save_adapter_with`](Self::save_adapter_with), [`load_adapter`](Self::load_adapter), [`load_adapter_as`](Self::load_adapter_as), [`hot_swap`](Self::hot_swap) |
pub trait LoraModule: Sized + Clone + Debug {
    /// The base architecture of this type.
    type Base: LoraModel<Lora = Self>;

    /// The base model. Active and merged adapters are merged into its weights, and modules that active
    /// adapters train in full stand in place of the base's. This model stays as it is.
    ///
    /// # Errors
    /// If a merged weight is not finite, or an adapter has a bias on B and its layer no bias.
    fn to_base(&self) -> Result<Self::Base>;

    /// Walks the layers.
    fn visit(&self, cursor: &mut Cursor<'_>);

    /// Walks the layers, which may be changed.
    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>);

    /// The tensor, for a tensor that is a field.
    #[doc(hidden)]
    fn as_tensor(&self) -> Option<&Tensor> {
        None
    }

    /// True for two tensors that look like a cache of keys and values.
    #[doc(hidden)]
    fn is_cache(&self) -> bool {
        false
    }

    /// Every parameter with its path, in a stable order: the walk's.
    fn named_params(&self) -> Vec<NamedParam> {
        super::named(self)
    }

    /// The parameters that are not trained.
    fn non_trainable(&self) -> Vec<NamedParam> {
        let params = self.named_params().into_iter();
        params.filter(|param| !param.is_trainable()).collect()
    }

    /// Calls `f` with each layer of the model and its path, in the order of
    /// [`named_params`](Self::named_params).
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use lora::{LoraConfig, LoraModel, LoraModule};
    ///
    /// let weight = Tensor::zeros((3, 2), DType::F32, &Device::Cpu)?;
    /// let net = vec![candle_nn::Linear::new(weight, None)];
    /// let model = net.to_lora(&LoraConfig::new(1).target_modules(["0"]))?;
    /// let mut lines = Vec::new();
    /// model.for_each_layer(|path, layer| {
    ///     let adapters = layer.adapted().map_or(0, |layer| layer.adapters().iter().count());
    ///     lines.push(format!("{path}: {} with {adapters} adapter", layer.kind()));
    /// });
    /// assert_eq!(lines, ["0: Linear with 1 adapter"]);
    /// # Ok::<(), lora::Error>(())
    /// ```
    fn for_each_layer(&self, f: impl FnMut(&str, &dyn Layer)) {
        super::each_layer(self, f);
    }

    /// A table of the layers and their parameters, with the totals.
    fn summary(&self) -> Summary {
        Summary::of(self)
    }

    /// What each layer that has low-rank updates does with them. Layers of which an adapter only
    /// trains parameters in full are not listed.
    fn layer_status(&self) -> Vec<LayerStatus> {
        manage::layer_status(self)
    }

    /// What the model as a whole does with its adapters, and where layers differ.
    fn model_status(&self) -> ModelStatus {
        manage::model_status(self)
    }

    /// The variables to train, for an optimiser: adapters, and what is trained in full. The order
    /// is that of [`named_params`](Self::named_params); a tied variable comes once.
    fn trainable_vars(&self) -> Vec<Var> {
        let vars = super::trainable(self).into_iter();
        vars.map(|trainable| trainable.var).collect()
    }

    /// The backward pass of `loss`, checked: every trainable parameter must get a gradient.
    /// Gradients of frozen parameters are dropped.
    ///
    /// # Errors
    /// [`Error::NoGradient`](crate::Error::NoGradient) lists the parameters without a gradient and
    /// the usual causes. [`Error::NotFinite`](crate::Error::NotFinite) refuses a loss that is NaN or
    /// infinite.
    fn backward(&self, loss: &Tensor) -> Result<GradStore> {
        manage::check_loss(loss)?;
        manage::backward(self, loss)
    }

    /// As [`backward`](Self::backward), for a loss that may be NaN or infinite: for those who look at
    /// the gradients and leave such a step out themselves, as a scaler of losses does.
    ///
    /// # Errors
    /// [`Error::NoGradient`](crate::Error::NoGradient).
    fn backward_any(&self, loss: &Tensor) -> Result<GradStore> {
        manage::backward(self, loss)
    }

    /// Checks the backward pass against differences of the loss, in 16 forward passes for any
    /// model, and a few more where the loss bends.
    /// Call the check once, on the first batch.
    ///
    /// `loss` computes the loss of one batch, the same batch in every call. Each layer moves a little
    /// along its gradient and along a random direction, and the loss must change as the gradient says,
    /// to 2 %, or 30 % in half precision. The norms of DoRA's weights count as constants, for the loss as for
    /// the gradient. The low-rank branches' dropout draws the same masks in each
    /// pass; other random parts of a model must be off. Where the forward pass takes `&mut self`, clone
    /// the model in `loss`: clones share the variables that the check moves. Afterwards the parameters are the very ones
    /// from before.
    ///
    /// A function that records no backward pass cuts the gradient. Where a shortcut leads around the
    /// cut, each parameter still gets a gradient, a wrong one, which only this check can find.
    ///
    /// ```
    /// use candle_core::{Device, Module, Tensor};
    /// use lora::{LoraConfig, LoraModel, LoraModule};
    ///
    /// let weight = Tensor::randn(0f32, 1., (3, 2), &Device::Cpu)?;
    /// let model = candle_nn::Linear::new(weight, None).to_lora(&LoraConfig::new(1))?;
    /// let xs = Tensor::randn(0f32, 1., (4, 2), &Device::Cpu)?;
    /// let check = model.check_gradients(|model| Ok(model.forward(&xs)?.sqr()?.mean_all()?))?;
    /// assert_eq!(check.layers, 1);
    /// # Ok::<(), lora::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::WrongGradient`](crate::Error::WrongGradient) lists the layers whose gradient is wrong
    /// and the usual causes. Also those of [`backward`](Self::backward) and of `loss`, and a loss that
    /// differs from call to call.
    fn check_gradients(&self, loss: impl FnMut(&Self) -> Result<Tensor>) -> Result<GradientCheck> {
        manage::check_gradients(self, loss)
    }

    /// Switches to training: dropout acts, and gradients are recorded. A fresh model trains.
    fn train(&mut self) {
        super::each_layer_mut(self, |_, layer| layer.set_training(true));
    }

    /// Switches to evaluation: no dropout in the low-rank branches, and layers record no graph.
    ///
    /// A trained tensor that is a field still records one, as the model's own code computes with
    /// it; a `Dropout` layer goes by the argument that the model gives it.
    fn eval(&mut self) {
        super::each_layer_mut(self, |_, layer| layer.set_training(false));
    }

    /// The model on another device. Trained parameters are new variables: make the optimiser
    /// after this. Fields marked `#[lora(skip)]` stay where they are.
    ///
    /// # Errors
    /// If a tensor cannot be moved.
    fn to_device(&self, device: &Device) -> Result<Self> {
        manage::to_device(self, device)
    }

    /// The model in another floating-point dtype. Adapters are f32 on a bf16 or f16 base, as in
    /// PEFT. Trained parameters are new variables: make the optimiser after this.
    ///
    /// # Errors
    /// If the dtype is not a floating-point one or a tensor cannot be cast.
    fn to_dtype(&self, dtype: DType) -> Result<Self> {
        manage::to_dtype(self, dtype)
    }

    /// A snapshot: a copy with variables of its own, which no training of this model reaches. Frozen
    /// weights of the base are shared; optimisers of this model do not know the copy's variables.
    ///
    /// `clone()` shares everything: the clone's values change as this model is trained.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use lora::{LoraConfig, LoraModel, LoraModule};
    ///
    /// let weight = Tensor::zeros((3, 2), DType::F32, &Device::Cpu)?;
    /// let model = candle_nn::Linear::new(weight, None).to_lora(&LoraConfig::new(1))?;
    /// let (best, view) = (model.deep_clone()?, model.clone());
    /// let b = &model.trainable_vars()[1];
    /// b.set(&b.ones_like()?)?; // as a step of training would
    /// let sum = |tensor: &Tensor| tensor.sum_all()?.to_scalar::<f32>();
    /// assert_eq!(sum(&best.trainable_vars()[1])?, 0.0);
    /// assert_eq!(sum(&view.trainable_vars()[1])?, 3.0);
    /// # Ok::<(), lora::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the device has no memory left for the copies.
    fn deep_clone(&self) -> Result<Self> {
        manage::deep_clone(self)
    }

    /// The names of the model's adapters. Conversion makes one,
    /// [`DEFAULT_ADAPTER`](crate::DEFAULT_ADAPTER).
    fn adapter_names(&self) -> Vec<String> {
        manage::names(self)
    }

    /// The names of the adapters that act, in the order in which they apply.
    fn active_adapters(&self) -> Vec<String> {
        manage::active(self)
    }

    /// Adds a fresh adapter. As in PEFT the adapter neither acts nor is trained until
    /// [`set_active`](Self::set_active) says so. The configuration chooses layers as in
    /// [`to_lora`](LoraModel::to_lora). Parameters that the adapter trains in full are copies of its
    /// own. For EVA, CorDA and LoRA-GA call
    /// [`add_adapter_calibrated`](Self::add_adapter_calibrated). LoftQ is for conversion only, as it
    /// changes the base for all adapters.
    ///
    /// ```
    /// use candle_core::{Device, DType, Tensor};
    /// use lora::{LoraConfig, LoraModel, LoraModule};
    ///
    /// let weight = Tensor::zeros((3, 2), DType::F32, &Device::Cpu)?;
    /// let mut model = candle_nn::Linear::new(weight, None).to_lora(&LoraConfig::new(1))?;
    /// model.add_adapter("french", &LoraConfig::new(2))?;
    /// assert_eq!(model.adapter_names(), ["default", "french"]);
    /// assert_eq!(model.active_adapters(), ["default"]);
    /// model.set_active(&["french"])?;
    /// assert_eq!(model.trainable_vars().iter().map(|var| var.elem_count()).sum::<usize>(), 10);
    /// # Ok::<(), lora::Error>(())
    /// ```
    ///
    /// # Errors
    /// A name that is taken, or [not a valid adapter name](crate::peft::check_name); a merged model; a
    /// configuration with `recompute`, a tensor that is a field of the model and is or would be
    /// trained, and those of [`to_lora`](LoraModel::to_lora); the model is then as it was.
    fn add_adapter(&mut self, name: &str, config: &LoraConfig) -> Result<()> {
        manage::add(self, name, config, Values::Fresh)
    }

    /// As [`add_adapter`](Self::add_adapter), with what [`calibrate`](LoraModel::calibrate) found of
    /// the base model for the same configuration.
    ///
    /// # Errors
    /// Those of [`add_adapter`](Self::add_adapter), and a layer that was not calibrated.
    fn add_adapter_calibrated(
        &mut self,
        name: &str,
        config: &LoraConfig,
        calibrated: &Calibrated,
    ) -> Result<()> {
        let config = calibrated.config(config);
        manage::add(self, name, &config, Values::Calibrated(calibrated))
    }

    /// Adds one adapter that is made of others, each with a weight: PEFT's
    /// `add_weighted_adapter`. Its scaling is 1; it neither acts nor is trained until
    /// [`set_active`](Self::set_active) says so. Layers that only some of the adapters have are
    /// made of those.
    ///
    /// PEFT takes over rsLoRA and the initial values of the first adapter. The result is then wrong by
    /// √r, or the base changes again. Here the scaling is 1 in any case and the base stays. An adapter
    /// of a residual base is first converted to an adapter for the original weights, which doubles its
    /// rank.
    ///
    /// # Errors
    /// Unknown names, a new name that is taken, weights that are not finite, options that do not
    /// fit, adapters that train parameters of the base's own, a merged model; the model is then as it
    /// was.
    fn add_weighted_adapter(
        &mut self,
        new: &str,
        adapters: &[(&str, f64)],
        combination: Combination,
        options: &CombineOptions,
    ) -> Result<()> {
        manage::add_weighted(self, new, adapters, combination, options)
    }

    /// Makes these adapters act, in this order, and trains only these. Without any name the model
    /// computes what the base model does.
    ///
    /// An adapter that is trained again keeps its variables, so that an optimiser goes on with them.
    ///
    /// # Errors
    /// Unknown and doubled names, two adapters that each have a copy of the same layer's own
    /// parameters or train the same row of a vocabulary, a merged model; other than one name, if a tensor that is a field of the model is
    /// trained.
    fn set_active(&mut self, names: &[&str]) -> Result<()> {
        manage::set_active(self, names)
    }

    /// Trains an adapter, or freezes it, whether it acts or not. An adapter that is trained and does
    /// not act gets no gradient, which [`backward`](Self::backward) reports. An adapter that is trained
    /// again keeps its variables.
    ///
    /// # Errors
    /// A name that no adapter has.
    fn set_adapter_trainable(&mut self, name: &str, trainable: bool) -> Result<()> {
        manage::set_adapter_trainable(self, name, trainable)
    }

    /// Multiplies the scaling that an adapter's settings give, alpha / r, by this factor; 1 is as
    /// configured. It is not saved.
    ///
    /// # Errors
    /// A name that no adapter has, a factor that is not finite, an adapter that is merged.
    fn set_scale(&mut self, name: &str, factor: f64) -> Result<()> {
        manage::set_scale(self, name, factor)
    }

    /// Gives an adapter another name.
    ///
    /// # Errors
    /// An old name that no adapter has; a new name that is taken, or
    /// [not a valid adapter name](crate::peft::check_name).
    fn rename_adapter(&mut self, from: &str, to: &str) -> Result<()> {
        manage::rename(self, from, to)
    }

    /// Deletes an adapter, with everything that it trained. If no other adapter acted, none acts
    /// afterwards.
    ///
    /// # Errors
    /// A name that no adapter has, an adapter that is merged, and a trained tensor that is a field of
    /// the model.
    fn delete_adapter(&mut self, name: &str) -> Result<()> {
        manage::delete(self, name)
    }

    /// A view of the model in which no adapter acts. The view computes what the base model does, with
    /// the base's own biases, modules and rows. A base that [LoftQ](crate::Init::Loftq) quantised stays
    /// quantised. The view shares its tensors with this model, which stays as it is. This is PEFT's
    /// `disable_adapter()`; with [`to_base`](Self::to_base) it is `unload()`.
    ///
    /// # Errors
    /// If a tensor that is a field of the model is trained: its base value is not kept.
    fn disabled(&self) -> Result<Self> {
        manage::disabled(self)
    }

    /// A view of the model for one batch whose rows have an adapter each, or none. The view is in eval
    /// mode and shares its tensors with this model. Every adapted layer must see the batch as its first
    /// dimension. Where a row's adapter has no part in a layer, the row gets the base layer's result. An
    /// expert of [`models`](crate::models) computes each token with the adapter of its row.
    ///
    /// # Errors
    /// Unknown names, no rows, a merged model, an adapter that trains a layer in full which takes no
    /// adapters, such as a norm, and a trained tensor that is a field of the model. The forward pass
    /// fails on another number of rows, and at an adapted [`Weight`](crate::layers::Weight).
    fn for_rows(&self, rows: &[Option<&str>]) -> Result<Self> {
        manage::for_rows(self, rows)
    }

    /// Adds the active adapters to the weights, so that the forward pass costs what the base model's
    /// does. All layers are merged or none. An adapter that is merged already stays merged and is not
    /// added twice. A quantised weight is dequantised for that, one layer at a time, and the sum quantised
    /// again, to the same type; [`merge_in_full`](Self::merge_in_full) keeps the sum itself.
    ///
    /// # Errors
    /// Names the layer whose merged weight is not finite, or that has no bias while its adapter has
    /// one on B; the model is then as it was.
    fn merge(&mut self) -> Result<()> {
        manage::merge(self)
    }

    /// As [`merge`](Self::merge), with merged weights in full precision where the base's are quantised:
    /// nothing is quantised again. Each is the sum of the dequantised weight and the update, rounded once to
    /// the dtype that the model computes in, which [`to_dtype`](Self::to_dtype) chooses. These weights take
    /// the memory that they take in a base that is not quantised; a layer without an adapter keeps its
    /// blocks. [`to_base`](Self::to_base) gives the base model of these weights,
    /// [`unmerge`](Self::unmerge) puts the very blocks back.
    ///
    /// ```
    /// use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
    /// use candle_core::{DType, Device, Tensor};
    /// use lora::layers::QLinear;
    /// use lora::{LoraConfig, LoraModel, LoraModule};
    /// use std::sync::Arc;
    ///
    /// let weight = Tensor::ones((3, 64), DType::F32, &Device::Cpu)?;
    /// let weight = Arc::new(QTensor::quantize(&weight, GgmlDType::Q4_0)?);
    /// let mut model = QLinear::new(weight, None)?.to_lora(&LoraConfig::new(2))?;
    /// model.merge_in_full()?;
    /// assert!(matches!(model.to_base()?.weight(), QMatMul::Tensor(_)));
    /// # Ok::<(), lora::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`merge`](Self::merge).
    fn merge_in_full(&mut self) -> Result<()> {
        manage::merge_in_full(self)
    }

    /// Takes the adapters out of the weights again: the very tensors from before come back.
    ///
    /// # Errors
    /// None: the result is for symmetry with [`merge`](Self::merge).
    fn unmerge(&mut self) -> Result<()> {
        manage::unmerge(self);
        Ok(())
    }

    /// Adds these adapters to the weights, active or not, in this order; as [`merge`](Self::merge)
    /// otherwise. Other active adapters go on acting beside the merged weights. Parameters that an
    /// adapter trains in full, such as biases, are in place only while the adapter is active.
    ///
    /// # Errors
    /// Names that no adapter has, adapters that train the same row of a vocabulary, and those of
    /// [`merge`](Self::merge).
    fn merge_adapters(&mut self, names: &[&str]) -> Result<()> {
        manage::merge_adapters(self, names)
    }

    /// Takes these adapters out of the weights again. The others stay merged: they are merged anew
    /// into the very tensors from before.
    ///
    /// # Errors
    /// Names that no adapter has, and those of [`merge`](Self::merge).
    fn unmerge_adapters(&mut self, names: &[&str]) -> Result<()> {
        manage::unmerge_adapters(self, names)
    }

    /// The names of the merged adapters.
    fn merged_adapters(&self) -> Vec<String> {
        manage::merged(self)
    }

    /// True if any layer is merged.
    fn is_merged(&self) -> bool {
        manage::is_merged(self)
    }

    /// Saves the adapters in PEFT's format: low-rank matrices, trained biases and rows, fully trained
    /// modules. The adapter `default` goes into the directory itself and any other into a
    /// sub-directory of its name, as in PEFT; a lone adapter goes into the directory itself whatever
    /// its name. A merged model is saved as well. See [`lora::peft`](crate::peft).
    ///
    /// An adapter of a residual base ([`Init::changes_base`], LoftQ apart) is
    /// written for the original base, with twice the rank. What [`set_scale`](Self::set_scale) said is
    /// not written.
    ///
    /// [`Init::changes_base`]: crate::Init::changes_base
    ///
    /// The directory is made if need be; files in it are replaced as a whole or not at all. Where
    /// layers differ in their dropout, the most common one is written: the format holds one.
    ///
    /// # Errors
    /// If a value is not finite, PEFT's format cannot express the model, or the directory cannot be
    /// written.
    fn save_adapter(&self, dir: impl AsRef<Path>) -> Result<()> {
        peft::save_all(self, dir.as_ref(), &SaveOptions::default())
    }

    /// Saves adapters as [`save_adapter`](Self::save_adapter) does, with the name of the base model
    /// and its task, or only some of them.
    ///
    /// # Errors
    /// Those of [`save_adapter`](Self::save_adapter), a name that no adapter has, and a head that
    /// PEFT would look for because of the task and that is not trained.
    fn save_adapter_with(&self, dir: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        peft::save_all(self, dir.as_ref(), options)
    }

    /// Loads an adapter into the one that acts, which must have the same form. Values are converted
    /// to the dtypes that the model has; variables keep their identity, so an optimiser goes on
    /// with them. `dir` is a path, or an [`AdapterDir`] that says how to read what the files leave
    /// open.
    ///
    /// # Errors
    /// Lists everything missing, unexpected, of another shape, not finite, and every setting in
    /// which the file and the model disagree; the model is then as it was. A merged model, one of
    /// which not exactly one adapter acts, and a raw adapter of PiSSA, OLoRA and their like are
    /// refused too.
    fn load_adapter(&mut self, dir: impl Into<AdapterDir>) -> Result<()> {
        peft::load(self, dir.into())
    }

    /// Adds the adapter of a directory under this name. It does not act and is not trained until
    /// [`set_active`](Self::set_active) says so.
    ///
    /// # Errors
    /// Those of [`add_adapter`](Self::add_adapter) and of [`load_adapter`](Self::load_adapter).
    fn load_adapter_as(&mut self, name: &str, dir: impl Into<AdapterDir>) -> Result<()> {
        peft::add(self, name, dir.into())
    }

    /// Replaces the adapter of this name by the adapter of a directory, which may have other targets,
    /// ranks and settings. The new adapter acts, and is trained, if the old one did. Its parameters are
    /// new variables: make the optimiser after this call.
    ///
    /// # Errors
    /// Those of [`delete_adapter`](Self::delete_adapter) and of
    /// [`load_adapter_as`](Self::load_adapter_as); the model is then as it was.
    fn hot_swap(&mut self, name: &str, dir: impl Into<AdapterDir>) -> Result<()> {
        peft::swap(self, name, dir.into())
    }

    /// Never callable: says in the compiler's message what a LoRA model has in place of
    /// [`LoraModel::to_lora`].
    #[doc(hidden)]
    fn to_lora(&mut self, _: &LoraConfig) -> Result<Self>
    where
        Self: WithoutAdapter,
    {
        Ok(self.clone())
    }
}

/// What has no adapter yet. No type is one: see [`LoraModule::to_lora`].
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is a LoRA model already",
    label = "converted before",
    note = "`add_adapter` gives the model another adapter; `to_lora` is for its base: see `to_base`"
)]
pub trait WithoutAdapter {}
