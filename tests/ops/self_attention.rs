//! Attention with its layers as one node: values and gradients against the same layers one by one and
//! against finite differences in f64.

use super::{numbers, seeded};
use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{LayerNorm, Linear, Module, RmsNorm};
use lora::blocks::Attention;
use lora::ops::KvCache;
use lora::{LoraConfig, LoraModel, LoraModule, ops};
use lora_tests::{assert_close, check_gradients, fill_adapters, fixed, var};

const F64: DType = DType::F64;

/// The sizes of a block.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    width: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

const SMALL: Sizes = Sizes {
    width: 5,
    heads: 4,
    kv_heads: 2,
    dim: 4,
};

/// The layers, with those of queries, keys and values apart and in one.
#[derive(Clone, Debug, LoraModel)]
struct Parts {
    norm: LayerNorm,
    #[lora(rank)]
    q: Linear,
    #[lora(rank)]
    k: Linear,
    #[lora(rank)]
    v: Linear,
    #[lora(rank)]
    qkv: Linear,
    #[lora(rank)]
    output: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    gamma: Tensor,
    heads: usize,
    together: bool,
}

impl Parts {
    /// `together`: the norms of queries and keys are over all heads.
    fn new(sizes: Sizes, together: bool) -> Self {
        let fixed = |shape: &[usize], seed| fixed(shape, F64, seed);
        let layer = |out: usize, input: usize, seed| {
            // Scores of any width stay small: a softmax of few ones hides what it rounds.
            let weight = fixed(&[out, input], seed) / (input as f64).sqrt();
            Linear::new(weight.unwrap(), Some(fixed(&[out], seed + 1)))
        };
        let Sizes {
            width,
            heads,
            kv_heads,
            dim,
        } = sizes;
        let (queries, keys) = (heads * dim, kv_heads * dim);
        let norm = |all: usize, seed| {
            let width = if together { all } else { dim };
            RmsNorm::new(fixed(&[width], seed), 1e-5)
        };
        Self {
            norm: LayerNorm::new(fixed(&[width], 1), fixed(&[width], 2), 1e-5),
            q: layer(queries, width, 3),
            k: layer(keys, width, 5),
            v: layer(keys, width, 7),
            qkv: layer(queries + 2 * keys, width, 9),
            output: layer(width, queries, 11),
            q_norm: norm(queries, 13),
            k_norm: norm(keys, 14),
            gamma: fixed(&[width], 15),
            heads,
            together,
        }
    }

    fn adapted(sizes: Sizes, together: bool, config: &LoraConfig) -> LoraParts {
        let model = Self::new(sizes, together).to_lora(config).unwrap();
        fill_adapters(&model);
        model
    }
}

/// What leads around the block.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Around {
    Nothing,
    Input,
    Normed,
    Other,
}

/// How the block runs. The dropout's share is exact in f32, as candle's function takes it.
#[derive(Clone, Debug)]
struct Run {
    joined: bool,
    norm: bool,
    head_norms: bool,
    gamma: bool,
    around: Around,
    dropout: f64,
    /// How many numbers of a head turn, and whether each sequence has angles of its own.
    rope: Option<(usize, bool)>,
    core: ops::Attention,
}

impl Run {
    /// Nothing but the layers.
    fn plain(core: ops::Attention) -> Self {
        Self {
            joined: false,
            norm: false,
            head_norms: false,
            gamma: false,
            around: Around::Nothing,
            dropout: 0.0,
            rope: None,
            core,
        }
    }

    fn tables(&self, xs: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
        let Some((turning, by_batch)) = self.rope else {
            return Ok(None);
        };
        let (batch, time, half) = (xs.dim(0)?, xs.dim(1)?, turning / 2);
        let angles = match by_batch {
            true => fixed((batch, time, half), F64, 21),
            // Longer than the sequences.
            false => fixed((time + 2, half), F64, 21),
        };
        let table = |table: Tensor| table.to_dtype(xs.dtype());
        Ok(Some((table(angles.cos()?)?, table(angles.sin()?)?)))
    }
}

