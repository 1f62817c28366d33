//! What a configuration selects, and what it refuses.

use super::{linear, model};
use candle_nn::Linear;
use lora::{LoraConfig, LoraModel, LoraModule, TrainBias, WithLora};
use serde::{Deserialize, Serialize};

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
            .dropout(1.5)
            .rank_pattern("fc1", 0),
    );
    for problem in [
        "rank is 0",
        "alpha is NaN",
        "dropout is 1.5",
        "rank_pattern `fc1` is 0",
    ] {
        assert!(error.contains(problem), "{problem} in {error}");
    }
    // A file may say so, as PEFT allows it. Fresh, such an adapter would learn nothing.
    let error = refused(LoraConfig::new(2).target_modules(["fc1"]).dropout(1.0));
    assert!(
        error.contains("`net.0.0.fc1`: dropout is 1, so that nothing"),
        "{error}"
    );
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
