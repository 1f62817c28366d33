//! [`Builder`]: the walk over a base model that builds its LoRA model.

use super::{Attach, Values};
use crate::adapter::{Access, Adapters};
use crate::config::Mark;
use crate::config::selection::Selection;
use crate::manage;
use crate::path::Path;
use crate::traits::{each_layer, each_layer_mut, try_each_layer_mut};
use crate::{Error, Layer, Lora, LoraConfig, LoraModel, LoraModule, Result, WithLora};
use candle_core::{Device, Tensor, TensorId};
use std::collections::HashMap;

/// The walk over a base model that builds its LoRA model, handed to [`LoraModel::adapt`].
///
/// The builder knows the configuration, the path that the walk has reached, and the marks of the
/// attributes above.
///
/// ```
/// use candle_nn::Linear;
/// use lora::{Builder, Lora, Mark, Result};
///
/// struct Gated { gate: Linear, up: Linear }
/// struct LoraGated { gate: Lora<Linear>, up: Lora<Linear> }
///
/// impl Gated {
///     fn adapt(&self, cx: &mut Builder<'_>) -> Result<LoraGated> {
///         Ok(LoraGated {
///             gate: cx.field("gate_proj", &self.gate)?,
///             up: cx.marked("up_proj", Mark::rank(), &self.up)?,
///         })
///     }
/// }
/// ```
pub struct Builder<'a> {
    config: &'a LoraConfig,
    selection: Selection<'a>,
    path: Path,
    mark: Option<Mark>,
    /// The path of each layer so far, with the mark above it.
    marks: HashMap<String, Option<Mark>>,
    /// The parts that `recompute` may name.
    recomputable: Vec<String>,
    problems: Vec<String>,
    /// Base tensors by identity, so that tied weights stay tied.
    frozen: HashMap<TensorId, Tensor>,
    devices: Vec<Device>,
}

/// A model that was walked once: its LoRA type, all frozen, and what the walk found. An adapter is
/// attached to that, or none.
pub(crate) struct Conversion<'a, L> {
    builder: Builder<'a>,
    lora: L,
}

impl<'a, L: LoraModule> Conversion<'a, L> {
    /// Walks a base model, with the configuration of the adapter that is to be attached.
    pub(crate) fn of(model: &L::Base, config: &'a LoraConfig) -> Result<Self> {
        config.validate()?;
        let mut builder = Builder::new(config, Selection::new(config)?);
        let lora = model.adapt(&mut builder)?;
        Ok(Self { builder, lora })
    }

    /// The model without an adapter.
    pub(crate) fn frozen(&self) -> &L {
        &self.lora
    }

    /// The model without an adapter, which may be changed.
    pub(crate) fn frozen_mut(&mut self) -> &mut L {
        &mut self.lora
    }

    /// The same walk, with other settings for the adapter that is to be attached. What the walk
    /// itself reads of them must be the same.
    pub(crate) fn with_settings(mut self, config: &'a LoraConfig) -> Result<Self> {
        self.builder.config = config;
        self.builder.selection = Selection::new(config)?;
        Ok(self)
    }

    /// The model without an adapter, if nothing stands in its way.
    fn finish(self) -> Result<L> {
        match self.builder.problems.is_empty() {
            true => Ok(self.lora),
            false => Err(Error::Config(self.builder.problems)),
        }
    }

    /// The model with an adapter of this name and these values, which is active.
    pub(crate) fn attach(self, name: &str, values: Values<'_>) -> Result<L> {
        let Self { builder, mut lora } = self;
        let mut marks = builder.marks;
        if marks.contains_key("") && is_layer(&lora) {
            // Converted on its own, a layer is its own target, for adapters that are added later, too.
            marks = HashMap::from([(String::new(), Some(Mark::rank()))]);
            each_layer_mut(&mut lora, |_, layer| {
                if let Some(copies) = layer.copies_mut(Access::new()) {
                    copies.mark = Some(Mark::rank());
                }
            });
        }
        let mut attach = Attach::new(name, builder.config, builder.selection, values);
        try_each_layer_mut(&mut lora, |path, layer| match marks.get(path) {
            Some(mark) => attach.marked_layer(path, *mark, layer),
            // Not from this conversion: a model that is its own LoRA model brings its adapters.
            None => Ok(()),
        })?;
        manage::activate(&mut lora, &[name])?;
        let ties = manage::ties(&lora, name, builder.config, values);
        attach.problems.extend(ties);
        attach.problems.extend(builder.problems);
        attach.finish(builder.recomputable)?;
        Ok(lora)
    }
}

impl<'a> Builder<'a> {
    /// The LoRA model with one adapter of this name and these values.
    pub(crate) fn convert<M: LoraModel>(
        model: &M,
        name: &str,
        config: &'a LoraConfig,
        values: Values<'_>,
    ) -> Result<Lora<M>> {
        Conversion::of(model, config)?.attach(name, values)
    }

