//! What `#[derive(LoraModel)]` makes of each shape of type: paths, marks, conversions.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, LayerNorm, Linear, Module};
use lora::{Lora, LoraConfig, LoraModel, LoraModule, WithLora};
use std::collections::BTreeMap;
use std::marker::PhantomData;

fn linear(inputs: usize, outputs: usize) -> Linear {
    let weight = Tensor::ones((outputs, inputs), DType::F32, &Device::Cpu).unwrap();
    Linear::new(weight, None)
}

fn norm(width: usize) -> LayerNorm {
    let weight = Tensor::ones(width, DType::F32, &Device::Cpu).unwrap();
    LayerNorm::new_no_bias(weight, 1e-5)
}

/// The paths of the parameters with a rank for each adapter: `fc1.weight`, `fc1:2`; trained base
/// parameters with a star: `head.weight*`.
fn outline<M: LoraModule>(model: &M) -> Vec<String> {
    let mut outline = Vec::new();
    for param in model.named_params() {
        if let Some((layer, _)) = param.path.split_once(".lora_A") {
            outline.push(format!("{layer}:{}", param.tensor.dims()[0]));
        } else if !param.path.contains("lora_") {
            let star = if param.is_trainable() { "*" } else { "" };
            outline.push(format!("{}{star}", param.path));
        }
    }
    outline
}

/// Converts with rank 2, checks the outline and that the way back gives the same parameters.
fn check<B: LoraModel>(base: &B, expected: &[&str]) -> Lora<B> {
    let model = base.to_lora(&LoraConfig::new(2)).unwrap();
    assert_eq!(outline(&model), expected);
    let back = model.to_base().unwrap();
    let (before, after) = (base.to_frozen().unwrap(), back.to_frozen().unwrap());
    assert_eq!(outline(&before), outline(&after));
    model
}

#[derive(Clone, Debug, LoraModel)]
struct Mlp {
    #[lora(rank)]
    fc1: Linear,
    #[lora(rank = 3, alpha = 6.0, dropout = 0.25)]
    fc2: Linear,
    act: Activation,
    #[lora(name = "ln")]
    norm: LayerNorm,
    #[lora(trainable)]
    head: Linear,
    #[lora(skip)]
    size: (usize, usize, f32),
}

fn mlp() -> Mlp {
    Mlp {
        fc1: linear(4, 6),
        fc2: linear(6, 4),
        act: Activation::Relu,
        norm: norm(4),
        head: linear(4, 2),
        size: (1, 2, 0.5),
    }
}

const MLP: [&str; 6] = [
    "fc1.weight",
    "fc1:2",
    "fc2.weight",
    "fc2:3",
    "ln.weight",
    "head.weight*",
];

#[test]
fn a_struct_with_each_mark() {
    let model: LoraMlp = check(&mlp(), &MLP);
    assert_eq!(model.size, (1, 2, 0.5));
    assert_eq!(model.to_base().unwrap().size, (1, 2, 0.5));
    let debug = format!("{model:?}");
    assert!(debug.starts_with("LoraMlp { fc1: LoraLinear"), "{debug}");
    assert!(debug.contains("alpha: 6.0"), "{debug}");
    assert!(debug.contains("dropout: 0.25"), "{debug}");
}

