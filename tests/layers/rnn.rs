//! Recurrent layers.

use super::F32;
use candle_core::{DType, Result, Tensor};
use candle_nn::rnn::{Direction, GRUConfig, LSTMConfig};
use candle_nn::{Linear, RNN, VarBuilder};
use lora::layers::{GRU, LSTM, gru, lstm};
use lora::{LoraConfig, LoraModel, LoraModule, Names, TrainBias};
use lora_tests::{assert_close, check_gradients, fill_adapters, fixed, var, whole_life};
use std::collections::HashMap;

/// A builder with the parameters of PyTorch's `nn.LSTM` or `nn.GRU`.
fn builder(gates: usize, suffix: &str, dtype: DType) -> VarBuilder<'static> {
    let rows = gates * 4;
    let tensors = [
        ("weight_ih", fixed((rows, 3), dtype, 1)),
        ("weight_hh", fixed((rows, 4), dtype, 2)),
        ("bias_ih", fixed(rows, dtype, 3)),
        ("bias_hh", fixed(rows, dtype, 4)),
    ];
    let tensors = tensors.map(|(name, tensor)| (format!("rnn.{name}{suffix}"), tensor));
    let device = &candle_core::Device::Cpu;
    VarBuilder::from_tensors(HashMap::from(tensors), dtype, device).pp("rnn")
}

fn all<R: RNN>(rnn: &R, xs: &Tensor) -> Result<Tensor> {
    let states = rnn.seq(xs)?;
    rnn.states_to_tensor(&states)
}

#[test]
fn compute_what_candles_do() {
    let xs = fixed((2, 5, 3), F32, 5);
    for direction in [Direction::Forward, Direction::Backward] {
        let suffix = match direction {
            Direction::Forward => "_l1",
            Direction::Backward => "_l1_reverse",
        };
        for config in [LSTMConfig::default(), LSTMConfig::default_no_bias()] {
            let config = LSTMConfig {
                layer_idx: 1,
                direction,
                ..config
            };
            let vb = || builder(4, suffix, F32);
            let candle = candle_nn::lstm(3, 4, config, vb()).unwrap();
            let own = lstm(3, 4, config, vb()).unwrap();
            assert_eq!(own.config().layer_idx, 1);
            let expected = all(&candle, &xs).unwrap();
            assert_close("LSTM", &all(&own, &xs).unwrap(), &expected, 1e-6);
            let frozen = own.to_frozen().unwrap();
            assert_close("LoraLSTM", &all(&frozen, &xs).unwrap(), &expected, 1e-6);

            let state = frozen.zero_state(2).unwrap();
            let first = xs.narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
            let state = frozen.step(&first, &state).unwrap();
            let expected = candle.step(&first, &candle.zero_state(2).unwrap()).unwrap();
            assert_close("step", state.h(), expected.h(), 1e-6);
            assert_close("step", state.c(), expected.c(), 1e-6);
        }
    }
    for config in [GRUConfig::default(), GRUConfig::default_no_bias()] {
        let vb = || builder(3, "_l0", F32);
        let expected = all(&candle_nn::gru(3, 4, config, vb()).unwrap(), &xs).unwrap();
        let own = gru(3, 4, config, vb()).unwrap();
        assert_close("GRU", &all(&own, &xs).unwrap(), &expected, 1e-6);
        let frozen = own.to_frozen().unwrap();
        assert_close("LoraGRU", &all(&frozen, &xs).unwrap(), &expected, 1e-6);
    }
}

macro_rules! net {
    ($name:ident, $rnn:ty, $load:path, $config:ty, $gates:literal) => {
        #[derive(Clone, Debug, LoraModel)]
        struct $name {
            rnn: $rnn,
            #[lora(rank)]
            head: Linear,
        }

        #[lora::forward]
        impl $name {
            fn forward(&self, xs: &Tensor) -> Result<Tensor> {
                let states = self.rnn.seq(xs)?;
                states[states.len() - 1].h().apply(&self.head)
            }
        }

        impl $name {
            fn new() -> Self {
                let vb = builder($gates, "_l0", F32);
                let rnn = $load(3, 4, <$config>::default(), vb).unwrap();
                let head = Linear::new(fixed((2, 4), F32, 6), None);
                Self { rnn, head }
            }
        }
    };
}

net!(Tagger, LSTM, lstm, LSTMConfig, 4);
net!(Counter, GRU, gru, GRUConfig, 3);

