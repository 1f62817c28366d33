//! `fixtures/matrix`: one layer of each kind, with every variant of LoRA.

use super::api::{self, part};
use super::cases::{folder, input, near, read_json, run, same};
use crate::peft::support::{Result, Weights};
use candle_core::{DType, Module, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Embedding, Linear};
use lora::layers::TransposedLinear;
use lora::{LoraModel, LoraModule, NamedParam};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

/// A model of one layer.
#[derive(Clone, Debug, LoraModel)]
pub struct Net<L> {
    layer: L,
}

impl<L: Module> Module for Net<L> {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.layer.forward(xs)
    }
}

impl<L: LoraModel<Lora: Module>> Module for LoraNet<L> {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.layer.forward(xs)
    }
}

/// A case of `cases.json` with the tensors of its file.
struct Case {
    json: Value,
    kind: Value,
    tensors: Weights,
    tolerance: f64,
}

impl Case {
    fn new(json: Value, kinds: &Value) -> Self {
        let (kind, dtype) = (text(&json["kind"]), text(&json["dtype"]));
        let file = folder("matrix").join(format!("{kind}.{dtype}.safetensors"));
        let tolerance = if dtype == "f32" { 1e-5 } else { 2e-2 };
        Self {
            kind: kinds[kind].clone(),
            tensors: Weights::read(file),
            tolerance,
            json,
        }
    }

    /// A tensor of the variant; `None` where the case has none.
    fn find(&self, name: &str) -> Option<&Tensor> {
        let variant = text(&self.json["variant"]);
        self.tensors.0.get(&format!("{variant}/{name}"))
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        Ok(self.find(name).ok_or_else(|| format!("no `{name}`"))?)
    }

    fn near(&self, name: &str, actual: &Tensor) -> Result {
        near(name, actual, self.get(name)?, self.tolerance)
    }

    /// The number of the kind's setting, 1 (padding: 0) where it has none.
    fn number(&self, name: &str) -> usize {
        let default = if name == "padding" { 0 } else { 1 };
        self.kind[name].as_u64().unwrap_or(default) as usize
    }

    fn adapters(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.json["adapters"].as_object().unwrap().iter()
    }

    fn bias_of_b_alone(&self) -> bool {
        let mut configs = self.adapters().map(|(_, config)| config);
        let biased = configs.any(|config| config.get("lora_bias").is_some());
        biased && !self.tensors.0.contains_key("bias")
    }

    /// Builds candle's layer and checks everything.
    fn check(&self) -> Result {
        let (weight, bias) = (self.tensors.get("w"), self.tensors.0.get("bias").cloned());
        let (stride, padding) = (self.number("stride"), self.number("padding"));
        let (dilation, groups) = (self.number("dilation"), self.number("groups"));
        match text(&self.kind["type"]) {
            "linear" => self.check_layer(Linear::new(weight, bias)),
            "conv1D" => self.check_layer(TransposedLinear::new(weight, bias)?),
            "embedding" => {
                let size = weight.dim(1)?;
                self.check_layer(Embedding::new(weight, size))
            }
            _ if weight.rank() == 3 => {
                let config = Conv1dConfig {
                    stride,
                    padding,
                    dilation,
                    groups,
                    ..Default::default()
                };
                self.check_layer(Conv1d::new(weight, bias, config))
            }
            _ => {
                let config = Conv2dConfig {
                    stride,
                    padding,
                    dilation,
                    groups,
                    ..Default::default()
                };
                self.check_layer(Conv2d::new(weight, bias, config))
            }
        }
    }

    fn check_layer<L>(&self, layer: L) -> Result
    where
        L: LoraModel<Lora: Module> + Module + Clone + Debug,
    {
        let base = Net { layer };
        let mut model = self.build(&base)?;
        self.check_training(&mut model)?;
        model.eval();
        self.check_saved(&model)?;
        self.check_merged(&mut model)
    }

