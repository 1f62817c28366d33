//! Methods of candle's tensors whose own backward pass is wrong or missing, and the ops in their place.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Conv1dConfig, Conv2dConfig, ConvTranspose1dConfig, ConvTranspose2dConfig};
use lora::ops;
use lora_tests::{assert_close, check_gradients, fixed, relative_error, var};

type Op = Box<dyn Fn(&[Var]) -> Result<Tensor>>;

/// A method: what it is called, what it is called on, ours, and candle's.
struct Method {
    name: &'static str,
    vars: Vec<Var>,
    ours: Op,
    candle: Op,
}

fn method(
    name: &'static str,
    vars: Vec<Var>,
    ours: impl Fn(&[Var]) -> Result<Tensor> + 'static,
    candle: impl Fn(&[Var]) -> Result<Tensor> + 'static,
) -> Method {
    let (ours, candle) = (Box::new(ours), Box::new(candle));
    Method {
        name,
        vars,
        ours,
        candle,
    }
}

fn conv1d(padding: usize, stride: usize, dilation: usize, groups: usize) -> Conv1dConfig {
    Conv1dConfig {
        padding,
        stride,
        dilation,
        groups,
        cudnn_fwd_algo: None,
    }
}

fn methods() -> Vec<Method> {
    let ids = Tensor::new(&[[0u32, 2, 2], [1, 1, 3]], &Device::Cpu).unwrap();
    let (ids_2, ids_3, ids_4) = (ids.clone(), ids.clone(), ids.clone());
    let image = |h, w| vec![var((2, 2, h, w), 1)];
    // What reaches the input by another way counts, too.
    let beside = |x: &Var, y: Tensor| y.sum_all()?.broadcast_add(&x.sqr()?);
    let config = ConvTranspose1dConfig {
        stride: 2,
        padding: 1,
        groups: 2,
        ..Default::default()
    };
    vec![
        method(
            "scatter",
            vec![var((2, 4), 1), var((2, 3), 2)],
            move |v| ops::scatter(&v[0], &ids, &v[1], 1),
            move |v| v[0].scatter(&ids_2, &v[1], 1),
        ),
        method(
            "scatter_add",
            vec![var((2, 4), 1), var((2, 3), 2)],
            move |v| ops::scatter_add(&v[0], &ids_3, &v[1], 1),
            move |v| v[0].scatter_add(&ids_4, &v[1], 1),
        ),
        method(
            "conv_transpose1d",
            vec![var((2, 4, 5), 1), var((4, 3, 3), 2)],
            move |v| ops::conv_transpose1d(&v[0], &v[1], None, &config),
            |v| v[0].conv_transpose1d(&v[1], 1, 0, 2, 1, 2),
        ),
        method(
            "conv1d with a rest",
            vec![var((2, 4, 8), 1), var((4, 2, 3), 2)],
            |v| ops::conv1d(&v[0], &v[1], None, &conv1d(1, 2, 1, 2)),
            |v| v[0].conv1d(&v[1], 1, 2, 1, 2),
        ),
        method(
            "conv1d with a dilation",
            vec![var((2, 2, 9), 1), var((3, 2, 3), 2)],
            |v| ops::conv1d(&v[0], &v[1], None, &conv1d(2, 2, 2, 1)),
            |v| v[0].conv1d(&v[1], 2, 2, 2, 1),
        ),
        method(
            "conv2d with a rest on one side",
            vec![var((1, 2, 5, 6), 1), var((3, 2, 3, 3), 2)],
            |v| {
                let config = Conv2dConfig {
                    padding: 1,
                    stride: 2,
                    ..Default::default()
                };
                ops::conv2d(&v[0], &v[1], None, &config)
            },
            |v| v[0].conv2d(&v[1], 1, 2, 1, 1),
        ),
        method(
            "conv_transpose2d with an output padding",
            vec![var((1, 2, 3, 4), 1), var((2, 3, 3, 3), 2)],
            |v| {
                let config = ConvTranspose2dConfig {
                    padding: 1,
                    output_padding: 1,
                    stride: 1,
                    dilation: 2,
                };
                ops::conv_transpose2d(&v[0], &v[1], None, &config)
            },
            |v| v[0].conv_transpose2d(&v[1], 1, 1, 1, 2),
        ),
        method(
            "upsample_nearest1d beside another way",
            vec![var((2, 3, 4), 1)],
            move |v| beside(&v[0], ops::upsample_nearest1d(&v[0], 8)?),
            move |v| beside(&v[0], v[0].upsample_nearest1d(8)?),
        ),
        method(
            "upsample_nearest1d to no multiple",
            vec![var((2, 3, 4), 1)],
            |v| ops::upsample_nearest1d(&v[0], 7),
            |v| v[0].upsample_nearest1d(7),
        ),
        method(
            "upsample_nearest2d beside another way",
            image(2, 3),
            move |v| beside(&v[0], ops::upsample_nearest2d(&v[0], 4, 6)?),
            move |v| beside(&v[0], v[0].upsample_nearest2d(4, 6)?),
        ),
        method(
            "upsample_nearest2d to two multiples",
            image(2, 3),
            |v| ops::upsample_nearest2d(&v[0], 4, 9),
            |v| v[0].upsample_nearest2d(4, 9),
        ),
        method(
            "upsample_bilinear2d",
            image(2, 3),
            |v| ops::upsample_bilinear2d(&v[0], 4, 5, false),
            |v| v[0].upsample_bilinear2d(4, 5, false),
        ),
        method(
            "upsample_bilinear2d_with_scale",
            image(2, 3),
            |v| ops::upsample_bilinear2d_with_scale(&v[0], 1.5, 2.5, false),
            |v| v[0].upsample_bilinear2d_with_scale(1.5, 2.5, false),
        ),
        method(
            "avg_pool2d with a rest",
            image(5, 4),
            |v| ops::avg_pool2d(&v[0], 2, 2),
            |v| v[0].avg_pool2d(2),
        ),
        method(
            "avg_pool2d of windows that overlap",
            image(5, 5),
            |v| ops::avg_pool2d(&v[0], 3, 2),
            |v| v[0].avg_pool2d_with_stride(3, 2),
        ),
        method(
            "max_pool2d",
            image(4, 6),
            |v| ops::max_pool2d(&v[0], 2, 2),
            |v| v[0].max_pool2d(2),
        ),
        method(
            "max_pool2d of windows that overlap",
            image(5, 5),
            |v| ops::max_pool2d(&v[0], (3, 2), (2, 1)),
            |v| v[0].max_pool2d_with_stride((3, 2), (2, 1)),
        ),
    ]
}

