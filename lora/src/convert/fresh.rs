//! A fresh adapter for a layer.

use crate::adapter::{Adapted, Adapter, Parked, Tie, dora, quantised, updates};
use crate::config::Settings;
use crate::convert::calibrate::not_linear;
use crate::init::{AdapterInit, Start, Target, rng, start};
use crate::{Calibrated, Init, LoftqConfig, LoraConfig, Result};
use candle_core::quantized::QTensor;
use candle_core::{Tensor, Var};
use std::sync::Arc;

/// The residual base that initial values leave, if they leave one.
pub(super) enum Residual {
    None,
    Full(Tensor),
    Blocks(Arc<QTensor>),
}

/// A trainable adapter with the initial values that the configuration asks for, and the residual base
/// that these values leave. `original` is the weight that a quantised layer had in full precision, where
/// it is at hand.
pub(super) fn fresh(
    layer: &dyn Adapted,
    name: &str,
    settings: Settings,
    config: &LoraConfig,
    calibrated: Option<&Calibrated>,
    original: Option<&Tensor>,
) -> Result<(Adapter, Residual)> {
    let weight = layer.unmerged_weight();
    let path = &layer.adapters().path;
    let blocks = layer
        .adapters()
        .blocks
        .as_ref()
        .map(|blocks| blocks.dtype());
    let from_weight = match (config.init.is_drawn(), original) {
        (true, _) => None,
        (false, Some(original)) => Some(Some(layer.form().to_matrix(original)?)),
        (false, None) => Some(updates::matrix(layer)?),
    };
    let Start {
        a,
        b,
        base,
        blocks: residual_blocks,
        frozen_b,
    } = match from_weight {
        None => {
            let (a, b) = layer.shapes(settings.rank);
            let init = AdapterInit {
                a,
                b,
                embedding: layer.is_lookup(),
                weight,
            };
            let (a, b) = init.draw(config, path, settings.rank)?;
            Start {
                a,
                b,
                base: None,
                blocks: None,
                frozen_b: false,
            }
        }
        Some(None) => return Err(not_linear(path, layer.layer_kind(), config.init)),
        Some(Some(weight)) => {
            let target = Target {
                path,
                weight: &weight,
                rank: settings.rank,
                scaling: settings.scaling,
                blocks,
            };
            start(&target, config, calibrated, &mut rng(config.seed, path))?
        }
    };
    // `start` computes with (out, in); the layer's own weight may lie the other way round.
    let base = base.map(|base| layer.form().to_matrix(&base)).transpose()?;
    let var = |tensor: &Tensor| Ok::<_, crate::Error>(Var::from_tensor(tensor)?.into_inner());
    let outputs = b.dim(0)?;
    let mut adapter = Adapter {
        name: name.into(),
        bias: None,
        magnitude: None,
        settings,
        scale: 1.0,
        keeps_b: frozen_b,
        parked: Parked::default(),
        start: config.init.changes_base().then_some(config.init),
        loftq: (config.init == Init::Loftq).then(|| LoftqConfig {
            quantiser: blocks.unwrap_or(config.loftq_config.quantiser),
            ..config.loftq_config.clone()
        }),
        tie: match config.ensure_weight_tying && layer.is_lookup() {
            true => Tie::Shares,
            false => Tie::None,
        },
        initial: match config.init.changes_base() && !config.init.is_lasting() {
            true if base.is_some() => Some((a.detach().copy()?, b.detach().copy()?)),
            _ => None,
        },
        a: var(&a)?,
        b: if frozen_b { b.detach() } else { var(&b)? },
    };
    let dtype = adapter.b.dtype();
    if config.lora_bias {
        let zeros = Var::zeros(outputs, dtype, adapter.b.device())?;
        adapter.bias = Some(zeros.into_inner());
    }
    if config.use_dora {
        // A residual base and s·B·A make W again, so that the norms are those of W. A quantised one makes
        // another weight, near to W.
        let norms = match (&base, &residual_blocks) {
            (None, None) => updates::norms(layer, &adapter)?,
            (Some(_), _) => updates::base_norms(layer)?,
            (None, Some(blocks)) => {
                let wide = dora::precision(weight.dtype());
                quantised::norms(blocks, layer.form(), Some(&adapter.detached()), wide)?
            }
        };
        let shape = dora::magnitude_shape(weight.rank(), outputs);
        let magnitude = dora::start(&norms, weight.dtype(), dtype, shape)?;
        adapter.magnitude = Some(var(&magnitude)?);
    }
    let residual = match (base, residual_blocks) {
        (Some(base), _) => Residual::Full(base),
        (None, Some(blocks)) => Residual::Blocks(blocks),
        (None, None) => Residual::None,
    };
    Ok((adapter, residual))
}
