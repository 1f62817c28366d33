//! Times every op of `lora::ops` beside candle's own, in the forward pass alone and with the
//! backward pass.
//!
//! ```sh
//! cargo bench -p lora-candle --bench ops                # all, in a few minutes
//! cargo bench -p lora-candle --bench ops -- layer_norm  # those whose name has it
//! cargo bench -p lora-candle --bench ops -- --test      # runs each once, untimed
//! ```
//!
//! A name is op/shape/pass/whose. Shapes are those of ConvNeXt-tiny's third stage with a batch of 8
//! (`convnext`) and of a language model of half a billion parameters with 2 x 256 tokens
//! (`language`). In the forward pass no argument is tracked; with the backward pass the inputs are
//! variables and the weights frozen. Candle's fused layer_norm, rms_norm, softmax_last_dim and rope
//! record no gradient: there candle's slow ones stand in for the backward pass, where it has one.
//!
//! `lora/benches/ops.py` times PyTorch's under the same names and prints all three in one table.

use candle_core::{D, DType, Device, Module, Result, Tensor, Var};
use candle_nn::{Conv1dConfig, Conv2dConfig, GroupNorm, Linear, rotary_emb};
use criterion::Criterion;
use lora::layers::LoraLinear;
use lora::{LoraConfig, ops};
use std::time::Duration;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .nresamples(10_000)
        .without_plots()
        .configure_from_args();
    // One family after the other, so that only its tensors are in memory.
    for family in [
        activations,
        linear,
        convolutions,
        norms,
        sums,
        attention,
        tables,
        losses,
    ] {
        for case in family().unwrap() {
            case.run(&mut criterion);
        }
    }
    criterion.final_summary();
}

type Op = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// One op on one shape.
struct Case {
    op: &'static str,
    shape: &'static str,
    /// The arguments that get a gradient.
    inputs: Vec<Tensor>,
    ours: Op,
    /// Candle's, and where that records no gradient the one that does.
    candle: Option<Op>,
    candle_with_gradient: Option<Op>,
}

fn case<const N: usize>(
    op: &'static str,
    shape: &'static str,
    inputs: [&Tensor; N],
    ours: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
) -> Case {
    Case {
        op,
        shape,
        inputs: inputs.map(Tensor::clone).into(),
        ours: Box::new(ours),
        candle: None,
        candle_with_gradient: None,
    }
}

impl Case {
    /// Candle's op, for both passes.
    fn candle(self, op: impl Fn(&[Tensor]) -> Result<Tensor> + Clone + 'static) -> Self {
        self.candle_forward(op.clone()).candle_backward(op)
    }

    fn candle_forward(mut self, op: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Self {
        self.candle = Some(Box::new(op));
        self
    }

    fn candle_backward(mut self, op: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Self {
        self.candle_with_gradient = Some(Box::new(op));
        self
    }

    fn run(&self, criterion: &mut Criterion) {
        let (op, shape) = (self.op, self.shape);
        let mut group = criterion.benchmark_group(format!("{op}/{shape}/forward"));
        for (whose, op) in [("lora", Some(&self.ours)), ("candle", self.candle.as_ref())] {
            let Some(op) = op else { continue };
            group.bench_function(whose, |bench| bench.iter(|| op(&self.inputs).unwrap()));
        }
        group.finish();

        let inputs = self
            .inputs
            .iter()
            .map(|x| Ok(Var::from_tensor(x)?.into_inner()));
        let inputs = inputs.collect::<Result<Vec<_>>>().unwrap();
        let mut group = criterion.benchmark_group(format!("{op}/{shape}/forward+backward"));
        let candle = self.candle_with_gradient.as_ref();
        for (whose, op) in [("lora", Some(&self.ours)), ("candle", candle)] {
            let Some(op) = op else { continue };
            group.bench_function(whose, |bench| {
                bench.iter(|| op(&inputs).unwrap().backward().unwrap())
            });
        }
        group.finish();
    }
}

fn normal<const N: usize>(shape: [usize; N]) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, &shape, &Device::Cpu)
}

