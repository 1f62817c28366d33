//! A fresh adapter for a layer.

use super::{Adapted, Adapter, Settings, Tie};
use crate::init::AdapterInit;
use crate::{LoraConfig, Result};
use candle_core::Var;

/// An adapter with the initial values that the configuration asks for. It is trainable.
pub(crate) fn fresh(
    layer: &dyn Adapted,
    name: &str,
    settings: Settings,
    config: &LoraConfig,
) -> Result<Adapter> {
    let (weight, _, adapters) = layer.parts();
    let (a, b) = layer.shapes(settings.rank);
    let init = AdapterInit {
        a,
        b,
        embedding: layer.is_lookup(),
        weight: layer.unmerged_weight(),
    };
    let (a, b) = init.draw(config, &adapters.path, settings.rank)?;
    let outputs = b.dim(0)?;
    let mut adapter = Adapter {
        name: name.into(),
        bias: None,
        magnitude: None,
        settings,
        scale: 1.0,
        keeps_b: false,
        tie: match config.ensure_weight_tying && layer.is_lookup() {
            true => Tie::Shares,
            false => Tie::None,
        },
        initial: None,
        a,
        b,
    };
    let dtype = adapter.b.dtype();
    if config.lora_bias {
        let zeros = Var::zeros(outputs, dtype, adapter.b.device())?;
        adapter.bias = Some(zeros.into_inner());
    }
    if config.use_dora {
        // Rounded to the weight's dtype first, as PEFT does.
        let norms = layer.norms(&adapter)?.to_dtype(weight.dtype())?;
        let norms = norms.to_dtype(dtype)?;
        let norms = norms.reshape(layer.magnitude_shape(outputs))?;
        adapter.magnitude = Some(Var::from_tensor(&norms)?.into_inner());
    }
    Ok(adapter)
}
