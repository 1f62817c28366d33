//! An encoder of text with an attention mask and an optional pooler.

use super::life::{Run, adapted, embedding, layer_norm, linear, live};
use candle_core::{Device, Result, Tensor};
use candle_nn::{Activation, Dropout, Embedding, LayerNorm, Linear, Module};
use lora::{LoraConfig, LoraModel, TrainBias, ops};

#[derive(Clone, Debug, LoraModel)]
struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    #[lora(name = "LayerNorm")]
    norm: LayerNorm,
    dropout: Dropout,
}

#[derive(Clone, Debug, LoraModel)]
struct EncoderLayer {
    #[lora(rank, name = "attention.self.query")]
    query: Linear,
    #[lora(name = "attention.self.key")]
    key: Linear,
    #[lora(rank, name = "attention.self.value")]
    value: Linear,
    #[lora(name = "attention.output.dense")]
    output: Linear,
    #[lora(name = "attention.output.LayerNorm")]
    attention_norm: LayerNorm,
    #[lora(flatten)]
    ffn: FeedForward,
    heads: usize,
}

#[derive(Clone, Debug, LoraModel)]
struct FeedForward {
    #[lora(name = "intermediate.dense")]
    up: Linear,
    act: Activation,
    #[lora(name = "output.dense")]
    down: Linear,
    #[lora(name = "output.LayerNorm")]
    norm: LayerNorm,
}

#[derive(Clone, Debug, LoraModel)]
struct Encoder {
    embeddings: Embeddings,
    #[lora(name = "encoder.layer")]
    layers: Box<[EncoderLayer; 2]>,
    pooler: Option<Linear>,
}

#[lora::forward]
impl Embeddings {
    fn forward(&self, ids: &Tensor, train: bool) -> Result<Tensor> {
        let positions = Tensor::arange(0u32, ids.dim(1)? as u32, ids.device())?;
        let words = ids.apply(&self.word_embeddings)?;
        let xs = words.broadcast_add(&positions.apply(&self.position_embeddings)?)?;
        self.dropout.forward(&xs.apply(&self.norm)?, train)
    }
}

#[lora::forward]
impl EncoderLayer {
    /// `mask` is (batch, 1, 1, time): 0 where to look, −∞ where not.
    fn forward(&self, xs: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (batch, time, width) = xs.dims3()?;
        let split = |xs: Tensor| -> Result<Tensor> {
            let xs = xs.reshape((batch, time, self.heads, width / self.heads))?;
            xs.transpose(1, 2)?.contiguous()
        };
        let q = split(self.query.forward(xs)?)?;
        let k = split(self.key.forward(xs)?)?;
        let v = split(self.value.forward(xs)?)?;
        let scores = (q.matmul(&k.t()?)? / ((width / self.heads) as f64).sqrt())?;
        let weights = ops::softmax_last_dim(&scores.broadcast_add(mask)?)?;
        let ys = weights
            .matmul(&v)?
            .transpose(1, 2)?
            .reshape((batch, time, width))?;
        let xs = (ys.apply(&self.output)? + xs)?.apply(&self.attention_norm)?;
        self.ffn.forward(&xs)
    }
}

#[lora::forward]
impl Module for FeedForward {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = xs.apply(&self.up)?.apply(&self.act)?.apply(&self.down)?;
        (ys + xs)?.apply(&self.norm)
    }
}

#[lora::forward]
impl Run for Encoder {
    fn run(&mut self) -> Result<Tensor> {
        let ids = Tensor::new(&[[1u32, 5, 2, 7], [4, 3, 0, 0]], &Device::Cpu)?;
        let hidden = f32::NEG_INFINITY;
        let mask = [[0f32, 0.0, 0.0, 0.0], [0.0, 0.0, hidden, hidden]];
        let mask = Tensor::new(&mask, &Device::Cpu)?.reshape((2, 1, 1, 4))?;
        let mut xs = self.embeddings.forward(&ids, false)?;
        for layer in self.layers.iter() {
            xs = layer.forward(&xs, &mask)?;
        }
        match &self.pooler {
            Some(pooler) => xs.narrow(1, 0, 1)?.squeeze(1)?.apply(pooler)?.tanh(),
            None => Ok(xs),
        }
    }
}

fn encoder(pooler: bool) -> Encoder {
    let layer = |seed: usize| EncoderLayer {
        query: linear(8, 8, seed),
        key: linear(8, 8, seed + 2),
        value: linear(8, 8, seed + 4),
        output: linear(8, 8, seed + 6),
        attention_norm: layer_norm(8, seed + 8),
        ffn: FeedForward {
            up: linear(8, 16, seed + 10),
            act: Activation::NewGelu,
            down: linear(16, 8, seed + 12),
            norm: layer_norm(8, seed + 14),
        },
        heads: 2,
    };
    Encoder {
        embeddings: Embeddings {
            word_embeddings: embedding(9, 8, 1),
            position_embeddings: embedding(6, 8, 2),
            norm: layer_norm(8, 3),
            dropout: Dropout::new(0.1),
        },
        layers: Box::new([layer(20), layer(50)]),
        pooler: pooler.then(|| linear(8, 8, 80)),
    }
}

#[test]
fn with_and_without_pooler() {
    for pooler in [true, false] {
        let model = live(
            encoder(pooler),
            &LoraConfig::new(2).train_bias(TrainBias::LoraOnly),
        );
        assert_eq!(adapted(&model)[0], "encoder.layer.0.attention.self.query");
        assert_eq!(model.pooler.is_some(), pooler);
    }
}

#[test]
fn with_the_pooler_trained() {
    let config = LoraConfig::new(2)
        .target_modules(["query", "intermediate.dense"])
        .modules_to_save(["pooler"]);
    let model = live(encoder(true), &config);
    assert_eq!(adapted(&model).len(), 4);
    assert!(model.pooler.unwrap().weight().is_variable());
}