fn activations() -> Result<Vec<Case>> {
    let (convnext, language) = (normal([8, 14, 14, 1536])?, normal([2, 256, 4864])?);
    Ok(vec![
        case("gelu", "convnext", [&convnext], |x| ops::gelu(&x[0])).candle(|x| x[0].gelu()),
        case("gelu_erf", "convnext", [&convnext], |x| {
            ops::gelu_erf(&x[0])
        })
        .candle(|x| x[0].gelu_erf()),
        case("relu", "convnext", [&convnext], |x| ops::relu(&x[0])).candle(|x| x[0].relu()),
        case("silu", "language", [&language], |x| ops::silu(&x[0])).candle(|x| x[0].silu()),
    ])
}

fn linear() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let shapes = [
        ("convnext", normal([8, 14, 14, 384])?, 1536),
        ("language", normal([2, 256, 896])?, 4864),
    ];
    for (shape, x, outputs) in shapes {
        let (w, b) = (normal([outputs, x.dim(D::Minus1)?])?, normal([outputs])?);
        let layer = Linear::new(w.clone(), Some(b.clone()));
        let candle = layer.clone();
        cases.push(
            case("linear", shape, [&x], move |x| {
                ops::linear(&x[0], &w, Some(&b))
            })
            .candle(move |x| candle.forward(&x[0])),
        );
        let adapted =
            LoraLinear::new(&layer, &LoraConfig::new(8)).map_err(candle_core::Error::wrap)?;
        let down = Var::from_tensor(&normal([8, x.dim(D::Minus1)?])?)?.into_inner();
        let up = Var::from_tensor(&normal([outputs, 8])?)?.into_inner();
        let (down, up) = (Linear::new(down, None), Linear::new(up, None));
        cases.push(
            case("lora_linear", shape, [&x], move |x| adapted.forward(&x[0]))
                .candle(move |x| layer.forward(&x[0])? + x[0].apply(&down)?.apply(&up)?),
        );
    }
    Ok(cases)
}

fn convolutions() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let depthwise = Conv2dConfig {
        padding: 3,
        groups: 384,
        ..Default::default()
    };
    let patches = |stride| Conv2dConfig {
        stride,
        ..Default::default()
    };
    let shapes = [
        (
            "conv2d_depthwise",
            normal([8, 384, 14, 14])?,
            normal([384, 1, 7, 7])?,
            depthwise,
        ),
        (
            "conv2d_patches",
            normal([8, 192, 28, 28])?,
            normal([384, 192, 2, 2])?,
            patches(2),
        ),
        (
            "conv2d_pointwise",
            normal([8, 384, 14, 14])?,
            normal([384, 384, 1, 1])?,
            patches(1),
        ),
    ];
    for (op, x, w, config) in shapes {
        let b = normal([384])?;
        let candle = candle_nn::Conv2d::new(w.clone(), Some(b.clone()), config);
        cases.push(
            case(op, "convnext", [&x], move |x| {
                ops::conv2d(&x[0], &w, Some(&b), &config)
            })
            .candle(move |x| candle.forward(&x[0])),
        );
    }
    // Channels last in memory, as the maps of a ConvNeXt are.
    let (x, w, b) = (
        normal([8, 14, 14, 384])?,
        normal([384, 1, 7, 7])?,
        normal([384])?,
    );
    let candle = candle_nn::Conv2d::new(w.clone(), Some(b.clone()), depthwise);
    let permuted = |x: &[Tensor]| x[0].permute((0, 3, 1, 2));
    cases.push(
        case("conv2d_depthwise_nhwc", "convnext", [&x], move |x| {
            ops::conv2d(&permuted(x)?, &w, Some(&b), &depthwise)
        })
        .candle(move |x| candle.forward(&permuted(x)?)),
    );
    let (x, w, b) = (
        normal([2, 384, 256])?,
        normal([384, 384, 3])?,
        normal([384])?,
    );
    let config = Conv1dConfig {
        padding: 1,
        ..Default::default()
    };
    let candle = candle_nn::Conv1d::new(w.clone(), Some(b.clone()), config);
    cases.push(
        case("conv1d", "language", [&x], move |x| {
            ops::conv1d(&x[0], &w, Some(&b), &config)
        })
        .candle(move |x| candle.forward(&x[0])),
    );
    Ok(cases)
}

