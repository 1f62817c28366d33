//! A model's tokenizer.

use super::chat::ChatOptions;
use super::files::Files;
use super::special::NAMES;
use crate::data::{Message, Rendered, Side, Tokenize, Tokenized};
use crate::file::{parse_json, read_up_to};
use crate::gguf::{self, GgufFile};
use crate::{Error, Result};
use rayon::prelude::*;
use serde_json::Value;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::utils::truncation::truncate_encodings;
use tokenizers::{
    AddedToken, PostProcessor, PostProcessorWrapper, TruncationParams, TruncationStrategy,
};

/// More MiB than any tokenizer has; the largest known are near 40.
const MOST_MIB: u64 = 256;

/// A model's tokenizer: `tokenizer.json` of its directory, with what the files beside it say of special
/// tokens, the longest sequence and chat templates.
///
/// ```
/// use lora::text::Tokenizer;
///
/// # let directory = tempfile::tempdir().unwrap();
/// # std::fs::write(directory.path().join("tokenizer.json"), r#"{"model": {"type": "WordLevel",
/// #     "vocab": {"a": 0, "tiny": 1, "model": 2, "?": 3}, "unk_token": "?"},
/// #     "pre_tokenizer": {"type": "Whitespace"}}"#).unwrap();
/// let tokenizer = Tokenizer::from_directory(directory.path())?;
/// let encoding = tokenizer.encode("a tiny model")?;
/// assert_eq!(encoding.ids, [0, 1, 2]);
/// assert_eq!(tokenizer.decode(&encoding.ids)?, "a tiny model");
/// # Ok::<(), lora::Error>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    /// Without what it does to tokens once these are cut.
    inner: tokenizers::Tokenizer,
    processor: Option<PostProcessorWrapper>,
    files: Files,
    /// The most tokens of a text.
    most: Option<usize>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("directory", &self.files.directory)
            .field("vocabulary", &self.vocabulary_size())
            .finish_non_exhaustive()
    }
}

/// A text, or two, to be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input<'a> {
    /// The text.
    pub text: &'a str,
    /// A second one, of tasks on two texts.
    pub pair: Option<&'a str>,
}

impl<'a> From<&'a str> for Input<'a> {
    fn from(text: &'a str) -> Self {
        Self { text, pair: None }
    }
}

impl<'a> From<&'a String> for Input<'a> {
    fn from(text: &'a String) -> Self {
        text.as_str().into()
    }
}

impl<'a> From<(&'a str, &'a str)> for Input<'a> {
    fn from((text, pair): (&'a str, &'a str)) -> Self {
        Self {
            text,
            pair: Some(pair),
        }
    }
}

/// The tokens of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Encoding {
    /// The tokens.
    pub ids: Vec<u32>,
    /// For each token the text that it belongs to: 0, or 1 for the second of a pair.
    pub types: Vec<u32>,
    /// For each token its bytes of the text: empty for one that the tokenizer adds.
    pub bytes: Vec<Range<usize>>,
}

impl AsRef<[u32]> for Encoding {
    fn as_ref(&self) -> &[u32] {
        &self.ids
    }
}

impl Tokenizer {
    /// The tokenizer of a model's directory. Without files beside `tokenizer.json`, no special token has a
    /// name.
    ///
    /// Truncation and padding that the file holds are off, as in transformers: see
    /// [`truncate_to`](Self::truncate_to) and [`Pad`](crate::data::Pad).
    ///
    /// # Errors
    /// [`Error::File`] names the file that is missing, damaged, or says what is not known here.
    pub fn from_directory(directory: impl AsRef<Path>) -> Result<Self> {
        let directory = directory.as_ref();
        let path = directory.join("tokenizer.json");
        if !path.exists() && directory.is_dir() {
            let problem = "is missing: save the tokenizer with transformers' `AutoTokenizer`, which writes \
                           this file of `tokenizer.model` or `vocab.txt`";
            return Err(Error::file(path, problem));
        }
        let bytes = read_up_to(&path, MOST_MIB, "a tokenizer")?;
        let broken = |problem: String| Error::file(&path, problem);
        parse_json(&bytes).map_err(|error| broken(format!("is not valid JSON: {error}")))?;
        Self::with(&bytes, || Files::read(directory), broken)
    }

