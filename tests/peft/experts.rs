//! Adapters of experts: of older versions of PEFT, and for weights that are joined or not.

use super::models::{Twin, forward};
use super::support::*;
use crate::matrix::twins::Moe;
use candle_core::{Device, Module, Tensor};
use candle_nn::Linear;
use lora::layers::Weight;
use lora::peft::{AdapterDir, MergeOptions, merge_checkpoint, merge_checkpoint_with};
use lora::{Init, LoraConfig, LoraModel, LoraModule};
use serde_json::json;
use std::path::Path;

fn refused<T>(result: lora::Result<T>, words: &[&str]) {
    let problem = result.err().expect("refused").to_string();
    for word in words {
        assert!(problem.contains(word), "no `{word}` in: {problem}");
    }
}

/// Files of PEFT 0.18.1, of which those with square weights do not tell by their shapes.
#[test]
fn files_of_older_versions() -> Result {
    for case in ["old_experts", "old_experts_square"] {
        let fixture = Fixture::new(&format!("elsewhere/{case}"));
        let (input, expected) = (fixture.input(), fixture.io.get("output"));
        assert!(error(&fixture.io.get("base_output"), &expected) > 0.05);
        let base = Moe::new(&fixture.base);
        let model = base.with_adapter(fixture.adapter())?;
        assert!(error(&model.forward(&input)?, &expected) <= 1e-5, "{case}");

        // What is saved is in the present layout, and says so.
        let saved = tempfile::tempdir()?;
        model.save_adapter(saved.path())?;
        assert_eq!(read_config(saved.path())["peft_version"], "0.21.2");
        let again = base.with_adapter(saved.path())?;
        assert!(error(&again.forward(&input)?, &expected) <= 1e-5, "{case}");

        let out = saved.path().join("merged.safetensors");
        let order = MergeOptions::new().parameter_order(["up", "down"]);
        let path = fixture.dir.join("base.safetensors");
        merge_checkpoint_with(path, fixture.adapter(), &out, &order)?;
        let merged = Moe::new(&Weights::read(out));
        assert!(error(&merged.forward(&input)?, &expected) <= 1e-5, "{case}");
    }
    Ok(())
}

#[test]
fn without_a_version_the_caller_is_asked() -> Result {
    let fixture = Fixture::new("elsewhere/old_experts_square");
    let mut files = Files::read(&fixture.adapter());
    let base = Moe::new(&fixture.base);
    let dir = tempfile::tempdir()?;
    for version in [json!(null), json!("0.19.0")] {
        files.config["peft_version"] = version;
        files.write(dir.path());
        let words = [
            "the experts of `experts.up` are square",
            "AdapterDir::new(dir).old_experts(true) or old_experts(false)",
        ];
        refused(base.with_adapter(dir.path()), &words);
    }
    let output = |old| {
        let model = base.with_adapter(AdapterDir::new(dir.path()).old_experts(old));
        model.unwrap().forward(&fixture.input()).unwrap()
    };
    let expected = fixture.io.get("output");
    assert!(error(&output(true), &expected) <= 1e-5);
    assert!(error(&output(false), &expected) > 0.05);
    Ok(())
}

const EXPERTS: usize = 3;
const WIDTH: usize = 4;
const HIDDEN: usize = 5;

/// Joined weights: (experts, 2 · hidden, width) and (experts, width, hidden).
#[derive(Clone, Debug, LoraModel)]
struct Joined {
    gate_up_proj: Weight,
    down_proj: Weight,
}

#[derive(Clone, Debug, LoraModel)]
struct JoinedMlp {
    experts: Joined,
}

#[derive(Clone, Debug, LoraModel)]
struct JoinedNet {
    mlp: JoinedMlp,
}

forward!(JoinedNet, LoraJoinedNet, |self, xs| {
    let experts = &self.mlp.experts;
    let xs = xs.broadcast_left(EXPERTS)?.contiguous()?;
    let both = xs.matmul(&experts.gate_up_proj.tensor()?.t()?)?;
    let (gate, up) = (both.narrow(2, 0, HIDDEN)?, both.narrow(2, HIDDEN, HIDDEN)?);
    let hidden = (gate.contiguous()?.silu()? * up)?;
    hidden.matmul(&experts.down_proj.tensor()?.t()?)?.sum(0)
});

