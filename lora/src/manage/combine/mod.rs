//! Makes one adapter from several: PEFT's `add_weighted_adapter` on plain tensors.

mod options;
mod rules;
#[cfg(test)]
mod tests;

pub use options::{Combination, CombineOptions, MajoritySign};

use crate::linalg::{self, Svd};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use faer::{Mat, MatRef};
use rand::Rng;
use rules::{Rule, mixed};

/// An adapter of a layer, to be combined with others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    /// (r, in), (r, in, kernel..) or an embedding's (r, num).
    pub(crate) a: &'a Tensor,
    /// (out, r), (out, r / groups, 1..) or an embedding's (dim, r).
    pub(crate) b: &'a Tensor,
    pub(crate) weight: f64,
    pub(crate) scaling: f64,
}

/// The combined adapter. Its scaling is 1: alpha is its rank, without rsLoRA.
#[derive(Debug)]
pub(crate) struct Combined {
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    pub(crate) rank: usize,
}

/// Combines a layer's adapters. `groups` is a convolution's number of groups, 1 for other layers.
/// The result has the first adapter's dtype and device.
///
/// # Errors
/// Lists what is wrong with the options and the shapes. Values that are not finite are an error
/// too.
pub(crate) fn combine(
    sources: &[Source<'_>],
    groups: usize,
    combination: Combination,
    options: &CombineOptions,
    rng: &mut impl Rng,
) -> Result<Combined> {
    let combination = combination.of(sources.len());
    let shapes = UpdateShapes::check(sources, groups, combination, options)?;
    let factors: Vec<Factors> = sources
        .iter()
        .map(|source| shapes.factors(source))
        .collect::<Result<_>>()?;
    let density = options.density.unwrap_or(1.0);
    let rule = Rule::new(combination, density, options.majority_sign);

    let (a, b) = match combination {
        Combination::Cat => shapes.cat(&factors, sources),
        // The sum of all is one product, whose decomposition needs no update that is formed.
        Combination::Svd => {
            let (a, b) = shapes.cat(&factors, sources);
            let group = |group| {
                let (b, a) = (rows(&b, group, groups), rows(&a, group, groups));
                shapes.of_product(b, a)
            };
            shapes.decomposed(group, options)?
        }
        _ if combination.on_updates() => {
            let updates = factors.iter().zip(sources);
            let updates = updates.map(|(factors, source)| {
                let update = factors.update(groups);
                (
                    linalg::to_values((source.scaling * update).as_ref()),
                    source.weight,
                )
            });
            let values = mixed(updates.collect(), rule, rng);
            let update = linalg::from_values(&values, shapes.out, shapes.inputs)?;
            let group = |group| linalg::svd(rows(&update, group, groups));
            shapes.decomposed(group, options)?
        }
        _ => {
            let mut mix = |of_a: bool| {
                let weighted = factors.iter().zip(sources).map(|(factors, source)| {
                    let weight = source.weight * source.scaling;
                    let (matrix, weight) = match of_a {
                        true => (&factors.a, weight.abs().sqrt().copysign(weight)),
                        false => (&factors.b, weight.abs().sqrt()),
                    };
                    (linalg::to_values(matrix.as_ref()), weight)
                });
                mixed(weighted.collect(), rule, rng)
            };
            let (a, b) = (mix(true), mix(false));
            let [rank, width] = [factors[0].a.nrows(), factors[0].b.ncols()];
            (
                linalg::from_values(&a, rank, shapes.inputs)?,
                linalg::from_values(&b, shapes.out, width)?,
            )
        }
    };
    shapes.combined(&a, &b, sources)
}

/// A and B as matrices: (r, inputs) and (out, r / groups).
struct Factors {
    a: Mat<f64>,
    b: Mat<f64>,
}

impl Factors {
    /// B·A, group by group.
    fn update(&self, groups: usize) -> Mat<f64> {
        let (out, inputs) = (self.b.nrows(), self.a.ncols());
        let mut update = Mat::zeros(out, inputs);
        for group in 0..groups {
            let part = rows(&self.b, group, groups) * rows(&self.a, group, groups);
            let height = out / groups;
            update.subrows_mut(group * height, height).copy_from(part);
        }
        update
    }
}

/// The rows of a group.
fn rows(matrix: &Mat<f64>, group: usize, groups: usize) -> MatRef<'_, f64> {
    let height = matrix.nrows() / groups;
    matrix.subrows(group * height, height)
}