#[derive(Clone, Debug, LoraModel)]
struct Pair(#[lora(rank)] Linear, #[lora(rank, alpha = 8)] Linear);

#[derive(Clone, Debug, LoraModel)]
struct Wrapper(#[lora(rank)] Linear);

#[derive(Clone, Debug, LoraModel)]
struct Named(#[lora(rank, name = "proj")] Linear);

#[derive(Clone, Debug, LoraModel)]
struct Plain(Wrapper);

#[derive(Clone, Debug, LoraModel)]
struct Unit;

#[derive(Clone, Debug, LoraModel)]
struct Tuples {
    pair: Pair,
    wrapper: Wrapper,
    named: Named,
    plain: Plain,
    unit: Unit,
}

#[test]
fn tuple_structs_add_indices_and_newtypes_nothing() {
    let base = Tuples {
        pair: Pair(linear(2, 2), linear(2, 2)),
        wrapper: Wrapper(linear(2, 2)),
        named: Named(linear(2, 2)),
        plain: Plain(Wrapper(linear(2, 2))),
        unit: Unit,
    };
    let model = check(
        &base,
        &[
            "pair.0.weight",
            "pair.0:2",
            "pair.1.weight",
            "pair.1:2",
            "wrapper.weight",
            "wrapper:2",
            "named.proj.weight",
            "named.proj:2",
            "plain.weight",
            "plain:2",
        ],
    );
    let LoraUnit = model.unit;
    assert!(format!("{model:?}").ends_with("unit: LoraUnit }"));
}

#[derive(Clone, Debug, LoraModel)]
struct Flat {
    #[lora(flatten)]
    inner: Wrapper,
    #[lora(flatten, rank = 5)]
    many: BTreeMap<String, Linear>,
    #[lora(name = "mlp.fc")]
    deep: Wrapper,
    r#type: Wrapper,
}

#[test]
fn flatten_name_and_raw_identifiers() {
    let base = Flat {
        inner: Wrapper(linear(2, 2)),
        many: BTreeMap::from([("a".to_string(), linear(8, 8))]),
        deep: Wrapper(linear(2, 2)),
        r#type: Wrapper(linear(2, 2)),
    };
    check(
        &base,
        &[
            "weight",
            "lora_A.default.weight",
            "a.weight",
            "a:5",
            "mlp.fc.weight",
            "mlp.fc:2",
            "type.weight",
            "type:2",
        ]
        .into_iter()
        .filter(|path| !path.contains("lora_"))
        .collect::<Vec<_>>(),
    );
}

#[derive(Clone, Debug, LoraModel)]
enum FeedForward {
    Dense(Mlp),
    Two(#[lora(rank)] Linear, Linear),
    Experts {
        #[lora(trainable)]
        gate: Linear,
        #[lora(rank)]
        experts: Vec<Linear>,
        #[lora(skip)]
        top: Option<(usize, f64)>,
    },
    Scaled(#[lora(rank)] Linear, #[lora(skip)] std::rc::Rc<f64>),
    Identity,
}

#[test]
fn an_enum() {
    let base = vec![
        FeedForward::Dense(mlp()),
        FeedForward::Two(linear(2, 2), linear(2, 2)),
        FeedForward::Experts {
            gate: linear(2, 2),
            experts: vec![linear(2, 2), linear(2, 2)],
            top: Some((1, 0.5)),
        },
        FeedForward::Scaled(linear(2, 2), std::rc::Rc::new(2.0)),
        FeedForward::Identity,
    ];
    let mlp = MLP.map(|path| format!("0.{path}"));
    let mut expected: Vec<&str> = mlp.iter().map(String::as_str).collect();
    expected.extend([
        "1.0.weight",
        "1.0:2",
        "1.1.weight",
        "2.gate.weight*",
        "2.experts.0.weight",
        "2.experts.0:2",
        "2.experts.1.weight",
        "2.experts.1:2",
        "3.0.weight",
        "3.0:2",
    ]);
    let model = check(&base, &expected);
    let LoraFeedForward::Experts { top, experts, .. } = &model[2] else {
        panic!("{:?}", model[2]);
    };
    assert_eq!((*top, experts.len()), (Some((1, 0.5)), 2));
    assert!(matches!(model[4], LoraFeedForward::Identity));
    assert!(format!("{:?}", model[3]).starts_with("Scaled(LoraLinear"));
}

#[test]
fn a_field_without_a_mark_can_be_a_target() {
    let base = FeedForward::Two(linear(2, 2), linear(2, 2));
    let config = LoraConfig::new(2).target_modules(["1"]);
    let model = base.to_lora(&config).unwrap();
    assert_eq!(outline(&model), ["0.weight", "1.weight", "1:2"]);
}

#[derive(Clone, Copy, Debug, PartialEq, LoraModel)]
enum Pooling {
    Mean,
    #[allow(dead_code)]
    Max,
}

#[derive(Clone, Debug, PartialEq, LoraModel)]
#[lora(plain)]
struct Rotary<T> {
    theta: T,
    cos: Vec<f32>,
}

#[derive(Clone, Debug, LoraModel)]
struct Values {
    pooling: Pooling,
    rotary: Rotary<f64>,
    #[lora(rank)]
    proj: Linear,
    table: Tensor,
}

#[test]
fn plain_types_are_their_own() {
    let base = Values {
        pooling: Pooling::Mean,
        rotary: Rotary {
            theta: 1e4,
            cos: vec![1.0],
        },
        proj: linear(2, 2),
        table: Tensor::ones(3, DType::F32, &Device::Cpu).unwrap(),
    };
    let model = check(&base, &["proj.weight", "proj:2", "table"]);
    assert_eq!(model.pooling, Pooling::Mean);
    assert_eq!(model.rotary, base.rotary);
}

#[derive(Clone, Debug, PartialEq)]
struct NetConfig {
    width: usize,
}

#[derive(Clone, Debug, LoraModel)]
struct Net {
    #[lora(config = LoraNetConfig)]
    config: NetConfig,
    #[lora(rank)]
    layers: [Linear; 2],
    bottleneck: Option<Box<Mlp>>,
}

#[test]
fn the_config_is_a_superset() {
    let base = Net {
        config: NetConfig { width: 2 },
        layers: [linear(2, 2), linear(2, 2)],
        bottleneck: None,
    };
    let model = check(
        &base,
        &[
            "layers.0.weight",
            "layers.0:2",
            "layers.1.weight",
            "layers.1:2",
        ],
    );
    let config: &LoraNetConfig = &model.config;
    let same: &WithLora<NetConfig> = config;
    assert_eq!((same.width, config.lora().rank), (2, 2));
    assert_eq!(model.to_base().unwrap().config, NetConfig { width: 2 });
}

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
        pub(in crate::derive::shapes::shadowed) cx: Proj,
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