#[test]
fn frozen_trained_and_adapted() {
    let xs = fixed((2, 5, 3), F32, 7);
    let config = || LoraConfig::new(2).seed(1);
    let parameters = ["rnn.weight_ih_l0", "rnn.weight_hh_l0"];
    let configs = [
        config(),
        config().modules_to_save(["rnn"]),
        config().train_bias(TrainBias::All),
        config().target_parameters(parameters),
        config().target_parameters([parameters[0]]),
    ];
    for (case, config) in configs.into_iter().enumerate() {
        let what = format!("LSTM {case}");
        let model = whole_life(
            &what,
            &Tagger::new(),
            &config,
            |net| net.forward(&xs),
            |model| model.forward(&xs),
        );
        let trained = (model.named_params().into_iter())
            .filter(|param| param.is_trainable() && param.path.starts_with("rnn"))
            .map(|param| param.path);
        let expected: &[&str] = match case {
            0 => &[],
            1 => &[
                "rnn.weight_ih_l0",
                "rnn.weight_hh_l0",
                "rnn.bias_ih_l0",
                "rnn.bias_hh_l0",
            ],
            2 => &["rnn.bias_ih_l0", "rnn.bias_hh_l0"],
            3 => &[
                "rnn.weight_ih_l0.lora_A.default.weight",
                "rnn.weight_ih_l0.lora_B.default.weight",
                "rnn.weight_hh_l0.lora_A.default.weight",
                "rnn.weight_hh_l0.lora_B.default.weight",
            ],
            _ => &[
                "rnn.weight_ih_l0.lora_A.default.weight",
                "rnn.weight_ih_l0.lora_B.default.weight",
            ],
        };
        assert_eq!(trained.collect::<Vec<_>>(), expected, "{what}");
        whole_life(
            &format!("GRU {case}"),
            &Counter::new(),
            &config,
            |net| net.forward(&xs),
            |model| model.forward(&xs),
        );
    }
}

#[test]
fn gradients_are_differences() {
    let config = LoraConfig::new(2)
        .target_parameters(["0.weight_ih_l0", "0.weight_hh_l0"])
        .train_bias(TrainBias::All);
    let x = var((2, 3, 3), 7);
    let rnn = lstm(3, 4, LSTMConfig::default(), builder(4, "_l0", DType::F64));
    let model = vec![rnn.unwrap()].to_lora(&config).unwrap();
    fill_adapters(&model);
    let vars = model.trainable_vars();
    assert_eq!(vars.len(), 6);
    let mut named: Vec<_> = vars.iter().map(|var| ("a parameter", var)).collect();
    named.push(("the input", &x));
    check_gradients("LSTM", &named, || all(&model[0], &x));

    let rnn = gru(3, 4, GRUConfig::default(), builder(3, "_l0", DType::F64));
    let model = vec![rnn.unwrap()].to_lora(&config).unwrap();
    fill_adapters(&model);
    let vars = model.trainable_vars();
    let mut named: Vec<_> = vars.iter().map(|var| ("a parameter", var)).collect();
    named.push(("the input", &x));
    check_gradients("GRU", &named, || all(&model[0], &x));
}

#[test]
fn a_module_is_no_target() {
    let config = LoraConfig::new(2).target_modules(["rnn"]);
    let error = Tagger::new().to_lora(&config).unwrap_err().to_string();
    assert!(error.contains("name the layers themselves"), "{error}");
}

#[test]
fn paths_are_the_checkpoints() {
    let names = Names::new();
    let vb = names.record(builder(4, "_l0", F32));
    let net = Tagger {
        rnn: lstm(3, 4, LSTMConfig::default(), vb).unwrap(),
        ..Tagger::new()
    };
    let config = LoraConfig::new(2).target_parameters(["rnn.weight_hh_l0"]);
    let model = net.to_lora(&config).unwrap();
    let paths = model.named_params().into_iter().map(|param| param.path);
    assert!(paths.into_iter().any(|path| path == "rnn.bias_hh_l0"));
}

/// The biases, too, in a struct whose fields have other names.
#[test]
fn paths_are_the_checkpoints_in_a_struct() {
    #[derive(Clone, LoraModel)]
    struct Net {
        layers: Vec<LSTM>,
    }

    let names = Names::new();
    let vb = names.record(builder(4, "_l0", F32));
    let layers = vec![lstm(3, 4, LSTMConfig::default(), vb).unwrap()];
    let config = LoraConfig::new(2).target_parameters(["rnn.weight_ih_l0"]);
    let model = Net { layers }.to_lora(&config).unwrap();
    let paths: Vec<_> = (model.named_params().into_iter())
        .filter(|param| !param.path.contains("lora_"))
        .map(|param| param.path)
        .collect();
    let expected = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"];
    assert_eq!(paths, expected.map(|name| format!("rnn.{name}")));
}