/// Sizes that all adapters of the layer share, and the rank of the result.
struct UpdateShapes {
    out: usize,
    /// Inputs times the size of the kernel.
    inputs: usize,
    groups: usize,
    rank: usize,
}

impl UpdateShapes {
    fn check(
        sources: &[Source<'_>],
        groups: usize,
        combination: Combination,
        options: &CombineOptions,
    ) -> Result<Self> {
        let mut problems = Vec::new();
        let [first, ..] = sources else {
            return Err(Error::layer("", "there is no adapter to combine"));
        };
        let (mut ranks, groups) = (Vec::new(), groups.max(1));
        for Source {
            a,
            b,
            weight,
            scaling,
        } in sources
        {
            let fit = match (a.dims(), b.dims()) {
                ([rank, inputs @ ..], [out, width, ones @ ..]) => {
                    ranks.push(*rank);
                    *rank == width * groups
                        && *rank > 0
                        && out.is_multiple_of(groups)
                        && !inputs.is_empty()
                        && ones.iter().all(|dim| *dim == 1)
                }
                _ => false,
            };
            if !fit {
                problems.push(format!(
                    "A {:?} and B {:?} do not fit a layer of {groups} groups",
                    a.dims(),
                    b.dims()
                ));
            } else if (&a.dims()[1..], b.dim(0).ok()) != (&first.a.dims()[1..], first.b.dim(0).ok())
            {
                problems.push(format!(
                    "A {:?} and B {:?} do not fit the same layer as A {:?} and B {:?}",
                    a.dims(),
                    b.dims(),
                    first.a.dims(),
                    first.b.dims()
                ));
            }
            if !(weight.is_finite() && scaling.is_finite()) {
                problems.push(format!(
                    "weight {weight} and scaling {scaling} must be finite"
                ));
            }
        }
        match options.density {
            _ if !combination.needs_density() => {}
            None => problems.push(format!("{combination:?} needs a density")),
            Some(density) if density > 0.0 && density <= 1.0 => {}
            Some(density) => problems.push(format!(
                "density is {density}: it must be above 0 and at most 1"
            )),
        }
        if let Some(quantile) = options.svd_clamp
            && combination.on_updates()
            && !(0.0..=1.0).contains(&quantile)
        {
            problems.push(format!("svd_clamp is {quantile}: it must be in 0.0..=1.0"));
        }
        let largest = ranks.iter().copied().max().unwrap_or(0);
        let mut shapes = Self {
            out: first.b.dim(0).unwrap_or(0),
            inputs: first.a.dims().iter().skip(1).product(),
            groups,
            rank: largest,
        };
        if combination == Combination::Cat {
            shapes.rank = ranks.iter().sum();
        } else if combination.on_updates() {
            shapes.rank = options.svd_rank.unwrap_or(largest);
            let most = groups * (shapes.out / groups).min(shapes.inputs);
            let rank = shapes.rank;
            if rank == 0 || rank > most || !rank.is_multiple_of(groups) {
                let divided = match groups {
                    1 => String::new(),
                    _ => format!(", and {groups} must divide it"),
                };
                problems.push(format!(
                    "svd_rank is {rank}: for this layer it must be at least 1 and at most {most}{divided}"
                ));
            }
        } else if ranks.iter().any(|rank| *rank != largest) {
            problems.push(format!(
                "{combination:?} needs adapters of one rank, these have {ranks:?}: take Cat or Svd"
            ));
        }
        match problems.is_empty() {
            true => Ok(shapes),
            false => Err(Error::layer("", problems.join("; "))),
        }
    }

    fn factors(&self, source: &Source<'_>) -> Result<Factors> {
        let a = linalg::matrix(&source.a.flatten_from(1)?)?;
        let b = linalg::matrix(&source.b.flatten_from(1)?)?;
        Ok(Factors { a, b })
    }

    /// Stacks the As below each other and the Bs side by side, group by group.
    fn cat(&self, factors: &[Factors], sources: &[Source<'_>]) -> (Mat<f64>, Mat<f64>) {
        let all = factors.iter().map(|factors| factors.a.nrows()).sum();
        let mut a = Mat::zeros(all, self.inputs);
        let mut row = 0;
        // The layer splits A's rows by group: the rows of one group must stand together.
        for group in 0..self.groups {
            for (factors, source) in factors.iter().zip(sources) {
                let part = rows(&factors.a, group, self.groups);
                let scaled = source.weight * source.scaling * part;
                a.subrows_mut(row, part.nrows()).copy_from(scaled);
                row += part.nrows();
            }
        }
        let mut b = Mat::zeros(self.out, all / self.groups);
        let mut col = 0;
        for Factors { b: part, .. } in factors {
            b.subcols_mut(col, part.ncols()).copy_from(part);
            col += part.ncols();
        }
        (a, b)
    }

    /// The decomposition of a group's B·A.
    fn of_product(&self, b: MatRef<'_, f64>, a: MatRef<'_, f64>) -> Result<Svd> {
        let svd = linalg::svd_of_product(b, a)?;
        // A rank beyond the product's has values of zero: rows of A that are not zero, so that they can
        // be trained, come from the update as a whole.
        match svd.s.len() < self.rank / self.groups {
            true => linalg::svd((b * a).as_ref()),
            false => Ok(svd),
        }
    }

    /// Factors an update by its first singular values and vectors, group by group.
    fn decomposed(
        &self,
        svd: impl Fn(usize) -> Result<Svd>,
        options: &CombineOptions,
    ) -> Result<(Mat<f64>, Mat<f64>)> {
        let (rank, height) = (self.rank / self.groups, self.out / self.groups);
        let mut a = Mat::zeros(self.rank, self.inputs);
        let mut b = Mat::zeros(self.out, rank);
        for group in 0..self.groups {
            let Svd { u, s, v } = svd(group)?;
            let vt = v.subcols(0, rank).transpose();
            a.subrows_mut(group * rank, rank).copy_from(vt);
            let us = Mat::from_fn(height, rank, |i, j| u[(i, j)] * s[j]);
            b.subrows_mut(group * height, height).copy_from(us);
        }
        if let Some(clamp) = options.svd_clamp {
            let mut values = linalg::to_values(b.as_ref());
            values.extend(linalg::to_values(a.as_ref()));
            let most = rules::quantile(values, clamp);
            if most < 0.0 {
                let message = format!(
                    "svd_clamp {clamp} would clip to ±{most}: take a quantile above one half"
                );
                return Err(Error::layer("", message));
            }
            for matrix in [&mut a, &mut b] {
                let clamped = |i, j| matrix[(i, j)].clamp(-most, most);
                *matrix = Mat::from_fn(matrix.nrows(), matrix.ncols(), clamped);
            }
        }
        Ok((a, b))
    }

    /// A and B as tensors of the layer's shapes.
    fn combined(&self, a: &Mat<f64>, b: &Mat<f64>, sources: &[Source<'_>]) -> Result<Combined> {
        let first = &sources[0];
        let tensor = |matrix: &Mat<f64>, like: &Tensor| -> Result<Tensor> {
            let tensor = linalg::tensor(matrix.as_ref(), like.dtype(), &Device::Cpu)?;
            let mut dims = like.dims().to_vec();
            dims[0] = matrix.nrows();
            Ok(tensor.reshape(dims)?.to_device(like.device())?)
        };
        let mut b_dims = first.b.dims().to_vec();
        b_dims[1] = b.ncols();
        let b = linalg::tensor(b.as_ref(), first.b.dtype(), &Device::Cpu)?;
        Ok(Combined {
            a: tensor(a, first.a)?,
            b: b.reshape(b_dims)?.to_device(first.b.device())?,
            rank: self.rank,
        })
    }
}
