//! Convolutions in every order of memory: values against candle's, gradients against finite
//! differences in f64.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Module};
use lora::ops;
use lora_tests::{assert_close, check_gradients, fixed, var};

const F32: DType = DType::F32;
const F64: DType = DType::F64;

/// Batch, channels in and out, kernel, configuration, the input's height and width.
type Case = (
    usize,
    usize,
    usize,
    (usize, usize),
    Conv2dConfig,
    (usize, usize),
);

fn cases() -> Vec<Case> {
    let config = |padding, stride, dilation, groups| Conv2dConfig {
        padding,
        stride,
        dilation,
        groups,
        cudnn_fwd_algo: None,
    };
    vec![
        // Depthwise: the kernel larger than the input, strides, dilation, sides that differ.
        (2, 3, 3, (7, 7), config(3, 1, 1, 3), (5, 4)),
        (1, 5, 5, (3, 3), config(1, 1, 1, 5), (6, 9)),
        (2, 3, 3, (3, 5), config(2, 2, 1, 3), (5, 8)),
        (1, 3, 3, (3, 2), config(3, 3, 2, 3), (7, 4)),
        (1, 1, 1, (2, 2), config(3, 1, 1, 1), (2, 3)),
        // Patches, with and without a rest.
        (2, 3, 4, (2, 2), config(0, 2, 1, 1), (6, 4)),
        (1, 3, 5, (4, 4), config(0, 4, 1, 1), (9, 11)),
        (2, 4, 6, (2, 2), config(0, 2, 1, 2), (4, 4)),
        (1, 2, 3, (1, 3), config(0, 3, 1, 1), (4, 7)),
        // Of single pixels.
        (2, 3, 4, (1, 1), config(0, 1, 1, 1), (3, 5)),
        (2, 4, 6, (1, 1), config(0, 1, 1, 2), (3, 2)),
        (1, 3, 2, (1, 1), config(1, 2, 1, 1), (4, 3)),
        // Any other; channels that share a group, more results than channels and fewer.
        (2, 3, 4, (3, 3), config(1, 1, 1, 1), (5, 4)),
        (1, 6, 2, (3, 3), config(1, 1, 1, 1), (5, 4)),
        (1, 6, 2, (3, 2), config(3, 1, 2, 2), (3, 4)),
        (2, 4, 6, (3, 2), config(2, 2, 2, 2), (7, 6)),
        (1, 2, 6, (3, 3), config(1, 1, 1, 2), (4, 4)),
        (1, 2, 3, (5, 5), config(4, 3, 1, 1), (2, 3)),
    ]
}

/// (batch, channels, height, width) as a view of memory in the order (batch, height, width,
/// channels), with or without something before it.
fn channels_last(x: &Tensor, offset: bool) -> Result<Tensor> {
    let last = x.permute((0, 2, 3, 1))?.contiguous()?;
    let last = match offset {
        true => Tensor::cat(&[&last, &last], 0)?.narrow(0, x.dim(0)?, x.dim(0)?)?,
        false => last,
    };
    last.permute((0, 3, 1, 2))
}

/// The same values behind others in memory.
fn offset(x: &Tensor) -> Result<Tensor> {
    Tensor::cat(&[x, x], 0)?.narrow(0, x.dim(0)?, x.dim(0)?)
}

#[test]
fn values_agree_with_candle_in_every_order() {
    for (batch, inputs, outputs, (down, right), config, (height, width)) in cases() {
        for (dtype, tolerance) in [(F64, 1e-13), (F32, 2e-6)] {
            let x = fixed((batch, inputs, height, width), dtype, 1);
            let weight = fixed((outputs, inputs / config.groups, down, right), dtype, 2);
            let bias = fixed(outputs, dtype, 3);
            let candle = Conv2d::new(weight.clone(), Some(bias.clone()), config);
            let expected = candle.forward(&x).unwrap();
            let what = format!("{config:?} {:?}", weight.dims());
            let inputs = [
                (true, x.clone()),
                (true, offset(&x).unwrap()),
                (
                    true,
                    offset(&x.t().unwrap().contiguous().unwrap())
                        .unwrap()
                        .t()
                        .unwrap(),
                ),
                (false, channels_last(&x, false).unwrap()),
                (false, channels_last(&x, true).unwrap()),
            ];
            for (first, x) in inputs {
                let y = ops::conv2d(&x, &weight, Some(&bias), &config).unwrap();
                assert_close(&what, &y, &expected, tolerance);
                // The result lies in memory as the input does.
                let last = y.permute((0, 2, 3, 1)).unwrap();
                if first || x.is_contiguous() {
                    assert!(y.is_contiguous(), "{what}");
                } else {
                    assert!(last.is_contiguous(), "{what}");
                }
            }
        }
    }
}

