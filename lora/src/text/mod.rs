//! Text: tokenizers, chat templates, and what language models write (feature `text`).
//!
//! A model's directory holds its tokenizer, which [`Tokenizer`] reads:
//!
//! ```no_run
//! use lora::data::Message;
//! use lora::models::generate::Settings;
//! use lora::models::{self, Options};
//! use lora::text::{ChatOptions, Tokenizer, generate};
//!
//! let model = models::auto("SmolLM2-135M-Instruct", &Options::new())?.into_decoder()?.model;
//! let tokenizer = Tokenizer::from_directory("SmolLM2-135M-Instruct")?;
//! let settings = Settings::from_directory("SmolLM2-135M-Instruct")?.stop_strings(["\n\n"]);
//!
//! let messages = [Message::new("user", "What is a token?")];
//! let prompt = tokenizer.encode_chat(&messages, &ChatOptions::new().prompt(true))?;
//! for pieces in generate(&model, &tokenizer, &[prompt], &settings)? {
//!     print!("{}", pieces?[0]); // whole characters, as soon as they are sure
//! }
//! # Ok::<(), lora::Error>(())
//! ```
//!
//! The tokens are those of the crate `tokenizers`, and the texts of conversations those of transformers'
//! `apply_chat_template`.

mod chat;
mod files;
mod generate;
mod python;
mod special;
mod stops;
mod template;
mod tokenizer;

pub use chat::ChatOptions;
pub use generate::{TextStream, generate, generate_after};
pub use tokenizer::{Encoding, Input, Tokenizer};
