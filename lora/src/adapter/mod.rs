//! What an adapter holds at one layer, and what a layer that may carry adapters can do.

mod access;
mod adapted;
mod adapters;
pub(crate) mod copies;
pub(crate) mod dora;
mod layer;
mod linear;
pub(crate) mod merging;
mod name;
mod parked;
mod part;
pub(crate) mod places;
pub(crate) mod quantised;
pub(crate) mod reading;
mod recorder;
mod rows;
mod tie;
mod tokens;
pub(crate) mod update;
pub(crate) mod updates;

pub use access::Access;
pub(crate) use adapted::AdaptedMut;
pub use adapted::{Adapted, LayerParts, LayerPartsMut};
pub use adapters::Adapters;
pub(crate) use adapters::Merged;
pub use copies::Copies;
pub use layer::{Layer, Param, Role};
pub(crate) use linear::linear_parts;
pub use name::{DEFAULT_ADAPTER, check_name};
pub(crate) use parked::Parked;
pub use part::{LORA_WEIGHT_NAMES, Part};
pub(crate) use recorder::Recorder;
pub(crate) use rows::{Rows, by_rows};
pub(crate) use tie::Tie;
pub use tokens::Tokens;
pub use update::Form;

pub(crate) use crate::ops::wider;

use crate::config::Settings;
use crate::{Init, LoftqConfig, Result, init};
use candle_core::Tensor;

/// One low-rank update of a layer's weight: W + s·B·A.
///
/// With a magnitude m the update is DoRA's, <https://arxiv.org/abs/2402.09353>: m ⊙ V / ‖V‖ with
/// V = W + s·B·A. Each output has its own norm, which counts as a constant in the backward pass.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub(crate) name: String,
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    pub(crate) bias: Option<Tensor>,
    pub(crate) magnitude: Option<Tensor>,
    pub(crate) settings: Settings,
    /// The factor that multiplies the scaling at run time.
    pub(crate) scale: f64,
    /// B is not trained, as MiCA asks.
    pub(crate) keeps_b: bool,
    pub(crate) tie: Tie,
    pub(crate) parked: Parked,
    /// The initial value, if it left a residual base.
    pub(crate) start: Option<Init>,
    /// How LoftQ quantised the base, so that the adapter's file can say so.
    pub(crate) loftq: Option<LoftqConfig>,
    /// The initial A and B, if they left a residual base.
    pub(crate) initial: Option<(Tensor, Tensor)>,
}

impl Adapter {
    /// The adapter's name; [`DEFAULT_ADAPTER`] for the adapter that conversion creates.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A, of shape (r, in) for a linear layer. [`Form`] lists the shapes for other layers.
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// B, of shape (out, r) for a linear layer. [`Form`] lists the shapes for other layers.
    pub fn b(&self) -> &Tensor {
        &self.b
    }

    /// The bias of B, (out), with [`LoraConfig::lora_bias`](crate::LoraConfig::lora_bias).
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The magnitude of each output's weights, with
    /// [`LoraConfig::use_dora`](crate::LoraConfig::use_dora): (out), for a convolution
    /// (1, out, 1, ..), for an embedding (dim).
    pub fn magnitude(&self) -> Option<&Tensor> {
        self.magnitude.as_ref()
    }

    /// Rank, alpha, scaling and dropout.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// The update's present factor: the settings' scaling times the factor of
    /// [`set_scale`](crate::LoraModule::set_scale).
    pub fn scaling(&self) -> f64 {
        self.settings.scaling * self.scale
    }

    /// True if the layer shares its weight with an embedding, and this adapter is a view of the
    /// embedding's.
    pub fn is_tied(&self) -> bool {
        self.tie == Tie::Shared
    }

