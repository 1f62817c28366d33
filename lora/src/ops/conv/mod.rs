//! Convolutions over one and two dimensions.

mod cpu;
mod tensors;
mod transposed;

pub use transposed::{conv_transpose1d, conv_transpose2d};

use super::{Compute, record, working};
use crate::kernels::conv::Conv;
use crate::kernels::window::Window;
use crate::profile;
use candle_core::{Result, Tensor, bail};
use candle_nn::{Conv1dConfig, Conv2dConfig};

/// A two-dimensional convolution, as [`candle_nn::Conv2d`] computes it.
///
/// `xs` is (batch, in, height, width), `weight` (out, in / groups, kernel height, kernel width),
/// `bias` (out). Stride, padding, dilation and groups are honoured, in the backward pass too. Only
/// the gradients of tracked arguments are computed. On the CPU, bf16 and f16 are computed in f32.
///
/// # Errors
/// If the shapes or dtypes do not fit, or the kernel is larger than the padded input.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::Conv2dConfig;
///
/// let x = Tensor::ones((1, 1, 4, 4), DType::F32, &Device::Cpu)?;
/// let w = Tensor::ones((2, 1, 3, 3), DType::F32, &Device::Cpu)?;
/// let config = Conv2dConfig { stride: 2, padding: 1, ..Default::default() };
/// let y = lora::ops::conv2d(&x, &w, None, &config)?;
/// assert_eq!(y.dims(), [1, 2, 2, 2]);
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?[..4], [4., 6., 6., 9.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn conv2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &Conv2dConfig,
) -> Result<Tensor> {
    convolution(xs, weight, bias, config, (config.padding, config.padding))
}

/// As [`conv2d`], with separate paddings of height and width.
fn convolution(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &Conv2dConfig,
    padding: (usize, usize),
) -> Result<Tensor> {
    let shapes = Convolution::new(xs, weight, bias, config, padding)?;
    let last = xs.permute((0, 2, 3, 1))?;
    if shapes.compute != Compute::Tensors && !xs.is_contiguous() && last.is_contiguous() {
        return node(shapes, Channels::Last, &last, weight, bias)?.permute((0, 3, 1, 2));
    }
    node(shapes, Channels::First, xs, weight, bias)
}

/// The node of a convolution whose `xs` lies in this order.
fn node(
    shapes: Convolution,
    order: Channels,
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    recorded(
        "conv2d",
        [xs, weight],
        bias,
        |x, w| shapes.forward(order, x, w, bias),
        move |grad, w| shapes.grad_input(order, grad, w),
        move |grad, x| shapes.grad_weight(order, grad, x),
        move |grad| shapes.grad_bias(order, grad),
    )
}

/// Computes a result and records it: the gradient of the input comes from that of the result and the
/// weight, the gradient of the weight from that of the result and the input.
fn recorded(
    name: &'static str,
    [xs, weight]: [&Tensor; 2],
    bias: Option<&Tensor>,
    forward: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>,
    grad_input: impl Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
    grad_weight: impl Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
    grad_bias: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let span = profile::forward(name);
    let dtype = xs.dtype();
    let (x, w) = (xs.detach(), weight.detach());
    let y = forward(&working(&x)?, &working(&w)?)?.to_dtype(dtype)?;
    span.end([&y].into_iter());

    // The input is kept only for the gradient of the weight.
    let x = weight.track_op().then_some(x);
    // The node has a fixed number of arguments: an untracked one stands for a missing bias.
    let bias = bias.unwrap_or(&w).clone();
    let bias_shape = bias.shape().clone();
    let args = [xs, weight, &bias];
    let w = w.clone();
    record(name, args, y, move |grad, [on_xs, on_weight, on_bias]| {
        let grad = working(grad)?;
        let on_xs = on_xs.then(|| grad_input(&grad, &working(&w)?));
        let on_weight = x.as_ref().filter(|_| on_weight);
        let on_weight = on_weight.map(|x| grad_weight(&grad, &working(x)?));
        let on_bias = on_bias.then(|| grad_bias(&grad)?.reshape(&bias_shape));
        let cast = |grad: Option<Result<Tensor>>| {
            grad.transpose()?
                .map(|grad| grad.to_dtype(dtype))
                .transpose()
        };
        Ok([cast(on_xs)?, cast(on_weight)?, cast(on_bias)?])
    })
}

