//! The encoders of `lora::models` against transformers and PEFT.

mod adapters;
mod config;
mod files;
mod logits;
mod sentences;
mod training;

use candle_core::safetensors::load;
use candle_core::{DType, Device, Tensor};
use lora::models::encoder::{Encoder, Inputs};
use lora::models::{self, Created, Options, Task};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The folders that `make.py` writes for models with heads.
const CASES: [&str; 10] = [
    "bert",
    "bert_untied",
    "roberta",
    "roberta_untied",
    "xlm_roberta",
    "camembert",
    "distilbert",
    "distilbert_untied",
    "modernbert",
    "modernbert_bias",
];

/// Those of sentence encoders, without a head.
const SENTENCES: [&str; 3] = ["minilm", "sentence_cls", "sentence_last"];

/// The tasks with a head, by the names of the logits.
const HEADS: [(&str, Task); 3] = [
    ("sequence", Task::SequenceClassification),
    ("token", Task::TokenClassification),
    ("masked", Task::MaskedLm),
];

fn folder(case: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/encoder");
    fixtures.join(case)
}

fn read_with(case: &str, options: &Options) -> Created<Encoder> {
    let auto = models::auto(folder(case), options);
    let auto = auto.unwrap_or_else(|error| panic!("{case}: {error}"));
    auto.into_encoder().unwrap()
}

fn read(case: &str, task: Task) -> Created<Encoder> {
    read_with(case, &Options::new().task(task))
}

/// What went in and came out.
struct Io(HashMap<String, Tensor>);

impl Io {
    fn new(folder: &Path) -> Self {
        Self(load(folder.join("io.safetensors"), &Device::Cpu).unwrap())
    }

    fn of(case: &str) -> Self {
        Self::new(&folder(case))
    }

    fn get(&self, name: &str) -> &Tensor {
        &self.0[name]
    }

    /// The texts with their padding and kinds of tokens.
    fn inputs(&self) -> Inputs<'_> {
        let inputs = Inputs::new(self.get("ids")).mask(self.get("mask"));
        match self.0.get("types") {
            Some(types) => inputs.types(types),
            None => inputs,
        }
    }

    /// The values (batch, time, width) at tokens, (tokens, width): those at padding mean nothing.
    fn at_tokens(&self, xs: &Tensor) -> Tensor {
        let mask: Vec<Vec<f32>> = self
            .get("mask")
            .to_dtype(DType::F32)
            .unwrap()
            .to_vec2()
            .unwrap();
        let mut rows = Vec::new();
        for (row, mask) in mask.iter().enumerate() {
            for (position, _) in mask.iter().enumerate().filter(|(_, token)| **token == 1.0) {
                rows.push(xs.get(row).unwrap().get(position).unwrap());
            }
        }
        Tensor::stack(&rows, 0).unwrap()
    }

    /// Of values for each text those of the first two. The third begins with padding, at which a
    /// ModernBERT's windows see nothing.
    fn of_texts(&self, xs: &Tensor) -> Tensor {
        xs.narrow(0, 0, 2).unwrap()
    }

    fn expected_at_tokens(&self, name: &str) -> Tensor {
        self.at_tokens(self.get(name))
    }
}
