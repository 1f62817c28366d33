//! Enums, with variants of any name.

use super::{F32, adapted, linear, live, norm};
use candle_core::{Module, Result, Tensor};
use candle_nn::{LayerNorm, Linear};
use lora::LoraModel;
use lora_tests::fixed;

/// Variants may be called as what the traits call their types.
#[derive(Clone, Debug, LoraModel)]
enum Names {
    Lora(#[lora(rank)] Linear),
    Base(#[lora(rank)] Linear),
    Layer(LayerNorm),
}

#[derive(Clone, Debug, LoraModel)]
struct Layer {
    names: Vec<Names>,
}

#[lora::forward]
impl Module for Layer {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.names
            .iter()
            .try_fold(xs.clone(), |xs, name| match name {
                Names::Lora(fc) | Names::Base(fc) => fc.forward(&xs),
                Names::Layer(norm) if matches!(name, Names::Layer(_)) => norm.forward(&xs),
                Names::Layer(_) => Ok(xs),
            })
    }
}

/// A variant of the user type's name, which is a layer's, too.
#[derive(Clone, Debug, LoraModel)]
#[allow(clippy::enum_variant_names)]
enum Linears {
    Linears(#[lora(rank)] Linear),
    Linear {
        #[lora(rank)]
        linear: Linear,
    },
    LoraLinears(LayerNorm),
    Identity,
}

#[lora::forward]
impl Linears {
    fn is_layer(&self) -> bool {
        use Linears::{Identity, Linears as Inner};
        match self {
            Inner(_) | Linears::Linear { linear: _ } => true,
            Linears::LoraLinears(_) | Identity => false,
        }
    }
}

#[lora::forward]
impl Module for Linears {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linears(linear) | Self::Linear { linear } => linear.forward(xs),
            Linears::LoraLinears(norm) => norm.forward(xs),
            Self::Identity => Ok(xs.clone()),
        }
    }
}

#[derive(Clone, Debug, LoraModel)]
struct Net {
    layer: Layer,
    linears: [Linears; 4],
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let Self { layer, linears } = self;
        let xs = layer.forward(xs)?;
        let layers = linears.iter().filter(|linears| linears.is_layer());
        assert_eq!(layers.count(), 2);
        linears.iter().try_fold(xs, |xs, part| part.forward(&xs))
    }
}

#[test]
fn variants_of_any_name() {
    let names = vec![
        Names::Lora(linear(2, 2, 1)),
        Names::Layer(norm(2, 3)),
        Names::Base(linear(2, 2, 5)),
    ];
    let linears = [
        Linears::Linears(linear(2, 3, 7)),
        Linears::LoraLinears(norm(3, 9)),
        Linears::Linear {
            linear: linear(3, 2, 11),
        },
        Linears::Identity,
    ];
    let base = Net {
        layer: Layer { names },
        linears,
    };
    let model = live("enums", &base, &fixed((3, 2), F32, 13));
    let expected = [
        "layer.names.0",
        "layer.names.2",
        "linears.0",
        "linears.2.linear",
    ];
    assert_eq!(adapted(&model), expected);
    assert!(matches!(model.layer.names[1], LoraNames::Layer(_)));
    assert!(matches!(model.linears[3], LoraLinears::Identity));
}
