//! Images and sequences at another size.

use super::{record, working};
use crate::profile;
use candle_core::{DType, Device, Result, Tensor, bail};

/// A sequence (batch, channels, length) at another length, each value that of the nearest element, as
/// [`Tensor::upsample_nearest1d`].
///
/// Any length has a gradient. Candle's own backward pass needs a multiple, and loses what reaches the
/// input by other ways.
///
/// # Errors
/// If the input has another rank, or no element to take.
pub fn upsample_nearest1d(xs: &Tensor, length: usize) -> Result<Tensor> {
    let before = xs.dim(2)?;
    resized(
        "upsample_nearest1d",
        xs,
        |x| x.upsample_nearest1d(length),
        move |grad| spread(grad, 2, before),
    )
}

/// Images (batch, channels, height, width) at another size, each value that of the nearest element, as
/// [`Tensor::upsample_nearest2d`].
///
/// As [`upsample_nearest1d`] otherwise. Candle's own backward pass needs the same multiple for height
/// and width.
///
/// ```
/// use candle_core::{DType, Device, Var};
///
/// let x = Var::ones((1, 1, 2, 2), DType::F32, &Device::Cpu)?;
/// let y = lora::ops::upsample_nearest2d(&x, 3, 4)?;
/// let grads = y.sum_all()?.backward()?;
/// let grad = grads.get(&x).unwrap().squeeze(0)?.squeeze(0)?;
/// assert_eq!(grad.to_vec2::<f32>()?, [[4., 4.], [2., 2.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// As [`upsample_nearest1d`].
pub fn upsample_nearest2d(xs: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, _, h, w) = xs.dims4()?;
    let resize = |x: &Tensor| x.upsample_nearest2d(height, width);
    resized("upsample_nearest2d", xs, resize, move |grad| {
        spread(&spread(grad, 2, h)?, 3, w)
    })
}

/// Images (batch, channels, height, width) at another size, between the elements a weighted mean, as
/// [`Tensor::upsample_bilinear2d`]. Candle's own has no backward pass.
///
/// # Errors
/// As [`upsample_nearest1d`].
pub fn upsample_bilinear2d(
    xs: &Tensor,
    height: usize,
    width: usize,
    align_corners: bool,
) -> Result<Tensor> {
    let to = move |side: Side, n: usize| match side {
        Side::Height => (height, n),
        Side::Width => (n, width),
        Side::Both => (height, width),
    };
    bilinear(xs, move |x, side| {
        let (_, _, h, w) = x.dims4()?;
        let (height, width) = to(side, if side == Side::Height { w } else { h });
        x.upsample_bilinear2d(height, width, align_corners)
    })
}

/// As [`upsample_bilinear2d`], by factors, as [`Tensor::upsample_bilinear2d_with_scale`].
///
/// # Errors
/// As [`upsample_nearest1d`].
pub fn upsample_bilinear2d_with_scale(
    xs: &Tensor,
    scale_h: f64,
    scale_w: f64,
    align_corners: bool,
) -> Result<Tensor> {
    bilinear(xs, move |x, side| {
        let scale_h = if side == Side::Width { 1. } else { scale_h };
        let scale_w = if side == Side::Height { 1. } else { scale_w };
        x.upsample_bilinear2d_with_scale(scale_h, scale_w, align_corners)
    })
}

/// Which sides of an image change.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Height,
    Width,
    Both,
}

/// A linear map of the rows and one of the columns. What `resize` makes of the unit vectors are the two
/// matrices.
fn bilinear(
    xs: &Tensor,
    resize: impl Fn(&Tensor, Side) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let (_, _, h, w) = xs.dims4()?;
    let value = resized_value("upsample_bilinear2d", xs, |x| resize(x, Side::Both))?;
    record("upsample_bilinear2d", [xs], value, move |grad, _| {
        let dtype = grad.dtype();
        let grad = working(grad)?;
        let unit = |n: usize| -> Result<Tensor> {
            let unit = Tensor::eye(n, DType::F64, &Device::Cpu)?;
            unit.reshape((n, 1, n, 1))
        };
        let as_matrix = |columns: Tensor| -> Result<Tensor> {
            let columns = columns.flatten_from(1)?;
            columns.to_dtype(grad.dtype())?.to_device(grad.device())
        };
        let rows = as_matrix(resize(&unit(h)?, Side::Height)?)?;
        let columns = as_matrix(resize(
            &unit(w)?.transpose(2, 3)?.contiguous()?,
            Side::Width,
        )?)?;
        let grad = rows.broadcast_matmul(&grad)?;
        let grad = grad.broadcast_matmul(&columns.t()?)?;
        Ok([Some(grad.to_dtype(dtype)?)])
    })
}

/// The value of an op that makes another size of its input.
fn resized_value(
    name: &'static str,
    xs: &Tensor,
    resize: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if xs.dims().iter().skip(2).any(|side| *side == 0) {
        bail!("{name}: the input {:?} has no elements to take", xs.dims());
    }
    let span = profile::forward(name);
    let x = xs.detach();
    let y = resize(&x.contiguous()?)?;
    // Where the size stays, candle gives the input itself, or the storage of a view from its beginning.
    let y = match y.shape() == x.shape() {
        true => x.force_contiguous()?,
        false => y,
    };
    span.end([&y].into_iter());
    Ok(y)
}

fn resized(
    name: &'static str,
    xs: &Tensor,
    resize: impl FnOnce(&Tensor) -> Result<Tensor>,
    backward: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let value = resized_value(name, xs, resize)?;
    record(name, [xs], value, move |grad, _| {
        let on_xs = backward(&working(grad)?)?;
        Ok([Some(on_xs.to_dtype(grad.dtype())?)])
    })
}

/// Adds what each element of a dimension was copied to.
fn spread(grad: &Tensor, dim: usize, length: usize) -> Result<Tensor> {
    // Candle says itself where each value came from.
    let places = Tensor::arange(0., length as f64, grad.device())?;
    let places = places.reshape((1, 1, length))?;
    let from = places.upsample_nearest1d(grad.dim(dim)?)?;
    let from = from.flatten_all()?.to_dtype(DType::U32)?;
    let mut shape = grad.dims().to_vec();
    shape[dim] = length;
    let sums = Tensor::zeros(shape, grad.dtype(), grad.device())?;
    sums.index_add(&from, &grad.contiguous()?, dim)
}
