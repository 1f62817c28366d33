//! Pooling over windows of images.

use super::{record, record_with_value, working};
use crate::profile;
use candle_core::{Device, Result, Tensor, ToUsize2, bail};

/// The means over windows of images (batch, channels, height, width), as
/// [`Tensor::avg_pool2d_with_stride`].
///
/// Any windows have a gradient. Candle's own backward pass needs windows that neither overlap nor leave a
/// gap, and is wrong where these do not fill the image.
///
/// ```
/// use candle_core::{DType, Device, Var};
///
/// let x = Var::ones((1, 1, 3, 3), DType::F32, &Device::Cpu)?;
/// let y = lora::ops::avg_pool2d(&x, 2, 1)?;
/// let grads = y.sum_all()?.backward()?;
/// let grad = grads.get(&x).unwrap().squeeze(0)?.squeeze(0)?;
/// assert_eq!(grad.to_vec2::<f32>()?, [[0.25, 0.5, 0.25], [0.5, 1., 0.5], [0.25, 0.5, 0.25]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If the input has another rank, a side of a window or a step is 0, or a window is larger than the image.
pub fn avg_pool2d<T: ToUsize2>(xs: &Tensor, kernel: T, stride: T) -> Result<Tensor> {
    let windows = Windows::new("avg_pool2d", xs, kernel, stride)?;
    let span = profile::forward("avg_pool2d");
    let y = xs
        .detach()
        .avg_pool2d_with_stride(windows.kernel, windows.stride)?;
    span.end([&y].into_iter());
    record("avg_pool2d", [xs], y, move |grad, _| {
        let share = (working(grad)? / (windows.kernel.0 * windows.kernel.1) as f64)?;
        let on_xs = windows.sum(&share, |_, _| Ok(share.clone()))?;
        Ok([Some(on_xs.to_dtype(grad.dtype())?)])
    })
}

/// The largest values in windows of images (batch, channels, height, width), as
/// [`Tensor::max_pool2d_with_stride`].
///
/// As [`avg_pool2d`] otherwise. Values that are largest together share the gradient. Candle's own backward
/// pass divides the gradient by the number of elements in a window.
///
/// # Errors
/// As [`avg_pool2d`].
pub fn max_pool2d<T: ToUsize2>(xs: &Tensor, kernel: T, stride: T) -> Result<Tensor> {
    let windows = Windows::new("max_pool2d", xs, kernel, stride)?;
    let span = profile::forward("max_pool2d");
    let x = xs.detach().contiguous()?;
    let y = x.max_pool2d_with_stride(windows.kernel, windows.stride)?;
    span.end([&y].into_iter());
    record_with_value("max_pool2d", [xs], y, move |grad, y, _| {
        let wide = working(grad)?;
        let is_largest = |rows: &Tensor, columns: &Tensor| -> Result<Tensor> {
            let values = x.index_select(rows, 2)?.index_select(columns, 3)?;
            values.eq(y)?.to_dtype(wide.dtype())
        };
        let mut count = wide.zeros_like()?;
        windows.each(wide.device(), |rows, columns| {
            count = (&count + is_largest(rows, columns)?)?;
            Ok(())
        })?;
        let share = (&wide / &count)?;
        let on_xs = windows.sum(&share, |rows, columns| is_largest(rows, columns)? * &share)?;
        Ok([Some(on_xs.to_dtype(grad.dtype())?)])
    })
}

/// The windows over an image.
#[derive(Clone, Copy)]
struct Windows {
    kernel: (usize, usize),
    stride: (usize, usize),
    input: (usize, usize),
    output: (usize, usize),
}

impl Windows {
    fn new<T: ToUsize2>(name: &str, xs: &Tensor, kernel: T, stride: T) -> Result<Self> {
        let (kernel, stride) = (kernel.to_usize2(), stride.to_usize2());
        let (_, _, height, width) = xs.dims4()?;
        let side = |length: usize, kernel: usize, stride: usize| {
            let rest = length.checked_sub(kernel).filter(|_| kernel > 0)?;
            Some(rest.checked_div(stride)? + 1)
        };
        let sides = side(height, kernel.0, stride.0).zip(side(width, kernel.1, stride.1));
        let Some(output) = sides else {
            bail!(
                "{name}: no windows of {kernel:?}, {stride:?} apart, in {:?}",
                xs.dims()
            );
        };
        Ok(Self {
            kernel,
            stride,
            input: (height, width),
            output,
        })
    }

    /// Calls `f` for each place in a window with the rows and columns where the windows have it.
    fn each(
        &self,
        device: &Device,
        mut f: impl FnMut(&Tensor, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let places = |place: usize, stride: usize, count: usize| {
            let all = (0..count).map(|window| (window * stride + place) as u32);
            Tensor::from_iter(all, device)
        };
        for i in 0..self.kernel.0 {
            let rows = places(i, self.stride.0, self.output.0)?;
            for j in 0..self.kernel.1 {
                f(&rows, &places(j, self.stride.1, self.output.1)?)?;
            }
        }
        Ok(())
    }

    /// An image of the sums of what `part` gives each place in the windows. `like` has the shape of the
    /// result.
    fn sum(
        &self,
        like: &Tensor,
        part: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (batch, channels, height, _) = like.dims4()?;
        let zeros = |height: usize, width: usize| {
            Tensor::zeros(
                (batch, channels, height, width),
                like.dtype(),
                like.device(),
            )
        };
        let mut sum = zeros(self.input.0, self.input.1)?;
        self.each(like.device(), |rows, columns| {
            let part = part(rows, columns)?.contiguous()?;
            let part = zeros(height, self.input.1)?.index_add(columns, &part, 3)?;
            sum = sum.index_add(rows, &part, 2)?;
            Ok(())
        })?;
        Ok(sum)
    }
}