    /// The LoRA model with the case's adapters and values.
    fn build<L>(&self, base: &Net<L>) -> Result<LoraNet<L>>
    where
        L: LoraModel<Lora: Module> + Clone + Debug,
    {
        let mut adapters = self.adapters();
        let (first, config) = adapters.next().ok_or("no adapter")?;
        same("name of the first adapter", first.as_str(), "default")?;
        let mut model = base.to_lora(&api::config(config)?)?;
        for (name, config) in adapters {
            api::add_adapter(&mut model, name, &api::config(config)?)?;
        }
        let mut seen = 0;
        for param in model.named_params() {
            let Some((adapter, part)) = part(&param) else {
                continue;
            };
            if part == "m" {
                let expected = self.get(&format!("start.{adapter}.m"))?;
                let start = param.tensor.reshape(expected.shape())?;
                near("fresh magnitude", &start, expected, self.tolerance)?;
            }
            api::set(
                &mut model,
                &param.path,
                self.get(&format!("{adapter}.{part}"))?,
            )?;
            seen += 1;
        }
        let variant = format!("{}/", text(&self.json["variant"]));
        let given = self
            .tensors
            .0
            .keys()
            .filter_map(|k| k.strip_prefix(&variant));
        let given = given.filter(|name| {
            let of_adapter = name.split('.').next().unwrap();
            self.json["adapters"].get(of_adapter).is_some()
        });
        same("number of adapter tensors", seen, given.count())?;

        let active = api::strings(&self.json["active"])?;
        if active != ["default"] || self.adapters().count() > 1 {
            let active: Vec<&str> = active.iter().map(String::as_str).collect();
            api::set_active(&mut model, &active)?;
            for (name, _) in self.adapters() {
                api::set_trainable(&mut model, name, active.contains(&name.as_str()))?;
            }
        }
        for (name, factor) in self.json["scales"].as_object().unwrap() {
            api::set_scale(&mut model, name, factor.as_f64().unwrap())?;
        }
        Ok(model)
    }

    /// What is trained, outputs in both modes, and gradients.
    fn check_training<M: LoraModule + Module>(&self, model: &mut M) -> Result {
        let trained = model.named_params().into_iter();
        let trained: BTreeMap<String, NamedParam> = trained
            .filter(NamedParam::is_trainable)
            .map(|param| match part(&param) {
                Some((adapter, part)) => (format!("{adapter}.{part}"), param),
                None => (param.name().to_string(), param),
            })
            .collect();
        let expected = api::strings(&self.json["trained"])?;
        let names: BTreeSet<_> = trained.keys().cloned().collect();
        same("trained", names, expected.iter().cloned().collect())?;

        let xs = input(&self.tensors, "x");
        model.eval();
        let output = model.forward(&xs)?;
        same(
            "dtype of the output",
            output.dtype(),
            self.get("y")?.dtype(),
        )?;
        self.near("y", &output)?;
        model.train();
        let ys = model.forward(&xs)?;
        if let Some(acts) = self.json.get("dropout_acts") {
            let differs = near("", &ys, &output, 1e-3).is_err();
            return same("dropout acts", differs, acts == true);
        }
        self.near("y", &ys)?;
        let loss = (ys.to_dtype(DType::F32)? * self.tensors.get("g"))?.sum_all()?;
        let grads = model.backward(&loss)?;
        for (name, param) in &trained {
            let what = format!("grad.{name}");
            let grad = grads.get(&param.tensor).ok_or("no gradient")?;
            self.near(&what, &grad.reshape(self.get(&what)?.shape())?)?;
        }
        Ok(())
    }

    /// The keys and shapes of the file.
    fn check_saved<M: LoraModule>(&self, model: &M) -> Result {
        let expected = serde_json::from_value(self.json["saved"].clone())?;
        same("saved keys", api::saved(model)?, expected)
    }

    /// The merged layer, in the model and as a base model, and the way back.
    fn check_merged<M>(&self, model: &mut M) -> Result
    where
        M: LoraModule<Base: Module> + Module,
    {
        if let Err(error) = model.merge() {
            // A bias of B has no place in a layer without one: refusing is right, too.
            let named = self.bias_of_b_alone() && error.to_string().contains("bias");
            return if named { Ok(()) } else { Err(error.into()) };
        }
        let xs = input(&self.tensors, "x");
        self.near("y", &model.forward(&xs)?)?;
        self.check_base(model.named_params())?;
        let base = model.to_base()?;
        // candle's convolutions know no bf16 on the CPU.
        if self.json["dtype"] == "f32" {
            self.near("y", &base.forward(&xs)?)?;
        }
        let base = base.to_frozen()?;
        self.near("y", &base.forward(&xs)?)?;
        self.check_base(base.named_params())?;
        model.unmerge()?;
        self.near("y", &model.forward(&xs)?)?;
        let base = model.to_base()?;
        self.check_base(base.to_frozen()?.named_params())?;
        let weight = param(&model.named_params(), "weight").ok_or("no weight")?;
        near("unmerged weight", &weight, &self.tensors.get("w"), 0.0)
    }

