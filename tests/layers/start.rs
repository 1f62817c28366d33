//! How layers and their adapters come to be.

use super::{F32, conv1d, conv2d, linear};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Conv2d, Conv2dConfig, Embedding, Linear, Module};
use lora::layers::{LoraConv1d, LoraConv2d, LoraEmbedding};
use lora::{Init, LoraConfig, LoraModel, LoraModule};
use lora_tests::{fixed, values};

#[test]
fn initial_values_follow_peft() {
    let base = Linear::new(Tensor::zeros((300, 400), F32, &Device::Cpu).unwrap(), None);
    let ab = |init: Init| {
        let model = base
            .to_lora(&LoraConfig::new(16).init(init).seed(3))
            .unwrap();
        let adapter = model.adapters().iter().next().unwrap().clone();
        (values(adapter.a()).unwrap(), values(adapter.b()).unwrap())
    };
    let std = |v: &[f64]| (v.iter().map(|v| v * v).sum::<f64>() / v.len() as f64).sqrt();
    let largest = |v: &[f64]| v.iter().fold(0f64, |m, v| m.max(v.abs()));

    let (a, b) = ab(Init::Default);
    // U(−1/20, 1/20): standard deviation 1/20/√3.
    assert!((std(&a) / (0.05 / 3f64.sqrt()) - 1.0).abs() < 0.03);
    assert!(largest(&a) <= 0.05 && largest(&a) > 0.0499);
    assert!(b.iter().all(|&b| b == 0.0));
    let (a, b) = ab(Init::Gaussian);
    assert!((std(&a) * 16.0 - 1.0).abs() < 0.03 && b.iter().all(|&b| b == 0.0));
    let (_, b) = ab(Init::Random);
    assert!((std(&b) / (0.25 / 3f64.sqrt()) - 1.0).abs() < 0.03);

    let table = Embedding::new(Tensor::zeros((500, 40), F32, &Device::Cpu).unwrap(), 40);
    let model = table.to_lora(&LoraConfig::new(16).seed(3)).unwrap();
    let adapter = model.adapters().iter().next().unwrap();
    assert!(values(adapter.a()).unwrap().iter().all(|&a| a == 0.0));
    assert!((std(&values(adapter.b()).unwrap()) - 1.0).abs() < 0.1);
    assert_eq!(
        (adapter.a().dims(), adapter.b().dims()),
        (&[16, 500][..], &[40, 16][..])
    );
}

#[test]
fn a_seed_gives_the_same_adapters_and_paths_differ() {
    let layers = vec![linear(F32), linear(F32)];
    let config = LoraConfig::new(2).target_modules(["0", "1"]);
    let a = |config: &LoraConfig| -> Vec<Vec<f64>> {
        let model = layers.to_lora(config).unwrap();
        let layers = model.iter();
        layers
            .map(|l| values(l.adapters().iter().next().unwrap().a()).unwrap())
            .collect()
    };
    let seeded = config.clone().seed(7);
    assert_eq!(a(&seeded), a(&seeded));
    assert_ne!(a(&seeded), a(&config.clone().seed(8)));
    assert_ne!(a(&seeded)[0], a(&seeded)[1]);
    assert_ne!(a(&config), a(&config));
}

#[test]
fn constructors_take_every_base_layer() {
    let config = LoraConfig::new(2);
    assert_eq!(
        LoraConv1d::new(&conv1d(1, 1), &config)
            .unwrap()
            .trainable_vars()
            .len(),
        2
    );
    assert_eq!(
        LoraConv2d::new(&conv2d(2, 1), &config)
            .unwrap()
            .trainable_vars()
            .len(),
        2
    );
    let table = Embedding::new(fixed((7, 5), F32, 1), 5);
    assert_eq!(
        LoraEmbedding::new(&table, &config)
            .unwrap()
            .trainable_vars()
            .len(),
        2
    );
    let error = LoraConv2d::new(&conv2d(2, 1), &LoraConfig::new(3))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("rank 3 is no multiple of the convolution's 2 groups"),
        "{error}"
    );
}

#[test]
fn impossible_layers_and_settings_are_errors() {
    let error = linear(F32)
        .to_lora(&LoraConfig::new(1 << 62))
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not fit into memory"), "{error}");
    let error = linear(F32)
        .to_lora(&LoraConfig::new(usize::MAX))
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not fit into memory"), "{error}");
    for groups in [0, 3] {
        let config = Conv2dConfig {
            groups,
            ..Default::default()
        };
        let conv = Conv2d::new(fixed((8, 4, 3, 3), F32, 1), None, config);
        let error = conv.to_lora(&LoraConfig::new(4)).unwrap_err().to_string();
        assert!(
            error.contains(&format!("has no {groups} groups")),
            "{error}"
        );
    }
    let model = linear(F32).to_lora(&LoraConfig::new(2)).unwrap();
    assert!(
        model
            .to_dtype(DType::U8)
            .unwrap_err()
            .to_string()
            .contains("U8")
    );
    // Padding alone to convolve: the gradient is as empty as the input.
    let config = Conv2dConfig {
        groups: 4,
        padding: 2,
        ..Default::default()
    };
    let weight = fixed((4, 1, 3, 3), F32, 1);
    let conv = Conv2d::new(weight, None, config).to_frozen().unwrap();
    let x = Var::zeros((1, 4, 0, 5), F32, &Device::Cpu).unwrap();
    let y = conv.forward(&x).unwrap();
    assert_eq!(y.dims(), [1, 4, 2, 7]);
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(grads.get(&x).unwrap().dims(), [1, 4, 0, 5]);
}
