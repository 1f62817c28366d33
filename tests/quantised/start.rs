//! Initial values over a quantised base: what quantising cost goes into the adapter.

use super::{Full, Quantised, dequantised, ids, pair};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::safetensors::{load, save};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Linear, ParamsAdamW};
use lora::optim::{AdamW, load_state, save_state};
use lora::peft::{LoftqLayer, replace_lora_weights_loftq, replace_lora_weights_loftq_if};
use lora::{Adapted, Init, LoftqConfig, LoraConfig, LoraModel, LoraModule};
use lora_tests::{assert_close, fixed, relative_error, values};
use std::collections::HashMap;
use std::path::Path;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const TYPES: [(&str, GgmlDType); 5] = [
    ("q4_0", GgmlDType::Q4_0),
    ("q4_1", GgmlDType::Q4_1),
    ("q5_0", GgmlDType::Q5_0),
    ("q5_1", GgmlDType::Q5_1),
    ("q8_0", GgmlDType::Q8_0),
];

#[derive(Clone, Debug, LoraModel)]
struct Net {
    #[lora(rank)]
    fc: Linear,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        xs.apply(&self.fc)
    }
}

impl LoraNet {
    fn base(&self) -> Tensor {
        dequantised(self.fc.adapters().blocks().unwrap())
    }

    fn update(&self) -> Tensor {
        let adapter = self.fc.adapters().get("default").unwrap();
        self.fc.delta(adapter).unwrap()
    }
}

/// What numpy computes with gguf's quantisers.
fn reference() -> HashMap<String, Tensor> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/quantised/starts.safetensors"
    );
    load(path, &Device::Cpu).unwrap()
}

fn norm(tensor: &Tensor) -> f64 {
    let values = values(tensor).unwrap().into_iter();
    values.map(|value| value * value).sum::<f64>().sqrt()
}

#[test]
fn starts_are_numpys() -> Result {
    let expected = reference();
    let weight = &expected["weight"];
    let base = Net {
        fc: Linear::new(weight.clone(), None),
    };
    for (name, dtype) in TYPES {
        // A scaling of 2 changes A and B, but not their product.
        let config = LoraConfig::new(4).alpha(8.0).quantize(dtype);
        let check = |config: &LoraConfig, case: String| -> Result<f64> {
            let model = base.to_lora(config)?;
            let what = format!("{name}, {case}");
            let blocks = model.fc.adapters().blocks().unwrap();
            assert_eq!(blocks.dtype(), dtype, "{what}");
            assert_close(
                &what,
                &model.base(),
                &expected[&format!("{case}.base")],
                1e-6,
            );
            let update = &expected[&format!("{case}.update")];
            assert_close(&what, &model.update(), update, 1e-5);
            Ok(norm(&(weight - (model.base() + model.update())?)?))
        };
        let errors = values(&expected[&format!("errors.{name}")])?;
        for turns in [1, 5] {
            let loftq = LoftqConfig::default().iterations(turns);
            let config = config.clone().init(Init::Loftq).loftq_config(loftq);
            let error = check(&config, format!("loftq.{name}.{turns}"))?;
            let expected = errors[turns];
            assert!(
                (error - expected).abs() < 1e-4 * expected,
                "{error} {expected}"
            );
            // As the paper says: less than without an update, and less with more turns.
            assert!(
                error < 0.9 * errors[0] && errors[5] < errors[1],
                "{errors:?}"
            );
        }
        check(&config.init(Init::Pissa), format!("pissa.{name}"))?;
    }
    Ok(())
}

/// The model with other values of its adapters, as training would leave it.
fn trained<M: LoraModule>(model: &M) {
    for var in model.trainable_vars() {
        var.set(&(var.as_tensor() * 1.1).unwrap()).unwrap();
    }
}

/// What a quantised layer's residual base loses, no conversion gives back: files and states are raw, and
/// make the same blocks again.
#[test]
fn files_and_states_make_the_blocks_again() -> Result {
    let (quantised, full) = pair(GgmlDType::Q4_0);
    let targets = ["up", "down"];
    for init in [Init::Pissa, Init::Olora] {
        for dora in [false, true] {
            let config = LoraConfig::new(3)
                .target_modules(targets)
                .init(init)
                .use_dora(dora);
            let model = quantised.to_lora(&config)?;
            // A fresh adapter makes up for its own residual base.
            let (fresh, plain) = (model.forward(&ids())?, quantised.forward(&ids())?);
            let error = relative_error(&fresh, &plain)?;
            assert!(error < 0.2, "{init}: {error}");
            trained(&model);
            let dir = tempfile::tempdir()?;
            model.save_adapter(dir.path())?;
            let json = std::fs::read_to_string(dir.path().join("adapter_config.json"))?;
            assert!(
                json.contains(&format!("\"init_lora_weights\": \"{init}\"")),
                "{json}"
            );
            let again = quantised.with_adapter(dir.path())?;
            same(&again, &model)?;
            resumes(&model, quantised.to_frozen()?)?;
        }
    }
    // LoftQ starts from the weights in full precision, and its blocks are those of any base.
    let config = LoraConfig::new(3).target_modules(targets).init(Init::Loftq);
    let model = full.to_lora(&config.quantize(GgmlDType::Q4_0))?;
    trained(&model);
    let dir = tempfile::tempdir()?;
    model.save_adapter(dir.path())?;
    let again = full.with_adapter(dir.path())?;
    let (ours, theirs) = (again.forward(&ids())?, model.forward(&ids())?);
    assert_close("LoftQ", &ours, &theirs, 1e-5);
    Ok(())
}