    /// The adapter's tensors, in the order of parameters.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (Part, &Tensor)> {
        let both = [(Part::A, &self.a), (Part::B, &self.b)];
        let bias = self.bias.as_ref().map(|bias| (Part::Bias, bias));
        let magnitude = self.magnitude.as_ref().map(|m| (Part::Magnitude, m));
        both.into_iter().chain(bias).chain(magnitude)
    }

    /// The same tensors, to be changed.
    pub(crate) fn tensors_mut(&mut self) -> impl Iterator<Item = (Part, &mut Tensor)> {
        let both = [(Part::A, &mut self.a), (Part::B, &mut self.b)];
        let bias = self.bias.as_mut().map(|bias| (Part::Bias, bias));
        let magnitude = self.magnitude.as_mut().map(|m| (Part::Magnitude, m));
        both.into_iter().chain(bias).chain(magnitude)
    }

    /// Those of the tensors that are no views of another layer's: at a head that shares the weight of
    /// an embedding, the magnitude alone. It has one for each output, the embedding one for each column.
    pub(crate) fn own_tensors(&self) -> impl Iterator<Item = (Part, &Tensor)> {
        let owns = self.owns();
        self.tensors().filter(move |(part, _)| owns(*part))
    }

    /// The same tensors, to be changed.
    pub(crate) fn own_tensors_mut(&mut self) -> impl Iterator<Item = (Part, &mut Tensor)> {
        let owns = self.owns();
        self.tensors_mut().filter(move |(part, _)| owns(*part))
    }

    fn owns(&self) -> impl Fn(Part) -> bool + use<> {
        let is_view = self.is_tied();
        move |part| !is_view || part == Part::Magnitude
    }

    /// The initial A and B, for conversion.
    pub(crate) fn started_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let initial = self.initial.as_mut().into_iter();
        initial.flat_map(|(a, b)| [a, b])
    }

    /// The adapter for the original base: A' = [A; A₀], B' = [B, −B₀], as PEFT converts on saving.
    /// An adapter without a residual base stays as it is.
    pub(crate) fn for_original(&self) -> Result<Self> {
        let Some((a, b)) = &self.initial else {
            return Ok(self.clone());
        };
        let (a, b) = init::convert(&self.a.detach(), &self.b.detach(), a, b)?;
        Ok(Self {
            a,
            b,
            initial: None,
            start: None,
            settings: self.settings.of_twice_the_rank(),
            ..self.clone()
        })
    }

    /// True if the adapter fits a base that its start changed for good: that of LoftQ, or a residual base
    /// in blocks. No conversion gives an adapter for the original base then.
    pub(crate) fn fits_changed_base(&self) -> bool {
        self.start.is_some() && self.initial.is_none()
    }

    /// The rank of [`for_original`](Self::for_original).
    pub(crate) fn original_rank(&self) -> usize {
        match self.initial {
            Some(_) => 2 * self.settings.rank,
            None => self.settings.rank,
        }
    }

    /// The same adapter without its graph.
    pub(crate) fn detached(&self) -> Self {
        self.seen(false)
    }

    /// The same as the forward pass is to see it.
    pub(crate) fn seen(&self, training: bool) -> Self {
        let mut adapter = self.clone();
        adapter
            .tensors_mut()
            .for_each(|(_, tensor)| *tensor = seen(tensor, training));
        adapter
    }

    pub(crate) fn set_trainable(&mut self, trainable: bool) -> Result<()> {
        let (keeps_b, owns) = (self.keeps_b, self.owns());
        let mut parked = std::mem::take(&mut self.parked);
        let tensors = self.tensors_mut().enumerate();
        // A view follows the layer that it is a view of.
        for (place, (part, tensor)) in tensors.filter(|(_, (part, _))| owns(*part)) {
            let trainable = trainable && !(keeps_b && part == Part::B);
            parked.set_trainable(place, tensor, trainable)?;
        }
        self.parked = parked;
        Ok(())
    }
}

/// A tensor as the forward pass sees it: with its graph in training. In eval it has no graph, which
/// would keep every intermediate result in memory.
pub(crate) fn seen(tensor: &Tensor, training: bool) -> Tensor {
    if training {
        tensor.clone()
    } else {
        tensor.detach()
    }
}

/// A parameter for a base layer. A frozen tensor is shared; a variable is copied, so that further
/// training does not reach the base layer.
pub(crate) fn release(tensor: &Tensor) -> Result<Tensor> {
    let detached = tensor.detach();
    if !tensor.is_variable() {
        return Ok(detached);
    }
    let copy = detached.copy()?;
    places::RECORDED.replace(tensor.id(), &copy);
    Ok(copy)
}
