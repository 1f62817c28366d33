//! Conversion: what the configuration selects, what it refuses, and what carries over.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module};
use lora::{
    LORA_WEIGHT_NAMES, LoraConfig, LoraModel, LoraModule, TrainBias, WithLora, transfer_weights,
};
use lora_tests::{fill_adapters, fixed, values};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const F32: DType = DType::F32;

fn linear(seed: usize) -> Linear {
    Linear::new(fixed((4, 4), F32, seed), Some(fixed(4, F32, seed + 1)))
}

type Layers = BTreeMap<&'static str, (Vec<BTreeMap<&'static str, Linear>>, LayerNorm)>;

/// Paths `net.0.{0,1}.{fc1,fc2}` and a norm at `net.1`.
fn model() -> Layers {
    let block = |seed| BTreeMap::from([("fc1", linear(seed)), ("fc2", linear(seed + 7))]);
    let norm = LayerNorm::new(fixed(4, F32, 1), fixed(4, F32, 2), 1e-5);
    BTreeMap::from([("net", (vec![block(1), block(20)], norm))])
}

/// The paths of layers with an adapter, with rank and alpha.
fn adapted(config: &LoraConfig) -> Vec<(String, usize, f64)> {
    let summary = model().to_lora(config).unwrap().summary();
    let ranks: Vec<_> = summary
        .rows
        .into_iter()
        .filter_map(|row| Some((row.path, row.rank?)))
        .collect();
    let model = model().to_lora(config).unwrap();
    let alphas = model["net"].0.iter().flat_map(|block| {
        block
            .values()
            .filter_map(|layer| Some(layer.adapters().iter().next()?.settings().alpha))
    });
    ranks
        .into_iter()
        .zip(alphas)
        .map(|((path, rank), alpha)| (path, rank, alpha))
        .collect()
}

fn refused(config: LoraConfig) -> String {
    model().to_lora(&config).unwrap_err().to_string()
}

#[test]
fn targets_excludes_and_patterns() {
    let config = LoraConfig::new(2).target_modules(["fc1"]);
    assert_eq!(
        adapted(&config),
        [
            ("net.0.0.fc1".into(), 2, 2.0),
            ("net.0.1.fc1".into(), 2, 2.0)
        ]
    );
    let config = LoraConfig::new(2)
        .target_modules(r".*\.1\.fc\d")
        .exclude_modules(["1.fc2"]);
    assert_eq!(adapted(&config), [("net.0.1.fc1".into(), 2, 2.0)]);
    let config = LoraConfig::new(2)
        .alpha(5.0)
        .target_modules(["fc1", "fc2"])
        .rank_pattern(r"1\.fc\d", 3)
        .rank_pattern("fc2", 4)
        .alpha_pattern("^net.0.0.fc1", 1.5);
    let expected = [
        ("net.0.0.fc1".to_string(), 2, 1.5),
        ("net.0.0.fc2".into(), 4, 5.0),
        ("net.0.1.fc1".into(), 3, 5.0),
        ("net.0.1.fc2".into(), 3, 5.0),
    ];
    assert_eq!(adapted(&config), expected);
    // What is trained in full is no target.
    let config = LoraConfig::new(2)
        .target_modules(["fc1"])
        .modules_to_save(["net.0.1"]);
    assert_eq!(adapted(&config), [("net.0.0.fc1".into(), 2, 2.0)]);
}

#[test]
fn every_problem_of_a_configuration_is_listed() {
    let error = refused(
        LoraConfig::new(0)
            .alpha(f64::NAN)
            .dropout(1.0)
            .rank_pattern("fc1", 0),
    );
    for problem in [
        "rank is 0",
        "alpha is NaN",
        "dropout is 1",
        "rank_pattern `fc1` is 0",
    ] {
        assert!(error.contains(problem), "{problem} in {error}");
    }
    let error = refused(
        LoraConfig::new(2)
            .target_modules(["fc1", "q_proj"])
            .exclude_modules(["nothing"])
            .modules_to_save(["head"])
            .rank_pattern("fc9", 3)
            .alpha_pattern("fc8", 3.0),
    );
    for problem in [
        "target_modules `q_proj` matches nothing",
        "exclude_modules `nothing` matches nothing",
        "modules_to_save `head` matches nothing",
        "rank_pattern `fc9` matches nothing",
        "alpha_pattern `fc8` matches nothing",
        "the model has: net.*.*.fc1 (Linear), net.*.*.fc2 (Linear), net.* (LayerNorm)",
    ] {
        assert!(error.contains(problem), "{problem} in {error}");
    }
}

