//! Adapters of layers: linear, convolution, embedding.

use super::change::FileUpdate;
use super::modules::{Keys, Module};
use super::planner::Planner;
use crate::adapter::Form;
use crate::adapter::Part;
use crate::config::matching::is_or_ends_with;
use crate::config::selection::Overrides;
use crate::path::join;
use crate::peft::keys::{self, without_wrappers};
use crate::{Result, Settings};

/// The name of a linear layer's weight, and whether it is stored transposed, if the shapes tell.
pub(super) type Laid = (String, Option<bool>);

impl Planner<'_> {
    /// Plans the update of a layer with `lora_A` and `lora_B`.
    pub fn layer(
        &mut self,
        path: &str,
        module: &Module,
        keys: &Keys,
        square: &mut Vec<Laid>,
    ) -> Result<()> {
        let name = without_wrappers(path);
        let Some((a, b)) = self.pair(&name, module) else {
            return Ok(());
        };
        let place = self.locate(&name);
        let names = [join(&place, "weight"), join(&place, "in_proj_weight")];
        let mut found = names.iter().find(|name| self.base.contains(name)).cloned();
        let is_tied = self.is_tied_head(&names[0]);
        // A tied head needs no update of its own: its weight is the embedding's, which gets the
        // update. With DoRA, the two have different magnitudes, and are two weights.
        if (found.is_none() || is_tied)
            && !module.has(Part::Magnitude)
            && self.is_shared(&a, &b, keys)?
        {
            if let Some(tie) = &mut self.tie {
                tie.shares_update |= is_tied;
            }
            return Ok(());
        }
        if is_tied {
            self.start_head();
            found = Some(names[0].clone());
        } else if found.is_none() {
            self.problems.push(format!(
                "`{name}` is adapted, but the base has no `{}`; if it shares an embedding's weight, \
                 MergeOptions::untie gives it one of its own",
                names[0]
            ));
        }
        let Some(weight) = found else {
            return Ok(());
        };
        // The output projection inside an attention layer has the settings of that layer. PEFT adds
        // its update twice, in training as in merging, so the adapter was trained to count twice.
        let owner = keys::owner_of_projection(path);
        let mut settings = self.settings(owner.unwrap_or(&name))?;
        if owner.is_some() {
            settings.scaling *= 2.0;
        }
        let (a_shape, b_shape) = (self.shape_of(&a).to_vec(), self.shape_of(&b).to_vec());
        let shape = self.shape(&weight).unwrap_or_default();
        let fits = |(a, b, shape): (&[usize], &[usize], &[usize])| match (a, b, shape) {
            (&[r, input], &[out, r2], &[x, y]) if r == r2 => {
                let (plain, transposed) = ((out, input) == (x, y), (input, out) == (x, y));
                match (plain, transposed) {
                    (true, true) => Ok((Form::Linear, None)),
                    (true, false) => Ok((Form::Linear, Some(false))),
                    (false, true) => Ok((Form::Transposed, Some(true))),
                    _ => Err(false),
                }
            }
            ([r, channels, k @ ..], [out, r2, ones @ ..], [x, y, kernel @ ..])
                if k == kernel
                    && !k.is_empty()
                    && ones.len() == k.len()
                    && ones.iter().all(|one| *one == 1)
                    && out == x =>
            {
                let grouped = *y > 0 && channels % y == 0 && r2 * (channels / y) == *r;
                match (channels == y && r == r2, grouped) {
                    (true, _) => Ok((Form::Conv { groups: 1 }, Some(false))),
                    (_, grouped) => Err(grouped),
                }
            }
            _ => Err(false),
        };
        let (form, transposed) = match fits((&a_shape, &b_shape, &shape)) {
            Ok(fit) => fit,
            Err(true) => {
                self.problems.push(format!(
                    "`{name}` is a convolution with groups, whose update lets every output see \
                     every input channel: no weight of shape {shape:?} can hold that update"
                ));
                return Ok(());
            }
            Err(false) => {
                self.problems.push(format!(
                    "`{name}` has A {a_shape:?} and B {b_shape:?}, which do not fit the base's \
                     `{weight}` {shape:?}"
                ));
                return Ok(());
            }
        };
        let out = b_shape[0];
        let magnitude = self.magnitude(&name, module, out);
        self.bias_of_b(&name, &place, module, out, settings.scaling);
        if !matches!(form, Form::Conv { .. }) {
            square.push((weight.clone(), transposed));
        }
        let scaling = settings.scaling;
        self.add(
            &name,
            &weight,
            settings,
            FileUpdate {
                a,
                b,
                magnitude,
                scaling,
                form,
            },
        );
        Ok(())
    }

    /// Plans the update of an embedding: A (r, rows), B (columns, r), the weight (rows, columns).
    pub fn embedding(&mut self, name: &str, module: &Module) -> Result<()> {
        let pair = self.pair(name, module);
        let Some((a, b)) = pair else {
            return Ok(());
        };
        let weight = join(&self.locate(name), "weight");
        let Some(shape) = self.shape(&weight) else {
            let problem = format!("`{name}` is adapted, but the base has no `{weight}`");
            self.problems.push(problem);
            return Ok(());
        };
        let (a_shape, b_shape) = (self.shape_of(&a).to_vec(), self.shape_of(&b).to_vec());
        let fits = matches!(
            (a_shape.as_slice(), b_shape.as_slice(), shape.as_slice()),
            (&[r, rows], &[columns, r2], &[x, y]) if r == r2 && (rows, columns) == (x, y)
        );
        if !fits {
            self.problems.push(format!(
                "`{name}` has A {a_shape:?} and B {b_shape:?}, which do not fit the base's \
                 `{weight}` {shape:?}"
            ));
            return Ok(());
        }
        let settings = self.settings(name)?;
        let magnitude = self.magnitude(name, module, b_shape[0]);
        let (scaling, form) = (settings.scaling, Form::Transposed);
        self.add(
            name,
            &weight,
            settings,
            FileUpdate {
                a,
                b,
                magnitude,
                scaling,
                form,
            },
        );
        Ok(())
    }

    pub fn settings(&mut self, path: &str) -> Result<Settings> {
        let path = match self.as_model {
            true => self.naming.of(path),
            false => path.into(),
        };
        self.selection.settings(&path, Overrides::default())
    }

    /// The keys of both matrices. Adds a problem if one is missing.
    pub fn pair(&mut self, name: &str, module: &Module) -> Option<(String, String)> {
        match (module.get(Part::A), module.get(Part::B)) {
            (Some(a), Some(b)) => Some((a.into(), b.into())),
            (a, _) => {
                let (has, lacks) = if a.is_some() { ("A", "B") } else { ("B", "A") };
                self.problems
                    .push(format!("`{name}` has a matrix {has}, but no {lacks}"));
                None
            }
        }
    }

    fn magnitude(&mut self, name: &str, module: &Module, out: usize) -> Option<String> {
        let magnitude = module.get(Part::Magnitude);
        if magnitude.is_some() != self.config.use_dora {
            self.problems.push(match magnitude {
                Some(_) => format!("`{name}` has a magnitude, but `use_dora` is false"),
                None => format!("`{name}` has no magnitude, but `use_dora` is true"),
            });
        }
        let magnitude = magnitude?;
        let shape = self.shape_of(magnitude);
        let numbers = shape.iter().filter(|n| **n != 1).count();
        if shape.iter().product::<usize>() != out || numbers > 1 {
            let problem = format!("`{magnitude}` has shape {shape:?}: it must have {out} values");
            self.problems.push(problem);
        }
        Some(magnitude.into())
    }

    fn bias_of_b(&mut self, name: &str, place: &str, module: &Module, out: usize, scaling: f64) {
        let Some(key) = module.get(Part::Bias) else {
            if self.config.lora_bias {
                self.problems.push(format!(
                    "`{name}` has no `lora_B.bias`, but `lora_bias` is true"
                ));
            }
            return;
        };
        if !self.config.lora_bias {
            self.problems.push(format!(
                "`{name}` has `lora_B.bias`, but `lora_bias` is false"
            ));
        }
        let bias = join(place, "bias");
        let shape = self.shape_of(key).to_vec();
        if shape != [out] || self.shape(&bias) != Some(shape.clone()) {
            self.problems.push(format!(
                "`{key}` has shape {shape:?}, but the base has {}",
                match self.shape(&bias) {
                    Some(shape) => format!("`{bias}` {shape:?}"),
                    None => format!("no `{bias}` to add it to"),
                }
            ));
        } else if self.are_floats(&bias, &[key]) {
            self.change(&bias).add = Some((key.into(), scaling));
        }
    }

    /// Adds an update whose shapes fit.
    pub fn add(&mut self, name: &str, weight: &str, settings: Settings, low_rank: FileUpdate) {
        let count = match low_rank.form {
            Form::Experts { count, .. } => count,
            _ => 1,
        };
        let rows = self.shape_of(&low_rank.a).first().copied();
        if rows != settings.rank.checked_mul(count) || rows == Some(0) {
            self.problems.push(format!(
                "A of `{name}` has shape {:?}, its rank is {} in the configuration",
                self.shape_of(&low_rank.a),
                settings.rank
            ));
            return;
        }
        let magnitude = low_rank.magnitude.as_deref();
        let keys: Vec<&str> = [low_rank.a.as_str(), low_rank.b.as_str()]
            .into_iter()
            .chain(magnitude)
            .collect();
        if !self.are_floats(weight, &keys) {
            return;
        }
        if self.change(weight).low_rank.replace(low_rank).is_some() {
            self.problems
                .push(format!("two adapters of the file change `{weight}`"));
        }
    }

    /// Plans the trained rows of an embedding.
    pub fn tokens(&mut self, name: &str, key: &str, keys: &Keys) -> Result<()> {
        if !self.base.contains(&join(&self.locate(name), "weight"))
            && self.is_copy_of_rows(key, keys)?
        {
            return Ok(());
        }
        let indices = &self.lora.trainable_token_indices;
        let found = indices.iter().find(|(end, _)| is_or_ends_with(name, end));
        let Some((_, rows)) = found else {
            self.problems.push(format!(
                "`{key}` holds rows, but `trainable_token_indices` does not name `{name}`"
            ));
            return Ok(());
        };
        let weight = join(&self.locate(name), "weight");
        let Some(shape) = self.shape(&weight) else {
            let problem = format!("`{name}` has trained rows, but the base has no `{weight}`");
            self.problems.push(problem);
            return Ok(());
        };
        let mut sorted = rows.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let inside = sorted.last().is_none_or(|&last| {
            let count = shape.first().copied().unwrap_or(0);
            (last as usize) < count
        });
        let fits = shape.len() == 2 && *self.shape_of(key) == [rows.len(), shape[1]];
        if !fits || !inside || sorted.len() != rows.len() {
            self.problems.push(format!(
                "`{key}` {:?} does not fit {} different rows of `{weight}` {shape:?}, up to row {}",
                self.shape_of(key),
                sorted.len(),
                sorted.last().copied().unwrap_or(0)
            ));
            return Ok(());
        }
        let rows = rows.clone();
        if self.are_floats(&weight, &[key]) {
            let change = self.change(&weight);
            if change.rows.replace((key.into(), rows)).is_some() {
                self.problems
                    .push(format!("two tensors of the file hold rows of `{weight}`"));
            }
        }
        Ok(())
    }

    /// Decides how square weights are stored, which their shapes do not tell: as the others are.
    pub fn lay_out(&mut self, layers: Vec<Laid>) {
        let seen = |way: bool| layers.iter().any(|(_, laid)| *laid == Some(way));
        let flag = self.options.fan_in_fan_out;
        let way = flag.unwrap_or(self.config.fan_in_fan_out);
        let clear = flag.is_some() || !seen(!way);
        for (weight, _) in layers.iter().filter(|(_, laid)| laid.is_none()) {
            if !clear {
                self.problems.push(format!(
                    "`{weight}` is square, and the other layers do not tell whether it is stored \
                     as (out, in) or (in, out): say so with MergeOptions::fan_in_fan_out"
                ));
            } else if way && let Some(low_rank) = &mut self.change(weight).low_rank {
                low_rank.form = Form::Transposed;
            }
        }
    }
}
