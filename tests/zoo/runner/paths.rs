//! The model's paths beside the names of its checkpoint.

use anyhow::{Result, ensure};
use lora::NamedParam;
use std::collections::BTreeSet;

/// Each name of the checkpoint has its parameter. What a constructor computes, such as a table of
/// positions, has no name, and neither has a tied head: that is no miss, as long as no name is left over.
///
/// A constructor may make one weight of several tensors. Then the parameter is new, and its layer must
/// be the place of the tensors.
pub fn compare(params: &[NamedParam], asked: &BTreeSet<String>) -> Result<()> {
    let layers: BTreeSet<&str> = params.iter().map(NamedParam::layer).collect();
    let paths: BTreeSet<&str> = params.iter().map(|param| param.path.as_str()).collect();
    let is_held = |name: &&String| {
        let module = name.rsplit_once('.').map(|(module, _)| module);
        paths.contains(name.as_str()) || module.is_some_and(|module| layers.contains(module))
    };
    let lost = asked.iter().filter(|name| !is_held(name));
    let lost: Vec<_> = lost.map(String::as_str).collect();
    let unknown = params.iter().filter(|param| !asked.contains(&param.path));
    let unknown: Vec<_> = unknown.map(|param| param.path.as_str()).collect();
    ensure!(
        lost.is_empty(),
        "{} of {} names have no parameter: {}; parameters without a name: {}",
        lost.len(),
        asked.len(),
        lost.join(", "),
        unknown.join(", ")
    );
    Ok(())
}
