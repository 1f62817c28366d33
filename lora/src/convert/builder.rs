//! [`Builder`]: the walk over a base model that builds its LoRA model.

use super::paths::{Found, Paths};
use super::quantise::quantise;
use super::{Attach, Values};
use crate::adapter::places::{PLACED, RECORDED};
use crate::adapter::{Access, Adapters, quantised};
use crate::config::selection::Selection;
use crate::config::{Kind, Mark};
use crate::manage;
use crate::path::Path;
use crate::traits::{Tuples, each_layer, each_layer_mut, try_each_layer_mut};
use crate::{Error, Layer, Lora, LoraConfig, LoraModel, LoraModule, Result, WithLora};
use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor, TensorId};
use std::collections::HashMap;
use std::sync::Arc;

/// The walk over a base model that builds its LoRA model, handed to [`LoraModel::adapt`].
///
/// The builder knows the configuration, the path that the walk has reached, and the mark that the
/// attributes above this path set.
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
    /// The path of each layer met so far, with the mark that holds for the layer.
    marks: HashMap<String, Option<Mark>>,
    /// The layers met so far, with the names that their tensors have in a checkpoint.
    found: Vec<Found>,
    /// The recorded names of the tensors since the last layer.
    recorded: Vec<Arc<str>>,
    /// The next field is named by its attribute.
    is_named: bool,
    /// How much of the path lies above the first field that its attribute names.
    above_name: Option<usize>,
    /// The parts that `recompute` may name.
    recomputable: Vec<String>,
    problems: Vec<String>,
    /// The frozen tensor of each base tensor, by the base tensor's identity: tied tensors stay
    /// tied.
    frozen: HashMap<TensorId, Tensor>,
    /// What stands for each quantised weight, by the blocks' place in memory.
    stand_ins: HashMap<(*const QTensor, DType), Tensor>,
    /// See [`devices`](Self::devices).
    devices: Vec<Device>,
}

/// A converted model with all parameters frozen, and what the walk found. [`attach`](Self::attach)
/// adds an adapter to this model, [`finish`](Self::finish) adds none.
pub(crate) struct Conversion<'a, L> {
    builder: Builder<'a>,
    lora: L,
    /// The weights in full precision of the layers that the conversion quantised, by path.
    originals: HashMap<String, Tensor>,
}

impl<'a, L: LoraModule> Conversion<'a, L> {
    /// Walks a base model, with the configuration of the adapter that will be attached.
    pub(crate) fn of(model: &L::Base, config: &'a LoraConfig) -> Result<Self> {
        config.validate()?;
        let mut builder = Builder::new(config, Selection::new(config)?);
        let mut lora = model.adapt(&mut builder)?;
        builder.place(&mut lora)?;
        let Builder {
            selection,
            marks,
            problems,
            ..
        } = &mut builder;
        let quantised = quantise(&mut lora, config, selection, marks)?;
        problems.extend(quantised.problems);
        Ok(Self {
            builder,
            lora,
            originals: quantised.originals,
        })
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

    /// The model without an adapter, unless the walk found problems.
    fn finish(self) -> Result<L> {
        match self.builder.problems.is_empty() {
            true => Ok(self.lora),
            false => Err(Error::Config(self.builder.problems)),
        }
    }

    /// The model with one active adapter of this name and these values.
    pub(crate) fn attach(self, name: &str, values: Values<'_>) -> Result<L> {
        let Self {
            builder,
            mut lora,
            originals,
        } = self;
        let mut marks = builder.marks;
        if marks.contains_key("") && is_layer(&lora) {
            // A layer that is converted on its own is the target, for adapters added later, too: no
            // field above the layer could carry its attribute.
            marks = HashMap::from([(String::new(), Some(Mark::rank()))]);
            each_layer_mut(&mut lora, |_, layer| {
                if let Some(copies) = layer.copies_mut(Access::new()) {
                    copies.mark = Some(Mark::rank());
                }
            });
        }
        let attach = Attach::new(name, builder.config, builder.selection, values);
        let mut attach = attach.with_originals(originals);
        try_each_layer_mut(&mut lora, |path, layer| match marks.get(path) {
            Some(mark) => attach.marked_layer(path, *mark, layer),
            // Not from this conversion: a part that is its own LoRA type brings its own adapters.
            None => Ok(()),
        })?;
        // Ties come after the walk: a head may be met before the embedding that shares its weight.
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
            found: Vec::new(),
            recorded: Vec::new(),
            is_named: false,
            above_name: None,
            recomputable: Vec::new(),
            problems: Vec::new(),
            frozen: HashMap::new(),
            stand_ins: HashMap::new(),
            devices: vec![Device::Cpu],
        }
    }

    /// Converts a part of the model under this name. The part inherits the mark from above.
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

    /// Converts the tuples of a field whose parts have attributes, each by `convert`, at the tuple's
    /// path.
    ///
    /// # Errors
    /// Those of `convert`.
    #[doc(hidden)]
    pub fn parts<T: Tuples, L>(
        &mut self,
        name: &str,
        field: &T,
        convert: impl Fn(&mut Self, &T::Tuple) -> Result<L>,
    ) -> Result<T::With<L>> {
        self.at(name, self.mark, |cx| {
            field.map("", &mut |path, tuple| {
                cx.at(path, cx.mark, |cx| convert(cx, tuple))
            })
        })
    }

    /// A model's own configuration together with this conversion's: for `#[lora(config)]`.
    pub fn config<C: Clone>(&self, base: &C) -> WithLora<C> {
        WithLora::new(base.clone(), self.config.clone())
    }

