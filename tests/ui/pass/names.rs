//! Names: of the LoRA type, of the crate, shadowed ones, those of a macro.
#![deny(warnings, missing_docs, clippy::all)]
#![allow(dead_code)]
#![allow(dead_code)]

use candle_nn::Linear;
use lora::{Lora, LoraModel};

mod reexported {
    //! The crate under another path.
    pub mod inner {
        //! Deeper.
        pub use lora as adapters;
    }
}

/// Names the type of its configuration.
#[derive(LoraModel)]
struct Configured(#[lora(config = NumberConfig)] u8, #[lora(skip)] u8);

/// Names its LoRA type and the crate, has a derive more.
#[derive(LoraModel)]
#[lora(
    name = "Adapted",
    crate = "reexported::inner::adapters",
    derive(Default)
)]
struct Base {
    #[lora(skip)]
    value: u8,
    list: Vec<Linear>,
}

#[lora::forward(name = "Adapted", crate = "reexported::inner::adapters")]
impl Base {
    fn len(&self) -> usize {
        self.list.len()
    }
}

mod shadowed {
    //! Names of the prelude and of the crate that mean something else.
    #![allow(non_camel_case_types)]

    pub struct Result;
    pub struct Option;
    pub struct Some;
    pub struct None;
    pub struct Ok;
    pub struct Clone;
    pub struct Debug;
    pub struct Builder;
    pub struct Lora;
    pub mod core {}
    pub mod std {}
    pub mod lora {}

    #[derive(::lora::LoraModel)]
    enum Shadowed {
        A {
            #[lora(rank)]
            cx: super::Linear,
            cursor: super::Linear,
            f: super::Linear,
        },
        B(super::Linear, super::Linear),
    }

    #[::lora::forward]
    impl Shadowed {
        fn first(&self) -> bool {
            matches!(self, Shadowed::A { .. })
        }
    }
}

macro_rules! models {
    ($($name:ident { $($field:ident: $ty:ty),* })*) => {$(
        #[derive(LoraModel)]
        struct $name {
            $(#[lora(rank)] $field: $ty,)*
        }

        #[lora::forward]
        impl $name {
            fn count(&self) -> usize {
                [$({ let _ = &self.$field; 1 }),*].iter().sum()
            }
        }
    )*};
}

models! {
    One { fc: Linear }
    Two { a: Vec<Linear>, b: [Linear; 2] }
}

pub fn main() {
    let _: fn(&LoraConfigured) -> &NumberConfig = |net| &net.0;
    let _: fn(&Lora<Base>) -> usize = Adapted::len;
    let _: fn(&LoraTwo) -> usize = LoraTwo::count;

    #[derive(LoraModel)]
    struct Local(#[lora(rank)] Linear);
    let _: fn(LoraLocal) -> Lora<Linear> = |local| local.0;
}
