//! PEFT's rules for which paths a pattern matches. Every pattern notes whether it had an effect.

use crate::{Error, LoraConfig, Result, Targets};
use fancy_regex::{Regex, RegexBuilder};
use indexmap::IndexMap;
use std::collections::{BTreeSet, HashMap};

/// True when `path` is `name` or ends with `.name`.
pub(crate) fn is_or_ends_with(path: &str, name: &str) -> bool {
    path.strip_suffix(name)
        .is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// True when `path` is `module` or begins with `module.`.
pub(crate) fn is_or_starts_with(path: &str, module: &str) -> bool {
    path.strip_prefix(module)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// True if PEFT takes the parameter with this path for a bias: if its name ends in `bias`, or is one
/// of a recurrent layer's, `bias_ih_l0`.
pub(crate) fn is_bias(path: &str) -> bool {
    let name = path.rsplit_once('.').map_or(path, |(_, name)| name);
    path.ends_with("bias") || name.starts_with("bias_ih_l") || name.starts_with("bias_hh_l")
}

/// The paths of the modules that hold this path: `a` and `a.b` for `a.b.c`.
pub(crate) fn modules_above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('.').map(|(dot, _)| &path[..dot])
}

/// The path and everything that stands behind one of its dots: `a.b`, then `b`. A name matches a
/// path if the name is one of these.
pub(crate) fn ends(path: &str) -> impl Iterator<Item = &str> {
    let behind = path.match_indices('.').map(|(dot, _)| &path[dot + 1..]);
    std::iter::once(path).chain(behind)
}

/// Those of these modules that lie in no other of them.
pub(crate) fn outermost<'a>(modules: &BTreeSet<&'a str>) -> impl Iterator<Item = &'a str> {
    let inside = |module: &str| modules_above(module).any(|above| modules.contains(above));
    modules
        .iter()
        .copied()
        .filter(move |module| !inside(module))
}

/// The module that is the path or holds the path, of modules in order.
pub(crate) fn holder<'a>(modules: &'a [String], path: &str) -> Option<&'a str> {
    let mut places = modules_above(path).chain([path]);
    let place = places.find_map(|module| {
        let found = modules.binary_search_by(|known| known.as_str().cmp(module));
        found.ok()
    });
    place.map(|place| modules[place].as_str())
}

// Patterns may come from a file. The limits keep a small file from filling the memory with compiled
// patterns.

/// How many keys a setting with patterns may have.
const MOST_KEYS: usize = 4096;
/// How large a key may become when it is compiled.
const MOST_BYTES_OF_KEY: usize = 256 << 10;
/// How large the only pattern of a setting may become when it is compiled.
const MOST_BYTES: usize = 10 << 20;

/// The compiled patterns of one setting. Each pattern notes whether it has matched.
pub(crate) struct Patterns {
    setting: &'static str,
    entries: Vec<Entry>,
    /// The place of each name among the entries: there may be as many names as a model has layers,
    /// and each layer is looked up.
    names: HashMap<String, usize>,
}

struct Entry {
    source: String,
    /// `None` for a name.
    regex: Option<Regex>,
    used: bool,
}

impl Entry {
    fn matches(&self, setting: &str, path: &str) -> Result<bool> {
        match &self.regex {
            None => Ok(false),
            Some(regex) => {
                let matches = regex.is_match(path);
                matches.map_err(|error| self.too_slow(setting, path, error))
            }
        }
    }

    /// The error for a pattern that backtracks without end, which must not count as a mismatch.
    fn too_slow(&self, setting: &str, path: &str, error: fancy_regex::Error) -> Error {
        Error::Config(vec![format!(
            "{setting} `{}` on `{path}`: {error}",
            self.source
        )])
    }
}

impl Patterns {
    /// For `target_modules` and `exclude_modules`: names that match by suffix, or one regular
    /// expression.
    pub(crate) fn targets(setting: &'static str, targets: &Targets) -> Result<Self> {
        match targets {
            Targets::Names(names) => Ok(Self::names(setting, names)),
            Targets::Regex(regex) => Self::regexes(setting, ["^", "$"], [regex], MOST_BYTES),
        }
    }

    /// Names that match by suffix.
    pub(crate) fn names(setting: &'static str, names: &[String]) -> Self {
        let mut patterns = Self {
            setting,
            entries: Vec::new(),
            names: HashMap::new(),
        };
        for name in names {
            let place = patterns.entries.len();
            if *patterns.names.entry(name.clone()).or_insert(place) == place {
                patterns.entries.push(Entry {
                    source: name.clone(),
                    regex: None,
                    used: false,
                });
            }
        }
        patterns
    }

