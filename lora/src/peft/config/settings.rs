//! From `adapter_config.json` to the settings of a LoRA model, and back.

use crate::adapter::Part;
use crate::peft::config::adapter_config::{InitWeights, OneOrMany, TokenIndices};
use crate::peft::config::parse::{is_off, show};
use crate::peft::tensors::Tensors;
use crate::peft::{AdapterConfig, CONFIG_FILE, keys};
use crate::{Error, Init, LoftqConfig, LoraConfig, Result, Targets};
use serde::Deserialize;
use serde::de::value::{Error as NameError, StrDeserializer};
use serde_json::Value;
use std::path::Path;

impl AdapterConfig {
    /// The settings for a new LoRA model. See also [`LoraConfig::from_pretrained`]. The settings of
    /// initial values (`eva_config` and the like) keep their defaults, except LoftQ settings that
    /// this crate wrote.
    ///
    /// # Errors
    /// Lists what does not run here: activated LoRA, Arrow, BD-LoRA, KaSA, Megatron, MonteCLoRA,
    /// QALoRA, VeLoRA and replicated layers, each unless it is switched off; an initial value that
    /// is not known; targets that the file does not name; numbers of layers without a list of
    /// names.
    pub fn to_lora_config(&self) -> Result<LoraConfig> {
        self.lora_config().map_err(Error::Config)
    }

