//! The whole life of a model, from its conversion to the way back.

use crate::{assert_close, fill_adapters, values};
use candle_core::{DType, Result, Tensor};
use candle_nn::{Optimizer, ParamsAdamW};
use lora::optim::AdamW;
use lora::{LoraConfig, LoraModel, LoraModule};

/// The whole life of a small model: converted, its gradients compared with differences of the loss,
/// trained, saved, loaded, merged, and turned back. `base` and `lora` are the forward passes.
#[track_caller]
pub fn whole_life<M>(
    what: &str,
    net: &M,
    config: &LoraConfig,
    base: impl Fn(&M) -> Result<Tensor>,
    lora: impl Fn(&M::Lora) -> Result<Tensor>,
) -> M::Lora
where
    M: LoraModel,
{
    let before = base(net).unwrap();
    let frozen = net.to_frozen().unwrap();
    assert_close(what, &lora(&frozen).unwrap(), &before, 1e-5);
    let mut model = net.to_lora(config).unwrap();
    assert_close(what, &lora(&model).unwrap(), &before, 1e-5);

    fill_adapters(&model);
    let loss = |model: &M::Lora| Ok(lora(model)?.sqr()?.mean_all()?);
    let check = model.check_gradients(loss).unwrap();
    assert!(check.to_string().contains("agree"), "{what}: {check}");
    let params = ParamsAdamW {
        lr: 1e-2,
        weight_decay: 0.0,
        ..Default::default()
    };
    let mut optimizer = AdamW::for_model(&model, params).unwrap();
    let mut losses = Vec::new();
    for _ in 0..5 {
        let loss = loss(&model).unwrap();
        losses.push(values(&loss).unwrap()[0]);
        let grads = model.backward(&loss).unwrap();
        optimizer.step(&grads).unwrap();
    }
    assert!(losses[4] < losses[0], "{what}: {losses:?}");

    let trained = lora(&model).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter(dir.path()).unwrap();
    let loaded = net.with_adapter(dir.path()).unwrap();
    assert_close(what, &lora(&loaded).unwrap(), &trained, 1e-5);
    let (dtypes, paths): (Vec<_>, Vec<_>) = (loaded.named_params().into_iter())
        .map(|param| (param.tensor.dtype(), param.path))
        .unzip();
    let own = model.named_params().into_iter().map(|param| param.path);
    assert_eq!(paths, own.collect::<Vec<_>>(), "{what}");
    assert!(dtypes.iter().all(|dtype| *dtype == DType::F32), "{what}");

    model.merge().unwrap();
    assert_close(what, &lora(&model).unwrap(), &trained, 1e-5);
    model.unmerge().unwrap();
    assert_close(what, &lora(&model).unwrap(), &trained, 1e-6);
    let tuned = model.to_base().unwrap();
    assert_close(what, &base(&tuned).unwrap(), &trained, 1e-5);
    let disabled = model.disabled().unwrap();
    assert_close(what, &lora(&disabled).unwrap(), &before, 1e-5);
    assert_close(what, &base(net).unwrap(), &before, 0.0);
    model
}
