//! Paths from the names of a checkpoint, recorded while the model loads.

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Embedding, Linear, RmsNorm, VarBuilder, VarMap};
use lora::layers::Recompute;
use lora::{Init, LoraConfig, LoraModel, LoraModule, Names, transfer_weights};
use lora_tests::{assert_close, fill_adapters, fixed};
use std::collections::HashMap;

#[derive(Clone, Debug, LoraModel)]
struct Attention {
    q: Linear,
    /// Made of the checkpoint's weight by a transposition.
    changed: Linear,
    #[lora(name = "own_name")]
    named: Linear,
}

#[lora::forward]
impl Module for Attention {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = xs.apply(&self.q)?.tanh()?;
        ys.apply(&self.changed)?.apply(&self.named)
    }
}

#[derive(Clone, Debug, LoraModel)]
struct Block {
    attn: Attention,
    norm: RmsNorm,
}

#[lora::forward]
impl Module for Block {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs + self.norm.forward(xs)?.apply(&self.attn)?
    }
}

#[derive(Clone, Debug, LoraModel)]
struct Net {
    embed: Embedding,
    blocks: Vec<Recompute<Block>>,
    head: Linear,
    table: Tensor,
}

#[lora::forward]
impl Net {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let mut xs = ids.apply(&self.embed)?;
        for block in &self.blocks {
            xs = block.forward(&xs)?;
        }
        xs.apply(&self.head)?.broadcast_mul(&self.table)
    }
}

impl Net {
    fn load(vb: VarBuilder<'_>) -> Result<Self> {
        let model = vb.pp("model");
        let embed = candle_nn::embedding(5, 4, model.pp("embed_tokens"))?;
        let block = |i: usize| {
            let vb = model.pp("layers").pp(i);
            let attention = vb.pp("self_attn");
            let attn = Attention {
                q: candle_nn::linear(4, 4, attention.pp("q_proj"))?,
                changed: Linear::new(attention.get((4, 4), "changed.weight")?.t()?, None),
                named: candle_nn::linear_no_bias(4, 4, attention.pp("o_proj"))?,
            };
            let norm = candle_nn::rms_norm(4, 1e-5, vb.pp("input_layernorm"))?;
            Ok(Block { attn, norm })
        };
        let blocks = (0..2).map(|i| block(i).map(Recompute::new));
        Ok(Self {
            blocks: blocks.collect::<Result<_>>()?,
            head: Linear::new(embed.embeddings().clone(), None),
            embed,
            table: model.get(5, "table")?,
        })
    }
}

/// The names that the constructor asks for, each with fixed values.
fn tensors() -> HashMap<String, Tensor> {
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let seed = tensors.len();
        tensors.insert(name, fixed(shape, DType::F32, seed));
    };
    add("model.embed_tokens.weight".into(), &[5, 4]);
    for i in 0..2 {
        let block = format!("model.layers.{i}");
        add(format!("{block}.self_attn.q_proj.weight"), &[4, 4]);
        add(format!("{block}.self_attn.q_proj.bias"), &[4]);
        add(format!("{block}.self_attn.changed.weight"), &[4, 4]);
        add(format!("{block}.self_attn.o_proj.weight"), &[4, 4]);
        add(format!("{block}.input_layernorm.weight"), &[4]);
    }
    add("model.table".into(), &[5]);
    tensors
}

fn load(names: &Names) -> Net {
    let vb = VarBuilder::from_tensors(tensors(), DType::F32, &Device::Cpu);
    Net::load(names.record(vb)).unwrap()
}

fn paths<M: LoraModule>(model: &M) -> Vec<String> {
    let mut paths = Vec::new();
    model.for_each_layer(|path, _| paths.push(path.to_string()));
    paths
}

const PATHS: [&str; 11] = [
    "model.embed_tokens",
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.changed",
    "model.layers.0.self_attn.own_name",
    "model.layers.0.input_layernorm",
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.self_attn.changed",
    "model.layers.1.self_attn.own_name",
    "model.layers.1.input_layernorm",
    "head",
    "model.table",
];

#[test]
fn paths_are_the_checkpoints() {
    let names = Names::new();
    let net = load(&names);
    assert_eq!(names.len(), 12);
    assert_eq!(paths(&net.to_frozen().unwrap()), PATHS);
    // The names go with what recorded them.
    drop(names);
    assert_eq!(paths(&net.to_frozen().unwrap())[1], "blocks.0.attn.q");
}

