//! The model's paths beside the names of its checkpoint.

use anyhow::{Result, ensure};
use lora::NamedParam;
use std::collections::BTreeSet;

/// Each parameter has a name of the checkpoint, and each name of the checkpoint a parameter.
///
/// A constructor may make one weight of several tensors, or change its shape. Then the parameter is new,
/// and its layer must be the place of the tensors.
pub fn compare(params: &[NamedParam], asked: &BTreeSet<String>) -> Result<()> {
    let modules: BTreeSet<&str> = asked
        .iter()
        .filter_map(|name| Some(name.rsplit_once('.')?.0))
        .collect();
    let is_known =
        |param: &NamedParam| asked.contains(&param.path) || modules.contains(param.layer());
    let unknown = params.iter().filter(|param| !is_known(param));
    let unknown: Vec<_> = unknown.map(|param| param.path.as_str()).collect();
    let layers: BTreeSet<&str> = params.iter().map(NamedParam::layer).collect();
    let paths: BTreeSet<&str> = params.iter().map(|param| param.path.as_str()).collect();
    let is_held = |name: &&String| {
        paths.contains(name.as_str())
            || name
                .rsplit_once('.')
                .is_some_and(|(module, _)| layers.contains(module))
    };
    let lost: Vec<_> = asked
        .iter()
        .filter(|name| !is_held(name))
        .map(String::as_str)
        .collect();
    ensure!(
        unknown.is_empty() && lost.is_empty(),
        "{} of {} paths are no names of the checkpoint: {}; {} of {} names are of no parameter: {}",
        unknown.len(),
        params.len(),
        unknown.join(", "),
        lost.len(),
        asked.len(),
        lost.join(", ")
    );
    Ok(())
}
