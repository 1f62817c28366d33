//! Computes initial values from a linear layer's weight.

use super::adapter_dtype;
use super::calibration::{Calibrated, Components};
use crate::config::{CordaMethod, LoraGaDirection, LoraGaScale};
use crate::linalg::{self, Svd};
use crate::{Error, Init, LoraConfig, Result};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use faer::{Mat, MatRef};
use rand::Rng;
use rand::seq::index::sample;
use std::sync::Arc;

/// The layer for which initial values are computed.
pub(crate) struct Target<'a> {
    pub(crate) path: &'a str,
    /// The weight as a matrix, (out, in).
    pub(crate) weight: &'a Tensor,
    pub(crate) rank: usize,
    pub(crate) scaling: f64,
    /// The type of the layer's blocks, if the layer is quantised: a residual base is quantised then, too.
    pub(crate) blocks: Option<GgmlDType>,
}

/// The initial values of an adapter, and the residual base that they leave.
#[derive(Debug)]
pub(crate) struct Start {
    /// A, (r, in): in f64 for an f64 weight, in f32 for any other.
    pub(crate) a: Tensor,
    /// B, (out, r), in the dtype of A.
    pub(crate) b: Tensor,
    /// The residual base, in the weight's dtype: base + s·B·A is the original weight. `None` where
    /// the weight stays as it is.
    pub(crate) base: Option<Tensor>,
    /// The residual base of a quantised layer, in its place.
    pub(crate) blocks: Option<Arc<QTensor>>,
    /// B is not trained.
    pub(crate) frozen_b: bool,
}

/// Computes the start of a linear layer's adapter, for every [`Init`] that is not drawn.
///
/// # Errors
/// If the rank is too large for the weight, or odd where it must be even; if A and B are divided by
/// a scaling that is not above 0; if the layer was not calibrated; if values are not finite.
pub(crate) fn start(
    target: &Target<'_>,
    config: &LoraConfig,
    calibrated: Option<&Calibrated>,
    rng: &mut impl Rng,
) -> Result<Start> {
    let result = Starting::new(target, config.init).and_then(|it| match config.init {
        Init::Pissa => it.split(linalg::svd(it.weight.as_ref())?),
        Init::PissaNiter(steps) => {
            let weight = it.weight.as_ref();
            it.split(linalg::svd_low_rank(weight, target.rank, steps, rng)?)
        }
        Init::Olora => it.olora(),
        Init::Orthogonal => it.orthogonal(rng),
        Init::Mica => it.mica(),
        Init::Eva => it.eva(calibrated),
        Init::Corda => it.corda(config.corda_config.method, calibrated),
        Init::LoraGa => it.lora_ga(config, calibrated, rng),
        Init::Loftq => it.loftq(config),
        Init::Default | Init::Gaussian | Init::Random => Err(Error::layer(
            target.path,
            format!("`{}` is not computed from a weight", config.init),
        )),
    });
    result.map_err(|error| error.at(target.path))
}

/// A and B that come nearest to what a base lacks of the target's weight: s·B·A ≈ W − base.
///
/// # Errors
/// As [`start`].
pub(crate) fn missing(target: &Target<'_>, base: &Tensor) -> Result<Start> {
    let start = Starting::new(target, Init::Loftq).and_then(|it| it.missing(base));
    start.map_err(|error| error.at(target.path))
}

struct Starting<'a> {
    target: &'a Target<'a>,
    weight: Mat<f64>,
    init: Init,
}

impl<'a> Starting<'a> {
    fn new(target: &'a Target<'a>, init: Init) -> Result<Self> {
        let (out, inputs) = target.weight.dims2()?;
        let (rank, most) = (target.rank, out.min(inputs));
        // Most initial values need one direction of the weight for each rank, LoRA-GA needs two of
        // the gradient. A matrix has only as many as its smaller side.
        let most = match init {
            Init::Orthogonal | Init::Eva => usize::MAX,
            Init::LoraGa => most / 2,
            _ => most,
        };
        if rank > most {
            let message = format!(
                "rank {rank} is too large for `{init}`: a weight ({out}, {inputs}) gives at most \
                 {most}"
            );
            return Err(Error::layer(target.path, message));
        }
        if rank == 0 {
            return Err(Error::layer(
                target.path,
                "rank is 0: it must be at least 1",
            ));
        }
        let weight = linalg::matrix(target.weight)?;
        Ok(Self {
            target,
            weight,
            init,
        })
    }

