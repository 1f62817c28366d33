//! The transposed convolutions over one and two dimensions.

use crate::adapter::{Access, Copies, release, seen};
use crate::config::Kind;
use crate::{Builder, Cursor, CursorMut, Layer, LoraModel, LoraModule, Param, Result, ops};
use candle_core::Tensor;
use candle_nn::{
    ConvTranspose1d, ConvTranspose1dConfig, ConvTranspose2d, ConvTranspose2dConfig, Module,
};

macro_rules! lora_conv_transpose {
    ($(#[$doc:meta])* $lora:ident, $base:ident, $config:ident, $op:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $lora {
            weight: Tensor,
            bias: Option<Tensor>,
            config: $config,
            training: bool,
            copies: Copies,
        }

        impl $lora {
            /// The weight.
            pub fn weight(&self) -> &Tensor {
                &self.weight
            }

            /// The bias, (out).
            pub fn bias(&self) -> Option<&Tensor> {
                self.bias.as_ref()
            }

            /// Stride, padding, padding of the result, and dilation.
            pub fn config(&self) -> &$config {
                &self.config
            }
        }

        impl Module for $lora {
            fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
                let weight = seen(&self.weight, self.training);
                let bias = self.bias.as_ref().map(|bias| seen(bias, self.training));
                $op(xs, &weight, bias.as_ref(), &self.config)
            }
        }

        impl LoraModel for $base {
            type Lora = $lora;
            const IS_LAYER: bool = true;

            fn adapt(&self, cx: &mut Builder<'_>) -> Result<$lora> {
                let layer = $lora {
                    weight: cx.parameter(self.weight()),
                    bias: self.bias().map(|bias| cx.parameter(bias)),
                    config: *self.config(),
                    training: true,
                    copies: Copies::default(),
                };
                cx.layer(layer)
            }
        }

        impl LoraModule for $lora {
            type Base = $base;

            fn to_base(&self) -> Result<$base> {
                let bias = self.bias.as_ref().map(release).transpose()?;
                Ok($base::new(release(&self.weight)?, bias, self.config))
            }

            fn visit(&self, cursor: &mut Cursor<'_>) {
                cursor.layer(self);
            }

            fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
                cursor.layer(self);
            }
        }

        impl Layer for $lora {
            fn kind(&self) -> Kind {
                Kind::$base
            }

            fn params(&self) -> Vec<Param<&Tensor>> {
                Param::weight_and_bias(&self.weight, self.bias.as_ref())
            }

            fn params_mut(&mut self, _: Access) -> Vec<Param<&mut Tensor>> {
                Param::weight_and_bias(&mut self.weight, self.bias.as_mut())
            }

            fn set_training(&mut self, training: bool) {
                self.training = training;
            }

            fn copies(&self) -> Option<&Copies> {
                Some(&self.copies)
            }

            fn copies_mut(&mut self, _: Access) -> Option<&mut Copies> {
                Some(&mut self.copies)
            }
        }
    };
}

lora_conv_transpose!(
    /// A [`ConvTranspose1d`] layer with a gradient, which candle's lacks. As in PEFT it takes no
    /// adapter; it is frozen, or trained in full.
    ///
    /// With x of shape (batch, in, length): W (in, out / groups, k).
    LoraConvTranspose1d, ConvTranspose1d, ConvTranspose1dConfig, ops::conv_transpose1d
);

lora_conv_transpose!(
    /// A [`ConvTranspose2d`] layer whose gradient is right for every padding of the result, and is
    /// computed for trained parameters only. As in PEFT it takes no adapter; it is frozen, or trained
    /// in full.
    ///
    /// With x of shape (batch, in, height, width): W (in, out, kh, kw).
    LoraConvTranspose2d, ConvTranspose2d, ConvTranspose2dConfig, ops::conv_transpose2d
);