/// Refuses what no convolution of either direction can have. `fits` says whether the channels of input and
/// weight belong together, and `outputs` is how many channels the result has.
fn check(
    name: &str,
    [xs, weight]: [&Tensor; 2],
    bias: Option<&Tensor>,
    config: &Conv2dConfig,
    fits: bool,
    outputs: usize,
) -> Result<()> {
    let Conv2dConfig {
        stride,
        dilation,
        groups,
        ..
    } = *config;
    let is_empty = weight.dims().iter().skip(2).any(|&side| side == 0);
    if stride == 0 || dilation == 0 || groups == 0 || is_empty {
        bail!("{name}: stride, dilation, groups and the kernel's sides must be at least 1");
    }
    if !fits {
        bail!(
            "{name}: an input of shape {:?} does not fit a weight of shape {:?} with {groups} groups",
            xs.dims(),
            weight.dims()
        );
    }
    if xs.dtype() != weight.dtype() {
        bail!(
            "{name}: the input is {:?}, but the weight is {:?}",
            xs.dtype(),
            weight.dtype()
        );
    }
    if let Some(bias) = bias
        && (bias.elem_count() != outputs || bias.dtype() != xs.dtype())
    {
        bail!(
            "{name}: the bias must be {outputs} values of {:?}, it is {:?} of {:?}",
            xs.dtype(),
            bias.dims(),
            bias.dtype()
        );
    }
    Ok(())
}

/// A one-dimensional convolution, as [`candle_nn::Conv1d`] computes it.
///
/// `xs` is (batch, in, length), `weight` (out, in / groups, kernel), `bias` (out). As [`conv2d`]
/// otherwise.
///
/// # Errors
/// As [`conv2d`].
pub fn conv1d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &Conv1dConfig,
) -> Result<Tensor> {
    if xs.rank() != 3 || weight.rank() != 3 {
        bail!(
            "conv1d: the input must be (batch, in, length) and the weight (out, in, kernel); they \
             are {:?} and {:?}",
            xs.dims(),
            weight.dims()
        );
    }
    // A height of one; only the length is padded.
    let padding = (0, config.padding);
    let config = Conv2dConfig {
        padding: 0,
        stride: config.stride,
        dilation: config.dilation,
        groups: config.groups,
        cudnn_fwd_algo: config.cudnn_fwd_algo,
    };
    let (xs, weight) = (xs.unsqueeze(2)?, weight.unsqueeze(2)?);
    convolution(&xs, &weight, bias, &config, padding)?.squeeze(2)
}

/// The order of a map's dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Channels {
    /// (channels, height, width)
    First,
    /// (height, width, channels)
    Last,
}

/// One convolution whose shapes fit, and how it is computed.
#[derive(Clone, Copy, Debug)]
struct Convolution {
    config: Conv2dConfig,
    batch: usize,
    conv: Conv,
    compute: Compute,
}

impl Convolution {
    /// `padding` is that of height and width. The configuration's own is not read.
    fn new(
        xs: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        config: &Conv2dConfig,
        padding: (usize, usize),
    ) -> Result<Self> {
        if xs.rank() != 4 || weight.rank() != 4 {
            bail!(
                "conv2d: the input must be (batch, in, height, width) and the weight (out, in, \
                 height, width); they are {:?} and {:?}",
                xs.dims(),
                weight.dims()
            );
        }
        let (input, kernel) = (xs.dims4()?, weight.dims4()?);
        let Conv2dConfig {
            stride,
            dilation,
            groups,
            ..
        } = *config;
        let fits = input.1 == kernel.1 * groups && kernel.0.is_multiple_of(groups);
        check("conv2d", [xs, weight], bias, config, fits, kernel.0)?;
        let side = |length: usize, kernel: usize, padding: usize| {
            let padded = padding.checked_mul(2).and_then(|p| p.checked_add(length));
            let span = dilation
                .checked_mul(kernel - 1)
                .and_then(|d| d.checked_add(1));
            let padded = padded.filter(|&padded| isize::try_from(padded).is_ok());
            let (Some(padded), Some(span)) = (padded, span) else {
                bail!("conv2d: a padding of {padding} or a dilation of {dilation} is too large");
            };
            match padded.checked_sub(span) {
                Some(room) => Ok(room / stride + 1),
                None => bail!(
                    "conv2d: a kernel that spans {span} is larger than the padded input, {padded}"
                ),
            }
        };
        let output = (
            side(input.2, kernel.2, padding.0)?,
            side(input.3, kernel.3, padding.1)?,
        );
        let window = Window {
            input: (input.2, input.3),
            kernel: (kernel.2, kernel.3),
            output,
            stride,
            dilation,
            padding: (padding.0 as isize, padding.1 as isize),
        };
        Ok(Self {
            config: *config,
            batch: input.0,
            conv: Conv {
                window,
                inputs: input.1,
                outputs: kernel.0,
                groups,
            },
            compute: Compute::of(xs),
        })
    }

