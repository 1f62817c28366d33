//! [`Naming`]: how the paths in an adapter's files differ from those of a model.
//!
//! A file's paths are those of the model that was trained, which may stand inside a wrapper, or be
//! the inner part of the model at hand: `module.fc`, `model.layers.0.fc` and `layers.0.fc` may all
//! mean one layer. This is the one place that decides which.

use super::matching::modules_above;
use crate::path::join;
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

/// Candidates that are looked at. No model needs more; a hostile file might, to take our time.
const MOST_CANDIDATES: usize = 64;

/// How many segments of a path may differ from group to group.
const MOST_LEVELS: usize = 4;

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

/// Looks for the rules that bring a file's paths to a model's.
struct Finder<'a> {
    known: &'a HashSet<&'a str>,
    /// The model's paths by their last segment.
    by_end: HashMap<&'a str, Vec<&'a str>>,
}

impl<'a> Finder<'a> {
    fn new(known: &'a HashSet<&'a str>) -> Self {
        let mut by_end: HashMap<&str, Vec<&str>> = HashMap::new();
        for path in known {
            by_end.entry(end(path)).or_default().push(path);
        }
        by_end.values_mut().for_each(|paths| paths.sort_unstable());
        Self { known, by_end }
    }

    /// Adds the rule of these paths, which all begin with `node`: one rule for all of them, else
    /// one for each group of the next segment.
    fn solve(
        &self,
        node: &str,
        paths: &[&str],
        level: usize,
        rules: &mut Vec<Rule>,
    ) -> Result<(), String> {
        let same = Rule::new(node, node);
        let Some(lost) = paths.iter().find(|path| !self.known.contains(**path)) else {
            rules.push(same);
            return Ok(());
        };
        let candidates = self.candidates(node, lost);
        let found = |rule: &Rule| {
            let there = paths.iter().filter(|path| {
                let renamed = rule.apply(path);
                self.known.contains(renamed.as_deref().unwrap_or(path))
            });
            there.count()
        };
        let mut whole = candidates.iter().filter(|rule| found(rule) == paths.len());
        match (whole.next(), whole.next()) {
            (Some(rule), None) => {
                // Paths beside the rule's prefix stay.
                rules.push(rule.clone());
                if rule.from != node {
                    rules.push(same);
                }
                return Ok(());
            }
            (Some(one), Some(other)) => {
                let model = [one.apply(lost), other.apply(lost)];
                let model: Vec<&str> = model.iter().flatten().map(String::as_str).collect();
                return Err(ambiguous(paths, &model));
            }
            (None, _) => {}
        }
        let groups = groups(node, paths);
        let splits = groups.iter().all(|(child, _)| {
            let segment = end(child);
            *child != node && segment.parse::<usize>().is_err()
        });
        if splits && level < MOST_LEVELS && groups.len() <= MOST_CANDIDATES {
            for (child, paths) in groups {
                self.solve(child, &paths, level + 1, rules)?;
            }
            return Ok(());
        }
        // Some paths have no place, which is told later. The others go where most of them fit.
        let best = candidates.into_iter().map(|rule| (found(&rule), rule));
        let mut best: Vec<_> = best.collect();
        best.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let present = found(&same);
        match best.as_slice() {
            [(first, one), (second, other), ..] if first == second && *first > present => {
                let model = [one.apply(lost), other.apply(lost)];
                let model: Vec<&str> = model.iter().flatten().map(String::as_str).collect();
                Err(ambiguous(paths, &model))
            }
            [(count, rule), ..] if *count > present => {
                rules.push(rule.clone());
                Ok(())
            }
            _ => {
                rules.push(same);
                Ok(())
            }
        }
    }

    /// The rules that bring this path to one of the model's: a prefix gains or loses segments, or
    /// has them in another order. It gains and loses no number: that would be another layer. The
    /// name that data parallelism adds may go in any case.
    fn candidates(&self, node: &str, path: &str) -> Vec<Rule> {
        let mut rules: Vec<Rule> = Vec::new();
        let targets = self.by_end.get(end(path)).map(Vec::as_slice);
        for target in targets.unwrap_or_default() {
            let (from, to) = heads(path, target);
            if !is_moved(from, to) {
                continue;
            }
            // A rule holds for the group alone.
            let rule = match from.len() < node.len() {
                false => Rule::new(from, to),
                true => match replaced(node, from, to) {
                    Some(to) => Rule::new(node, &to),
                    None => continue,
                },
            };
            if rule.changes() && !rules.contains(&rule) {
                rules.push(rule);
            }
            if rules.len() == MOST_CANDIDATES {
                break;
            }
        }
        rules
    }
}

