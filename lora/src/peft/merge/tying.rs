//! A head that shares an embedding's weight: what the adapter was trained to do to each of the two,
//! and whether they stay one.

use super::change::{Change, Start};
use super::modules::Keys;
use super::plain::equal;
use super::planner::Planner;
use crate::Result;
use crate::config::matching::is_or_ends_with;
use crate::file::Checkpoint;
use crate::path::join;
use crate::peft::keys::{is_embedding, without_wrappers};
use serde_json::Value;

/// Names of the heads that give a language model's scores.
const HEADS: [&str; 4] = ["lm_head", "embed_out", "output_layer", "output"];

/// The heads of masked language models: what a checkpoint holds of a tied one, and the name that
/// its weight has.
const MASKED_HEADS: [(&str, &str); 5] = [
    ("cls.predictions.", "cls.predictions.decoder.weight"),
    ("lm_head.", "lm_head.decoder.weight"),
    ("generator_predictions.", "generator_lm_head.weight"),
    ("vocab_transform.", "vocab_projector.weight"),
    ("predictions.", "predictions.decoder.weight"),
];

/// A head and an embedding that are one weight in the base.
#[derive(Debug)]
pub(super) struct Tie {
    /// The name of the head's weight in the checkpoint, or the name that it would have.
    pub head: String,
    pub embedding: String,
    /// The file holds the embedding's update for the head, too.
    pub shares_update: bool,
    /// The file holds the embedding's weight for the head, too.
    pub shares_weight: bool,
    /// The adapter trained the embedding in full.
    pub is_trained: bool,
}

/// True for the weight of a head: not of a layer of a list.
pub(super) fn is_head(name: &str) -> bool {
    let module = name.strip_suffix(".weight");
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    module.is_some_and(|module| {
        HEADS.iter().any(|head| is_or_ends_with(module, head)) && !module.split('.').any(is_number)
    })
}

/// The name of the head's weight, if the checkpoint is a masked language model's.
fn masked_head(base: &Checkpoint) -> Option<&'static str> {
    let has = |prefix: &str| base.names().any(|name| name.starts_with(prefix));
    let mut heads = MASKED_HEADS.iter();
    heads.find(|(prefix, _)| has(prefix)).map(|(_, head)| *head)
}

/// What the model's configuration says, in itself or in the part for its text model.
pub(super) fn says_tied(config: &Value) -> Option<bool> {
    let text = config.get("text_config");
    let mut places = [Some(config), text].into_iter().flatten();
    places.find_map(|place| place.get("tie_word_embeddings")?.as_bool())
}

impl Tie {
    /// `locate` gives the path in the checkpoint of a path in the adapter.
    pub fn find(
        base: &Checkpoint,
        keys: &Keys,
        locate: impl Fn(&str) -> String,
    ) -> Result<Option<Self>> {
        let Some(config) = base.model_config()? else {
            return Ok(None);
        };
        if says_tied(&config) == Some(false) {
            return Ok(None);
        }
        let is_matrix = |name: &&str| base.shape(name).is_some_and(|shape| shape.len() == 2);
        let embeddings = base.names().filter(|name| is_embedding(name));
        let mut embeddings: Vec<&str> = embeddings.filter(is_matrix).collect();
        // The one that the adapter changes, if there are several.
        let paths = keys.modules.keys().map(|path| join(path, "weight"));
        let names = paths.chain(keys.plain.keys().cloned());
        let names: Vec<String> = names.map(|name| without_wrappers(&name)).collect();
        let is_named = |name: &str| {
            names
                .iter()
                .any(|own| is_embedding(own) && locate(own) == name)
        };
        embeddings.sort_by_cached_key(|name| !is_named(name));
        let Some(embedding) = embeddings.first() else {
            return Ok(None);
        };
        let is_encoder = is_or_ends_with(embedding, "embeddings.word_embeddings.weight");
        let head = match is_encoder {
            true => masked_head(base).map(String::from),
            false => {
                let known = base.names().find(|name| is_head(name)).map(String::from);
                let adapted = names.iter().find(|name| is_head(name));
                let adapted = || adapted.map(|name| locate(name));
                known
                    .or_else(adapted)
                    .or_else(|| Some(locate("lm_head.weight")))
            }
        };
        // A bare encoder has no head, whatever its configuration says.
        let Some(head) = head else {
            return Ok(None);
        };
        if base.contains(&head) {
            // Both are in the checkpoint: the values tell.
            for name in embeddings {
                if base.shape(name) == base.shape(&head)
                    && equal(&base.tensor(name)?, &base.tensor(&head)?)?
                {
                    return Ok(Some(Self::new(head, name)));
                }
            }
            return Ok(None);
        }
        let architectures = config.get("architectures").and_then(Value::as_array);
        let is_tied = match architectures.filter(|names| !names.is_empty()) {
            _ if is_encoder => true,
            Some(names) => names.iter().any(generates),
            None => says_tied(&config) == Some(true),
        };
        Ok(is_tied.then(|| Self::new(head, embedding)))
    }

