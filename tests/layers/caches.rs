//! Caches of keys and values as fields: training and generation.

use super::F32;
use candle_core::{Result, Tensor};
use candle_nn::kv_cache::{ConcatKvCache, KvCache, RotatingKvCache};
use candle_nn::{Linear, Module, Optimizer, ParamsAdamW};
use lora::optim::{AdamW, load_state, save_state};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{assert_close, fill_adapters, fixed, values, whole_life};

fn qkv() -> Linear {
    Linear::new(fixed((12, 4), F32, 1), Some(fixed(12, F32, 2)))
}

fn attend(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let scores = q.contiguous()?.matmul(&k.t()?.contiguous()?)?;
    lora::ops::softmax_last_dim(&scores)?.matmul(&v.contiguous()?)
}

macro_rules! attention {
    ($name:ident, $cache:ty) => {
        #[derive(Clone, Debug, LoraModel)]
        struct $name {
            #[lora(rank)]
            qkv: Linear,
            kv_cache: $cache,
        }

        #[lora::forward]
        impl $name {
            fn forward(&mut self, xs: &Tensor) -> Result<Tensor> {
                let qkv = self.qkv.forward(xs)?.chunk(3, 2)?;
                let (k, v) = self
                    .kv_cache
                    .append(&qkv[1].contiguous()?, &qkv[2].contiguous()?)?;
                attend(&qkv[0], &k, &v)
            }

            fn clear(&mut self) {
                self.kv_cache.reset();
            }
        }
    };
}

attention!(Growing, KvCache);
attention!(Window, RotatingKvCache);
attention!(Joined, ConcatKvCache);

/// As the models of candle-transformers have it.
#[derive(Clone, Debug, LoraModel)]
struct Pair {
    #[lora(rank)]
    qkv: Linear,
    kv_cache: Option<(Tensor, Tensor)>,
}

#[lora::forward]
impl Pair {
    fn forward(&mut self, xs: &Tensor) -> Result<Tensor> {
        let qkv = self.qkv.forward(xs)?.chunk(3, 2)?;
        let (k, v) = match &self.kv_cache {
            None => (qkv[1].clone(), qkv[2].clone()),
            Some((k, v)) => (
                Tensor::cat(&[k, &qkv[1]], 1)?,
                Tensor::cat(&[v, &qkv[2]], 1)?,
            ),
        };
        self.kv_cache = Some((k.clone(), v.clone()));
        attend(&qkv[0], &k, &v)
    }

    fn clear(&mut self) {
        self.kv_cache = None;
    }
}

/// The whole life, where each pass runs two parts of a sequence through a clone; then generation.
macro_rules! check {
    ($net:expr) => {{
        let net = $net;
        let parts = [fixed((1, 3, 4), F32, 5), fixed((1, 2, 4), F32, 6)];
        let first = |xs: &Tensor, second: &Tensor| Tensor::cat(&[xs, second], 1);
        let what = std::any::type_name_of_val(&net);
        let config = LoraConfig::new(2).seed(1);
        let mut model = whole_life(
            what,
            &net,
            &config,
            |net| {
                let mut net = net.clone();
                first(&net.forward(&parts[0])?, &net.forward(&parts[1])?)
            },
            |model| {
                let mut model = model.clone();
                first(&model.forward(&parts[0])?, &model.forward(&parts[1])?)
            },
        );
        // Generation, one position after the other, by the model and by its merged base.
        model.eval();
        let mut tuned = model.to_base().unwrap();
        for round in 0..2 {
            for step in 0..4 {
                let xs = fixed((1, 1, 4), F32, 10 + step);
                let (y, expected) = (model.forward(&xs).unwrap(), tuned.forward(&xs).unwrap());
                assert_close(what, &y, &expected, 1e-5);
                assert!(!y.track_op(), "{what} {round}");
            }
            model.clear();
            tuned.clear();
        }
        model
    }};
}

#[test]
fn candles_caches_train_and_generate() {
    let model = check!(Growing {
        qkv: qkv(),
        kv_cache: KvCache::new(1, 3)
    });
    assert_eq!(model.kv_cache.k_cache().dim(), 1);
    check!(Window {
        qkv: qkv(),
        kv_cache: RotatingKvCache::new(1, 8)
    });
    let model = check!(Joined {
        qkv: qkv(),
        kv_cache: ConcatKvCache::new(1)
    });
    assert!(model.kv_cache.is_empty());
    assert_eq!(model.kv_cache.dim(), 1);
}

