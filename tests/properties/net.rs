//! A model of every kind of layer, and random configurations for it.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Embedding, LayerNorm, Linear, Module};
use lora::layers::{TransposedLinear, Weight};
use lora::{Init, LoraConfig, LoraModel, LoraModule, TrainBias};
use lora_tests::{fixed, values};
use proptest::prelude::*;

/// The names of the layers that take adapters.
const LAYERS: [&str; 6] = ["embed", "conv", "image", "fc1", "fc2", "head"];
const VOCABULARY: usize = 12;
const WIDTH: usize = 8;

#[derive(Clone, Debug, LoraModel)]
pub struct Net {
    embed: Embedding,
    conv: Conv1d,
    image: Conv2d,
    fc1: Linear,
    norm: LayerNorm,
    fc2: TransposedLinear,
    mixture: Mixture,
    head: Linear,
}

#[derive(Clone, Debug, LoraModel)]
pub struct Mixture {
    experts: Weight,
}

#[lora::forward]
impl Module for Net {
    /// Tokens (batch, length) to scores.
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let xs = self.embed.forward(ids)?.transpose(1, 2)?.contiguous()?;
        let xs = (self.conv.forward(&xs)? + xs)?.unsqueeze(3)?;
        let xs = (self.image.forward(&xs)? + xs)?.squeeze(3)?;
        let xs = xs.transpose(1, 2)?.contiguous()?;
        let xs = self.norm.forward(&self.fc1.forward(&xs)?.tanh()?)?;
        let xs = self.fc2.forward(&xs)?.tanh()?;
        let experts = self.mixture.experts.tensor()?;
        let mut sum = xs.clone();
        for expert in 0..experts.dim(0)? {
            let weight = experts.get(expert)?.t()?;
            sum = (sum + xs.broadcast_matmul(&weight)?)?;
        }
        self.head.forward(&sum)
    }
}

/// The base model; its numbers are all of one size, its convolutions have groups and dilation.
pub fn net(dtype: DType, groups: usize, dilation: usize, tied: bool) -> Net {
    let small = |shape: &[usize], seed| (fixed(shape, dtype, seed) * 0.4).unwrap();
    let d = WIDTH;
    let conv = Conv1dConfig {
        padding: dilation,
        dilation,
        groups,
        ..Default::default()
    };
    let image = Conv2dConfig {
        padding: dilation,
        dilation,
        groups,
        ..Default::default()
    };
    let table = small(&[VOCABULARY, d], 1);
    let head = match tied {
        true => table.clone(),
        false => small(&[VOCABULARY, d], 2),
    };
    Net {
        embed: Embedding::new(table, d),
        conv: Conv1d::new(small(&[d, d / groups, 3], 3), Some(small(&[d], 4)), conv),
        image: Conv2d::new(
            small(&[d, d / groups, 3, 3], 5),
            Some(small(&[d], 6)),
            image,
        ),
        fc1: Linear::new(small(&[d, d], 7), Some(small(&[d], 8))),
        norm: LayerNorm::new(
            small(&[d], 9).affine(1., 1.).unwrap(),
            small(&[d], 10),
            1e-5,
        ),
        fc2: TransposedLinear::new(small(&[d, d], 11), Some(small(&[d], 12))).unwrap(),
        mixture: Mixture {
            experts: Weight::new(small(&[3, d, d], 13)).unwrap(),
        },
        head: Linear::new(head, Some(small(&[VOCABULARY], 14))),
    }
}

/// Tokens of three rows.
pub fn ids(seed: usize) -> Tensor {
    let ids: Vec<u32> = (0..15)
        .map(|i| ((i * 7 + seed * 5) % VOCABULARY) as u32)
        .collect();
    Tensor::from_vec(ids, (3, 5), &Device::Cpu).unwrap()
}

/// What an adapter is made with, within what all its layers take.
#[derive(Clone, Debug)]
pub struct Case {
    pub config: LoraConfig,
    pub groups: usize,
    pub dilation: usize,
    pub tied: bool,
}

impl Case {
    pub fn net(&self, dtype: DType) -> Net {
        net(dtype, self.groups, self.dilation, self.tied)
    }

    /// It changes nothing but by A and B.
    pub fn is_low_rank(&self) -> bool {
        let config = &self.config;
        !config.use_dora
            && !config.lora_bias
            && config.modules_to_save.is_empty()
            && config.train_bias == TrainBias::None
            && config.trainable_token_indices.is_empty()
            && !config.init.changes_base()
    }
}