    /// A and B from the first r singular values and vectors.
    fn split(&self, svd: Svd) -> Result<Start> {
        let (a, b) = self.first(&svd)?;
        self.taken_out(a, b)
    }

    /// A and B whose product s·B·A is the part of the first r singular values.
    fn first(&self, svd: &Svd) -> Result<(Mat<f64>, Mat<f64>)> {
        let rank = self.target.rank;
        let roots = self.roots(&svd.s[..rank])?;
        let a = scaled_columns(svd.v.subcols(0, rank), &roots)
            .transpose()
            .to_owned();
        Ok((a, scaled_columns(svd.u.subcols(0, rank), &roots)))
    }

    /// √(S/s): A and B take one root each, so that s·B·A contains S.
    fn roots(&self, values: &[f64]) -> Result<Vec<f64>> {
        let scaling = self.target.scaling;
        if !(scaling.is_finite() && scaling > 0.0) {
            let message = format!("`{}` needs an alpha above 0: s is {scaling}", self.init);
            return Err(Error::layer(self.target.path, message));
        }
        Ok(values
            .iter()
            .map(|value| (value / scaling).sqrt())
            .collect())
    }

    fn olora(&self) -> Result<Start> {
        let (q, r) = linalg::qr(self.weight.as_ref())?;
        let rank = self.target.rank;
        let (a, b) = (r.subrows(0, rank), q.subcols(0, rank));
        self.taken_out(a.to_owned(), b.to_owned())
    }

    fn orthogonal(&self, rng: &mut impl Rng) -> Result<Start> {
        let rank = self.target.rank;
        if !rank.is_multiple_of(2) {
            let message = format!("rank {rank} is odd: `orthogonal` needs an even one");
            return Err(Error::layer(self.target.path, message));
        }
        let (q, _) = linalg::qr(linalg::random(rank, rank, rng).as_ref())?;
        // A gets Q's even rows, B the odd rows. Rows of Q are orthogonal, so that B·A is 0.
        let half = |first: usize| Mat::from_fn(rank / 2, rank, |i, j| q[(2 * i + first, j)] / 10.0);
        let (out, inputs) = self.weight.shape();
        let a = (linalg::random(inputs, rank / 2, rng) * half(0))
            .transpose()
            .to_owned();
        let b = linalg::random(out, rank / 2, rng) * half(1);
        self.added(a.as_ref(), b.as_ref())
    }

    fn mica(&self) -> Result<Start> {
        let Svd { u, .. } = linalg::svd(self.weight.as_ref())?;
        let rank = self.target.rank;
        let a = Mat::zeros(rank, self.weight.ncols());
        // The directions of the smallest singular values.
        let b = u.subcols(u.ncols() - rank, rank);
        let start = self.added(a.as_ref(), b)?;
        Ok(Start {
            frozen_b: true,
            ..start
        })
    }

    fn eva(&self, calibrated: Option<&Calibrated>) -> Result<Start> {
        let (rank, (out, inputs)) = (self.target.rank, self.weight.shape());
        let Components { vectors, .. } = self.calibration(calibrated, Calibrated::components)?;
        self.check_shape(
            "components",
            (vectors.nrows(), vectors.ncols()),
            (vectors.nrows(), inputs),
        )?;
        if rank > vectors.nrows() {
            let message = format!(
                "rank {rank}, but only {} components of the inputs are known: calibrate with this \
                 configuration",
                vectors.nrows()
            );
            return Err(Error::layer(self.target.path, message));
        }
        let b = Mat::zeros(out, rank);
        self.added(vectors.subrows(0, rank), b.as_ref())
    }