#[derive(Clone, Debug, LoraModel)]
struct Expert {
    #[lora(name = "gate_proj")]
    gate: Linear,
    #[lora(name = "up_proj")]
    up: Linear,
    #[lora(name = "down_proj")]
    down: Linear,
}

#[derive(Clone, Debug, LoraModel)]
struct SplitMlp {
    experts: Vec<Expert>,
}

#[derive(Clone, Debug, LoraModel)]
struct SplitNet {
    mlp: SplitMlp,
}

forward!(SplitNet, LoraSplitNet, |self, xs| {
    let mut sum = xs.zeros_like()?;
    for expert in &self.mlp.experts {
        let hidden = (xs.apply(&expert.gate)?.silu()? * xs.apply(&expert.up)?)?;
        sum = (sum + hidden.apply(&expert.down)?)?;
    }
    Ok(sum)
});

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 0.5, shape, &Device::Cpu).unwrap()
}

/// The same model twice, and its weights under the names of both.
fn nets() -> (JoinedNet, SplitNet, [Weights; 2]) {
    let gate_up = random(&[EXPERTS, 2 * HIDDEN, WIDTH]);
    let down = random(&[EXPERTS, WIDTH, HIDDEN]);
    let part = |tensor: &Tensor, expert: usize, from: usize, count: usize| {
        let part = tensor.get(expert).unwrap().narrow(0, from, count).unwrap();
        part.contiguous().unwrap()
    };
    let mut experts = Vec::new();
    let mut single = Weights(Default::default());
    for e in 0..EXPERTS {
        let parts = [
            ("gate_proj", part(&gate_up, e, 0, HIDDEN)),
            ("up_proj", part(&gate_up, e, HIDDEN, HIDDEN)),
            ("down_proj", part(&down, e, 0, WIDTH)),
        ];
        for (name, tensor) in &parts {
            single
                .0
                .insert(format!("mlp.experts.{e}.{name}.weight"), tensor.clone());
        }
        let [gate, up, down] = parts.map(|(_, tensor)| Linear::new(tensor, None));
        experts.push(Expert { gate, up, down });
    }
    let mut joined = Weights(Default::default());
    joined
        .0
        .insert("mlp.experts.gate_up_proj".into(), gate_up.clone());
    joined
        .0
        .insert("mlp.experts.down_proj".into(), down.clone());
    let net = JoinedNet {
        mlp: JoinedMlp {
            experts: Joined {
                gate_up_proj: Weight::new(gate_up).unwrap(),
                down_proj: Weight::new(down).unwrap(),
            },
        },
    };
    let split = SplitNet {
        mlp: SplitMlp { experts },
    };
    (net, split, [joined, single])
}

fn write(weights: &Weights, path: &Path) {
    std::fs::write(path, safetensors::serialize(&weights.0, None).unwrap()).unwrap();
}

#[test]
fn an_adapter_of_joined_weights_for_single_experts() -> Result {
    let (joined, split, [_, single]) = nets();
    let dir = tempfile::tempdir()?;
    for names in [
        &["gate_up_proj", "down_proj"][..],
        &["gate_up_proj"],
        &["down_proj"],
    ] {
        let config = LoraConfig::new(2)
            .target_parameters(names.iter().copied())
            .init(Init::Random);
        let config = match names.contains(&"down_proj") {
            true => config.alpha_pattern("experts.down_proj", 3.0),
            false => config,
        };
        let mut model = joined.to_lora(&config)?;
        model.eval();
        let adapter = dir.path().join("adapter");
        model.save_adapter(&adapter)?;
        let xs = random(&[6, WIDTH]);
        let expected = model.forward(&xs)?;
        assert!(error(&joined.forward(&xs)?, &expected) > 0.01);
        let loaded = split.with_adapter(&adapter)?;
        assert!(error(&loaded.forward(&xs)?, &expected) <= 1e-5, "{names:?}");

        let (base, out) = (
            dir.path().join("base.safetensors"),
            dir.path().join("out.safetensors"),
        );
        write(&single, &base);
        merge_checkpoint(&base, &adapter, &out)?;
        let merged = Weights::read(&out);
        let experts = (0..EXPERTS).map(|e| {
            let linear = |name: &str| merged.linear(&format!("mlp.experts.{e}.{name}"));
            Expert {
                gate: linear("gate_proj"),
                up: linear("up_proj"),
                down: linear("down_proj"),
            }
        });
        let merged = SplitNet {
            mlp: SplitMlp {
                experts: experts.collect(),
            },
        };
        assert!(error(&merged.forward(&xs)?, &expected) <= 1e-5, "{names:?}");
    }
    Ok(())
}

