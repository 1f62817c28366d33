//! Types with parameters, and types that hold themselves.

use super::{check, linear, norm};
use candle_nn::{Activation, LayerNorm, Linear};
use lora::LoraModel;
use std::marker::PhantomData;

trait Family {
    type Norm: LoraModel + Clone + std::fmt::Debug;
}

#[derive(Clone, Debug)]
struct Layered;

impl Family for Layered {
    type Norm = LayerNorm;
}

#[derive(Clone, Debug, LoraModel)]
struct Generic<'a, F: Family, P, const N: usize, A = Activation>
where
    P: Clone,
{
    norm: F::Norm,
    #[lora(rank)]
    projs: [P; N],
    act: A,
    #[lora(skip)]
    func: candle_nn::Func<'a>,
    #[lora(skip)]
    label: &'a str,
    marker: PhantomData<F>,
}

#[test]
fn generics() {
    let base: Generic<'_, Layered, Linear, 1> = Generic {
        norm: norm(2),
        projs: [linear(2, 2)],
        act: Activation::Relu,
        func: candle_nn::func(|xs| Ok(xs.clone())),
        label: "label",
        marker: PhantomData,
    };
    let model: LoraGeneric<'_, Layered, Linear, 1> =
        check(&base, &["norm.weight", "projs.0.weight", "projs.0:2"]);
    assert_eq!(model.label, "label");
}

#[derive(Clone, Debug, LoraModel)]
struct Tree {
    #[lora(rank)]
    root: Linear,
    children: Vec<Tree>,
    next: Option<Box<Tree>>,
    even: Option<Box<Even>>,
}

#[derive(Clone, Debug, LoraModel)]
struct Even {
    odd: Odd,
}

#[derive(Clone, Debug, LoraModel)]
enum Odd {
    More(Box<Even>),
    Last(#[lora(rank)] Linear),
}

#[derive(Clone, Debug, LoraModel)]
struct Chain<T> {
    #[lora(rank)]
    item: T,
    rest: Option<Box<Chain<T>>>,
}

#[test]
fn recursive_types() {
    let leaf = Tree {
        root: linear(2, 2),
        children: vec![],
        next: None,
        even: Some(Box::new(Even {
            odd: Odd::More(Box::new(Even {
                odd: Odd::Last(linear(2, 2)),
            })),
        })),
    };
    let tree = Tree {
        root: linear(2, 2),
        children: vec![leaf],
        next: None,
        even: None,
    };
    check(
        &tree,
        &[
            "root.weight",
            "root:2",
            "children.0.root.weight",
            "children.0.root:2",
            "children.0.even.odd.odd.weight",
            "children.0.even.odd.odd:2",
        ],
    );
    let chain = Chain {
        item: linear(2, 2),
        rest: Some(Box::new(Chain {
            item: linear(2, 2),
            rest: None,
        })),
    };
    check(
        &chain,
        &["item.weight", "item:2", "rest.item.weight", "rest.item:2"],
    );
}
