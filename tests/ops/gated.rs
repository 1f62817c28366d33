//! Gated MLPs as one node: values and gradients against the same layers one by one and against finite
//! differences in f64.

use super::{numbers, seeded};
use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{Activation, Linear, RmsNorm};
use lora::blocks::Mlp;
use lora::{LoraConfig, LoraModel, LoraModule, ops};
use lora_tests::{assert_close, check_gradients, fill_adapters, fixed, var};

const F64: DType = DType::F64;

/// The layers of a decoder's half block, with gate and up apart and in one layer.
#[derive(Clone, Debug, LoraModel)]
struct Parts {
    norm: RmsNorm,
    #[lora(rank)]
    gate: Linear,
    #[lora(rank)]
    up: Linear,
    #[lora(rank)]
    both: Linear,
    #[lora(rank)]
    down: Linear,
    act: Activation,
}

impl Parts {
    fn new(width: usize, hidden: usize, act: Activation) -> Self {
        let fixed = |shape: &[usize], seed| fixed(shape, F64, seed);
        let layer = |out: usize, input: usize, seed| {
            Linear::new(fixed(&[out, input], seed), Some(fixed(&[out], seed + 1)))
        };
        Self {
            norm: RmsNorm::new(fixed(&[width], 1), 1e-5),
            gate: layer(hidden, width, 2),
            up: layer(hidden, width, 4),
            both: layer(2 * hidden, width, 6),
            down: layer(width, hidden, 8),
            act,
        }
    }

    fn adapted(width: usize, hidden: usize, act: Activation, config: &LoraConfig) -> LoraParts {
        let model = Self::new(width, hidden, act).to_lora(config).unwrap();
        fill_adapters(&model);
        model
    }
}

/// How the block runs. The dropout's share is exact in f32, as candle's function takes it.
#[derive(Clone, Copy, Debug)]
struct Run {
    joined: bool,
    recompute: bool,
    dropout: f64,
}

const RUNS: [Run; 4] = [
    run(false, false, 0.0),
    run(false, true, 0.25),
    run(true, false, 0.25),
    run(true, true, 0.0),
];

const fn run(joined: bool, recompute: bool, dropout: f64) -> Run {
    Run {
        joined,
        recompute,
        dropout,
    }
}

#[lora::forward]
impl Parts {
    fn one_by_one(&self, xs: &Tensor, shortcut: &Tensor, run: Run) -> Result<Tensor> {
        let ys = xs.apply(&self.norm)?;
        let (gate, up) = if run.joined {
            let (both, hidden) = (ys.apply(&self.both)?, self.down.weight().dim(1)?);
            let gate = both.narrow(D::Minus1, 0, hidden)?.contiguous()?;
            (gate, both.narrow(D::Minus1, hidden, hidden)?)
        } else {
            (ys.apply(&self.gate)?, ys.apply(&self.up)?)
        };
        let ys = (gate.apply(&self.act)? * up)?.apply(&self.down)?;
        shortcut + ops::dropout(&ys, run.dropout as f32)?
    }

    fn as_one(&self, xs: &Tensor, shortcut: &Tensor, run: Run) -> Result<Tensor> {
        let chain = match run.joined {
            true => Mlp::joined(&self.both, &self.act, &self.down),
            false => Mlp::gated(&self.gate, &self.act, &self.up, &self.down),
        };
        let chain = chain.norm(&self.norm).dropout(run.dropout);
        let chain = chain.recompute(run.recompute).shortcut(shortcut);
        chain.forward(xs)
    }
}

#[test]
fn one_node_has_the_gradients_of_finite_differences() {
    for act in [Activation::Silu, Activation::Gelu] {
        // Few rows and many: the update beside the weight, and added to it.
        for (rows, share) in [(1, 0.0), (2, 0.3), (37, 0.0), (37, 0.3)] {
            for run in RUNS {
                let config = LoraConfig::new(2).alpha(3.0).dropout(share);
                let model = Parts::adapted(3, 7, act, &config);
                let (x, shortcut) = (var((rows, 3), 11), var((rows, 3), 12));
                let unused = match run.joined {
                    true => &["gate.", "up."][..],
                    false => &["both."],
                };
                let params = model.named_params().into_iter();
                let params = params.filter(|param| param.is_trainable());
                let vars = model.trainable_vars();
                let used = params
                    .zip(&vars)
                    .filter(|(param, _)| !unused.iter().any(|layer| param.path.starts_with(layer)));
                let mut named: Vec<_> = used.map(|(_, var)| ("adapter", var)).collect();
                named.extend([("x", &x), ("shortcut", &shortcut)]);
                let what = format!("{act:?}, {rows} rows, {run:?}, {share}");
                check_gradients(&what, &named, || {
                    seeded(|| model.as_one(&x, &shortcut, run))
                });
                let one = seeded(|| model.as_one(&x, &shortcut, run)).unwrap();
                let each = seeded(|| model.one_by_one(&x, &shortcut, run)).unwrap();
                assert_close(&what, &one, &each, 1e-12);
            }
        }
    }
}