    fn check_base(&self, params: Vec<NamedParam>) -> Result {
        let weight = param(&params, "weight").ok_or("no weight")?;
        self.near("merged.w", &weight)?;
        match (self.find("merged.bias"), param(&params, "bias")) {
            (Some(_), Some(bias)) => self.near("merged.bias", &bias),
            (expected, bias) => same("has a bias", bias.is_some(), expected.is_some()),
        }
    }
}

fn param(params: &[NamedParam], name: &str) -> Option<Tensor> {
    let mut params = params.iter();
    let param = params.find(|param| param.name() == name)?;
    Some(param.tensor.clone())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// The variants by group: each group of a kind is a test.
const GROUPS: [(&str, &[&str]); 6] = [
    (
        "plain",
        &[
            "plain",
            "rank1",
            "rank_above",
            "float_alpha",
            "rslora",
            "gaussian",
            "patterns",
            "dropout",
            "bias_lora_only",
            "bias_all",
        ],
    ),
    (
        "dora",
        &[
            "dora",
            "dora_rank1",
            "dora_rslora",
            "dora_dropout",
            "dora_bias_all",
        ],
    ),
    (
        "lora_bias",
        &["lora_bias", "lora_bias_rslora", "lora_bias_bias_all"],
    ),
    ("scaled", &["scaled", "dora_scaled", "lora_bias_scaled"]),
    (
        "several",
        &["two", "two_ranks", "two_second", "two_reversed"],
    ),
    (
        "mixed",
        &[
            "two_scaled",
            "two_dora",
            "two_lora_bias",
            "plain_then_dora",
            "dora_then_plain",
            "dora_then_lora_bias",
            "three",
        ],
    ),
];

fn in_group(case: &Value, group: &str) -> bool {
    let mut groups = GROUPS.iter();
    groups.any(|(name, variants)| *name == group && variants.contains(&text(&case["variant"])))
}

/// Checks a group of variants of a kind.
#[track_caller]
fn check(kind: &str, group: &str, count: usize) {
    let all = read_json(folder("matrix").join("cases.json"));
    let cases = all["cases"].as_array().unwrap().iter();
    let cases = cases.filter(|case| case["kind"] == kind);
    let cases = cases.filter(|case| in_group(case, group));
    let cases = cases.map(|case| {
        let name = format!("{} {}", text(&case["dtype"]), text(&case["variant"]));
        (name, Case::new(case.clone(), &all["kinds"]))
    });
    run(cases, count, Case::check);
}

macro_rules! kinds {
    ($($kind:ident: $($group:ident $count:literal),*;)*) => {$(
        mod $kind {
            $(#[test]
            fn $group() {
                super::check(stringify!($kind), stringify!($group), $count);
            })*
        }
    )*};
}

// Groups of variants, with the number of cases.
kinds! {
    linear: plain 14, dora 7, lora_bias 4, scaled 4, several 5, mixed 9;
    linear_nobias: plain 11, dora 6, lora_bias 3, scaled 4, several 5, mixed 9;
    transposed: plain 14, dora 7, lora_bias 4, scaled 4, several 5, mixed 9;
    conv1d: plain 14, dora 7, lora_bias 4, scaled 4, several 5, mixed 9;
    conv1d_grouped: plain 14, dora 7, lora_bias 4, scaled 4, several 5, mixed 9;
    conv2d: plain 14, dora 7, lora_bias 4, scaled 4, several 5, mixed 9;
    conv2d_1x1: plain 11, dora 6, lora_bias 3, scaled 4, several 5, mixed 9;
    conv2d_oblong: plain 14, dora 7, lora_bias 4, scaled 4, several 5, mixed 9;
    conv2d_dilated: plain 14, dora 7, lora_bias 4, scaled 4, several 5, mixed 9;
    conv2d_grouped: plain 14, dora 7, lora_bias 4, scaled 4, several 5, mixed 9;
    conv2d_depthwise: plain 14, dora 7, lora_bias 4, scaled 4, several 5, mixed 9;
    embedding: plain 11, dora 6, scaled 3, several 5, mixed 7;
}

#[test]
fn every_case_is_in_a_group() {
    let all = read_json(folder("matrix").join("cases.json"));
    let cases = all["cases"].as_array().unwrap();
    for case in cases {
        let count = GROUPS.iter().filter(|(name, _)| in_group(case, name));
        assert_eq!(count.count(), 1, "{case}");
    }
    assert_eq!(cases.len(), 495);
}
