//! Training that was stopped and goes on: the same numbers, bit for bit, as without the stop.

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, ParamsAdamW};
use lora::optim::{AdamW, AsAdamW, LoraFa, LoraPlus, Riemannian, Schedule, load_state, save_state};
use lora::{Init, LoraConfig, LoraModel, LoraModule, TrainBias, seed_dropout};
use lora_tests::{fixed, values};
use std::path::Path;

#[derive(Clone, Debug, LoraModel)]
struct Net {
    embed: Embedding,
    fc1: Linear,
    norm: LayerNorm,
    fc2: Linear,
    lm_head: Linear,
    #[lora(trainable)]
    temperature: Option<Tensor>,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let xs = ids.apply(&self.embed)?;
        let hidden = xs.apply(&self.fc1)?.tanh()?.apply(&self.norm)?;
        let ys = (hidden.apply(&self.fc2)? + xs)?.apply(&self.lm_head)?;
        match &self.temperature {
            Some(temperature) => ys.broadcast_mul(temperature),
            None => Ok(ys),
        }
    }
}

fn base() -> Net {
    base_of(DType::F32)
}

/// The head shares the embedding's weight.
fn base_of(dtype: DType) -> Net {
    let table = fixed((11, 32), dtype, 1);
    let bias = |n, seed| Some(fixed(n, dtype, seed));
    Net {
        fc1: Linear::new(fixed((8, 32), dtype, 2), bias(8, 3)),
        norm: LayerNorm::new(fixed(8, dtype, 4), fixed(8, dtype, 5), 1e-5),
        fc2: Linear::new(fixed((32, 8), dtype, 6), bias(32, 7)),
        lm_head: Linear::new(table.clone(), None),
        embed: Embedding::new(table, 32),
        temperature: None,
    }
}

fn batch(step: usize) -> Tensor {
    let ids = (0..6).map(|i| ((i * 5 + step * 3) % 11) as u32);
    Tensor::from_iter(ids, &Device::Cpu)
        .unwrap()
        .reshape((2, 3))
        .unwrap()
}

/// One step, and its loss.
trait Train: AsAdamW {
    fn step_on(&mut self, loss: &Tensor) -> lora::Result<()>;
}

impl Train for AdamW {
    fn step_on(&mut self, loss: &Tensor) -> lora::Result<()> {
        Ok(candle_nn::Optimizer::backward_step(self, loss)?)
    }
}

impl Train for LoraFa {
    fn step_on(&mut self, loss: &Tensor) -> lora::Result<()> {
        self.backward_step(loss)
    }
}

impl Train for Riemannian {
    fn step_on(&mut self, loss: &Tensor) -> lora::Result<()> {
        self.backward_step(loss)
    }
}

fn train(
    model: &LoraNet,
    optimizer: &mut impl Train,
    steps: std::ops::Range<usize>,
) -> lora::Result<Vec<f64>> {
    let schedule = Schedule::cosine(8).warmup(2);
    let mut losses = Vec::new();
    for step in steps {
        let loss = model.forward(&batch(step))?.sqr()?.mean_all()?;
        optimizer
            .as_adamw_mut()
            .set_lr_factor(schedule.factor(step + 1));
        optimizer.step_on(&loss)?;
        losses.extend(values(&loss)?);
    }
    Ok(losses)
}

fn all_values(model: &LoraNet) -> Vec<(String, bool, Vec<f64>)> {
    let params = model.named_params().into_iter();
    let params = params.map(|p| {
        let values = values(&p.tensor).unwrap();
        (p.path.clone(), p.is_trainable(), values)
    });
    params.collect()
}

