//! A LoRA model in PEFT's terms: which layers are adapted, what is trained in full, which biases,
//! and the key of each tensor in the file.

use super::keys;
use crate::adapter::Form;
use crate::adapter::copies::{self, Own};
use crate::config::Kind;
use crate::config::matching::{holder, is_bias, modules_above, outermost};
use crate::manage::tie::base_id;
use crate::path::join;
use crate::traits::each_layer;
use crate::{Adapter, Init, LoftqConfig, LoraModule, Param, Part, Result, Role, Settings};
use candle_core::Tensor;
use indexmap::IndexMap;
use std::collections::{BTreeSet, HashMap, HashSet};

/// A model with one of its adapters, as a walk over its layers finds them.
pub(super) struct Description {
    pub sites: Vec<Site>,
    /// The place of each path among the sites.
    places: HashMap<String, usize>,
    /// The places of the bare weights of each module.
    bare: HashMap<String, Vec<usize>>,
    /// Paths of the modules that are trained in full, in order.
    pub saved: Vec<String>,
    /// Parameters that are trained but cannot be put into a file.
    pub problems: Vec<String>,
}

/// A leaf of the walk.
pub(super) struct Site {
    pub path: String,
    pub kind: Kind,
    /// The layer can carry adapters.
    pub adaptable: bool,
    pub adapter: Option<Settings>,
    /// How the base was quantised for the adapter.
    pub loftq: Option<LoftqConfig>,
    /// The initial value, if the adapter fits the residual base that this value left.
    pub start: Option<Init>,
    /// The adapter's B is not trained, as MiCA asks.
    pub keeps_b: bool,
    /// How the weight lies, for a layer that can carry adapters.
    pub form: Option<Form>,
    /// Path of the embedding that this adapter is tied to: the adapter is a view of the
    /// embedding's.
    pub tied_to: Option<String>,
    /// The copy of the weight belongs to the embedding that shares the weight.
    pub has_tied_copy: bool,
    /// The rows of a vocabulary that the adapter trains.
    pub tokens: Option<Vec<u32>>,
    /// The layer's own parameters, as they are while the adapter acts.
    pub own: Vec<Own>,
    /// The adapter's parameters.
    pub adapters: Vec<Param<Tensor>>,
}

/// A tensor of the adapter.
pub(super) struct Entry {
    /// Key in the file, without the prefix.
    pub key: String,
    /// Path of the layer and name in the layer.
    pub path: String,
    pub name: String,
    pub tensor: Tensor,
    /// The key of the tensor that this one is the transpose of.
    pub tied_to: Option<String>,
}

impl Site {
    /// True for a tensor that is a field of a model: no module itself, it belongs to the one above.
    fn is_tensor(&self) -> bool {
        self.kind == Kind::Tensor || self.is_bare()
    }

    /// The path of the module that the layer is a part of.
    fn module(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |(module, _)| module)
    }

    /// A bare weight, PEFT's `target_parameters`.
    pub fn is_bare(&self) -> bool {
        self.kind.is_bare()
    }

    pub fn base_params(&self) -> impl Iterator<Item = &Own> {
        self.own.iter().filter(|own| own.param.role == Role::Base)
    }

    fn is_bias(&self, param: &Param<Tensor>) -> bool {
        let path = join(&self.path, &param.name);
        param.role == Role::Base && is_bias(&path)
    }

    /// Something beside the bias is trained.
    fn is_trained(&self) -> bool {
        self.base_params()
            .any(|own| own.trained && !self.is_bias(&own.param))
    }

    /// Key of a bias that is trained for itself.
    fn bias_key(&self, param: &Param<Tensor>) -> String {
        match self.adapter {
            Some(_) => keys::of_base(&self.path, "bias"),
            None => join(&self.path, &param.name),
        }
    }
}

impl Description {
    /// Describes a model and its adapter of this name.
    pub fn of<M: LoraModule>(model: &M, adapter: &str) -> Self {
        Self::with(model, adapter, Adapter::clone)
    }