#[lora::forward]
impl Parts {
    fn one_by_one(&self, xs: &Tensor, other: &Tensor, run: &Run) -> Result<Tensor> {
        let normed = match run.norm {
            true => self.norm.forward(xs)?,
            false => xs.clone(),
        };
        let (queries, keys) = (self.q.weight().dim(0)?, self.k.weight().dim(0)?);
        let dim = queries / self.heads;
        let (q, k, v) = match run.joined {
            true => {
                let all = normed.apply(&self.qkv)?;
                let part = |start, count| all.narrow(D::Minus1, start, count)?.contiguous();
                (
                    part(0, queries)?,
                    part(queries, keys)?,
                    part(queries + keys, keys)?,
                )
            }
            false => (
                normed.apply(&self.q)?,
                normed.apply(&self.k)?,
                normed.apply(&self.v)?,
            ),
        };
        let together = |all| if self.together { all } else { dim };
        let by_norm = |xs: &Tensor, together: usize| {
            let (batch, time, width) = xs.dims3()?;
            xs.reshape((batch, time, width / together, together))
        };
        let (q, k) = match run.head_norms {
            true => (
                by_norm(&q, together(queries))?.apply(&self.q_norm)?,
                by_norm(&k, together(keys))?.apply(&self.k_norm)?,
            ),
            false => (q, k),
        };
        let heads = |xs: &Tensor| {
            let (batch, time) = (xs.dim(0)?, xs.dim(1)?);
            xs.reshape((batch, time, (), dim))?.transpose(1, 2)
        };
        let (mut q, mut k, v) = (heads(&q)?, heads(&k)?, heads(&v)?);
        if let (Some((cos, sin)), Some((turning, _))) = (run.tables(xs)?, run.rope) {
            let turn = |xs: &Tensor| {
                let turned = ops::rope(&xs.narrow(3, 0, turning)?, &cos, &sin)?;
                Tensor::cat(&[turned, xs.narrow(3, turning, dim - turning)?], 3)
            };
            (q, k) = (turn(&q)?, turn(&k)?);
        }
        let ys = run.core.forward(&q, &k, &v)?;
        let ys = ys.transpose(1, 2)?.flatten_from(2)?.apply(&self.output)?;
        let ys = ops::dropout(&ys, run.dropout as f32)?;
        let ys = match run.gamma {
            true => ys.broadcast_mul(&self.gamma)?,
            false => ys,
        };
        match run.around {
            Around::Nothing => Ok(ys),
            Around::Input => ys + xs,
            Around::Normed => ys + normed,
            Around::Other => ys + other,
        }
    }

    fn as_one(&self, xs: &Tensor, other: &Tensor, run: &Run, recompute: bool) -> Result<Tensor> {
        let (output, heads) = (&self.output, self.heads);
        let mut block = match run.joined {
            true => Attention::joined(&self.qkv, output, heads),
            false => Attention::new(&self.q, &self.k, &self.v, output, heads),
        };
        block = block.core(run.core.clone()).dropout(run.dropout);
        if run.norm {
            block = block.norm(&self.norm);
        }
        if run.head_norms {
            block = block.head_norms(Some(&self.q_norm), Some(&self.k_norm));
        }
        if let Some((cos, sin)) = run.tables(xs)? {
            block = block.rope(&cos, &sin);
        }
        if run.gamma {
            block = block.gamma(Some(&self.gamma));
        }
        let block = match run.around {
            Around::Nothing => block,
            Around::Input => block.shortcut(xs),
            Around::Normed => block.shortcut_of_norm(),
            Around::Other => block.shortcut(other),
        };
        block.recompute(recompute).forward(xs)
    }
}

/// Numbers whose rows stay different when they are normalised; those of [`fixed`] are shifted rows.
fn input(shape: (usize, usize, usize), seed: usize) -> Tensor {
    let xs = fixed(shape, F64, seed);
    ((xs.clone() * 5.0).unwrap().sin().unwrap() + xs).unwrap()
}

fn core() -> ops::Attention {
    ops::Attention::new(0.25)
}