/// Six steps in one go, and with a stop after three of them: into the base model, and into a model that
/// another seed converted.
#[track_caller]
fn check<O: Train>(
    what: &str,
    model: LoraNet,
    others: impl IntoIterator<Item = LoraNet>,
    make: impl Fn(&mut LoraNet) -> lora::Result<O>,
) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.safetensors");
    let mut model = model;
    let start = all_values(&model);
    seed_dropout(5);
    let mut optimizer = make(&mut model).unwrap();
    train(&model, &mut optimizer, 0..3).unwrap();
    save_state(&path, &model, &optimizer).unwrap();
    let losses = train(&model, &mut optimizer, 3..6).unwrap();
    let end = all_values(&model);
    assert_ne!(start, end, "{what}");

    let frozen = base().to_frozen().unwrap();
    for mut again in [frozen].into_iter().chain(others) {
        seed_dropout(77);
        let mut optimizer = load_state(&path, &mut again, &make).unwrap();
        assert_eq!(optimizer.as_adamw().steps(), 3, "{what}");
        let again_losses = train(&again, &mut optimizer, 3..6).unwrap();
        assert_eq!(again_losses, losses, "{what}");
        assert_eq!(all_values(&again), end, "{what}");
        let out = |model: &LoraNet| {
            let base = model.to_base().unwrap().forward(&batch(9)).unwrap();
            values(&base).unwrap()
        };
        assert_eq!(out(&again), out(&model), "{what}");
        assert_eq!(again.active_adapters(), model.active_adapters());
        for name in model.adapter_names() {
            let (mut one, mut two) = (again.clone(), model.clone());
            one.set_active(&[&name]).unwrap();
            two.set_active(&[&name]).unwrap();
            assert_eq!(out(&one), out(&two), "{what}: {name}");
            // An exported adapter is converted all the same.
            let saved = dir.path().join(&name);
            one.save_adapter(&saved).unwrap();
        }
    }
}

fn config() -> LoraConfig {
    let config = LoraConfig::new(4).alpha(6.0).dropout(0.25).seed(3);
    config.target_modules(["fc1", "fc2"])
}

fn adamw(model: &mut LoraNet) -> lora::Result<AdamW> {
    let params = ParamsAdamW {
        lr: 0.02,
        ..Default::default()
    };
    AdamW::for_model(model, params)
}

fn check_config(what: &str, config: &LoraConfig) {
    let model = |seed| base().to_lora(&config.clone().seed(seed)).unwrap();
    check(what, model(3), [model(4)], adamw);
}

#[test]
fn every_initial_value_is_resumed() {
    for init in [
        Init::Default,
        Init::Gaussian,
        Init::Random,
        Init::Pissa,
        Init::PissaNiter(2),
        Init::Olora,
        Init::Orthogonal,
        Init::Mica,
    ] {
        check_config(&init.to_string(), &config().init(init));
    }
    // Its quantiser takes 32 inputs at a time.
    check_config("loftq", &config().init(Init::Loftq).target_modules(["fc1"]));
    check_config("pissa, dora", &config().init(Init::Pissa).use_dora(true));
}

/// A residual base of 16 bits is rounded as the first was.
#[test]
fn a_base_of_sixteen_bits_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    for init in [Init::Default, Init::Pissa, Init::Olora] {
        let base = base_of(DType::BF16);
        let mut model = base.to_lora(&config().init(init)).unwrap();
        let mut optimizer = adamw(&mut model).unwrap();
        train(&model, &mut optimizer, 0..2).unwrap();
        save_state(&path, &model, &optimizer).unwrap();
        let losses = train(&model, &mut optimizer, 2..4).unwrap();
        let mut again = base.to_frozen().unwrap();
        let mut optimizer = load_state(&path, &mut again, adamw).unwrap();
        assert_eq!(train(&again, &mut optimizer, 2..4).unwrap(), losses);
        assert_eq!(all_values(&again), all_values(&model));
    }
}

/// The state keeps an adapter of a residual base as it is, an export converts it.
#[test]
fn an_export_of_resumed_training_is_for_the_original_base() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    state_of(&config().init(Init::Pissa), &path);
    let mut model = base().to_frozen().unwrap();
    let mut optimizer = load_state(&path, &mut model, adamw).unwrap();
    train(&model, &mut optimizer, 1..3).unwrap();
    assert_eq!(model.trainable_vars()[0].dims(), [4, 32]);
    let exported = dir.path().join("adapter");
    model.save_adapter(&exported).unwrap();
    let loaded = base().with_adapter(&exported).unwrap();
    assert_eq!(loaded.trainable_vars()[0].dims(), [8, 32]);
    model.eval();
    let (ours, theirs) = (model.forward(&batch(0)), loaded.forward(&batch(0)));
    lora_tests::assert_close("export", &theirs.unwrap(), &ours.unwrap(), 1e-5);
}

#[test]
fn calibrated_adapters_are_resumed_without_their_data() {
    for init in [Init::Eva, Init::Corda, Init::LoraGa] {
        let config = config().init(init).target_modules(["fc2"]);
        let mut step = 0;
        let calibrated = base().calibrate(&config, |model| {
            step += 1;
            if step > 20 {
                return Ok(None);
            }
            Ok(Some(model.forward(&batch(step))?.sqr()?.mean_all()?))
        });
        let model = base().to_lora_calibrated(&config, &calibrated.unwrap());
        check(&init.to_string(), model.unwrap(), [], adamw);
    }
}