    /// The mark that holds below. A part of a module that is trained in full is trained in full,
    /// whatever the part's own mark says.
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
        let above_name = self.above_name;
        if std::mem::take(&mut self.is_named) {
            self.above_name = above_name.or(Some(length));
        }
        let result = adapt(self);
        self.path.truncate(length);
        self.mark = above;
        self.above_name = above_name;
        result
    }

    /// Says that the next field has its name from an attribute, `#[lora(name = "..")]`. Such a name
    /// wins over those that [`Names`](crate::Names) recorded.
    pub fn named(&mut self) -> &mut Self {
        self.is_named = true;
        self
    }

    /// Registers the layer at the present path. Every layer calls this once, with its parameters
    /// frozen by [`parameter`](Self::parameter). Its adapter, or copies of its own parameters, are
    /// added after the walk over the whole model.
    ///
    /// # Errors
    /// At present, none.
    pub fn layer<L: Layer>(&mut self, mut layer: L) -> Result<L> {
        let path = self.path.as_str().to_string();
        if let Some(copies) = layer.copies_mut(Access::new()) {
            copies.mark = self.mark;
        }
        self.found.push(Found {
            path: path.clone(),
            names: std::mem::take(&mut self.recorded),
            is_bare: layer
                .params()
                .first()
                .is_some_and(|param| param.name.is_empty()),
            above_name: self.above_name,
        });
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
        self.recorded.extend(RECORDED.name_of(tensor));
        let frozen = self.frozen.entry(tensor.id());
        frozen.or_insert_with(|| tensor.detach()).clone()
    }

    /// What stands for a base model's quantised weight. Layers that share the blocks share this tensor,
    /// too.
    pub(crate) fn quantised(&mut self, blocks: &Arc<QTensor>, dtype: DType) -> Result<Tensor> {
        let (device, id) = (blocks.device(), (Arc::as_ptr(blocks), dtype));
        if !self.devices.iter().any(|known| known.same_device(&device)) {
            self.devices.push(device);
        }
        if let Some(known) = self.stand_ins.get(&id) {
            return Ok(known.clone());
        }
        let stand_in = quantised::stand_in(blocks, dtype)?;
        self.stand_ins.insert(id, stand_in.clone());
        Ok(stand_in)
    }

    /// Gives each layer the path that the names of its tensors say, if any were recorded.
    fn place<L: LoraModule>(&mut self, lora: &mut L) -> Result<()> {
        let Some(paths) = self.paths() else {
            return Ok(());
        };
        let places = PLACED.owner();
        let mut has_keeper = false;
        each_layer(lora, |_, layer| has_keeper |= layer.copies().is_some());
        let mut marks = HashMap::new();
        try_each_layer_mut(lora, |path, layer| {
            let Some(mark) = self.marks.remove(path) else {
                return Ok(());
            };
            let mut place: Arc<str> = paths.layer(path).into();
            if let Some(copies) = layer.copies_mut(Access::new()) {
                copies.path = Some(place.clone());
                copies.places = Some(places.clone());
            } else if layer.kind() == Kind::Tensor && has_keeper {
                for param in layer.params_mut(Access::new()) {
                    // Other models may hold the tensor: this one gets a tensor of its own, which
                    // shares the values.
                    let before = param.tensor.id();
                    *param.tensor = param.tensor.unsqueeze(0)?.squeeze(0)?;
                    places.put(param.tensor, place.clone());
                    RECORDED.replace(before, param.tensor);
                }
            } else {
                place = path.into();
            }
            if let Some(adapted) = layer.adapted_mut() {
                adapted.parts_mut(Access::new()).adapters.path = place.to_string();
            }
            if marks.insert(place.to_string(), mark).is_some() {
                let problem = format!("two layers are called `{place}` by the checkpoint's names");
                self.problems.push(problem);
            }
            Ok(())
        })?;
        self.marks = marks;
        Ok(())
    }

    /// The paths by the names that the layers' tensors have in a checkpoint, if any were recorded. A
    /// layer that is converted on its own has no path.
    fn paths(&self) -> Option<Paths> {
        let is_recorded = self.found.iter().any(|layer| !layer.names.is_empty());
        let is_lone = self.found.iter().any(|layer| layer.path.is_empty());
        (is_recorded && !is_lone).then(|| Paths::new(&self.found))
    }

    /// Room for the adapters of the layer at the present path, still without any.
    pub fn adapters(&self) -> Adapters {
        Adapters::new(self.path.as_str())
    }

    /// Whether the part at the present path, which was just converted, is to be computed anew in the
    /// backward pass.
    pub(crate) fn recomputes(&mut self) -> Result<bool> {
        let path = match self.paths() {
            Some(paths) => paths.part(self.path.as_str()),
            None => self.path.as_str().to_string(),
        };
        self.recomputable.push(path.clone());
        self.selection.recomputes(&path)
    }

    /// The CPU, and the devices of the tensors met so far.
    pub(crate) fn devices(&self) -> &[Device] {
        &self.devices
    }

    pub(crate) fn path(&self) -> &str {
        self.path.as_str()
    }
}

/// True for a model that is a single layer and may carry adapters.
fn is_layer<M: LoraModule>(model: &M) -> bool {
    let (mut lone, mut count) = (false, 0);
    each_layer(model, |path, layer| {
        lone = path.is_empty() && layer.adapted().is_some();
        count += 1;
    });
    lone && count == 1
}
