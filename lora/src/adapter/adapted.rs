//! [`Adapted`]: what the four layers that may carry adapters have in common.

use super::{Adapter, Adapters, Copies, Merged, release, wider};
use crate::ops::{self, UpdateParts};
use crate::{Error, Layer, LoraConfig, Param, Part, Result, Role, Settings};
use candle_core::{D, DType, Shape, Tensor};
use std::fmt::Debug;

/// A layer that may carry adapters: weight, bias, adapters and how they change the weight.
///
/// Implemented by the layer types of this crate; the walk reaches it through
/// [`Layer::adapted`](crate::Layer::adapted).
pub trait Adapted: Debug {
    /// The layer's kind, for example `Linear`.
    fn layer_kind(&self) -> &'static str;

    /// The weight (the merged one while merged), the bias and the adapters.
    fn parts(&self) -> (&Tensor, Option<&Tensor>, &Adapters);

    /// The weight (the merged one while merged), the bias and the adapters, to be changed.
    fn parts_mut(&mut self) -> (&mut Tensor, Option<&mut Tensor>, &mut Adapters);

    /// The shapes of A and B for this rank.
    fn shapes(&self, rank: usize) -> (Shape, Shape);

    /// s·B·A in the shape of the merged weight, in the adapter's dtype.
    ///
    /// # Errors
    /// If candle cannot multiply on the device at hand.
    fn delta(&self, adapter: &Adapter) -> Result<Tensor>;

    /// The dimension of the weight that counts the outputs: 1 for an embedding, else 0.
    fn output_dim(&self) -> usize {
        0
    }

    /// The base weight as a matrix (out, in), for a linear layer.
    ///
    /// # Errors
    /// None for a layer of this crate.
    fn matrix(&self) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// A tensor of the weight's shape as a matrix (out, in), or the other way round.
    ///
    /// # Errors
    /// If the tensor is no matrix.
    fn to_matrix(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(match self.output_dim() {
            0 => tensor.clone(),
            _ => tensor.t()?,
        })
    }

    /// True for an embedding, whose input are indices.
    fn is_lookup(&self) -> bool {
        false
    }

    /// The shape of the magnitudes of this many outputs.
    fn magnitude_shape(&self, outputs: usize) -> Shape {
        outputs.into()
    }

    /// What keeps the layer from taking such an adapter, if anything does.
    fn refuses(&self, _settings: &Settings, _config: &LoraConfig) -> Option<String> {
        None
    }

    /// The number of experts whose weights are in the one weight, each with its own A and B; 1 for
    /// a layer.
    fn experts(&self) -> usize {
        1
    }

