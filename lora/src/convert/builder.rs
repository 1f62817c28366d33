//! [`Builder`]: the walk that converts a base model, deciding for each layer what is trained.

use super::Attach;
use crate::adapter::{DEFAULT_ADAPTER, Mark};
use crate::manage;
use crate::path::Path;
use crate::traits::each_layer;
use crate::{Calibrated, Error, Layer, Lora, LoraConfig, LoraModel, LoraModule, Result, WithLora};
use candle_core::{Device, Tensor, TensorId};
use std::collections::{HashMap, HashSet};

/// The walk over a base model that builds its LoRA model, handed to [`LoraModel::adapt`].
///
/// It knows the path it has reached, the configuration, and what the attributes on the way said.
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
    path: Path,
    mark: Option<Mark>,
    /// What gives the layers their adapters; `None` where the model only changes its type.
    attach: Option<Attach<'a>>,
    paths: HashSet<String>,
    /// The parts that `recompute` may name.
    recomputable: Vec<String>,
    problems: Vec<String>,
    /// Base tensors by identity, so that tied weights stay tied.
    frozen: HashMap<TensorId, Tensor>,
    devices: Vec<Device>,
}

impl<'a> Builder<'a> {
    pub(crate) fn convert<M: LoraModel>(model: &M, config: &'a LoraConfig) -> Result<Lora<M>> {
        Self::convert_as(model, DEFAULT_ADAPTER, config, false, None)
    }

    /// Converts, with an adapter of this name. If it comes with its values (`for_values`), the
    /// configuration alone decides, not the model's attributes.
    pub(crate) fn convert_as<M: LoraModel>(
        model: &M,
        name: &'a str,
        config: &'a LoraConfig,
        for_values: bool,
        calibrated: Option<&'a Calibrated>,
    ) -> Result<Lora<M>> {
        let attach = Attach::new(name, config, for_values, calibrated)?;
        let mut builder = Self::new(config, Some(attach));
        if is_layer(&Self::freeze(model)?) {
            builder.mark = Some(Mark::rank());
        }
        let mut lora = model.adapt(&mut builder)?;
        manage::activate(&mut lora, &[name])?;
        if let Some(attach) = &mut builder.attach {
            let ties = manage::ties(&lora, name, config, for_values);
            attach.problems.extend(ties);
        }
        builder.finish()?;
        Ok(lora)
    }

    pub(crate) fn freeze<M: LoraModel>(model: &M) -> Result<Lora<M>> {
        let config = LoraConfig::default();
        let mut builder = Builder::new(&config, None);
        let lora = model.adapt(&mut builder)?;
        builder.finish()?;
        Ok(lora)
    }

    fn new(config: &'a LoraConfig, attach: Option<Attach<'a>>) -> Self {
        Self {
            config,
            path: Path::default(),
            mark: None,
            attach,
            paths: HashSet::new(),
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

    /// Registers the layer at the present path and gives it what is to be trained of it: an
    /// adapter, or copies of its own parameters. Called once by every layer, which comes with its
    /// parameters frozen, see [`parameter`](Self::parameter).
    ///
    /// # Errors
    /// If a pattern takes too long to match, or an adapter cannot be made.
    pub fn layer<L: Layer>(&mut self, mut layer: L) -> Result<L> {
        let path = self.path.as_str().to_string();
        if let Some(copies) = layer.copies_mut() {
            copies.mark = self.mark;
        }
        if let Some(attach) = &mut self.attach {
            attach.marked_layer(&path, self.mark, &mut layer)?;
        }
        if !self.paths.insert(path.clone()) {
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

    /// Whether the part at the present path is to be computed anew in the backward pass.
    pub(crate) fn recomputes(&mut self) -> Result<bool> {
        self.recomputable.push(self.path.as_str().to_string());
        match &mut self.attach {
            Some(attach) => attach.selection.recomputes(self.path.as_str()),
            None => Ok(false),
        }
    }

    /// The CPU, and the devices of the tensors met so far.
    pub(crate) fn devices(&self) -> &[Device] {
        &self.devices
    }

    pub(crate) fn path(&self) -> &str {
        self.path.as_str()
    }

    /// The end of the walk: nothing stood in the way.
    fn finish(self) -> Result<()> {
        match self.attach {
            Some(mut attach) => {
                attach.problems.extend(self.problems);
                attach.finish(self.recomputable)
            }
            None if self.problems.is_empty() => Ok(()),
            None => Err(Error::Config(self.problems)),
        }
    }
}

/// True for a model that is a single layer: converted on its own, it is its own target.
fn is_layer<M: LoraModule>(model: &M) -> bool {
    let (mut lone, mut count) = (false, 0);
    each_layer(model, |path, layer| {
        lone = path.is_empty() && layer.adapted().is_some();
        count += 1;
    });
    lone && count == 1
}