#[test]
fn a_pair_of_tensors_trains_and_generates() {
    check!(Pair {
        qkv: qkv(),
        kv_cache: None
    });
}

/// A conversion in the midst of a sequence: buffers would be shared, and one model would overwrite what
/// the other wrote.
#[test]
fn a_conversion_begins_a_new_sequence() {
    let mut net = Growing {
        qkv: qkv(),
        kv_cache: KvCache::new(1, 16),
    };
    let xs = fixed((1, 3, 4), F32, 5);
    net.forward(&xs).unwrap();
    let held = values(&net.kv_cache.k().unwrap().unwrap()).unwrap();
    let mut model = net.to_lora(&LoraConfig::new(2).seed(1)).unwrap();
    assert_eq!(model.kv_cache.current_seq_len(), 0);
    fill_adapters(&model);
    model.eval();
    for _ in 0..2 {
        model.forward(&fixed((1, 4, 4), F32, 6)).unwrap();
    }
    assert_eq!(
        values(&net.kv_cache.k().unwrap().unwrap()).unwrap(),
        held,
        "the base's cache"
    );
    assert_eq!(model.kv_cache.current_seq_len(), 8);
    let again = model.to_base().unwrap();
    assert_eq!(again.kv_cache.current_seq_len(), 0);
    assert_eq!(again.kv_cache.k_cache().max_seq_len(), 16);
}

/// Keys and values are state, which a conversion takes along; two matrices are parameters.
#[test]
fn a_pair_of_keys_and_values_is_no_parameter() {
    let mut net = Pair {
        qkv: qkv(),
        kv_cache: None,
    };
    let xs = fixed((1, 3, 4), F32, 5);
    net.forward(&xs).unwrap();
    let mut model = net.to_lora(&LoraConfig::new(2).seed(1)).unwrap();
    let paths = |params: Vec<lora::NamedParam>| -> Vec<String> {
        params.into_iter().map(|param| param.path).collect()
    };
    let expected = ["qkv.weight", "qkv.bias", "qkv.lora_A.default.weight"];
    assert_eq!(paths(model.named_params())[..3], expected);
    assert_eq!(model.named_params().len(), 4);
    let next = fixed((1, 1, 4), F32, 6);
    let (y, expected) = (model.forward(&next).unwrap(), net.forward(&next).unwrap());
    assert_close("the next position", &y, &expected, 1e-6);
    let base = model.to_base().unwrap();
    assert_eq!(base.kv_cache.unwrap().0.dims(), [1, 4, 4]);

    let pair = Some((fixed((3, 4), F32, 1), fixed((3, 4), F32, 2)));
    let params = vec![pair].to_frozen().unwrap().named_params();
    assert_eq!(paths(params), ["0.0", "0.1"]);
}

/// A model in the midst of a sequence is saved, resumed, merged and changed as any other.
#[test]
fn a_filled_pair_is_in_nobodys_way() {
    let net = Pair {
        qkv: qkv(),
        kv_cache: None,
    };
    let xs = fixed((1, 3, 4), F32, 5);
    let config = LoraConfig::new(2).seed(1);
    let mut model = net.to_lora(&config).unwrap();
    fill_adapters(&model);
    let params = ParamsAdamW::default();
    let mut optimizer = AdamW::for_model(&model, params.clone()).unwrap();
    let loss = model
        .forward(&xs)
        .unwrap()
        .sqr()
        .unwrap()
        .sum_all()
        .unwrap();
    optimizer.backward_step(&loss).unwrap();
    assert!(model.kv_cache.is_some());
    assert_eq!(model.trainable_vars().len(), 2);

    let dir = tempfile::tempdir().unwrap();
    model.save_adapter(dir.path()).unwrap();
    let state = dir.path().join("state");
    save_state(&state, &model, &optimizer).unwrap();
    let mut again = net.to_lora(&config).unwrap();
    load_state(&state, &mut again, |model| {
        AdamW::for_model(model, params.clone())
    })
    .unwrap();
    let mut loaded = net.with_adapter(dir.path()).unwrap();
    model.add_adapter("other", &config).unwrap();
    model.merge().unwrap();
    model.clear();
    let expected = model.forward(&xs).unwrap();
    for model in [&mut again, &mut loaded] {
        assert_close("again", &model.forward(&xs).unwrap(), &expected, 1e-5);
    }
}