fn norms() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let eps = 1e-6;
    for (shape, x) in [
        ("convnext", normal([8, 14, 14, 384])?),
        ("language", normal([2, 256, 896])?),
    ] {
        let (w, b) = (normal([x.dim(D::Minus1)?])?, normal([x.dim(D::Minus1)?])?);
        let [fused, slow] = [(); 2].map(|()| (w.clone(), b.clone()));
        let [rms, rms_fused, rms_slow] = [(); 3].map(|()| w.clone());
        cases.push(
            case("layer_norm", shape, [&x], move |x| {
                ops::layer_norm(&x[0], &w, &b, eps)
            })
            .candle_forward(move |x| candle_nn::ops::layer_norm(&x[0], &fused.0, &fused.1, eps))
            .candle_backward(move |x| {
                candle_nn::ops::layer_norm_slow(&x[0], &slow.0, &slow.1, eps)
            }),
        );
        cases.push(
            case("rms_norm", shape, [&x], move |x| {
                ops::rms_norm(&x[0], &rms, eps)
            })
            .candle_forward(move |x| candle_nn::ops::rms_norm(&x[0], &rms_fused, eps))
            .candle_backward(move |x| candle_nn::ops::rms_norm_slow(&x[0], &rms_slow, eps)),
        );
    }
    let (x, w, b) = (normal([8, 384, 14, 14])?, normal([384])?, normal([384])?);
    let candle = GroupNorm::new(w.clone(), b.clone(), 384, 32, 1e-6)?;
    cases.push(
        case("group_norm", "convnext", [&x], move |x| {
            ops::group_norm(&x[0], &w, &b, 32, 1e-6)
        })
        .candle(move |x| candle.forward(&x[0])),
    );
    Ok(cases)
}

fn sums() -> Result<Vec<Case>> {
    let (x, y) = (normal([8, 14, 14, 384])?, normal([8, 14, 14, 384])?);
    let [(w, b), (cw, cb)] = {
        let (w, b) = (normal([384])?, normal([384])?);
        [(w.clone(), b.clone()), (w, b)]
    };
    let [gamma, candle_gamma] = [w.clone(), w.clone()];
    let last_to_first = |x: &[Tensor]| x[0].permute((0, 3, 1, 2));
    Ok(vec![
        case("affine", "convnext", [&x], move |x| {
            ops::affine(&x[0], &w, Some(&b), 3)
        })
        .candle(move |x| x[0].broadcast_mul(&cw)?.broadcast_add(&cb)),
        case("residual", "convnext", [&x, &y], move |x| {
            ops::residual(&x[0], &x[1], Some(&gamma), 3)
        })
        .candle(move |x| &x[0] + x[1].broadcast_mul(&candle_gamma)?),
        case("add", "convnext", [&x, &y], |x| ops::add(&x[0], &x[1])).candle(|x| &x[0] + &x[1]),
        case("contiguous", "convnext", [&x], move |x| {
            ops::contiguous(&last_to_first(x)?)
        })
        .candle(move |x| last_to_first(x)?.contiguous()),
    ])
}

fn attention() -> Result<Vec<Case>> {
    let scores = normal([2, 14, 256, 256])?;
    let (q, k, v) = (
        normal([2, 14, 256, 64])?,
        normal([2, 14, 256, 64])?,
        normal([2, 14, 256, 64])?,
    );
    let mask = causal_mask(256)?;
    Ok(vec![
        case("softmax_last_dim", "language", [&scores], |x| {
            ops::softmax_last_dim(&x[0])
        })
        .candle_forward(|x| candle_nn::ops::softmax_last_dim(&x[0]))
        .candle_backward(|x| candle_nn::ops::softmax(&x[0], D::Minus1)),
        case("softmax", "language", [&scores], |x| ops::softmax(&x[0], 1))
            .candle(|x| candle_nn::ops::softmax(&x[0], 1)),
        // Candle's is on Metal only: as models write it.
        case("sdpa", "language", [&q, &k, &v], |x| {
            ops::sdpa(&x[0], &x[1], &x[2], None, true, 0.125, 1.0)
        })
        .candle(move |x| {
            let scores = (x[0].matmul(&x[1].t()?)? * 0.125)?.broadcast_add(&mask)?;
            candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&x[2])
        }),
    ])
}