#[test]
fn every_form_is_resumed() {
    for (what, config) in [
        ("dora", config().use_dora(true)),
        ("rslora", config().use_rslora(true).rank_pattern("fc2", 2)),
        ("bias on B", config().lora_bias(true)),
        ("biases", config().train_bias(TrainBias::All)),
        ("in full", config().modules_to_save(["norm", "lm_head"])),
        ("rows", config().trainable_token_indices("embed", [2, 7])),
        (
            "tied",
            config()
                .target_modules(["embed", "fc1"])
                .ensure_weight_tying(true),
        ),
        (
            "tied, dora",
            config()
                .target_modules(["embed", "fc1"])
                .ensure_weight_tying(true)
                .use_dora(true),
        ),
        (
            "tied, in full",
            config()
                .modules_to_save(["embed"])
                .ensure_weight_tying(true),
        ),
    ] {
        check_config(what, &config);
    }
}

#[test]
fn every_optimiser_is_resumed() {
    let model = || base().to_lora(&config().use_dora(true)).unwrap();
    check("LoRA+", model(), [], |model| {
        LoraPlus::new(0.01, 8.0).weight_decay(0.1).adamw(model)
    });
    check("LoRA-FA", model(), [], |model| {
        LoraFa::new(model, 0.02, 0.1)
    });
    check("Riemannian", model(), [], |model| {
        let below = adamw(model)?;
        Riemannian::new(model, below, 1e-2)
    });
}

#[test]
fn several_adapters_are_resumed() {
    let model = |seed: u64| {
        let mut model = base().to_lora(&config().seed(seed)).unwrap();
        let pissa = config().init(Init::Pissa).seed(seed + 1);
        model.add_adapter("pissa", &pissa).unwrap();
        let biases = LoraConfig::new(3).target_modules(["fc1"]).seed(seed + 2);
        model
            .add_adapter("biases", &biases.train_bias(TrainBias::LoraOnly))
            .unwrap();
        model.set_scale("biases", 0.5).unwrap();
        model.set_active(&["default", "biases"]).unwrap();
        model
    };
    check("several", model(3), [model(9)], adamw);
    let mut pissa = model(3);
    pissa.set_active(&["pissa"]).unwrap();
    check("pissa of several", pissa, [model(9)], adamw);
}

