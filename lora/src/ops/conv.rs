//! Convolutions over one and two dimensions.

use super::depthwise::Depthwise;
use super::{record, working};
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
    let conv = Conv::new(xs, weight, config)?;
    let dtype = xs.dtype();
    let (x, w) = (xs.detach(), weight.detach());
    let mut y = conv.forward(&working(&x)?, &working(&w)?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(&working(bias)?.reshape((1, (), 1, 1))?)?;
    }
    let y = y.to_dtype(dtype)?;

    // The input is kept only for the gradient of the weight.
    let x = weight.track_op().then_some(x);
    // A missing bias is an argument that nothing tracks.
    let bias = bias.unwrap_or(&w).clone();
    let args = [xs, weight, &bias];
    let w = w.clone();
    record(
        "conv2d",
        args,
        y,
        move |grad, [on_xs, on_weight, on_bias]| {
            let grad = working(grad)?;
            let on_xs = on_xs.then(|| conv.grad_input(&grad, &working(&w)?)?.to_dtype(dtype));
            let on_weight = x.as_ref().filter(|_| on_weight);
            let on_weight =
                on_weight.map(|x| conv.grad_weight(&grad, &working(x)?)?.to_dtype(dtype));
            let on_bias = on_bias.then(|| grad.sum((0, 2, 3))?.to_dtype(dtype));
            Ok([
                on_xs.transpose()?,
                on_weight.transpose()?,
                on_bias.transpose()?,
            ])
        },
    )
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
    let xs = match config.padding {
        0 => xs.clone(),
        padding => xs.pad_with_zeros(2, padding, padding)?,
    };
    let config = Conv2dConfig {
        padding: 0,
        stride: config.stride,
        dilation: config.dilation,
        groups: config.groups,
        cudnn_fwd_algo: config.cudnn_fwd_algo,
    };
    conv2d(&xs.unsqueeze(2)?, &weight.unsqueeze(2)?, bias, &config)?.squeeze(2)
}

/// The geometry of one convolution.
#[derive(Clone, Copy, Debug)]
struct Conv {
    config: Conv2dConfig,
    /// (batch, in, height, width)
    input: (usize, usize, usize, usize),
    /// (out, in / groups, kernel height, kernel width)
    kernel: (usize, usize, usize, usize),
    /// Height and width of the result.
    output: (usize, usize),
    /// The fast kernels for one input channel a group, where they serve.
    depthwise: Option<Depthwise>,
    /// A matrix product at every place: a kernel of 1x1 that visits each place once.
    pointwise: bool,
}