    /// The tokenizer of a model in a GGUF file, with its special tokens and chat template: byte-level BPE,
    /// where the way to cut texts must be known, and SentencePiece's BPE, which Llama 2, Mistral and Gemma
    /// have. As in llama.cpp, a token that the file marks as a user's is found before pairs are merged.
    ///
    /// ```no_run
    /// let tokenizer = lora::text::Tokenizer::from_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")?;
    /// assert_eq!(tokenizer.decode(&tokenizer.encode("a token")?.ids)?, "a token");
    /// # Ok::<(), lora::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::File`] if the file is damaged, or its tokenizer is of another kind, which is named.
    pub fn from_gguf(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (tokenizer, config) = gguf::tokenizer::files(&GgufFile::open(path)?)?;
        let broken = |problem: String| Error::file(path, problem);
        let files = || Files::of_gguf(path, &config);
        Self::with(tokenizer.to_string().as_bytes(), files, broken)
    }

    /// The tokenizer of a file's contents; `files` reads what stands beside.
    fn with(
        bytes: &[u8],
        files: impl FnOnce() -> Result<Files>,
        broken: impl Fn(String) -> Error,
    ) -> Result<Self> {
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| broken(format!("is no tokenizer: {error}")))?;
        let files = files()?;
        inner.with_padding(None);
        let failed = |error: tokenizers::Error| broken(error.to_string());
        inner.with_truncation(None).map_err(failed)?;
        add_tokens(&mut inner, &files).map_err(failed)?;
        let processor = match ends(&inner, &files).map_err(failed)? {
            Some(processor) => Some(processor),
            None => inner.get_post_processor().cloned(),
        };
        inner.with_post_processor(None::<PostProcessorWrapper>);
        Ok(Self {
            inner,
            processor,
            files,
            most: None,
        })
    }

    /// Cuts longer texts to this many tokens, special ones included. Of a pair, the longer text is cut
    /// first. The cut end is the one that `truncation_side` names.
    ///
    /// # Errors
    /// [`Error::Text`] if the special tokens alone are more; encoding a pair may say so later.
    pub fn truncate_to(mut self, length: usize) -> Result<Self> {
        self.most = Some(length);
        self.room(false)?;
        Ok(self)
    }

    /// Cuts texts to the model's longest: `max_seq_length` of `sentence_bert_config.json`, or
    /// `model_max_length` of `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`Error::File`] if the files name no longest sequence.
    pub fn truncate_to_model(self) -> Result<Self> {
        match self.longest() {
            Some(length) => self.truncate_to(length),
            None => Err(Error::file(
                self.files.directory,
                "no file names the longest sequence (`model_max_length`): call truncate_to with a length",
            )),
        }
    }

    /// The tokens of the model's longest sequence, if the files say.
    pub fn longest(&self) -> Option<usize> {
        self.files.longest
    }

    /// The tokens of a text, or of a pair, with the special tokens around that the model expects.
    ///
    /// # Errors
    /// [`Error::Text`] if the text has no tokens, for example where the vocabulary lacks one for what is
    /// unknown.
    pub fn encode<'a>(&self, input: impl Into<Input<'a>>) -> Result<Encoding> {
        self.encode_input(input.into(), true)
    }

    /// The tokens of a text, without special tokens around.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
    pub fn encode_plain<'a>(&self, input: impl Into<Input<'a>>) -> Result<Encoding> {
        self.encode_input(input.into(), false)
    }

    /// The tokens of many texts, on all threads.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
    pub fn encode_batch<'a, I: Into<Input<'a>>>(
        &self,
        inputs: impl IntoIterator<Item = I>,
    ) -> Result<Vec<Encoding>> {
        let inputs: Vec<Input<'a>> = inputs.into_iter().map(Into::into).collect();
        let encode = |input: &Input<'a>| self.encode_input(*input, true);
        inputs.par_iter().map(encode).collect()
    }

    fn encode_input(&self, input: Input<'_>, special: bool) -> Result<Encoding> {
        let part = |text: &str, kind| {
            let mut part = self.inner.encode(text, false).map_err(failed)?;
            part.set_type_ids(vec![kind; part.len()]);
            Ok::<_, Error>(part)
        };
        let text = part(input.text, 0)?;
        let pair = input.pair.map(|pair| part(pair, 1)).transpose()?;
        let (text, pair) = self.cut(text, pair, special)?;
        let encoded = match &self.processor {
            Some(processor) => processor.process(text, pair, special),
            None => {
                let parts = [Some(text), pair].into_iter().flatten().collect();
                let parts = <dyn PostProcessor>::default_process(parts, special);
                parts.map(|parts| tokenizers::Encoding::merge(parts, false))
            }
        };
        Ok(encoding(encoded.map_err(failed)?))
    }

    /// How many tokens special ones leave room for; `None` for any number.
    fn room(&self, is_pair: bool) -> Result<Option<usize>> {
        let Some(most) = self.most else {
            return Ok(None);
        };
        let processor = self.processor.as_ref();
        let added = processor.map_or(0, |processor| processor.added_tokens(is_pair));
        let room = most.checked_sub(added).ok_or_else(|| {
            Error::Text(vec![format!(
                "{added} special tokens are added, more than the {most} that a text may have: call \
                 truncate_to with a larger length"
            )])
        });
        room.map(Some)
    }

    fn cut(
        &self,
        text: tokenizers::Encoding,
        pair: Option<tokenizers::Encoding>,
        special: bool,
    ) -> Result<(tokenizers::Encoding, Option<tokenizers::Encoding>)> {
        let room = match special {
            true => self.room(pair.is_some())?,
            false => self.most,
        };
        let Some(max_length) = room else {
            return Ok((text, pair));
        };
        let params = TruncationParams {
            direction: self.files.cut,
            max_length,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        truncate_encodings(text, pair, &params).map_err(failed)
    }

    /// The text of tokens, without special ones.
    ///
    /// # Errors
    /// [`Error::Text`] if the tokenizer has no text for them.
    pub fn decode(&self, ids: impl AsRef<[u32]>) -> Result<String> {
        self.inner.decode(ids.as_ref(), true).map_err(failed)
    }

    /// The text of tokens, special ones included.
    ///
    /// # Errors
    /// Those of [`decode`](Self::decode).
    pub fn decode_all(&self, ids: impl AsRef<[u32]>) -> Result<String> {
        self.inner.decode(ids.as_ref(), false).map_err(failed)
    }

    /// The number of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token with this number.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The number of tokens, added ones included.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The special tokens with a name, such as `eos_token`, and their texts.
    pub fn special_tokens(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let special = self.files.special.iter();
        special.map(|(name, token)| (*name, token.as_str()))
    }

    /// The number of the special token with a name: `bos_token`, `eos_token`, `unk_token`, `sep_token`,
    /// `pad_token`, `cls_token` or `mask_token`.
    pub fn special(&self, name: &str) -> Option<u32> {
        let mut special = self.special_tokens();
        self.id(special.find(|(found, _)| *found == name)?.1)
    }

    /// The token that begins a text, if it has a name.
    pub fn bos(&self) -> Option<u32> {
        self.special(NAMES[0])
    }

    /// The token that ends a text, if it has a name.
    pub fn eos(&self) -> Option<u32> {
        self.special(NAMES[1])
    }

    /// The token for padding: the one with this name, or the end, or 0. A mask hides padding, whatever
    /// the token.
    pub fn pad(&self) -> u32 {
        let pad = self.special("pad_token").or_else(|| self.eos());
        pad.unwrap_or(0)
    }

    /// Where `padding_side` puts padding.
    pub fn padding_side(&self) -> Side {
        match self.files.pads_left {
            true => Side::Left,
            false => Side::Right,
        }
    }

    pub(super) fn template<'a>(&'a self, wanted: Option<&'a str>, tools: bool) -> Result<&'a str> {
        self.files.template(wanted, tools)
    }
}