fn same<A: LoraModule + Module, B: LoraModule + Module>(ours: &A, theirs: &B) -> Result {
    let (mut ours, mut theirs) = (ours.clone(), theirs.clone());
    ours.eval();
    theirs.eval();
    let (ours, theirs) = (ours.forward(&ids())?, theirs.forward(&ids())?);
    assert_eq!(values(&ours)?, values(&theirs)?);
    Ok(())
}

fn resumes<M: LoraModule + Module>(model: &M, mut again: M) -> Result {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("state");
    let fresh = |model: &mut M| AdamW::for_model(model, ParamsAdamW::default());
    let mut model = model.clone();
    let optimizer = fresh(&mut model)?;
    save_state(&file, &model, &optimizer)?;
    load_state(&file, &mut again, fresh)?;
    same(&again, &model)
}

/// The changed base stays when the adapter does not act, and holds nothing in full precision.
#[test]
fn a_changed_base_stays_quantised() -> Result {
    let (quantised, full) = pair(GgmlDType::Q5_0);
    let config = LoraConfig::new(3).target_modules(["up"]);
    let model = quantised.to_lora(&config.clone().init(Init::Pissa))?;
    let blocks = model.up.adapters().blocks().unwrap().clone();
    let plain = quantised.to_lora(&config)?;
    assert_eq!(model.summary().bytes, plain.summary().bytes);
    assert_eq!(model.up.unmerged_weight().stride(), [0, 0]);
    let disabled = model.disabled()?;
    assert_eq!(
        disabled.up.adapters().blocks().unwrap().data()?,
        blocks.data()?
    );
    assert!(plain.up.adapters().blocks().unwrap().data()? != blocks.data()?);
    // What a conversion quantises is decomposed before, as the paper does.
    let config = config.init(Init::Pissa).quantize(GgmlDType::Q4_0);
    let of_full = full.to_lora(&config)?;
    let (base, update) = (
        dequantised(of_full.up.adapters().blocks().unwrap()),
        of_full
            .up
            .delta(of_full.up.adapters().get("default").unwrap())?,
    );
    let residual = (full.up.weight() - update)?;
    let expected = dequantised(&QTensor::quantize(&residual, GgmlDType::Q4_0)?);
    assert_close("base", &base, &expected, 1e-6);
    Ok(())
}

/// A directory with the model's weights in full precision, under these names.
fn original(dir: &Path, full: &Full, prefix: &str) -> Result {
    let name = |name: &str| format!("{prefix}{name}.weight");
    let tensors = HashMap::from([
        (name("embed"), full.embed.embeddings().clone()),
        (name("up"), full.up.weight().clone()),
        (name("down"), full.down.weight().clone()),
    ]);
    Ok(save(&tensors, dir.join("model.safetensors"))?)
}

/// A model in full precision, and the same model quantised.
fn coarse() -> Result<(Quantised, Full)> {
    let (mut quantised, mut full) = pair(GgmlDType::Q4_0);
    let weights = [
        fixed((64, 32), DType::F32, 21),
        fixed((32, 64), DType::F32, 22),
    ];
    full.up = Linear::new(weights[0].clone(), full.up.bias().cloned());
    full.down = Linear::new(weights[1].clone(), None);
    let blocks = |weight: &Tensor| QTensor::quantize(weight, GgmlDType::Q4_0);
    let [up, down] = [blocks(&weights[0])?, blocks(&weights[1])?];
    quantised.up = lora::layers::QLinear::new(up.into(), full.up.bias().cloned())?;
    quantised.down = lora::layers::QLinear::new(down.into(), None)?;
    Ok((quantised, full))
}

