//! Attention against its definition, and its gradients against finite differences in f64.

use candle_core::{DType, Device, Result, Tensor, Var};
use lora::ops;
use lora_tests::{assert_close, check_gradients, fixed, values, var};

/// What attention is computed from, beside the tensors.
#[derive(Clone, Copy, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    dim: usize,
    value_dim: usize,
    masked: bool,
    causal: bool,
    cap: f32,
}

const SCALE: f32 = 0.75;

impl Case {
    const PLAIN: Self = Self {
        heads: 2,
        kv_heads: 2,
        queries: 3,
        keys: 3,
        dim: 3,
        value_dim: 3,
        masked: false,
        causal: false,
        cap: 1.0,
    };

    fn square(length: usize, dim: usize) -> Self {
        Self {
            queries: length,
            keys: length,
            dim,
            value_dim: dim,
            ..Self::PLAIN
        }
    }

    fn shapes(&self) -> [(usize, usize, usize, usize); 3] {
        [
            (2, self.heads, self.queries, self.dim),
            (2, self.kv_heads, self.keys, self.dim),
            (2, self.kv_heads, self.keys, self.value_dim),
        ]
    }

    fn args(&self, dtype: DType) -> [Tensor; 3] {
        let [q, k, v] = self.shapes();
        [
            (fixed(q, dtype, 1) * 3.0).unwrap(),
            fixed(k, dtype, 2),
            fixed(v, dtype, 3),
        ]
    }

    /// Some −∞, and a bias elsewhere.
    fn mask(&self, dtype: DType) -> Option<Tensor> {
        let mask = fixed((self.heads, 1, self.keys), DType::F64, 4);
        let hidden = mask.lt(-0.5).unwrap();
        let infinite = Tensor::full(f64::NEG_INFINITY, mask.shape(), &Device::Cpu).unwrap();
        let mask = hidden.where_cond(&infinite, &mask).unwrap();
        self.masked.then(|| mask.to_dtype(dtype).unwrap())
    }

    fn sdpa(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let mask = self.mask(q.dtype());
        ops::sdpa(q, k, v, mask.as_ref(), self.causal, SCALE, self.cap)
    }

    /// As it is defined, with all the scores.
    fn naive(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let group = self.heads / self.kv_heads;
        let repeat = |xs: &Tensor| {
            let heads: Vec<_> = (0..self.heads)
                .map(|head| xs.narrow(1, head / group, 1))
                .collect::<Result<_>>()?;
            Tensor::cat(&heads, 1)
        };
        let scores = q.contiguous()?.matmul(&repeat(k)?.t()?.contiguous()?)?;
        let mut scores = (scores * f64::from(SCALE))?;
        if self.cap != 1.0 {
            let cap = f64::from(self.cap);
            scores = ((scores / cap)?.tanh()? * cap)?;
        }
        if let Some(mask) = self.mask(q.dtype()) {
            scores = scores.broadcast_add(&mask)?;
        }
        if self.causal {
            let hidden = (0..self.queries).flat_map(|i| {
                (0..self.keys).map(move |j| match j + self.queries > self.keys + i {
                    true => f64::NEG_INFINITY,
                    false => 0.0,
                })
            });
            let shape = (self.queries, self.keys);
            let hidden = Tensor::from_vec(hidden.collect(), shape, &Device::Cpu)?;
            scores = scores.broadcast_add(&hidden.to_dtype(scores.dtype())?)?;
        }
        let last = scores.rank() - 1;
        let p = candle_nn::ops::softmax(&scores, last)?;
        p.matmul(&repeat(v)?.contiguous()?)
    }
}

/// Every way to call it, over lengths within, at and beyond the borders of tiles.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for length in [1, 3, 7, 17, 65] {
        for dim in [1, 3, 16] {
            cases.push(Case::square(length, dim));
        }
    }
    let lengths = [
        (1, 5),
        (3, 7),
        (17, 65),
        (65, 17),
        (65, 65),
        (130, 300),
        (3, 600),
    ];
    for (queries, keys) in lengths {
        let base = Case {
            queries,
            keys,
            dim: 3,
            value_dim: 2,
            ..Case::PLAIN
        };
        cases.push(base);
        // More queries than keys: the first see nothing, which the definition gives as NaN.
        let causal = queries <= keys;
        cases.push(Case { causal, ..base });
        cases.push(Case {
            masked: true,
            ..base
        });
        cases.push(Case { cap: 2.5, ..base });
        cases.push(Case {
            heads: 6,
            kv_heads: 2,
            ..base
        });
        cases.push(Case {
            heads: 4,
            kv_heads: 1,
            causal,
            cap: 1.5,
            ..base
        });
    }
    cases
}

#[test]
fn agrees_with_the_definition() {
    for case in cases() {
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 3e-6)] {
            let [q, k, v] = case.args(dtype);
            let (ours, naive) = (case.sdpa(&q, &k, &v), case.naive(&q, &k, &v));
            assert_close(
                &format!("{case:?}"),
                &ours.unwrap(),
                &naive.unwrap(),
                tolerance,
            );
        }
    }
}

