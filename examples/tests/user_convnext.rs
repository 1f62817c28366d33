//! The ConvNeXt of the user against the library's: the same weights, logits and gradients.

use crate::common::fixed;
use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::loss::cross_entropy;
use lora::models::{self, Options, Weights, convnext};
use lora::{Lora, LoraConfig, LoraModel, LoraModule, Role};
use lora_examples::checkpoint::Checkpoint;
use lora_examples::user_convnext;
use std::collections::BTreeMap;

/// The logits, and the gradients by the paths of their parameters.
fn outcome<M: LoraModel>(base: &M) -> lora::Result<(Tensor, BTreeMap<String, Tensor>)>
where
    Lora<M>: Module,
{
    let config = LoraConfig::new(2)
        .seed(3)
        .modules_to_save(["stem", "conv_dw", "norm", "head"]);
    let model = base.to_lora(&config)?;
    // B starts as zeros, behind which A has no gradient.
    for (index, param) in model.named_params().into_iter().enumerate() {
        if matches!(param.role, Role::Adapter(_)) {
            let values = (fixed(param.tensor.dims(), index)? * 0.3)?;
            Var::from_tensor(&param.tensor)?.set(&values)?;
        }
    }
    let images = fixed(&[3, 1, 40, 40], 1)?;
    let logits = model.forward(&images)?;
    let labels = Tensor::new(&[0u32, 1, 0], &Device::Cpu)?;
    let grads = model.backward(&cross_entropy(&logits, &labels)?)?;
    model.check_gradients(|model| Ok(cross_entropy(&model.forward(&images)?, &labels)?))?;
    let trained = model.named_params().into_iter().filter_map(|param| {
        let grad = grads.get(&param.tensor).filter(|_| param.is_trainable())?;
        Some((param.path, grad.clone()))
    });
    Ok((logits.detach(), trained.collect()))
}

fn difference(a: &Tensor, b: &Tensor) -> candle_core::Result<f32> {
    assert_eq!(a.dims(), b.dims());
    let largest = b.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    let difference = (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    Ok(difference / largest)
}

#[test]
fn it_is_the_librarys_model() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let weights = dir.path().join("base.safetensors");
    let config = convnext::ConvNextConfig {
        dims: [8, 12, 16, 24],
        depths: [1, 1, 2, 1],
        ..crate::common::config()
    };
    Checkpoint::write(
        &weights,
        &crate::common::model(&config)?,
        &crate::common::input(),
    )?;
    let weights = Weights::File(weights);
    let library = models::build::<convnext::ConvNext>(&config, weights.clone(), &Options::new())?;
    let user = models::build::<user_convnext::ConvNext>(&config, weights, &Options::new())?;

    let (expected, expected_grads) = outcome(&library.model)?;
    let (logits, grads) = outcome(&user.model)?;
    assert!(difference(&logits, &expected)? < 1e-5);
    // 8 of each of 5 blocks, 4 of the stem, 4 of the head.
    assert_eq!(grads.len(), 48);
    assert!(grads.keys().eq(expected_grads.keys()));
    for (path, grad) in &grads {
        let error = difference(grad, &expected_grads[path])?;
        assert!(error < 1e-5, "{path}: {error:e}");
    }
    Ok(())
}

#[test]
fn other_variants_are_refused() -> anyhow::Result<()> {
    let create = |name| {
        models::create::<user_convnext::ConvNext>(name, Weights::Placeholder, &Options::new())
    };
    assert_eq!(create("convnext_tiny")?.config.dims, [96, 192, 384, 768]);
    for name in [
        "convnext_atto",
        "convnextv2_tiny",
        "convnext_large_mlp",
        "test_convnext",
    ] {
        let error = create(name).map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains("the user's ConvNeXt is that of convnext_tiny"),
            "{error}"
        );
    }
    let double = Options::new().dtype(DType::F64).num_classes(7);
    let model =
        models::create::<user_convnext::ConvNext>("convnext_tiny", Weights::Placeholder, &double)?;
    assert_eq!(model.config.num_classes, 7);
    Ok(())
}