    /// For `rank_pattern` and `alpha_pattern`: each key is a regular expression for a dot-aligned
    /// suffix.
    pub(crate) fn suffixes<'a>(
        setting: &'static str,
        keys: impl IntoIterator<Item = &'a String>,
    ) -> Result<Self> {
        let keys: Vec<&String> = keys.into_iter().collect();
        if keys.len() > MOST_KEYS {
            let problem = format!("{setting} has {} keys: at most {MOST_KEYS}", keys.len());
            return Err(Error::Config(vec![problem]));
        }
        Self::regexes(setting, [r"^(?:.*\.)?", "$"], keys, MOST_BYTES_OF_KEY)
    }

    /// Regular expressions, each as a group between the two ends of `around`.
    fn regexes<'a>(
        setting: &'static str,
        around: [&str; 2],
        sources: impl IntoIterator<Item = &'a String>,
        most_bytes: usize,
    ) -> Result<Self> {
        let [before, after] = around;
        let compile = |pattern: String| {
            let mut builder = RegexBuilder::new(&pattern);
            builder.delegate_size_limit(most_bytes).build()
        };
        let mut entries = Vec::new();
        let mut problems = Vec::new();
        for source in sources {
            // A verbose expression, `(?x)`, may end in a comment. The comment would take the end of
            // the group in, unless a line ends before.
            let regex = compile(format!("{before}(?:{source}){after}"));
            let regex = regex.or_else(|error| {
                let apart = compile(format!("{before}(?:{source}\n){after}"));
                apart.map_err(|_| error)
            });
            match regex {
                Ok(regex) => entries.push(Entry {
                    source: source.clone(),
                    regex: Some(regex),
                    used: false,
                }),
                Err(error) => problems.push(format!("{setting} `{source}`: {error}")),
            }
        }
        if problems.is_empty() {
            let names = HashMap::new();
            Ok(Self {
                setting,
                entries,
                names,
            })
        } else {
            Err(Error::Config(problems))
        }
    }

    /// The index of the first pattern that matches the path. Every pattern that matches counts as
    /// used. With `first_only` the first alone does: a pattern behind it has no effect.
    pub(crate) fn find(&mut self, path: &str, first_only: bool) -> Result<Option<usize>> {
        let mut found: Option<usize> = None;
        if !self.names.is_empty() {
            for end in ends(path) {
                if let Some(&index) = self.names.get(end) {
                    self.entries[index].used = true;
                    found = Some(found.map_or(index, |other| other.min(index)));
                }
            }
            return Ok(found);
        }
        for (index, entry) in self.entries.iter_mut().enumerate() {
            let matches = entry.matches(self.setting, path)?;
            if matches {
                entry.used = true;
                found = found.or(Some(index));
                if first_only {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The number that the first matching pattern captures.
    fn number(&mut self, path: &str) -> Result<Option<usize>> {
        for entry in &mut self.entries {
            let captures = match &entry.regex {
                Some(regex) => regex.captures(path),
                None => Ok(None),
            };
            let captures = captures.map_err(|error| entry.too_slow(self.setting, path, error))?;
            if let Some(number) = captures.and_then(|captures| captures.get(captures.len() - 1)) {
                entry.used = true;
                return Ok(number.as_str().parse().ok());
            }
        }
        Ok(None)
    }

    /// True if a name is the whole path.
    pub(crate) fn holds(&self, path: &str) -> bool {
        self.names.contains_key(path)
    }

    /// The patterns that matched nothing, as problems.
    pub(crate) fn unused(&self) -> impl Iterator<Item = String> {
        let unused = self.entries.iter().filter(|entry| !entry.used);
        // In these settings the first match wins, so an earlier key may have taken every path.
        let ending = match self.setting.ends_with("_pattern") && self.entries.len() > 1 {
            true => " that an earlier one does not",
            false => "",
        };
        unused.map(move |entry| {
            format!(
                "{} `{}` matches nothing{ending}",
                self.setting, entry.source
            )
        })
    }
}

/// `layers_to_transform` and `layers_pattern`: which layers of a list are chosen.
pub(crate) struct LayerNumbers {
    /// Each number, and whether a target had it.
    numbers: IndexMap<usize, bool>,
    patterns: Patterns,
}

impl LayerNumbers {
    /// `None` where the configuration chooses layers of all numbers.
    pub(crate) fn new(config: &LoraConfig) -> Result<Option<Self>> {
        if config.layers_to_transform.is_empty() {
            return Ok(None);
        }
        let numbers = config.layers_to_transform.iter();
        let number = r"\.(\d+)\.";
        let patterns = match config.layers_pattern.is_empty() {
            // As in PEFT: a name must come before the list's name.
            true => {
                let none = [String::new()];
                let around = [r"^.*?\.[^.]*", number];
                Patterns::regexes("layers_pattern", around, &none, MOST_BYTES_OF_KEY)
            }
            false => {
                let around = [r"^(?:^|.*?\.)", number];
                let names = &config.layers_pattern;
                Patterns::regexes("layers_pattern", around, names, MOST_BYTES_OF_KEY)
            }
        };
        Ok(Some(Self {
            numbers: numbers.map(|&number| (number, false)).collect(),
            patterns: patterns?,
        }))
    }

    /// True if the path's layer has one of the numbers.
    pub(crate) fn has(&mut self, path: &str) -> Result<bool> {
        let Some(number) = self.patterns.number(path)? else {
            return Ok(false);
        };
        let used = self.numbers.get_mut(&number);
        Ok(used.map(|used| *used = true).is_some())
    }

    /// The numbers and names that no target has, as problems.
    pub(crate) fn unused(&self) -> impl Iterator<Item = String> {
        let numbers = self.numbers.iter().filter(|(_, used)| !**used);
        let numbers = numbers.map(|(number, _)| {
            format!("layers_to_transform: no target is in a layer with number {number}")
        });
        let names = self.patterns.unused();
        numbers.chain(names.filter(|_| !self.patterns.entries[0].source.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(targets: impl Into<Targets>, path: &str) -> bool {
        let mut patterns = Patterns::targets("target_modules", &targets.into()).unwrap();
        patterns.find(path, false).unwrap().is_some()
    }

    #[test]
    fn names_match_at_dots_only() {
        assert!(find(["q_proj"], "q_proj"));
        assert!(find(["q_proj"], "layers.0.q_proj"));
        assert!(!find(["q_proj"], "my_q_proj"));
        assert!(!find([r".*proj"], "q_proj"));
        assert!(find(["mlp.fc1"], "layers.0.mlp.fc1"));
    }

    #[test]
    fn modules_begin_at_dots() {
        assert!(is_or_starts_with("head.fc", "head"));
        assert!(is_or_starts_with("head", "head"));
        assert!(!is_or_starts_with("header", "head"));
    }

    #[test]
    fn regex_matches_the_whole_path() {
        assert!(!find("q_proj", "layers.0.q_proj"));
        assert!(find(r".*\.q_proj", "layers.0.q_proj"));
        assert!(find("a|b", "b"));
        assert!(!find("a|b", "ab"));
        assert!(find(r"(?!.*vision).*fc1", "text.fc1"));
        assert!(!find(r"(?!.*vision).*fc1", "vision.fc1"));
    }

    #[test]
    fn a_verbose_regex_may_end_in_a_comment() {
        let verbose = "(?x) .*\\. # any module\n (q|v)_proj # queries and values";
        assert!(find(verbose, "layers.0.q_proj"));
        assert!(!find(verbose, "layers.0.k_proj"));
        assert!(!find(verbose, "layers.0.q_proj.x"));
        // Without the flag, a line's end is one to be matched, and nothing is added.
        assert!(!find("fc # x", "fc"));
        let keys = ["(?x) l \\d # a digit".to_string()];
        let mut patterns = Patterns::suffixes("rank_pattern", &keys).unwrap();
        assert_eq!(patterns.find("a.l2", true).unwrap(), Some(0));
        assert_eq!(patterns.find("a.lx", true).unwrap(), None);
    }

    #[test]
    fn rank_keys_match_dot_aligned_suffixes_and_the_first_wins() {
        let keys = [r"l\d".to_string(), "l2".into(), "^top".into()];
        let mut patterns = Patterns::suffixes("rank_pattern", &keys).unwrap();
        assert_eq!(patterns.find("a.l2", true).unwrap(), Some(0));
        assert_eq!(patterns.find("a.xl2", true).unwrap(), None);
        assert_eq!(patterns.find("top", true).unwrap(), Some(2));
        assert_eq!(patterns.unused().count(), 1);
    }

    #[test]
    fn a_bad_regex_is_an_error() {
        let error = Patterns::targets("target_modules", &"(".into()).err();
        assert!(error.unwrap().to_string().contains("target_modules `(`"));
    }
}