#[test]
fn gradients_agree_with_the_definition() {
    for case in cases() {
        for (dtype, tolerance) in [(DType::F64, 1e-11), (DType::F32, 2e-5)] {
            let args = case.args(dtype).map(|arg| Var::from_tensor(&arg).unwrap());
            let [q, k, v] = &args;
            let grads = |y: Result<Tensor>| {
                let y = y.unwrap();
                let loss = (&y * fixed(y.shape(), dtype, 5)).unwrap().sum_all();
                loss.unwrap().backward().unwrap()
            };
            let (ours, naive) = (grads(case.sdpa(q, k, v)), grads(case.naive(q, k, v)));
            for (name, arg) in ["q", "k", "v"].iter().zip(&args) {
                let (ours, naive) = (ours.get(arg).unwrap(), naive.get(arg).unwrap());
                if values(naive).unwrap().iter().all(|x| x.abs() < 1e-6) {
                    assert!(values(ours).unwrap().iter().all(|x| x.abs() < 1e-5));
                } else {
                    assert_close(
                        &format!("{name} {dtype:?} {case:?}"),
                        ours,
                        naive,
                        tolerance,
                    );
                }
            }
        }
    }
}

#[test]
fn gradients() {
    let base = Case {
        queries: 3,
        keys: 5,
        value_dim: 2,
        ..Case::PLAIN
    };
    let cases = [
        base,
        Case {
            causal: true,
            ..base
        },
        Case {
            masked: true,
            ..base
        },
        Case { cap: 2.5, ..base },
        Case {
            heads: 4,
            masked: true,
            causal: true,
            cap: 1.5,
            ..base
        },
        // Queries that see nothing.
        Case {
            queries: 5,
            keys: 3,
            causal: true,
            ..base
        },
        Case {
            heads: 1,
            kv_heads: 1,
            causal: true,
            ..Case::square(65, 1)
        },
    ];
    for case in cases {
        let [q, k, v] = case.shapes();
        let (q, k, v) = (var(q, 1), var(k, 2), var(v, 3));
        let vars = [("q", &q), ("k", &k), ("v", &v)];
        check_gradients(&format!("{case:?}"), &vars, || case.sdpa(&q, &k, &v));
    }
}

#[test]
fn only_tracked_arguments_get_gradients() {
    let case = Case {
        heads: 4,
        ..Case::square(5, 3)
    };
    for tracked in 0..8 {
        let vars = case
            .args(DType::F64)
            .map(|arg| Var::from_tensor(&arg).unwrap());
        let args = [0, 1, 2].map(|i| match tracked >> i & 1 {
            1 => vars[i].as_tensor().clone(),
            _ => vars[i].as_detached_tensor(),
        });
        let y = case.sdpa(&args[0], &args[1], &args[2]).unwrap();
        assert_eq!(y.track_op(), tracked != 0);
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let naive = case.naive(&vars[0], &vars[1], &vars[2]).unwrap();
        let naive = naive.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for (i, var) in vars.iter().enumerate() {
            assert_eq!(grads.get(var).is_some(), tracked >> i & 1 == 1);
            if let Some(grad) = grads.get(var) {
                assert_close("gradient", grad, naive.get(var).unwrap(), 1e-11);
            }
        }
    }
}

#[test]
fn the_mask_gets_no_gradient() {
    let (x, mask) = (var((1, 1, 3, 2), 1), var((3, 3), 2));
    let y = ops::sdpa(&x, &x, &x, Some(&mask), false, 1.0, 1.0).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_some() && grads.get(&mask).is_none());
}

/// As a transformer has them: a projection to (batch, time, heads·dim), split and transposed.
#[test]
fn permuted_arguments() {
    let case = Case {
        queries: 70,
        keys: 70,
        causal: true,
        ..Case::PLAIN
    };
    let projected = var((2, 70, 3 * 6), 1);
    let head = |i: usize| {
        let part = projected.reshape((2, 70, 9, 2))?.narrow(2, 3 * i, 3)?;
        part.transpose(1, 2)
    };
    let case = Case {
        heads: 3,
        kv_heads: 3,
        ..case
    };
    let joined = |y: Tensor| y.transpose(1, 2)?.reshape((2, 70, 6));
    let ours = || joined(case.sdpa(&head(0)?, &head(1)?, &head(2)?)?);
    let naive = || joined(case.naive(&head(0)?, &head(1)?, &head(2)?)?);
    let (ours, naive) = (ours().unwrap(), naive().unwrap());
    assert_close("permuted", &ours, &naive, 1e-12);
    let grad = |y: Tensor| {
        let loss = (&y * fixed(y.shape(), DType::F64, 5)).unwrap().sum_all();
        let grads = loss.unwrap().backward().unwrap();
        grads.get(&projected).unwrap().clone()
    };
    assert_close("gradient", &grad(ours), &grad(naive), 1e-11);

    let x = var((2, 3, 4, 5), 1);
    check_gradients("transposed", &[("x", &x)], || {
        let x = x.transpose(1, 2)?;
        let y = ops::sdpa(&x, &x, &x, None, true, 0.5, 1.0)?;
        y.transpose(1, 2)?.reshape((2, 3, 20))
    });
}

