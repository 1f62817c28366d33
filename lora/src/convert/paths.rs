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
        let (mut taken, mut tied) = (HashSet::new(), Vec::new());
        let holders = found.iter().flat_map(|layer| &layer.names);
        let mut held = HashMap::<&str, usize>::new();
        holders.for_each(|name| *held.entry(name).or_default() += 1);
        for layer in found {
            // A tensor that is a field and a layer's parameter, too, is the latter's.
            let is_shared = layer.is_bare && layer.names.iter().any(|name| held[&**name] > 1);
            match layer.recorded() {
                Some(own) if !is_shared && taken.insert(own.clone()) => {
                    paths.layers.insert(layer.path.clone(), own);
                }
                Some(_) => tied.push(layer.path.clone()),
                None => {}
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
    /// The path by the recorded names: what they have in common, without the parameter's own name.
    fn recorded(&self) -> Option<String> {
        if self.above_name.is_some() {
            return None;
        }
        let modules = self.names.iter().map(|name| match self.is_bare {
            true => &**name,
            false => name.rsplit_once('.').map_or("", |(module, _)| module),
        });
        modules.reduce(common).map(str::to_string)
    }
}

/// What two dotted paths begin with.
fn common<'a>(a: &'a str, b: &'a str) -> &'a str {
    let same = a.split('.').zip(b.split('.'));
    let same = same.take_while(|(part, other)| part == other);
    // Each part with the dot behind it; there is none behind the last.
    let length: usize = same.map(|(part, _)| part.len() + 1).sum();
    &a[..length.saturating_sub(1)]
}

/// Where the checkpoint has the parts that hold the recorded layers. A layer n fields below a part puts
/// the part n segments above the layer. Layers right below a part count first, then the many.
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
        let order = |(place, (depth, count)): &(&str, (usize, usize))| {
            (*depth, usize::MAX - *count, place.to_string())
        };
        let (place, _) = votes.into_iter().min_by_key(order)?;
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
