//! Sentence embeddings, and the directories of sentence-transformers.

use super::{CASES, Io, SENTENCES, folder, read_with};
use candle_core::{Device, Tensor};
use lora::models::encoder::{Inputs, Pooling};
use lora::models::{self, Options, Task};
use lora_tests::{assert_close, values};
use std::fs;
use std::path::Path;

#[test]
fn directories_say_how_texts_are_embedded() {
    let found = SENTENCES.map(|case| {
        let created = read_with(case, &Options::new());
        assert_eq!(created.config.task, Task::Features);
        assert!(created.fresh.is_empty(), "{case}");
        (created.config.pooling, created.config.normalize)
    });
    let expected = [
        (Pooling::Mean, true),
        (Pooling::Cls, false),
        (Pooling::LastToken, true),
    ];
    assert_eq!(found, expected);
}

#[test]
fn embeddings_are_pooled_and_normalised() {
    for (case, pooled) in SENTENCES.into_iter().zip(["mean", "cls", "last"]) {
        let (created, io) = (read_with(case, &Options::new()), Io::of(case));
        let embeddings = created.model.embed(&io.inputs(), false).unwrap();
        let expected = io.get(pooled);
        let expected = match created.config.normalize {
            true => {
                let lengths = expected
                    .sqr()
                    .unwrap()
                    .sum_keepdim(1)
                    .unwrap()
                    .sqrt()
                    .unwrap();
                expected.broadcast_div(&lengths).unwrap()
            }
            false => expected.clone(),
        };
        assert_close(case, &embeddings, &expected, 1e-5);
    }
}

/// Each pooling of each family, also with a head and without a mask.
#[test]
fn every_pooling_of_every_case() {
    for case in CASES {
        let (created, io) = (read_with(case, &Options::new()), Io::of(case));
        assert_eq!(created.config.task, Task::MaskedLm);
        let hidden = created.model.hidden_states(&io.inputs(), false).unwrap();
        for (pooling, name) in [
            (Pooling::Mean, "mean"),
            (Pooling::LastToken, "last"),
            // The third text begins with padding.
            (Pooling::Cls, "cls"),
        ] {
            let rows = if name == "cls" { 2 } else { 3 };
            let pooled = pooling.pool(&hidden, &io.inputs()).unwrap();
            let rows = |xs: &Tensor| xs.narrow(0, 0, rows).unwrap();
            let what = format!("{case}, {name}");
            assert_close(&what, &rows(&pooled), &rows(io.get(name)), 1e-5);
        }
    }
    let hidden = Tensor::new(&[[[1f32, 2.], [3., 6.]]], &Device::Cpu).unwrap();
    let ids = Tensor::new(&[[4u32, 5]], &Device::Cpu).unwrap();
    let none = Tensor::zeros_like(&ids).unwrap();
    for (pooling, whole, empty) in [
        (Pooling::Mean, [2., 4.], [0., 0.]),
        (Pooling::LastToken, [3., 6.], [0., 0.]),
        (Pooling::Cls, [1., 2.], [1., 2.]),
    ] {
        let pooled = pooling.pool(&hidden, &Inputs::new(&ids)).unwrap();
        assert_eq!(values(&pooled).unwrap(), whole);
        let pooled = pooling
            .pool(&hidden, &Inputs::new(&ids).mask(&none))
            .unwrap();
        assert_eq!(values(&pooled).unwrap(), empty);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Older directories hold the encoder in a folder; newer ones name the pooling in one word.
#[test]
fn older_and_newer_directories() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    copy(&folder("minilm"), &path.join("0_Transformer"));
    let module = |name: &str, path: &str| serde_json::json!({"idx": 0, "name": "0", "path": path, "type": format!("sentence_transformers.models.{name}")});
    let write = |modules: &[serde_json::Value]| {
        let text = serde_json::to_string(modules).unwrap();
        fs::write(path.join("modules.json"), text).unwrap();
    };
    let transformer = module("Transformer", "0_Transformer");
    write(&[transformer.clone(), module("Pooling", "1_Pooling")]);
    fs::create_dir(path.join("1_Pooling")).unwrap();
    let pooling = |text: &str| fs::write(path.join("1_Pooling/config.json"), text).unwrap();
    pooling(r#"{"pooling_mode": "cls", "embedding_dimension": 32}"#);
    let auto =
        |options: &Options| models::auto(path, options).map(|auto| auto.into_encoder().unwrap());
    let created = auto(&Options::new()).unwrap();
    assert_eq!(
        (created.config.pooling, created.config.normalize),
        (Pooling::Cls, false)
    );
    let error = || {
        let error = auto(&Options::new()).unwrap_err().to_string();
        error.replace(&path.display().to_string(), "DIR")
    };
    pooling(r#"{"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}"#);
    assert_eq!(
        error(),
        "DIR/1_Pooling/config.json: the pooling is mean_tokens, max_tokens: supported are cls, mean and \
         lasttoken, one of them"
    );
    write(&[transformer.clone(), module("Dense", "2_Dense")]);
    assert_eq!(
        error(),
        "DIR/modules.json: a module is \"sentence_transformers.models.Dense\": supported are Transformer, \
         Pooling and Normalize"
    );
    write(&[module("Transformer", "../elsewhere")]);
    assert_eq!(error(), "DIR/modules.json: \"../elsewhere\" is no folder");
    fs::write(path.join("modules.json"), "{}").unwrap();
    assert_eq!(error(), "DIR/modules.json: a list of modules is expected");
}

/// The cosine of each embedding of the real MiniLM with that of sentence-transformers.
#[test]
#[ignore = "set LORA_MINILM to a directory of sentence-transformers/all-MiniLM-L6-v2"]
fn real_minilm_embeds_as_sentence_transformers_does() {
    let directory = std::env::var("LORA_MINILM");
    let directory = directory.expect("LORA_MINILM, the directory of all-MiniLM-L6-v2");
    let auto = models::auto(&directory, &Options::new()).unwrap();
    let created = auto.into_encoder().unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/minilm/embeddings.safetensors");
    let io = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let inputs = Inputs::new(&io["ids"]).mask(&io["mask"]);
    let embeddings = created.model.embed(&inputs, false).unwrap();
    let expected = &io["embeddings"];
    let cosines = (embeddings * expected).unwrap().sum(1).unwrap();
    let cosines = values(&cosines).unwrap();
    println!("cosines with sentence-transformers: {cosines:.9?}");
    assert_eq!(cosines.len(), 8);
    for cosine in cosines {
        assert!((0.999_999..1.000_001).contains(&cosine), "{cosine}");
    }
}
