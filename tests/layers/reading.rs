//! Models whose own code reads a layer's weight, bias or table: with an adapter it reads the adapted
//! values, and the gradient goes on to the adapter.

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Embedding, Linear, Optimizer, ParamsAdamW};
use lora::layers::TransposedLinear;
use lora::optim::AdamW;
use lora::{Adapted, LoraConfig, LoraModel, LoraModule};
use lora_tests::{assert_close, check_gradients, fill_adapters, fixed, relative_error};

/// Computes with the layers, and a second time with what it reads of them.
#[derive(Clone, Debug, LoraModel)]
struct Reader {
    linear: Linear,
    transposed: TransposedLinear,
    conv: Conv2d,
}

#[lora::forward]
impl Reader {
    fn by_layers(&self, xs: &Tensor) -> Result<Vec<Tensor>> {
        let image = xs.reshape((1, 4, 2, ()))?;
        Ok(vec![
            self.linear.forward(xs)?,
            self.transposed.forward(xs)?,
            self.conv.forward(&image)?,
        ])
    }

    fn by_values(&self, xs: &Tensor) -> Result<Vec<Tensor>> {
        let image = xs.reshape((1, 4, 2, ()))?;
        let linear = xs.broadcast_matmul(&self.linear.weight().t()?)?;
        let transposed = xs.broadcast_matmul(self.transposed.weight())?;
        let conv = self.conv.config();
        let conv = image.conv2d(
            self.conv.weight(),
            conv.padding,
            conv.stride,
            conv.dilation,
            conv.groups,
        )?;
        let bias = |bias: Option<&Tensor>| bias.unwrap().clone();
        let of_conv = bias(self.conv.bias()).reshape((1, (), 1, 1))?;
        Ok(vec![
            linear.broadcast_add(&bias(self.linear.bias()))?,
            transposed.broadcast_add(&bias(self.transposed.bias()))?,
            conv.broadcast_add(&of_conv)?,
        ])
    }
}

fn reader() -> Reader {
    let f64 = DType::F64;
    let conv = Conv2dConfig {
        padding: 1,
        groups: 2,
        ..Default::default()
    };
    Reader {
        linear: Linear::new(fixed((5, 8), f64, 1), Some(fixed(5, f64, 2))),
        transposed: TransposedLinear::new(fixed((8, 3), f64, 3), Some(fixed(3, f64, 4))).unwrap(),
        conv: Conv2d::new(fixed((6, 2, 3, 3), f64, 5), Some(fixed(6, f64, 6)), conv),
    }
}

fn all() -> LoraConfig {
    LoraConfig::new(2).target_modules(["linear", "transposed", "conv"])
}

fn same(what: &str, a: &[Tensor], b: &[Tensor]) {
    for (place, (a, b)) in a.iter().zip(b).enumerate() {
        assert_close(&format!("{what} {place}"), a, b, 1e-12);
    }
}

#[test]
fn what_is_read_is_what_the_layer_computes_with() {
    let xs = fixed((3, 8), DType::F64, 9);
    let base = reader().by_layers(&xs).unwrap();
    let kinds = [
        ("plain", all()),
        ("dora", all().use_dora(true)),
        ("bias", all().lora_bias(true)),
    ];
    for (what, config) in kinds {
        let mut model = reader().to_lora(&config).unwrap();
        same(what, &model.by_values(&xs).unwrap(), &base);
        // After the first reading: the values follow the variables.
        fill_adapters(&model);
        let expected = model.by_layers(&xs).unwrap();
        assert!(relative_error(&expected[0], &base[0]).unwrap() > 1e-2);
        same(what, &model.by_values(&xs).unwrap(), &expected);
        let tuned = model.to_base().unwrap();
        same(what, &tuned.by_values(&xs).unwrap(), &expected);
        model.merge().unwrap();
        same(what, &model.by_values(&xs).unwrap(), &expected);
        model.unmerge().unwrap();

        // Two adapters, one of them merged.
        model.add_adapter("other", &all()).unwrap();
        model.set_active(&["default", "other"]).unwrap();
        fill_adapters(&model);
        let both = model.by_layers(&xs).unwrap();
        same(what, &model.by_values(&xs).unwrap(), &both);
        model.merge_adapters(&["default"]).unwrap();
        same(what, &model.by_values(&xs).unwrap(), &both);
        model.unmerge().unwrap();
        model.set_active(&[]).unwrap();
        same(what, &model.by_values(&xs).unwrap(), &base);
        let own = &reader().linear;
        assert_close("own", model.linear.unmerged_weight(), own.weight(), 0.0);
    }
}