    /// The LoRA model without any adapter.
    pub(crate) fn freeze<M: LoraModel>(model: &M) -> Result<Lora<M>> {
        Conversion::of(model, &LoraConfig::default())?.finish()
    }

    fn new(config: &'a LoraConfig, selection: Selection<'a>) -> Self {
        Self {
            config,
            selection,
            path: Path::default(),
            mark: None,
            marks: HashMap::new(),
            recomputable: Vec::new(),
            problems: Vec::new(),
            frozen: HashMap::new(),
            devices: vec![Device::Cpu],
        }
    }

    /// Converts a part of the model under this name. The marks from above go on.
    ///
    /// # Errors
    /// Those of the part's [`adapt`](LoraModel::adapt).
    pub fn field<M: LoraModel>(&mut self, name: &str, part: &M) -> Result<M::Lora> {
        self.at(name, self.mark, |cx| part.adapt(cx))
    }

    /// Converts a part of the model under this name, with the mark of its attribute.
    ///
    /// # Errors
    /// Those of the part's [`adapt`](LoraModel::adapt).
    pub fn marked<M: LoraModel>(&mut self, name: &str, mark: Mark, part: &M) -> Result<M::Lora> {
        self.at(name, self.stronger(mark), |cx| part.adapt(cx))
    }

    /// Converts a part of the model at the present path, with the mark of its attribute: for
    /// `#[lora(flatten, ..)]`. Without a mark, call [`adapt`](LoraModel::adapt) itself.
    ///
    /// # Errors
    /// Those of the part's [`adapt`](LoraModel::adapt).
    pub fn flattened<M: LoraModel>(&mut self, mark: Mark, part: &M) -> Result<M::Lora> {
        let below = self.stronger(mark);
        let above = std::mem::replace(&mut self.mark, below);
        let result = part.adapt(self);
        self.mark = above;
        result
    }

    /// A model's own configuration together with that of the conversion: for `#[lora(config)]`.
    pub fn config<C: Clone>(&self, base: &C) -> WithLora<C> {
        WithLora::new(base.clone(), self.config.clone())
    }

    /// What is below a fully trained module is trained in full, whatever its own mark says.
    fn stronger(&self, mark: Mark) -> Option<Mark> {
        let is_trained = self.mark == Some(Mark::trainable());
        Some(if is_trained { Mark::trainable() } else { mark })
    }

    fn at<T>(
        &mut self,
        name: &str,
        mark: Option<Mark>,
        adapt: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let length = self.path.push(name);
        let above = std::mem::replace(&mut self.mark, mark);
        let result = adapt(self);
        self.path.truncate(length);
        self.mark = above;
        result
    }

    /// Registers the layer at the present path. What is to be trained of it, an adapter or copies of
    /// its own parameters, comes once the whole model was walked. Called once by every layer, which
    /// comes with its parameters frozen, see [`parameter`](Self::parameter).
    ///
    /// # Errors
    /// None at present.
    pub fn layer<L: Layer>(&mut self, mut layer: L) -> Result<L> {
        let path = self.path.as_str().to_string();
        if let Some(copies) = layer.copies_mut(Access::new()) {
            copies.mark = self.mark;
        }
        if self.marks.insert(path.clone(), self.mark).is_some() {
            let problem =
                format!("two layers are called `{path}`; `#[lora(name = \"..\")]` renames one");
            self.problems.push(problem);
        }
        Ok(layer)
    }

    /// A tensor of the base model as a frozen parameter: shared, not copied. Tied tensors stay
    /// tied.
    pub fn parameter(&mut self, tensor: &Tensor) -> Tensor {
        let device = tensor.device();
        if !self.devices.iter().any(|known| known.same_device(device)) {
            self.devices.push(device.clone());
        }
        let frozen = self.frozen.entry(tensor.id());
        frozen.or_insert_with(|| tensor.detach()).clone()
    }

    /// The room for the adapters of the layer at the present path; none is there yet.
    pub fn adapters(&self) -> Adapters {
        Adapters::new(self.path.as_str())
    }

    /// Whether the part at the present path is to be computed anew in the backward pass.
    pub(crate) fn recomputes(&mut self) -> Result<bool> {
        self.recomputable.push(self.path.as_str().to_string());
        self.selection.recomputes(self.path.as_str())
    }

    /// The CPU, and the devices of the tensors met so far.
    pub(crate) fn devices(&self) -> &[Device] {
        &self.devices
    }

    pub(crate) fn path(&self) -> &str {
        self.path.as_str()
    }
}

/// True for a model that is a single layer.
fn is_layer<M: LoraModule>(model: &M) -> bool {
    let (mut lone, mut count) = (false, 0);
    each_layer(model, |path, layer| {
        lone = path.is_empty() && layer.adapted().is_some();
        count += 1;
    });
    lone && count == 1
}