#[test]
fn gradients_in_every_order() {
    type Order = fn(&Tensor) -> Result<Tensor>;
    let orders: [Order; 4] = [
        |x| Ok(x.clone()),
        offset,
        |x| channels_last(x, false),
        |x| channels_last(x, true),
    ];
    for (batch, inputs, outputs, (down, right), config, (height, width)) in cases() {
        let x = var((batch, inputs, height, width), 1);
        let weight = var((outputs, inputs / config.groups, down, right), 2);
        let bias = var(outputs, 3);
        let vars = [("x", &x), ("weight", &weight), ("bias", &bias)];
        for order in orders {
            check_gradients(&format!("{config:?} {:?}", weight.dims()), &vars, || {
                ops::conv2d(&order(&x)?, &weight, Some(&bias), &config)
            });
        }
        // Frozen weights: of the input alone.
        let (weight, bias) = (weight.as_detached_tensor(), bias.as_detached_tensor());
        check_gradients("frozen", &[("x", &x)], || {
            ops::conv2d(&channels_last(&x, false)?, &weight, Some(&bias), &config)
        });
    }
}

#[test]
fn layers_between_convolutions_see_the_channels_last() {
    let x = var((2, 3, 6, 6), 1);
    let (dw, fc) = (var((3, 1, 3, 3), 2), var((4, 3), 3));
    let patches = var((5, 4, 2, 2), 4);
    let vars = [("x", &x), ("dw", &dw), ("fc", &fc), ("patches", &patches)];
    let depthwise = Conv2dConfig {
        padding: 1,
        groups: 3,
        ..Default::default()
    };
    let stride = Conv2dConfig {
        stride: 2,
        ..Default::default()
    };
    check_gradients("chain", &vars, || {
        let ys = ops::conv2d(&channels_last(&x, false)?, &dw, None, &depthwise)?;
        let ys = ops::linear(&ys.permute((0, 2, 3, 1))?, &fc, None)?;
        let ys = ops::gelu(&ys)?.permute((0, 3, 1, 2))?;
        let zs = ops::conv2d(&ys, &patches, None, &stride)?;
        assert!(zs.permute((0, 2, 3, 1))?.is_contiguous());
        zs.sum_keepdim(D::Minus1)
    });
}

#[test]
fn one_dimension() {
    for (padding, stride, dilation, groups) in [
        (0, 1, 1, 1),
        (2, 1, 1, 4),
        (3, 2, 2, 4),
        (4, 3, 1, 2),
        (0, 3, 1, 1),
        (1, 1, 3, 1),
    ] {
        let config = Conv1dConfig {
            padding,
            stride,
            dilation,
            groups,
            cudnn_fwd_algo: None,
        };
        let x = var((2, 4, 9), 1);
        let weight = var((4, 4 / groups, 3), 2);
        let bias = var(4, 3);
        let candle = Conv1d::new(weight.as_detached_tensor(), None, config);
        let expected = candle.forward(&x).unwrap();
        let what = format!("{config:?}");
        let last = |x: &Tensor| x.t()?.contiguous()?.t();
        for order in [|x| Ok(x.clone()), last] as [fn(&Tensor) -> Result<Tensor>; 2] {
            let y = ops::conv1d(&order(&x).unwrap(), &weight, None, &config).unwrap();
            assert_close(&what, &y, &expected, 1e-13);
            let vars = [("x", &x), ("weight", &weight), ("bias", &bias)];
            check_gradients(&what, &vars, || {
                ops::conv1d(&order(&x)?, &weight, Some(&bias), &config)
            });
        }
    }
}