    /// As [`of`](Self::of), with the adapter converted to one for the original base. Where a quantised
    /// layer's residual base is in blocks, no conversion is exact: such an adapter stays as it is, in all
    /// layers.
    pub fn for_original<M: LoraModule>(model: &M, adapter: &str) -> Result<Self> {
        let mut is_raw = false;
        each_layer(model, |_, layer| {
            let of_name = layer
                .adapted()
                .and_then(|layer| layer.adapters().get(adapter));
            is_raw |= of_name.is_some_and(Adapter::fits_changed_base);
        });
        if is_raw {
            return Ok(Self::of(model, adapter));
        }
        let mut failed = None;
        let description = Self::with(model, adapter, |adapter| {
            adapter.for_original().unwrap_or_else(|error| {
                failed = Some(error);
                adapter.clone()
            })
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(description),
        }
    }

    fn with<M: LoraModule>(
        model: &M,
        adapter: &str,
        mut view: impl FnMut(&Adapter) -> Adapter,
    ) -> Self {
        let mut sites = Vec::new();
        // A head comes after the embedding that it shares its weight with.
        let mut embeddings = HashMap::new();
        each_layer(model, |path, layer| {
            let adapted = layer.adapted();
            let adapters = adapted.map(|adapted| adapted.adapters());
            let of_name = adapters
                .and_then(|adapters| adapters.get(adapter))
                .map(&mut view);
            let of_name = of_name.as_ref();
            let tensors = of_name
                .map(|of_name| of_name.tensors())
                .into_iter()
                .flatten();
            let named = tensors.filter_map(|(part, tensor)| {
                let name = part.name(adapted?.is_lookup(), adapter);
                Some(Param::new(name, Role::Adapter(part), tensor.clone()))
            });
            let mut params: Vec<_> = named.collect();
            let (mut tied_to, mut tokens) = (None, None);
            if let Some(adapted) = adapted {
                let rows = adapters.and_then(|adapters| adapters.tokens_of(adapter));
                if let Some(of_name) = rows.filter(|rows| !rows.is_shared()) {
                    let name = Part::Tokens.name(true, adapter);
                    let rows = of_name.rows().clone();
                    params.push(Param::new(name, Role::Adapter(Part::Tokens), rows));
                    tokens = Some(of_name.ids().to_vec());
                }
                let id = base_id(adapted);
                if adapted.is_lookup() {
                    embeddings.insert(id, path.to_string());
                } else if of_name.is_some_and(|adapter| adapter.is_tied()) {
                    tied_to = embeddings.get(&id).cloned();
                }
            }
            sites.push(Site {
                path: path.into(),
                kind: layer.kind(),
                adaptable: adapted.is_some(),
                adapter: of_name.map(|adapter| adapter.settings()),
                loftq: of_name.and_then(|adapter| adapter.loftq.clone()),
                start: of_name.and_then(|adapter| adapter.start),
                keeps_b: of_name.is_some_and(|adapter| adapter.keeps_b),
                form: adapted.map(|adapted| adapted.form()),
                tied_to,
                has_tied_copy: layer.copies().is_some_and(|copies| copies.is_tied(adapter)),
                tokens,
                own: copies::seen_by(layer, adapter),
                adapters: params,
            });
        });
        let (mut places, mut bare) = (HashMap::new(), HashMap::<_, Vec<_>>::new());
        for (place, site) in sites.iter().enumerate() {
            places.entry(site.path.clone()).or_insert(place);
            if site.is_bare() {
                bare.entry(site.module().to_string())
                    .or_default()
                    .push(place);
            }
        }
        let mut description = Self {
            sites,
            places,
            bare,
            saved: Vec::new(),
            problems: Vec::new(),
        };
        description.find_saved();
        description
    }

    /// Fills in which modules are trained in full: those of trained layers, and those whose
    /// tensors are all trained.
    fn find_saved(&mut self) {
        // Modules with a parameter that is not trained.
        let mut partial = HashSet::new();
        for site in &self.sites {
            if site.base_params().any(|own| !own.trained) {
                partial.extend(modules_above(&site.path).chain([site.path.as_str()]));
            }
        }
        let mut saved = BTreeSet::new();
        for site in self.sites.iter().filter(|site| site.is_trained()) {
            // A tensor field is saved with its module if all of the module is trained, else under
            // its own name: PEFT loads any key that names a parameter.
            let above = Some(site.module()).filter(|module| !module.is_empty());
            let module = match above.filter(|above| site.is_tensor() && !partial.contains(above)) {
                Some(module) => module,
                None => &site.path,
            };
            if module.is_empty() {
                let problem = "a layer without a name is trained; make it a field of a model";
                self.problems.push(problem.into());
            } else {
                saved.insert(module);
            }
        }
        self.saved = outermost(&saved).map(String::from).collect();
    }

    pub fn is_saved(&self, path: &str) -> bool {
        self.saved_module(path).is_some()
    }

    /// The module that is trained in full and holds this path or key.
    pub fn saved_module(&self, key: &str) -> Option<&str> {
        holder(&self.saved, key)
    }

    /// True if some layer's adapter has such a tensor.
    pub fn has(&self, part: Part) -> bool {
        let mut params = self.sites.iter().flat_map(|site| &site.adapters);
        params.any(|param| param.role == Role::Adapter(part))
    }

    /// The modules that the file names. A head is left out if its copy follows from an embedding's.
    pub fn named_saved(&self) -> Vec<String> {
        let saved = self.saved.iter();
        let tied = |path: &str| self.site(path).is_some_and(|site| site.has_tied_copy);
        saved.filter(|path| !tied(path)).cloned().collect()
    }

    /// True if a head shares an embedding's adapter or copy.
    pub fn is_tied(&self) -> bool {
        let mut sites = self.sites.iter();
        sites.any(|site| site.tied_to.is_some() || site.has_tied_copy)
    }

    pub fn site(&self, path: &str) -> Option<&Site> {
        self.places.get(path).map(|place| &self.sites[*place])
    }

    /// The layers' own parameters by name, as they are while the adapter acts.
    pub fn own(&self) -> HashMap<String, &Tensor> {
        let sites = self.sites.iter();
        let own = sites.flat_map(|site| site.own.iter().map(move |own| (site, own)));
        own.map(|(site, own)| (join(&site.path, &own.param.name), &own.param.tensor))
            .collect()
    }

    /// The paths of all modules and parameters, as far as a walk can see them.
    pub fn paths(&self) -> Vec<String> {
        let modules = self.modules().into_iter().map(String::from);
        let sites = self.sites.iter();
        let own =
            sites.flat_map(|site| site.own.iter().map(|own| join(&site.path, &own.param.name)));
        modules.chain(own).collect()
    }

    pub fn adapted(&self) -> impl Iterator<Item = (&str, Settings)> {
        let sites = self.sites.iter();
        // A tied adapter follows from that of its embedding.
        let sites = sites.filter(|site| site.tied_to.is_none());
        sites.filter_map(|site| Some((site.path.as_str(), site.adapter?)))
    }

    /// The paths of all modules, as far as a walk can see them.
    pub fn modules(&self) -> BTreeSet<&str> {
        let mut modules = BTreeSet::new();
        for site in &self.sites {
            modules.extend(modules_above(&site.path));
            if !site.is_tensor() {
                modules.insert(site.path.as_str());
            }
        }
        modules
    }

    /// The biases that are not part of a fully trained module: key, whether the layer has an
    /// adapter, whether the bias is trained.
    pub fn biases(&self) -> Vec<(String, bool, bool)> {
        let mut biases = Vec::new();
        for site in self.sites.iter().filter(|site| !self.is_saved(&site.path)) {
            for own in site.own.iter().filter(|own| site.is_bias(&own.param)) {
                let key = site.bias_key(&own.param);
                biases.push((key, site.adapter.is_some(), own.trained));
            }
        }
        biases
    }

    /// The tensors that the adapter consists of.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for site in &self.sites {
            let saved = self.is_saved(&site.path);
            let mut add = |key: String, param: &Param<Tensor>| {
                let tied_to = site
                    .tied_to
                    .as_deref()
                    .and_then(|embedding| match param.role {
                        Role::Adapter(Part::A) => Some(keys::part(embedding, Part::B, true)),
                        Role::Adapter(Part::B) => Some(keys::part(embedding, Part::A, true)),
                        _ => None,
                    });
                entries.push(Entry {
                    key,
                    tied_to,
                    path: site.path.clone(),
                    name: param.name.clone(),
                    tensor: param.tensor.clone(),
                });
            };
            for own in &site.own {
                let param = &own.param;
                let is_saved = saved
                    && match param.role {
                        Role::Buffer => param.tensor.dtype().is_float(),
                        _ => true,
                    };
                if is_saved {
                    add(join(&site.path, &param.name), param);
                } else if own.trained && site.is_bias(param) {
                    add(site.bias_key(param), param);
                }
            }
            for param in &site.adapters {
                if let Role::Adapter(part) = param.role {
                    let place = match site.is_bare() {
                        true => self.place(&site.path, |other| other.adapter.is_some()),
                        false => site.path.clone(),
                    };
                    let of_lookup = site.kind == Kind::Embedding;
                    add(keys::part(&place, part, of_lookup), param);
                }
            }
        }
        entries
    }

    /// Where PEFT keeps the adapter of a bare weight. PEFT wraps the weight's module once for each
    /// adapted weight, in their order, the first innermost.
    pub fn place(&self, path: &str, is_adapted: impl Fn(&Site) -> bool) -> String {
        let Some(own) = self.places.get(path) else {
            return path.into();
        };
        let module = self.sites[*own].module();
        let bare = self.bare.get(module).into_iter().flatten();
        let outer = bare
            .filter(|place| *place > own)
            .map(|place| &self.sites[*place]);
        let outer = outer.filter(|site| is_adapted(site));
        outer.fold(module.to_string(), |place, _| keys::wrapped(&place))
    }

    /// Where the file keeps the adapter of each of these layers, and the rows of its A.
    pub fn places<'a>(
        &'a self,
        planned: &'a IndexMap<String, Settings>,
    ) -> impl Iterator<Item = (&'a str, String, Settings, usize)> {
        planned.iter().map(|(path, settings)| {
            let site = self.site(path);
            let place = match site.is_some_and(Site::is_bare) {
                true => self.place(path, |other| planned.contains_key(&other.path)),
                false => path.clone(),
            };
            let experts = site.and_then(|site| site.form).map_or(1, Form::experts);
            (
                path.as_str(),
                place,
                *settings,
                settings.rank.saturating_mul(experts),
            )
        })
    }

    /// The rows of vocabularies that the adapter trains, by the layer's path.
    pub fn tokens(&self) -> IndexMap<String, Vec<u32>> {
        let sites = self.sites.iter();
        let tokens = sites.filter_map(|site| Some((site.path.clone(), site.tokens.clone()?)));
        tokens.collect()
    }
}
