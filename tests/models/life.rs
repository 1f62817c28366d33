//! The life of a model.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{
    AdamW, Conv2d, Conv2dConfig, Embedding, LayerNorm, Linear, Optimizer, ParamsAdamW,
};
use lora::{LoraConfig, LoraModel, LoraModule, transfer_weights};
use lora_tests::{assert_close, fixed, relative_error, values};

/// A model that computes something from an input of its own.
pub trait Run {
    /// The output for a fixed input.
    fn run(&mut self) -> Result<Tensor>;
}

/// Takes a model through its life. Returns the trained LoRA model.
#[track_caller]
pub fn live<B>(mut base: B, config: &LoraConfig) -> B::Lora
where
    B: LoraModel + Run,
    B::Lora: Run,
{
    let before = base.run().unwrap();
    let config = config.clone().seed(5);
    let mut model = base.to_lora(&config).unwrap();
    assert_close("fresh", &model.run().unwrap(), &before, 1e-5);

    // Training lowers the loss and moves only what is to be trained.
    let target = fixed(before.shape(), DType::F32, 99);
    let loss = |model: &mut B::Lora| {
        let y = model.run().unwrap();
        candle_nn::loss::mse(&y.flatten_all().unwrap(), &target.flatten_all().unwrap()).unwrap()
    };
    // Clones share the variables, which the check moves.
    let check = model.check_gradients(|model| Ok(loss(&mut model.clone())));
    check.unwrap();
    let frozen = frozen_values(&model);
    let first = loss(&mut model).to_scalar::<f32>().unwrap();
    let params = ParamsAdamW {
        lr: 0.02,
        weight_decay: 0.0,
        ..Default::default()
    };
    let mut optimizer = AdamW::new(model.trainable_vars(), params).unwrap();
    for _ in 0..8 {
        let loss = loss(&mut model);
        let grads = model.backward(&loss).unwrap();
        let vars = model.trainable_vars();
        assert!(vars.iter().all(|var| grads.get(var).is_some()));
        assert_eq!(grads.get_ids().count(), vars.len(), "gradients");
        optimizer.step(&grads).unwrap();
    }
    let last = loss(&mut model).to_scalar::<f32>().unwrap();
    assert!(last < 0.95 * first, "loss from {first} to {last}");
    assert_eq!(frozen_values(&model), frozen, "frozen weights");
    assert_close("base", &base.run().unwrap(), &before, 0.0);

    // Saved and loaded: into a fresh conversion, and into the model that the directory describes.
    model.eval();
    let tuned = model.run().unwrap();
    assert!(
        relative_error(&tuned, &before).unwrap() > 1e-3,
        "training had no effect"
    );
    let directory = tempfile::tempdir().unwrap();
    model.save_adapter(directory.path()).unwrap();
    let mut loaded = base.to_lora(&config.clone().seed(6)).unwrap();
    loaded.load_adapter(directory.path()).unwrap();
    assert_close("loaded", &loaded.run().unwrap(), &tuned, 1e-6);
    let mut described = base.with_adapter(directory.path()).unwrap();
    assert_close("described", &described.run().unwrap(), &tuned, 1e-6);

    // Merged, unmerged, turned back.
    model.merge().unwrap();
    assert_close("merged", &model.run().unwrap(), &tuned, 1e-4);
    model.unmerge().unwrap();
    assert_close("unmerged", &model.run().unwrap(), &tuned, 0.0);
    let mut back = model.to_base().unwrap();
    assert_close("turned back", &back.run().unwrap(), &tuned, 1e-4);

    // The base model that came back converts again, and takes weights.
    let mut again = back.to_frozen().unwrap();
    assert_close("again", &again.run().unwrap(), &tuned, 1e-4);
    let original = base.to_frozen().unwrap();
    // A grouped convolution that an adapter was merged into has no groups any more.
    if again.summary().total == original.summary().total {
        transfer_weights(&original, &mut again, &[]).unwrap();
        assert_close("transferred", &again.run().unwrap(), &before, 1e-5);
    }
    assert_eq!(
        model.to_device(&Device::Cpu).unwrap().summary(),
        model.summary()
    );
    model
}

fn frozen_values<M: LoraModule>(model: &M) -> Vec<(String, Vec<f64>)> {
    let params = model.non_trainable().into_iter();
    params
        .map(|p| (p.path, values(&p.tensor).unwrap()))
        .collect()
}

/// The paths of the layers that have an adapter.
pub fn adapted<M: LoraModule>(model: &M) -> Vec<String> {
    let rows = model.summary().rows.into_iter();
    rows.filter(|row| row.rank.is_some())
        .map(|row| row.path)
        .collect()
}

/// Fixed values of the size that a fresh layer with this many inputs has.
fn scaled(shape: &[usize], inputs: usize, seed: usize) -> Tensor {
    (fixed(shape, DType::F32, seed) * (1.5 / (inputs as f64).sqrt())).unwrap()
}

pub fn linear(input: usize, output: usize, seed: usize) -> Linear {
    let bias = scaled(&[output], input, seed + 1);
    Linear::new(scaled(&[output, input], input, seed), Some(bias))
}

pub fn linear_no_bias(input: usize, output: usize, seed: usize) -> Linear {
    Linear::new(scaled(&[output, input], input, seed), None)
}

pub fn embedding(rows: usize, dim: usize, seed: usize) -> Embedding {
    Embedding::new(fixed((rows, dim), DType::F32, seed), dim)
}

pub fn conv2d(
    input: usize,
    output: usize,
    kernel: usize,
    config: Conv2dConfig,
    seed: usize,
) -> Conv2d {
    let inputs = input / config.groups;
    let weight = scaled(
        &[output, inputs, kernel, kernel],
        inputs * kernel * kernel,
        seed,
    );
    Conv2d::new(weight, Some(fixed(output, DType::F32, seed + 1)), config)
}

pub fn weight(size: usize, seed: usize) -> Tensor {
    fixed(size, DType::F32, seed).affine(0.2, 1.0).unwrap()
}

pub fn layer_norm(size: usize, seed: usize) -> LayerNorm {
    LayerNorm::new(weight(size, seed), fixed(size, DType::F32, seed + 1), 1e-5)
}
