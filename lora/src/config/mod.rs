//! What a user asks for: [`LoraConfig`] with all its settings, and the rules that choose layers.

mod init;
mod init_options;
mod kind;
mod lora_config;
mod mark;
pub(crate) mod matching;
pub(crate) mod naming;
pub(crate) mod selection;
mod settings;
mod targets;
mod with_lora;

pub use init::Init;
pub use init_options::{
    CordaConfig, CordaMethod, EvaConfig, LoftqConfig, LoraGaConfig, LoraGaDirection, LoraGaScale,
};
pub use kind::Kind;
pub use lora_config::{LoraConfig, TrainBias};
pub use mark::Mark;
pub use settings::Settings;
pub use targets::Targets;
pub use with_lora::WithLora;