#[test]
fn a_trained_field_is_resumed() {
    let with_field = || Net {
        temperature: Some(fixed(1, DType::F32, 8)),
        ..base()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let mut model = with_field().to_lora(&config()).unwrap();
    let mut optimizer = adamw(&mut model).unwrap();
    train(&model, &mut optimizer, 0..2).unwrap();
    save_state(&path, &model, &optimizer).unwrap();
    let losses = train(&model, &mut optimizer, 2..4).unwrap();
    let mut again = with_field().to_frozen().unwrap();
    let mut optimizer = load_state(&path, &mut again, adamw).unwrap();
    assert_eq!(train(&again, &mut optimizer, 2..4).unwrap(), losses);
}

fn state_of(config: &LoraConfig, path: &Path) -> LoraNet {
    let mut model = base().to_lora(config).unwrap();
    let mut optimizer = adamw(&mut model).unwrap();
    train(&model, &mut optimizer, 0..1).unwrap();
    save_state(path, &model, &optimizer).unwrap();
    model
}

#[track_caller]
fn refused<T>(result: lora::Result<T>, words: &[&str]) {
    let error = result.err().unwrap().to_string();
    for word in words {
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    state_of(&config().init(Init::Pissa), &path);
    // Another base model: with another weight, another norm, in another dtype, quantised.
    let (mut one, mut two) = (base(), base());
    one.fc1 = Linear::new(fixed((8, 32), DType::F32, 50), one.fc1.bias().cloned());
    two.norm = LayerNorm::new(fixed(8, DType::F32, 50), fixed(8, DType::F32, 5), 1e-5);
    let loftq = config().init(Init::Loftq).target_modules(["fc1"]);
    for (layer, mut model) in [
        ("fc1", one.to_lora(&config()).unwrap()),
        ("norm", two.to_lora(&config()).unwrap()),
        (
            "fc2",
            base().to_frozen().unwrap().to_dtype(DType::F64).unwrap(),
        ),
        ("fc1", base().to_lora(&loftq).unwrap()),
    ] {
        let before = all_values(&model);
        let expected =
            format!("was trained with other base weights than this model has at `{layer}`");
        refused(load_state(&path, &mut model, adamw), &[&expected]);
        assert_eq!(all_values(&model), before);
    }

    // Another width, another model.
    let mut narrow = base();
    narrow.fc1 = Linear::new(fixed((7, 32), DType::F32, 2), None);
    narrow.norm = LayerNorm::new(fixed(7, DType::F32, 4), fixed(7, DType::F32, 5), 1e-5);
    narrow.fc2 = Linear::new(fixed((32, 7), DType::F32, 6), None);
    state_of(&config(), &path);
    let mut model = narrow.to_frozen().unwrap();
    refused(
        load_state(&path, &mut model, adamw),
        &[
            "`adapter.fc1.lora_B.default.weight` has shape [8, 4], the model's [7, 4]",
            "other base weights than this model has at `norm`",
        ],
    );
    let mut linear = base().fc1.to_frozen().unwrap();
    let fresh = |model: &mut _| AdamW::for_model(model, ParamsAdamW::default());
    refused(
        load_state(&path, &mut linear, fresh),
        &[
            "is of another model: this one has no layer `fc1`",
            "is of another model: it has no layer ``",
        ],
    );

    // An optimiser of other parameters.
    let mut model = base().to_frozen().unwrap();
    let of_a = |model: &mut LoraNet| {
        let vars = model.trainable_vars();
        AdamW::grouped(model, [lora::optim::Group::new(&vars[..1], 0.1)])
    };
    refused(
        load_state(&path, &mut model, of_a),
        &[
            "`optimizer.fc1.lora_B.default.weight.exp_avg` belongs to no parameter of this optimiser",
        ],
    );
    assert!(model.adapter_names().is_empty());

    // No state at all, and one that is cut off.
    let mut model = base().to_frozen().unwrap();
    let plain = dir.path().join("plain");
    let tensors = [("a", fixed(2, DType::F32, 1))].map(|(name, tensor)| (name.to_string(), tensor));
    candle_core::safetensors::save(&tensors.into(), &plain).unwrap();
    refused(
        load_state(&plain, &mut model, adamw),
        &["is no training state"],
    );
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&plain, &bytes[..bytes.len() - 8]).unwrap();
    refused(
        load_state(&plain, &mut model, adamw),
        &["the file was cut off or damaged"],
    );

    let mut merged = state_of(&config(), &path);
    let optimizer = adamw(&mut merged).unwrap();
    merged.merge().unwrap();
    refused(
        save_state(&path, &merged, &optimizer),
        &["call unmerge() first"],
    );
    refused(
        load_state(&path, &mut merged, adamw),
        &["call unmerge() first"],
    );
}

/// A state from which no training could go on does not replace one that is good.
#[test]
fn a_state_that_is_not_finite_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let mut model = state_of(&config(), &path);
    let before = std::fs::read(&path).unwrap();
    let optimizer = adamw(&mut model).unwrap();
    let var = &model.trainable_vars()[1];
    var.set(&(var.ones_like().unwrap() * f64::NAN).unwrap().detach())
        .unwrap();
    refused(
        save_state(&path, &model, &optimizer),
        &[
            "cannot be written: `adapter.fc1.lora_B.default.weight` holds values that are not finite",
        ],
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

/// Whatever is wrong with a file: an error or a state, and no panic.
#[test]
fn a_damaged_state_is_an_error_or_a_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let config = config()
        .init(Init::Pissa)
        .use_dora(true)
        .modules_to_save(["norm"])
        .trainable_token_indices("embed", [2, 7]);
    state_of(&config, &path);
    let bytes = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut refusals = 0;
    for turn in 0..400 {
        // Fixed places without a pattern, most of them in the header, where the words are.
        let place = |n: usize, within: usize| (n * 7919 + 31 * turn * turn) % within;
        let mut damaged = bytes.clone();
        let within = if turn % 4 == 0 { bytes.len() } else { header };
        for n in 0..=turn % 2 {
            damaged[place(n + turn, within)] = b"09[]{},:-\"et"[(n + turn) % 12];
        }
        std::fs::write(&path, &damaged).unwrap();
        let mut model = base().to_frozen().unwrap();
        match load_state(&path, &mut model, adamw) {
            Ok(_) => drop(model.forward(&batch(0))),
            Err(_) => {
                refusals += 1;
                assert!(model.adapter_names().is_empty());
            }
        }
    }
    assert!(refusals > 200, "{refusals}");
}
