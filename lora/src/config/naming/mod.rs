//! [`Naming`]: how the paths in an adapter's files differ from those of a model.
//!
//! A file's paths are those of the model that was trained, which may stand inside a wrapper, or be
//! the inner part of the model at hand: `module.fc`, `model.layers.0.fc` and `layers.0.fc` may all
//! mean one layer. This is the one place that decides which.

mod find;
#[cfg(test)]
mod tests;

use super::matching::modules_above;
use crate::path::join;
use find::Finder;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Names that PyTorch's wrappers put into the middle of paths: `torch.compile`, FSDP, activation
/// checkpointing.
const WRAPPERS: [&str; 3] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
];

/// What PyTorch's data parallelism puts before the path of every module of a model.
pub(crate) const PARALLEL: &str = "module";

/// How many examples a message shows.
const EXAMPLES: usize = 3;

/// True for a segment that a wrapper of PyTorch's puts into a path.
pub(crate) fn is_wrapper(segment: &str) -> bool {
    WRAPPERS.contains(&segment)
}

/// A path without the segments of PyTorch's wrappers.
fn unwrapped(path: &str) -> Cow<'_, str> {
    if !path.split('.').any(is_wrapper) {
        return path.into();
    }
    let segments = path.split('.').filter(|segment| !is_wrapper(segment));
    segments.collect::<Vec<_>>().join(".").into()
}

/// The rules by which a file's paths become a model's, and back.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Naming {
    rules: Vec<Rule>,
    /// By the model's path: the file's. Empty where the two are the same.
    exact: HashMap<String, String>,
    /// The settings that came with the file mean the model's paths, not the file's.
    settings_of_model: bool,
}

/// A prefix of the file's paths, and the model's prefix in its place. A segment `*` stands for any
/// one segment.
#[derive(Clone, Debug, PartialEq)]
struct Rule {
    from: String,
    to: String,
}

impl Rule {
    fn new(from: &str, to: &str) -> Self {
        Self {
            from: from.into(),
            to: to.into(),
        }
    }

    fn apply(&self, path: &str) -> Option<String> {
        replaced(path, &self.from, &self.to)
    }

    fn changes(&self) -> bool {
        self.from != self.to
    }
}

/// The path with the prefix `from` replaced by `to`, if it has that prefix.
fn replaced(path: &str, from: &str, to: &str) -> Option<String> {
    let (mut rest, mut captured) = (path, Vec::new());
    for expected in from.split('.').filter(|segment| !segment.is_empty()) {
        if rest.is_empty() {
            return None;
        }
        let (segment, behind) = rest.split_once('.').unwrap_or((rest, ""));
        match expected {
            "*" => captured.push(segment),
            _ if expected != segment => return None,
            _ => {}
        }
        rest = behind;
    }
    let mut captured = captured.into_iter();
    let to = to.split('.').map(|segment| match segment {
        "*" => captured.next().unwrap_or("*"),
        segment => segment,
    });
    Some(join(&to.collect::<Vec<_>>().join("."), rest))
}