#[test]
fn adapters_of_single_experts_for_joined_weights() -> Result {
    let (joined, split, [weights, _]) = nets();
    let dir = tempfile::tempdir()?;
    for names in [
        &["gate_proj", "up_proj", "down_proj"][..],
        &["up_proj"],
        &["down_proj"],
    ] {
        let mut config = LoraConfig::new(2)
            .alpha(3.0)
            .target_modules(names.to_vec())
            .init(Init::Random);
        if names.len() == 3 {
            // Not all have the same rank and strength.
            config = config
                .rank_pattern(r"experts\.1\.up_proj", 3)
                .alpha_pattern(r"experts\.2\.gate_proj", 5.0)
                .use_rslora(true);
        }
        let mut model = split.to_lora(&config)?;
        model.eval();
        let adapter = dir.path().join("adapter");
        model.save_adapter(&adapter)?;
        let xs = random(&[6, WIDTH]);
        let expected = model.forward(&xs)?;
        assert!(error(&split.forward(&xs)?, &expected) > 0.01);
        let loaded = joined.with_adapter(&adapter)?;
        assert!(error(&loaded.forward(&xs)?, &expected) <= 1e-5, "{names:?}");

        let (base, out) = (
            dir.path().join("base.safetensors"),
            dir.path().join("out.safetensors"),
        );
        write(&weights, &base);
        merge_checkpoint(&base, &adapter, &out)?;
        let merged = Weights::read(&out);
        let weight = |name: &str| Weight::new(merged.get(&format!("mlp.experts.{name}"))).unwrap();
        let experts = Joined {
            gate_up_proj: weight("gate_up_proj"),
            down_proj: weight("down_proj"),
        };
        let merged = JoinedNet {
            mlp: JoinedMlp { experts },
        };
        assert!(error(&merged.forward(&xs)?, &expected) <= 1e-5, "{names:?}");
    }
    Ok(())
}

/// Names of published checkpoints that differ in the middle have a way through.
#[test]
fn other_names_of_a_mixture_need_a_rename() -> Result {
    let (joined, _, [_, single]) = nets();
    let dir = tempfile::tempdir()?;
    let config = LoraConfig::new(2)
        .target_parameters(["gate_up_proj", "down_proj"])
        .init(Init::Random);
    let mut model = joined.to_lora(&config)?;
    model.eval();
    model.save_adapter(dir.path().join("adapter"))?;
    let (base, out) = (
        dir.path().join("base.safetensors"),
        dir.path().join("out.safetensors"),
    );
    let names = [
        ("mlp", "block_sparse_moe"),
        ("gate_proj", "w1"),
        ("up_proj", "w3"),
        ("down_proj", "w2"),
    ];
    let renamed = single.0.into_iter().map(|(name, tensor)| {
        let rename = |name: String, (from, to): &(&str, &str)| name.replace(from, to);
        (names.iter().fold(name, rename), tensor)
    });
    write(&Weights(renamed.collect()), &base);
    let adapter = dir.path().join("adapter");
    refused(
        merge_checkpoint(&base, &adapter, &out),
        &["AdapterDir::new(dir).rename("],
    );
    let named = AdapterDir::new(adapter)
        .report(|_| {})
        .rename("mlp", "block_sparse_moe");
    merge_checkpoint(&base, named, &out)?;
    let merged = Weights::read(&out);
    let xs = random(&[6, WIDTH]);
    let experts = (0..EXPERTS).map(|e| {
        let linear = |name: &str| merged.linear(&format!("block_sparse_moe.experts.{e}.{name}"));
        Expert {
            gate: linear("w1"),
            up: linear("w3"),
            down: linear("w2"),
        }
    });
    let merged = SplitNet {
        mlp: SplitMlp {
            experts: experts.collect(),
        },
    };
    assert!(error(&merged.forward(&xs)?, &model.forward(&xs)?) <= 1e-5);
    Ok(())
}