#[test]
fn ours_give_the_same_and_right_gradients() {
    for Method {
        name,
        vars,
        ours,
        candle,
    } in methods()
    {
        let (value, expected) = (ours(&vars).unwrap(), candle(&vars).unwrap());
        assert_close(name, &value, &expected, 1e-12);
        let named: Vec<_> = vars.iter().map(|var| ("x", var)).collect();
        check_gradients(name, &named, || ours(&vars));
        // One alone is tracked.
        for (name, var) in &named {
            let grads = ours(&vars).unwrap().sum_all().unwrap().backward().unwrap();
            assert!(grads.get(var).is_some(), "{name}");
        }
    }
}

/// Where candle's own gradients became right, the op and the names in the derive can go.
#[test]
fn candles_own_gradients_are_wrong_or_missing() {
    let gradients = |op: &Op, vars: &[Var]| -> Result<Vec<Tensor>> {
        let y = op(vars)?;
        let weights = fixed(y.shape(), DType::F64, 77);
        let grads = (y * weights)?.sum_all()?.backward()?;
        let grads = vars.iter().map(|var| grads.get(var).cloned());
        Ok(grads.flatten().collect())
    };
    for Method {
        name,
        vars,
        ours,
        candle,
    } in methods()
    {
        let ours = gradients(&ours, &vars).unwrap();
        let is_right = gradients(&candle, &vars).is_ok_and(|candle| {
            let mut pairs = ours.iter().zip(&candle);
            pairs.all(|(ours, candle)| relative_error(candle, ours).is_ok_and(|e| e < 1e-6))
        });
        assert!(!is_right, "{name}: candle's own gradient is right");
    }
}

/// Of several elements for one place, that which is there gets the gradient.
#[test]
fn scatter_of_one_index_twice() -> Result<()> {
    let (x, source) = (var((1, 3), 1), var((1, 4), 2));
    let ids = Tensor::new(&[[2u32, 0, 2, 2]], &Device::Cpu)?;
    let y = ops::scatter(&x, &ids, &source, 1)?;
    let weights = Tensor::new(&[[10f64, 20., 30.]], &Device::Cpu)?;
    let grads = (y * weights)?.sum_all()?.backward()?;
    let of = |var: &Var| grads.get(var).unwrap().to_vec2::<f64>();
    assert_eq!(of(&x)?, [[0., 20., 0.]]);
    assert_eq!(of(&source)?, [[0., 10., 0., 30.]]);
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() {
    let x = fixed((1, 1, 3, 4), DType::F64, 1);
    let empty = x.narrow(3, 0, 0).unwrap();
    let fails = |result: Result<Tensor>, expected: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    fails(
        ops::avg_pool2d(&x, 0, 1),
        "no windows of (0, 0), (1, 1) apart, in [1, 1, 3, 4]",
    );
    fails(
        ops::avg_pool2d(&x, 1, 0),
        "no windows of (1, 1), (0, 0) apart",
    );
    fails(ops::max_pool2d(&x, 4, 1), "no windows of (4, 4)");
    fails(
        ops::upsample_nearest2d(&empty, 2, 2),
        "[1, 1, 3, 0] has no elements to take",
    );
    fails(
        ops::upsample_bilinear2d(&empty, 2, 2, true),
        "has no elements to take",
    );
    fails(
        ops::upsample_nearest1d(&empty.squeeze(0).unwrap(), 2),
        "has no elements to take",
    );
    let ids = Tensor::new(&[[7u32]], &Device::Cpu).unwrap();
    let (matrix, source) = (fixed((1, 3), DType::F64, 1), fixed((1, 1), DType::F64, 2));
    assert!(ops::scatter(&matrix, &ids, &source, 1).is_err());
    assert!(ops::scatter_add(&matrix, &ids, &source, 2).is_err());
}

/// A part of an image has the values of the part, also where the size stays.
#[test]
fn a_view_at_its_own_size() {
    let whole = fixed((1, 1, 6, 4), DType::F64, 1);
    let part = whole.narrow(2, 3, 3).unwrap();
    let same = ops::upsample_bilinear2d(&part, 3, 4, false).unwrap();
    assert_close("part", &same, &part, 0.0);
}