impl Tokenize for Tokenizer {
    fn tokenize(&self, text: &str, special: bool) -> Result<Tokenized> {
        let Encoding { ids, bytes, .. } = self.encode_input(text.into(), special)?;
        Ok(Tokenized { ids, bytes })
    }

    fn render_chat(&self, messages: &[Message], tools: &[Value], prompt: bool) -> Result<Rendered> {
        let options = ChatOptions::new()
            .tools(tools.iter().cloned())
            .prompt(prompt);
        let (text, generated) = self.write_chat(messages, &options)?;
        Ok(Rendered { text, generated })
    }

    fn end(&self) -> Option<u32> {
        self.eos()
    }
}

fn failed(error: tokenizers::Error) -> Error {
    Error::Text(vec![error.to_string()])
}

fn encoding(encoding: tokenizers::Encoding) -> Encoding {
    let bytes = encoding.get_offsets().iter();
    Encoding {
        ids: encoding.get_ids().to_vec(),
        types: encoding.get_type_ids().to_vec(),
        bytes: bytes.map(|&(start, end)| start..end).collect(),
    }
}

/// Adds tokens that only the files beside name, as transformers does.
fn add_tokens(inner: &mut tokenizers::Tokenizer, files: &Files) -> tokenizers::Result<()> {
    let known = inner.get_added_tokens_decoder();
    let is_known = |token: &AddedToken| known.values().any(|other| other == token);
    let mut tokens: Vec<AddedToken> = files
        .added
        .iter()
        .filter(|token| !is_known(token))
        .cloned()
        .collect();
    let named = files.special.iter().map(|(_, token)| token);
    for token in named.chain(&files.unnamed) {
        let given = |other: &AddedToken| other.content == *token;
        let is_special = known.values().any(|other| given(other) && other.special);
        if !is_special && !tokens.iter().any(given) {
            tokens.push(AddedToken::from(token.as_str(), true));
        }
    }
    for token in tokens {
        match token.special {
            true => inner.add_special_tokens([token])?,
            false => inner.add_tokens([token])?,
        };
    }
    Ok(())
}