    fn corda(&self, method: CordaMethod, calibrated: Option<&Calibrated>) -> Result<Start> {
        let inputs = self.weight.ncols();
        let covariance = linalg::matrix(self.calibration(calibrated, Calibrated::covariance)?)?;
        self.check_shape("covariance", covariance.shape(), (inputs, inputs))?;
        let mean = (0..inputs).map(|i| covariance[(i, i)]).sum::<f64>() / inputs as f64;
        // Damped, as in PEFT: the covariance of few inputs has no inverse.
        let damped = Mat::from_fn(inputs, inputs, |i, j| {
            covariance[(i, j)] + if i == j { 0.01 * mean } else { 0.0 }
        });
        let svd = linalg::svd((&self.weight * &damped).as_ref())?;
        let rank = self.target.rank;
        let first = match method {
            CordaMethod::Ipm => 0,
            CordaMethod::Kpm => svd.s.len() - rank,
        };
        let roots = self.roots(&svd.s[first..first + rank])?;
        // W·C was decomposed, so that the right vectors contain C. C has to be divided out again.
        let v = svd.v.subcols(first, rank).to_owned();
        let v = linalg::solve_symmetric(damped.as_ref(), v)?;
        let a = scaled_columns(v.as_ref(), &roots).transpose().to_owned();
        let b = scaled_columns(svd.u.subcols(first, rank), &roots);
        self.taken_out(a, b)
    }

    fn lora_ga(
        &self,
        config: &LoraConfig,
        calibrated: Option<&Calibrated>,
        rng: &mut impl Rng,
    ) -> Result<Start> {
        let (rank, scaling) = (self.target.rank, self.target.scaling);
        let gradient = linalg::matrix(self.calibration(calibrated, Calibrated::gradient)?)?;
        self.check_shape("gradient", gradient.shape(), self.weight.shape())?;
        let svd = linalg::svd_low_rank(gradient.as_ref(), 4 * rank, 4, rng)?;
        let settings = &config.lora_ga_config;
        // The gradient's singular vectors that A and B start with, by index.
        let (of_a, of_b): (Vec<usize>, Vec<usize>) = match settings.direction {
            LoraGaDirection::ArBr => (0..rank).map(|i| (2 * i + 1, 2 * i)).unzip(),
            LoraGaDirection::A2rBr => (0..rank).map(|i| (rank + i, i)).unzip(),
            LoraGaDirection::ArB2r => (0..rank).map(|i| (i, rank + i)).unzip(),
            LoraGaDirection::Random => {
                let chosen = sample(rng, 2 * rank, rank).into_iter();
                chosen.map(|i| (i, i)).unzip()
            }
        };
        let largest = svd.s[of_b[0]];
        let (scale_a, scale_b) = match settings.scale {
            LoraGaScale::Stable => {
                let out = self.weight.nrows() as f64;
                (1.0, out.powf(0.25) / settings.stable_gamma.sqrt())
            }
            LoraGaScale::WeightSvd if largest > 0.0 => {
                let weight = linalg::svd_low_rank(self.weight.as_ref(), rank, 4, rng)?;
                (1.0, weight.s[0] / largest)
            }
            LoraGaScale::GdScale if scaling == 0.0 => {
                let message = "`lora_ga` with `gd_scale` needs an alpha that is not 0";
                return Err(Error::layer(self.target.path, message));
            }
            LoraGaScale::GdScale => (1.0 / scaling, 1.0 / scaling),
            LoraGaScale::WeightSvd | LoraGaScale::Unit => (1.0, 1.0),
        };
        let inputs = self.weight.ncols();
        let a = Mat::from_fn(rank, inputs, |i, j| svd.v[(j, of_a[i])] * scale_a);
        let b = Mat::from_fn(self.weight.nrows(), rank, |i, j| {
            svd.u[(i, of_b[j])] * svd.s[of_b[j]] * scale_b
        });
        self.taken_out(a, b)
    }

    /// Quantises the base and decomposes the quantisation's error, in turns, as LoftQ does.
    fn loftq(&self, config: &LoraConfig) -> Result<Start> {
        let settings = &config.loftq_config;
        let quantiser = self.target.blocks.unwrap_or(settings.quantiser);
        let (weight, scaling) = (self.target.weight, self.target.scaling);
        let mut rest = self.weight.clone();
        let mut turn = settings.iterations.max(1);
        loop {
            let blocks = self.quantised(&rest, quantiser)?;
            // The base will hold values rounded to its dtype, so the error includes this rounding.
            let base = blocks.dequantize(&Device::Cpu)?.to_dtype(weight.dtype())?;
            let (a, b) = self.nearest(&base)?;
            turn -= 1;
            if turn > 0 {
                rest = &self.weight - scaling * (b * a);
                continue;
            }
            let mut start = self.added(a.as_ref(), b.as_ref())?;
            match self.target.blocks {
                Some(_) => start.blocks = Some(blocks),
                None => start.base = Some(base.to_device(weight.device())?),
            }
            return Ok(start);
        }
    }

