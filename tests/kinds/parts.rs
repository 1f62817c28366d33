//! Tuples whose parts have attributes.

use super::{F32, adapted, linear, live, norm};
use candle_core::{Module, Result, Tensor};
use candle_nn::{LayerNorm, Linear};
use lora::{LoraLayer, LoraModel, LoraModule};
use lora_tests::fixed;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

type Closure = dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync;

/// No model, and not `Debug`.
#[derive(Clone)]
struct Shift(f64);

#[derive(Clone, LoraModel)]
struct Block {
    #[lora(name = "attention", 0(rank, name = "query"), 1(name = "norm"))]
    attn: (Linear, LayerNorm),
    #[lora(flatten, 0(rank = 3, name = "fc"), 1(skip))]
    layers: Vec<(Linear, Option<Shift>)>,
    #[allow(clippy::type_complexity)]
    #[lora(0(rank), 1(0(skip), 1(trainable)), 2(flatten))]
    nested: Option<Box<(Linear, (Arc<Closure>, Linear), LayerNorm)>>,
    #[lora(routed, 0(rank))]
    experts: [(Linear, f64); 2],
    #[lora(0(rank))]
    more: BTreeMap<String, Rc<(Linear,)>>,
}

#[lora::forward]
impl Module for Block {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (query, norm) = &self.attn;
        let mut xs = xs.apply(query)?.apply(norm)?;
        for (fc, shift) in &self.layers {
            xs = xs.apply(fc)?;
            if let Some(Shift(shift)) = shift {
                xs = (xs + *shift)?;
            }
        }
        if let Some((first, (closure, second), norm)) = self.nested.as_deref() {
            xs = closure(&xs.apply(first)?)?.apply(second)?.apply(norm)?;
        }
        for (expert, scale) in &self.experts {
            xs = (xs.apply(expert)? * *scale)?;
        }
        for part in self.more.values() {
            xs = xs.apply(&part.0)?;
        }
        Ok(xs)
    }
}

/// A tuple with a tuple, and a variant with one.
#[derive(Clone, LoraModel)]
struct Pair(#[lora(0(rank), 1(skip))] (Linear, Shift), Head);

#[derive(Clone, LoraModel)]
enum Head {
    Scaled {
        #[lora(name = "head", 1(rank, flatten))]
        head: (f64, Linear),
    },
    Shifted(#[lora(0(skip), 1(rank))] (Shift, Linear)),
}

#[lora::forward]
impl Module for Pair {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let Self((fc, shift), head) = self;
        let xs = (xs.apply(fc)? + shift.0)?;
        match head {
            Head::Scaled { head: (scale, fc) } => xs.apply(fc)? * *scale,
            Head::Shifted((shift, fc)) => xs.apply(fc)? + shift.0,
        }
    }
}

fn block() -> Block {
    Block {
        attn: (linear(4, 4, 1), norm(4, 3)),
        layers: vec![(linear(4, 4, 5), Some(Shift(0.5))), (linear(4, 4, 7), None)],
        nested: Some(Box::new((
            linear(4, 4, 9),
            (Arc::new(|xs| xs.tanh()), linear(4, 4, 11)),
            norm(4, 13),
        ))),
        experts: [(linear(4, 4, 15), 2.0), (linear(4, 4, 17), 0.5)],
        more: BTreeMap::from([("a".into(), Rc::new((linear(4, 4, 19),)))]),
    }
}

#[test]
fn each_part_has_its_attributes() {
    let model = live("parts", &block(), &fixed((3, 4), F32, 19));
    let expected = [
        "attention.query",
        "0.fc",
        "1.fc",
        "nested.0",
        "experts.0.0",
        "experts.1.0",
        "more.a.0",
    ];
    assert_eq!(adapted(&model), expected);
    let frozen = block().to_frozen().unwrap();
    let paths: Vec<_> = (frozen.named_params().into_iter())
        .map(|param| param.path)
        .filter(|path| path.ends_with("weight"))
        .collect();
    let expected = [
        "attention.query.weight",
        "attention.norm.weight",
        "0.fc.weight",
        "1.fc.weight",
        "nested.0.weight",
        "nested.1.1.weight",
        "nested.weight",
        "experts.0.0.weight",
        "experts.1.0.weight",
        "more.a.0.weight",
    ];
    assert_eq!(paths, expected);
    let trained = model.named_params().into_iter();
    let trained = trained.filter(|param| param.is_trainable() && !param.path.contains("lora_"));
    let paths: Vec<_> = trained.map(|param| param.path).collect();
    assert_eq!(paths, ["nested.1.1.weight", "nested.1.1.bias"]);
    let ranks: Vec<_> = (model.summary().rows.into_iter())
        .filter_map(|row| row.rank)
        .collect();
    assert_eq!(ranks, [2, 3, 3, 2, 2, 2, 2]);
    // What is skipped need not be `Debug`: such fields are left out.
    let debug = format!("{model:?}");
    assert!(debug.contains("attn: (LoraLinear"), "{debug}");
    assert!(
        !debug.contains("layers") && debug.ends_with(", .. }"),
        "{debug}"
    );
}

#[test]
fn in_tuples_and_variants() {
    let heads = [
        Head::Scaled {
            head: (0.5, linear(3, 2, 3)),
        },
        Head::Shifted((Shift(1.0), linear(3, 2, 3))),
    ];
    let paths = [["0.0", "1.head"], ["0.0", "1.1"]];
    for (head, paths) in heads.into_iter().zip(paths) {
        let net = Pair((linear(4, 3, 1), Shift(0.5)), head);
        let model = live("Pair", &net, &fixed((3, 4), F32, 19));
        assert_eq!(adapted(&model), paths);
    }
}

/// A parameter has the bounds of what its part is.
#[derive(Clone, LoraModel)]
struct Generic<T, S, const N: usize>(#[lora(0(rank), 1(skip))] [(T, S); N]);

#[lora::forward(skip(S))]
impl<T: LoraLayer + Module, S: Clone + Into<f64>, const N: usize> Module for Generic<T, S, N> {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut parts = self.0.iter();
        parts.try_fold(xs.clone(), |xs, (part, scale)| {
            xs.apply(part)? * scale.clone().into()
        })
    }
}

#[test]
fn of_parameters() {
    let net = Generic([(linear(4, 3, 1), 2.0f32), (linear(3, 4, 3), 0.5)]);
    let model = live("Generic", &net, &fixed((3, 4), F32, 19));
    assert_eq!(adapted(&model), ["0.0", "1.0"]);
}
