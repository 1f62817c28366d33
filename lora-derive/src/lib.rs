//! Macros of [lora-candle](https://docs.rs/lora-candle): `#[derive(LoraModel)]` and
//! `#[lora::forward]`. Use them through that crate.

mod ast;
mod attr;
mod bounds;
mod ctxt;
mod expand;
mod forward;
mod krate;
mod params;
#[cfg(test)]
mod tests;
mod valid;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Derives `LoraModel` for a struct or enum of layers, and writes its LoRA type.
///
/// The LoRA type of `Net` is `LoraNet`. It has the fields, the visibility and the parameters of
/// `Net`, with `Lora<T>` for each field type `T`; it is `Clone` and `Debug`, and `Net` need not be.
///
/// ```
/// use candle_nn::{Activation, Linear};
/// use lora::LoraModel;
///
/// #[derive(LoraModel)]
/// pub struct Mlp {
///     #[lora(rank)]
///     fc1: Linear,
///     #[lora(rank = 16, alpha = 32.0)]
///     fc2: Linear,
///     act: Activation,
/// }
/// ```
///
/// # On a field
/// Every field is a model: a layer, a plain value, a container of them, or a type that derives
/// `LoraModel` too. At most one of these changes that:
///
/// | attribute | the field is |
/// |---|---|
/// | `rank` | a layer that is adapted by default, with the rank of the configuration |
/// | `rank = 8` | the same, with this rank; `alpha = 16.0` and `dropout = 0.1` go with both |
/// | `trainable` | trained in full and saved with the adapter |
/// | `skip` | no model: its value is cloned, so it is `Clone` and `Debug` |
/// | `config` | the model's configuration `C`, which becomes a `WithLora<C>` |
/// | `config = LoraNetConfig` | the same, and this is an alias for it |
///
/// The parameters of a field are at the field's name: `layers.0.mlp.fc1.weight`. `name = "fc_1"`
/// gives another name, `flatten` none. A field of a tuple has its index, the only field of a tuple
/// nothing. A variant adds nothing of its own.
///
/// # On the struct or enum
/// | attribute | |
/// |---|---|
/// | `name = "Adapted"` | the name of the LoRA type |
/// | `derive(PartialEq)` | derives for the LoRA type |
/// | `bound = "T: LoraModel"` | where clauses, instead of those inferred from the fields |
/// | `plain` | the type holds no layers: it is its own LoRA type |
/// | `crate = "path"` | where the `lora` crate is |
///
/// An enum without fields is plain. A plain type is `Clone` and `Debug`.
///
/// # Parameters
/// A type parameter `T` of a field gets the bound `T: LoraModel`; with `rank`, `T: LoraLayer`. The
/// LoRA type has the parameters of the base type, not their LoRA types: `LoraBlock<LayerNorm>`.
#[proc_macro_derive(LoraModel, attributes(lora))]
pub fn derive_lora_model(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::derive(&input).into()
}

/// Gives the LoRA type the methods of an impl block: emits the block, and a copy of it.
///
/// ```
/// # use candle_core::{Result, Tensor};
/// # use candle_nn::{Activation, Linear, Module};
/// # use lora::LoraModel;
/// #
/// # #[derive(LoraModel)]
/// # pub struct Mlp { fc1: Linear, fc2: Linear, act: Activation }
/// #
/// #[lora::forward]
/// impl Module for Mlp {
///     fn forward(&self, xs: &Tensor) -> Result<Tensor> {
///         xs.apply(&self.fc1)?.apply(&self.act)?.apply(&self.fc2)
///     }
/// }
/// ```
///
/// It takes impls of traits and inherent ones. In the copy the type's name becomes that of the LoRA
/// type, as in `match self { FeedForward::Dense(mlp) => .. }`, and its type parameters `T` become
/// `Lora<T>`: a bound `T: Module` holds for both. Calls stay as they are: candle's fused
/// `layer_norm`, `rms_norm`, `softmax_last_dim` and `rope` stop the gradient, those of `lora::ops`
/// do not.
///
/// Methods that return `Self`, such as constructors, stay on the base; in an impl of a trait they
/// are an error. `#[lora(skip)]` on a method keeps it on the base, too.
///
/// | argument | |
/// |---|---|
/// | `name = "Adapted"` | the name of the LoRA type, where the derive has one |
/// | `skip(T)` | type parameters that are no layers |
/// | `also(Other)` | other types whose names become those of their LoRA types |
/// | `crate = "path"` | where the `lora` crate is |
#[proc_macro_attribute]
pub fn forward(args: TokenStream, input: TokenStream) -> TokenStream {
    forward::expand(args.into(), input.into()).into()
}