/// Every part of a block, in few runs.
fn runs(batch: usize, time: usize) -> Vec<Run> {
    let numbers = (0..batch * time).map(|i| (i % time > time / 2) as u32);
    let numbers: Vec<u32> = numbers.collect();
    let sequences = Tensor::from_vec(numbers, (batch, time), &Device::Cpu).unwrap();
    let mask = fixed((batch, 1, 1, time), F64, 31);
    vec![
        Run::plain(core()),
        Run {
            norm: true,
            around: Around::Input,
            dropout: 0.25,
            ..Run::plain(core().sequences(&sequences).dropout(0.25))
        },
        Run {
            joined: true,
            norm: true,
            gamma: true,
            around: Around::Normed,
            rope: Some((4, false)),
            ..Run::plain(core().causal().mask(&mask))
        },
        Run {
            head_norms: true,
            around: Around::Input,
            rope: Some((2, true)),
            ..Run::plain(core().causal().window(1, 0).soft_cap(1.5))
        },
        Run {
            joined: true,
            norm: true,
            head_norms: true,
            gamma: true,
            around: Around::Other,
            dropout: 0.25,
            rope: Some((4, true)),
            ..Run::plain(core().mask(&mask).sequences(&sequences).dropout(0.5))
        },
    ]
}

#[test]
fn one_node_has_the_gradients_of_finite_differences() {
    for (batch, time, share, together) in [(2, 4, 0.0, false), (1, 5, 0.3, true), (8, 4, 0.0, true)]
    {
        for run in runs(batch, time) {
            let config = LoraConfig::new(2).alpha(3.0).dropout(share);
            let model = Parts::adapted(SMALL, together, &config);
            let shape = (batch, time, SMALL.width);
            let x = Var::from_tensor(&input(shape, 41)).unwrap();
            let other = var(shape, 42);
            let unused = match run.joined {
                true => &["q.", "k.", "v."][..],
                false => &["qkv."],
            };
            let params = model.named_params().into_iter();
            let params: Vec<_> = params.filter(|param| param.is_trainable()).collect();
            let vars = model.trainable_vars();
            let used = params
                .iter()
                .zip(&vars)
                .filter(|(param, _)| !unused.iter().any(|layer| param.path.starts_with(layer)));
            let mut named: Vec<_> = used
                .map(|(param, var)| (param.path.as_str(), var))
                .collect();
            named.push(("x", &x));
            if run.around == Around::Other {
                named.push(("other", &other));
            }
            for recompute in [false, true] {
                let what = format!("{batch} x {time}, {share}, {recompute}, {run:?}");
                check_gradients(&what, &named, || {
                    seeded(|| model.as_one(&x, &other, &run, recompute))
                });
                let one = seeded(|| model.as_one(&x, &other, &run, recompute)).unwrap();
                let each = seeded(|| model.one_by_one(&x, &other, &run)).unwrap();
                assert_close(&what, &one, &each, 1e-12);
            }
        }
    }
}

#[test]
fn blocks_of_any_size_and_dtype_agree_with_the_layers_in_f64() {
    let sizes = |width, heads, kv_heads, dim| Sizes {
        width,
        heads,
        kv_heads,
        dim,
    };
    // Groups of several sequences, one for each thread, and sequences of more keys than a tile; widths
    // around those of vectors.
    for (batch, time, sizes) in [
        (1, 4, sizes(5, 1, 1, 4)),
        (3, 7, sizes(13, 2, 1, 6)),
        (17, 19, sizes(33, 3, 3, 10)),
        (2, 300, sizes(16, 2, 1, 4)),
        (12, 130, sizes(96, 4, 2, 24)),
    ] {
        let config = LoraConfig::new(3).seed(1).dropout(0.1);
        let exact = Parts::adapted(sizes, false, &config);
        let x = input((batch, time, sizes.width), 9);
        for run in runs(batch, time) {
            for (dtype, tolerance) in [(F64, 1e-12), (DType::F32, 2e-5), (DType::BF16, 6e-2)] {
                let model = exact.to_dtype(dtype).unwrap();
                let x = x.to_dtype(dtype).unwrap();
                // The layers of the same numbers, which are rounded already.
                let wide = (model.to_dtype(F64).unwrap(), x.to_dtype(F64).unwrap());
                let expected = numbers(&wide.0, &wide.1, |model, x| model.one_by_one(x, x, &run));
                assert_eq!(expected.len(), if run.joined { 6 } else { 10 });
                for recompute in [false, true] {
                    let actual =
                        numbers(&model, &x, |model, x| model.as_one(x, x, &run, recompute));
                    assert_eq!(actual.len(), expected.len());
                    for (index, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
                        let what = format!(
                            "{batch} x {time} {sizes:?} {dtype:?} {recompute} {run:?} {index}"
                        );
                        assert_close(&what, actual, expected, tolerance);
                    }
                }
            }
        }
    }
}

