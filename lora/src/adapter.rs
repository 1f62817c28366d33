//! The low-rank side of a layer: its adapters, what they add to the weight, merging.

use crate::{Error, Layer, Param, Part, Result, Role, ops};
use candle_core::{DType, Tensor};
use std::fmt::Debug;

/// The name of the adapter that conversion creates, as in PEFT.
pub const DEFAULT_ADAPTER: &str = "default";

/// One low-rank update of a layer's weight: W + s·B·A.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub(crate) name: String,
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    pub(crate) settings: Settings,
}

/// Size and strength of one adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Rank r.
    pub rank: usize,
    /// Numerator of the scaling.
    pub alpha: f64,
    /// The factor s of the update.
    pub scaling: f64,
    /// Probability that an input of the low-rank branch is dropped in training.
    pub dropout: f64,
}

impl Adapter {
    /// Its name, [`DEFAULT_ADAPTER`] for the one that conversion creates.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A, of shape (r, in) for a linear layer. The shapes of the others stand at each layer.
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// B, of shape (out, r) for a linear layer.
    pub fn b(&self) -> &Tensor {
        &self.b
    }

    /// Rank, alpha, scaling and dropout.
    pub fn settings(&self) -> Settings {
        self.settings
    }
}

/// The adapters of one layer, and its own weight while they are merged into it.
#[derive(Clone, Debug)]
pub struct Adapters {
    /// The layer's path in its model, for messages.
    pub(crate) path: String,
    pub(crate) list: Vec<Adapter>,
    /// The weight as it was before merging; `Some` exactly while merged.
    pub(crate) original: Option<Tensor>,
    pub(crate) training: bool,
}

impl Adapters {
    pub(crate) fn new(path: &str, adapter: Option<Adapter>) -> Self {
        Self {
            path: path.into(),
            list: adapter.into_iter().collect(),
            original: None,
            training: true,
        }
    }

    /// The adapters, in the order in which they apply.
    pub fn iter(&self) -> std::slice::Iter<'_, Adapter> {
        self.list.iter()
    }

    /// True if the layer has no adapter.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// True while the adapters are merged into the weight.
    pub fn is_merged(&self) -> bool {
        self.original.is_some()
    }

    /// The tensor as the layer's forward pass is to see it.
    pub(crate) fn seen(&self, tensor: &Tensor) -> Tensor {
        seen(tensor, self.training)
    }

    /// The updates that the forward pass is to compute: none while merged.
    pub(crate) fn updates(&self) -> Vec<ops::UpdateParts> {
        if self.is_merged() {
            return Vec::new();
        }
        let update = |adapter: &Adapter| ops::UpdateParts {
            a: self.seen(&adapter.a),
            b: self.seen(&adapter.b),
            scaling: adapter.settings.scaling,
            dropout: if self.training {
                adapter.settings.dropout
            } else {
                0.0
            },
        };
        self.list.iter().map(update).collect()
    }

    /// The base result plus what each adapter adds: nothing while merged. See [`ops::add_updates`].
    pub(crate) fn add_to(
        &self,
        base: Tensor,
        xs: &Tensor,
        branch: impl Fn(&Tensor, &Tensor, &Tensor) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        ops::add_updates(base, xs, &self.updates(), branch)
    }
}

/// A layer that may carry adapters: weight, bias, adapters and how they change the weight.
///
/// Implemented by the four layer types; the walk reaches it through
/// [`Layer::adapted`](crate::Layer::adapted).
pub trait Adapted: Debug {
    /// The layer's kind, for example `Linear`.
    fn layer_kind(&self) -> &'static str;

    /// The weight (the merged one while merged), the bias and the adapters.
    fn parts(&self) -> (&Tensor, Option<&Tensor>, &Adapters);

    /// The weight (the merged one while merged), the bias and the adapters, to be changed.
    fn parts_mut(&mut self) -> (&mut Tensor, Option<&mut Tensor>, &mut Adapters);

    /// s·B·A in the shape of the merged weight, in the adapter's dtype.
    ///
    /// # Errors
    /// If candle cannot multiply on the device at hand.
    fn delta(&self, adapter: &Adapter) -> Result<Tensor>;

    /// The base weight in the shape of the merged one. They differ only for a grouped convolution.
    ///
    /// # Errors
    /// If candle cannot copy on the device at hand.
    fn widened(&self, weight: &Tensor) -> Result<Tensor> {
        Ok(weight.clone())
    }

    /// The name that PEFT gives a matrix of the adapter called `adapter`:
    /// `lora_A.default.weight`.
    fn part_name(&self, part: Part, adapter: &str) -> String {
        match part {
            Part::A => format!("lora_A.{adapter}.weight"),
            Part::B => format!("lora_B.{adapter}.weight"),
        }
    }

