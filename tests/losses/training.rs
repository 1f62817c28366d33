//! A sentence encoder learns to find the answers of questions.

use candle_core::{Device, Tensor};
use candle_nn::{Optimizer, ParamsAdamW};
use lora::losses::{CoSent, MultipleNegativesRanking, Similarity, Triplet};
use lora::metrics::Retrieval;
use lora::models::encoder::{Inputs, LoraEncoder};
use lora::models::{self, Options};
use lora::optim::AdamW;
use lora::{LoraConfig, LoraModel, LoraModule};
use std::path::Path;

const PAIRS: usize = 8;

/// Texts of five tokens that share nothing with those of another start.
fn texts(start: usize) -> Tensor {
    let token = |place: usize| 1 + ((place * place * 7 + place * 3 + start) % 55) as u32;
    let tokens: Vec<u32> = (0..PAIRS * 5).map(token).collect();
    Tensor::from_vec(tokens, (PAIRS, 5), &Device::Cpu).unwrap()
}

fn mrr(model: &LoraEncoder, [questions, answers]: &[Tensor; 2]) -> f64 {
    let embed = |ids: &Tensor| model.embed(&Inputs::new(ids), false).unwrap();
    let similarity = Similarity::Cosine;
    let scores = similarity.matrix(&embed(questions), &embed(answers));
    let relevant: Vec<Vec<usize>> = (0..PAIRS).map(|pair| vec![pair]).collect();
    let found = Retrieval::of_scores(&scores.unwrap(), &relevant).unwrap();
    found.mrr(10).unwrap()
}

type Loss = fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>;

#[test]
fn a_search_gets_better_by_every_loss() {
    let losses: [(&str, Loss); 3] = [
        ("ranking", |a, b| {
            MultipleNegativesRanking::new().symmetric().loss(a, b, None)
        }),
        ("triplet", |a, b| {
            let triplet = Triplet::new().margin(0.5);
            let of = |turns| triplet.loss(a, b, &b.roll(turns, 0)?);
            (2..PAIRS as i32).try_fold(of(1)?, |sum, turns| sum + of(turns)?)
        }),
        ("cosent", |a, b| {
            let (first, mut second) = (a.repeat((PAIRS, 1))?, Vec::new());
            for turns in 0..PAIRS as i32 {
                second.push(b.roll(turns, 0)?);
            }
            // The first pairs are the right ones.
            let labels = Tensor::arange(0, (PAIRS * PAIRS) as u32, a.device())?.lt(PAIRS as u32)?;
            CoSent::new().loss(&first, &Tensor::cat(&second, 0)?, &labels)
        }),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/encoder/minilm");
    let base = models::auto(folder, &Options::new()).unwrap();
    let base = base.into_encoder().unwrap().model;
    let pairs = [texts(0), texts(29)];
    for (name, loss) in losses {
        let config = LoraConfig::new(8)
            .alpha(16.0)
            .target_modules(["query", "value", "output.dense", "intermediate.dense"])
            .seed(1);
        let model = base.to_lora(&config).unwrap();
        let before = mrr(&model, &pairs);
        let params = ParamsAdamW {
            lr: 1e-2,
            weight_decay: 0.0,
            ..Default::default()
        };
        let mut optimizer = AdamW::for_model(&model, params).unwrap();
        for _ in 0..60 {
            let [a, b] = [0, 1].map(|side: usize| model.embed(&Inputs::new(&pairs[side]), false));
            let loss = loss(&a.unwrap(), &b.unwrap()).unwrap();
            let grads = model.backward(&loss).unwrap();
            optimizer.step(&grads).unwrap();
        }
        let after = mrr(&model, &pairs);
        println!("{name}: {before:.3} to {after:.3}");
        assert!(before < 0.7 && after > 0.95, "{name}: {before} to {after}");
    }
}
