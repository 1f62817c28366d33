//! Calls of macros with any tokens: keywords, types, patterns, layers.
#![allow(clippy::all, reason = "the tokens count, not what is simplest")]

use super::{F32, adapted, linear, live};
use candle_core::{Module, Result, Tensor};
use candle_nn::Linear;
use lora::LoraModel;
use lora_tests::fixed;

macro_rules! chain {
    ($xs:expr => $first:expr $(, $next:expr)* $(; unless $stop:ident is $($kind:ident)|+)?) => {{
        let ys = $first.forward($xs)?;
        $(let ys = $next.forward(&ys)?;)*
        $(let ys = match $stop { $(Self::$kind { .. } => ys.clone(),)+ _ => ys.tanh()? };)?
        ys
    }};
}

#[derive(Clone, Debug, LoraModel)]
enum Part<T> {
    One {
        #[lora(rank)]
        fc: Linear,
    },
    Two(T, T),
}

#[lora::forward]
impl<T: Module> Module for Part<T> {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let n = xs.dim(0)?;
        let sizes = vec![n as f64, 1u8 as f64, {
            const N: usize = 2;
            N
        } as f64];
        assert!(
            matches!(sizes.len() as i64, 1.. if true),
            "{}: as, fn, impl",
            n as i32
        );
        debug_assert_eq!(sizes[2] as usize, 2, "`for` and `where`");
        if n == usize::MAX {
            candle_core::bail!(
                "{} of {:?} as a match",
                n as f32,
                std::any::type_name::<T>()
            );
        }
        let text = format!("{:?} {n:>width$}", self as *const Self, width = n as usize);
        assert!(!text.is_empty() && matches!(self, Self::One { .. } | Part::Two(..)));
        let ys = match self {
            Part::One { fc } => chain!(xs => fc; unless self is One),
            Part::Two(first, second) => chain!(xs => first, second; unless self is Two),
        };
        ys * sizes[1..].iter().map(|x| *x as f64).sum::<f64>()
    }
}

#[derive(Clone, Debug, LoraModel)]
struct Net {
    parts: Vec<Part<Linear>>,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let [first, second] = &self.parts[..] else {
            unreachable!("{} parts", self.parts.len() as u32)
        };
        let ys = chain!(xs => first, second);
        let both = vec![first.forward(xs)?; 2];
        let [ref left, ref right] = both[..] else {
            candle_core::bail!("type")
        };
        (ys + (left + right)?)? * 0.5
    }
}

#[test]
fn any_tokens() {
    let net = Net {
        parts: vec![
            Part::One {
                fc: linear(3, 3, 1),
            },
            Part::Two(linear(3, 4, 3), linear(4, 3, 5)),
        ],
    };
    let model = live("macros", &net, &fixed((2, 3), F32, 7));
    assert_eq!(adapted(&model), ["parts.0.fc"]);
}
