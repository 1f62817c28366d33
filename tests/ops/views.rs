//! Inputs that lie in memory in unusual ways, and empty ones.

use candle_core::{DType, Device, Result, Tensor, Var};
use lora::ops;
use lora_tests::op_fixtures::{Call, THEMES, cases};
use lora_tests::{assert_close, fixed};

type View = fn(&Tensor) -> Result<Tensor>;

/// The same values, the first dimension the fastest.
fn transposed(x: &Tensor) -> Result<Tensor> {
    let last = x.rank() - 1;
    let swapped = x.transpose(0, last)?.contiguous()?;
    swapped.transpose(0, last)
}

/// What `f` makes of the values in the order of images with the channels last, in the usual order.
fn channels_last(x: &Tensor, f: View) -> Result<Tensor> {
    let rank = x.rank();
    if rank < 3 {
        return f(x);
    }
    let order: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    let back: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    f(&x.permute(order)?.contiguous()?)?.permute(back)
}

/// The same values in the middle of others along a dimension.
fn inside(x: &Tensor, dim: usize) -> Result<Tensor> {
    let others = (x.ones_like()? * 1e4)?.detach();
    let all = Tensor::cat(&[&others, x, &others], dim)?;
    all.narrow(dim, x.dim(dim)?, x.dim(dim)?)
}

/// The value of an op.
fn computed(x: &Tensor) -> Result<Tensor> {
    let ones = Tensor::ones(x.dim(0)?, x.dtype(), x.device())?;
    ops::affine(x, &ones, None, 0)
}

#[test]
fn inputs_may_lie_in_any_order() {
    let views: &[(&str, View)] = &[
        ("transposed", transposed),
        ("channels last", |x| channels_last(x, |x| Ok(x.clone()))),
        ("from an offset", |x| inside(x, 0)),
        ("rows of wider ones", |x| inside(x, x.rank() - 1)),
        ("transposed from an offset", |x| {
            let last = x.rank() - 1;
            inside(&x.transpose(0, last)?, 0)?.transpose(0, last)
        }),
        ("computed", computed),
        ("computed, transposed", |x| {
            let last = x.rank() - 1;
            let swapped = x.transpose(0, last)?.contiguous()?;
            computed(&swapped)?.transpose(0, last)
        }),
        ("computed, channels last", |x| channels_last(x, computed)),
        ("computed, in another shape", |x| {
            computed(&x.flatten_all()?)?.reshape(x.shape())
        }),
        ("part of a computed value", |x| {
            let (dim, size) = (x.rank() - 1, x.dim(x.rank() - 1)?);
            let twice = Tensor::cat(&[x, &(x * 3.0)?], dim)?;
            computed(&twice)?.narrow(dim, 0, size)
        }),
        ("chunk of a computed value", |x| {
            let twice = Tensor::cat(&[&(x * 3.0)?, x], 0)?;
            Ok(computed(&twice)?.chunk(2, 0)?.remove(1))
        }),
    ];
    for case in THEMES.iter().flat_map(|theme| cases(theme)) {
        for (name, view) in views {
            case.check_views(name, DType::F32, 1e-5, view);
        }
    }
}

type Op = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

