//! Methods of candle's tensors whose backward pass is wrong or missing, each with its counterpart here.
//!
//! `#[lora::forward]` writes `Receiver(&x).scatter(..)` for `x.scatter(..)`, and the same for each name
//! below. Where `x` is a tensor, the method here is called. Anything else keeps the method of its own,
//! which a receiver leads to.

use super::{
    avg_pool2d, conv_transpose1d, conv_transpose2d, conv1d, conv2d, max_pool2d, scatter,
    scatter_add, upsample_bilinear2d, upsample_bilinear2d_with_scale, upsample_nearest1d,
    upsample_nearest2d,
};
use candle_core::conv::CudnnFwdAlgo;
use candle_core::shape::Dim;
use candle_core::{Result, Tensor, ToUsize2, Var};
use candle_nn::{Conv1dConfig, Conv2dConfig, ConvTranspose1dConfig, ConvTranspose2dConfig};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

/// A value whose method a user's code calls.
#[derive(Debug)]
pub struct Receiver<'a, T: ?Sized>(pub &'a T);

impl<T: ?Sized> Deref for Receiver<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0
    }
}

/// A tensor, or what leads to one.
pub trait AsTensor {
    /// The tensor.
    fn as_tensor(&self) -> &Tensor;
}

impl AsTensor for Tensor {
    fn as_tensor(&self) -> &Tensor {
        self
    }
}

impl AsTensor for Var {
    fn as_tensor(&self) -> &Tensor {
        self
    }
}

macro_rules! pointers {
    ($($pointer:ty),+) => {$(
        impl<T: AsTensor + ?Sized> AsTensor for $pointer {
            fn as_tensor(&self) -> &Tensor {
                (**self).as_tensor()
            }
        }
    )+};
}

pointers!(&T, &mut T, Arc<T>, Box<T>, Rc<T>);

#[expect(missing_docs, reason = "candle's methods")]
impl<T: AsTensor + ?Sized> Receiver<'_, T> {
    pub fn avg_pool2d<S: ToUsize2>(&self, size: S) -> Result<Tensor> {
        let size = size.to_usize2();
        avg_pool2d(self.0.as_tensor(), size, size)
    }

    pub fn avg_pool2d_with_stride<S: ToUsize2>(&self, size: S, stride: S) -> Result<Tensor> {
        avg_pool2d(self.0.as_tensor(), size, stride)
    }

    pub fn conv1d(
        &self,
        kernel: &Tensor,
        padding: usize,
        stride: usize,
        dilation: usize,
        groups: usize,
    ) -> Result<Tensor> {
        self.conv1d_with_algo(kernel, padding, stride, dilation, groups, None)
    }

    pub fn conv1d_with_algo(
        &self,
        kernel: &Tensor,
        padding: usize,
        stride: usize,
        dilation: usize,
        groups: usize,
        cudnn_fwd_algo: Option<CudnnFwdAlgo>,
    ) -> Result<Tensor> {
        let config = Conv1dConfig {
            padding,
            stride,
            dilation,
            groups,
            cudnn_fwd_algo,
        };
        conv1d(self.0.as_tensor(), kernel, None, &config)
    }

    pub fn conv2d(
        &self,
        kernel: &Tensor,
        padding: usize,
        stride: usize,
        dilation: usize,
        groups: usize,
    ) -> Result<Tensor> {
        self.conv2d_with_algo(kernel, padding, stride, dilation, groups, None)
    }

    pub fn conv2d_with_algo(
        &self,
        kernel: &Tensor,
        padding: usize,
        stride: usize,
        dilation: usize,
        groups: usize,
        cudnn_fwd_algo: Option<CudnnFwdAlgo>,
    ) -> Result<Tensor> {
        let config = Conv2dConfig {
            padding,
            stride,
            dilation,
            groups,
            cudnn_fwd_algo,
        };
        conv2d(self.0.as_tensor(), kernel, None, &config)
    }

    pub fn conv_transpose1d(
        &self,
        kernel: &Tensor,
        padding: usize,
        output_padding: usize,
        stride: usize,
        dilation: usize,
        groups: usize,
    ) -> Result<Tensor> {
        let config = ConvTranspose1dConfig {
            padding,
            output_padding,
            stride,
            dilation,
            groups,
        };
        conv_transpose1d(self.0.as_tensor(), kernel, None, &config)
    }

    pub fn conv_transpose2d(
        &self,
        kernel: &Tensor,
        padding: usize,
        output_padding: usize,
        stride: usize,
        dilation: usize,
    ) -> Result<Tensor> {
        let config = ConvTranspose2dConfig {
            padding,
            output_padding,
            stride,
            dilation,
        };
        conv_transpose2d(self.0.as_tensor(), kernel, None, &config)
    }

    pub fn interpolate1d(&self, length: usize) -> Result<Tensor> {
        self.upsample_nearest1d(length)
    }

    pub fn interpolate2d(&self, height: usize, width: usize) -> Result<Tensor> {
        self.upsample_nearest2d(height, width)
    }

    pub fn max_pool2d<S: ToUsize2>(&self, size: S) -> Result<Tensor> {
        let size = size.to_usize2();
        max_pool2d(self.0.as_tensor(), size, size)
    }

    pub fn max_pool2d_with_stride<S: ToUsize2>(&self, size: S, stride: S) -> Result<Tensor> {
        max_pool2d(self.0.as_tensor(), size, stride)
    }

    pub fn scatter<D: Dim>(&self, indexes: &Tensor, source: &Tensor, dim: D) -> Result<Tensor> {
        scatter(self.0.as_tensor(), indexes, source, dim)
    }

    pub fn scatter_add<D: Dim>(&self, indexes: &Tensor, source: &Tensor, dim: D) -> Result<Tensor> {
        scatter_add(self.0.as_tensor(), indexes, source, dim)
    }

    pub fn upsample_bilinear2d(
        &self,
        height: usize,
        width: usize,
        align_corners: bool,
    ) -> Result<Tensor> {
        upsample_bilinear2d(self.0.as_tensor(), height, width, align_corners)
    }

    pub fn upsample_bilinear2d_with_scale(
        &self,
        scale_h: f64,
        scale_w: f64,
        align_corners: bool,
    ) -> Result<Tensor> {
        upsample_bilinear2d_with_scale(self.0.as_tensor(), scale_h, scale_w, align_corners)
    }

    pub fn upsample_nearest1d(&self, length: usize) -> Result<Tensor> {
        upsample_nearest1d(self.0.as_tensor(), length)
    }

    pub fn upsample_nearest2d(&self, height: usize, width: usize) -> Result<Tensor> {
        upsample_nearest2d(self.0.as_tensor(), height, width)
    }
}