#[test]
fn what_takes_no_adapter_is_refused() {
    let error = refused(LoraConfig::new(2).target_modules(["net.1"]));
    assert!(
        error.contains("`net.1` is a LayerNorm, which takes no adapter"),
        "{error}"
    );
    let error = refused(LoraConfig::new(2).target_modules(["net.0.0"]));
    assert!(
        error.contains("`net.0.0`, which is a module that holds layers"),
        "{error}"
    );
    let error = refused(LoraConfig::new(2).target_modules("("));
    assert!(error.contains("target_modules `(`"), "{error}");
    let error = refused(LoraConfig::new(2));
    assert!(error.contains("nothing is adapted or trained"), "{error}");
    // A pattern that would backtrack for ever is an error too.
    let error = refused(LoraConfig::new(2).target_modules(r"(?:(.)\1?|..?)*(?=.*fc1$)\d{99}"));
    assert!(error.contains("target_modules"), "{error}");
}

#[test]
fn frozen_weights_are_shared_and_trained_ones_copied() {
    let base = model();
    let config = LoraConfig::new(2)
        .target_modules(["fc1"])
        .modules_to_save(["net.0.1.fc2"]);
    let model = base.to_lora(&config).unwrap();
    let id = |layers: &Layers, i: usize, name: &str| layers["net"].0[i][name].weight().id();
    assert_eq!(model["net"].0[0]["fc1"].weight().id(), id(&base, 0, "fc1"));
    let trained = model["net"].0[1]["fc2"].weight();
    assert!(trained.is_variable() && trained.id() != id(&base, 1, "fc2"));
    let names: Vec<String> = model.named_params().into_iter().map(|p| p.path).collect();
    assert_eq!(
        names[..4],
        [
            "net.0.0.fc1.weight",
            "net.0.0.fc1.bias",
            "net.0.0.fc1.lora_A.default.weight",
            "net.0.0.fc1.lora_B.default.weight"
        ]
    );
    assert_eq!(
        model.trainable_vars().len() + model.non_trainable().len(),
        names.len()
    );
    assert_eq!(model.trainable_vars().len(), 2 * 2 + 2);
    // Training does not reach the base model, nor the base model that came back.
    let back = model.to_base().unwrap();
    for var in model.trainable_vars() {
        var.set(&var.ones_like().unwrap().detach()).unwrap();
    }
    let weight = |layers: &Layers| values(layers["net"].0[1]["fc2"].weight()).unwrap();
    assert_eq!(weight(&base), values(&fixed((4, 4), F32, 27)).unwrap());
    assert_eq!(weight(&back), weight(&base));
}

#[test]
fn a_base_model_made_of_variables_is_frozen() {
    let vars = candle_nn::VarMap::new();
    let vb = candle_nn::VarBuilder::from_varmap(&vars, F32, &Device::Cpu);
    let base = vec![candle_nn::linear(3, 2, vb).unwrap()];
    let model = base
        .to_lora(&LoraConfig::new(1).target_modules(["0"]))
        .unwrap();
    assert_eq!(model.trainable_vars().len(), 2);
    let y = model[0].forward(&fixed((2, 3), F32, 1)).unwrap();
    let grads = model.backward(&y.sum_all().unwrap()).unwrap();
    assert!(vars.all_vars().iter().all(|var| grads.get(var).is_none()));
}

