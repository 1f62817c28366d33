//! The paths of a model's layers, from the names of their tensors in the checkpoint.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A layer as the walk found it.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// The path by the names of fields.
    pub(super) path: String,
    /// The recorded names of the layer's tensors.
    pub(super) names: Vec<Arc<str>>,
    /// The layer is a single tensor, whose name is the layer's path.
    pub(super) is_bare: bool,
    /// How much of the path lies above the first field whose attribute names it, if one does.
    pub(super) above_name: Option<usize>,
}

/// The paths of layers and parts, by their paths in the struct.
#[derive(Debug, Default)]
pub(super) struct Paths {
    layers: HashMap<String, String>,
    /// What is called otherwise in the checkpoint: parts that hold layers, by their path in the struct.
    parts: HashMap<String, String>,
}

impl Paths {
    pub(super) fn new(found: &[Found]) -> Self {
        let mut paths = Self::default();
        let owners = owners(found);
        let (mut taken, mut tied) = (HashSet::new(), Vec::new());
        for (index, layer) in found.iter().enumerate() {
            let mut names = layer.recorded().iter();
            match names.find(|name| owners.get(&***name) == Some(&index)) {
                Some(own) => {
                    let own = layer.place(own);
                    if taken.insert(own) {
                        paths.layers.insert(layer.path.clone(), own.to_string());
                    }
                }
                None if layer.recorded().is_empty() => {}
                None => tied.push(layer.path.clone()),
            }
        }
        paths.parts = parts(&paths.layers);
        // A head that shares the embedding's tensor has the tensor's name, but not its place.
        let own = tied.into_iter().map(|path| (path.clone(), path));
        paths.layers.extend(own);
        for layer in found {
            if !paths.layers.contains_key(&layer.path) {
                let path = paths.beside(layer);
                paths.layers.insert(layer.path.clone(), path);
            }
        }
        paths
    }

    /// The path of a layer.
    pub(super) fn layer<'a>(&'a self, path: &'a str) -> &'a str {
        self.layers.get(path).map_or(path, String::as_str)
    }

    /// The path of a part, which holds layers.
    pub(super) fn part(&self, path: &str) -> String {
        if let Some(part) = self.parts.get(path) {
            return part.clone();
        }
        match path.rsplit_once('.') {
            Some((above, last)) => crate::path::join(&self.part(above), last),
            None if path.is_empty() => String::new(),
            None => crate::path::join(&self.part(""), path),
        }
    }

    /// The path of a layer without a name of its own, or with one in its attributes: the names of its
    /// fields, below the part that holds it.
    fn beside(&self, layer: &Found) -> String {
        let last = layer.path.rfind('.').unwrap_or(0);
        let (above, below) = layer.path.split_at(layer.above_name.unwrap_or(last));
        crate::path::join(&self.part(above), below.trim_start_matches('.'))
    }
}

impl Found {
    /// The recorded names, unless an attribute names the layer.
    fn recorded(&self) -> &[Arc<str>] {
        match self.above_name {
            Some(_) => &[],
            None => &self.names,
        }
    }

    /// Where a tensor of this name puts the layer.
    fn place<'a>(&self, name: &'a str) -> &'a str {
        match self.is_bare {
            true => name,
            false => name.rsplit_once('.').map_or("", |(module, _)| module),
        }
    }

    /// True if the field is called as the checkpoint calls the tensor's module.
    fn is_called_as(&self, name: &str) -> bool {
        last(&self.path) == last(self.place(name))
    }
}

/// Which layer a tensor belongs to that several layers may hold, by the tensor's name: the first one, or
/// one whose field has the name of the tensor's module. A tensor that is a field has no module.
fn owners(found: &[Found]) -> HashMap<&str, usize> {
    let mut owners = HashMap::new();
    let layers = found.iter().enumerate();
    for (index, layer) in layers.clone().filter(|(_, layer)| !layer.is_bare) {
        for name in layer.recorded() {
            let owner = owners.entry(&**name).or_insert(index);
            if layer.is_called_as(name) && !found[*owner].is_called_as(name) {
                *owner = index;
            }
        }
    }
    for (index, layer) in layers.filter(|(_, layer)| layer.is_bare) {
        for name in layer.recorded() {
            owners.entry(&**name).or_insert(index);
        }
    }
    owners
}

/// The last part of a dotted path.
fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// What two dotted paths begin with.
fn common<'a>(a: &'a str, b: &str) -> &'a str {
    let same = a.split('.').zip(b.split('.'));
    let same = same.take_while(|(part, other)| part == other);
    // Each part with the dot behind it; there is none behind the last.
    let length: usize = same.map(|(part, _)| part.len() + 1).sum();
    &a[..length.saturating_sub(1)]
}