/// The last segment.
fn end(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// What is left of both paths without their longest common end, in whole segments.
fn heads<'a, 'b>(a: &'a str, b: &'b str) -> (&'a str, &'b str) {
    let common = a.rsplit('.').zip(b.rsplit('.')).take_while(|(a, b)| a == b);
    let length: usize = common.map(|(segment, _)| segment.len() + 1).sum();
    let head = |length: usize, path_length: usize| path_length.saturating_sub(length);
    (&a[..head(length, a.len())], &b[..head(length, b.len())])
}

/// True if one of the two has all segments of the other, and no further number.
fn is_moved(from: &str, to: &str) -> bool {
    let segments = |path: &'_ str| -> Vec<String> {
        let segments = path.split('.').filter(|segment| !segment.is_empty());
        segments.map(String::from).collect()
    };
    let (mut from, to) = (segments(from), segments(to));
    if !to.iter().any(|segment| segment == PARALLEL) {
        from.retain(|segment| segment != PARALLEL);
    }
    let (inner, mut rest) = match from.len() <= to.len() {
        true => (from, to),
        false => (to, from),
    };
    for segment in inner {
        match rest.iter().position(|other| *other == segment) {
            Some(place) => drop(rest.remove(place)),
            None => return false,
        }
    }
    rest.iter().all(|segment| segment.parse::<usize>().is_err())
}