#[test]
fn a_row_that_sees_nothing_is_zero() {
    let none = f64::NEG_INFINITY;
    let mask = Tensor::new(&[[0.0, none], [none, none]], &Device::Cpu).unwrap();
    let x = var((1, 1, 2, 3), 1);
    let y = ops::sdpa(&x, &x, &x, Some(&mask), false, 1.0, 1.0).unwrap();
    let rows = y.reshape((2, 3)).unwrap().to_vec2::<f64>().unwrap();
    assert_eq!(rows[1], [0.0; 3]);
    assert_eq!(
        rows[0],
        x.reshape((2, 3)).unwrap().to_vec2::<f64>().unwrap()[0]
    );
    check_gradients("masked row", &[("x", &x)], || {
        ops::sdpa(&x, &x, &x, Some(&mask), false, 1.0, 1.0)
    });
}

#[test]
fn nan_is_not_lost() {
    for dtype in [DType::F32, DType::F64] {
        let x = fixed((1, 1, 40, 3), dtype, 1);
        let mut with_nan = values(&x).unwrap();
        with_nan[3 * 39] = f64::NAN;
        let with_nan = Tensor::from_vec(with_nan, x.shape(), &Device::Cpu).unwrap();
        let k = with_nan.to_dtype(dtype).unwrap();
        let y = ops::sdpa(&x, &k, &x, None, false, 1.0, 1.0).unwrap();
        assert!(values(&y).unwrap().iter().all(|y| y.is_nan()));
    }
}

#[test]
fn empty_tensors() {
    for shape in [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)] {
        let x = var(shape, 1);
        let y = ops::sdpa(&x, &x, &x, None, true, 1.0, 1.0).unwrap();
        assert_eq!(y.dims(), x.dims());
        y.sum_all().unwrap().backward().unwrap();
    }
    // Without keys every query sees nothing.
    let (q, k) = (var((1, 2, 3, 4), 1), var((1, 2, 0, 4), 2));
    let y = ops::sdpa(&q, &k, &k, None, false, 1.0, 1.0).unwrap();
    assert_eq!(values(&y).unwrap(), [0.0; 24]);
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(values(grads.get(&q).unwrap()).unwrap(), [0.0; 24]);
}

#[test]
fn half_types() {
    let case = Case {
        heads: 4,
        causal: true,
        ..Case::square(33, 8)
    };
    for (dtype, tolerance) in [(DType::BF16, 1e-2), (DType::F16, 2e-3)] {
        let args = case.args(dtype).map(|arg| Var::from_tensor(&arg).unwrap());
        let wide = args.each_ref().map(|arg| arg.to_dtype(DType::F64).unwrap());
        let wide = wide.map(|arg| Var::from_tensor(&arg).unwrap());
        let ours = case.sdpa(&args[0], &args[1], &args[2]).unwrap();
        let naive = case.naive(&wide[0], &wide[1], &wide[2]).unwrap();
        assert_eq!(ours.dtype(), dtype);
        assert_close("output", &ours, &naive, tolerance);
        let weights = fixed(naive.shape(), dtype, 5);
        let ours = (ours * &weights).unwrap().backward().unwrap();
        let weights = weights.to_dtype(DType::F64).unwrap();
        let naive = (naive * weights).unwrap().backward().unwrap();
        for (arg, wide) in args.iter().zip(&wide) {
            let (ours, naive) = (ours.get(arg).unwrap(), naive.get(wide).unwrap());
            assert_close("gradient", ours, naive, 3.0 * tolerance);
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let x = fixed((1, 4, 3, 2), DType::F32, 1);
    let call = |q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, cap: f32| {
        let error = ops::sdpa(q, k, v, mask, false, 1.0, cap).unwrap_err();
        error.to_string()
    };
    let three = fixed((4, 3, 2), DType::F32, 1);
    assert!(call(&three, &x, &x, None, 1.0).contains("[4, 3, 2]"));
    for shape in [(2, 4, 3, 2), (1, 3, 3, 2), (1, 4, 3, 1), (1, 0, 3, 2)] {
        let other = fixed(shape, DType::F32, 1);
        let message = call(&x, &other, &other, None, 1.0);
        assert!(message.contains("[1, 4, 3, 2]"), "{message}");
    }
    let longer = fixed((1, 4, 5, 2), DType::F32, 1);
    assert!(call(&x, &x, &longer, None, 1.0).contains("[1, 4, 5, 2]"));
    let wide = x.to_dtype(DType::F64).unwrap();
    assert!(call(&x, &wide, &x, None, 1.0).contains("F64"));
    let mask = fixed((2, 3), DType::F32, 1);
    assert!(call(&x, &x, &x, Some(&mask), 1.0).contains("[2, 3]"));
    let mask = mask.to_dtype(DType::U8).unwrap();
    assert!(call(&x, &x, &x, Some(&mask), 1.0).contains("U8"));
    for cap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(call(&x, &x, &x, None, cap).contains("softcapping"));
    }
}
