//! What does not fit is an error, in the forward pass, and never a panic.

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::Linear;
use lora::{LoraConfig, LoraModel, ops};
use lora_tests::{assert_close, fixed, var};

const F64: DType = DType::F64;

#[test]
fn biases_of_other_shapes() {
    let (x, w) = (fixed((3, 4), F64, 1), fixed((5, 4), F64, 2));
    let expected = ops::linear(&x, &w, Some(&fixed(5, F64, 3))).unwrap();
    // As many values in another shape: an error, or the gradient has that shape.
    for shape in [vec![1, 5], vec![5, 1], vec![1, 1, 5]] {
        let bias = var(shape.clone(), 3);
        let Ok(y) = ops::linear(&x, &w, Some(&bias)) else {
            continue;
        };
        assert_close("value", &y, &expected, 1e-15);
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(&bias).unwrap().dims(), shape);
    }
    for count in [0, 1, 4, 6] {
        let bias = fixed(count, F64, 3);
        assert!(ops::linear(&x, &w, Some(&bias)).is_err(), "{count}");
        let layer = Linear::new(w.clone(), Some(bias));
        let layer = layer.to_lora(&LoraConfig::new(2));
        assert!(
            layer.is_err() || layer.unwrap().forward(&x).is_err(),
            "{count}"
        );
    }
}

#[test]
fn a_layer_may_hold_views() {
    let x = fixed((3, 4), F64, 1);
    let w = fixed((4, 5), F64, 2).t().unwrap();
    let bias = fixed((5, 2), F64, 3)
        .narrow(1, 1, 1)
        .unwrap()
        .squeeze(1)
        .unwrap();
    let layer = Linear::new(w.clone(), Some(bias.clone()));
    let expected = layer.forward(&x).unwrap();
    let lora = layer.to_lora(&LoraConfig::new(2)).unwrap();
    assert_close(
        "bias with steps",
        &lora.forward(&x).unwrap(),
        &expected,
        1e-14,
    );
    let bias = Tensor::new(2.0, &Device::Cpu)
        .unwrap()
        .broadcast_as(5)
        .unwrap();
    let layer = Linear::new(w, Some(bias));
    let expected = layer.forward(&x).unwrap();
    let lora = layer.to_lora(&LoraConfig::new(2)).unwrap();
    assert_close(
        "one number as bias",
        &lora.forward(&x).unwrap(),
        &expected,
        1e-14,
    );
}

