//! Looks for the rules that bring a file's paths to a model's.

use super::{PARALLEL, Rule, ambiguous, replaced};
use std::collections::{HashMap, HashSet};

/// Candidates that are looked at. No model needs more; a hostile file might, to take our time.
const MOST_CANDIDATES: usize = 64;

/// How many segments of a path may differ from group to group.
const MOST_LEVELS: usize = 4;

/// Looks for the rules that bring a file's paths to a model's.
pub(super) struct Finder<'a> {
    known: &'a HashSet<&'a str>,
    /// The model's paths by their last segment.
    by_end: HashMap<&'a str, Vec<&'a str>>,
}

impl<'a> Finder<'a> {
    pub fn new(known: &'a HashSet<&'a str>) -> Self {
        let mut by_end: HashMap<&str, Vec<&str>> = HashMap::new();
        for path in known {
            by_end.entry(end(path)).or_default().push(path);
        }
        by_end.values_mut().for_each(|paths| paths.sort_unstable());
        Self { known, by_end }
    }

    /// Adds the rule of these paths, which all begin with `node`: one rule for all of them, else
    /// one for each group of the next segment.
    pub fn solve(
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