#[test]
fn blocks_of_any_size_and_dtype_agree_with_the_layers_in_f64() {
    // Widths around those of vectors, rows for several blocks, and weights that no cache holds.
    for (rows, width, hidden) in [
        (1, 1, 1),
        (3, 7, 13),
        (5, 17, 16),
        (1001, 33, 130),
        (517, 384, 1900),
    ] {
        let config = LoraConfig::new(3).seed(1).dropout(0.1);
        let exact = Parts::adapted(width, hidden, Activation::Silu, &config);
        let x = fixed((rows, width), F64, 9);
        for joined in [false, true] {
            let plain = run(joined, false, 0.25);
            let expected = numbers(&exact, &x, |model, x| model.one_by_one(x, x, plain));
            assert_eq!(expected.len(), if joined { 6 } else { 8 });
            for (dtype, tolerance) in [
                (F64, 1e-12),
                (DType::F32, 2e-5),
                (DType::BF16, 4e-2),
                (DType::F16, 4e-2),
            ] {
                // The results of the widest are beyond F16's range.
                if dtype == DType::F16 && hidden > 1000 {
                    continue;
                }
                let model = exact.to_dtype(dtype).unwrap();
                let x = x.to_dtype(dtype).unwrap();
                for recompute in [false, true] {
                    let run = run(joined, recompute, 0.25);
                    let actual = numbers(&model, &x, |model, x| model.as_one(x, x, run));
                    assert_eq!(actual.len(), expected.len());
                    for (index, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
                        let what = format!("{rows}x{width}x{hidden} {dtype:?} {run:?} {index}");
                        assert_close(&what, actual, expected, tolerance);
                    }
                }
            }
        }
    }
}

#[test]
fn an_empty_batch_runs() {
    let model = Parts::adapted(3, 5, Activation::Silu, &LoraConfig::new(2));
    let x = Var::zeros((0, 3), F64, &Device::Cpu).unwrap();
    for run in RUNS {
        let y = model.as_one(&x, &x, run).unwrap();
        assert_eq!(y.dims(), [0, 3]);
        let grads = y.sum_all().unwrap().backward().unwrap();
        for var in model.trainable_vars() {
            if let Some(grad) = grads.get(&var) {
                let largest = grad.abs().unwrap().max_all().unwrap();
                assert_eq!(largest.to_scalar::<f64>().unwrap(), 0.0);
            }
        }
    }
}

#[test]
fn what_the_node_cannot_compute_runs_layer_by_layer() {
    // DoRA, two adapters, a trained norm, and an activation without a kernel.
    let dora = LoraConfig::new(2).use_dora(true);
    let trained = LoraConfig::new(2).modules_to_save(["norm"]);
    for (config, act) in [
        (dora, Activation::Silu),
        (trained, Activation::Silu),
        (LoraConfig::new(2), Activation::Elu(1.0)),
    ] {
        let model = Parts::adapted(4, 6, act, &config);
        let x = fixed((3, 4), F64, 9);
        for run in RUNS {
            let [one, each] = [
                numbers(&model, &x, |model, x| model.as_one(x, x, run)),
                numbers(&model, &x, |model, x| model.one_by_one(x, x, run)),
            ];
            assert_eq!(one.len(), each.len());
            for (one, each) in one.iter().zip(&each) {
                assert_close(&format!("{act:?} {run:?}"), one, each, 1e-12);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let layer = |out: usize, input: usize| Linear::new(fixed((out, input), F64, 1), None);
    let (act, x) = (Activation::Silu, fixed((2, 3), F64, 2));
    let (three, four) = (layer(3, 3), layer(4, 3));
    assert!(Mlp::gated(&three, &act, &four, &three).forward(&x).is_err());
    let error = Mlp::joined(&three, &act, &three).forward(&x).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("a layer of gate and up has as many outputs for each, it has 3 in all"),
        "{error}"
    );
    let chain = Mlp::gated(&three, &act, &three, &three).dropout(1.0);
    let error = chain.forward(&x).unwrap_err().to_string();
    assert!(
        error.starts_with("the probability of dropout must be in 0..1, it is 1"),
        "{error}"
    );
}