/// The path goes wherever the tensor goes, and is the model's own.
#[test]
fn a_tensor_that_is_a_field_has_its_name() {
    let names = Names::new();
    let net = load(&names);
    let config = LoraConfig::new(2)
        .target_modules(["q_proj"])
        .modules_to_save(["table"]);
    let model = net.to_lora(&config).unwrap();
    drop(names);
    // The same tensors, without a record.
    assert_eq!(paths(&net.to_frozen().unwrap())[10], "table");
    let is_trained = |model: &LoraNet| {
        let params = model.named_params();
        let found = params.iter().find(|param| param.path == "model.table");
        found.unwrap().is_trainable()
    };
    assert!(is_trained(&model));
    let moved = model.to_dtype(DType::F64).unwrap().deep_clone().unwrap();
    drop(model);
    assert!(is_trained(&moved));
    let directory = tempfile::tempdir().unwrap();
    moved.save_adapter(directory.path()).unwrap();
    let file = directory.path().join("adapter_model.safetensors");
    let saved = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    assert!(
        saved.contains_key("base_model.model.model.table"),
        "{:?}",
        saved.keys()
    );
}

/// The merged model goes on with the names that its weights had.
#[test]
fn a_merged_model_keeps_the_names() {
    let names = Names::new();
    let config = LoraConfig::new(2)
        .target_modules(["q_proj", "embed_tokens"])
        .modules_to_save(["input_layernorm", "table"]);
    let model = load(&names).to_lora(&config).unwrap();
    fill_adapters(&model);
    let tuned = model.to_base().unwrap();
    drop(model);
    assert_eq!(paths(&tuned.to_frozen().unwrap()), PATHS);
    assert_eq!(paths(&tuned.to_lora(&config).unwrap()), PATHS);
}

/// From memory, from variables, with a prefix of its own, and cast on the way.
#[test]
fn any_builder_records() {
    let names = Names::new();
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let net = Net::load(names.record(vb)).unwrap();
    assert_eq!(paths(&net.to_frozen().unwrap()), PATHS);

    let zeros = VarBuilder::zeros(DType::F32, &Device::Cpu).pp("outer");
    let vb = names.record(zeros).set_dtype(DType::BF16);
    let linear = candle_nn::linear(4, 4, vb.pp("fc")).unwrap();
    assert_eq!(linear.weight().dtype(), DType::BF16);
    let frozen = vec![linear].to_frozen().unwrap();
    assert_eq!(paths(&frozen), ["outer.fc"]);
}

#[test]
fn everything_that_names_a_layer_takes_them() {
    let names = Names::new();
    let net = load(&names);
    let config = LoraConfig::new(2)
        .init(Init::Random)
        .seed(3)
        .target_modules(["q_proj", "model.layers.0.self_attn.changed"])
        .modules_to_save(["input_layernorm"])
        .recompute(["model.layers.1"]);
    let mut model = net.to_lora(&config).unwrap();
    assert_eq!(model.layer_status().len(), 3);
    assert!(!model.blocks[0].recomputes() && model.blocks[1].recomputes());
    fill_adapters(&model);
    let ids = Tensor::new(&[1u32, 4, 2], &Device::Cpu).unwrap();
    let expected = model.forward(&ids).unwrap();
    let loss = |model: &LoraNet| Ok(model.forward(&ids)?.sqr()?.mean_all()?);
    model.check_gradients(loss).unwrap();

    let directory = tempfile::tempdir().unwrap();
    model.save_adapter(directory.path()).unwrap();
    let file = directory.path().join("adapter_model.safetensors");
    let saved = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    for key in [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.changed.lora_B.weight",
        "base_model.model.model.layers.1.input_layernorm.weight",
    ] {
        assert!(saved.contains_key(key), "{key}: {:?}", saved.keys());
    }
    let loaded = net.with_adapter(directory.path()).unwrap();
    assert_close("loaded", &loaded.forward(&ids).unwrap(), &expected, 1e-6);
    model
        .add_adapter("second", &LoraConfig::new(1).target_modules(["own_name"]))
        .unwrap();
    model.delete_adapter("second").unwrap();
    model.merge().unwrap();
    assert_close("merged", &model.forward(&ids).unwrap(), &expected, 1e-5);

    let mut other = load(&names).to_frozen().unwrap();
    transfer_weights(&net.to_frozen().unwrap(), &mut other, &[]).unwrap();

    let calibrated = LoraConfig::new(2)
        .init(Init::Corda)
        .target_modules(["q_proj"]);
    let mut batches = 0;
    let found = net.calibrate(&calibrated, |model| {
        batches += 1;
        Ok((batches < 4).then(|| model.forward(&ids)).transpose()?)
    });
    let model = net
        .to_lora_calibrated(&calibrated, &found.unwrap())
        .unwrap();
    assert_eq!(model.layer_status()[0].name, PATHS[1]);

    let error = net
        .to_lora(&LoraConfig::new(2).target_modules(["blocks.0.attn.q"]))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("model.layers.*.self_attn.q_proj"),
        "{error}"
    );
}
