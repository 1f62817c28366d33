//! [`WithLora`]: a model's configuration together with the LoRA settings.

use crate::LoraConfig;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::ops::Deref;

/// A base model's configuration with the LoRA settings beside it: a superset of the base
/// configuration.
///
/// `WithLora` dereferences to the base configuration, so model code reads its fields as before. In
/// JSON both are one object: the base's own keys, and the LoRA settings under keys that start with
/// `lora_`. The JSON of a base configuration alone parses, with default LoRA settings. An unknown
/// `lora_` key is an error. `#[lora(config)]` turns a field of type `C` into one of type
/// `WithLora<C>`.
///
/// ```
/// use lora::{LoraConfig, WithLora};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Clone, Debug, Serialize, Deserialize)]
/// struct NetConfig { width: usize }
///
/// let config: WithLora<NetConfig> = serde_json::from_str(r#"{"width": 8, "lora_rank": 4}"#)?;
/// assert_eq!((config.width, config.lora().rank), (8, 4));
/// let base: NetConfig = serde_json::from_value(serde_json::to_value(&config)?)?;
/// assert_eq!(base.width, 8);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WithLora<C> {
    #[serde(flatten)]
    base: C,
    #[serde(flatten)]
    lora: LoraConfig,
}

impl<C> WithLora<C> {
    /// A base configuration with these LoRA settings.
    pub fn new(base: C, lora: LoraConfig) -> Self {
        Self { base, lora }
    }

    /// The base model's configuration.
    pub fn base(&self) -> &C {
        &self.base
    }

    /// The LoRA settings.
    pub fn lora(&self) -> &LoraConfig {
        &self.lora
    }
}

impl<C> Deref for WithLora<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.base
    }
}

impl<C> AsRef<C> for WithLora<C> {
    fn as_ref(&self) -> &C {
        &self.base
    }
}

impl<'de, C: DeserializeOwned> Deserialize<'de> for WithLora<C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let all = Map::deserialize(deserializer)?;
        let (lora, base): (Map<_, _>, Map<_, _>) = all
            .into_iter()
            .partition(|(key, _)| key.starts_with("lora_"));
        let base = C::deserialize(Value::Object(base)).map_err(D::Error::custom)?;
        let lora = LoraConfig::deserialize(Value::Object(lora)).map_err(D::Error::custom)?;
        Ok(Self { base, lora })
    }
}
