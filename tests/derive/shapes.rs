//! Structs and enums of every shape.

use super::{check, linear, norm, outline};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, LayerNorm, Linear};
use lora::{LoraConfig, LoraModel, LoraModule, WithLora};
use std::collections::BTreeMap;

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
