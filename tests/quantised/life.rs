//! What a model of quantised layers does from its conversion to its files.

use super::{LoraQuantised, Quantised, blocks, dequantised, ids, pair};
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::ParamsAdamW;
use lora::layers::QLinear;
use lora::optim::{AdamW, load_state, save_state};
use lora::{Adapted, LoraConfig, LoraModel, LoraModule, transfer_weights};
use lora_tests::{assert_close, fill_adapters, fixed, values};
use std::sync::Arc;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The blocks of a layer of a base model.
fn weight(layer: &QLinear) -> &Arc<QTensor> {
    match layer.weight() {
        QMatMul::QTensor(weight) => weight,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_model_computes_and_learns_as_its_dequantised_twin() -> Result {
    for dtype in [GgmlDType::Q4_1, GgmlDType::Q6K] {
        let (quantised, full) = pair(dtype);
        for config in [LoraConfig::new(4), LoraConfig::new(4).use_dora(true)] {
            let (ours, theirs) = (quantised.to_lora(&config)?, full.to_lora(&config)?);
            fill_adapters(&ours);
            fill_adapters(&theirs);
            let (a, b) = (ours.forward(&ids())?, theirs.forward(&ids())?);
            assert_close("logits", &a, &b, 1e-4);
            let grads = ours.backward(&a.sqr()?.mean_all()?)?;
            let expected = theirs.backward(&b.sqr()?.mean_all()?)?;
            let vars = ours
                .trainable_vars()
                .into_iter()
                .zip(theirs.trainable_vars());
            for (ours, theirs) in vars {
                let (ours, theirs) = (grads.get(&ours), expected.get(&theirs));
                assert_close("gradient", ours.unwrap(), theirs.unwrap(), 2e-4);
            }
        }
    }
    Ok(())
}

#[test]
fn the_numerical_check_accepts_the_gradients() -> Result {
    let (quantised, _) = pair(GgmlDType::Q5K);
    let model = quantised.to_lora(&LoraConfig::new(4))?;
    fill_adapters(&model);
    let check = model.check_gradients(|model| Ok(model.forward(&ids())?.sqr()?.mean_all()?))?;
    assert_eq!(check.layers, 3);
    Ok(())
}

#[test]
fn rows_of_a_batch_have_adapters_of_their_own() -> Result {
    let (quantised, _) = pair(GgmlDType::Q8_0);
    let mut model = quantised.to_lora(&LoraConfig::new(2))?;
    model.add_adapter("other", &LoraConfig::new(3).target_modules(["up", "embed"]))?;
    fill_adapters(&model);
    model.eval();
    let rows = model.for_rows(&[Some("other"), None])?.forward(&ids())?;
    model.set_active(&["other"])?;
    assert_close(
        "other",
        &rows.get(0)?,
        &model.forward(&ids())?.get(0)?,
        1e-6,
    );
    let base = model.disabled()?.forward(&ids())?;
    assert_close("base", &rows.get(1)?, &base.get(1)?, 1e-6);
    Ok(())
}

#[test]
fn merging_quantises_the_sum_again_and_unmerging_brings_the_blocks_back() -> Result {
    for dtype in [GgmlDType::Q8_0, GgmlDType::Q4_1, GgmlDType::Q4K] {
        let (quantised, full) = pair(dtype);
        let config = LoraConfig::new(4);
        let (mut model, theirs) = (quantised.to_lora(&config)?, full.to_lora(&config)?);
        fill_adapters(&model);
        fill_adapters(&theirs);
        let before = model.forward(&ids())?;
        let sum = theirs.to_base()?.up.weight().clone();
        model.merge()?;
        let blocks = model.up.adapters().blocks().unwrap().clone();
        let expected = QTensor::quantize(&sum, dtype)?;
        assert_close(
            "merged",
            &dequantised(&blocks),
            &dequantised(&expected),
            1e-3,
        );
        let error = model.up.adapters().requantising_error().unwrap();
        let difference = (dequantised(&blocks) - &sum)?.sqr()?.sum_all()?;
        let difference = f64::from(difference.to_scalar::<f32>()?).sqrt();
        let size = f64::from(sum.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt();
        assert!((error - difference / size).abs() < 1e-5, "{error}");
        assert!(error > 1e-4 && error < 0.15, "{dtype:?}: {error}");
        // The merged model is a base model of these very blocks.
        let base = model.to_base()?;
        let same = weight(&base.up).data()? == blocks.data()?;
        assert!(same, "{dtype:?}: the base has other blocks");
        model.eval();
        assert_close(
            "base",
            &base.forward(&ids())?,
            &model.forward(&ids())?,
            1e-5,
        );
        model.train();
        model.unmerge()?;
        assert!(Arc::ptr_eq(
            model.up.adapters().blocks().unwrap(),
            weight(&quantised.up)
        ));
        assert_eq!(values(&model.forward(&ids())?)?, values(&before)?);
        // Without adapters the base's blocks are the very ones.
        let base = model.disabled()?.to_base()?;
        assert!(Arc::ptr_eq(weight(&base.down), weight(&quantised.down)));
    }
    Ok(())
}

/// Merged in full precision, in the dtype that the model computes in, a weight is the sum, rounded once.
#[test]
fn merging_in_full_quantises_nothing() -> Result {
    let (quantised, full) = pair(GgmlDType::Q4_1);
    for config in [LoraConfig::new(4), LoraConfig::new(4).use_dora(true)] {
        let (mut model, theirs) = (quantised.to_lora(&config)?, full.to_lora(&config)?);
        fill_adapters(&model);
        fill_adapters(&theirs);
        let (before, sums) = (model.forward(&ids())?, theirs.to_base()?);
        model.merge_in_full()?;
        assert!(model.is_merged() && model.up.adapters().blocks().is_none());
        assert_eq!(model.up.adapters().requantising_error(), None);
        assert_close("merged", &model.forward(&ids())?, &before, 1e-5);
        // The head has no adapter.
        let base = model.to_base()?;
        assert!(matches!(base.head.weight(), QMatMul::QTensor(_)));
        let tensor = |layer: &QLinear| match layer.weight() {
            QMatMul::Tensor(weight) => weight.clone(),
            other => panic!("{other:?}"),
        };
        assert_close("up", &tensor(&base.up), sums.up.weight(), 1e-6);
        assert_close("base", &base.forward(&ids())?, &before, 1e-5);

        // A copy is merged in the same way; in another dtype the sum is rounded to that.
        let half = model.to_dtype(DType::BF16)?;
        let down = tensor(&half.to_base()?.down);
        let rounded = tensor(&base.down).to_dtype(DType::BF16)?;
        assert_close("bf16", &down, &rounded, 0.0);

        // Merging keeps the way, and after unmerging, the sums are quantised again.
        model.merge()?;
        assert!(model.up.adapters().blocks().is_none());
        model.unmerge()?;
        let blocks = model.up.adapters().blocks().unwrap();
        assert!(Arc::ptr_eq(blocks, weight(&quantised.up)));
        assert_eq!(values(&model.forward(&ids())?)?, values(&before)?);
        model.merge()?;
        assert!(model.up.adapters().requantising_error().is_some());
        model.merge_in_full()?;
        assert_eq!(model.up.adapters().requantising_error(), None);
    }
    Ok(())
}

#[test]
fn the_summary_counts_values_and_bytes() -> Result {
    let (quantised, full) = pair(GgmlDType::Q4_1);
    let config = LoraConfig::new(2);
    let (ours, theirs) = (
        quantised.to_lora(&config)?.summary(),
        full.to_lora(&config)?.summary(),
    );
    // The twin's head has a copy of the table; the quantised one shares it.
    assert_eq!(ours.total, theirs.total - 11 * 32);
    assert_eq!(ours.trainable, theirs.trainable);
    let blocks = (11 + 64 + 64) * 32 / 32 * 20;
    assert_eq!(ours.bytes, blocks + 64 * 4 + ours.trainable * 4);
    let text = ours.to_string();
    assert!(text.contains("up     Linear Q4_1"), "{text}");
    assert!(text.contains("= embed.weight"), "{text}");
    let line = "4 layers are quantised; all parameters take 4,916 bytes";
    assert!(text.contains(line), "{text}");
    Ok(())
}

#[test]
fn adapters_go_between_a_quantised_base_and_a_full_one() -> Result {
    let (quantised, full) = pair(GgmlDType::Q8_0);
    let config = LoraConfig::new(3).use_dora(true);
    let (ours, dir) = (quantised.to_lora(&config)?, tempfile::tempdir()?);
    fill_adapters(&ours);
    ours.save_adapter(dir.path())?;
    let mut theirs = full.with_adapter(dir.path())?;
    theirs.train();
    assert_close(
        "full",
        &theirs.forward(&ids())?,
        &ours.forward(&ids())?,
        1e-4,
    );
    let mut again = quantised.with_adapter(dir.path())?;
    again.train();
    assert_eq!(
        values(&again.forward(&ids())?)?,
        values(&ours.forward(&ids())?)?
    );
    let mut other = quantised.to_lora(&LoraConfig::new(3).use_dora(true))?;
    other.hot_swap("default", dir.path())?;
    assert_eq!(
        values(&other.forward(&ids())?)?,
        values(&ours.forward(&ids())?)?
    );
    Ok(())
}

#[test]
fn the_models_own_code_reads_the_weight_with_its_updates() -> Result {
    let weight = blocks(GgmlDType::Q4_0, (6, 32), 1);
    let model = QLinear::new(weight.clone(), None)?.to_lora(&LoraConfig::new(2))?;
    fill_adapters(&model);
    let expected =
        (dequantised(&weight) + model.delta(model.adapters().get("default").unwrap())?)?;
    assert_close("weight", model.weight(), &expected, 1e-6);
    assert_close("adapted", &model.adapted_weight()?, &expected, 1e-6);
    let frozen = QLinear::new(weight.clone(), None)?.to_frozen()?;
    assert_close("frozen", frozen.weight(), &dequantised(&weight), 0.0);
    Ok(())
}

#[test]
fn models_change_dtype_and_are_copied() -> Result {
    let (quantised, _) = pair(GgmlDType::Q8_0);
    let mut model = quantised.to_lora(&LoraConfig::new(2).train_bias(lora::TrainBias::LoraOnly))?;
    fill_adapters(&model);
    let before = model.forward(&ids())?;
    model.merge()?;
    let mut wide = model.to_dtype(DType::F64)?;
    assert!(wide.is_merged());
    wide.unmerge()?;
    model.unmerge()?;
    assert!(Arc::ptr_eq(
        wide.down.adapters().blocks().unwrap(),
        model.down.adapters().blocks().unwrap()
    ));
    let after = wide.forward(&ids())?;
    assert_eq!(after.dtype(), DType::F64);
    assert_close("f64", &after, &before, 1e-5);
    let copy = model.deep_clone()?;
    assert_eq!(values(&copy.forward(&ids())?)?, values(&before)?);
    let moved = model.to_device(&Device::Cpu)?;
    assert_eq!(values(&moved.forward(&ids())?)?, values(&before)?);
    Ok(())
}

#[test]
fn weights_are_carried_over_with_their_blocks() -> Result {
    let (quantised, full) = pair(GgmlDType::Q4_1);
    let other = |seed| -> Result<Quantised> {
        let mut other = quantised.clone();
        other.down = QLinear::new(blocks(GgmlDType::Q4_1, (32, 64), seed), None)?;
        Ok(other)
    };
    let mut model = other(77)?.to_frozen()?;
    transfer_weights(&quantised.to_frozen()?, &mut model, &[])?;
    assert_eq!(
        values(&model.forward(&ids())?)?,
        values(&quantised.to_frozen()?.forward(&ids())?)?
    );
    let error = transfer_weights(&full.to_frozen()?, &mut model, &[]).unwrap_err();
    let text = "down.weight: in full precision where the model has it quantised to Q4_1";
    assert!(error.to_string().contains(text), "{error}");
    Ok(())
}

#[test]
fn rows_of_a_quantised_table_are_trained() -> Result {
    let (quantised, full) = pair(GgmlDType::Q4_1);
    let config = LoraConfig::new(2)
        .target_modules(["up"])
        .trainable_token_indices("embed", [3, 10]);
    let (ours, theirs) = (quantised.to_lora(&config)?, full.to_lora(&config)?);
    let (a, b) = (ours.trainable_vars(), theirs.trainable_vars());
    assert_eq!(a.len(), 3);
    assert_eq!(
        values(&a[0])?,
        values(&b[0])?,
        "the rows start as the table's"
    );
    let moved = (a[0].as_detached_tensor() + 0.5)?;
    a[0].set(&moved)?;
    // The head shares the table, so it sees the rows.
    let ys = ours.forward(&ids())?;
    let other = ours.disabled()?.forward(&ids())?;
    let changed = (ys.get(0)?.get(0)? - other.get(0)?.get(0)?)?.abs()?;
    let changed: Vec<f32> = changed.to_vec1()?;
    assert!(changed[3] > 1.0 && changed[10] > 1.0, "{changed:?}");
    Ok(())
}

#[test]
fn what_needs_full_precision_is_refused() -> Result {
    let (quantised, _) = pair(GgmlDType::Q4_1);
    let config = LoraConfig::new(2).modules_to_save(["up"]);
    let error = quantised.to_lora(&config).unwrap_err().to_string();
    let text = "`up` is quantised, so it cannot be trained in full: load the layer in full precision, or \
                give it an adapter";
    assert!(error.contains(text), "{error}");
    Ok(())
}

#[test]
fn training_goes_on_with_the_same_blocks_alone() -> Result {
    let (quantised, _) = pair(GgmlDType::Q4_1);
    let file = tempfile::tempdir()?;
    let file = file.path().join("state");
    let fresh = |model: &mut LoraQuantised| AdamW::for_model(model, ParamsAdamW::default());
    let mut model = quantised.to_lora(&LoraConfig::new(2))?;
    fill_adapters(&model);
    let optimizer = fresh(&mut model)?;
    save_state(&file, &model, &optimizer)?;
    let mut again = quantised.to_frozen()?;
    load_state(&file, &mut again, fresh)?;
    let (ours, theirs) = (again.forward(&ids())?, model.forward(&ids())?);
    assert_eq!(values(&ours)?, values(&theirs)?);
    let mut other = quantised.clone();
    other.down = QLinear::new(blocks(GgmlDType::Q4_1, (32, 64), 77), None)?;
    let error = load_state(&file, &mut other.to_frozen()?, fresh).unwrap_err();
    let text = "was trained with other base weights than this model has at `down`";
    assert!(error.to_string().contains(text), "{error}");
    Ok(())
}

/// Candle's own type as a field, as in candle's quantised models.
#[derive(Clone, LoraModel)]
struct Projections {
    #[lora(rank)]
    q_proj: QMatMul,
    layers: Vec<Option<QMatMul>>,
}

#[lora::forward]
impl Module for Projections {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let mut xs = self.q_proj.forward(xs)?;
        for layer in self.layers.iter().flatten() {
            xs = xs.apply(layer)?;
        }
        Ok(xs)
    }
}

#[test]
fn fields_of_candles_type_are_adapted() -> Result {
    let field = |seed| QMatMul::from_arc(blocks(GgmlDType::Q4_0, (32, 32), seed));
    let full = QMatMul::from_arc(blocks(GgmlDType::F16, (32, 32), 3))?;
    let net = Projections {
        q_proj: field(1)?,
        layers: vec![Some(field(2)?), None, Some(full)],
    };
    let mut model = net.to_lora(&LoraConfig::new(2).target_modules("all-linear"))?;
    fill_adapters(&model);
    let xs = fixed((20, 32), DType::F32, 5);
    let check = model.check_gradients(|model| Ok(model.forward(&xs)?.sqr()?.mean_all()?))?;
    assert_eq!(check.layers, 3);
    model.merge()?;
    let base = model.to_base()?;
    assert!(matches!(base.q_proj, QMatMul::QTensor(_)));
    assert!(matches!(base.layers[2], Some(QMatMul::Tensor(_))));
    assert_close("base", &base.forward(&xs)?, &model.forward(&xs)?, 2e-2);
    Ok(())
}