/// Random settings.
pub fn case() -> impl Strategy<Value = Case> {
    let inits = prop_oneof![
        3 => Just(Init::Default),
        2 => Just(Init::Gaussian),
        1 => Just(Init::Pissa),
        1 => Just(Init::Olora),
        1 => Just(Init::Orthogonal),
        1 => Just(Init::Mica),
    ];
    let biases = prop_oneof![
        Just(TrainBias::None),
        Just(TrainBias::LoraOnly),
        Just(TrainBias::All)
    ];
    let shape = (1usize..3, 1usize..3, any::<bool>(), 1usize..3, 0.5..4.0);
    let flags = (any::<[bool; 6]>(), inits, biases);
    let targets = proptest::sample::subsequence(&LAYERS, 1..=6);
    (shape, flags, targets, 0u64..1000).prop_map(|(shape, flags, mut targets, seed)| {
        let (groups, dilation, tied, half, alpha) = shape;
        let ([rslora, dora, lora_bias, save, experts, tokens], init, bias) = flags;
        let drawn = matches!(init, Init::Default | Init::Gaussian);
        if !drawn {
            targets.retain(|name| ["fc1", "fc2", "head"].contains(name));
            targets.extend(targets.is_empty().then_some("fc1"));
        }
        let lora_bias = lora_bias && drawn && !targets.contains(&"embed");
        let dora = dora && !lora_bias;
        let mut config = LoraConfig::new(2 * half)
            .alpha(alpha)
            .use_rslora(rslora)
            .use_dora(dora)
            .lora_bias(lora_bias)
            .train_bias(bias)
            .init(init)
            .seed(seed)
            .target_modules(targets.clone());
        if targets.contains(&"fc1") && !rslora {
            config = config.rank_pattern("fc1", 4).alpha_pattern("fc1", 3.0);
        }
        if experts && drawn && !dora && !lora_bias {
            config = config.target_parameters(["experts"]);
        }
        if save {
            let head = (!targets.contains(&"head") && !tied).then_some("head");
            config = config.modules_to_save(["norm"].into_iter().chain(head));
        }
        // A start that takes values out of a head goes ill with rows that are trained.
        let ill = tied && init.changes_base() && targets.contains(&"head");
        if tokens && !targets.contains(&"embed") && !ill {
            config = config.trainable_token_indices("embed", [7, 2]);
        }
        Case {
            config,
            groups,
            dilation,
            tied,
        }
    })
}

/// Random settings of adapters that are A and B alone.
pub fn low_rank() -> impl Strategy<Value = Case> {
    case().prop_map(|mut case| {
        let config = case.config.train_bias(TrainBias::None);
        case.config = config.use_dora(false).lora_bias(false);
        case.config.modules_to_save.clear();
        case.config.trainable_token_indices.clear();
        case.config.target_parameters.clear();
        case
    })
}

/// Moves every variable by something, so that the adapters have an effect.
pub fn perturb<M: LoraModule>(model: &M, seed: usize) {
    for (index, var) in model.trainable_vars().iter().enumerate() {
        let step = fixed(var.shape(), var.dtype(), seed + index);
        let step = (step * 0.1).unwrap();
        var.set(&(var.as_detached_tensor() + step).unwrap())
            .unwrap();
    }
}

/// Every parameter with its values.
pub fn all_values<M: LoraModule>(model: &M) -> Vec<(String, DType, bool, Vec<f64>)> {
    let params = model.named_params().into_iter();
    params
        .map(|p| {
            let values = values(&p.tensor).unwrap();
            (p.path.clone(), p.tensor.dtype(), p.is_trainable(), values)
        })
        .collect()
}

/// s·B·A of every layer that has this adapter.
pub fn deltas(model: &LoraNet, name: &str) -> Vec<(&'static str, Tensor)> {
    use lora::Adapted;
    let layers: [(&str, &dyn Adapted); 7] = [
        ("embed", &model.embed),
        ("conv", &model.conv),
        ("image", &model.image),
        ("fc1", &model.fc1),
        ("fc2", &model.fc2),
        ("experts", &model.mixture.experts),
        ("head", &model.head),
    ];
    let deltas = layers.into_iter().filter_map(|(path, layer)| {
        let adapter = layer.adapters().get(name)?;
        Some((path, layer.delta(adapter).unwrap().detach()))
    });
    deltas.collect()
}