    fn new(head: String, embedding: &str) -> Self {
        Self {
            head,
            embedding: embedding.into(),
            shares_update: false,
            shares_weight: false,
            is_trained: false,
        }
    }
}

/// True for the name of an architecture with a language model's head.
fn generates(name: &Value) -> bool {
    let ends = ["LMHeadModel", "ForCausalLM", "ForConditionalGeneration"];
    let name = name.as_str().unwrap_or_default();
    ends.iter().any(|end| name.ends_with(end))
}

impl Planner<'_> {
    /// True for the weight of a head that shares the embedding's.
    pub fn is_tied_head(&self, name: &str) -> bool {
        self.tie.as_ref().is_some_and(|tie| tie.head == name)
    }

    /// Plans that the adapter's tensor is the weight of a tied head.
    pub fn replace_head(&mut self, key: &str, keys: &Keys, is_trained: bool) -> Result<()> {
        let is_copy = self.is_copy(key, keys)?;
        let Some(tie) = &mut self.tie else {
            return Ok(());
        };
        let (head, embedding) = (tie.head.clone(), tie.embedding.clone());
        if is_copy {
            tie.shares_weight = true;
            return Ok(());
        }
        if !is_trained {
            if self.is_base(key, &embedding)? {
                return Ok(());
            }
            let mut full = keys.full_embeddings.iter();
            let place = |name: &str| self.locate(&without_wrappers(name));
            if !full.any(|(name, _)| place(name) == embedding) {
                // The shared weight itself, saved under the head's name: a vocabulary that grew.
                self.ask_for_new(key, &embedding);
                self.put(&embedding, key);
                return Ok(());
            }
        }
        self.ask_for_new(key, &head);
        self.put(&head, key);
        Ok(())
    }

    /// Gives a head that parts from its embedding the weight that it had in training before its own
    /// update: the embedding's.
    pub fn start_head(&mut self) {
        let Some(tie) = &self.tie else {
            return;
        };
        let (head, embedding) = (tie.head.clone(), tie.embedding.clone());
        let is_full = |name: &str| self.changes.get(name).is_some_and(Change::is_full);
        let start = match (tie.is_trained, self.base.contains(&head)) {
            _ if is_full(&head) => return,
            (true, true) => Start::Own,
            // Trained in full, the embedding is a copy: the head computed with the base's.
            (true, false) => Start::Base(embedding),
            (false, true) if !is_full(&embedding) => Start::Own,
            (false, _) => Start::Before(embedding),
        };
        self.change(&head).start = start;
    }

    /// Decides whether the two stay one weight. Refuses to part them unless the options say so: in
    /// training, the head may have computed with another weight than the embedding.
    pub fn settle_tie(&mut self) {
        let Some(tie) = &self.tie else {
            return;
        };
        let (head, embedding) = (tie.head.clone(), tie.embedding.clone());
        let of_head = self.changes.get(&head);
        let is_full = of_head.is_some_and(Change::is_full);
        let is_adapted = of_head.is_some_and(|change| change.low_rank.is_some());
        let of_embedding = self.changes.get(&embedding);
        let is_updated = of_embedding.is_some_and(|change| change.low_rank.is_some());
        let parts = (is_updated && !tie.shares_update) || (tie.is_trained && !tie.shares_weight);
        let stays = !parts || self.options.keep_tied;
        if stays && !is_full && !is_adapted {
            match of_embedding.is_some() && self.base.contains(&head) {
                true => self.change(&head).start = Start::Merged(embedding),
                false => {
                    self.changes.shift_remove(&head);
                }
            }
            return;
        }
        if !self.options.untie && !is_full {
            self.problems.push(match is_adapted {
                true => format!(
                    "`{head}` is adapted, but is also the weight of `{embedding}`, which the \
                     adapter does not change in the same way: MergeOptions::untie gives the head \
                     one of its own"
                ),
                false => format!(
                    "`{embedding}` is also the head's weight, for which the adapter was not \
                     trained: MergeOptions::untie gives the head one of its own, \
                     MergeOptions::keep_tied changes both, as PEFT does"
                ),
            });
        }
        if is_full {
            return;
        }
        self.start_head();
        let rows = |name: &str| self.shape(name).and_then(|shape| shape.first().copied());
        let (of_head, of_embedding) = (rows(&head), rows(&embedding));
        if of_head != of_embedding {
            self.problems.push(format!(
                "`{embedding}` has {} rows in the file, `{head}` {} in the base: the adapter must \
                 hold the head's new rows, too",
                of_embedding.unwrap_or(0),
                of_head.unwrap_or(0)
            ));
        }
        // In training, trained rows acted on the head too.
        let trained = self.changes.get(&embedding);
        self.change(&head).rows = trained.and_then(|change| change.rows.clone());
    }
}