impl Naming {
    /// The naming of a file with these paths, for a model with these. `renames` are the user's own
    /// rules: the first that fits a path decides, and no other is looked for.
    ///
    /// # Errors
    /// The problem, if the paths can be meant in two ways, or a rule of the user's is none.
    pub(crate) fn find<'a>(
        paths: impl IntoIterator<Item = &'a str>,
        known: &HashSet<&str>,
        renames: &[(String, String)],
    ) -> Result<Self, String> {
        let stars = |text: &String| text.split('.').filter(|segment| *segment == "*").count();
        if let Some((from, to)) = renames.iter().find(|(from, to)| stars(from) != stars(to)) {
            return Err(format!(
                "rename(\"{from}\", \"{to}\"): both need the same number of `*`"
            ));
        }
        let paths: Vec<&str> = paths.into_iter().collect();
        let bare: Vec<Cow<'_, str>> = paths.iter().map(|path| unwrapped(path)).collect();
        let mut naming = Self::default();
        if renames.is_empty() {
            let finder = Finder::new(known);
            let mut sorted: Vec<&str> = bare.iter().map(Cow::as_ref).collect();
            sorted.sort_unstable();
            sorted.dedup();
            finder.solve("", &sorted, 0, &mut naming.rules)?;
            naming.refuse_collisions(&sorted)?;
        } else {
            naming.rules = renames
                .iter()
                .map(|(from, to)| Rule::new(from, to))
                .collect();
        }
        let exact = paths.iter().map(|path| (naming.of(path), path.to_string()));
        naming.exact = exact.collect();
        if naming.exact.iter().all(|(ours, theirs)| ours == theirs) {
            naming.exact.clear();
        }
        Ok(naming)
    }

    /// Two paths of the file must not become one of the model.
    fn refuse_collisions(&self, paths: &[&str]) -> Result<(), String> {
        let mut taken = HashMap::new();
        for path in paths {
            if let Some(other) = taken.insert(self.of(path), *path) {
                return Err(ambiguous(&[other, path], &[&self.of(path)]));
            }
        }
        Ok(())
    }

    /// The model's path for one of the file's.
    pub(crate) fn of(&self, path: &str) -> String {
        let path = unwrapped(path);
        let renamed = self.rules.iter().find_map(|rule| rule.apply(&path));
        renamed.unwrap_or_else(|| path.into_owned())
    }

    /// The file's path for one of the model's; `None` for a path outside of the file's model.
    pub(crate) fn back<'a>(&self, path: &'a str) -> Option<Cow<'a, str>> {
        if let Some(exact) = self.exact.get(path) {
            return Some(exact.clone().into());
        }
        // Of the file's other paths nothing is known. The rule that says most about the path is
        // taken, the first one of several.
        let mut best: Option<(usize, String)> = None;
        for rule in &self.rules {
            let longer = best
                .as_ref()
                .is_none_or(|(length, _)| rule.to.len() > *length);
            if longer && let Some(back) = replaced(path, &rule.to, &rule.from) {
                best = Some((rule.to.len(), back));
            }
        }
        match best {
            Some((_, back)) => Some(back.into()),
            None => (self.of(path) == path).then(|| path.into()),
        }
    }

    /// A path of the model's as the settings mean it that came with the file; `None` for a path
    /// outside of the file's model.
    pub(crate) fn meant<'a>(&self, path: &'a str) -> Option<Cow<'a, str>> {
        let back = self.back(path)?;
        Some(if self.settings_of_model {
            path.into()
        } else {
            back
        })
    }

    /// Says whose paths the settings mean. PEFT writes settings and keys with the same paths. Some
    /// tools change the keys afterwards.
    pub(crate) fn settings_mean_model(&mut self, mean: bool) {
        self.settings_of_model = mean;
    }

    /// As [`meant`](Self::meant), for a path that the file knows.
    pub(crate) fn meant_or_same(&self, path: &str) -> String {
        self.meant(path).map_or(path.into(), Cow::into_owned)
    }

    /// True if the file's paths are the model's.
    pub(crate) fn is_same(&self) -> bool {
        !self.rules.iter().any(Rule::changes) && self.exact.is_empty()
    }

    /// What a file's user may want to know.
    pub(crate) fn notes(&self) -> Vec<String> {
        let shown = |prefix: &str| match prefix {
            "" => "no prefix".into(),
            prefix => format!("`{prefix}`"),
        };
        let rules = self.rules.iter().filter(|rule| rule.changes());
        let mut notes: Vec<String> = rules
            .map(|rule| {
                let (from, to) = (shown(&rule.from), shown(&rule.to));
                format!("paths with {from} in the adapter's file have {to} in the model")
            })
            .collect();
        if self
            .exact
            .values()
            .any(|path| path.split('.').any(is_wrapper))
        {
            notes.push(format!(
                "names of PyTorch's wrappers are left out of the paths: {}",
                WRAPPERS.join(", ")
            ));
        }
        notes
    }
}

/// The problem of paths that have more than one reading.
fn ambiguous(paths: &[&str], model: &[&str]) -> String {
    format!(
        "the file's paths fit the model's in more than one way: {} in the file, {} in the model; \
         {RENAME}",
        examples(paths),
        examples(model)
    )
}

/// The problem of a file none of whose paths is one of the model's.
pub(crate) fn strangers(paths: &[&str], known: &[&str]) -> String {
    format!(
        "none of the file's paths is one of the model's: {} in the file, {} in the model; if the \
         file is for this model, {RENAME}",
        examples(paths),
        examples(known)
    )
}

const RENAME: &str = "say how they belong together with \
                      AdapterDir::new(dir).rename(\"prefix in the file\", \"prefix in the model\")";

fn examples(paths: &[&str]) -> String {
    let shown = paths.iter().take(EXAMPLES);
    let shown: Vec<String> = shown
        .map(|path| format!("`{}`", crate::error::shorten(path)))
        .collect();
    match paths.len() > EXAMPLES {
        true => format!("{}, ..", shown.join(", ")),
        false => shown.join(", "),
    }
}

/// The names of a model's tensors, and of the modules that hold them.
pub(crate) fn with_modules<'a>(names: impl IntoIterator<Item = &'a str>) -> HashSet<&'a str> {
    let mut known = HashSet::new();
    for name in names {
        known.insert(name);
        known.extend(modules_above(name));
    }
    known
}