#[test]
fn tied_weights_stay_tied_and_count_once() {
    let table = fixed((5, 4), F32, 1);
    let tied = (Embedding::new(table.clone(), 4), Linear::new(table, None));
    let config = LoraConfig::new(1).target_modules(["0"]);
    let model = tied.to_lora(&config).unwrap();
    let summary = model.summary();
    assert_eq!((summary.total, summary.trainable), (20 + 5 + 4, 9));
    assert_eq!(summary.rows[1].tied_to.as_deref(), Some("0.weight"));
    assert!(summary.to_string().contains("= 0.weight"));
    for other in [
        model.to_dtype(DType::F64).unwrap(),
        model.to_device(&Device::Cpu).unwrap(),
    ] {
        assert_eq!(other.0.embeddings().id(), other.1.weight().id());
        assert_eq!(other.summary().total, 29);
    }
    assert_eq!(model.to_base().unwrap().0.embeddings().dims(), [5, 4]);
}

#[test]
fn casting_keeps_what_the_model_computes() {
    let config = LoraConfig::new(2)
        .target_modules(["fc1"])
        .train_bias(TrainBias::All);
    let mut model = model().to_lora(&config).unwrap();
    fill_adapters(&model);
    LoraModule::merge(&mut model).unwrap();
    let wide = model.to_dtype(DType::F64).unwrap();
    assert!(wide.is_merged() && model.is_merged());
    let (narrow, wide) = (&model["net"].0[0]["fc1"], &wide["net"].0[0]["fc1"]);
    let x = fixed((2, 4), F32, 3);
    let expected = narrow.forward(&x).unwrap();
    let actual = wide.forward(&x.to_dtype(DType::F64).unwrap()).unwrap();
    lora_tests::assert_close("f64", &actual, &expected, 1e-6);
    assert!(wide.bias().unwrap().is_variable());
    // A half base has f32 adapters.
    let half = model.to_dtype(DType::BF16).unwrap();
    let params = half.named_params();
    let adapter = params.iter().find(|p| p.path.contains("lora_A")).unwrap();
    assert_eq!(adapter.tensor.dtype(), F32);
}

#[test]
fn transfer_is_strict_and_can_ignore() {
    let config = LoraConfig::new(2).target_modules(["fc1"]);
    let src = model().to_lora(&config).unwrap();
    fill_adapters(&src);
    let zeros = || {
        let block = || BTreeMap::from([("fc1", zero()), ("fc2", zero())]);
        let norm = LayerNorm::new(fixed(4, F32, 5), fixed(4, F32, 5), 1e-5);
        BTreeMap::from([("net", (vec![block(), block()], norm))])
    };
    fn zero() -> Linear {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, F32, &Device::Cpu).unwrap();
        Linear::new(zeros(&[4, 4]), Some(zeros(&[4])))
    }
    let all = |m: &<Layers as LoraModel>::Lora| -> Vec<Vec<f64>> {
        m.named_params()
            .iter()
            .map(|p| values(&p.tensor).unwrap())
            .collect()
    };
    let mut dst = zeros().to_lora(&config).unwrap();
    transfer_weights(&src, &mut dst, &[]).unwrap();
    assert_eq!(all(&dst), all(&src));

    // Into the base model and back, without the adapters.
    let mut base = zeros().to_frozen().unwrap();
    let error = transfer_weights(&src, &mut base, &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("unexpected: net.0.0.fc1.lora_A.default.weight"),
        "{error}"
    );
    assert!(
        values(base["net"].0[0]["fc1"].weight())
            .unwrap()
            .iter()
            .all(|&w| w == 0.0)
    );
    transfer_weights(&src, &mut base, LORA_WEIGHT_NAMES).unwrap();
    assert_eq!(all(&base), all(&model().to_frozen().unwrap()));
    let mut again = zeros().to_lora(&config).unwrap();
    transfer_weights(&base, &mut again, LORA_WEIGHT_NAMES).unwrap();

    // Trained values are copied, both ways.
    let var = src.trainable_vars().remove(0);
    var.set(&var.zeros_like().unwrap()).unwrap();
    assert_ne!(all(&dst), all(&src));

    let mut other = vec![linear(1)].to_frozen().unwrap();
    let small = vec![Linear::new(fixed((3, 4), F32, 1), None)]
        .to_frozen()
        .unwrap();
    let error = transfer_weights(&small, &mut other, &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("shape of 0.weight: [3, 4] where the model has [4, 4]"),
        "{error}"
    );
    assert!(error.contains("missing: 0.bias"), "{error}");
    assert!(transfer_weights(&small, &mut other, &["("]).is_err());
    transfer_weights(&small, &mut other, &["0"]).unwrap();
    let mut merged = src.clone();
    LoraModule::merge(&mut merged).unwrap();
    assert!(transfer_weights(&src, &mut merged, &[]).is_err());
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetConfig {
    width: usize,
    #[serde(default)]
    eps: f64,
}