    /// As [`to_lora_config`](Self::to_lora_config), with the bare problems.
    pub(in crate::peft) fn lora_config(&self) -> Result<LoraConfig, Vec<String>> {
        let mut problems = self.foreign();
        problems.extend(self.contradictions());
        let init = self.init_lora_weights.to_init();
        let init = init.map_err(|problem| problems.push(problem));
        let Ok(init) = init else {
            return Err(problems);
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut config = LoraConfig::new(self.r)
            .alpha(self.lora_alpha)
            .dropout(self.lora_dropout)
            .train_bias(self.bias)
            .use_rslora(self.use_rslora)
            .use_dora(self.use_dora)
            .lora_bias(self.lora_bias)
            .init(init)
            .ensure_weight_tying(self.ensure_weight_tying)
            .modules_to_save(self.modules_to_save.iter().flatten())
            .target_parameters(self.target_parameters.iter().flatten());
        config.target_modules = self.target_modules.clone();
        config.exclude_modules = self.exclude_modules.clone();
        config.rank_pattern = self.rank_pattern.clone();
        config.alpha_pattern = self.alpha_pattern.clone();
        let numbers = self.layers_to_transform.as_ref();
        config.layers_to_transform = numbers.map(OneOrMany::to_vec).unwrap_or_default();
        let lists = self.layers_pattern.as_ref();
        config.layers_pattern = lists.map(OneOrMany::to_vec).unwrap_or_default();
        if let Some(loftq) = self.loftq() {
            config.loftq_config = loftq;
        }
        let tokens = self.trainable_token_indices.as_ref();
        config.trainable_token_indices = tokens.map(TokenIndices::to_modules).unwrap_or_default();
        Ok(config)
    }

    /// How the base was quantised, if the file says so in this crate's terms. PEFT quantises with
    /// bitsandbytes.
    pub(in crate::peft) fn loftq(&self) -> Option<LoftqConfig> {
        self.loftq_config.get("quantiser")?;
        serde_json::from_value(self.loftq_config.clone()).ok()
    }

    /// Records how the base was quantised, so that loading quantises it again.
    pub(in crate::peft) fn set_loftq(&mut self, loftq: &LoftqConfig) -> Result<(), String> {
        self.loftq_config = serde_json::to_value(loftq).map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Records how the adapter started, so that loading makes the same residual base again, or leaves
    /// MiCA's B untrained.
    pub(in crate::peft) fn set_start(&mut self, start: Init) {
        self.init_lora_weights = InitWeights::from_init(start);
    }

    /// The file for these settings, as PEFT would write it.
    ///
    /// [`recompute`](LoraConfig::recompute), [`seed`](LoraConfig::seed) and the settings of initial
    /// values ([`eva_config`](LoraConfig::eva_config) and the like) are left out: they do not
    /// change what a trained adapter computes.
    ///
    /// # Errors
    /// If neither target modules nor target parameters are named, as PEFT then guesses; or if the
    /// settings are [not valid](LoraConfig::validate).
    pub fn from_lora_config(config: &LoraConfig) -> Result<Self> {
        config.validate()?;
        if config.target_modules.is_none() && config.target_parameters.is_empty() {
            return Err(Error::Config(vec![NO_TARGETS.into()]));
        }
        let list = |names: &[String]| (!names.is_empty()).then(|| names.to_vec());
        let mut file = Self::new();
        file.r = config.rank;
        file.lora_alpha = config.alpha;
        file.lora_dropout = config.dropout;
        file.bias = config.train_bias;
        file.use_rslora = config.use_rslora;
        file.use_dora = config.use_dora;
        file.lora_bias = config.lora_bias;
        file.ensure_weight_tying = config.ensure_weight_tying;
        file.target_modules = config.target_modules.clone();
        file.exclude_modules = config.exclude_modules.clone();
        file.rank_pattern = config.rank_pattern.clone();
        file.alpha_pattern = config.alpha_pattern.clone();
        file.modules_to_save = list(&config.modules_to_save);
        file.target_parameters = list(&config.target_parameters);
        file.layers_pattern = list(&config.layers_pattern).map(OneOrMany::Many);
        let numbers = &config.layers_to_transform;
        file.layers_to_transform = (!numbers.is_empty()).then(|| OneOrMany::Many(numbers.clone()));
        let mut tokens = config.trainable_token_indices.clone();
        tokens.sort_keys();
        file.trainable_token_indices =
            (!tokens.is_empty()).then_some(TokenIndices::Modules(tokens));
        file.init_lora_weights = InitWeights::from_init(config.init);
        Ok(file)
    }

    /// Features that do not run here and that the file switches on.
    pub(in crate::peft) fn foreign(&self) -> Vec<String> {
        let qalora = Value::Bool(self.use_qalora);
        let features = [
            (
                "alora_invocation_tokens",
                &self.alora_invocation_tokens,
                "activated LoRA",
            ),
            ("arrow_config", &self.arrow_config, "Arrow routing"),
            ("kasa_config", &self.kasa_config, "KaSA"),
            (
                "layer_replication",
                &self.layer_replication,
                "replicated layers",
            ),
            ("megatron_config", &self.megatron_config, "Megatron layers"),
            ("monteclora_config", &self.monteclora_config, "MonteCLoRA"),
            ("use_bdlora", &self.use_bdlora, "BD-LoRA"),
            ("use_qalora", &qalora, "QALoRA"),
            ("velora_config", &self.velora_config, "VeLoRA"),
        ];
        let on = features.into_iter().filter(|(_, value, _)| !is_off(value));
        on.map(|(key, value, what)| format!("`{key}` is {}: {what} is not supported", show(value)))
            .collect()
    }

    /// Settings that PEFT refuses, or resolves before it saves.
    fn contradictions(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let parameters = self.target_parameters.iter().flatten().next().is_some();
        let numbers = self.layers_to_transform.as_ref().map(OneOrMany::to_vec);
        let lists = self.layers_pattern.as_ref().map(OneOrMany::to_vec);
        let lists = lists.is_some_and(|lists| !lists.is_empty());
        match &self.target_modules {
            None if !parameters => problems.push(NO_TARGETS.into()),
            Some(Targets::Regex(_)) if numbers.is_some() || lists => problems.push(
                "`layers_to_transform` and `layers_pattern` need `target_modules` to be an array of \
                 names"
                    .into(),
            ),
            _ => {}
        }
        if lists && numbers.is_none() {
            problems.push("`layers_pattern` is of no use without `layers_to_transform`".into());
        }
        problems
    }
}

const NO_TARGETS: &str = "`target_modules` is null or missing: PEFT then looks the model up in a \
                          table; name the modules";

impl InitWeights {
    /// The initial value of this name.
    fn to_init(&self) -> Result<Init, String> {
        let name = match self {
            Self::Flag(true) => return Ok(Init::Default),
            Self::Flag(false) => return Ok(Init::Random),
            Self::Name(name) => name,
        };
        let own = Init::deserialize(StrDeserializer::<NameError>::new(name));
        match (name.as_str(), own) {
            // Names of this crate, which PEFT does not know.
            ("default" | "random", _) => {}
            (_, Ok(init)) => return Ok(init),
            _ => {}
        }
        let name = show(&Value::String(name.clone()));
        Err(format!(
            "`init_lora_weights` is {name}: it must be true, false or the name of an initial value"
        ))
    }

    fn from_init(init: Init) -> Self {
        match init {
            Init::Default => Self::Flag(true),
            Init::Random => Self::Flag(false),
            other => Self::Name(other.to_string()),
        }
    }
}

impl LoraConfig {
    /// The parts that an adapter may have beside A and B: for each its key, and whether it is set.
    pub(in crate::peft) fn parts(&self) -> [(&'static str, Part, bool); 2] {
        [
            ("use_dora", Part::Magnitude, self.use_dora),
            ("lora_bias", Part::Bias, self.lora_bias),
        ]
    }

    /// The settings of an adapter in PEFT's format, to train a new adapter with the same settings.
    ///
    /// # Errors
    /// Those of [`AdapterConfig::read`] and [`AdapterConfig::to_lora_config`].
    pub fn from_pretrained(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let file = AdapterConfig::read(dir)?;
        let failed = |problems| Error::File {
            path: dir.join(CONFIG_FILE),
            problems,
        };
        let mut config = file.lora_config().map_err(failed)?;
        // Where the weights are at hand, they name the embedding that a bare list of rows means.
        if let Ok(tensors) = Tensors::open(&dir.into()) {
            let named = tensors.name_rows(&file, &mut config, keys::is_embedding_path);
            named.map_err(|problem| failed(vec![problem]))?;
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainBias;

    fn parse(text: &str) -> AdapterConfig {
        super::super::parse::parse(text.as_bytes()).unwrap()
    }

    fn with(more: &str) -> AdapterConfig {
        parse(&format!(
            r#"{{"peft_type": "LORA", "target_modules": ["q"], "r": 2{more}}}"#
        ))
    }

    #[test]
    fn every_foreign_feature_is_kept_and_refused_by_name() {
        for (key, what, on) in [
            ("alora_invocation_tokens", "activated LoRA", "[1,2]"),
            ("arrow_config", "Arrow", "{\"top_k\":2}"),
            ("kasa_config", "KaSA", "{\"a\":1}"),
            ("layer_replication", "replicated", "[[0,4],[2,5]]"),
            ("megatron_config", "Megatron", "{\"a\":1}"),
            ("monteclora_config", "MonteCLoRA", "{\"a\":1}"),
            ("use_bdlora", "BD-LoRA", "{\"a\":1}"),
            ("use_qalora", "QALoRA", "true"),
            ("velora_config", "VeLoRA", "{\"a\":1}"),
        ] {
            let config = with(&format!(", \"{key}\": {on}"));
            let problems = config.lora_config().unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(key) && problems[0].contains(what));
            // Nothing of it is lost.
            let again: Value = serde_json::from_slice(&config.to_json().unwrap()).unwrap();
            assert_eq!(again[key].to_string(), on);
            if key != "use_qalora" {
                assert!(with(&format!(", \"{key}\": null")).lora_config().is_ok());
            }
        }
        let both = with(", \"use_qalora\": true, \"kasa_config\": {\"a\": 1}");
        assert_eq!(both.lora_config().unwrap_err().len(), 2);
    }

    #[test]
    fn initial_values() {
        for (text, init) in [
            ("true", Init::Default),
            ("false", Init::Random),
            ("\"gaussian\"", Init::Gaussian),
            ("\"eva\"", Init::Eva),
        ] {
            let config = with(&format!(", \"init_lora_weights\": {text}"));
            assert_eq!(config.lora_config().unwrap().init, init);
        }
        for name in ["default", "random", "pizza", ""] {
            let config = with(&format!(", \"init_lora_weights\": \"{name}\""));
            let problems = config.lora_config().unwrap_err();
            assert!(problems[0].contains("init_lora_weights"), "{problems:?}");
            assert!(!config.init_lora_weights.changes_base());
        }
        for name in [
            "pissa",
            "pissa_niter_16",
            "olora",
            "corda",
            "lora_ga",
            "loftq",
        ] {
            let config = with(&format!(", \"init_lora_weights\": \"{name}\""));
            assert!(config.init_lora_weights.changes_base());
        }
    }

    #[test]
    fn contradictions_are_pefts_errors() {
        let null = r#"{"peft_type": "LORA", "target_modules": null}"#;
        assert!(parse(null).lora_config().unwrap_err()[0].contains("table"));
        let all = r#"{"peft_type": "LORA", "target_modules": "ALL-linear"}"#;
        assert!(parse(all).lora_config().is_ok());
        let regex = r#"{"peft_type": "LORA", "target_modules": "q", "layers_to_transform": 0}"#;
        assert!(parse(regex).lora_config().unwrap_err()[0].contains("array"));
        let lists = with(", \"layers_pattern\": \"h\"");
        assert!(lists.lora_config().unwrap_err()[0].contains("of no use"));
        let parameters = r#"{"peft_type": "LORA", "target_parameters": ["experts.w"]}"#;
        assert!(parse(parameters).lora_config().is_ok());
    }

    #[test]
    fn every_setting_goes_there_and_back() {
        let config = LoraConfig::new(5)
            .alpha(2.5)
            .dropout(0.25)
            .target_modules(["q", "v"])
            .exclude_modules(r".*\.9\..*")
            .modules_to_save(["head"])
            .rank_pattern("z", 3)
            .rank_pattern("a", 4)
            .alpha_pattern("z", 1.5)
            .train_bias(TrainBias::LoraOnly)
            .use_rslora(true)
            .use_dora(true)
            .layers_to_transform([1, 0])
            .layers_pattern(["h"])
            .trainable_token_indices("embed", [7, 3])
            .target_parameters(["experts.w"])
            .ensure_weight_tying(true)
            .init(Init::Gaussian);
        let file = AdapterConfig::from_lora_config(&config).unwrap();
        assert_eq!(file.to_lora_config().unwrap(), config);
        let bytes = file.to_json().unwrap();
        let again = parse(std::str::from_utf8(&bytes).unwrap());
        assert_eq!(again, file);
        // The first pattern that matches wins: their order stays.
        let keys: Vec<_> = again.rank_pattern.keys().collect();
        assert_eq!(keys, ["z", "a"]);
        let keys: serde_json::Map<String, Value> = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(keys.len(), 41);

        let bias = LoraConfig::new(2).target_modules("q").lora_bias(true);
        let file = AdapterConfig::from_lora_config(&bias).unwrap();
        assert!(file.lora_bias && !file.use_dora);
        assert_eq!(file.to_lora_config().unwrap(), bias);
        assert!(AdapterConfig::from_lora_config(&LoraConfig::new(2)).is_err());
        assert!(AdapterConfig::from_lora_config(&LoraConfig::new(0).target_modules("q")).is_err());
    }

    #[test]
    fn one_number_and_a_list_of_tokens_keep_their_form() {
        let text = ", \"layers_to_transform\": 3, \"layers_pattern\": \"h\", \
                    \"trainable_token_indices\": [5, 1]";
        let file = with(text);
        let config = file.to_lora_config().unwrap();
        assert_eq!(config.layers_to_transform, [3]);
        assert_eq!(config.layers_pattern, ["h"]);
        assert_eq!(config.trainable_token_indices["embed_tokens"], [5, 1]);
        let again: Value = serde_json::from_slice(&file.to_json().unwrap()).unwrap();
        assert_eq!(again["layers_to_transform"], 3);
        assert_eq!(again["layers_pattern"], "h");
        assert_eq!(again["trainable_token_indices"], serde_json::json!([5, 1]));
    }
}