#[test]
fn shapes_and_dtypes_that_do_not_fit() {
    let f = |shape: &[usize]| fixed(shape, F64, 1);
    let single = fixed((3, 4), DType::F32, 1);
    let (scalar, ids) = (f(&[]), Tensor::new(&[0u32, 9], &Device::Cpu).unwrap());
    let config = candle_nn::Conv2dConfig::default();
    let line = candle_nn::Conv1dConfig::default();
    let q = f(&[1, 2, 3, 4]);
    let cases: Vec<(&str, Result<Tensor>)> = vec![
        (
            "linear: columns",
            ops::linear(&f(&[3, 4]), &f(&[5, 3]), None),
        ),
        ("linear: scalar", ops::linear(&scalar, &f(&[5, 3]), None)),
        ("linear: weight", ops::linear(&f(&[3, 4]), &f(&[4]), None)),
        ("linear: dtype", ops::linear(&single, &f(&[5, 4]), None)),
        (
            "linear: integers",
            ops::linear(&ids, &ids.reshape((1, 2)).unwrap(), None),
        ),
        (
            "linear: bias dtype",
            ops::linear(&f(&[3, 4]), &f(&[3, 4]), Some(&fixed(3, DType::F32, 1))),
        ),
        ("embedding: out of range", ops::embedding(&ids, &f(&[5, 3]))),
        ("embedding: floats", ops::embedding(&f(&[2]), &f(&[5, 3]))),
        ("embedding: table", ops::embedding(&ids, &f(&[5]))),
        (
            "layer_norm: columns",
            ops::layer_norm(&f(&[3, 4]), &f(&[3]), &f(&[3]), 1e-5),
        ),
        (
            "layer_norm: bias",
            ops::layer_norm(&f(&[3, 4]), &f(&[4]), &f(&[3]), 1e-5),
        ),
        (
            "layer_norm: dtype",
            ops::layer_norm(&single, &f(&[4]), &f(&[4]), 1e-5),
        ),
        (
            "layer_norm: scalar",
            ops::layer_norm(&scalar, &f(&[1]), &f(&[1]), 1e-5),
        ),
        (
            "rms_norm: columns",
            ops::rms_norm(&f(&[3, 4]), &f(&[3]), 1e-5),
        ),
        (
            "group_norm: groups",
            ops::group_norm(&f(&[1, 4, 2]), &f(&[4]), &f(&[4]), 3, 1e-5),
        ),
        (
            "group_norm: none",
            ops::group_norm(&f(&[1, 4, 2]), &f(&[4]), &f(&[4]), 0, 1e-5),
        ),
        (
            "group_norm: bias",
            ops::group_norm(&f(&[1, 4, 2]), &f(&[4]), &f(&[2]), 2, 1e-5),
        ),
        (
            "affine: dimension",
            ops::affine(&f(&[3, 4]), &f(&[4]), None, 2),
        ),
        (
            "affine: bias",
            ops::affine(&f(&[3, 4]), &f(&[4]), Some(&f(&[3])), 1),
        ),
        (
            "residual: branch",
            ops::residual(&f(&[3, 4]), &f(&[4, 3]), None, 0),
        ),
        (
            "residual: broadcast",
            ops::residual(&f(&[3, 4]), &f(&[1, 4]), None, 0),
        ),
        (
            "residual: gamma",
            ops::residual(&f(&[3, 4]), &f(&[3, 4]), Some(&f(&[4])), 0),
        ),
        (
            "residual: dimension",
            ops::residual(&f(&[3, 4]), &f(&[3, 4]), Some(&f(&[4])), 2),
        ),
        (
            "residual: dtype",
            ops::residual(&f(&[3, 4]), &single, None, 0),
        ),
        ("add: shape", ops::add(&f(&[3, 4]), &f(&[4]))),
        ("softmax: dimension", ops::softmax(&f(&[3, 4]), 2)),
        ("softmax: scalar", ops::softmax_last_dim(&scalar)),
        ("gelu: integers", ops::gelu(&ids)),
        ("silu: integers", ops::silu(&ids)),
        (
            "rope: odd",
            ops::rope(&f(&[1, 2, 3, 5]), &f(&[3, 2]), &f(&[3, 2])),
        ),
        (
            "rope: time",
            ops::rope(&f(&[1, 2, 3, 4]), &f(&[2, 2]), &f(&[2, 2])),
        ),
        (
            "rope: sin",
            ops::rope_i(&f(&[1, 2, 3, 4]), &f(&[3, 2]), &f(&[3, 1])),
        ),
        (
            "rope: rank",
            ops::rope_thd(&f(&[3, 4]), &f(&[3, 2]), &f(&[3, 2])),
        ),
        (
            "conv2d: channels",
            ops::conv2d(&q, &f(&[5, 3, 1, 1]), None, &config),
        ),
        (
            "conv2d: kernel",
            ops::conv2d(&q, &f(&[5, 2, 4, 1]), None, &config),
        ),
        (
            "conv2d: bias",
            ops::conv2d(&q, &f(&[5, 2, 1, 1]), Some(&f(&[4])), &config),
        ),
        (
            "conv2d: rank",
            ops::conv2d(&f(&[2, 3, 4]), &f(&[5, 2, 1, 1]), None, &config),
        ),
        ("conv1d: rank", ops::conv1d(&q, &f(&[5, 2, 1]), None, &line)),
        (
            "conv1d: kernel",
            ops::conv1d(&f(&[1, 2, 3]), &f(&[5, 2, 4]), None, &line),
        ),
        (
            "sdpa: heads",
            ops::sdpa(
                &q,
                &f(&[1, 3, 3, 4]),
                &f(&[1, 3, 3, 4]),
                None,
                false,
                1.0,
                1.0,
            ),
        ),
        (
            "sdpa: batch",
            ops::sdpa(
                &q,
                &f(&[2, 2, 3, 4]),
                &f(&[2, 2, 3, 4]),
                None,
                false,
                1.0,
                1.0,
            ),
        ),
        (
            "sdpa: keys",
            ops::sdpa(
                &q,
                &f(&[1, 2, 3, 4]),
                &f(&[1, 2, 2, 4]),
                None,
                false,
                1.0,
                1.0,
            ),
        ),
        (
            "sdpa: size",
            ops::sdpa(
                &q,
                &f(&[1, 2, 3, 3]),
                &f(&[1, 2, 3, 3]),
                None,
                false,
                1.0,
                1.0,
            ),
        ),
        (
            "sdpa: mask",
            ops::sdpa(&q, &q, &q, Some(&f(&[2, 2])), false, 1.0, 1.0),
        ),
    ];
    for (name, result) in cases {
        assert!(result.is_err(), "{name}");
    }
}

#[test]
fn matrices_without_rows_or_columns() {
    for (rows, inputs, outputs) in [(0, 3, 2), (3, 0, 2), (3, 2, 0), (0, 0, 0)] {
        let what = format!("{rows} {inputs} {outputs}");
        let (x, w, bias) = (
            var((rows, inputs), 1),
            var((outputs, inputs), 2),
            var(outputs, 3),
        );
        let y = ops::linear(&x, &w, Some(&bias));
        let y = y.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(y.dims(), [rows, outputs], "{what}");
        let grads = y.sum_all().unwrap().backward();
        let grads = grads.unwrap_or_else(|e| panic!("{what}: {e}"));
        for var in [&x, &w, &bias] {
            assert_eq!(grads.get(var).unwrap().dims(), var.dims(), "{what}");
        }
        let frozen = |v: &Var| v.as_detached_tensor();
        let layer = Linear::new(frozen(&w), Some(frozen(&bias)));
        if let Ok(layer) = layer.to_lora(&LoraConfig::new(2)) {
            let z = layer.forward(&x).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_close(&what, &z, &y, 1e-15);
            let grads = z.sum_all().unwrap().backward();
            grads.unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
}
