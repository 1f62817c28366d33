//! Transposed convolutions and PReLU: frozen with a gradient, or trained in full.

use super::F32;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{
    Conv1d, Conv1dConfig, ConvTranspose1d, ConvTranspose1dConfig, ConvTranspose2d,
    ConvTranspose2dConfig, Linear, Module, PReLU,
};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{check_gradients, fixed, values, var, whole_life};

const F64: DType = DType::F64;

fn config1d(groups: usize) -> ConvTranspose1dConfig {
    ConvTranspose1dConfig {
        stride: 2,
        padding: 1,
        output_padding: 1,
        groups,
        ..Default::default()
    }
}

const CONFIG_2D: ConvTranspose2dConfig = ConvTranspose2dConfig {
    stride: 2,
    padding: 1,
    output_padding: 1,
    dilation: 1,
};

/// An encoder and a decoder of sounds.
#[derive(Clone, Debug, LoraModel)]
struct Codec {
    #[lora(rank)]
    down: Conv1d,
    act: PReLU,
    up: ConvTranspose1d,
    #[lora(trainable)]
    last: ConvTranspose1d,
}

#[lora::forward]
impl Module for Codec {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = xs.apply(&self.down)?.apply(&self.act)?;
        xs.apply(&self.up)?.apply(&self.last)
    }
}

fn codec() -> Codec {
    let down = Conv1dConfig {
        stride: 2,
        ..Default::default()
    };
    Codec {
        down: Conv1d::new(fixed((4, 2, 3), F32, 1), Some(fixed(4, F32, 2)), down),
        act: PReLU::new(fixed(4, F32, 3), false),
        up: ConvTranspose1d::new(
            fixed((4, 2, 3), F32, 4),
            Some(fixed(4, F32, 5)),
            config1d(2),
        ),
        last: ConvTranspose1d::new(fixed((4, 2, 3), F32, 6), None, config1d(1)),
    }
}

#[test]
fn a_decoder_of_one_dimension() {
    let xs = fixed((2, 2, 9), F32, 7);
    let config = LoraConfig::new(2).seed(1);
    let model = whole_life(
        "ConvTranspose1d",
        &codec(),
        &config,
        |net| net.forward(&xs),
        |model| model.forward(&xs),
    );
    let trained: Vec<_> = (model.named_params().into_iter())
        .filter(|param| param.is_trainable())
        .map(|param| param.path)
        .collect();
    let expected = [
        "down.lora_A.default.weight",
        "down.lora_B.default.weight",
        "last.weight",
    ];
    assert_eq!(trained, expected);
}

/// A decoder of images.
#[derive(Clone, Debug, LoraModel)]
struct Upscale {
    #[lora(rank)]
    fc: Linear,
    up: ConvTranspose2d,
    #[lora(trainable)]
    act: PReLU,
}

#[lora::forward]
impl Upscale {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply(&self.fc)?.apply(&self.up)?.apply(&self.act)
    }
}

#[test]
fn a_decoder_of_two_dimensions() {
    for is_scalar in [true, false] {
        let act = fixed(if is_scalar { 1 } else { 2 }, F32, 4);
        let net = Upscale {
            fc: Linear::new(fixed((4, 4), F32, 1), None),
            up: ConvTranspose2d::new(
                fixed((3, 2, 3, 3), F32, 2),
                Some(fixed(2, F32, 3)),
                CONFIG_2D,
            ),
            act: PReLU::new(act, is_scalar),
        };
        let xs = fixed((2, 3, 3, 4), F32, 5);
        let config = LoraConfig::new(2).seed(1);
        whole_life(
            "ConvTranspose2d",
            &net,
            &config,
            |net| net.forward(&xs),
            |model| model.forward(&xs),
        );
    }
}

