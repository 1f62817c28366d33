//! Layers of another crate: one that carries adapters, and one that does not.

use candle_core::{D, DType, Module, Result, Tensor};
use lora::{
    Access, Adapted, Adapters, Builder, Copies, Cursor, CursorMut, Form, Init, Kind, Layer,
    LayerParts, LayerPartsMut, LoraConfig, LoraLayer, LoraModel, LoraModule, Param, Role,
};
use lora_tests::{assert_close, check_gradients, fill_adapters, fixed};

/// Scores the angle between the input and each class: y = x·Ŵᵀ, the rows of Ŵ of length 1.
#[derive(Clone, Debug)]
struct Cosine {
    weight: Tensor,
}

impl Module for Cosine {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let norms = self.weight.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
        xs.matmul(&self.weight.broadcast_div(&norms)?.t()?)
    }
}

#[derive(Clone, Debug)]
struct LoraCosine {
    weight: Tensor,
    adapters: Adapters,
}

impl Module for LoraCosine {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let weight = self.adapted_weight()?;
        Cosine { weight }.forward(xs)
    }
}

impl LoraModel for Cosine {
    type Lora = LoraCosine;

    fn adapt(&self, cx: &mut Builder<'_>) -> lora::Result<LoraCosine> {
        let (weight, adapters) = (cx.parameter(&self.weight), cx.adapters());
        cx.layer(LoraCosine { weight, adapters })
    }
}

impl LoraLayer for Cosine {}

impl LoraModule for LoraCosine {
    type Base = Cosine;

    fn to_base(&self) -> lora::Result<Cosine> {
        let (weight, _) = self.base_parts()?;
        Ok(Cosine { weight })
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        cursor.layer(self);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        cursor.layer(self);
    }
}

impl Adapted for LoraCosine {
    fn layer_kind(&self) -> Kind {
        Kind::Other("Cosine")
    }

    fn form(&self) -> Form {
        Form::Linear
    }

    /// Not `weight`: initial values, merging and files must ask for the name.
    fn weight_name(&self) -> &'static str {
        "directions"
    }

    fn parts(&self) -> LayerParts<'_> {
        LayerParts {
            weight: &self.weight,
            bias: None,
            adapters: &self.adapters,
        }
    }

    fn parts_mut(&mut self, _: Access) -> LayerPartsMut<'_> {
        LayerPartsMut {
            weight: &mut self.weight,
            bias: None,
            adapters: &mut self.adapters,
        }
    }
}

/// Multiplies each channel by a factor: no adapter, but it can be trained in full.
#[derive(Clone, Debug)]
struct Scale {
    factors: Tensor,
}

#[derive(Clone, Debug)]
struct LoraScale {
    factors: Tensor,
    copies: Copies,
}

impl Module for Scale {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.broadcast_mul(&self.factors)
    }
}

impl Module for LoraScale {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.broadcast_mul(&self.factors)
    }
}

impl LoraModel for Scale {
    type Lora = LoraScale;

    fn adapt(&self, cx: &mut Builder<'_>) -> lora::Result<LoraScale> {
        let (factors, copies) = (cx.parameter(&self.factors), Copies::default());
        cx.layer(LoraScale { factors, copies })
    }
}

impl LoraModule for LoraScale {
    type Base = Scale;

    fn to_base(&self) -> lora::Result<Scale> {
        let factors = self.factors.detach().copy()?;
        Ok(Scale { factors })
    }

    fn visit(&self, cursor: &mut Cursor<'_>) {
        cursor.layer(self);
    }

    fn visit_mut(&mut self, cursor: &mut CursorMut<'_>) {
        cursor.layer(self);
    }
}

impl Layer for LoraScale {
    fn kind(&self) -> Kind {
        Kind::Other("Scale")
    }

    fn params(&self) -> Vec<Param<&Tensor>> {
        vec![Param::new("factors", Role::Base, &self.factors)]
    }

    fn params_mut(&mut self, _: Access) -> Vec<Param<&mut Tensor>> {
        vec![Param::new("factors", Role::Base, &mut self.factors)]
    }

    fn copies(&self) -> Option<&Copies> {
        Some(&self.copies)
    }

    fn copies_mut(&mut self, _: Access) -> Option<&mut Copies> {
        Some(&mut self.copies)
    }
}

#[derive(Clone, Debug, LoraModel)]
struct Net {
    #[lora(rank)]
    cosine: Cosine,
    #[lora(trainable)]
    scale: Scale,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.scale.forward(&self.cosine.forward(xs)?)
    }
}

fn net() -> Net {
    Net {
        cosine: Cosine {
            weight: fixed((4, 6), DType::F64, 1),
        },
        scale: Scale {
            factors: fixed(4, DType::F64, 2),
        },
    }
}

#[test]
fn they_train_merge_and_come_back() -> lora::Result<()> {
    for config in [
        LoraConfig::new(2).alpha(3.0),
        LoraConfig::new(2).use_dora(true),
        LoraConfig::new(2).init(Init::Pissa),
    ] {
        let mut model = net().to_lora(&config)?;
        let xs = fixed((3, 6), DType::F64, 3);
        assert_close("start", &model.forward(&xs)?, &net().forward(&xs)?, 1e-9);
        fill_adapters(&model);
        let expected = model.forward(&xs)?;
        model.merge()?;
        assert_close("merged", &model.forward(&xs)?, &expected, 1e-9);
        model.unmerge()?;
        assert_close("base", &model.to_base()?.forward(&xs)?, &expected, 1e-9);

        let dir = tempfile::tempdir().unwrap();
        model.save_adapter(dir.path())?;
        let loaded = net().with_adapter(dir.path())?;
        assert_close("loaded", &loaded.forward(&xs)?, &expected, 1e-6);
    }
    Ok(())
}

#[test]
fn their_gradients_are_right() -> lora::Result<()> {
    let model = net().to_lora(&LoraConfig::new(2).alpha(3.0))?;
    fill_adapters(&model);
    let vars = model.trainable_vars();
    assert_eq!(vars.len(), 3, "A, B and the factors");
    let named = ["A", "B", "factors"].into_iter().zip(&vars);
    let named: Vec<_> = named.collect();
    let xs = fixed((3, 6), DType::F64, 3);
    check_gradients("own layers", &named, || model.forward(&xs));
    Ok(())
}

/// The summary tells of a rank that is of no use.
#[test]
fn a_rank_above_the_smaller_side_is_told_of() -> lora::Result<()> {
    let summary = net().to_lora(&LoraConfig::new(5))?.summary();
    assert_eq!(summary.rows[0].largest_rank, Some(4));
    let text = summary.to_string();
    let note = "note: a rank above the smaller side of a weight makes the adapter larger, but it can \
                express no more: `cosine` (5 > 4)";
    assert!(text.lines().any(|line| line == note), "{text}");
    let fitting = net().to_lora(&LoraConfig::new(4))?.summary();
    assert!(!fitting.to_string().contains("note"));
    Ok(())
}
