//! The shortest names of an adapter's layers: the ends of their paths, as a user of PEFT writes
//! them. Some tools compare only the last part of a path with a name.

use super::describe::{Description, Site};
use super::{AdapterConfig, OneOrMany};
use crate::config::matching::ends;
use crate::config::selection::Selection;
use crate::{LoraConfig, Settings, Targets};
use indexmap::{IndexMap, IndexSet};
use std::collections::{BTreeSet, HashMap, HashSet};

/// The shortest end of a path that fits, in whole segments, of `parts` segments or more. A number
/// alone says nothing: no end begins with one. `None` if not even the whole path fits.
fn shortest(path: &str, parts: usize, fits: impl Fn(&str) -> bool) -> Option<&str> {
    let is_name = |end: &str| {
        let mut segments = end.split('.');
        !segments.next().is_none_or(is_number) && segments.count() + 1 >= parts
    };
    let all: Vec<&str> = ends(path).collect();
    let mut shortest_first = all.into_iter().rev();
    shortest_first.find(|end| fits(end) && (is_name(end) || end.len() == path.len()))
}

/// All ends of paths that are not meant.
fn taken<'a>(others: impl Iterator<Item = &'a str>) -> HashSet<&'a str> {
    others.flat_map(ends).collect()
}

fn is_number(segment: &str) -> bool {
    segment.bytes().all(|byte| byte.is_ascii_digit())
}

fn escape(path: &str) -> String {
    fancy_regex::escape(path).into_owned()
}

/// Puts the names of these layers into the configuration: of modules, and of bare weights.
pub(super) fn write(model: &Description, layers: &[(&str, Settings)], config: &mut AdapterConfig) {
    let is_bare = |path: &str| model.site(path).is_some_and(Site::is_bare);
    let paths = layers.iter().map(|(path, _)| *path);
    let (bare, modules): (IndexSet<&str>, IndexSet<&str>) = paths.partition(|path| is_bare(path));
    if !modules.is_empty() {
        config.target_modules = Some(of_modules(model, &modules));
        if let Some(Targets::Names(names)) = &config.target_modules
            && let Some((names, numbers)) = by_number(model, &modules, names.len())
        {
            config.target_modules = Some(Targets::Names(names));
            config.layers_to_transform = Some(OneOrMany::Many(numbers));
        }
    }
    if !bare.is_empty() {
        let others = model.sites.iter().filter(|site| site.is_bare());
        let others = others.map(|site| site.path.as_str());
        let taken = taken(others.filter(|path| !bare.contains(path)));
        // PEFT takes a bare weight only with the name of its module.
        let names = bare.iter().map(|path| {
            let name = shortest(path, 2, |end| !taken.contains(end));
            name.unwrap_or(path)
        });
        config.target_parameters = Some(unique(names));
    }
}

fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let names: IndexSet<&str> = names.collect();
    names.into_iter().map(String::from).collect()
}

/// The modules that a name could mean: not those that are trained in full, which PEFT never adapts.
fn candidates(model: &Description) -> BTreeSet<&str> {
    let mut modules = model.modules();
    modules.retain(|module| !model.is_saved(module));
    modules
}

/// Ends of paths, if PEFT's suffix rule finds just these modules by them; else a regular expression
/// with the whole paths of those that no end tells apart.
fn of_modules(model: &Description, layers: &IndexSet<&str>) -> Targets {
    let candidates = candidates(model);
    let others = candidates.iter().copied();
    let taken = taken(others.filter(|path| !layers.contains(path)));
    let (mut names, mut whole) = (Vec::new(), Vec::new());
    for path in layers {
        match shortest(path, 1, |end| !taken.contains(end)) {
            Some(end) => names.push(end),
            None => whole.push(escape(path)),
        }
    }
    let names = unique(names.into_iter());
    if whole.is_empty() {
        return Targets::Names(names);
    }
    if !names.is_empty() {
        let ends: Vec<String> = names.iter().map(|end| escape(end)).collect();
        whole.push(format!(r"(?:.*\.)?(?:{})", ends.join("|")));
    }
    Targets::Regex(format!("^({})$", whole.join("|")))
}

/// Names and the numbers of layers, for an adapter of some of a model's layers: if that is shorter
/// than `count` names alone.
fn by_number(
    model: &Description,
    layers: &IndexSet<&str>,
    count: usize,
) -> Option<(Vec<String>, Vec<usize>)> {
    let numbers: BTreeSet<usize> = layers.iter().filter_map(|path| number(path)).collect();
    let candidates = candidates(model);
    let others = candidates.iter().copied().filter(|path| {
        let of_number = number(path).is_some_and(|number| numbers.contains(&number));
        of_number && !layers.contains(path)
    });
    let taken = taken(others);
    let names = layers.iter().map(|path| match number(path) {
        Some(_) => shortest(path, 1, |end| !taken.contains(end)),
        // PEFT asks for no number where a name is a whole path.
        None => Some(*path),
    });
    let names = unique(names.collect::<Option<Vec<_>>>()?.into_iter());
    let has_number = |name: &String| name.split('.').any(is_number);
    if names.len() + numbers.len() >= count || names.iter().any(has_number) {
        return None;
    }
    // The rule for numbers is the selection's: what it finds must be these layers.
    let mut config = LoraConfig::new(1).target_modules(names.clone());
    config.layers_to_transform = numbers.iter().copied().collect();
    let mut selection = Selection::new(&config).ok()?;
    for path in candidates {
        let found = selection.choose(path, None, None).ok()?.target.is_some();
        if found != layers.contains(path) {
            return None;
        }
    }
    Some((names, config.layers_to_transform))
}

/// The number of a path's layer, as PEFT finds it: a module and a list come before it.
fn number(path: &str) -> Option<usize> {
    let (inner, _) = path.rsplit_once('.')?;
    let mut numbers = inner.split('.').skip(2).filter(|part| is_number(part));
    numbers.next()?.parse().ok()
}

/// The keys of a pattern for the layers whose value is not the default. PEFT sorts the keys and
/// takes the first match: no key matches a layer with another value.
pub(super) fn pattern<'a, T: PartialEq + Copy>(
    layers: impl Iterator<Item = (&'a str, T)> + Clone,
    default: T,
) -> IndexMap<String, T> {
    // The value of all paths with an end; `None` if they differ.
    let mut values: HashMap<&str, Option<T>> = HashMap::new();
    for (path, value) in layers.clone() {
        for end in ends(path) {
            let known = values.entry(end).or_insert(Some(value));
            *known = known.filter(|known| *known == value);
        }
    }
    let mut keys = IndexMap::new();
    for (path, value) in layers.filter(|(_, value)| *value != default) {
        let end = shortest(path, 1, |end| values.get(end) == Some(&Some(value)));
        let key = match end.filter(|end| end.len() < path.len()) {
            Some(end) => escape(end),
            None => format!("^{}$", escape(path)),
        };
        keys.insert(key, value);
    }
    keys.sort_keys();
    keys
}