/// f32 against f32: the node rounds no worse than its layers.
#[test]
fn the_node_and_its_layers_are_the_same_in_f32() {
    let config = LoraConfig::new(3).seed(1);
    let model = Parts::adapted(SMALL, false, &config);
    let model = model.to_dtype(DType::F32).unwrap();
    let x = input((6, 50, SMALL.width), 9).to_dtype(DType::F32).unwrap();
    for run in runs(6, 50) {
        let each = numbers(&model, &x, |model, x| model.one_by_one(x, x, &run));
        for recompute in [false, true] {
            let one = numbers(&model, &x, |model, x| model.as_one(x, x, &run, recompute));
            for (index, (one, each)) in one.iter().zip(&each).enumerate() {
                assert_close(&format!("{recompute} {run:?} {index}"), one, each, 1e-6);
            }
        }
    }
}

#[test]
fn what_the_node_cannot_compute_runs_layer_by_layer() {
    // DoRA, a trained norm, trained biases.
    let dora = LoraConfig::new(2).use_dora(true);
    let trained = LoraConfig::new(2).modules_to_save(["norm"]);
    let biases = LoraConfig::new(2).train_bias(lora::TrainBias::All);
    for config in [dora, trained, biases] {
        let model = Parts::adapted(SMALL, false, &config);
        let x = input((2, 3, SMALL.width), 9);
        for run in runs(2, 3) {
            let [one, each] = [
                numbers(&model, &x, |model, x| model.as_one(x, x, &run, true)),
                numbers(&model, &x, |model, x| model.one_by_one(x, x, &run)),
            ];
            assert_eq!(one.len(), each.len());
            for (one, each) in one.iter().zip(&each) {
                assert_close(&format!("{run:?}"), one, each, 1e-12);
            }
        }
    }
}

#[test]
fn only_what_leads_to_a_variable_gets_a_gradient() {
    let model = Parts::adapted(SMALL, false, &LoraConfig::new(2).target_modules(["v"]));
    let x = input((2, 3, SMALL.width), 9);
    let vars = model.trainable_vars();
    let named: Vec<_> = vars.iter().map(|var| ("adapter", var)).collect();
    assert_eq!(named.len(), 2);
    for run in runs(2, 3).into_iter().filter(|run| !run.joined) {
        check_gradients(&format!("{run:?}"), &named, || {
            seeded(|| model.as_one(&x, &x, &run, false))
        });
    }
}

#[test]
fn an_empty_batch_runs() {
    let model = Parts::adapted(SMALL, false, &LoraConfig::new(2));
    for shape in [(0, 3, SMALL.width), (2, 0, SMALL.width)] {
        let x = Var::zeros(shape, F64, &Device::Cpu).unwrap();
        let run = Run {
            norm: true,
            around: Around::Input,
            ..Run::plain(core().causal())
        };
        let y = model.as_one(&x, &x, &run, false).unwrap();
        assert_eq!(y.dims(), x.dims());
        assert!(y.sum_all().unwrap().backward().is_ok());
    }
}

#[test]
fn the_first_tokens_alone_are_those_of_all() {
    let model = Parts::adapted(SMALL, false, &LoraConfig::new(2));
    let x = input((2, 5, SMALL.width), 9);
    let mask = fixed((2, 1, 1, 5), F64, 31);
    let run = Run {
        norm: true,
        gamma: true,
        head_norms: true,
        rope: Some((2, true)),
        ..Run::plain(core().mask(&mask))
    };
    let block = |joined, around, first| {
        let model = model.clone();
        let run = Run {
            joined,
            around,
            ..run.clone()
        };
        move |x: &Tensor| {
            let block = match joined {
                true => Attention::joined(&model.qkv, &model.output, model.heads),
                false => Attention::new(&model.q, &model.k, &model.v, &model.output, model.heads),
            };
            let (cos, sin) = run.tables(x)?.unwrap();
            let block = block.core(run.core.clone()).norm(&model.norm);
            let block = block.head_norms(Some(&model.q_norm), Some(&model.k_norm));
            let block = block
                .rope(&cos, &sin)
                .gamma(Some(&model.gamma))
                .first(first);
            match around {
                Around::Normed => block.shortcut_of_norm().forward(x),
                _ => block.shortcut(x).forward(x),
            }
        }
    };
    for (joined, around) in [(false, Around::Input), (true, Around::Normed)] {
        let (two, all) = (block(joined, around, Some(2)), block(joined, around, None));
        let two = numbers(&model, &x, |_, x| two(x));
        let all = numbers(&model, &x, |_, x| all(x)?.narrow(1, 0, 2));
        assert_eq!(two.len(), all.len());
        for (index, (two, all)) in two.iter().zip(&all).enumerate() {
            assert_close(&format!("{joined} {index}"), two, all, 1e-12);
        }
    }
    let plain = Attention::new(&model.q, &model.k, &model.v, &model.output, model.heads);
    let causal = plain.core(core().causal()).first(Some(1)).forward(&x);
    let error = causal.unwrap_err().to_string();
    assert!(
        error.contains("use no causal mask, window or sequences"),
        "{error}"
    );
}