/// Large enough for blocks and threads: the gradients are exact in whole numbers.
#[test]
fn large_maps_agree_with_candle() {
    let whole = |shape: (usize, usize, usize, usize), seed: usize| {
        let values = fixed(shape, F64, seed);
        (values * 3.0)
            .unwrap()
            .round()
            .unwrap()
            .to_dtype(F32)
            .unwrap()
    };
    let config = |padding, stride, groups| Conv2dConfig {
        padding,
        stride,
        groups,
        ..Default::default()
    };
    for (batch, inputs, outputs, kernel, config, side) in [
        (2, 40, 40, 7, config(3, 1, 40), 40),
        (3, 8, 8, 3, config(1, 2, 8), 65),
        (2, 3, 32, 4, config(0, 4, 1), 90),
        (3, 16, 24, 3, config(1, 1, 1), 33),
        (1, 24, 16, 3, config(1, 2, 2), 61),
        (2, 32, 4, 3, config(1, 1, 1), 40),
        (2, 48, 40, 1, config(0, 1, 1), 40),
    ] {
        let x = Var::from_tensor(&whole((batch, inputs, side, side), 1)).unwrap();
        let weight = whole((outputs, inputs / config.groups, kernel, kernel), 2);
        let weight = Var::from_tensor(&weight).unwrap();
        let candle = Conv2d::new(weight.as_tensor().clone(), None, config);
        let expected = candle.forward(&x).unwrap();
        let scale = whole(expected.dims4().unwrap(), 3);
        let loss = |y: &Tensor| (y * &scale)?.sum_all();
        let exact = loss(&expected).unwrap().backward().unwrap();
        let what = format!("{config:?} {:?}", weight.dims());
        for last in [false, true] {
            let seen = match last {
                true => channels_last(&x, false).unwrap(),
                false => x.as_tensor().clone(),
            };
            let y = ops::conv2d(&seen, &weight, None, &config).unwrap();
            assert_close(&what, &y, &expected, 0.0);
            let grads = loss(&y).unwrap().backward().unwrap();
            for var in [&x, &weight] {
                assert_close(&what, grads.get(var).unwrap(), exact.get(var).unwrap(), 0.0);
            }
        }
    }
}

#[test]
fn empty_batches() {
    for (_, inputs, outputs, (down, right), config, (height, width)) in cases() {
        for last in [false, true] {
            let x = Var::zeros((0, inputs, height, width), F32, &Device::Cpu).unwrap();
            let weight = fixed((outputs, inputs / config.groups, down, right), F32, 2);
            let weight = Var::from_tensor(&weight).unwrap();
            let bias = Var::zeros(outputs, F32, &Device::Cpu).unwrap();
            let seen = match last {
                true => channels_last(&x, false).unwrap(),
                false => x.as_tensor().clone(),
            };
            let y = ops::conv2d(&seen, &weight, Some(&bias), &config).unwrap();
            assert_eq!((y.dim(0).unwrap(), y.dim(1).unwrap()), (0, outputs));
            let grads = y.sum_all().unwrap().backward().unwrap();
            for var in [&x, &weight, &bias] {
                let grad = grads.get(var).unwrap();
                assert_eq!(grad.dims(), var.dims());
                assert_eq!(
                    grad.abs()
                        .unwrap()
                        .sum_all()
                        .unwrap()
                        .to_scalar::<f32>()
                        .unwrap(),
                    0.0
                );
            }
        }
    }
}

#[test]
fn half_types_are_computed_in_f32() {
    for dtype in [DType::BF16, DType::F16] {
        let x = fixed((2, 4, 9, 9), dtype, 1);
        for (groups, per_group) in [(1, 4), (4, 1)] {
            let config = Conv2dConfig {
                padding: 1,
                groups,
                ..Default::default()
            };
            let weight = Var::from_tensor(&fixed((4, per_group, 3, 3), dtype, 2)).unwrap();
            let wide = |t: &Tensor| t.to_dtype(F32).unwrap();
            let y = ops::conv2d(&x, &weight, None, &config).unwrap();
            let expected = ops::conv2d(&wide(&x), &wide(&weight), None, &config).unwrap();
            assert_close("half", &y, &expected.to_dtype(dtype).unwrap(), 0.0);
            let grads = y.sum_all().unwrap().backward().unwrap();
            assert_eq!(grads.get(&weight).unwrap().dtype(), dtype);
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_errors() {
    let x = fixed((1, 4, 5, 5), F32, 1);
    let weight = fixed((2, 4, 3, 3), F32, 2);
    let error = |bias: Option<&Tensor>, config: Conv2dConfig| {
        let result = ops::conv2d(&x, &weight, bias, &config);
        result.unwrap_err().to_string()
    };
    let config = Conv2dConfig::default();
    let long = fixed(3, F32, 1);
    assert!(error(Some(&long), config).contains("must be 2 values of F32, it is [3]"));
    let wide = fixed(2, F64, 1);
    assert!(error(Some(&wide), config).contains("of F64"));
    let padding = usize::MAX / 2 + 1;
    assert!(error(None, Conv2dConfig { padding, ..config }).contains("too large"));
    let dilation = usize::MAX;
    assert!(error(None, Conv2dConfig { dilation, ..config }).contains("too large"));
    let dilation = 3;
    assert!(error(None, Conv2dConfig { dilation, ..config }).contains("spans 7"));
    assert!(
        error(
            None,
            Conv2dConfig {
                groups: 2,
                ..config
            }
        )
        .contains("2 groups")
    );
}
