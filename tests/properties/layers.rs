//! What must hold for every layer, whatever its sizes.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Embedding, Linear, Module};
use lora::{LoraConfig, LoraModel, LoraModule, TrainBias, transfer_weights};
use lora_tests::{cases, fill_adapters, fixed, relative_error, values};
use proptest::prelude::*;

const F32: DType = DType::F32;

/// All the values of a model's parameters.
fn all_values<M: LoraModule>(model: &M) -> Vec<(String, Vec<f64>)> {
    let params = model.named_params().into_iter();
    params
        .map(|p| (p.path, values(&p.tensor).unwrap()))
        .collect()
}

/// What must hold for every layer, whatever its sizes.
fn check<B>(base: B, rank: usize, alpha: f64, input: &Tensor) -> Result<(), TestCaseError>
where
    B: LoraModel + Module,
    B::Lora: Module,
{
    let config = LoraConfig::new(rank)
        .alpha(alpha)
        .train_bias(TrainBias::All)
        .seed(1);
    let mut model = base.to_lora(&config).unwrap();
    let expected = base.forward(input).unwrap();
    let error = |a: &Tensor, b: &Tensor| relative_error(a, b).unwrap();

    // A fresh adapter changes nothing, and the way back gives the base model.
    prop_assert!(error(&model.forward(input).unwrap(), &expected) < 1e-5);
    let back = model.to_base().unwrap();
    prop_assert!(error(&back.forward(input).unwrap(), &expected) < 1e-5);

    // Merged, unmerged and turned back compute the same; unmerging restores every bit.
    fill_adapters(&model);
    let before = all_values(&model);
    let adapted = model.forward(input).unwrap();
    model.merge().unwrap();
    prop_assert!(error(&model.forward(input).unwrap(), &adapted) < 1e-4);
    model.unmerge().unwrap();
    prop_assert_eq!(&all_values(&model), &before);
    let back = model.to_base().unwrap();
    prop_assert!(error(&back.forward(input).unwrap(), &adapted) < 1e-4);

    // Transfer into a fresh model gives the same model.
    let mut other = base.to_lora(&config.clone().seed(2)).unwrap();
    transfer_weights(&model, &mut other, &[]).unwrap();
    prop_assert_eq!(&all_values(&other), &before);

    // Every trainable parameter gets a gradient.
    let loss = model
        .forward(input)
        .unwrap()
        .sqr()
        .unwrap()
        .sum_all()
        .unwrap();
    model.backward(&loss).unwrap();

    // Counting agrees with listing.
    let summary = model.summary();
    let counted: usize = before.iter().map(|(_, values)| values.len()).sum();
    prop_assert_eq!(summary.total, counted);
    let trainable: usize = model.trainable_vars().iter().map(|v| v.elem_count()).sum();
    prop_assert_eq!(summary.trainable, trainable);
    Ok(())
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn linear(
        (input, output, rows) in (1usize..20, 1usize..20, 1usize..5),
        (rank, alpha, bias) in (1usize..24, -8.0..8.0, any::<bool>()),
    ) {
        let bias = bias.then(|| fixed(output, F32, 2));
        let base = Linear::new(fixed((output, input), F32, 1), bias);
        check(base, rank, alpha, &fixed((rows, input), F32, 3))?;
    }

    #[test]
    fn conv2d(
        (groups, per_group, out_per_group, kernel) in (1usize..4, 1usize..4, 1usize..4, 1usize..4),
        (padding, stride, dilation) in (0usize..4, 1usize..4, 1usize..3),
        (height, width, rank) in (7usize..12, 7usize..12, 1usize..4),
    ) {
        let config = Conv2dConfig { padding, stride, dilation, groups, cudnn_fwd_algo: None };
        let (channels, out) = (groups * per_group, groups * out_per_group);
        let weight = fixed((out, per_group, kernel, kernel), F32, 1);
        let base = Conv2d::new(weight, Some(fixed(out, F32, 2)), config);
        check(base, rank * groups, 3.0, &fixed((2, channels, height, width), F32, 3))?;
    }

    #[test]
    fn conv1d(
        (groups, per_group, out_per_group, kernel) in (1usize..4, 1usize..4, 1usize..4, 1usize..4),
        (padding, stride, dilation) in (0usize..4, 1usize..4, 1usize..3),
        (length, rank) in (7usize..12, 1usize..4),
    ) {
        let config = Conv1dConfig { padding, stride, dilation, groups, cudnn_fwd_algo: None };
        let (channels, out) = (groups * per_group, groups * out_per_group);
        let base = Conv1d::new(fixed((out, per_group, kernel), F32, 1), None, config);
        check(base, rank * groups, 3.0, &fixed((2, channels, length), F32, 3))?;
    }

    #[test]
    fn embedding(
        (rows, dim, rank) in (1usize..20, 1usize..12, 1usize..8),
        ids in proptest::collection::vec(0u32..1000, 1..9),
    ) {
        let base = Embedding::new(fixed((rows, dim), F32, 1), dim);
        let ids: Vec<u32> = ids.into_iter().map(|id| id % rows as u32).collect();
        check(base, rank, 2.0, &Tensor::new(ids, &Device::Cpu).unwrap())?;
    }
}