/// Where the checkpoint has the parts that hold the recorded layers. A layer n fields below a part puts
/// the part n segments above the layer. Layers right below a part count first, then the many, and where
/// they are at odds what they have in common.
fn parts(layers: &HashMap<String, String>) -> HashMap<String, String> {
    let mut votes: HashMap<&str, HashMap<&str, (usize, usize)>> = HashMap::new();
    for (path, recorded) in layers {
        let (mut above, mut place) = (path.as_str(), recorded.as_str());
        let mut depth = 0;
        while !above.is_empty() {
            above = above.rsplit_once('.').map_or("", |(above, _)| above);
            let Some((up, _)) = place
                .rsplit_once('.')
                .or((!place.is_empty()).then_some(("", "")))
            else {
                break;
            };
            place = up;
            depth += 1;
            let vote = votes
                .entry(above)
                .or_default()
                .entry(place)
                .or_insert((depth, 0));
            vote.0 = vote.0.min(depth);
            vote.1 += 1;
        }
    }
    let best = votes.into_iter().filter_map(|(part, votes)| {
        let order = |(depth, count): &(usize, usize)| (*depth, usize::MAX - *count);
        let first = votes.values().map(order).min()?;
        let votes = votes.into_iter().filter(|(_, vote)| order(vote) == first);
        let place = votes.map(|(place, _)| place).reduce(|a, b| common(a, b))?;
        Some((part.to_string(), place.to_string()))
    });
    best.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, names: &[&str]) -> Found {
        Found {
            path: path.into(),
            names: names.iter().map(|&name| name.into()).collect(),
            ..Found::default()
        }
    }

    #[test]
    fn a_layer_is_where_its_tensors_are() {
        let paths = Paths::new(&[
            found(
                "blocks.0.q",
                &[
                    "model.layers.0.self_attn.q_proj.weight",
                    "model.layers.0.self_attn.q_proj.bias",
                ],
            ),
            found("blocks.0.norm", &["model.layers.0.input_norm.scale"]),
            Found {
                is_bare: true,
                ..found("table", &["model.table"])
            },
        ]);
        assert_eq!(paths.layer("blocks.0.q"), "model.layers.0.self_attn.q_proj");
        assert_eq!(paths.layer("blocks.0.norm"), "model.layers.0.input_norm");
        assert_eq!(paths.layer("table"), "model.table");
    }

    /// What a constructor changed stands beside its siblings, under its field's name.
    #[test]
    fn changed_tensors_stand_beside_their_siblings() {
        let paths = Paths::new(&[
            found(
                "blocks.0.attn.q_proj",
                &["model.layers.0.self_attn.q_proj.weight"],
            ),
            found("blocks.0.attn.k_proj", &[]),
            found("blocks.0.norm", &[]),
            found("blocks.1.attn.k_proj", &[]),
            found("head", &[]),
        ]);
        assert_eq!(
            paths.layer("blocks.0.attn.k_proj"),
            "model.layers.0.self_attn.k_proj"
        );
        assert_eq!(paths.layer("blocks.0.norm"), "model.layers.0.norm");
        assert_eq!(
            paths.layer("blocks.1.attn.k_proj"),
            "model.layers.1.attn.k_proj"
        );
        assert_eq!(paths.layer("head"), "model.head");
        assert_eq!(paths.part("blocks.0"), "model.layers.0");
    }

    #[test]
    fn a_tied_head_keeps_its_own_path() {
        let paths = Paths::new(&[
            found("embed", &["model.embed_tokens.weight"]),
            found("layers.0.fc", &["model.layers.0.fc.weight"]),
            found("lm_head", &["model.embed_tokens.weight"]),
        ]);
        assert_eq!(paths.layer("embed"), "model.embed_tokens");
        assert_eq!(paths.layer("lm_head"), "lm_head");
    }

    /// candle's constructors give a head the embedding's weight, or the embedding the head's.
    #[test]
    fn a_shared_tensor_belongs_to_the_layer_of_its_name() {
        let paths = Paths::new(&[
            found("embed_tokens", &["model.lm_head.weight"]),
            found("lm_head", &["model.lm_head.weight"]),
            found("decoder", &["model.lm_head.weight", "head.decoder.bias"]),
            Found {
                is_bare: true,
                ..found("table", &["model.lm_head.weight"])
            },
        ]);
        assert_eq!(paths.layer("lm_head"), "model.lm_head");
        assert_eq!(paths.layer("embed_tokens"), "embed_tokens");
        assert_eq!(paths.layer("decoder"), "head.decoder");
        assert_eq!(paths.layer("table"), "table");
    }

    /// The bias of some heads lies outside of the head's module.
    #[test]
    fn a_layer_is_where_its_weight_is() {
        let names = ["cls.predictions.decoder.weight", "cls.predictions.bias"];
        let paths = Paths::new(&[found("head", &names)]);
        assert_eq!(paths.layer("head"), "cls.predictions.decoder");
    }

    /// Fields that are called as module and parameter at once say nothing about the part's own place.
    #[test]
    fn tensors_of_several_modules_in_one_part() {
        let bare = |path: &str, name: &str| Found {
            is_bare: true,
            ..found(path, &[name])
        };
        let paths = Paths::new(&[
            bare("blocks.0.ln1_weight", "blocks.0.ln1.weight"),
            bare("blocks.0.ln2_weight", "blocks.0.ln2.weight"),
            found("blocks.0.ffn.changed", &[]),
        ]);
        assert_eq!(paths.layer("blocks.0.ln1_weight"), "blocks.0.ln1.weight");
        assert_eq!(paths.layer("blocks.0.ffn.changed"), "blocks.0.ffn.changed");
    }

    #[test]
    fn an_attribute_wins() {
        let paths = Paths::new(&[
            found("blocks.0.q", &["model.layers.0.self_attn.q_proj.weight"]),
            Found {
                above_name: Some(8),
                ..found("blocks.0.own", &["model.layers.0.self_attn.k_proj.weight"])
            },
        ]);
        assert_eq!(paths.layer("blocks.0.own"), "model.layers.0.self_attn.own");
    }

    /// Without any record paths are those of the struct.
    #[test]
    fn nothing_recorded() {
        let paths = Paths::new(&[found("layers.0.fc", &[]), found("head", &[])]);
        assert_eq!(
            (paths.layer("layers.0.fc"), paths.layer("head")),
            ("layers.0.fc", "head")
        );
        assert_eq!(paths.part("layers.0"), "layers.0");
    }
}
