//! Names that mean something else here, types inside functions and from macros, and the attributes of
//! a container.

use super::{check, linear, outline};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Linear, Module};
use lora::{LoraModel, LoraModule};

#[derive(Clone, Debug, LoraModel)]
#[lora(
    name = "Adapted",
    derive(Default),
    bound = "T: LoraModel<Lora = T> + Default"
)]
struct Renamed<T>
where
    T: LoraModule<Base = T>,
{
    value: T,
    #[cfg(any())]
    gone: Missing,
    #[cfg_attr(all(), lora(skip))]
    skipped: (u8, T),
}

#[test]
fn container_attributes_and_cfg() {
    let base = Renamed {
        value: 3usize,
        skipped: (1, 2),
    };
    let model: Adapted<usize> = base.to_frozen().unwrap();
    assert_eq!((model.value, model.skipped), (3, (1, 2)));
    assert_eq!(Adapted::<usize>::default().value, 0);
}

mod shadowed {
    //! Names of the prelude and of the crate mean something else here.
    #![allow(dead_code, non_camel_case_types)]

    use candle_nn::Linear as Proj;

    pub struct Result;
    pub struct Option;
    pub struct Some;
    pub struct Ok;
    pub struct Clone;
    pub struct Debug;
    pub struct Builder;
    pub struct Mark;
    pub struct Lora;
    pub mod core {}
    pub mod std {}
    pub mod lora {}

    #[derive(::lora::LoraModel)]
    pub(super) struct Layers {
        #[lora(rank = 2, alpha = 1.0)]
        pub(in crate::derive::names::shadowed) cx: Proj,
        pub(super) cursor: Proj,
    }

    #[derive(::lora::LoraModel)]
    pub(super) enum Choice {
        A { cx: Proj, cursor: Proj, f: Proj },
        B(Proj, #[lora(skip)] u8),
    }

    impl Layers {
        pub(super) fn new(proj: &Proj) -> Self {
            Self {
                cx: proj.clone(),
                cursor: proj.clone(),
            }
        }
    }
}

#[test]
fn hygiene() {
    let base = shadowed::Layers::new(&linear(2, 2));
    let model = check(&base, &["cx.weight", "cx:2", "cursor.weight"]);
    assert_eq!(
        model
            .cursor
            .forward(&Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap())
            .unwrap()
            .dims(),
        [1, 2]
    );
    let proj = linear(2, 2);
    let choice = shadowed::Choice::A {
        cx: proj.clone(),
        cursor: proj.clone(),
        f: proj.clone(),
    };
    let frozen = choice.to_frozen().unwrap();
    assert_eq!(outline(&frozen), ["cx.weight", "cursor.weight", "f.weight"]);
    let frozen = shadowed::Choice::B(proj, 1).to_frozen().unwrap();
    assert_eq!(outline(&frozen), ["0.weight"]);
}

#[test]
fn inside_a_function() {
    #[derive(Clone, Debug, LoraModel)]
    struct Local {
        #[lora(rank)]
        fc: Linear,
    }
    check(&Local { fc: linear(2, 2) }, &["fc.weight", "fc:2"]);
}

macro_rules! models {
    ($($name:ident $lora:literal { $($field:ident: $ty:ty),* })*) => {$(
        #[derive(Clone, Debug, LoraModel)]
        #[lora(name = $lora)]
        struct $name {
            $(#[lora(rank)] $field: $ty,)*
        }
    )*};
}

models! {
    FromMacro "OfMacro" { fc: Linear, more: Vec<Linear> }
}

#[test]
fn from_a_macro() {
    let base = FromMacro {
        fc: linear(2, 2),
        more: vec![],
    };
    let _: OfMacro = check(&base, &["fc.weight", "fc:2"]);
}