    /// Adds every adapter to the weight; the forward pass then costs what the base layer's does.
    ///
    /// The sum is taken in at least f32 and rounded once to the weight's dtype. The weight as it
    /// was is kept for [`unmerge_weight`](Self::unmerge_weight). Merging a merged layer does nothing.
    ///
    /// # Errors
    /// If the merged weight is not finite; the layer is then as it was.
    fn merge_weight(&mut self) -> Result<()> {
        let (_, _, adapters) = self.parts();
        if adapters.is_merged() || adapters.is_empty() {
            return Ok(());
        }
        let merged = self.merged_weight()?;
        let (weight, _, adapters) = self.parts_mut();
        adapters.original = Some(std::mem::replace(weight, merged));
        Ok(())
    }

    /// Takes the adapters out of the weight again: the very tensor from before comes back.
    fn unmerge_weight(&mut self) {
        let (weight, _, adapters) = self.parts_mut();
        if let Some(original) = adapters.original.take() {
            *weight = original;
        }
    }

    /// The weight with every adapter added, whether or not they are merged.
    ///
    /// # Errors
    /// If it is not finite.
    fn merged_weight(&self) -> Result<Tensor> {
        let (weight, _, adapters) = self.parts();
        if adapters.is_merged() || adapters.is_empty() {
            return Ok(weight.clone());
        }
        let wide = wider(weight.dtype(), DType::F32);
        let mut sum = self.widened(&weight.detach().to_dtype(wide)?)?;
        for adapter in adapters.iter() {
            sum = (sum + self.delta(adapter)?.detach().to_dtype(wide)?)?;
        }
        let merged = sum.to_dtype(weight.dtype())?;
        if !ops::is_finite(&merged)? {
            return Err(Error::layer(
                &adapters.path,
                "the merged weight is not finite; the adapter or the base weight holds NaN or \
                 infinity, or their sum overflows the weight's dtype",
            ));
        }
        Ok(merged)
    }

    /// Weight and bias for a base layer: merged, and out of reach of further training.
    ///
    /// # Errors
    /// If the merged weight is not finite.
    fn base_parts(&self) -> Result<(Tensor, Option<Tensor>)> {
        let (_, bias, _) = self.parts();
        Ok((
            release(&self.merged_weight()?)?,
            bias.map(release).transpose()?,
        ))
    }
}

/// A tensor as the forward pass is to see it: with its graph in training, without in eval.
pub(crate) fn seen(tensor: &Tensor, training: bool) -> Tensor {
    if training {
        tensor.clone()
    } else {
        tensor.detach()
    }
}

/// A parameter for a base layer: a frozen one is shared, a trained one copied, so that further
/// training does not reach it.
pub(crate) fn release(tensor: &Tensor) -> Result<Tensor> {
    let detached = tensor.detach();
    Ok(if tensor.is_variable() {
        detached.copy()?
    } else {
        detached
    })
}

impl<T: Adapted> Layer for T {
    fn kind(&self) -> &'static str {
        self.layer_kind()
    }

    fn params(&self) -> Vec<Param<&Tensor>> {
        let (weight, bias, adapters) = self.parts();
        let mut params = Param::weight_and_bias(weight, bias);
        for Adapter { name, a, b, .. } in &adapters.list {
            for (part, tensor) in [(Part::A, a), (Part::B, b)] {
                let name = self.part_name(part, name);
                params.push(Param::new(name, Role::Adapter(part), tensor));
            }
        }
        params
    }

    fn params_mut(&mut self) -> Vec<Param<&mut Tensor>> {
        let names = self
            .params()
            .into_iter()
            .map(|param| (param.name, param.role));
        let names: Vec<_> = names.collect();
        let (weight, bias, adapters) = self.parts_mut();
        let mut tensors = vec![weight];
        tensors.extend(bias);
        for Adapter { a, b, .. } in &mut adapters.list {
            tensors.extend([a, b]);
        }
        let params = names.into_iter().zip(tensors);
        let params = params.map(|((name, role), tensor)| Param::new(name, role, tensor));
        params.collect()
    }

    fn set_training(&mut self, training: bool) {
        self.parts_mut().2.training = training;
    }

    fn adapted(&self) -> Option<&dyn Adapted> {
        Some(self)
    }

    fn adapted_mut(&mut self) -> Option<&mut dyn Adapted> {
        Some(self)
    }
}

/// The dtype that holds the values of both floating-point dtypes.
pub(crate) fn wider(a: DType, b: DType) -> DType {
    match (a, b) {
        (a, b) if a == b => a,
        (DType::F64, _) | (_, DType::F64) => DType::F64,
        _ => DType::F32,
    }
}
