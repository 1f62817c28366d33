//! The convolutions over one and two dimensions.

use crate::adapter::{Adapted, Adapter, Adapters};
use crate::{
    Builder, Cursor, CursorMut, Error, LoraConfig, LoraLayer, LoraModel, LoraModule, Result,
    Settings, ops,
};
use candle_core::{Shape, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Module};

macro_rules! lora_conv {
    ($(#[$doc:meta])* $lora:ident, $base:ident, $config:ident, $op:path, $name:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $lora {
            weight: Tensor,
            bias: Option<Tensor>,
            config: $config,
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

            /// The weight; the merged one while merged.
            pub fn weight(&self) -> &Tensor {
                &self.weight
            }

            /// The bias, (out).
            pub fn bias(&self) -> Option<&Tensor> {
                self.bias.as_ref()
            }

            /// Stride, padding, dilation and groups.
            pub fn config(&self) -> &$config {
                &self.config
            }

            /// The layer's adapters.
            pub fn adapters(&self) -> &Adapters {
                &self.adapters
            }

            /// The configuration that goes with the present weight: a merged one has no groups.
            fn weight_config(&self) -> $config {
                let merged = self.adapters.is_merged();
                let groups = if merged { 1 } else { self.config.groups };
                $config { groups, ..self.config }
            }
        }

        impl Module for $lora {
            fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
                if let Some(rows) = &self.adapters.rows {
                    return rows.forward(self, xs);
                }
                let weight = self.adapters.seen(&self.weight);
                let bias = self.bias.as_ref().map(|bias| self.adapters.seen(bias));
                // A moves over the input as the base does, but sees all its channels; B mixes the
                // r results at each place, group by group.
                let of_a = $config { groups: 1, ..self.config };
                let of_b = $config { groups: self.config.groups, ..Default::default() };
                ops::Updated { bias: bias.as_ref(), updates: &self.updates()?, channels: 1 }.run(
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
                    adapters: Adapters::new(cx.path()),
                };
                cx.layer(layer)
            }
        }

        impl LoraLayer for $base {}

        impl LoraModule for $lora {
            type Base = $base;

            fn to_base(&self) -> Result<$base> {
                let (weight, bias) = self.base_parts()?;
                let merged = !self.adapters.to_merge().is_empty();
                let groups = if merged { 1 } else { self.config.groups };
                Ok($base::new(weight, bias, $config { groups, ..self.config }))
            }

            fn visit(&self, cursor: &mut Cursor<'_>) {
                cursor.layer(self);
            }

            fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
                cursor.layer(self);
            }
        }

        impl Adapted for $lora {
            fn layer_kind(&self) -> &'static str {
                $name
            }

            fn parts(&self) -> (&Tensor, Option<&Tensor>, &Adapters) {
                (&self.weight, self.bias.as_ref(), &self.adapters)
            }

            fn parts_mut(&mut self) -> (&mut Tensor, Option<&mut Tensor>, &mut Adapters) {
                (&mut self.weight, self.bias.as_mut(), &mut self.adapters)
            }

            fn shapes(&self, rank: usize) -> (Shape, Shape) {
                shapes(self.unmerged_weight(), rank, self.config.groups)
            }

            fn magnitude_shape(&self, outputs: usize) -> Shape {
                let mut shape = vec![1; self.weight.rank()];
                shape[1] = outputs;
                shape.into()
            }

            fn refuses(&self, settings: &Settings, _config: &LoraConfig) -> Option<String> {
                let rank = settings.rank;
                let groups = self.config.groups;
                (rank % groups != 0).then(|| {
                    format!("rank {rank} is no multiple of the convolution's {groups} groups")
                })
            }

            fn delta(&self, adapter: &Adapter) -> Result<Tensor> {
                delta(adapter, self.config.groups)
            }

            fn widened(&self, weight: &Tensor) -> Result<Tensor> {
                widened(weight, self.config.groups)
            }
        }
    };
}

lora_conv!(
    /// A [`Conv1d`] layer with low-rank updates.
    ///
    /// With x of shape (batch, in, length): W (out, in / groups, k), A (r, in, k), B (out, r /
    /// groups, 1). As [`LoraConv2d`] otherwise.
    LoraConv1d, Conv1d, Conv1dConfig, ops::conv1d, "Conv1d"
);

lora_conv!(
    /// A [`Conv2d`] layer with low-rank updates.
    ///
    /// With x of shape (batch, in, height, width): W (out, in / groups, kh, kw), A (r, in, kh, kw),
    /// B (out, r / groups, 1, 1). A is a convolution with the base's kernel, stride, padding and
    /// dilation over all channels, B one of size 1 with the base's groups: the shapes of PEFT. PEFT
    /// leaves the dilation out and cannot merge a grouped convolution; here both work. As the update
    /// lets every output see every input channel, a grouped convolution merges into one without
    /// groups, whose weight is (out, in, kh, kw).
    LoraConv2d, Conv2d, Conv2dConfig, ops::conv2d, "Conv2d"
);

/// The shapes of A and B for a convolution's weight.
fn shapes(weight: &Tensor, rank: usize, groups: usize) -> (Shape, Shape) {
    let mut a = weight.dims().to_vec();
    let mut b = vec![1; a.len()];
    b[0] = a[0];
    b[1] = rank / groups;
    a[0] = rank;
    a[1] *= groups;
    (a.into(), b.into())
}

/// s·B·A, group by group: (out, in, k..).
fn delta(adapter: &Adapter, groups: usize) -> Result<Tensor> {
    let (a, b) = (&adapter.a, &adapter.b);
    let (out, per_group) = (b.dim(0)?, b.dim(1)?);
    let mut shape = a.dims().to_vec();
    shape[0] = out;
    let b = b.reshape((groups, out / groups, per_group))?;
    let a = a.reshape((groups, per_group, ()))?;
    let delta = b.contiguous()?.matmul(&a.contiguous()?)?.reshape(shape)?;
    Ok((delta * adapter.scaling())?)
}

/// A grouped convolution's weight as one over all channels: zero where a group does not look.
fn widened(weight: &Tensor, groups: usize) -> Result<Tensor> {
    if groups == 1 {
        return Ok(weight.clone());
    }
    let channels = weight.dim(1)?;
    let rows = weight.chunk(groups, 0)?;
    let rows = rows.iter().enumerate().map(|(group, row)| {
        let (left, right) = (group * channels, (groups - 1 - group) * channels);
        row.pad_with_zeros(1, left, right)
    });
    let rows = rows.collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&rows, 0)?)
}