    /// The window, the input's channels and the result's.
    fn sizes(&self) -> (&Window, usize, usize) {
        (&self.conv.window, self.conv.inputs, self.conv.outputs)
    }

    fn forward(
        &self,
        order: Channels,
        x: &Tensor,
        w: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let bias = bias.map(working).transpose()?;
        match self.compute {
            Compute::F32 => cpu::forward::<f32>(self, order, x, w, bias.as_ref()),
            Compute::F64 => cpu::forward::<f64>(self, order, x, w, bias.as_ref()),
            Compute::Tensors => tensors::forward(self, x, w, bias.as_ref()),
        }
    }

    fn grad_input(&self, order: Channels, grad: &Tensor, w: &Tensor) -> Result<Tensor> {
        match self.compute {
            Compute::F32 => cpu::grad_input::<f32>(self, order, grad, w),
            Compute::F64 => cpu::grad_input::<f64>(self, order, grad, w),
            Compute::Tensors => tensors::grad_input(self, grad, w),
        }
    }

    fn grad_weight(&self, order: Channels, grad: &Tensor, x: &Tensor) -> Result<Tensor> {
        match self.compute {
            Compute::F32 => cpu::grad_weight::<f32>(self, order, grad, x),
            Compute::F64 => cpu::grad_weight::<f64>(self, order, grad, x),
            Compute::Tensors => tensors::grad_weight(self, grad, x),
        }
    }

    fn grad_bias(&self, order: Channels, grad: &Tensor) -> Result<Tensor> {
        match (order, self.compute) {
            (Channels::Last, Compute::F32) => cpu::channel_sums::<f32>(grad),
            (Channels::Last, Compute::F64) => cpu::channel_sums::<f64>(grad),
            _ => grad.flatten_from(2)?.sum(2)?.sum(0),
        }
    }

    /// The shape of the input or, with `outputs`, of the result.
    fn shape(
        &self,
        order: Channels,
        channels: usize,
        (height, width): (usize, usize),
    ) -> [usize; 4] {
        match order {
            Channels::First => [self.batch, channels, height, width],
            Channels::Last => [self.batch, height, width, channels],
        }
    }

    fn input(&self, order: Channels) -> [usize; 4] {
        self.shape(order, self.conv.inputs, self.conv.window.input)
    }

    fn output(&self, order: Channels) -> [usize; 4] {
        self.shape(order, self.conv.outputs, self.conv.window.output)
    }

    /// The shape of the weight.
    fn kernel(&self) -> [usize; 4] {
        let Conv {
            inputs,
            outputs,
            groups,
            window,
        } = self.conv;
        [outputs, inputs / groups, window.kernel.0, window.kernel.1]
    }

    /// True if each group has one input channel and one output channel.
    fn is_depthwise(&self) -> bool {
        let Conv {
            inputs,
            outputs,
            groups,
            ..
        } = self.conv;
        inputs == groups && outputs == groups
    }

    /// True if the convolution is a matrix product at every place: a kernel of 1x1 visits each
    /// place once.
    fn is_pointwise(&self) -> bool {
        let Conv { groups, window, .. } = self.conv;
        (window.kernel, window.padding, window.stride, groups) == ((1, 1), (0, 0), 1, 1)
            // The padding of a transposed convolution's result is visited by no window.
            && window.input == window.output
    }

    fn is_empty(&self) -> bool {
        self.batch * self.conv.outputs == 0
    }
}