/// The gradients of input, weight and bias where the layer is trained.
#[test]
fn gradients_are_differences() {
    let check = |what: &str, params: &[(&str, Var)], x: &Var, f: &dyn Fn() -> Result<Tensor>| {
        let mut vars: Vec<_> = params.iter().map(|(name, var)| (*name, var)).collect();
        vars.push(("input", x));
        check_gradients(what, &vars, f);
    };
    for groups in [1, 2] {
        let (weight, bias) = (fixed((4, 3, 3), F64, 1), fixed(3 * groups, F64, 2));
        let layer = ConvTranspose1d::new(weight, Some(bias), config1d(groups));
        let list = vec![layer];
        let config = LoraConfig::new(1).modules_to_save(["0"]);
        let model = list.to_lora(&config).unwrap();
        let vars = model.trainable_vars();
        let params = [("weight", vars[0].clone()), ("bias", vars[1].clone())];
        let x = var((2, 4, 5), 3);
        check("ConvTranspose1d", &params, &x, &|| model[0].forward(&x));
    }
    let weight = fixed((2, 3, 3, 2), F64, 1);
    let list = vec![ConvTranspose2d::new(
        weight,
        Some(fixed(3, F64, 2)),
        CONFIG_2D,
    )];
    let config = LoraConfig::new(1).modules_to_save(["0"]);
    let model = list.to_lora(&config).unwrap();
    let vars = model.trainable_vars();
    let params = [("weight", vars[0].clone()), ("bias", vars[1].clone())];
    let x = var((2, 2, 3, 4), 3);
    check("ConvTranspose2d", &params, &x, &|| model[0].forward(&x));

    let list = vec![PReLU::new(fixed(3, F64, 1), false)];
    let model = list.to_lora(&config).unwrap();
    let params = [("weight", model.trainable_vars()[0].clone())];
    for shape in [vec![2, 3], vec![2, 3, 2], vec![2, 3, 2, 2]] {
        let x = var(shape, 3);
        check("PReLU", &params, &x, &|| model[0].forward(&x));
    }
}

/// As PEFT, which names the layers that it adapts.
#[test]
fn a_pattern_cannot_adapt_them() {
    for (name, kind) in [("up", "ConvTranspose1d"), ("act", "PReLU")] {
        let error = codec().to_lora(&LoraConfig::new(2).target_modules([name]));
        let error = error.unwrap_err().to_string();
        let expected = format!("`{name}` is a {kind}, which takes no adapter");
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let device = Device::Cpu;
    let layer = |groups| {
        let bias = Some(fixed(2 * groups, F32, 2));
        ConvTranspose1d::new(fixed((4, 2, 3), F32, 1), bias, config1d(groups))
    };
    let run = |layer: &ConvTranspose1d, shape: (usize, usize, usize)| {
        let model = layer.to_frozen().unwrap();
        let result = model.forward(&Tensor::ones(shape, F32, &device).unwrap());
        result.map(|y| y.dims().to_vec()).map_err(|e| e.to_string())
    };
    assert_eq!(run(&layer(1), (2, 4, 5)).unwrap(), [2, 2, 10]);
    assert_eq!(run(&layer(2), (0, 4, 5)).unwrap(), [0, 4, 10]);
    let error = run(&layer(1), (2, 3, 5)).unwrap_err();
    assert!(
        error.contains("[2, 3, 5]") || error.contains("[2, 3, 1, 5]"),
        "{error}"
    );
    let error = run(&layer(3), (2, 4, 5)).unwrap_err();
    assert!(error.contains("3 groups"), "{error}");
    let error = run(&layer(1), (2, 4, 0)).unwrap_err();
    assert!(error.contains("nothing is left"), "{error}");

    let act = PReLU::new(fixed(3, F32, 1), false).to_frozen().unwrap();
    let error = act.forward(&Tensor::ones((2, 4), F32, &device).unwrap());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("[2, 4] does not have 3 channels"), "{error}");
    assert_eq!(values(act.weight()).unwrap().len(), 3);
}
