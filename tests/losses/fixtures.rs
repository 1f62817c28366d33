//! The losses of sentence-transformers and PyTorch.

use candle_core::{DType, Device, Result, Tensor, Var};
use lora::losses::{
    CoSent, Distance, MultipleNegativesRanking, Reduction, Similarity, Triplet, cosine_similarity,
    huber, l1, mse,
};
use lora_tests::assert_close;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;

#[derive(Deserialize)]
struct Case {
    name: String,
    #[serde(flatten)]
    call: Call,
}

#[derive(Deserialize)]
#[serde(tag = "loss", rename_all = "snake_case")]
enum Call {
    Mse {
        reduction: String,
    },
    L1 {
        reduction: String,
    },
    Huber {
        reduction: String,
        delta: f64,
    },
    Ranking {
        scale: f64,
        similarity: String,
        symmetric: bool,
    },
    CosineSimilarity,
    Cosent {
        scale: f64,
    },
    Triplet {
        margin: f64,
        distance: String,
    },
}

fn reduction(name: &str) -> Reduction {
    match name {
        "mean" => Reduction::Mean,
        "sum" => Reduction::Sum,
        _ => Reduction::None,
    }
}

impl Call {
    fn apply(&self, inputs: &HashMap<String, Tensor>) -> Result<Tensor> {
        let get = |name: &str| &inputs[name];
        match self {
            Self::Mse { reduction: name } => mse(get("a"), get("b"), reduction(name)),
            Self::L1 { reduction: name } => l1(get("a"), get("b"), reduction(name)),
            Self::Huber {
                reduction: name,
                delta,
            } => huber(get("a"), get("b"), *delta, reduction(name)),
            Self::Ranking {
                scale,
                similarity,
                symmetric,
            } => {
                let mut ranking = MultipleNegativesRanking::new().scale(*scale);
                if similarity == "dot" {
                    ranking = ranking.similarity(Similarity::Dot);
                }
                if *symmetric {
                    ranking = ranking.symmetric();
                }
                ranking.loss(get("a"), get("b"), inputs.get("c"))
            }
            Self::CosineSimilarity => cosine_similarity(get("a"), get("b"), get("labels")),
            Self::Cosent { scale } => {
                let cosent = CoSent::new().scale(*scale);
                cosent.loss(get("a"), get("b"), get("labels"))
            }
            Self::Triplet { margin, distance } => {
                let triplet = Triplet::new().margin(*margin);
                let triplet = triplet.distance(match distance.as_str() {
                    "cosine" => Distance::Cosine,
                    "euclidean" => Distance::Euclidean,
                    _ => Distance::Manhattan,
                });
                triplet.loss(get("a"), get("b"), get("c"))
            }
        }
    }
}

#[test]
fn values_and_gradients_are_those_of_sentence_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/losses/losses.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let cases = &metadata.metadata().as_ref().unwrap()["cases"];
    let cases: Vec<Case> = serde_json::from_str(cases).unwrap();
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    assert!(cases.len() > 60);
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
        for Case { name, call } in &cases {
            let (mut inputs, mut vars) = (HashMap::new(), Vec::new());
            for key in ["a", "b", "c", "labels"] {
                let Some(tensor) = tensors.get(&format!("{name}.{key}")) else {
                    continue;
                };
                let tensor = tensor.to_dtype(dtype).unwrap();
                if key == "labels" {
                    inputs.insert(key.to_string(), tensor);
                    continue;
                }
                let var = Var::from_tensor(&tensor).unwrap();
                inputs.insert(key.to_string(), var.as_tensor().clone());
                vars.push((key, var));
            }
            let output = call.apply(&inputs).unwrap();
            assert_eq!(output.dtype(), dtype, "{name}");
            let what = format!("{name} in {dtype:?}");
            let expected = &tensors[&format!("{name}.output")];
            assert_close(
                &what,
                &(&output + 1.0).unwrap(),
                &(expected + 1.0).unwrap(),
                tolerance,
            );
            let grads = output.sum_all().unwrap().backward().unwrap();
            for (key, var) in vars {
                let expected = &tensors[&format!("{name}.grad.{key}")];
                let grad = grads.get(&var).unwrap();
                let error = lora_tests::absolute_error(grad, expected).unwrap();
                let largest = lora_tests::values(expected).unwrap().into_iter();
                let largest = largest.fold(0.0, |most: f64, value| most.max(value.abs()));
                // A gradient that vanishes is compared with 1 / 1000.
                let bound = tolerance * largest.max(1e-3);
                assert!(error <= bound, "{what}: {key}: {error:e} above {bound:e}");
            }
        }
    }
}