#[test]
fn the_gradient_of_what_is_read_is_the_layers() {
    let xs = fixed((3, 8), DType::F64, 9);
    let loss = |ys: Vec<Tensor>| -> Tensor {
        let squares = ys.iter().map(|ys| ys.sqr().unwrap().mean_all().unwrap());
        squares.reduce(|a, b| (a + b).unwrap()).unwrap()
    };
    for config in [all(), all().lora_bias(true)] {
        let mut model = reader().to_lora(&config).unwrap();
        fill_adapters(&model);
        let expected = model
            .backward(&loss(model.by_layers(&xs).unwrap()))
            .unwrap();
        let actual = model
            .backward(&loss(model.by_values(&xs).unwrap()))
            .unwrap();
        for var in model.trainable_vars() {
            let (actual, expected) = (actual.get(&var).unwrap(), expected.get(&var).unwrap());
            assert_close("gradient", actual, expected, 1e-12);
        }
        // In eval mode no graph is recorded.
        model.eval();
        assert!(!model.by_values(&xs).unwrap()[0].track_op());
    }
}

/// A head that multiplies by the embedding's table, as many language models have it.
#[derive(Clone, Debug, LoraModel)]
struct TiedLm {
    embed: Embedding,
    fc: Linear,
}

#[lora::forward]
impl Module for TiedLm {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let xs = ids.apply(&self.embed)?.apply(&self.fc)?.tanh()?;
        xs.broadcast_matmul(&self.embed.embeddings().t()?)
    }
}

fn tied(dtype: DType) -> TiedLm {
    TiedLm {
        embed: Embedding::new(fixed((9, 4), dtype, 1), 4),
        fc: Linear::new(fixed((4, 4), dtype, 2), None),
    }
}

fn ids() -> Tensor {
    Tensor::new(&[[1u32, 8, 3], [3, 0, 5]], &Device::Cpu).unwrap()
}

fn tied_configs() -> Vec<(&'static str, LoraConfig)> {
    let config = LoraConfig::new(2).target_modules(["embed", "fc"]);
    let rows = LoraConfig::new(2).target_modules(["fc"]);
    vec![
        ("low rank", config.clone()),
        ("dora", config.use_dora(true)),
        (
            "rows",
            rows.clone().trainable_token_indices("embed", [3, 8]),
        ),
        ("in full", rows.modules_to_save(["embed"])),
    ]
}

#[test]
fn a_head_that_reads_the_table_agrees_with_the_merged_and_the_base_model() {
    for (what, config) in tied_configs() {
        let base = tied(DType::F32);
        let mut model = base.to_lora(&config.seed(1)).unwrap();
        let before = base.forward(&ids()).unwrap();
        assert_close(what, &model.forward(&ids()).unwrap(), &before, 1e-6);
        let params = ParamsAdamW {
            lr: 0.05,
            ..Default::default()
        };
        let mut optimizer = AdamW::for_model(&model, params).unwrap();
        for _ in 0..4 {
            let loss = model.forward(&ids()).unwrap().sqr().unwrap().mean_all();
            optimizer.backward_step(&loss.unwrap()).unwrap();
        }
        let trained = model.forward(&ids()).unwrap();
        assert!(relative_error(&trained, &before).unwrap() > 1e-2, "{what}");
        let tuned = model.to_base().unwrap().forward(&ids()).unwrap();
        assert_close(what, &tuned, &trained, 1e-6);
        model.eval();
        assert_close(what, &model.forward(&ids()).unwrap(), &trained, 1e-6);
        model.merge().unwrap();
        assert_close(what, &model.forward(&ids()).unwrap(), &trained, 1e-6);
    }
}

/// DoRA aside, whose norm counts as a constant.
#[test]
fn the_gradient_through_a_table_that_is_read_twice_is_right() {
    for (what, config) in tied_configs() {
        if what == "dora" {
            continue;
        }
        let model = tied(DType::F64).to_lora(&config).unwrap();
        fill_adapters(&model);
        let vars = model.trainable_vars();
        let named: Vec<_> = vars.iter().map(|var| (what, var)).collect();
        check_gradients(what, &named, || model.forward(&ids()));
    }
}

/// The rows of a mixed batch have no table in common that the model's code could read.
#[test]
fn a_mixed_batch_has_no_weight_to_read() {
    let config = LoraConfig::new(2).target_modules(["embed"]);
    let mut model = tied(DType::F32).to_lora(&config).unwrap();
    let of_fc = LoraConfig::new(2).target_modules(["fc"]);
    model.add_adapter("fc", &of_fc).unwrap();
    fill_adapters(&model);
    let view = model.for_rows(&[Some("default"), None]).unwrap();
    assert!(view.forward(&ids()).is_err());
    assert_eq!(view.embed.embeddings().elem_count(), 0);
    // The embedding has no part in these.
    let view = model.for_rows(&[Some("fc"), None]).unwrap();
    let mixed = view.forward(&ids()).unwrap();
    let base = tied(DType::F32).forward(&ids()).unwrap();
    assert_close("base", &mixed.get(1).unwrap(), &base.get(1).unwrap(), 1e-6);
    model.set_active(&["fc"]).unwrap();
    let fc = model.forward(&ids()).unwrap();
    assert_close("fc", &mixed.get(0).unwrap(), &fc.get(0).unwrap(), 1e-6);
}