/// 0 for the keys that a query sees, −∞ for those behind it.
fn causal_mask(size: usize) -> Result<Tensor> {
    let value = |i: usize| {
        if i % size > i / size {
            f32::NEG_INFINITY
        } else {
            0.0
        }
    };
    let values: Vec<f32> = (0..size * size).map(value).collect();
    Tensor::from_vec(values, (size, size), &Device::Cpu)
}

fn tables() -> Result<Vec<Case>> {
    let (heads_first, time_first) = (normal([2, 14, 256, 64])?, normal([2, 256, 14, 64])?);
    let angles = normal([256, 32])?;
    let table = || Ok::<_, candle_core::Error>((angles.cos()?, angles.sin()?));
    let [rope, fused, slow, rope_i, fused_i, slow_i] =
        [table()?, table()?, table()?, table()?, table()?, table()?];
    let [thd, fused_thd] = [table()?, table()?];
    let ids = |i: u32| i.wrapping_mul(2_654_435_761) % 8192;
    let ids = Tensor::from_iter((0..512).map(ids), &Device::Cpu)?.reshape((2, 256))?;
    let candle_ids = ids.flatten_all()?.to_dtype(DType::U32)?;
    Ok(vec![
        case("rope", "language", [&heads_first], move |x| {
            ops::rope(&x[0], &rope.0, &rope.1)
        })
        .candle_forward(move |x| rotary_emb::rope(&x[0], &fused.0, &fused.1))
        .candle_backward(move |x| rotary_emb::rope_slow(&x[0], &slow.0, &slow.1)),
        case("rope_i", "language", [&heads_first], move |x| {
            ops::rope_i(&x[0], &rope_i.0, &rope_i.1)
        })
        .candle_forward(move |x| rotary_emb::rope_i(&x[0], &fused_i.0, &fused_i.1))
        .candle_backward(move |x| rotary_emb::rope_i_slow(&x[0], &slow_i.0, &slow_i.1)),
        case("rope_thd", "language", [&time_first], move |x| {
            ops::rope_thd(&x[0], &thd.0, &thd.1)
        })
        .candle_forward(move |x| rotary_emb::rope_thd(&x[0], &fused_thd.0, &fused_thd.1)),
        case("embedding", "language", [&normal([8192, 896])?], move |x| {
            ops::embedding(&ids, &x[0])
        })
        .candle(move |x| x[0].index_select(&candle_ids, 0)?.reshape((2, 256, 896))),
    ])
}

/// Of 512 tokens among 49,152 words.
fn losses() -> Result<Vec<Case>> {
    let (hidden, head) = (normal([512, 576])?, normal([49152, 576])?);
    let logits = normal([512, 49152])?;
    let words = Tensor::from_iter((0..512u32).map(|i| i * 96), &Device::Cpu)?;
    let [of_linear, of_logits, candle] = [words.clone(), words.clone(), words.clone()];
    let candle_head = head.clone();
    Ok(vec![
        case("cross_entropy", "language", [&logits], move |x| {
            ops::cross_entropy(&x[0], &of_logits)
        })
        .candle(move |x| candle_nn::loss::cross_entropy(&x[0], &candle)),
        case("linear_cross_entropy", "language", [&hidden], move |x| {
            ops::CrossEntropy::new().of_linear(&x[0], &head, None, &of_linear)
        })
        .candle(move |x| candle_nn::loss::cross_entropy(&x[0].matmul(&candle_head.t()?)?, &words)),
    ])
}
