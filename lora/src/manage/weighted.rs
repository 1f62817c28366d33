//! Makes one adapter from several: PEFT's `add_weighted_adapter`.

use crate::adapter::{AdaptedMut, updates};
use crate::adapter::{Parked, copies};
use crate::manage::combine::{Source, combine};
use crate::traits::{each_layer, try_each_layer_mut};
use crate::{
    Adapted, Adapter, Combination, CombineOptions, Error, LoraModule, Result, Settings, init,
    manage,
};
use candle_core::Var;

pub(crate) fn add_weighted<M: LoraModule>(
    model: &mut M,
    new: &str,
    adapters: &[(&str, f64)],
    combination: Combination,
    options: &CombineOptions,
) -> Result<()> {
    let names: Vec<&str> = adapters.iter().map(|(name, _)| *name).collect();
    let mut problems = manage::unknown(model, &names);
    manage::check_new(model, new, &mut problems);
    manage::refuse_merged(model, &mut problems);
    if adapters.is_empty() {
        problems.push("name at least one adapter to combine".into());
    }
    for (name, weight) in adapters {
        if !weight.is_finite() {
            problems.push(format!(
                "the weight of `{name}` is {weight}: it must be finite"
            ));
        }
    }
    let mut largest = 0;
    each_layer(model, |path, layer| {
        let tokens = layer.adapted().map(|layer| layer.adapters().tokens());
        for name in &names {
            let copied = layer.copies().is_some_and(|copies| copies.trains(name));
            let rows = tokens.is_some_and(|tokens| tokens.iter().any(|t| t.adapter() == *name));
            if copied || rows {
                problems.push(format!(
                    "`{name}` trains `{path}`'s own parameters, which cannot be combined"
                ));
            }
            let adapter = layer.adapted().and_then(|layer| layer.adapters().get(name));
            largest = adapter.map_or(largest, |adapter| largest.max(adapter.original_rank()));
        }
    });
    manage::checked(problems)?;
    let (combination, options) = combination.for_adapters(adapters.len(), options, largest);
    let mut changed = model.clone();
    try_each_layer_mut(&mut changed, |_, layer| {
        if layer.adapted().is_none() {
            return Ok(());
        }
        // The new adapter is for the base's weight. An active adapter's copy may be in its place.
        let current = layer.copies().and_then(|copies| copies.current());
        let current = current.map(String::from);
        copies::switch(layer, None)?;
        if let Some(layer) = layer.adapted_mut() {
            at_layer(layer, new, adapters, combination, &options)?;
        }
        copies::switch(layer, current.as_deref())
    })?;
    manage::set_adapter_trainable(&mut changed, new, false)?;
    *model = changed;
    Ok(())
}

/// Combines those of the named adapters that this layer has.
fn at_layer(
    layer: &mut dyn Adapted,
    new: &str,
    adapters: &[(&str, f64)],
    combination: Combination,
    options: &CombineOptions,
) -> Result<()> {
    let all = layer.adapters();
    let named = adapters.iter().filter_map(|(name, weight)| {
        let adapter = all.get(name).filter(|adapter| !adapter.is_tied())?;
        // An adapter of a residual base is first converted to one for the original base, which
        // doubles its rank: only adapters for the same weight can be added.
        Some(adapter.for_original().map(|adapter| (adapter, *weight)))
    });
    let named: Vec<(Adapter, f64)> = named.collect::<Result<_>>()?;
    let Some((first, _)) = named.first() else {
        return Ok(());
    };
    let alike = named.iter().all(|(adapter, _)| {
        adapter.bias.is_none()
            && adapter.magnitude.is_some() == first.magnitude.is_some()
            && adapter.tie == first.tie
    });
    if !alike || layer.form().experts() > 1 {
        return Err(Error::layer(
            &all.path,
            "adapters of experts, adapters with a bias on B (lora_bias), and adapters of which only \
             some have DoRA or ensure_weight_tying cannot be combined",
        ));
    }
    let sources = named.iter().map(|(adapter, weight)| Source {
        a: &adapter.a,
        b: &adapter.b,
        weight: *weight,
        scaling: adapter.scaling(),
    });
    let sources: Vec<Source<'_>> = sources.collect();
    // B of a grouped convolution is narrower than the rank.
    let groups = first.a.dim(0)? / first.b.dim(1)?.max(1);
    let mut rng = init::rng(options.seed, &all.path);
    let combined = combine(&sources, groups, combination, options, &mut rng);
    let combined = combined.map_err(|error| error.at(&all.path))?;
    let mut adapter = Adapter {
        name: new.into(),
        a: Var::from_tensor(&combined.a)?.into_inner(),
        b: Var::from_tensor(&combined.b)?.into_inner(),
        bias: None,
        magnitude: None,
        // A scaling of 1.
        settings: Settings::new(
            combined.rank,
            combined.rank as f64,
            false,
            first.settings.dropout,
        ),
        scale: 1.0,
        keeps_b: false,
        parked: Parked::default(),
        start: first.start,
        loftq: first.loftq.clone(),
        tie: first.tie,
        initial: None,
    };
    if let Some(magnitude) = &first.magnitude {
        // As in PEFT, the magnitude is that of the base weight, not that of the sum.
        let norms = updates::base_norms(layer)?.to_dtype(magnitude.dtype())?;
        let norms = norms.reshape(magnitude.shape())?;
        adapter.magnitude = Some(Var::from_tensor(&norms)?.into_inner());
    }
    layer.adapters_mut().list.push(adapter);
    Ok(())
}