    /// The name of the weight in the layer; empty for a bare one.
    fn weight_name(&self) -> &'static str {
        "weight"
    }

    /// The base weight in the shape of the merged one. They differ only for a grouped convolution.
    ///
    /// # Errors
    /// If candle cannot copy on the device at hand.
    fn widened(&self, weight: &Tensor) -> Result<Tensor> {
        Ok(weight.clone())
    }

    /// The name of a tensor of the adapter called `adapter`: `lora_A.default.weight`. Without the
    /// adapter's name it is PEFT's.
    fn part_name(&self, part: Part, adapter: &str) -> String {
        match part {
            Part::A => format!("lora_A.{adapter}.weight"),
            Part::B => format!("lora_B.{adapter}.weight"),
            Part::Bias => format!("lora_B.{adapter}.bias"),
            Part::Magnitude => format!("lora_magnitude_vector.{adapter}"),
            Part::Tokens => format!("token_adapter.trainable_tokens_delta.{adapter}"),
        }
    }

    /// The weight without what is merged into it.
    fn unmerged_weight(&self) -> &Tensor {
        let (weight, _, adapters) = self.parts();
        let merged = adapters.merged.as_ref();
        merged.map_or(weight, |merged| &merged.weight)
    }

    /// The norm of each output's weights in W + s·B·A: (out). A constant: it has no graph.
    ///
    /// # Errors
    /// If candle cannot compute on the device at hand.
    fn norms(&self, adapter: &Adapter) -> Result<Tensor> {
        let weight = self.unmerged_weight().detach();
        let wide = wider(weight.dtype(), DType::F32);
        let delta = self.delta(&adapter.detached())?.to_dtype(wide)?;
        let sum = (self.widened(&weight.to_dtype(wide)?)? + delta)?;
        let outputs = sum.transpose(0, self.output_dim())?.flatten_from(1)?;
        Ok(outputs.sqr()?.sum(D::Minus1)?.sqrt()?)
    }

    /// DoRA's factor for each output, m / ‖W + s·B·A‖: (out); `None` without a magnitude.
    ///
    /// # Errors
    /// If candle cannot compute on the device at hand.
    fn gain(&self, adapter: &Adapter) -> Result<Option<Tensor>> {
        let Some(magnitude) = &adapter.magnitude else {
            return Ok(None);
        };
        let norms = self.norms(adapter)?.to_dtype(magnitude.dtype())?;
        Ok(Some((magnitude.flatten_all()? / norms)?))
    }

    /// The updates that the forward pass is to compute: those of active adapters that are not
    /// merged.
    #[doc(hidden)]
    fn updates(&self) -> candle_core::Result<Vec<UpdateParts>> {
        let (_, _, adapters) = self.parts();
        let update = |adapter: &Adapter| {
            let gain = self.gain(adapter)?;
            Ok(UpdateParts {
                a: adapters.seen(&adapter.a),
                b: adapters.seen(&adapter.b),
                bias: adapter.bias.as_ref().map(|bias| adapters.seen(bias)),
                gain: gain.map(|gain| adapters.seen(&gain)),
                scaling: adapter.scaling(),
                dropout: if adapters.training {
                    adapter.settings.dropout
                } else {
                    0.0
                },
            })
        };
        adapters.to_compute().map(update).collect()
    }

    /// Adds every active adapter to the weight; the forward pass then costs what the base layer's
    /// does.
    ///
    /// The sum is taken in at least f32 and rounded once to the weight's dtype. The weight as it
    /// was is kept for [`unmerge_weight`](Self::unmerge_weight). What is merged already stays so.
    ///
    /// # Errors
    /// If the merged weight is not finite, or an adapter has a bias and the layer none; the layer
    /// is then as it was.
    fn merge_weight(&mut self) -> Result<()> {
        let names = self.parts().2.to_merge();
        self.set_merged(&names)
    }

    /// Takes the adapters out of the weight again: the very tensor from before comes back.
    fn unmerge_weight(&mut self) {
        let (weight, bias, adapters) = self.parts_mut();
        if let Some(merged) = adapters.merged.take() {
            *weight = merged.weight;
            if let (Some(bias), Some(original)) = (bias, merged.bias) {
                *bias = original;
            }
        }
    }

    /// Merges just these adapters, in this order, whatever is merged now: computed from the weight
    /// as it was. Names that this layer has no adapter of are left out.
    ///
    /// # Errors
    /// As [`merge_weight`](Self::merge_weight).
    fn set_merged(&mut self, names: &[String]) -> Result<()> {
        let adapters = self.parts().2;
        let names = names.iter().filter(|name| adapters.has(name));
        let names: Vec<String> = names.cloned().collect();
        if names == adapters.merged() {
            return Ok(());
        }
        adapters.check_order(&names)?;
        let (merged_weight, merged_bias) = self.merged_parts(&names)?;
        self.unmerge_weight();
        if names.is_empty() {
            return Ok(());
        }
        let (weight, bias, adapters) = self.parts_mut();
        let weight = std::mem::replace(weight, merged_weight);
        let bias = match (bias, merged_bias) {
            (Some(bias), Some(merged)) => Some(std::mem::replace(bias, merged)),
            _ => None,
        };
        adapters.merged = Some(Merged {
            names,
            weight,
            bias,
        });
        Ok(())
    }

    /// Weight and bias with these adapters in them, in this order: what the forward pass computes
    /// with them.
    ///
    /// # Errors
    /// As [`merge_weight`](Self::merge_weight).
    fn merged_parts(&self, names: &[String]) -> Result<(Tensor, Option<Tensor>)> {
        let (_, bias, adapters) = self.parts();
        let weight = self.unmerged_weight();
        let merged = adapters.merged.as_ref();
        let bias = merged.and_then(|merged| merged.bias.as_ref()).or(bias);
        if names.is_empty() {
            return Ok((weight.clone(), bias.cloned()));
        }
        let wide = wider(weight.dtype(), DType::F32);
        let mut sum = self.widened(&weight.detach().to_dtype(wide)?)?;
        for tokens in names.iter().filter_map(|name| adapters.tokens_of(name)) {
            sum = tokens.put_into(&sum)?;
        }
        let mut added: Option<Tensor> = None;
        for adapter in names.iter().filter_map(|name| adapters.get(name)) {
            let adapter = adapter.detached();
            sum = (sum + self.delta(&adapter)?.to_dtype(wide)?)?;
            if let Some(own) = &adapter.bias {
                let own = (own.to_dtype(wide)? * adapter.scaling())?;
                added = Some(match added {
                    Some(added) => (added + own)?,
                    None => own,
                });
            }
            if let Some(gain) = self.gain(&adapter)? {
                let gain = gain.to_dtype(wide)?;
                let mut shape = vec![1; sum.rank()];
                shape[self.output_dim()] = gain.elem_count();
                sum = sum.broadcast_mul(&gain.reshape(shape)?)?;
                added = added.map(|added| added * gain).transpose()?;
            }
        }
        let merged = sum.to_dtype(weight.dtype())?;
        let bias = match (bias, added) {
            (Some(bias), Some(added)) => {
                let sum = (bias.detach().to_dtype(wide)? + added)?;
                Some(sum.to_dtype(bias.dtype())?)
            }
            (None, Some(_)) => {
                return Err(Error::layer(
                    &adapters.path,
                    "an adapter has a bias, which cannot be merged into a layer that has none",
                ));
            }
            (bias, None) => bias.cloned(),
        };
        let finite = ops::is_finite(&merged)?
            && bias.as_ref().map(ops::is_finite).transpose()? != Some(false);
        if !finite {
            return Err(Error::layer(
                &adapters.path,
                "the merged weight is not finite; the adapter or the base weight holds NaN or \
                 infinity, or their sum overflows the weight's dtype",
            ));
        }
        Ok((merged, bias))
    }

    /// Weight and bias for a base layer: with the adapters that are merged and those that are
    /// active, and out of reach of further training.
    ///
    /// # Errors
    /// As [`merge_weight`](Self::merge_weight).
    fn base_parts(&self) -> Result<(Tensor, Option<Tensor>)> {
        let adapters = self.parts().2;
        if adapters.rows.is_some() {
            let message =
                "a view for the rows of one batch has no base model: use the model it is of";
            return Err(Error::layer(&adapters.path, message));
        }
        let (weight, bias) = self.merged_parts(&adapters.to_merge())?;
        let bias = bias.as_ref().map(release).transpose()?;
        Ok((release(&weight)?, bias))
    }
}

impl<T: Adapted> Layer for T {
    fn kind(&self) -> &'static str {
        self.layer_kind()
    }

    fn params(&self) -> Vec<Param<&Tensor>> {
        let (weight, bias, adapters) = self.parts();
        let mut params = Param::weight_and_bias(weight, bias);
        params[0].name = self.weight_name().into();
        for (adapter, part, tensor) in adapters.tensors() {
            let name = self.part_name(part, adapter);
            params.push(Param::new(name, Role::Adapter(part), tensor));
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
        tensors.extend(adapters.tensors_mut());
        let params = names.into_iter().zip(tensors);
        let params = params.map(|((name, role), tensor)| Param::new(name, role, tensor));
        params.collect()
    }

    fn set_training(&mut self, training: bool) {
        self.parts_mut().2.training = training;
    }

    fn copies(&self) -> Option<&Copies> {
        Some(&self.parts().2.copies)
    }

    fn copies_mut(&mut self) -> Option<&mut Copies> {
        Some(&mut self.parts_mut().2.copies)
    }

    fn adapted(&self) -> Option<&dyn Adapted> {
        Some(self)
    }

    fn adapted_mut(&mut self) -> Option<&mut dyn Adapted> {
        Some(self)
    }
}