/// PEFT wraps the module once for each of its weights.
#[test]
fn adapters_are_pefts() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/rnn");
    for name in ["lstm", "gru"] {
        let folder = std::path::Path::new(folder).join(name);
        let device = &candle_core::Device::Cpu;
        let file = folder.join("model.safetensors");
        let tensors = candle_core::safetensors::load(file, device).unwrap();
        let xs = &tensors["xs"];
        let vb = VarBuilder::from_tensors(tensors.clone(), F32, device);
        let head = candle_nn::linear(4, 2, vb.pp("head")).unwrap();
        let outputs = if name == "lstm" {
            let rnn = lstm(3, 4, LSTMConfig::default(), vb.pp("rnn")).unwrap();
            outputs_with(&Tagger { rnn, head }, &folder, |model| {
                all(&model.rnn, xs)?.apply(&model.head)
            })
        } else {
            let rnn = gru(3, 4, GRUConfig::default(), vb.pp("rnn")).unwrap();
            outputs_with(&Counter { rnn, head }, &folder, |model| {
                // Candle's, and so ours, joins the states of all times into one row.
                let states = all(&model.rnn, xs)?.reshape((2, 5, 4))?;
                states.apply(&model.head)
            })
        };
        for (output, expected) in outputs.iter().zip(["base", "adapted"]) {
            assert_close(
                &format!("{name} {expected}"),
                output,
                &tensors[expected],
                1e-5,
            );
        }
    }
}

/// The outputs without and with the folder's adapter, and of the adapter saved and loaded again.
fn outputs_with<M: LoraModel>(
    net: &M,
    folder: &std::path::Path,
    forward: impl Fn(&M::Lora) -> Result<Tensor>,
) -> [Tensor; 2] {
    let model = net.with_adapter(folder).unwrap();
    let adapted = forward(&model).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter(dir.path()).unwrap();
    let again = net.with_adapter(dir.path()).unwrap();
    assert_close("again", &forward(&again).unwrap(), &adapted, 0.0);
    let keys = |folder: &std::path::Path| {
        let file = folder.join("adapter_model.safetensors");
        let tensors = candle_core::safetensors::load(file, &candle_core::Device::Cpu).unwrap();
        tensors
            .into_keys()
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(keys(dir.path()), keys(folder));
    [forward(&net.to_frozen().unwrap()).unwrap(), adapted]
}

#[derive(Clone, Debug, LoraModel)]
struct Marked {
    #[lora(rank = 3)]
    adapted: LSTM,
    #[lora(trainable)]
    trained: Option<GRU>,
    frozen: GRU,
}

/// A rank is for both weights, as `target_parameters` that name both.
#[test]
fn attributes_reach_the_weights() {
    let gru = || gru(3, 4, GRUConfig::default(), builder(3, "_l0", F32)).unwrap();
    let net = Marked {
        adapted: lstm(3, 4, LSTMConfig::default(), builder(4, "_l0", F32)).unwrap(),
        trained: Some(gru()),
        frozen: gru(),
    };
    let model = net.to_lora(&LoraConfig::new(2)).unwrap();
    let adapted: Vec<_> = (model.layer_status().into_iter())
        .map(|layer| layer.name)
        .collect();
    assert_eq!(adapted, ["adapted.weight_ih_l0", "adapted.weight_hh_l0"]);
    let trained = model.named_params().into_iter();
    let trained = trained.filter(|param| param.is_trainable());
    let paths: Vec<_> = trained.map(|param| param.path).collect();
    let expected = [
        "adapted.weight_ih_l0.lora_A.default.weight",
        "adapted.weight_ih_l0.lora_B.default.weight",
        "adapted.weight_hh_l0.lora_A.default.weight",
        "adapted.weight_hh_l0.lora_B.default.weight",
        "trained.weight_ih_l0",
        "trained.weight_hh_l0",
        "trained.bias_ih_l0",
        "trained.bias_hh_l0",
    ];
    assert_eq!(paths, expected);
    assert_eq!(model.trainable_vars()[0].dims(), [3, 3]);
}
