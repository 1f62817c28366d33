//! Candle's functions that record no backward pass, each with its counterpart here.
//!
//! `#[lora::forward]` writes `Function(f).differentiable(f)` for each path `f` that ends in such a
//! name. The type of `f` decides: rustc has resolved the path by then, with all imports and aliases.

use candle_core::{Result, Tensor};
use candle_nn::attention::AttnMask;
use std::any::type_name;

/// A function that a path of the user's names.
#[derive(Clone, Copy, Debug)]
pub struct Function<F>(pub F);

/// A function with the signature `P` of one of candle's.
pub trait Candle<P> {
    /// The counterpart of the function if that is candle's, or else the function itself.
    fn differentiable(self, original: P) -> P;
}

/// Any other function. The method takes a reference, so that rustc looks for [`Candle`]'s first.
pub trait Other {
    /// The function itself.
    fn differentiable<F>(&self, original: F) -> F {
        original
    }
}

impl<F> Other for Function<F> {}

/// Where the type of a function says that the function is defined, without type arguments.
fn path<F>() -> &'static str {
    let name = type_name::<F>();
    name.split_once('<').map_or(name, |(path, _)| path)
}

macro_rules! candle {
    ($($name:ident($($argument:ty),+) { $($path:literal => $counterpart:path,)+ })+) => {$(
        type $name = fn($($argument),+) -> Result<Tensor>;

        impl<F: Fn($($argument),+) -> Result<Tensor>> Candle<$name> for Function<F> {
            fn differentiable(self, original: $name) -> $name {
                match path::<F>() {
                    $($path => $counterpart,)+
                    _ => original,
                }
            }
        }
    )+};
}

candle! {
    OfOne(&Tensor) {
        "candle_nn::ops::softmax_last_dim" => super::softmax_last_dim,
    }
    RmsNorm(&Tensor, &Tensor, f32) {
        "candle_nn::ops::rms_norm" => super::rms_norm,
    }
    LayerNorm(&Tensor, &Tensor, &Tensor, f32) {
        "candle_nn::ops::layer_norm" => super::layer_norm,
    }
    Rope(&Tensor, &Tensor, &Tensor) {
        "candle_nn::rotary_emb::rope" => super::rope,
        "candle_nn::rotary_emb::rope_i" => super::rope_i,
        "candle_nn::rotary_emb::rope_thd" => super::rope_thd,
    }
    Sdpa(&Tensor, &Tensor, &Tensor, Option<&Tensor>, bool, f32, f32) {
        "candle_nn::ops::sdpa" => super::sdpa,
    }
    FlashAttention(&Tensor, &Tensor, &Tensor, f32, AttnMask, Option<f32>, Option<f32>) {
        "candle_nn::attention::cpu_flash::flash_attn" => super::flash_attn::attention,
    }
    MaskedFlashAttention(
        &Tensor, &Tensor, &Tensor, Option<&Tensor>, f32, Option<f32>, Option<f32>
    ) {
        "candle_nn::cpu_flash_attention::run_flash_attn_cpu" => super::flash_attn::masked,
    }
}