/// What puts tokens in front and behind where `add_bos_token` and `add_eos_token` ask for that. Without
/// either, `tokenizer.json` says.
fn ends(
    inner: &tokenizers::Tokenizer,
    files: &Files,
) -> tokenizers::Result<Option<PostProcessorWrapper>> {
    if files.adds == [None; 2] {
        return Ok(None);
    }
    let (mut special, mut ends) = (Vec::new(), [None, None]);
    for (index, wanted) in files.adds.into_iter().enumerate() {
        let named = files.special.iter().find(|(name, _)| *name == NAMES[index]);
        let Some((_, token)) = named.filter(|_| wanted == Some(true)) else {
            continue;
        };
        if let Some(id) = inner.token_to_id(token) {
            special.push((token.clone(), id));
            ends[index] = Some(token);
        }
    }
    let around = |text: &str, kind: u32| {
        let [bos, eos] = ends.map(|end| end.map(|token| format!("{token}:{kind}")));
        let parts = [bos, Some(format!("{text}:{kind}")), eos];
        parts.into_iter().flatten().collect::<Vec<_>>()
    };
    let (single, second) = (around("$A", 0), around("$B", 1));
    let pair = [single.clone(), second].concat();
    let processor = TemplateProcessing::builder()
        .try_single(single)?
        .try_pair(pair)?
        .special_tokens(special)
        .build()?;
    Ok(Some(PostProcessorWrapper::Template(processor)))
}