#[test]
fn the_config_superset_parses_both_ways() {
    let base = r#"{"width": 3, "eps": 1e-6}"#;
    let config: WithLora<NetConfig> = serde_json::from_str(base).unwrap();
    assert_eq!((config.width, config.eps), (3, 1e-6));
    assert_eq!(config.lora(), &LoraConfig::default());

    let lora = LoraConfig::new(3)
        .alpha(1.5)
        .target_modules(["fc1"])
        .rank_pattern("z", 1)
        .rank_pattern("a", 2)
        .train_bias(TrainBias::LoraOnly)
        .seed(9);
    let config = WithLora::new(NetConfig { width: 2, eps: 0.5 }, lora);
    let json = serde_json::to_string(&config).unwrap();
    for key in [
        r#""width":2"#,
        r#""lora_rank":3"#,
        r#""lora_alpha":1.5"#,
        r#""lora_train_bias":"lora_only""#,
    ] {
        assert!(json.contains(key), "{key} in {json}");
    }
    assert_eq!(
        serde_json::from_str::<WithLora<NetConfig>>(&json).unwrap(),
        config
    );
    // Patterns keep their order, as the first that matches wins.
    let keys = config.lora().rank_pattern.keys();
    assert_eq!(keys.collect::<Vec<_>>(), ["z", "a"]);

    let wrong = r#"{"width": 3, "lora_rnak": 2}"#;
    let error = serde_json::from_str::<WithLora<NetConfig>>(wrong)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("unknown field `lora_rnak`") && error.contains("lora_rank"),
        "{error}"
    );
    assert!(serde_json::from_str::<WithLora<NetConfig>>(r#"{"lora_rank": 2}"#).is_err());
}

#[test]
fn errors_become_candle_errors() {
    fn convert() -> candle_core::Result<()> {
        vec![linear(1)].to_lora(&LoraConfig::new(0))?;
        Ok(())
    }
    assert!(convert().unwrap_err().to_string().contains("rank is 0"));
}

#[test]
fn layers_of_one_name_are_refused() {
    #[derive(Clone, Debug, LoraModel)]
    struct Twice {
        #[lora(rank)]
        fc: Linear,
        #[lora(name = "fc")]
        other: Linear,
    }
    let twice = Twice {
        fc: linear(1),
        other: linear(3),
    };
    let error = twice.to_lora(&LoraConfig::new(2)).unwrap_err().to_string();
    assert!(error.contains("two layers are called `fc`"), "{error}");
    assert!(twice.to_frozen().is_err());
}

#[test]
fn only_a_lone_layer_is_its_own_target() {
    #[derive(Clone, Debug, LoraModel)]
    struct Flat {
        #[lora(flatten)]
        base: Linear,
        #[lora(rank)]
        fc: Linear,
    }
    let model = Flat {
        base: linear(1),
        fc: linear(3),
    }
    .to_lora(&LoraConfig::new(2))
    .unwrap();
    assert!(model.base.adapters().is_empty() && !model.fc.adapters().is_empty());
    assert_eq!(
        linear(1)
            .to_lora(&LoraConfig::new(2))
            .unwrap()
            .trainable_vars()
            .len(),
        2
    );
}

#[test]
fn what_is_excluded_or_trained_still_counts_as_matched() {
    let config = LoraConfig::new(2).target_modules(["fc1", "0.1.fc2"]);
    assert_eq!(
        adapted(&config.clone().exclude_modules(["0.1.fc2"])).len(),
        2
    );
    assert_eq!(adapted(&config.modules_to_save(["0.1.fc2"])).len(), 2);
}

#[test]
fn settings_by_hand_are_checked() {
    #[derive(Clone, Debug)]
    struct Net(Linear);
    #[derive(Clone, Debug)]
    struct LoraNet(lora::layers::LoraLinear);
    impl LoraModel for Net {
        type Lora = LoraNet;
        fn adapt(&self, cx: &mut lora::Builder<'_>) -> lora::Result<LoraNet> {
            let mark = lora::Mark::rank_of(0, Some(f64::NAN), Some(2.0));
            Ok(LoraNet(cx.marked("fc", mark, &self.0)?))
        }
    }
    impl LoraModule for LoraNet {
        type Base = Net;
        fn to_base(&self) -> lora::Result<Net> {
            Ok(Net(self.0.to_base()?))
        }
        fn visit(&self, cursor: &mut lora::Cursor<'_>) {
            cursor.field("fc", &self.0);
        }
        fn visit_mut(&mut self, cursor: &mut lora::CursorMut<'_>) {
            cursor.field("fc", &mut self.0);
        }
    }
    let error = Net(linear(1))
        .to_lora(&LoraConfig::new(2))
        .unwrap_err()
        .to_string();
    for problem in [
        "`fc`: rank is 0",
        "`fc`: alpha is NaN",
        "`fc`: dropout is 2",
    ] {
        assert!(error.contains(problem), "{problem} in {error}");
    }
}

#[test]
fn transfer_keeps_ties_and_refuses_merged_models() {
    let table = fixed((5, 4), F32, 1);
    let tied = (Embedding::new(table.clone(), 4), Linear::new(table, None));
    let mut dst = tied.to_frozen().unwrap().to_dtype(DType::F64).unwrap();
    transfer_weights(&tied.to_frozen().unwrap(), &mut dst, &[]).unwrap();
    assert_eq!(dst.summary().total, 20);
    let mut src = linear(1).to_lora(&LoraConfig::new(2)).unwrap();
    let mut dst = src.clone();
    src.merge().unwrap();
    let error = transfer_weights(&src, &mut dst, &[])
        .unwrap_err()
        .to_string();
    assert!(error.contains("merged"), "{error}");
    assert_eq!(src.summary(), dst.summary());
}

#[test]
fn errors_of_the_way_back_name_the_layer() {
    let config = LoraConfig::new(2).target_modules(["fc1"]);
    let model = model().to_lora(&config).unwrap();
    for var in model.trainable_vars() {
        var.set(&Tensor::full(f32::NAN, var.shape(), &Device::Cpu).unwrap())
            .unwrap();
    }
    let error = model.to_base().unwrap_err().to_string();
    assert!(
        error.starts_with("net.0.0.fc1: the merged weight is not finite"),
        "{error}"
    );
}

#[test]
fn a_trained_tensor_is_saved_under_its_own_name() {
    let net = || BTreeMap::from([("cls", fixed(3, F32, 4))]);
    let base = (net(), linear(1));
    let config = LoraConfig::new(1)
        .target_modules(["1"])
        .modules_to_save(["cls"]);
    let model = base.to_lora(&config).unwrap();
    for var in model.trainable_vars() {
        var.set(&var.ones_like().unwrap().detach()).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    model.save_adapter(directory.path()).unwrap();
    let mut loaded = base.to_lora(&config).unwrap();
    loaded.load_adapter(directory.path()).unwrap();
    assert_eq!(values(&loaded.0["cls"]).unwrap(), [1.0; 3]);
    let described = base.with_adapter(directory.path()).unwrap();
    assert_eq!(values(&described.0["cls"]).unwrap(), [1.0; 3]);
}