/// Every op of one tensor, with constants of the right size for a last dimension of 6 and a second
/// one of 4.
fn all_ops() -> Vec<(&'static str, Op)> {
    let f = |shape: &[usize], seed| fixed(shape, DType::F32, seed);
    let conv = |padding, stride, groups| candle_nn::Conv2dConfig {
        padding,
        stride,
        groups,
        ..Default::default()
    };
    vec![
        (
            "linear",
            Box::new(move |x| ops::linear(x, &f(&[3, 6], 1), Some(&f(&[3], 2)))),
        ),
        ("gelu", Box::new(ops::gelu)),
        ("gelu_erf", Box::new(ops::gelu_erf)),
        ("silu", Box::new(ops::silu)),
        ("relu", Box::new(ops::relu)),
        ("softmax", Box::new(|x| ops::softmax(x, 1))),
        ("softmax last", Box::new(ops::softmax_last_dim)),
        (
            "layer_norm",
            Box::new(move |x| ops::layer_norm(x, &f(&[6], 1), &f(&[6], 2), 1e-5)),
        ),
        (
            "rms_norm",
            Box::new(move |x| ops::rms_norm(x, &f(&[6], 1), 1e-5)),
        ),
        (
            "affine",
            Box::new(move |x| ops::affine(x, &f(&[4], 1), Some(&f(&[4], 2)), 1)),
        ),
        (
            "group_norm",
            Box::new(move |x| ops::group_norm(x, &f(&[4], 1), &f(&[4], 2), 2, 1e-5)),
        ),
        (
            "shortcut",
            Box::new(move |x| ops::residual(x, &f(&[2, 4, 5, 6], 1), Some(&f(&[4], 2)), 1)),
        ),
        (
            "branch",
            Box::new(move |x| ops::residual(&f(&[2, 4, 5, 6], 1), x, Some(&f(&[6], 2)), 3)),
        ),
        ("add", Box::new(|x| ops::add(x, x))),
        ("contiguous", Box::new(ops::contiguous)),
        (
            "checkpoint",
            Box::new(|x| lora::checkpoint(x, |x| ops::silu(&x.transpose(1, 2)?))),
        ),
        (
            "rope",
            Box::new(move |x| ops::rope(x, &f(&[5, 3], 1), &f(&[5, 3], 2))),
        ),
        (
            "rope_i",
            Box::new(move |x| ops::rope_i(x, &f(&[5, 3], 1), &f(&[5, 3], 2))),
        ),
        (
            "rope_thd",
            Box::new(move |x| ops::rope_thd(x, &f(&[4, 3], 1), &f(&[4, 3], 2))),
        ),
        (
            "full",
            Box::new(move |x| ops::conv2d(x, &f(&[3, 4, 3, 3], 1), None, &conv(1, 1, 1))),
        ),
        (
            "grouped",
            Box::new(move |x| ops::conv2d(x, &f(&[6, 2, 3, 3], 1), None, &conv(1, 2, 2))),
        ),
        (
            "depthwise",
            Box::new(move |x| ops::conv2d(x, &f(&[4, 1, 3, 3], 1), None, &conv(1, 1, 4))),
        ),
        (
            "patches",
            Box::new(move |x| ops::conv2d(x, &f(&[3, 4, 2, 2], 1), None, &conv(0, 2, 1))),
        ),
        (
            "pointwise",
            Box::new(move |x| ops::conv2d(x, &f(&[3, 4, 1, 1], 1), None, &conv(0, 1, 1))),
        ),
        (
            "queries",
            Box::new(move |x| {
                let (k, v) = (f(&[2, 2, 7, 6], 1), f(&[2, 2, 7, 3], 2));
                ops::sdpa(x, &k, &v, None, false, 0.5, 1.0)
            }),
        ),
        (
            "keys",
            Box::new(move |x| {
                let (q, v) = (f(&[2, 4, 3, 6], 1), f(&[2, 4, 5, 3], 2));
                ops::sdpa(&q, x, &v, None, true, 0.5, 1.0)
            }),
        ),
        (
            "values",
            Box::new(move |x| {
                let (q, k) = (f(&[2, 8, 3, 7], 1), f(&[2, 4, 5, 7], 2));
                ops::sdpa(&q, &k, x, None, false, 0.5, 1.0)
            }),
        ),
    ]
}

/// The gradients of both ways to compute from one variable agree.
#[track_caller]
fn same(what: &str, var: &Var, one: &Tensor, other: &Tensor) {
    assert_close(what, one, other, 1e-5);
    let weights = fixed(one.shape(), DType::F32, 9);
    let grad = |y: &Tensor| {
        let grads = (y * &weights)?.sum_all()?.backward()?;
        Ok::<_, candle_core::Error>(grads.get(var).unwrap().clone())
    };
    assert_close(what, &grad(one).unwrap(), &grad(other).unwrap(), 1e-5);
}

#[test]
fn broadcast_inputs() {
    for shape in [
        [1, 4, 5, 6],
        [2, 1, 5, 6],
        [2, 4, 1, 6],
        [2, 4, 5, 1],
        [2, 1, 1, 6],
        [1; 4],
    ] {
        for (name, op) in all_ops() {
            let what = format!("{name} of {shape:?}");
            let var = Var::from_tensor(&fixed(&shape[..], DType::F32, 5)).unwrap();
            let wide = var.broadcast_as((2, 4, 5, 6)).unwrap();
            let one = op(&wide).unwrap_or_else(|e| panic!("{what}: {e}"));
            let other = op(&wide.contiguous().unwrap()).unwrap();
            same(&what, &var, &one, &other);

            // A value of an op, broadcast.
            let wide = computed(&var).unwrap().broadcast_as((2, 4, 5, 6)).unwrap();
            let one = op(&wide).unwrap_or_else(|e| panic!("{what}: {e}"));
            same(&format!("{what} computed"), &var, &one, &other);
        }
    }
}