impl Conv {
    fn new(xs: &Tensor, weight: &Tensor, config: &Conv2dConfig) -> Result<Self> {
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
            padding,
            stride,
            dilation,
            groups,
            ..
        } = *config;
        if stride == 0 || dilation == 0 || groups == 0 || kernel.2 == 0 || kernel.3 == 0 {
            bail!("conv2d: stride, dilation, groups and the kernel's sides must be at least 1");
        }
        if input.1 != kernel.1 * groups || kernel.0 % groups != 0 {
            bail!(
                "conv2d: an input of shape {:?} does not fit a weight of shape {:?} with {groups} \
                 groups",
                xs.dims(),
                weight.dims()
            );
        }
        if xs.dtype() != weight.dtype() {
            bail!(
                "conv2d: the input is {:?} and the weight {:?}",
                xs.dtype(),
                weight.dtype()
            );
        }
        let side = |length: usize, kernel: usize| {
            let (padded, span) = (length + 2 * padding, dilation * (kernel - 1) + 1);
            match padded.checked_sub(span) {
                Some(room) => Ok(room / stride + 1),
                None => bail!(
                    "conv2d: a kernel that spans {span} is larger than the padded input, {padded}"
                ),
            }
        };
        let output = (side(input.2, kernel.2)?, side(input.3, kernel.3)?);
        let fast = xs.device().is_cpu() && kernel.1 == 1 && kernel.0 == groups;
        let depthwise = fast.then_some(Depthwise {
            input,
            kernel: (kernel.2, kernel.3),
            output,
            stride,
            padding,
            dilation,
        });
        let pointwise = (kernel.2, kernel.3) == (1, 1) && (padding, stride, groups) == (0, 1, 1);
        Ok(Self {
            config: *config,
            input,
            kernel,
            output,
            depthwise,
            pointwise,
        })
    }

    fn is_empty(&self) -> bool {
        self.input.0 * self.input.1 * self.kernel.0 == 0
    }

    fn forward(&self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        if self.is_empty() {
            let shape = (self.input.0, self.kernel.0, self.output.0, self.output.1);
            return Tensor::zeros(shape, x.dtype(), x.device());
        }
        if let Some(depthwise) = &self.depthwise {
            return depthwise.forward(x, w);
        }
        if self.pointwise {
            let y = self.matrix(w)?.broadcast_matmul(&places(x)?)?;
            return y.reshape((self.input.0, self.kernel.0, self.output.0, self.output.1));
        }
        let Conv2dConfig {
            padding,
            stride,
            dilation,
            groups,
            cudnn_fwd_algo,
        } = self.config;
        let x = x.contiguous()?;
        x.conv2d_with_algo(w, padding, stride, dilation, groups, cudnn_fwd_algo)
    }

    /// The gradient of the input: a transposed convolution of each group.
    fn grad_input(&self, grad: &Tensor, w: &Tensor) -> Result<Tensor> {
        if self.is_empty() {
            return Tensor::zeros(self.input, grad.dtype(), grad.device());
        }
        if let Some(depthwise) = &self.depthwise {
            return depthwise.grad_input(grad, w);
        }
        if self.pointwise {
            let x = self.matrix(w)?.t()?.broadcast_matmul(&places(grad)?)?;
            return x.reshape(self.input);
        }
        let Conv2dConfig {
            padding,
            stride,
            dilation,
            ..
        } = self.config;
        // Positions at the far end of the padded input that no window reached.
        let unreached = |length: usize, output: usize, kernel: usize| {
            length + 2 * padding - ((output - 1) * stride + dilation * (kernel - 1) + 1)
        };
        let (height, width) = (self.input.2, self.input.3);
        let unreached = (
            unreached(height, self.output.0, self.kernel.2),
            unreached(width, self.output.1, self.kernel.3),
        );
        self.each_group(grad, w, 1, |grad, w| {
            // Computed without padding and then cut, so that any padding works.
            let full = grad.conv_transpose2d(w, 0, 0, stride, dilation)?;
            let full = full.pad_with_zeros(2, 0, unreached.0)?;
            let full = full.pad_with_zeros(3, 0, unreached.1)?;
            full.narrow(2, padding, height)?.narrow(3, padding, width)
        })
    }

    /// The gradient of the weight: a convolution of the input with the gradient, stride and
    /// dilation exchanged, batch and channels exchanged.
    fn grad_weight(&self, grad: &Tensor, x: &Tensor) -> Result<Tensor> {
        if self.is_empty() {
            return Tensor::zeros(self.kernel, grad.dtype(), grad.device());
        }
        if let Some(depthwise) = &self.depthwise {
            return depthwise.grad_weight(grad, x);
        }
        if self.pointwise {
            let rows = |t: &Tensor| t.transpose(0, 1)?.flatten_from(1);
            return rows(grad)?.matmul(&rows(x)?.t()?)?.reshape(self.kernel);
        }
        let Conv2dConfig {
            padding,
            stride,
            dilation,
            ..
        } = self.config;
        let (height, width) = (self.kernel.2, self.kernel.3);
        self.each_group(grad, x, 0, |grad, x| {
            let x = x.transpose(0, 1)?.contiguous()?;
            let grad = grad.transpose(0, 1)?.contiguous()?;
            let w = x.conv2d(&grad, padding, dilation, stride, 1)?;
            let w = w.narrow(2, 0, height)?.narrow(3, 0, width)?;
            w.transpose(0, 1)?.contiguous()
        })
    }

    /// The weight of a pointwise convolution as a matrix, (out, in).
    fn matrix(&self, w: &Tensor) -> Result<Tensor> {
        w.reshape((self.kernel.0, self.kernel.1))
    }

    /// Applies `f` to the groups of the gradient's channels and of `other`, a weight or an input,
    /// and joins the results along `dim`.
    fn each_group(
        &self,
        grad: &Tensor,
        other: &Tensor,
        dim: usize,
        f: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let groups = self.config.groups;
        if groups == 1 {
            return f(grad, other)?.contiguous();
        }
        // A weight is grouped by its first dimension, an input by its channels.
        let grads = grad.chunk(groups, 1)?;
        let others = other.chunk(groups, 1 - dim)?;
        let parts = grads.iter().zip(&others);
        let parts = parts.map(|(grad, other)| f(&grad.contiguous()?, &other.contiguous()?));
        Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, dim)
    }
}

/// (batch, channels, height, width) as (batch, channels, places).
fn places(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.flatten_from(2)
}