#[test]
fn a_cache_changes_nothing() {
    let model = Parts::new(SMALL, false).to_frozen().unwrap();
    let x = input((2, 5, SMALL.width), 9);
    let angles = fixed((5, 2), F64, 21);
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    let block = |first: usize, time: usize| {
        let part = |table: &Tensor| table.narrow(0, first, time).unwrap();
        Attention::new(&model.q, &model.k, &model.v, &model.output, model.heads)
            .core(core().causal())
            .norm(&model.norm)
            .rope(&part(&cos), &part(&sin))
    };
    let whole = block(0, 5).shortcut(&x).forward(&x).unwrap();
    for turns_later in [false, true] {
        let mut cache = KvCache::new(2, 8);
        for (first, time) in [(0, 3), (3, 2)] {
            let x = x.narrow(1, first, time).unwrap();
            let block = block(first, time).shortcut(&x);
            let block = match turns_later {
                true => {
                    let all = |table: &Tensor| table.narrow(0, 0, first + time).unwrap();
                    block.rope_of_all_keys(&all(&cos), &all(&sin))
                }
                false => block,
            };
            let y = block.forward_cached(&x, Some(&mut cache)).unwrap();
            let expected = whole.narrow(1, first, time).unwrap();
            assert_close(&format!("{turns_later} {first}"), &y, &expected, 1e-12);
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let layer = |out: usize, input: usize| Linear::new(fixed((out, input), F64, 1), None);
    let (square, thin) = (layer(4, 4), layer(3, 4));
    let x = fixed((2, 3, 4), F64, 2);
    let message = |result: Result<Tensor>| {
        let error = result.unwrap_err().to_string();
        // A backtrace may follow.
        error.lines().next().unwrap_or_default().to_string()
    };
    let of = |heads| Attention::new(&square, &square, &square, &square, heads);
    assert_eq!(
        message(of(3).forward(&x)),
        "attention: the layer behind 3 heads has 4 inputs, not as many for each"
    );
    assert_eq!(
        message(Attention::new(&square, &thin, &thin, &square, 2).forward(&x)),
        "attention: 2 heads of 2 numbers do not fit layers with 4, 3, 3 outputs"
    );
    assert_eq!(
        message(Attention::joined(&square, &square, 2).forward(&x)),
        "attention: 2 heads of 2 numbers do not fit layers with 4 outputs"
    );
    assert_eq!(
        message(of(2).forward(&fixed((3, 4), F64, 2))),
        "attention: the input must be (batch, time, in), its shape is [3, 4]"
    );
    assert_eq!(
        message(of(2).dropout(1.0).forward(&x)),
        "the probability of dropout must be in 0..1, it is 1"
    );
    let other = fixed((2, 3, 5), F64, 2);
    assert!(of(2).shortcut(&other).forward(&x).is_err());
    let table = fixed((2, 1), F64, 3);
    assert!(of(2).rope(&table, &table).forward(&x).is_err());
    let norm = RmsNorm::new(fixed(3, F64, 1), 1e-5).to_frozen().unwrap();
    assert_eq!(
        message(
            of(2)
                .head_norms(Some(&norm), None::<&LayerNorm>)
                .forward(&x)
        ),
        "attention: a norm over 3 numbers does not fit heads of 4"
    );
}
