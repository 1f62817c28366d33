//! What only ModernBERT has.

use super::parse::activation;
use crate::models::encoder::pooling::Pooling;
use crate::models::keys::Keys;
use candle_nn::Activation;
use serde_json::Value;

/// What only a ModernBERT has, of an [`EncoderConfig`](super::EncoderConfig).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModernBertConfig {
    /// For each layer, how many tokens on either side a token sees; all if `None`.
    pub windows: Vec<Option<usize>>,
    /// The base of the wavelengths of the layers that see all tokens.
    pub global_rope_theta: f64,
    /// The base of the wavelengths of the layers that see a window.
    pub local_rope_theta: f64,
    /// The norms have a bias.
    pub norm_bias: bool,
    /// The attention's layers have a bias.
    pub attention_bias: bool,
    /// The MLP's layers have a bias.
    pub mlp_bias: bool,
    /// The layer that makes logits of tokens has a bias.
    pub decoder_bias: bool,
    /// The first layer of the heads has a bias.
    pub classifier_bias: bool,
    /// The activation of the heads.
    pub classifier_activation: Activation,
    /// How a text is classified: by its first token, or by the mean of its tokens.
    pub classifier_pooling: Pooling,
}

impl ModernBertConfig {
    pub(super) fn read(keys: &Keys<'_>, layers: usize) -> Self {
        let [global_rope_theta, local_rope_theta] = thetas(keys);
        let bias = |key: &str, default| keys.get(key, default);
        Self {
            windows: windows(keys, layers),
            global_rope_theta,
            local_rope_theta,
            norm_bias: bias("norm_bias", false),
            attention_bias: bias("attention_bias", false),
            mlp_bias: bias("mlp_bias", false),
            decoder_bias: bias("decoder_bias", true),
            classifier_bias: bias("classifier_bias", false),
            classifier_activation: activation(keys, "classifier_activation"),
            classifier_pooling: pooling(keys),
        }
    }
}

fn pooling(keys: &Keys<'_>) -> Pooling {
    const KEY: &str = "classifier_pooling";
    let name: String = keys.get(KEY, "cls".into());
    match name.as_str() {
        "cls" => Pooling::Cls,
        "mean" => Pooling::Mean,
        _ => {
            keys.refuse(KEY, "supported are cls and mean");
            Pooling::Cls
        }
    }
}

/// The window of each layer: by `layer_types`, or by the older rule that every third sees all.
fn windows(keys: &Keys<'_>, layers: usize) -> Vec<Option<usize>> {
    const TYPES: &str = "layer_types";
    let every = keys.count("global_attn_every_n_layers", 3, 1 << 10);
    let window = Some(keys.get("local_attention", 128usize) / 2);
    let types: Option<Vec<String>> = keys.find(TYPES);
    let Some(types) = types else {
        let of_layer = |layer: usize| window.filter(|_| !layer.is_multiple_of(every));
        return (0..layers).map(of_layer).collect();
    };
    if types.len() != layers {
        let expected = format!("{layers} types are expected, one for each layer");
        keys.refuse(TYPES, &expected);
    }
    let mut windows = Vec::new();
    for kind in &types {
        windows.push(match kind.as_str() {
            "sliding_attention" => window,
            "full_attention" => None,
            _ => {
                let known = "supported are full_attention and sliding_attention";
                keys.refuse(TYPES, known);
                None
            }
        });
    }
    windows
}

/// The bases of the wavelengths, of all layers that see all tokens and of the others.
fn thetas(keys: &Keys<'_>) -> [f64; 2] {
    let global = keys.get("global_rope_theta", 160_000.0);
    // Files say null where both are one.
    let local = keys.nullable("local_rope_theta", Some(10_000.0));
    let older = [global, local.unwrap_or(global)];
    if keys.find::<Value>("rope_scaling").is_some() {
        keys.refuse("rope_scaling", "only null is supported");
    }
    let Some(parameters) = keys.object("rope_parameters") else {
        return older;
    };
    let mut thetas = older;
    for (theta, kind) in thetas
        .iter_mut()
        .zip(["full_attention", "sliding_attention"])
    {
        if let Some(object) = parameters.object(kind) {
            *theta = object.get("rope_theta", *theta);
            object.only("rope_type", &Value::from("default"));
            if !(*theta > 1.0 && theta.is_finite()) {
                object.refuse("rope_theta", "a number above 1 is expected");
            }
            parameters.close(object);
        }
    }
    keys.close(parameters);
    thetas
}
