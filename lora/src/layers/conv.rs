//! The convolutions over one and two dimensions.

use crate::adapter::{
    Access, Adapted, Adapters, Form, LayerParts, LayerPartsMut, reading, updates,
};
use crate::config::Kind;
use crate::{
    Builder, Cursor, CursorMut, Error, LoraConfig, LoraLayer, LoraModel, LoraModule, Result,
    Settings, ops,
};
use candle_core::Tensor;
use candle_nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Module};

macro_rules! lora_conv {
    ($(#[$doc:meta])* $lora:ident, $base:ident, $config:ident, $op:path, $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $lora {
            weight: Tensor,
            bias: Option<Tensor>,
            config: $config,
            /// The configuration of the weight with an adapter in it.
            without_groups: $config,
            adapters: Adapters,
        }

        impl $lora {
            /// A layer with one fresh adapter. The base weight is shared.
            ///
            /// With a seed, layers of one shape get the same initial values: give each its own.
            ///
            /// # Errors
            /// If the configuration is invalid, its patterns do not match a layer that stands
            /// alone, or the rank is no multiple of the layer's groups.
            pub fn new(base: &$base, config: &LoraConfig) -> Result<Self> {
                base.to_lora(config)
            }

            /// The weight, with the active adapters in it, for a model whose own code computes
            /// with it. In training the gradient reaches the adapters; their dropout does not act. As training
            /// goes on, the tensor's values follow the adapters, as a parameter's do.
            ///
            /// The layer's own weight is [`Adapted::unmerged_weight`]. In a view for mixed batches the rows have
            /// no weight in common: the tensor has no elements, and a warning says why.
            ///
            /// With an adapter the weight has no groups, as the merged one; [`config`](Self::config) goes
            /// with it.
            pub fn weight(&self) -> &Tensor {
                reading::weight(self)
            }

            /// The bias, (out), as [`weight`](Self::weight): with the bias on B of active adapters.
            pub fn bias(&self) -> Option<&Tensor> {
                reading::bias(self)
            }

            /// Stride, padding, dilation and groups, as they go with [`weight`](Self::weight).
            pub fn config(&self) -> &$config {
                match self.adapters.to_merge().is_empty() {
                    true => &self.config,
                    false => &self.without_groups,
                }
            }

            /// The layer's adapters.
            pub fn adapters(&self) -> &Adapters {
                &self.adapters
            }

            /// The configuration that goes with the present weight: a merged one has no groups.
            fn weight_config(&self) -> $config {
                match self.adapters.is_merged() {
                    true => self.without_groups,
                    false => self.config,
                }
            }
        }

        impl Module for $lora {
            fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
                if let Some(rows) = self.adapters.mixed_rows() {
                    return rows.forward(self, xs);
                }
                let weight = self.adapters.seen(&self.weight);
                let bias = self.bias.as_ref().map(|bias| self.adapters.seen(bias));
                // A moves over the input as the base does, but sees all of its channels. B mixes
                // the r results at each place, group by group.
                let of_a = self.without_groups;
                let of_b = $config { groups: self.config.groups, ..Default::default() };
                ops::Updated { bias: bias.as_ref(), updates: &updates::updates(self)?, channels: 1 }.run(
                    xs,
                    |xs, bias| $op(xs, &weight, bias, &self.weight_config()),
                    |xs, update| {
                        let inner = $op(xs, &update.a, None, &of_a)?;
                        $op(&inner, &update.b, update.bias.as_ref(), &of_b)
                    },
                )
            }
        }

        impl LoraModel for $base {
            type Lora = $lora;
            const IS_LAYER: bool = true;

            fn adapt(&self, cx: &mut Builder<'_>) -> Result<$lora> {
                let groups = self.config().groups;
                if groups == 0 || self.weight().dim(0)? % groups != 0 {
                    let weight = self.weight().dims();
                    let message = format!("a weight of shape {weight:?} has no {groups} groups");
                    return Err(Error::layer(cx.path(), message));
                }
                let layer = $lora {
                    weight: cx.parameter(self.weight()),
                    bias: self.bias().map(|bias| cx.parameter(bias)),
                    config: *self.config(),
                    without_groups: $config { groups: 1, ..*self.config() },
                    adapters: cx.adapters(),
                };
                cx.layer(layer)
            }
        }

        impl LoraLayer for $base {}

        impl LoraModule for $lora {
            type Base = $base;

            fn to_base(&self) -> Result<$base> {
                let (weight, bias) = self.base_parts()?;
                Ok($base::new(weight, bias, *self.config()))
            }

            fn visit(&self, cursor: &mut Cursor<'_>) {
                cursor.layer(self);
            }

            fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
                cursor.layer(self);
            }
        }

        impl Adapted for $lora {
            fn layer_kind(&self) -> Kind {
                Kind::$name
            }

            fn form(&self) -> Form {
                Form::Conv { groups: self.config.groups }
            }

            fn parts(&self) -> LayerParts<'_> {
                LayerParts {
                    weight: &self.weight,
                    bias: self.bias.as_ref(),
                    adapters: &self.adapters,
                }
            }

            fn parts_mut(&mut self, _: Access) -> LayerPartsMut<'_> {
                LayerPartsMut {
                    weight: &mut self.weight,
                    bias: self.bias.as_mut(),
                    adapters: self.adapters.changing(),
                }
            }

            fn refuses(&self, settings: &Settings, _config: &LoraConfig) -> Option<String> {
                let rank = settings.rank;
                let groups = self.config.groups;
                (rank % groups != 0).then(|| {
                    format!("rank {rank} is no multiple of the convolution's {groups} groups")
                })
            }
        }
    };
}

lora_conv!(
    /// A [`Conv1d`] layer with low-rank updates.
    ///
    /// With x of shape (batch, in, length): W (out, in / groups, k), A (r, in, k), B (out, r /
    /// groups, 1). As [`LoraConv2d`] otherwise.
    LoraConv1d, Conv1d, Conv1dConfig, ops::conv1d, Conv1d
);

lora_conv!(
    /// A [`Conv2d`] layer with low-rank updates.
    ///
    /// With x of shape (batch, in, height, width): W (out, in / groups, kh, kw), A (r, in, kh, kw),
    /// B (out, r / groups, 1, 1), the shapes of PEFT. A is a convolution over all channels, with
    /// the base's kernel, stride, padding and dilation. B is one of size 1 with the base's groups.
    /// PEFT leaves the dilation out and cannot merge a grouped convolution; here both work. The
    /// update lets every output see every input channel. So a grouped convolution merges into one
    /// without groups, whose weight is (out, in, kh, kw).
    LoraConv2d, Conv2d, Conv2dConfig, ops::conv2d, Conv2d
);
