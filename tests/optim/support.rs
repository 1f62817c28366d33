//! The fixtures and the models of these tests.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{Embedding, LayerNorm, Linear, ParamsAdamW, VarBuilder};
use lora::{LoraConfig, LoraModel, LoraModule};
use lora_tests::{assert_close, fill_adapters, fixed};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The model of the fixtures.
#[derive(Clone, Debug, LoraModel)]
pub struct Net {
    embed: Option<Embedding>,
    fc1: Linear,
    norm: LayerNorm,
    fc2: Linear,
    head: Linear,
}

#[lora::forward]
impl Module for Net {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = match &self.embed {
            Some(embed) => embed.forward(xs)?,
            None => xs.clone(),
        };
        let xs = self.norm.forward(&self.fc1.forward(&xs)?.tanh()?)?;
        self.head.forward(&self.fc2.forward(&xs)?.tanh()?)
    }
}

#[derive(Deserialize)]
pub struct Settings {
    steps: usize,
    pub groups: BTreeMap<String, (f64, f64)>,
}

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/optim")
}

pub struct Fixture {
    pub settings: Settings,
    pub tensors: HashMap<String, Tensor>,
    dtype: DType,
}

impl Fixture {
    pub fn read(name: &str) -> Self {
        let path = folder().join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let settings = &metadata.metadata().as_ref().unwrap()["settings"];
        Self {
            settings: serde_json::from_str(settings).unwrap(),
            tensors: candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap(),
            dtype: if name.ends_with("f32") {
                DType::F32
            } else {
                DType::F64
            },
        }
    }

    /// The model as it was before the first step.
    pub fn model(&self, trained: &[&str]) -> LoraNet {
        let vb = VarBuilder::from_tensors(self.tensors.clone(), self.dtype, &Device::Cpu);
        let weight = |name: &str| {
            let name = format!("{name}.weight");
            vb.get_unchecked(&name).unwrap()
        };
        let bias = |name: &str| vb.get_unchecked(&format!("{name}.bias")).unwrap();
        let linear = |name| Linear::new(weight(name), Some(bias(name)));
        let embed = self.tensors.contains_key("embed.weight");
        let net = Net {
            embed: embed.then(|| Embedding::new(weight("embed"), 6)),
            fc1: linear("fc1"),
            norm: LayerNorm::new(weight("norm"), bias("norm"), 1e-5),
            fc2: linear("fc2"),
            head: linear("head"),
        };
        let mut targets = vec!["fc1", "fc2"];
        targets.extend(embed.then_some("embed"));
        let config = LoraConfig::new(2).alpha(3.0).target_modules(targets);
        let config = config
            .rank_pattern("fc2", 3)
            .modules_to_save(trained.iter().copied());
        let model = net.to_lora(&config).unwrap();
        let start = self.starting("init.");
        let vars: BTreeMap<_, _> = vars(&model);
        assert_eq!(
            vars.keys().collect::<Vec<_>>(),
            start.keys().collect::<Vec<_>>()
        );
        for (path, value) in &start {
            vars[path]
                .set(&value.to_dtype(self.dtype).unwrap())
                .unwrap();
        }
        model
    }

    fn starting(&self, prefix: &str) -> BTreeMap<String, &Tensor> {
        let tensors = self.tensors.iter();
        let tensors = tensors.filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_string(), v)));
        tensors.collect()
    }

    /// The gradients of the loss, which must be PyTorch's.
    fn grads(&self, model: &LoraNet, step: usize, tolerance: f64) -> GradStore {
        let input = &self.tensors["input"];
        let input = if input.dtype().is_float() {
            input.to_dtype(self.dtype).unwrap()
        } else {
            input.clone()
        };
        let target = self.tensors["target"].to_dtype(self.dtype).unwrap();
        let loss = (model.forward(&input).unwrap() - target).unwrap();
        let loss = loss.sqr().unwrap().mean_all().unwrap();
        let grads = model.backward(&loss).unwrap();
        let vars = vars(model);
        for (path, expected) in self.starting(&format!("grad.{step}.")) {
            // A frozen parameter has none.
            if let Some(var) = vars.get(&path) {
                let what = format!("step {step}: gradient of {path}");
                assert_close(&what, grads.get(var).unwrap(), expected, tolerance);
            }
        }
        grads
    }

    /// Takes the steps of the fixture and compares the values after each.
    pub fn check(
        &self,
        model: &LoraNet,
        tolerance: f64,
        mut step_with: impl FnMut(&GradStore) -> lora::Result<()>,
    ) {
        for step in 0..self.settings.steps {
            let grads = self.grads(model, step, tolerance);
            step_with(&grads).unwrap();
            let params = model.named_params().into_iter();
            let params: BTreeMap<_, _> = params.map(|p| (p.path, p.tensor)).collect();
            let expected = self.starting(&format!("value.{step}."));
            assert!(!expected.is_empty());
            for (path, expected) in expected {
                let what = format!("step {step}: {path}");
                assert_close(&what, &params[&path], expected, tolerance);
            }
        }
    }
}

pub fn vars<M: LoraModule>(model: &M) -> BTreeMap<String, Var> {
    let params = model.named_params().into_iter();
    let params = params.filter(|param| param.is_trainable());
    let vars = params.map(|p| (p.path, Var::from_tensor(&p.tensor).unwrap()));
    vars.collect()
}

/// A linear layer with an adapter whose matrices are not zero.
pub fn linear(dtype: DType) -> <Linear as LoraModel>::Lora {
    let base = Linear::new(fixed((5, 6), dtype, 1), None);
    let model = base.to_lora(&LoraConfig::new(2).alpha(4.0)).unwrap();
    fill_adapters(&model);
    model
}

pub fn grads_of<M: LoraModule + Module>(model: &M, input: &Tensor) -> GradStore {
    let loss = model.forward(input).unwrap().sqr().unwrap();
    model.backward(&loss.mean_all().unwrap()).unwrap()
}

pub const FIXTURE_PARAMS: ParamsAdamW = ParamsAdamW {
    lr: 0.02,
    beta1: 0.8,
    beta2: 0.95,
    eps: 1e-6,
    weight_decay: 0.1,
};