#[test]
fn broadcast_weights() {
    let x = fixed((2, 4, 5, 6), DType::F32, 3);
    let var = Var::from_tensor(&fixed((1, 1), DType::F32, 5)).unwrap();
    let one_by_one = |outputs, inputs| var.broadcast_as((outputs, inputs)).unwrap();
    let flat = |count| var.broadcast_as((1, count)).unwrap().flatten_all().unwrap();
    let config = candle_nn::Conv2dConfig::default();
    type Shown<'a> = &'a dyn Fn(&dyn Fn(Tensor) -> Tensor) -> Result<Tensor>;
    let all: &[(&str, Shown<'_>)] = &[
        ("weight", &|f| ops::linear(&x, &f(one_by_one(3, 6)), None)),
        ("bias", &|f| {
            ops::linear(&x, &fixed((3, 6), DType::F32, 1), Some(&f(flat(3))))
        }),
        ("norm's weight", &|f| ops::rms_norm(&x, &f(flat(6)), 1e-5)),
        ("norm's bias", &|f| {
            ops::layer_norm(&x, &f(flat(6)), &f(flat(6)), 1e-5)
        }),
        ("affine", &|f| {
            ops::affine(&x, &f(flat(4)), Some(&f(flat(4))), 1)
        }),
        ("kernel", &|f| {
            let kernel = f(one_by_one(12, 9).reshape((3, 4, 3, 3))?);
            ops::conv2d(&x, &kernel, Some(&f(flat(3))), &config)
        }),
        ("table", &|f| {
            let ids = Tensor::new(&[1u32, 2, 1], &Device::Cpu)?;
            ops::embedding(&ids, &f(one_by_one(3, 7)))
        }),
    ];
    for (name, op) in all {
        let one = op(&|t| t).unwrap_or_else(|e| panic!("{name}: {e}"));
        let other = op(&|t| t.contiguous().unwrap()).unwrap();
        same(name, &var, &one, &other);
    }
}

#[test]
fn empty_batches() {
    for mut case in THEMES.iter().flat_map(|theme| cases(theme)) {
        let rank = case.inputs.get("x").map_or(2, Tensor::rank);
        if let (Call::Residual { dim: 0 }, Some(gamma)) = (&case.call, case.inputs.get("gamma")) {
            let gamma = gamma.narrow(0, 0, 0).unwrap();
            case.inputs.insert("gamma".into(), gamma);
        }
        // The sum of two empty tensors is the first of them to candle: no graph leads to the second.
        if rank < 2 || matches!(case.call, Call::LoraLinear { .. }) {
            continue;
        }
        for (name, input) in &mut case.inputs {
            let batched = match name.as_str() {
                "cos" | "sin" => input.rank() == 3,
                name => {
                    let batched = [
                        "x", "branch", "ids", "source", "q", "k", "v", "mask", "labels",
                    ];
                    batched.contains(&name)
                }
            };
            if batched {
                *input = input.narrow(0, 0, 0).unwrap();
            }
        }
        let mut expected = case.output.dims().to_vec();
        // A loss is a number.
        expected.iter_mut().take(1).for_each(|batch| *batch = 0);
        let results = case.run(|x| Ok(x.clone()), |x| Ok(x.clone()));
        let results = results.unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert_eq!(results.output.dims(), expected, "{}", case.name);
        for (name, grad) in &results.grads {
            assert_eq!(
                grad.dims(),
                case.inputs[name].dims(),
                "{}: {name}",
                case.name
            );
            let values = lora_tests::values(grad).unwrap();
            assert!(values.iter().all(|&v| v == 0.0), "{}: {name}", case.name);
        }
    }
}

#[test]
fn indices_of_every_dtype() {
    let table = fixed((7, 3), DType::F32, 1);
    let ids = Tensor::new(&[[6u32, 0, 6, 1]], &Device::Cpu).unwrap();
    let expected = ops::embedding(&ids, &table).unwrap();
    for dtype in [DType::U8, DType::U32, DType::I64] {
        let ids = ids.to_dtype(dtype).unwrap();
        let var = Var::from_tensor(&table).unwrap();
        let rows = ops::embedding(&ids, &var).unwrap();
        assert_close("rows", &rows, &expected, 0.0);
        let grads = rows.sum_all().unwrap().backward().unwrap();
        let sums = grads.get(&var).unwrap().sum(1).unwrap();
        let sums: Vec<f32> = sums.to_vec1().unwrap();
        assert_eq!(sums, [3.0, 3.0, 0.0, 0.0, 0.0, 0.0, 6.0], "{dtype:?}");
    }
}

#[test]
fn nan_is_not_lost() {
    // Candle's relu of NaN is 0, and so is ours.
    for (name, op) in all_ops().into_iter().filter(|(name, _)| *name != "relu") {
        let mut values = lora_tests::values(&fixed((2, 4, 5, 6), DType::F32, 3)).unwrap();
        values[2] = f64::NAN;
        let x = Tensor::from_vec(values, (2, 4, 5, 6), &Device::Cpu).unwrap();
        let y = op(&x.to_dtype(DType::F32).unwrap()).unwrap();
        let y = lora_tests::values(&y).unwrap();
        assert!(y.iter().any(|y| y.is_nan()), "{name}");
    }
}