/// The paths by the node below `node` that they begin with; a path that is the node itself is a
/// group of its own.
fn groups<'a>(node: &str, paths: &[&'a str]) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for path in paths {
        let skipped = match node {
            "" => 0,
            node => (node.len() + 1).min(path.len()),
        };
        let length = path[skipped..].find('.').map(|dot| skipped + dot);
        let child = &path[..length.unwrap_or(path.len())];
        match groups.iter_mut().find(|(known, _)| *known == child) {
            Some((_, paths)) => paths.push(path),
            None => groups.push((child, vec![path])),
        }
    }
    groups
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

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: [&str; 5] = [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ];

    fn naming(paths: &[&str], model: &[&str]) -> Result<Naming, String> {
        Naming::find(
            paths.iter().copied(),
            &with_modules(model.iter().copied()),
            &[],
        )
    }

    /// Every path of the file gets the model's, and back.
    #[track_caller]
    fn maps(pairs: &[(&str, &str)], model: &[&str]) {
        let paths: Vec<&str> = pairs.iter().map(|(path, _)| *path).collect();
        let naming = naming(&paths, model).unwrap();
        for (path, expected) in pairs {
            assert_eq!(naming.of(path), *expected);
            assert_eq!(naming.back(expected).unwrap(), *path);
        }
    }

    #[test]
    fn prefixes_that_moved_are_found() {
        let q = |n: usize| format!("layers.{n}.self_attn.q_proj");
        for prefix in [
            "model",
            "",
            "module.model",
            "module",
            "base_model.model.model",
            "model.language_model",
            "language_model.model",
            "model.model",
        ] {
            let paths = [join(prefix, &q(0)), join(prefix, &q(1))];
            let expected = [join("model", &q(0)), join("model", &q(1))];
            maps(
                &[(&paths[0], &expected[0]), (&paths[1], &expected[1])],
                &MODEL,
            );
        }
        let bert = ["bert.encoder.layer.0.query.weight", "classifier.weight"];
        maps(
            &[
                ("encoder.layer.0.query", "bert.encoder.layer.0.query"),
                ("classifier", "classifier"),
            ],
            &bert,
        );
        let bare = ["encoder.layer.0.query.weight"];
        maps(
            &[("bert.encoder.layer.0.query", "encoder.layer.0.query")],
            &bare,
        );
    }

    #[test]
    fn groups_move_each_in_its_way() {
        let model = [
            "language_model.model.layers.0.q.weight",
            "language_model.lm_head.weight",
            "vision_tower.layers.0.q.weight",
        ];
        maps(
            &[
                (
                    "model.language_model.layers.0.q",
                    "language_model.model.layers.0.q",
                ),
                ("model.vision_tower.layers.0.q", "vision_tower.layers.0.q"),
                ("lm_head", "language_model.lm_head"),
            ],
            &model,
        );
    }

    #[test]
    fn what_fits_as_it_is_stays() {
        maps(
            &[
                ("layers.0.q", "layers.0.q"),
                ("model.layers.0.q", "model.layers.0.q"),
            ],
            &["layers.0.q", "model.layers.0.q"],
        );
        // A head that the checkpoint lacks does not keep the others from being found.
        let q = "layers.0.self_attn.q_proj";
        let naming = naming(&[q, "score"], &MODEL).unwrap();
        assert_eq!(naming.of(q), join("model", q));
        assert_eq!(naming.of("score"), "score");
        assert_eq!(
            naming.notes(),
            ["paths with `layers` in the adapter's file have `model.layers` in the model"]
        );
    }

    #[test]
    fn two_readings_are_an_error() {
        let model = ["encoder.layers.0.q", "decoder.layers.0.q"];
        let problem = naming(&["layers.0.q"], &model).unwrap_err();
        for word in [
            "more than one way",
            "`layers.0.q` in the file",
            "`decoder.layers.0.q`, `encoder.layers.0.q` in the model",
            "AdapterDir::new(dir).rename(",
        ] {
            assert!(problem.contains(word), "{word}: {problem}");
        }
        // Two paths of the file for one of the model's.
        assert!(naming(&["module.fc", "fc"], &["fc.weight"]).is_err());
    }

    #[test]
    fn other_names_and_numbers_are_other_layers() {
        for (path, model) in [
            ("encoder.fc", "decoder.fc.weight"),
            ("layers.1.fc", "layers.0.fc.weight"),
            ("fc", "layers.0.fc.weight"),
            ("layers.0.fc", "fc.weight"),
            ("fc1", "model.fc2.weight"),
        ] {
            assert_eq!(naming(&[path], &[model]).unwrap().of(path), path);
        }
    }

    #[test]
    fn wrappers_are_left_out_anywhere() {
        let path = "model.layers.0._orig_mod.self_attn.q_proj";
        let naming = naming(&[path], &MODEL).unwrap();
        assert_eq!(naming.of(path), "model.layers.0.self_attn.q_proj");
        let back = naming.back("model.layers.0.self_attn.q_proj");
        assert_eq!(back.unwrap(), path);
        assert_eq!(naming.notes().len(), 1);
    }

    #[test]
    fn the_users_rules_decide() {
        let rules = [
            ("vit.layers.*.attention.q_proj", "layer.*.query"),
            ("vit", "encoder"),
        ];
        let rules = rules.map(|(from, to)| (from.to_string(), to.to_string()));
        let naming = Naming::find(["x"], &HashSet::new(), &rules).unwrap();
        let path = "vit.layers.3.attention.q_proj.lora_A";
        assert_eq!(naming.of(path), "layer.3.query.lora_A");
        assert_eq!(
            naming.back("layer.3.query").unwrap(),
            "vit.layers.3.attention.q_proj"
        );
        assert_eq!(naming.of("vit.norm"), "encoder.norm");
        assert_eq!(naming.of("vita.norm"), "vita.norm");
        let wrong = [("a.*".to_string(), "b".to_string())];
        let problem = Naming::find(["x"], &HashSet::new(), &wrong).unwrap_err();
        assert!(problem.contains("same number of `*`"), "{problem}");
    }

    #[test]
    fn a_path_outside_of_the_files_model_has_none() {
        let model = ["left.fc.weight", "right.fc.weight"];
        let known = with_modules(model);
        let rules = [(String::new(), "left".to_string())];
        let naming = Naming::find(["fc"], &known, &rules).unwrap();
        assert_eq!(naming.back("left.fc").unwrap(), "fc");
        assert_eq!(naming.back("right.fc"), None);
        let naming = Naming::find(["left.fc"], &known, &[]).unwrap();
        assert_eq!(naming.back("right.fc").unwrap(), "right.fc");
    }

    /// Names of many layers cost no more than their number.
    #[test]
    fn many_layers_are_found_in_time() {
        let layers = |prefix: &str| -> Vec<String> {
            let numbers = 0..20_000;
            numbers.map(|n| format!("{prefix}layers.{n}.fc")).collect()
        };
        let (file, model) = (layers(""), layers("model."));
        let known = with_modules(model.iter().map(String::as_str));
        let start = std::time::Instant::now();
        let naming = Naming::find(file.iter().map(String::as_str), &known, &[]).unwrap();
        assert_eq!(naming.of(&file[7]), model[7]);
        assert!(start.elapsed().as_secs() < 10);
    }
}