#[test]
fn the_original_weights_start_an_adapter_of_a_quantised_base() -> Result {
    let (quantised, full) = coarse()?;
    for (prefix, dora) in [("", false), ("model.", true)] {
        let dir = tempfile::tempdir()?;
        original(dir.path(), &full, prefix)?;
        let config = LoraConfig::new(4).alpha(2.0).use_dora(dora);
        let mut model = quantised.to_lora(&config.target_modules(["up", "down"]))?;
        let layers = replace_lora_weights_loftq(&mut model, dir.path(), "default")?;
        let paths: Vec<&str> = layers.iter().map(|layer| &*layer.path).collect();
        assert_eq!(paths, ["up", "down"]);
        for layer in &layers {
            let LoftqLayer {
                error, base_error, ..
            } = layer;
            assert!(layer.is_replaced && *error < 0.85 * base_error, "{layer:?}");
        }
        // The blocks are those of the file, and the update is the best of its rank.
        let up = &model.up;
        assert_eq!(up.adapters().blocks().unwrap().data()?, {
            let blocks = quantised.to_frozen()?;
            blocks.up.adapters().blocks().unwrap().data()?.into_owned()
        });
        let update = up.delta(up.adapters().get("default").unwrap())?;
        let base = dequantised(up.adapters().blocks().unwrap());
        let left = norm(&(full.up.weight() - (base + update)?)?);
        let expected = layers[0].error * norm(full.up.weight());
        assert!(
            (left - expected).abs() < 1e-4 * expected,
            "{left} {expected}"
        );
        // The outputs come nearer to those in full precision.
        let wanted = full.forward(&ids())?;
        let distance = |ys: Tensor| Ok::<_, Box<dyn std::error::Error>>(norm(&(ys - &wanted)?));
        let (ours, before) = (
            distance(model.forward(&ids())?)?,
            distance(quantised.forward(&ids())?)?,
        );
        assert!(ours < 0.9 * before, "{ours} {before}");
        // Saved and loaded as any adapter.
        let saved = tempfile::tempdir()?;
        model.save_adapter(saved.path())?;
        same(&quantised.with_adapter(saved.path())?, &model)?;
    }
    Ok(())
}

#[test]
fn a_callback_decides_layer_by_layer() -> Result {
    let (quantised, full) = coarse()?;
    let dir = tempfile::tempdir()?;
    original(dir.path(), &full, "")?;
    let mut model = quantised.to_lora(&LoraConfig::new(4).target_modules(["up", "down"]))?;
    let before = values(model.up.adapters().get("default").unwrap().a())?;
    let mut seen = Vec::new();
    let layers =
        replace_lora_weights_loftq_if(&mut model, dir.path(), "default", |model, path| {
            let b = values(model.up.adapters().get("default").unwrap().b())?;
            seen.push((path.to_string(), b.iter().any(|b| *b != 0.0)));
            Ok(path == "down")
        })?;
    assert_eq!(seen, [("up".into(), true), ("down".into(), false)]);
    assert_eq!(
        [layers[0].is_replaced, layers[1].is_replaced],
        [false, true]
    );
    let (up, down) = (model.up.adapters(), model.down.adapters());
    assert_eq!(values(up.get("default").unwrap().a())?, before);
    assert!(
        values(down.get("default").unwrap().b())?
            .iter()
            .any(|b| *b != 0.0)
    );
    Ok(())
}

#[test]
fn what_cannot_start_is_refused() -> Result {
    let (quantised, full) = coarse()?;
    let config = LoraConfig::new(2).target_modules(["up"]);
    let refused = [
        (
            Init::Loftq,
            "the layer is quantised, and `loftq` needs its weight in full precision",
        ),
        (
            Init::PissaNiter(4),
            "`pissa_niter_4` leaves a base that loading could not make again",
        ),
    ];
    for (init, text) in refused {
        let error = quantised.to_lora(&config.clone().init(init)).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
    let mut model = quantised.to_lora(&config)?;
    let pissa = config.clone().init(Init::Pissa);
    let error = model.add_adapter("other", &pissa).unwrap_err().to_string();
    let text = "`up` is quantised: `pissa` would change its blocks for good";
    assert!(error.contains(text), "{error}");
    let two = config.init(Init::Loftq).quantize(GgmlDType::Q4_0);
    let two = two.loftq_config(LoftqConfig::default().quantiser(GgmlDType::Q5_1));
    let error = full.to_lora(&two).unwrap_err().to_string();
    let text = "loftq_config: quantiser is Q5_1, but quantize Q4_0: a quantised base has one type";
    assert!(error.contains(text), "{error}");

    let dir = tempfile::tempdir()?;
    let file = dir.path().join("model.safetensors");
    let other = fixed((3, 32), DType::F32, 1);
    save(&HashMap::from([("up.weight", other.clone())]), &file)?;
    let mut replaced = |adapter: &str| {
        let result = replace_lora_weights_loftq(&mut model, &file, adapter);
        result.unwrap_err().to_string()
    };
    let error = replaced("default");
    assert!(
        error.contains("`up.weight` has shape [3, 32], the model's [64, 32]"),
        "{error}"
    );
    save(&HashMap::from([("fc.weight", other)]), &file)?;
    assert!(replaced("default").contains("has no tensor `up.weight`"));
    assert!(replaced("mine").contains("mine"));
    let mut plain = full.to_lora(&LoraConfig::new(2))?;
    let error = replace_lora_weights_loftq(&mut plain, &file, "default").unwrap_err();
    let text = "the adapter `default` is at no quantised linear layer of the model";
    assert!(error.to_string().contains(text), "{error}");
    Ok(())
}