    fn missing(&self, base: &Tensor) -> Result<Start> {
        let (a, b) = self.nearest(base)?;
        self.added(a.as_ref(), b.as_ref())
    }

    /// A and B whose product s·B·A is nearest to what this base lacks of the weight.
    fn nearest(&self, base: &Tensor) -> Result<(Mat<f64>, Mat<f64>)> {
        let lacking = &self.weight - linalg::matrix(base)?;
        self.first(&linalg::svd(lacking.as_ref())?)
    }

    fn quantised(&self, weight: &Mat<f64>, quantiser: GgmlDType) -> Result<Arc<QTensor>> {
        let (inputs, block) = (weight.ncols(), quantiser.block_size());
        if !inputs.is_multiple_of(block) {
            let message = format!(
                "{quantiser:?} takes {block} inputs at a time, the layer has {inputs}: take \
                 another quantiser for `{}`",
                self.init
            );
            return Err(Error::layer(self.target.path, message));
        }
        let full = linalg::tensor(weight.as_ref(), DType::F32, &Device::Cpu)?;
        Ok(Arc::new(QTensor::quantize(&full, quantiser)?))
    }

    /// A start that leaves the weight as it is.
    fn added(&self, a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Result<Start> {
        let weight = self.target.weight;
        let dtype = adapter_dtype(weight.dtype());
        Ok(Start {
            a: linalg::tensor(a, dtype, weight.device())?,
            b: linalg::tensor(b, dtype, weight.device())?,
            base: None,
            blocks: None,
            frozen_b: false,
        })
    }

    /// A start that leaves the residual base W − s·B·A.
    fn taken_out(&self, a: Mat<f64>, b: Mat<f64>) -> Result<Start> {
        let mut start = self.added(a.as_ref(), b.as_ref())?;
        let Target {
            weight,
            scaling,
            blocks,
            ..
        } = *self.target;
        // Computed from A and B as they were rounded, so that the sum gives the weight back.
        let base = residual(weight, &start.a, &start.b, scaling)?;
        match blocks {
            Some(dtype) => {
                start.blocks = Some(self.quantised(&linalg::matrix(&base)?, dtype)?);
            }
            None => start.base = Some(base),
        }
        Ok(start)
    }

    /// What the calibration found for this layer.
    fn calibration<'c, T: ?Sized>(
        &self,
        calibrated: Option<&'c Calibrated>,
        find: impl Fn(&'c Calibrated, &str) -> Option<&'c T>,
    ) -> Result<&'c T> {
        let path = self.target.path;
        let found = calibrated.and_then(|calibrated| find(calibrated, path));
        found.ok_or_else(|| {
            let message = format!(
                "`{}` needs a calibration that has seen this layer",
                self.init
            );
            Error::layer(path, message)
        })
    }

    fn check_shape(&self, what: &str, is: (usize, usize), needed: (usize, usize)) -> Result<()> {
        if is == needed {
            return Ok(());
        }
        let message =
            format!("the calibration has {what} of shape {is:?}, this layer needs {needed:?}");
        Err(Error::layer(self.target.path, message))
    }
}

/// The residual base W − s·B·A that A and B leave of a weight, (out, in), in the weight's dtype.
pub(crate) fn residual(weight: &Tensor, a: &Tensor, b: &Tensor, scaling: f64) -> Result<Tensor> {
    let (full, a, b) = (
        linalg::matrix(weight)?,
        linalg::matrix(a)?,
        linalg::matrix(b)?,
    );
    let base = full - scaling * (b * a);
    linalg::tensor(base.as_ref(), weight.dtype(), weight.device())
}

/// The matrix with each column multiplied by its factor.
fn scaled_columns(matrix: MatRef<'_, f64>, factors: &[f64]) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| {
        matrix[(i, j)] * factors[j]
    })
}
